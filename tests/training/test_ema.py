"""Laws of the averages: their weights in time, known in closed form, and what can be made of snapshots."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training import ema
from jaxdiff.training.ema import Decay, Power

STEPS = 1000
LENGTHS = (0.05, 0.07, 0.1)


@functools.cache
def weights_in_time():
    """[time, length, step]: the weight of each step's parameters in the average at each time.

    Found by averaging one-hot parameters: component s is 1 at step s and 0 otherwise. At the start all are 7,
    which no average may remember.
    """
    averages = tuple(Power(s) for s in LENGTHS)

    def body(state, step):
        state = ema.update(averages, state, jax.nn.one_hot(step - 1, STEPS), step)
        return state, jnp.stack(state)

    start = ema.init(averages, jnp.full(STEPS, 7.0))
    return np.asarray(jax.lax.scan(body, start, jnp.arange(1, STEPS + 1))[1], np.float64)


def run(average, history, start):
    """The average after each row of `history`."""

    def body(state, x):
        state = ema.update((average,), state, x[1], x[0])
        return state, state[0]

    steps = jnp.arange(1, len(history) + 1)
    return jax.lax.scan(body, ema.init((average,), jnp.asarray(start)), (steps, history))[1]


def test_decay_weighs_the_past_geometrically():
    history = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    start = np.ones(5, np.float32)
    weights = 0.1 * 0.9 ** np.arange(29, -1, -1)
    want = weights @ history.astype(np.float64) + 0.9**30
    np.testing.assert_allclose(run(Decay(0.9, warmup=False), history, start)[-1], want, atol=1e-6)


def test_warmup_forgets_the_start_by_its_law_until_the_decay_is_reached():
    # The start's weight is prod (1 + s)/(10 + s) = (t + 1)! 10! / (t + 10)! while that beta is below the decay ...
    left = run(Decay(0.99), jnp.zeros((2000, 1)), jnp.ones(1))[:, 0]
    for t in (1, 5, 50):
        law = math.exp(math.lgamma(t + 2) + math.lgamma(11) - math.lgamma(t + 11))
        assert float(left[t - 1]) == pytest.approx(law, rel=1e-5)
    # ... which is until (1 + t)/(10 + t) = 0.99, t = 890.
    np.testing.assert_allclose(left[1000:1010] / left[999:1009], 0.99, rtol=1e-5)
    assert float(left[100] / left[99]) == pytest.approx(102 / 111, rel=1e-5)


@pytest.mark.parametrize("index", range(len(LENGTHS)))
def test_power_weights_have_the_length_that_the_name_says_at_any_time(index):
    weights, sigma_rel = weights_in_time(), LENGTHS[index]
    gamma = ema.gamma_of(sigma_rel)
    for t in (200, 1000):
        w = weights[t - 1, index]
        tau = np.arange(1, STEPS + 1) - 0.5
        mean = w @ tau
        assert w.sum() == pytest.approx(1, abs=1e-5)  # so the 7 of the start is forgotten
        assert mean / t == pytest.approx((gamma + 1) / (gamma + 2), abs=2 / t)
        assert math.sqrt(w @ (tau - mean) ** 2) / t == pytest.approx(sigma_rel, rel=1e-3)


def test_power_average_is_the_sum_of_the_power_profile():
    history = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    gamma = ema.gamma_of(0.1)
    edges = (np.arange(301) / 300) ** (gamma + 1)  # the integral of the profile
    np.testing.assert_allclose(
        run(Power(0.1), history, np.full(4, 9, np.float32))[-1], np.diff(edges) @ history, atol=1e-6
    )


def test_longest_power_average_is_the_mean():
    history = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    got = run(Power(12**-0.5), history, np.full(3, 9, np.float32))
    np.testing.assert_allclose(got[-1], history.mean(0), atol=1e-6)
    np.testing.assert_allclose(got[0], history[0], atol=1e-6)


def test_gamma_and_sigma_rel_are_inverse():
    for sigma_rel in (1e-3, 0.01, 0.05, 0.1, 0.2, 0.28, 12**-0.5):
        assert ema.sigma_rel_of(ema.gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)
    for gamma in (0.0, 0.3, 1.0, 7.0, 500.0):
        assert ema.gamma_of(ema.sigma_rel_of(gamma)) == pytest.approx(gamma, rel=1e-8, abs=1e-8)
    # The two that the paper tracks.
    assert round(ema.gamma_of(0.05), 2) == 16.97
    assert round(ema.gamma_of(0.1), 2) == 6.94


@pytest.mark.parametrize("average", [Decay(0.999), Decay(0.5, warmup=False), Power(0.05), Power(0.2)])
def test_constant_parameters_stay_as_they_are_in_float32(average):
    params = {"w": jnp.asarray([0.1, -3.3, 1e-20], jnp.bfloat16), "b": jnp.float32(1 / 3)}
    state = ema.init((average,), params)
    for step in (1, 2, 100, 10**6):
        state = ema.update((average,), state, params, jnp.int32(step))
    for key in params:
        assert state[0][key].dtype == jnp.float32
        np.testing.assert_array_equal(state[0][key], params[key].astype(jnp.float32))


def test_average_of_bfloat16_parameters_has_the_digits_of_float32():
    history = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.bfloat16)
    weights = 0.02 * 0.98 ** np.arange(49, -1, -1)
    got = run(Decay(0.98, warmup=False), history, jnp.zeros(4, jnp.bfloat16))[-1]
    np.testing.assert_allclose(got, weights @ np.asarray(history, np.float64), atol=1e-6)


def test_update_is_compiled_once_for_all_steps_and_may_be_donated():
    averages = (Decay(), Power(0.05), Power(0.1))
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, step):
        traces.append(step)
        params, averaged = state
        return params + 1, ema.update(averages, averaged, params, step)

    params = jnp.ones(8)
    state = (params, ema.init(averages, params))
    want = ema.init(averages, params)
    for step in (1, 2, 3):
        want = ema.update(averages, want, jnp.full(8, float(step)), jnp.int32(step))
    want = jax.tree.map(np.asarray, want)
    for step in (1, 2, 3):
        state = update(state, jnp.int32(step))  # a buffer in two places could not be donated
    assert len(traces) == 1
    for a, b in zip(state[1], want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_small_gain_keeps_its_digits():
    # 1 - beta = (gamma + 1)/t - ...: at t = 10**7 a float32 beta would leave it two digits.
    gamma, t = ema.gamma_of(0.05), 10**7
    want = -math.expm1((gamma + 1) * math.log1p(-1 / t))
    assert float(ema.gain(Power(0.05), jnp.int32(t))) == pytest.approx(want, rel=1e-6)


def snapshots(every, lengths=(0.05, 0.1)):
    return [(t, s) for t in range(every, STEPS + 1, every) for s in lengths]


def weighted(weights, known):
    rows = weights_in_time()
    return sum(w * rows[t - 1, LENGTHS.index(s)] for w, (t, s) in zip(weights, known, strict=True))


@pytest.mark.parametrize("target", [(STEPS, 0.05), (STEPS, 0.1), (600, 0.1)])
def test_posthoc_finds_a_snapshot_exactly(target):
    known = snapshots(50)
    weights = ema.posthoc_weights(known, target)
    np.testing.assert_allclose(weights, [float(s == target) for s in known], atol=1e-9)
    assert ema.posthoc_error(known, target, weights) < 1e-7


@pytest.mark.parametrize(("every", "bound"), [(20, 1e-3), (50, 3e-3), (100, 1e-2)])
def test_posthoc_average_of_a_length_between_is_nearly_the_tracked_one(every, bound):
    known, target = snapshots(every), (STEPS, 0.07)
    weights = ema.posthoc_weights(known, target)
    want = weights_in_time()[-1, LENGTHS.index(0.07)]
    error = np.linalg.norm(weighted(weights, known) - want) / np.linalg.norm(want)
    assert error < bound
    assert ema.posthoc_error(known, target, weights) == pytest.approx(error, rel=0.1)
    assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_posthoc_weights_are_the_best_there_are():
    known, target = snapshots(100), (STEPS, 0.07)
    weights = ema.posthoc_weights(known, target)
    best = ema.posthoc_error(known, target, weights)
    rng = np.random.default_rng(0)
    for _ in range(20):
        shift = rng.normal(size=len(weights))
        other = weights + 1e-2 * (shift - shift.mean())  # the sum stays 1
        assert ema.posthoc_error(known, target, other) > best


def test_one_tracked_length_gives_others_with_the_mean_kept():
    known, target = snapshots(50, (0.1,)), (STEPS, 0.07)
    weights = ema.posthoc_weights(known, target)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert ema.posthoc_error(known, target, weights) < 0.07


def test_posthoc_survives_long_runs_and_short_averages():
    known = [(t, s) for t in range(10**6, 10**8 + 1, 10**6) for s in (0.001, 0.2)]
    weights = ema.posthoc_weights(known, (10**8, 0.2))
    assert np.isfinite(weights).all() and weights.sum() == pytest.approx(1)
    assert ema.posthoc_error(known, (10**8, 0.2), weights) < 1e-6


def test_combine_makes_the_average_of_parameters():
    """A random walk far from 0, averaged with length 0.07 and made of snapshots of 0.05 and 0.1."""
    rng = np.random.default_rng(0)
    history = (100 + rng.normal(size=(STEPS, 6)).cumsum(0) * 0.1).astype(np.float32)
    tracked = {s: run(Power(s), history, history[0]) for s in LENGTHS}
    known = snapshots(50)
    weights = ema.posthoc_weights(known, (STEPS, 0.07))
    got = ema.combine(weights, ({"w": tracked[s][t - 1]} for t, s in known))["w"]
    assert got.dtype == jnp.float32
    apart = np.linalg.norm(tracked[0.1][-1] - tracked[0.05][-1])
    assert np.linalg.norm(got - tracked[0.07][-1]) < 0.01 * apart


def test_combine_adds_in_float64():
    tree, other = {"w": jnp.float32([1.1, 2.2])}, {"w": jnp.float32([3.3, 4.4])}
    got = ema.combine(np.array([1e9, 1.0, -1e9]), [tree, other, tree])
    np.testing.assert_allclose(got["w"], other["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Power(0.0), "sigma_rel = 0.0 must be in"),
        (lambda: Power(0.3), "sigma_rel = 0.3 must be in"),
        (lambda: Power(math.nan), "sigma_rel = nan must be in"),
        (lambda: Decay(1.0), "decay = 1.0 must be in"),
        (lambda: Decay(-0.1), "decay = -0.1 must be in"),
        (lambda: ema.sigma_rel_of(-0.5), "gamma = -0.5"),
        (lambda: ema.posthoc_weights([], (10, 0.1)), "no snapshots"),
        (lambda: ema.posthoc_weights([(10, 0.1)], (11, 0.1)), "step = 11 must be in"),
        (lambda: ema.posthoc_weights([(10, 0.1), (10, 0.1)], (10, 0.1)), "must be different"),
        (lambda: ema.posthoc_weights([(0, 0.1), (10, 0.1)], (10, 0.1)), "from 1"),
        (lambda: ema.combine(np.zeros(0), []), "no snapshots"),
    ],
)
def test_errors_name_the_value(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
