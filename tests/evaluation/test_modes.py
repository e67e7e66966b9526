"""Modes covered and their evenness."""

import numpy as np
import pytest

from jaxdiff.evaluation.modes import modes, nearest


def test_even_and_single():
    even = modes(np.arange(5000) % 1000)
    assert even.covered == 1000 and abs(even.reverse_kl) < 1e-12 and even.in_mode == 1
    single = modes(np.full(100, 7))
    assert single.covered == 1 and np.isclose(single.reverse_kl, np.log(1000))


def test_half_of_the_modes_cost_log_two():
    got = modes(np.arange(500) * 2)
    assert got.covered == 500 and np.isclose(got.reverse_kl, np.log(2))
    # Shares of 3/4 and 1/4 in two of four modes.
    assert np.isclose(modes(np.array([1, 1, 1, 3]), 4).reverse_kl, 0.75 * np.log(3) + 0.25 * np.log(1))


def test_an_even_generators_divergence_is_its_sampling_error():
    rng = np.random.default_rng(0)
    values = [modes(rng.integers(0, 100, 20_000), 100).reverse_kl for _ in range(20)]
    assert np.isclose(np.mean(values), 99 / 40_000, rtol=0.15)


def test_samples_of_no_mode():
    got = modes(np.array([0, -1, 1, -1]), 2)
    assert got == (2, 0.0, 0.5)
    none = modes(np.array([-1, -1]), 2)
    assert none.covered == 0 and np.isnan(none.reverse_kl) and none.in_mode == 0


def test_nearest_centre_within_the_radius():
    centres = np.array([[0.0, 0], [2, 0], [0, 2]])
    samples = np.array([[0.1, 0.1], [1.9, 0], [0, 1.5], [1, 1], [5, 5]])
    assert nearest(samples, centres, 0.5).tolist() == [0, 1, 2, -1, -1]


@pytest.mark.parametrize("bad", [-2, 10])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"mode {bad} is not allowed: 0 to 9"):
        modes(np.array([0, bad]), 10)
