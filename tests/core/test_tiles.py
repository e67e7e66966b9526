"""Large pictures in tiles, one at a time, and the distribution that an encoder gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.codec import Codec, Posterior, sliced, tile_weights, tiled

FACTOR = 2


def blur(x):
    """The mean of 3x3 neighbours, with zeros outside."""
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9


LOCAL = Codec(lambda x: blur(x)[:, ::FACTOR, ::FACTOR], lambda z: blur(z).repeat(FACTOR, axis=1).repeat(FACTOR, axis=2))
X = jax.random.normal(jax.random.key(0), (2, 22, 38, 3))


def test_tiles_of_a_local_codec_change_nothing():
    codec = tiled(LOCAL, 8, 4, FACTOR)
    z = LOCAL.encode(X)
    np.testing.assert_allclose(codec.encode(X), z, atol=1e-6)
    np.testing.assert_allclose(codec.decode(z), LOCAL.decode(z), atol=1e-6)
    small = X[:, :16, :16]
    np.testing.assert_array_equal(codec.encode(small), LOCAL.encode(small))


def test_seams_show_where_tiles_do_not_overlap():
    codec = tiled(LOCAL, 8, 0, FACTOR)
    assert np.abs(codec.encode(X) - LOCAL.encode(X)).max() > 0.01
    for overlap in (-1, 8):
        with pytest.raises(ValueError, match="0 to 7"):
            tiled(LOCAL, 8, overlap, FACTOR)


@pytest.mark.parametrize(("size", "tile", "overlap"), [(19, 8, 4), (8, 8, 2), (100, 16, 5), (17, 16, 15)])
def test_weights_add_up_to_one(size, tile, overlap):
    from jaxdiff.core.codec import tile_starts

    total = np.zeros(3 * size)
    for start, weight in zip(tile_starts(size, tile, overlap), tile_weights(size, tile, overlap, 3), strict=True):
        total[3 * start : 3 * start + len(weight)] += weight
        assert (weight >= 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_one_picture_at_a_time():
    seen = []

    def encode(x):
        seen.append(x.shape[0])
        return LOCAL.encode(x)

    np.testing.assert_array_equal(sliced(Codec(encode, LOCAL.decode)).encode(X), LOCAL.encode(X))
    assert seen == [1, 1]


def test_the_divergence_from_the_standard_normal():
    mean, logvar = jnp.full((1, 1, 1, 2), 0.7), jnp.full((1, 1, 1, 2), -1.3)
    posterior = Posterior(mean, logvar)
    noise = jax.random.normal(jax.random.key(0), (200_000, 1, 1, 2))
    z = posterior.at(noise)
    log_ratio = jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(0.5 * logvar)) - jax.scipy.stats.norm.logpdf(z)
    np.testing.assert_allclose(posterior.kl()[0], log_ratio.sum((1, 2, 3)).mean(), atol=0.01)
    assert float(Posterior(mean * 0, logvar * 0).kl()[0]) == 0
