"""Objectives against closed forms: for data N(0, s^2 I) the best network is known, and so is its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from jaxtyping import Array

from jaxdiff.core import gaussian, paths, predictions, times, weights
from jaxdiff.core.betas import CosineBetas, LinearBetas
from jaxdiff.core.types import Level
from jaxdiff.networks.schedule import LearnedSchedule
from jaxdiff.objectives.base import Batch
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid, discretized_nll, log_variances, normal_kl, posterior_mean
from jaxdiff.objectives.vdm import VDM

S = 0.7
"""Standard deviation of the data."""
PREDICTIONS = [
    predictions.Eps(),
    predictions.X0(),
    predictions.V(),
    predictions.Flow(),
    predictions.Score(),
    predictions.EDM(S),
]


def best_x0(level: Level, x: Array) -> Array:
    alpha, sigma = (gaussian.expand(a, x) for a in level)
    return alpha * S**2 / (alpha**2 * S**2 + sigma**2) * x


def best(prediction):
    """The ApplyFn of the posterior mean, in the prediction's own terms."""

    def apply(params, x, cur, nxt, cond, key=None):
        believed = gaussian.from_x0(cur, x, best_x0(cur, x))
        return gaussian.target(prediction, cur, believed.x0, believed.eps)

    return apply


def batch_of(n: int, cond=None) -> Batch:
    x0 = S * jax.random.normal(jax.random.key(0), (n, 4, 4, 1))
    return Batch(x0, cond or {}, jnp.arange(n, dtype=jnp.int32))


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_loss_of_the_best_network_is_the_posterior_variance(prediction):
    # x0 is off by the posterior's variance s^2 sigma^2 / (alpha^2 s^2 + sigma^2); out by (det/sigma)^2 of it.
    path = paths.Cosine()
    objective = Denoising(path, prediction, times.Uniform())
    batch, key = batch_of(2048), jax.random.key(1)
    for t in (0.2, 0.5, 0.9):
        level = path(jnp.float32(t))
        posterior = S**2 * level.sigma**2 / (level.alpha**2 * S**2 + level.sigma**2)
        expected = posterior * (gaussian.det(prediction, level) / level.sigma) ** 2
        losses = objective.losses(best(prediction), {}, key, batch, jnp.full(2048, t))
        assert float(jnp.mean(losses)) == pytest.approx(float(expected), rel=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_weight_of_another_prediction_gives_the_same_loss(prediction):
    # MinSNR speaks of the x0 error, whatever the network predicts.
    path, batch = paths.Cosine(), batch_of(8)
    t = jnp.linspace(0.1, 0.9, 8)

    def loss(p):
        objective = Denoising(path, p, times.Uniform(), weights.MinSNR(), weight_of=predictions.X0())
        return objective.losses(best(p), {}, jax.random.key(1), batch, t)

    np.testing.assert_allclose(loss(prediction), loss(predictions.X0()), rtol=2e-3)


def test_noise_belongs_to_the_row_not_to_the_batch():
    objective = Denoising(paths.Linear(), predictions.Flow(), times.Uniform())
    whole, key, t = batch_of(6), jax.random.key(3), jnp.linspace(0.1, 0.9, 6)
    half = jax.tree.map(lambda a: a[3:], whole)
    apply = best(predictions.Flow())
    together = objective.losses(apply, {}, key, whole, t)
    alone = objective.losses(apply, {}, key, half, t[3:])
    np.testing.assert_array_equal(together[3:], alone)
    assert len(set(np.asarray(together).tolist())) == 6


def test_conditions_are_dropped_in_training_only_and_at_their_rate():
    seen = []

    def apply(params, x, cur, nxt, cond, key=None):
        seen.append(np.asarray(cond["label"]))
        return x

    objective = Denoising(paths.Linear(), predictions.Flow(), times.Uniform(), drop=0.25)
    batch = batch_of(2000, {"label": jnp.full(2000, 3, jnp.int32)})
    objective(apply, {}, jax.random.key(0), batch)
    objective.losses(apply, {}, jax.random.key(0), batch, jnp.full(2000, 0.5))
    assert np.mean(seen[0] == -1) == pytest.approx(0.25, abs=0.03) and set(seen[0]) == {-1, 3}
    assert set(seen[1]) == {3}
    with pytest.raises(ValueError, match=r"drop = 1.0 .*--drop"):
        Denoising(paths.Linear(), predictions.Flow(), times.Uniform(), drop=1.0)


def test_dropout_key_in_training_only():
    keys = []

    def apply(params, x, cur, nxt, cond, key=None):
        keys.append(key)
        return x

    objective = Denoising(paths.Linear(), predictions.Flow(), times.Uniform())
    objective(apply, {}, jax.random.key(0), batch_of(2))
    objective.losses(apply, {}, jax.random.key(0), batch_of(2), jnp.full(2, 0.5))
    assert keys[0] is not None and keys[1] is None


# iDDPM's hybrid


def test_discretized_likelihood_sums_to_one():
    x0 = (jnp.arange(256) / 127.5 - 1).reshape(256, 1, 1, 1)
    for mean, log_var in ((0.3, -8.0), (-1.2, -3.0), (0.0, 1.0), (0.999, -12.0)):
        nll = discretized_nll(x0, jnp.full_like(x0, mean), jnp.full_like(x0, log_var))
        assert float(logsumexp(-nll)) == pytest.approx(0.0, abs=2e-3)


def test_normal_kl_is_zero_at_equality_and_grows():
    a, b = jnp.full((1, 1, 1, 1), 0.2), jnp.full((1, 1, 1, 1), -1.0)
    assert float(normal_kl(a, b, a, b)[0, 0, 0, 0]) == 0
    assert float(normal_kl(a, b, a + 1, b)[0, 0, 0, 0]) == pytest.approx(0.5 * np.exp(1.0))


def test_posterior_mean_is_ddpms():
    # arXiv:2006.11239, Eq. 7, written with betas.
    chain = paths.DiscreteVP(20, LinearBetas(1e-4, 0.002))
    betas = chain.betas(20)
    alpha_bar = np.cumprod(1 - betas)
    k = 7
    x0, eps = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 1))
    cur, nxt = chain(jnp.float32(k)), chain(jnp.float32(k - 1))
    x = gaussian.diffuse(cur, x0, eps)
    now, before, beta = alpha_bar[k - 1], alpha_bar[k - 2], betas[k - 1]
    expected = np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
    np.testing.assert_allclose(posterior_mean(cur, nxt, x0, eps), expected, rtol=1e-4, atol=1e-5)


