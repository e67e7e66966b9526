"""Laws of the training times."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdiff.core import times
from jaxdiff.core.paths import Cosine, DiscreteVP, Linear, LinearVP, Sigma
from jaxdiff.core.times import Importance, LogNormal, Quantile, Stratified, Uniform, UniformSteps
from jaxdiff.core.weights import P2, VLB, MinSNR, One

LAWS = [Uniform(), Uniform(1e-3), UniformSteps(7), LogNormal(), Importance(VLB(LinearVP()), bins=100)]


def draw(law, path, n=20_000, seed=0):
    t = np.asarray(law(jax.random.key(seed), n, path), float)
    assert t.shape == (n,)
    return t


def p_value(sample, law):
    """That of a Kolmogorov-Smirnov test of the sample against the law's CDF."""
    return scipy.stats.kstest(sample, law.cdf).pvalue


def test_all_laws_are_tested():
    assert {type(law) for law in LAWS} | {Stratified} == set(typing.get_args(times.AnyTimeLaw))
    assert all(isinstance(law, Quantile) for law in LAWS)


@pytest.mark.parametrize("path", [Linear(), Sigma(), DiscreteVP(50)], ids=repr)
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_uniform(path, start):
    law = scipy.stats.uniform(start * path.t_max, (1 - start) * path.t_max)
    assert p_value(draw(Uniform(start), path), law) > 0.01


@pytest.mark.parametrize("mean, std", [(-1.2, 1.2), (0.5, 0.3)])
def test_log_normal_is_edms_law_on_sigma(mean, std):
    assert p_value(draw(LogNormal(mean, std), Sigma()), scipy.stats.lognorm(std, scale=np.exp(mean))) > 0.01


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.5, 0.7)])
def test_log_normal_is_the_logit_normal_density_on_linear(mean, std):
    """arXiv:2403.03206: pi(t) = exp(-(logit(t) - m)**2 / (2 s**2)) / (s sqrt(2 pi) t (1 - t))."""
    edges = np.linspace(0, 1, 21)
    t = np.linspace(0, 1, 200_001)[1:-1]
    logit = np.log(t) - np.log1p(-t)
    density = np.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi) * t * (1 - t))
    mass = np.histogram(t, edges, weights=density)[0] / t.size
    sample = draw(LogNormal(mean, std), Linear(), n=100_000)
    np.testing.assert_allclose(np.histogram(sample, edges)[0] / sample.size, mass, atol=4e-3)
    assert p_value(np.log(sample) - np.log1p(-sample), scipy.stats.norm(mean, std)) > 0.01


def test_log_normal_speaks_of_levels_and_not_of_the_clock():
    for path in Cosine(), Cosine(4.0), Linear(3.0):
        alpha, sigma = path(LogNormal(0.2, 0.9)(jax.random.key(1), 20_000, path))
        assert p_value(np.log(np.asarray(sigma / alpha, float)), scipy.stats.norm(0.2, 0.9)) > 0.01


