"""Heads and hidden channels are what tensor parallelism divides, in every stack of every transformer."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.networks.axes import parameter_axes
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt

NETWORKS = {
    "mmdit": MMDiT(width=24, depth=4, heads=2, dual=2, grid=4, text_width=6, text_pooled=5),
    "flux": Flux(width=24, depth=2, single_depth=3, heads=2, axes=(4, 4, 4), text_width=6, text_pooled=5),
    "pixart": PixArt(width=24, depth=2, heads=2, text_width=6),
}
STACKS = {
    "mmdit": {"dual_blocks": 2, "blocks": 1, "last_blocks": 1},
    "flux": {"blocks": 2, "single_blocks": 3},
    "pixart": {"blocks": 2},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_divided_in_the_stacks(name):
    """Of the shapes alone: an axis of heads is as long as there are heads, one of hidden channels a multiple of 24."""
    shapes = jax.eval_shape(NETWORKS[name].init, jax.random.key(0), jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), {})["params"]
    for stack, length in STACKS[name].items():
        kernels = 0
        for path, leaf in jax.tree.leaves_with_path(shapes[stack]):
            names = (stack, *(str(key.key) for key in path))
            axes = parameter_axes(names, leaf.ndim)
            assert len(axes) == leaf.ndim and axes[0] == "layer" and leaf.shape[0] == length, names
            divided = [leaf.shape[i] for i, axis in enumerate(axes) if axis in ("heads", "hidden")]
            if names[-1] == "kernel" and "modulation" not in names[-2]:
                kernels += 1
                assert len(divided) == 1, names
                assert divided[0] == 2 if "qkv" in names[-2] else divided[0] % 24 == 0, names
        assert kernels >= 3
    outside = [path for path, _ in jax.tree.leaves_with_path(shapes) if str(path[0].key) not in STACKS[name]]
    assert outside
    for path in outside:
        names = tuple(str(key.key) for key in path)
        assert set(parameter_axes(names, 2)) == {None}, names


@pytest.mark.parametrize("name", ["mmdit", "flux"])
def test_the_second_matrix_is_divided_by_rows(name):
    stack = next(iter(STACKS[name]))
    for first, second in (("mlp_0", "mlp_1"), ("text_mlp_0", "text_mlp_1")):
        assert parameter_axes((stack, first, "kernel"), 3) == ("layer", None, "hidden")
        assert parameter_axes((stack, second, "kernel"), 3) == ("layer", "hidden", None)