def test_variances_are_ddpms_to_float32():
    # arXiv:2006.11239, Eq. 7, as products in float64; early steps of a long chain are where float32 would lose digits.
    chain = paths.DiscreteVP(4000, CosineBetas())
    betas = chain.betas(4000)
    alpha_bar = np.cumprod(1 - betas)
    steps = np.array([2, 3, 100, 3999, 4000])
    expected = betas[steps - 1] * (1 - alpha_bar[steps - 2]) / (1 - alpha_bar[steps - 1])
    log_tilde, log_beta = log_variances(chain, jnp.asarray(steps, jnp.float32))
    np.testing.assert_allclose(log_tilde, np.log(expected), rtol=1e-6)
    np.testing.assert_allclose(log_beta, np.log(betas[steps - 1]), rtol=1e-6)
    first = log_variances(chain, jnp.ones(1))
    assert float(first[0][0]) == float(log_tilde[0]) and float(first[1][0]) == np.float32(np.log(betas[0]))


def hybrid(scale: float) -> Hybrid:
    return Hybrid(paths.DiscreteVP(50), predictions.Eps(), times.UniformSteps(50), vlb_scale=scale)


def test_bound_sends_no_gradient_to_the_mean_and_trains_the_variance():
    batch, t = batch_of(4), jnp.array([1.0, 2.0, 20.0, 50.0])

    def apply(params, x, cur, nxt, cond, key=None):
        return jnp.concatenate([params["mean"] + 0 * x, params["variance"] + 0 * x], axis=-1)

    params = {"mean": jnp.float32(0.1), "variance": jnp.float32(0.3)}

    def grad(scale):
        return jax.grad(lambda p: jnp.mean(hybrid(scale).losses(apply, p, jax.random.key(0), batch, t)))(params)

    assert float(grad(0.0)["variance"]) == 0
    assert float(grad(1.0)["variance"]) != 0
    np.testing.assert_allclose(grad(1.0)["mean"], grad(0.0)["mean"], rtol=1e-6)
    assert all(np.isfinite(v) for v in grad(1.0).values())


