from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.schedule import LearnedSchedule

T = jnp.linspace(0, 1, 65)
LEARNED = LearnedSchedule(hidden=32)
LINEAR = LearnedSchedule(interior=False)


@pytest.fixture(scope="module")
def initial(quick):
    return lambda schedule, seed=0: quick(schedule.init)(jax.random.key(seed), T)["params"]


@pytest.fixture(scope="module")
def parameters(initial, randomised):
    """Parameters as after some training: far from the initial ones."""
    return lambda schedule, seed=0: randomised(initial(schedule, seed), 1.5, seed)


@pytest.fixture(scope="module")
def gamma(quick):
    return lambda schedule, params, t: quick(partial(schedule.apply, method="gamma"))({"params": params}, t)


@pytest.mark.parametrize("schedule", [LEARNED, LINEAR], ids=["learned", "linear"])
def test_ends_are_those_asked_for_and_noise_only_grows(schedule, gamma, initial, parameters):
    ends = gamma(schedule, initial(schedule), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [-13.3, 5.0], rtol=1e-6)
    for seed in range(3):
        moved = parameters(schedule, seed)
        values = gamma(schedule, moved, T)
        assert (jnp.diff(values) > 0).all()
        assert values[0] == pytest.approx(float(moved["gamma_min"]), abs=1e-4)
        assert values[-1] == pytest.approx(float(moved["gamma_min"] + moved["gamma_span"]), abs=1e-4)


def test_levels_are_variance_preserving_and_of_that_snr(quick, gamma, parameters):
    params = parameters(LEARNED)
    level = quick(LEARNED.apply)({"params": params}, T)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, atol=1e-6)
    log_ratio = 2 * (jnp.log(level.sigma) - jnp.log(level.alpha))
    np.testing.assert_allclose(log_ratio, gamma(LEARNED, params, T), atol=1e-4)


def test_linear_in_time_without_the_interior_and_not_with_it(gamma, parameters):
    straight = gamma(LINEAR, parameters(LINEAR), T)
    np.testing.assert_allclose(straight, jnp.linspace(straight[0], straight[-1], 65), atol=1e-4)
    bent = gamma(LEARNED, parameters(LEARNED), T)
    assert jnp.abs(bent - jnp.linspace(bent[0], bent[-1], 65)).max() > 1e-2


def test_a_path_whose_inverse_finds_the_time(quick, parameters):
    path = LEARNED.at(parameters(LEARNED))
    assert path.t_max == 1.0
    level = quick(path)(T)
    found = quick(path.invert)(level.sigma / level.alpha)
    np.testing.assert_allclose(found, T, atol=1e-5)
    np.testing.assert_allclose(path.invert(jnp.array([0.0, jnp.inf])), [0, 1], atol=1e-6)


def test_a_scalar_time_and_a_batch_agree_and_gradients_reach_every_parameter(quick, parameters):
    params = parameters(LEARNED)
    apply = quick(LEARNED.apply)
    one, all_of_them = apply({"params": params}, T[20]), apply({"params": params}, T)
    assert one.alpha.shape == ()
    np.testing.assert_allclose(one.alpha, all_of_them.alpha[20], rtol=1e-5)
    slopes = quick(jax.grad(lambda p: jnp.sum(LEARNED.apply({"params": p}, T, method="gamma") ** 2)))(params)
    moving = {jax.tree_util.keystr(k): bool(jnp.any(v != 0)) for k, v in jax.tree.leaves_with_path(slopes)}
    # A constant added to the interior cancels between its ends.
    assert [name for name, moves in moving.items() if not moves] in ([], ["['l3']['bias']"])


def test_ends_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"--schedule.gamma-max"):
        LearnedSchedule(gamma_min=1.0, gamma_max=0.0).init(jax.random.key(0), T)


def test_no_weights_can_make_the_noise_shrink(gamma, initial):
    params = initial(LEARNED)
    params["l1"] = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    for layer, seed in (("l2", 1), ("l3", 2)):  # steep steps up and down, all over the interval
        leaves = params[layer]
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        steep = [20 * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves.values(), strict=True)]
        params[layer] = dict(zip(leaves, steep, strict=True))
    assert (jnp.diff(gamma(LEARNED, params, T)) > 0).all()
