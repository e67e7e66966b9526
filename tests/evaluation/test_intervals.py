"""Intervals by random halves: exact for means, and they cover what they claim to."""

import numpy as np
import pytest

from jaxdiff.evaluation.bootstrap import frechet_interval, interval, interval_of
from jaxdiff.evaluation.frechet import frechet
from jaxdiff.evaluation.inception_score import inception_score
from jaxdiff.evaluation.manifold import density_coverage
from jaxdiff.evaluation.moments import Gaussian, gaussian, moments

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


REFERENCE = Gaussian(np.zeros(2), np.eye(2))


def draw(n, shift=0.4):
    return RNG.normal(size=(n, 2)) * [1, 1 + shift] + [shift, 0]


@pytest.mark.parametrize("n", [50, 51])
def test_the_error_of_a_mean_is_its_standard_error(n):
    x = RNG.exponential(size=n)
    got = interval(lambda rows: float(x[rows].mean()), n, count=2000)
    assert got.value == x.mean() and np.isclose(got.std, x.std(ddof=1) / np.sqrt(n), rtol=0.05)
    assert abs(got.bias) < 0.02 * got.std
    assert np.isclose((got.high - got.low) / got.std, 2 * 1.96, rtol=0.08)
    narrow = interval(lambda rows: float(x[rows].mean()), n, count=2000, level=0.5)
    assert np.isclose((narrow.high - narrow.low) / got.std, 2 * 0.674, rtol=0.08)


def test_the_bias_of_a_variance_is_found():
    # The mean square deviation is below the variance by variance / n.
    x = RNG.normal(size=200)
    got = interval(lambda rows: float(x[rows].var()), 200, count=2000)
    assert np.isclose(got.value - got.bias, x.var(ddof=1), rtol=0.002)


def test_intervals_are_counted():
    x = RNG.normal(size=40)

    def mean(rows):
        return float(x[rows].mean())

    assert interval(mean, 40) == interval(mean, 40) != interval(mean, 40, seed=1)


@pytest.mark.parametrize("n", [40, 41])
def test_many_subsets_at_once_give_the_same_interval(n):
    x = RNG.normal(size=n)
    one = interval(lambda rows: float(x[rows].var()), n, count=40, seed=2)
    many = interval_of(lambda masks: np.array([x[mask].var() for mask in masks]), n, count=40, seed=2)
    assert one == many


@pytest.mark.parametrize("n", [40, 41])
def test_the_fast_frechet_interval_is_the_general_one(n):
    x = draw(n)
    fast = frechet_interval(x, REFERENCE, count=40, seed=3)
    plain = interval(lambda rows: frechet(gaussian(moments(x[rows])), REFERENCE), n, count=40, seed=3)
    assert np.allclose(fast, plain, rtol=1e-6)


def test_frechet_intervals_cover_the_expectation_at_this_n():
    n, trials = 100, 100
    expected = np.mean([frechet(gaussian(moments(draw(n))), REFERENCE) for _ in range(2000)])
    got = [frechet_interval(draw(n), REFERENCE, count=60, seed=i) for i in range(trials)]
    covered = np.mean([each.low <= expected <= each.high for each in got])
    # Binomial error 0.02. Multinomial replicates, not centred, would lie above by the bias.
    assert 0.87 <= covered <= 0.995
    # What halves lose is the bias at this n: the true distance is 2 * 0.4**2.
    assert np.isclose(np.mean([each.bias for each in got]), expected - 0.32, atol=0.012) and expected - 0.32 > 0.035


def test_intervals_of_metrics_that_copies_would_break():
    # Equal distributions; standard errors by repetition.
    def coverage(x, y):
        return density_coverage(x, y, k=3).coverage

    y = draw(60)
    spread = np.std([coverage(draw(60), y) for _ in range(40)])
    x = draw(60)
    got = interval(lambda rows: coverage(x[rows], y), 60, count=20)
    assert got.low < got.value < got.high and 0.4 * spread < got.std < 2.5 * spread
    logits = RNG.normal(size=(60, 4)) * 3
    score = interval(lambda rows: inception_score(logits[rows], splits=1).mean, 60, count=20)
    assert score.low < score.value < score.high and score.bias < 0


@pytest.mark.parametrize(
    "n, options, says",
    [
        (3, {}, "3 samples"),
        (9, {"count": 21}, "count = 21"),
        (9, {"count": 18}, "count = 18"),
        (9, {"level": 1.0}, "level = 1"),
    ],
)
def test_bad_options_are_refused(n, options, says):
    with pytest.raises(ValueError, match=says):
        interval(lambda rows: 0.0, n, **options)