# VDM


def vdm(interior: bool) -> tuple[VDM, dict]:
    schedule = LearnedSchedule(-6.0, 3.0, interior=interior, hidden=8)
    objective = VDM(schedule, predictions.Eps(), times.Stratified(), interior=interior)
    return objective, schedule.init_params(jax.random.key(4))


@pytest.mark.parametrize("interior", [False, True])
def test_diffusion_loss_is_the_mutual_information(interior):
    # With the best network (1/2) int gamma' mse_eps dt = (1/2) [log(1 + s^2 SNR)] between the ends, whatever the
    # schedule does between them.
    objective, schedule = vdm(interior)
    params = {"network": {}, "schedule": schedule}
    _, metrics = objective(best(predictions.Eps()), params, jax.random.key(1), batch_of(4096))
    expected = 0.5 * (np.log1p(S**2 * np.exp(6.0)) - np.log1p(S**2 * np.exp(-3.0))) / np.log(2)
    assert float(metrics["diffusion_bits"]) == pytest.approx(expected, rel=0.02)


def test_ends_are_the_prior_kl_and_the_reconstruction():
    objective, schedule = vdm(False)
    x0 = jnp.round(0.3 * batch_of(64).x0 * 127.5 + 127.5) / 127.5 - 1  # 8-bit values, far from the two ends
    batch = Batch(x0, {}, jnp.arange(64, dtype=jnp.int32))
    params = {"network": {}, "schedule": schedule}
    _, metrics = objective(best(predictions.Eps()), params, jax.random.key(1), batch)
    alpha_sq = 1 / (1 + np.exp(3.0))
    prior = 0.5 * (1 - alpha_sq + alpha_sq * np.mean(np.square(x0)) - np.log(1 - alpha_sq) - 1)
    # log sigma/alpha = -3 at t = 0: many values fit, so -log p(x | z_0) is near the entropy of a discretised normal.
    width = 2 / 255
    entropy = 0.5 * np.log(2 * np.pi * np.e) - 3.0 - np.log(width)
    assert float(metrics["ends_bits"]) * np.log(2) == pytest.approx(prior + entropy, rel=0.05)


def test_interior_is_trained_for_variance_and_ends_for_the_bound():
    objective, schedule = vdm(True)
    plain = VDM(objective.path, objective.prediction, objective.times, interior=False)
    batch, key = batch_of(16), jax.random.key(2)

    def apply(params, x, cur, nxt, cond, key=None):
        return params["network"]["w"] * x

    params = {"network": {"w": jnp.float32(0.3)}, "schedule": schedule}
    got = jax.grad(lambda p: objective(apply, p, key, batch)[0])(params)
    bound = jax.grad(lambda p: plain(apply, p, key, batch)[0])(params)

    def mean_square(p):
        # The diffusion loss of each example, squared: what the interior should lower.
        key_time, key_rest = jax.random.split(key)
        t = objective.times(key_time, 16, objective.path_of(params))
        return jnp.mean(jnp.square(plain._errors(apply, p, key_rest, batch, t, train=True)[1])) * jnp.log(2.0)

    variance = jax.grad(mean_square)(params)
    for name in ("gamma_min", "gamma_span"):
        np.testing.assert_allclose(got["schedule"][name], bound["schedule"][name], rtol=1e-3)
    np.testing.assert_allclose(got["network"]["w"], bound["network"]["w"], rtol=1e-4)
    inner = [k for k in schedule if k not in ("gamma_min", "gamma_span")]
    assert inner
    for name in inner:
        for a, b in zip(
            jax.tree.leaves(got["schedule"][name]), jax.tree.leaves(variance["schedule"][name]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-5)
