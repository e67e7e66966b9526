"""The audit: copies are flagged, fresh draws are not, and neither order nor blocks matter."""

import numpy as np
import pytest
from scipy import stats

from jaxdiff.evaluation import copies
from jaxdiff.evaluation.distances import Neighbours, nearest


def figures(samples, train, k=10):
    near = copies.distances(nearest(samples, [train], k), samples.shape[1])
    return {"distance": near[:, 0], "relative": copies.relative(near)}


def drawn(seed, n, d=6):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_copies_are_all_flagged():
    train, held, made = drawn(1, 300), drawn(2, 100), drawn(1, 300)[:50] + 1e-4
    real, found = figures(held, train), figures(made, train)
    for name in real:
        compared = copies.compare(found[name], real[name], 0.05, 0.99)
        assert compared.flagged.all() and compared.share.value == 1 and compared.closer.value == 1
        assert compared.p_share < 1e-6 and compared.p_closer < 1e-6
        assert copies.failed({name: compared}, 0.99) == [f"{name}: share flagged", f"{name}: held-out above samples"]


def test_a_few_copies_among_many_are_found():
    train, held = drawn(1, 300), drawn(2, 200)
    made = np.concatenate([drawn(3, 180), train[:20]])
    compared = copies.compare(figures(made, train)["distance"], figures(held, train)["distance"], 0.01, 0.99)
    assert compared.flagged[180:].all() and compared.flagged[:180].mean() < 0.05
    assert compared.p_share < 1e-4


def test_fresh_draws_are_flagged_as_often_as_is_said():
    """K ~ BetaBinomial(n, l, m + 1 - l), l = floor(q (m + 1)): its mean, spread and p-values."""
    n, m, q = 60, 99, 0.1
    rng, hits, tails = np.random.default_rng(0), [], []
    for _ in range(200):
        compared = copies.compare(rng.normal(size=n), rng.normal(size=m), q, 0.99, count=2)
        assert compared.expected == pytest.approx(0.1)
        hits.append(int(compared.flagged.sum()))
        tails.append(compared.p_share)
    law = stats.betabinom(n, 10, 90)
    assert np.mean(hits) == pytest.approx(law.mean(), abs=4 * law.std() / 200**0.5)
    assert np.var(hits) == pytest.approx(law.var(), rel=0.45)
    assert np.mean(np.array(tails) < 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_false_alarms_are_as_rare_as_is_said():
    alarms = 0
    for seed in range(100):
        train, held, made = (drawn(3 * seed + i, n, 3) for i, n in enumerate((40, 60, 50)))
        real, found = figures(held, train, 5), figures(made, train, 5)
        compared = {name: copies.compare(found[name], real[name], 0.1, 0.9, count=2) for name in real}
        alarms += bool(copies.failed(compared, 0.9))
    assert alarms <= 10 + 4 * 3


def test_p_values_by_definition_ties_against_the_flag():
    compared = copies.compare(np.array([0.0, 2, 3, 9]), np.array([1.0, 2, 2, 4]), 0.4, 0.9)
    np.testing.assert_allclose(compared.p_values, [0.2, 0.8, 0.8, 1.0])
    assert compared.flagged.tolist() == [True, False, False, False] and compared.expected == 0.4


def test_the_relative_figure():
    near = np.array([[1.0, 3, 4, 8], [2, 2, 2, 2], [0, 0, 0, 0]])
    np.testing.assert_allclose(copies.relative(near), [1 / (0.5 * 4), 2, 2])


def test_oneself_is_no_neighbour():
    near = Neighbours(np.array([[0.0, 0, 1, 2], [0, 3, 4, 5]]), np.array([[7, 1, 2, 3], [9, 4, 9, 5]]))
    left = copies.without(near, np.array([1, 9]), 2)
    assert left.index.tolist() == [[7, 2], [4, 5]] and left.squared.tolist() == [[0, 1], [3, 5]]
    assert copies.without(near, np.array([-1, -1]), 2).index.tolist() == [[7, 1], [9, 4]]


@pytest.mark.parametrize("quantile", [0.0, 1.0, 0.01])
def test_a_quantile_that_nothing_reaches_is_refused(quantile):
    with pytest.raises(ValueError, match="--quantile"):
        copies.compare(np.ones(3), np.ones(20), quantile, 0.95)
