"""DDPM's ancestral step: its mean is the posterior's, its variance between two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.core.betas import CosineBetas, LinearBetas
from jaxdiff.core.types import Level
from jaxdiff.objectives.hybrid import log_variances
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.renoise import Renoise
from jaxdiff.sampling.sample import image_keys, normal_like, sample

run = jax.jit(sample, static_argnums=(3, 4))
KEYS = image_keys(0, jnp.arange(16))
X = jnp.linspace(-2, 2, 16).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def denoise(closed_form):
    data = closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))
    return jax.jit(closed_form.denoiser(data))


def learned(denoise, v):
    return lambda x, cur, nxt: denoise(x, cur, nxt)._replace(v=jnp.full_like(x, v))


def noise_of(solver, cur, nxt, denoise):
    """The step's noise, and the part of it that is not the mean."""
    x0, eps, _ = denoise(X, cur, nxt)
    q = nxt.sigma * cur.alpha / (nxt.alpha * cur.sigma)
    return normal_like(KEYS, X), solver.step(KEYS, X, None, cur, nxt, denoise)[0] - nxt.alpha * x0 - nxt.sigma * q * eps


@pytest.mark.parametrize("path", [paths.Linear(), paths.LinearVP(), paths.Sigma(10.0)])
def test_small_variance_is_ddim_with_eta_1(path, denoise):
    levels = grids.UniformT()(path, 12)
    assert jnp.allclose(run(KEYS, X, levels, denoise, Ancestral()), run(KEYS, X, levels, denoise, DDIM(1.0)), atol=1e-5)


@pytest.mark.parametrize("betas", [LinearBetas(), CosineBetas()])
def test_variances_are_those_that_training_learns_between(betas, denoise):
    chain = paths.DiscreteVP(100, betas)
    for t in (2, 3, 50, 100):
        cur, nxt = chain(jnp.float32(t)), chain(jnp.float32(t - 1))
        low, high = (float(v[0]) for v in log_variances(chain, jnp.array([float(t)])))
        for u in (0.0, 0.3, 1.0):
            want = np.exp(0.5 * (u * high + (1 - u) * low))
            fixed, network = Ancestral(u), Ancestral(None)
            for solver, belief in ((fixed, denoise), (network, learned(denoise, 2 * u - 1))):
                z, noise = noise_of(solver, cur, nxt, belief)
                np.testing.assert_allclose(noise, want * z, atol=2e-3 * want + 1e-6)


def test_no_noise_in_the_last_step_and_none_is_infinite_in_the_first(denoise):
    clean, noise = Level(jnp.ones(()), jnp.zeros(())), Level(jnp.zeros(()), jnp.ones(()))
    cur = Level(jnp.float32(0.1), jnp.float32(0.9))
    for solver, belief in ((Ancestral(), denoise), (Ancestral(1.0), denoise), (Ancestral(None), learned(denoise, 0.4))):
        assert jnp.allclose(solver.step(KEYS, X, None, cur, clean, belief)[0], denoise(X, cur, clean).x0)
    z, first = noise_of(Ancestral(1.0), noise, cur, denoise)
    assert jnp.allclose(first, z, atol=1e-5)  # beta is all of pure noise's variance


def test_rising_levels_get_no_noise(denoise):
    cur, nxt = (Level(jnp.float32(a), jnp.float32(s)) for a, s in ((0.8, 0.6), (0.6, 0.8)))
    a, b = (s.step(KEYS, X, None, cur, nxt, denoise)[0] for s in (Ancestral(1.0), DDIM()))
    assert jnp.allclose(a, b)


def test_bad_variances_are_refused(denoise):
    with pytest.raises(ValueError, match=r"u = 1.5 .*--solver\.u"):
        Ancestral(1.5)
    with pytest.raises(ValueError, match=r"learned no variance.*--solver\.u"):
        Ancestral(None).step(
            KEYS, X, None, Level(jnp.zeros(()), jnp.ones(())), Level(jnp.float32(0.6), jnp.float32(0.8)), denoise
        )


def test_renoise_draws_eps_anew(denoise):
    # With a network that knows x0, every level is an exact draw given it.
    levels = grids.Karras(0.02, 10.0)(paths.Linear(), 6)

    def oracle(x, cur, nxt):
        return denoise(x, cur, nxt)._replace(x0=jnp.full_like(x, 0.3))

    part = Level(levels.alpha[:4], levels.sigma[:4])
    z = normal_like(jax.vmap(lambda key: jax.random.fold_in(key, 3))(KEYS), X)
    got = run(KEYS, X, part, oracle, Renoise())
    assert jnp.allclose(got, 0.3 * levels.alpha[3] + levels.sigma[3] * z, atol=1e-6)
    assert jnp.allclose(run(KEYS, X, levels, oracle, Renoise()), 0.3)
