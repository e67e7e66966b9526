"""Classifier-free guidance, held against normals, whose guided denoiser is again a normal's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.core import grids, paths, predictions
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.guidance import cfg, guided, pair
from jaxdiff.sampling.sample import denoiser, image_keys, sample

MEANS = (0.5, -0.4)
PREDICTION = predictions.V()
AT = Level(jnp.float32(0.6), jnp.float32(0.8))
LABEL = jnp.array([0, 1, 1, 0], jnp.int32)


@pytest.fixture(scope="module")
def apply(closed_form):
    """Data N(MEANS[label], 0.5**2), or N(0.1, 0.5**2) without a label; the labels of every call are recorded."""
    calls = []

    def apply(params, x, cur, nxt, cond, key=None):
        calls.append(cond["label"])
        means = jnp.array([*MEANS, 0.1])[cond["label"]]  # -1 is the last
        data = closed_form.normal(0.0, 0.5)._replace(means=means[:, None, None, None, None])
        return closed_form.network(PREDICTION, data)(params, x, cur, nxt, cond)

    apply.calls = calls
    return apply


def x_at(b=4):
    return jnp.linspace(-1, 1, 4 * b).reshape(b, 2, 2, 1)


def test_pair_is_both_conditions_in_one_call(apply):
    apply.calls.clear()
    main, ref = pair(apply, {}, PREDICTION, {"label": LABEL})(x_at(), AT, AT)
    (seen,) = apply.calls
    assert sorted(seen.tolist()) == [-1, -1, -1, -1, 0, 0, 1, 1]
    for got, label in ((main, LABEL), (ref, jnp.full(4, -1))):
        want = denoiser(apply, {}, PREDICTION, {"label": label})(x_at(), AT, AT)
        assert jnp.allclose(got.x0, want.x0, atol=1e-6) and jnp.allclose(got.eps, want.eps, atol=1e-6)
    assert not jnp.allclose(main.x0, ref.x0, atol=0.01)


def test_images_stay_on_their_devices(apply):
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    x, label = (
        jax.ShapeDtypeStruct(s, d, sharding=sharding) for s, d in (((16, 2, 2, 1), "float32"), ((16,), "int32"))
    )

    @jax.jit
    def run(x, label):
        return guided(pair(apply, {}, PREDICTION, {"label": label}), cfg(2.0))(x, AT, AT).x0

    program = run.lower(x, label).compile().as_text()
    assert "num_partitions=8" in program
    for transfer in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert transfer not in program


def test_scale_1_is_main_and_0_is_ref(apply):
    both = pair(apply, {}, PREDICTION, {"label": LABEL})
    main, ref = both(x_at(), AT, AT)
    for scale, want in ((1.0, main), (0.0, ref)):
        got = guided(both, cfg(scale))(x_at(), AT, AT)
        assert jnp.allclose(got.x0, want.x0, atol=1e-6) and jnp.allclose(got.eps, want.eps, atol=1e-6)


def test_scale_may_differ_between_images(apply):
    both = pair(apply, {}, PREDICTION, {"label": LABEL})
    scales = jnp.array([0.0, 1.0, 2.5, -1.0])
    together = guided(both, cfg(scales))(x_at(), AT, AT)
    for i, scale in enumerate(scales):
        alone = guided(both, cfg(scale))(x_at(), AT, AT)
        assert jnp.allclose(together.x0[i], alone.x0[i], atol=1e-6)


def test_guided_estimates_stay_in_the_plane(apply):
    x0, eps, _ = guided(pair(apply, {}, PREDICTION, {"label": LABEL}), cfg(3.0))(x_at(), AT, AT)
    assert jnp.allclose(AT.alpha * x0 + AT.sigma * eps, x_at(), atol=1e-5)


def test_guided_normals_end_beyond_the_class(apply, closed_form):
    # Normals of one width: the guided denoiser is that of N(ref + scale (main - ref), 0.5**2).
    levels = grids.UniformT()(paths.Linear(), 64)
    z, keys = x_at(), image_keys(0, jnp.arange(4))
    denoise = guided(pair(apply, {}, PREDICTION, {"label": LABEL}), cfg(2.5))
    x = jax.jit(lambda z: sample(keys, z, levels, denoise, DDIM()))(z)
    mean = 0.1 + 2.5 * (jnp.array(MEANS)[LABEL] - 0.1)
    assert jnp.allclose(x, mean[:, None, None, None] + 0.5 * z, atol=0.03)
