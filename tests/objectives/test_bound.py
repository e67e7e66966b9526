"""The variational bounds against closed forms: for data N(0, s^2) every term of the exact denoiser's is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtr

from jaxdiff.core import grids, paths, predictions, times
from jaxdiff.core.bits import BIN, value_nll
from jaxdiff.core.gaussian import expand, logsnr
from jaxdiff.core.types import Estimate, Level
from jaxdiff.networks.schedule import LearnedSchedule
from jaxdiff.objectives.base import Batch
from jaxdiff.objectives.bound import (
    by_logsnr,
    continuous_bound,
    discrete_bound,
    even_logsnr,
    even_time,
    large,
    learned,
    log_variances_of,
    small,
)
from jaxdiff.objectives.hybrid import log_variances
from jaxdiff.objectives.vdm import VDM

S = 0.25
"""Standard deviation of the data: 8-bit values are fine beside it, and the ends of [-1, 1] far away."""
WIDE = BIN
"""Where a bound may start for a denoiser that takes the data to be smooth."""


def denoise(x, cur, nxt):
    alpha, sigma = (expand(a, x) for a in cur)
    variance = alpha**2 * S**2 + sigma**2
    return Estimate(alpha * S**2 / variance * x, sigma / variance * x)


def data(n):
    x0 = S * jax.random.normal(jax.random.key(0), (n, 4, 4, 1))
    return jax.random.split(jax.random.key(1), n), jnp.round((x0 + 1) * 127.5) / 127.5 - 1


def true_bits(x0):
    upper, lower = ((x0 + side * BIN / 2) / S for side in (1, -1))
    return float(-jnp.mean(jnp.log2(ndtr(upper) - ndtr(lower))))


@pytest.fixture(scope="module")
def continuous():
    return jax.jit(continuous_bound, static_argnums=(2, 3, 4, 5, 6, 7))


@pytest.mark.parametrize(
    "path, points, clean",
    [
        (paths.LinearVP(), even_logsnr, WIDE),
        (paths.Linear(), even_time, WIDE),
        (paths.GeometricVE(0.008, 50.0), even_time, 1e-3),
    ],
    ids=lambda p: getattr(p, "__name__", type(p).__name__),
)
def test_continuous_bound_is_tight_for_the_exact_denoiser(path, points, clean, continuous):
    keys, x0 = data(4096)
    bound = continuous(keys, x0, path, denoise, 192, points, clean, 1e3)
    assert float(jnp.mean(bound.bits)) == pytest.approx(true_bits(x0), abs=0.01)
    # By noise level it is (1/2) log(1 + s^2 SNR) between the edges, whatever the path does there.
    edges = jnp.array([-3.0, -1.0, 1.0, 3.0, 5.0])
    got = np.mean(by_logsnr(bound, jnp.array([-np.inf, *edges, np.inf])), axis=0)
    terms = 0.5 * np.log2(1 + S**2 * np.exp(edges))
    np.testing.assert_allclose(got[1:-1], np.diff(terms), atol=0.03)
    assert np.sum(got) == pytest.approx(float(jnp.mean(jnp.sum(bound.diffusion, axis=1))), rel=1e-4)


@pytest.fixture(scope="module")
def discrete():
    return jax.jit(discrete_bound, static_argnums=(3, 4))


def levels_of(n):
    return grids.from_ratios(paths.Cosine(), jnp.geomspace(100.0, WIDE, n))


def with_v(x, cur, nxt):
    return Estimate(*denoise(x, cur, nxt)[:2], jnp.full_like(x, -1.0))


def test_discrete_bound_has_the_known_terms(discrete):
    keys, x0 = data(1024)
    bound = discrete(keys, x0, levels_of(16), denoise, small)
    # SNR's increase times half the posterior's variance.
    snr = 1 / jnp.geomspace(100.0, WIDE, 16) ** 2
    want = 0.5 * (snr[1:] - snr[:-1]) * S**2 / (1 + S**2 * snr[:-1]) / np.log(2)
    np.testing.assert_allclose(np.mean(bound.diffusion, axis=0), want, rtol=0.05)
    np.testing.assert_allclose(bound.logsnr, np.log(snr[:-1]), atol=1e-3)
    np.testing.assert_allclose(bound.prior, np.mean(x0**2, axis=(1, 2, 3)) * 1e-4 / 2 / np.log(2), rtol=1e-3)
    # A learned variance at its lower end is the small one.
    np.testing.assert_allclose(discrete(keys, x0, levels_of(16), with_v, learned).bits, bound.bits, rtol=1e-5)
    with pytest.raises(ValueError, match="learned no variance"):
        discrete(keys, x0, levels_of(16), denoise, learned)


def test_learned_variance_lies_between_the_two():
    log_tilde, log_beta, x = jnp.float32(-7.0), jnp.float32(-5.0), jnp.zeros((1, 1, 1, 1))
    for v, want in ((-1.0, small), (1.0, large)):
        believed = Estimate(x, x, x + v)
        assert float(learned(log_tilde, log_beta, believed)[0, 0, 0, 0]) == want(log_tilde, log_beta, believed)
    assert float(learned(log_tilde, log_beta, Estimate(x, x, x))[0, 0, 0, 0]) == -6.0


def test_discrete_bound_falls_to_the_truth_as_one_over_the_steps(discrete):
    keys, x0 = data(512)
    truth = true_bits(x0)
    gaps = [float(jnp.mean(discrete(keys, x0, levels_of(n), denoise, large).bits)) - truth for n in (17, 65)]
    assert gaps[0] > gaps[1] > 0.05
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.2)
    assert gaps[1] - (gaps[0] - gaps[1]) / 3 == pytest.approx(0, abs=0.04)


def test_variances_are_the_chains():
    chain = paths.DiscreteVP(1000)
    levels = Level(*(a[::-1] for a in chain(jnp.arange(1001.0))))
    log_tilde, log_beta = log_variances_of(levels)
    want_tilde, want_beta = log_variances(chain, jnp.arange(1000.0, 0.0, -1.0))
    np.testing.assert_allclose(log_beta, want_beta, atol=2e-3)
    np.testing.assert_allclose(log_tilde, want_tilde, atol=2e-3)


def test_vdms_own_loss_is_the_continuous_bound(continuous):
    schedule = LearnedSchedule(-8.0, 5.0, interior=True, hidden=8)
    objective = VDM(schedule, predictions.Eps(), times.Stratified(), interior=False)
    params = {"network": {}, "schedule": schedule.init_params(jax.random.key(4))}
    keys, x0 = data(1024)

    def apply(params, x, cur, nxt, cond, key=None):
        return denoise(x, cur, nxt).eps

    def losses(t):
        batch = Batch(x0, {}, jnp.arange(1024, dtype=jnp.int32))
        return jnp.mean(objective.losses(apply, params, jax.random.key(5), batch, jnp.full(1024, t)))

    loss = float(jnp.mean(jax.jit(lambda t: jax.lax.map(losses, t))((jnp.arange(64) + 0.5) / 64)))
    bound = continuous(keys, x0, objective.path_of(params), denoise, 64, even_time, 1e-3, 1e3)
    assert float(jnp.mean(bound.bits)) == pytest.approx(loss, abs=0.03)
    middle = schedule.at(params["schedule"])(jnp.float32(1 - 0.5 / 64))
    assert float(bound.logsnr[0]) == pytest.approx(float(logsnr(middle)), abs=1e-3)


def test_values_decoder_is_a_distribution_and_certain_at_little_noise():
    x0 = jnp.array([-1.0, 0.2, 1.0]).reshape(1, 1, 3, 1)
    x0 = jnp.round((x0 + 1) * 127.5) / 127.5 - 1
    eps = jnp.array([0.3, -1.2, 2.0]).reshape(1, 1, 3, 1)
    assert float(jnp.max(value_nll(x0, eps, jnp.float32(1e-4)))) < 1e-5
    # All 256 values, as seen from one y, share the mass.
    values = (jnp.arange(256) / 127.5 - 1).reshape(1, 1, 256, 1)
    ratio = jnp.array([0.01])
    nll = value_nll(values, (0.123 - values) / ratio[0], ratio)
    assert float(jnp.sum(jnp.exp(-nll))) == pytest.approx(1.0, rel=1e-4)


def test_what_is_out_of_range_is_named():
    keys, x0 = data(1)
    with pytest.raises(ValueError, match="terms = 0 is not allowed"):
        continuous_bound(keys, x0, paths.Linear(), denoise, terms=0)
    with pytest.raises(ValueError, match=r"clean = 0\.0 must lie"):
        continuous_bound(keys, x0, paths.Linear(), denoise, clean=0.0)
