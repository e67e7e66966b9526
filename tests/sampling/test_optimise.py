"""Fitted grids: the cheapest way is found, costs nothing where steps are exact, and beats even spacing where not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import gaussian, grids, paths
from jaxdiff.core.types import Level
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.heun import Heun
from jaxdiff.sampling.optimise import cheapest, cost_of, costs
from jaxdiff.sampling.sample import image_keys, normal, sample


def test_the_cheapest_way_is_the_cheapest():
    rng = np.random.default_rng(0)
    cost = np.full((6, 7), np.inf)
    i, j = np.triu_indices(6, 1, 7)
    cost[i, j] = rng.uniform(size=i.size)
    for steps in (1, 2, 4, 6):
        found = cheapest(cost, steps)
        every = [(0, *inner) for inner in itertools.combinations(range(1, 6), steps - 1)]
        best = min(every, key=lambda way: cost_of(cost, np.array(way)))
        assert tuple(found.places) == best
        assert found.cost == pytest.approx(cost_of(cost, found.places))
    assert cost_of(cost, np.array([0, 2])) == pytest.approx(cost[0, 2] + cost[2, 6])
    with pytest.raises(ValueError, match="num_steps = 7"):
        cheapest(cost, 7)


def test_a_constant_belief_costs_nothing():
    # With x0 and eps the same everywhere on a trajectory, a step of any length is exact.
    keys, levels = image_keys(0, jnp.arange(2)), grids.Karras(0.1, 20.0)(paths.Sigma(), 6)
    x = levels.sigma[0] * normal(keys, (2, 2, 1))
    found = costs(keys, x, levels, lambda x, cur, nxt: gaussian.from_x0(cur, x, jnp.full_like(x, 0.3)))
    i, j = np.triu_indices(6, 1, 7)
    assert np.abs(np.asarray(found)[i, j]).max() < 1e-5
    assert np.all(np.isinf(np.asarray(found)[np.tril_indices(6, 0, 7)]))


def test_a_fitted_grid_is_better_than_an_even_one(closed_form):
    data = closed_form.Mixture(jnp.array([-0.6, 0.5]), jnp.float32(0.3), jnp.array([0.4, 0.6]))
    path, denoise = paths.Sigma(), closed_form.denoiser(data)
    keys = image_keys(0, jnp.arange(16))
    z = normal(keys, (4, 4, 1))
    fine = grids.UniformLogSNR(1.0, 0.01 / 80)(path, 60)

    @jax.jit
    def end(levels: Level):
        return sample(keys, 80.0 * z, levels, denoise, DDIM())

    exact = sample(keys, 80.0 * z, grids.UniformLogSNR(1.0, 0.001 / 80)(path, 300), denoise, Heun())
    way = cheapest(np.asarray(jax.jit(lambda: costs(keys, 80.0 * z, fine, denoise))(), np.float64), 8)
    fitted = grids.Table(tuple(float(r) for r in np.asarray(fine.sigma)[way.places]))(path, 8)
    even = grids.UniformLogSNR(1.0, 0.01 / 80)(path, 8)
    errors = [float(jnp.sqrt(jnp.mean(jnp.square(end(g) - exact)))) for g in (fitted, even)]
    assert errors[0] < 0.7 * errors[1]