def test_uniform_steps_hits_each_step_and_nothing_else():
    path = DiscreteVP(50)
    t = draw(UniformSteps(50), path)
    steps, counts = np.unique(t, return_counts=True)
    np.testing.assert_array_equal(steps, np.arange(1, 51))
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    # Every step has exactly its share of the unit interval, up to the last float below 1.
    u = (jnp.arange(500) + 0.5) / 500
    np.testing.assert_array_equal(UniformSteps(50).quantile(u, path), np.repeat(np.arange(1.0, 51.0), 10))
    last = jnp.array([np.nextafter(np.float32(1), np.float32(0))])
    for n in 1, 7, 1000, 4096:
        assert UniformSteps(n).quantile(last, DiscreteVP(n + 50)) == np.float32(n + 50)
    # On a continuous path the steps are equal parts of its time.
    np.testing.assert_allclose(np.unique(draw(UniformSteps(4), Linear(), 200)), [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("n", [1, 2, 64, 100, 1024])
def test_stratified_has_one_draw_in_each_stratum(n):
    for seed in range(5):
        u = draw(Stratified(), Linear(), n, seed)
        np.testing.assert_array_equal(np.sort(np.floor(u * n)), np.arange(n))


def test_stratified_over_the_steps_of_a_chain():
    t = draw(Stratified(UniformSteps(32)), DiscreteVP(32), 32)
    np.testing.assert_array_equal(np.sort(t), np.arange(1, 33))


def test_stratified_is_unbiased_with_less_variance():
    keys = jax.random.split(jax.random.key(2), 1000)
    stratified, plain = (
        np.asarray(jax.vmap(lambda key, law=law: law(key, 16, Linear()))(keys), float)
        for law in (Stratified(), Uniform())
    )
    # Every place in the batch is uniform by itself.
    for place in 0, 7, 15:
        assert p_value(stratified[:, place], scipy.stats.uniform()) > 0.01
    means = [np.mean(t**2, axis=1) for t in (stratified, plain)]
    np.testing.assert_allclose(np.mean(means[0]), 1 / 3, atol=4 * np.std(means[0]) / np.sqrt(1000))
    assert np.std(means[0]) < 0.3 * np.std(means[1])


@pytest.mark.parametrize(
    "weight, path, start",
    [
        (VLB(LinearVP()), LinearVP(), 1e-5),
        (VLB(Linear(2.0)), Linear(2.0), 0.01),
        (P2(), Cosine(), 1e-4),
        (MinSNR(), Cosine(), 1e-5),
        (One(), Sigma(), 1e-5),
    ],
    ids=lambda v: type(v).__name__,
)
def test_importance_has_the_weighted_expectations(weight, path, start):
    """E_importance[f] = E_uniform[w f] / E_uniform[w] for any f."""
    law = Importance(weight, start)
    t = np.asarray(law.quantile((jnp.arange(2**14) + 0.5) / 2**14, path), float) / path.t_max
    assert np.all(np.isfinite(t)) and t.min() >= start * (1 - 1e-5) and t.max() <= 1
    # The weighted integrals in log(t), where a weight as 1/t is smooth.
    edges = np.geomspace(start, 1, 20_001)
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    w = np.asarray(weight(path(jnp.asarray(path.t_max * middles, jnp.float32))), float) * widths
    # The bound's weight has an infinite integral towards alpha = 0: compared up to 0.9.
    most = 0.9 if isinstance(path, Linear) else 1.0
    t, inside = t[t <= most], middles < most
    for f in (lambda t: t, lambda t: np.exp(-3 * t), np.log):
        expected = np.sum((w * f(middles))[inside]) / np.sum(w[inside])
        np.testing.assert_allclose(np.mean(f(t)), expected, rtol=5e-3 if most < 1 else 2e-3)


def test_importance_draws_follow_their_quantiles():
    law, path = Importance(P2()), Cosine()
    u = np.linspace(0.001, 0.999, 999)
    grid = np.asarray(law.quantile(jnp.asarray(u, jnp.float32), path), float)
    assert scipy.stats.kstest(np.interp(draw(law, path), grid, u), "uniform").pvalue > 0.01


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("wrap", [lambda law: law, Stratified], ids=["plain", "stratified"])
@pytest.mark.parametrize("extreme", [0.0, 0.25, 1 - 2.0**-23])
def test_no_law_ever_draws_an_end(law, wrap, extreme, monkeypatch):
    """At the smallest and the largest number of JAX's generator, and where a stratified 1 + 2**-24 rounds to 1.

    A chain's steps do include N.
    """
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, extreme))
    path = Cosine()
    t = wrap(law)(jax.random.key(0), 4, path)
    assert np.all(t > 0) and np.all(t <= 1)
    if not isinstance(law, UniformSteps):
        assert np.all(t < 1)
        assert np.all(np.isfinite(path(t))) and np.all(np.isfinite(VLB(path)(path(t))))


@pytest.mark.parametrize(
    "make, flag",
    [
        (lambda: Uniform(1.0), "--times.start"),
        (lambda: UniformSteps(0), "--times.num-steps"),
        (lambda: LogNormal(std=0.0), "--times.std"),
        (lambda: Importance(One(), start=0.0), "--times.start"),
        (lambda: Importance(One(), bins=0), "--times.bins"),
    ],
)
def test_errors_are_one_line_and_name_the_flag(make, flag):
    with pytest.raises(ValueError) as error:
        make()
    assert flag in str(error.value) and "\n" not in str(error.value)
