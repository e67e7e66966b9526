"""Codecs: the identity, and latents brought to zero mean and unit variance."""

import jax.numpy as jnp
import numpy as np

from jaxdiff.core.codec import IDENTITY, Codec, normalised


def test_the_identity_is_one():
    x = jnp.arange(12.0).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(IDENTITY.decode(IDENTITY.encode(x)), x)


def test_normalised_latents_have_no_mean_and_unit_variance_and_decode_to_the_same():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, 8, 8, 2)), jnp.float32)
    codec = Codec(lambda x: x * jnp.array([3.0, 0.1]) + jnp.array([-2.0, 5.0]), lambda z: z)
    z = codec.encode(x)
    mean, std = z.mean((0, 1, 2)), z.std((0, 1, 2))
    unit = normalised(codec, mean.tolist(), std.tolist())
    np.testing.assert_allclose(unit.encode(x).mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(unit.encode(x).std((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(unit.decode(unit.encode(x)), z, atol=1e-4)


def test_latents_may_have_another_shape():
    codec = normalised(Codec(lambda x: x[:, ::2, ::2, :1], lambda z: z.repeat(2, 1).repeat(2, 2)), [1.0], [2.0])
    z = codec.encode(jnp.ones((3, 4, 6, 3)))
    assert z.shape == (3, 2, 3, 1) and not z.any()
    np.testing.assert_array_equal(codec.decode(z), jnp.ones((3, 4, 6, 1)))
