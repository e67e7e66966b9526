"""An autoencoder and its discriminator: two gradients in one scalar."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.codec import Posterior
from jaxdiff.objectives.autoencoder import Adversary, Autoencoding, Players, hinge
from jaxdiff.objectives.base import Batch

X = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
BATCH = Batch(X, {}, jnp.arange(3))
PARAMS = {"network": jnp.float32(0.8), "discriminator": jnp.float32(0.3)}
LOSS = Autoencoding(power=2, kl=0.0, adversary=Adversary(weight=0.5, start=10))


def rebuilt(params):
    return params["network"] * X


def judge(params, x):
    return params["discriminator"] * x.mean(-1)


def players():
    """Latents are the picture, with next to no noise; one number rebuilds it, and one number judges."""
    return Players(
        encode=lambda params, x: Posterior(x, jnp.full_like(x, -60.0)),
        decode=lambda params, z: params["network"] * z,
        judge=judge,
    )


def gradient(step=None):
    batch = BATCH._replace(step=None if step is None else jnp.int32(step))
    whole = jax.grad(lambda params: LOSS(players(), params, jax.random.key(1), batch)[0])(PARAMS)
    return {name: float(value) for name, value in whole.items()}


def test_each_player_has_the_gradient_of_its_own_loss():
    def of_autoencoder(network):
        params = {**PARAMS, "network": network}
        return jnp.mean((X - rebuilt(params)) ** 2) - 0.5 * jnp.mean(judge(PARAMS, rebuilt(params)))

    def of_judge(number):
        params = {**PARAMS, "discriminator": number}
        return hinge(judge(params, X), judge(params, rebuilt(PARAMS)))

    found = gradient()
    np.testing.assert_allclose(found["network"], jax.grad(of_autoencoder)(PARAMS["network"]), rtol=1e-4)
    np.testing.assert_allclose(found["discriminator"], jax.grad(of_judge)(PARAMS["discriminator"]), rtol=1e-4)


def test_the_game_begins_at_its_step():
    alone = jax.grad(lambda w: jnp.mean((X - w * X) ** 2))(PARAMS["network"])
    before, after = gradient(9), gradient(10)
    np.testing.assert_allclose(before["network"], alone, rtol=1e-4)
    assert before["discriminator"] == 0 and after == gradient()


def test_the_value_is_the_autoencoders_own():
    value, metrics = LOSS(players(), PARAMS, jax.random.key(1), BATCH)
    np.testing.assert_allclose(value, jnp.mean((X - rebuilt(PARAMS)) ** 2), rtol=1e-4)
    np.testing.assert_allclose(metrics["reconstruction"], value, rtol=1e-6)
    mean_square = jnp.mean((jnp.clip(rebuilt(PARAMS), -1, 1) - X) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(LOSS.psnr(players(), PARAMS, BATCH), 10 * jnp.log10(4 / mean_square), rtol=1e-5)


def test_hinge_values():
    assert float(hinge(jnp.zeros(4), jnp.zeros(4))) == 1
    assert float(hinge(jnp.full(4, 2.0), jnp.full(4, -1.5))) == 0
    assert float(hinge(jnp.full(4, -1.0), jnp.full(4, 1.0))) == 2


def test_fields_out_of_range_are_refused():
    for make in (lambda: Autoencoding(power=3), lambda: Autoencoding(kl=-1.0), lambda: Adversary(weight=-0.1)):
        with pytest.raises(ValueError, match="is not allowed"):
            make()
