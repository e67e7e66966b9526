"""AutoencoderKL and the discriminator of patches: shapes, what an output sees, how much there is to learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.networks.discriminator import PatchDiscriminator

NETWORK = AutoencoderKL(latents=3, widths=(8, 16), blocks_per_level=1, groups=4)


def randomised(network, x):
    """Parameters without the zeros that some layers begin with."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [0.1 * jax.random.normal(k, s.shape) for k, s in zip(keys, leaves, strict=True)])


def test_latents_are_smaller_and_pictures_come_back_in_their_size():
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    params = randomised(NETWORK, x)
    found = NETWORK.apply({"params": params}, x, method="encode")
    assert NETWORK.factor == 2 and found.mean.shape == found.logvar.shape == (2, 4, 6, 3)
    assert NETWORK.apply({"params": params}, x).shape == x.shape
    with pytest.raises(ValueError, match="multiple of 2"):
        NETWORK.apply({"params": params}, x[:, :7])


def test_a_picture_is_rebuilt_alike_in_any_batch():
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    params = randomised(NETWORK, x)
    whole = NETWORK.apply({"params": params}, x)
    np.testing.assert_allclose(NETWORK.apply({"params": params}, x[1:2]), whole[1:2], atol=1e-5)


def test_stable_diffusions_autoencoder_has_its_parameters():
    """83,653,863, the number of its published weights."""
    shapes = jax.eval_shape(AutoencoderKL().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_653_863


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_nothing_else(layers, side):
    """Without the norms, whose statistics are the whole picture's: the kernels alone say what is seen."""
    judge = PatchDiscriminator(channels=32, layers=layers)
    x = jnp.zeros((1, 96, 96, 3))
    shapes = jax.eval_shape(judge.init, jax.random.key(0), x)["params"]
    kernels = {name: leaf["kernel"].shape[0] for name, leaf in shapes.items() if name.startswith("conv")}
    assert jax.eval_shape(lambda p: judge.apply({"params": p}, x), shapes).shape == (1, 96 >> layers, 96 >> layers)
    seen = 1
    for name, stride in [("conv_out", 1), (f"conv_{layers}", 1), *((f"conv_{i}", 2) for i in reversed(range(layers)))]:
        seen = (seen - 1) * stride + kernels[name]
    assert seen == side


def test_a_picture_is_judged_alike_in_any_batch():
    judge = PatchDiscriminator(channels=32, layers=1)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    params = randomised(judge, x)
    whole = judge.apply({"params": params}, x)
    assert whole.shape == (3, 4, 4) and np.ptp(whole) > 0
    np.testing.assert_allclose(judge.apply({"params": params}, x[2:]), whole[2:], atol=1e-5)
