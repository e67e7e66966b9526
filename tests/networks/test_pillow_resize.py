import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.networks.pillow_resize import PILLOW_BICUBIC


@pytest.mark.parametrize("shape", [(64, 64), (60, 97), (25, 25)])
def test_it_is_pillows(shape):
    """Noise and hard edges, larger and smaller. Pillow's weights have 22 bits, so a few halves fall otherwise."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, *shape, 3), np.uint8)
    pictures[1] = np.where(pictures[1, :, :1] > 127, 255, 0)
    expected = [np.asarray(Image.fromarray(p).resize((48, 48), Image.Resampling.BICUBIC)) for p in pictures]
    ours = jax.jit(PILLOW_BICUBIC.apply, static_argnums=1)(jnp.asarray(pictures, jnp.float32), 48)
    gap = np.abs(np.asarray(ours) - np.stack(expected).astype(np.float32))
    assert gap.max() <= 1 and (gap > 0).mean() < 1e-3


def test_the_same_size_changes_nothing():
    picture = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)), jnp.float32)
    np.testing.assert_array_equal(PILLOW_BICUBIC.apply(picture, 16), picture)
