"""RePaint: its schedule, and that resampling brings the inside closer to the conditional law than replacement does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids, paths
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.editing.keep import Replace
from jaxdiff.sampling.editing.repaint import RePaint, places, rewound
from jaxdiff.sampling.editing.task import Task
from jaxdiff.sampling.sample import image_keys
from jaxdiff.sampling.unipc import UniPC


def test_the_schedule():
    # Five steps, stretches of two levels, each fallen through twice: from one above the end, and from the end.
    assert places(5, 2, 2).tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5, 3, 4, 5]
    assert places(4, 1, 1).tolist() == places(4, 9, 5).tolist() == [0, 1, 2, 3, 4]
    levels = grids.UniformT()(paths.Linear(), 5)
    laid = RePaint(2, 2).lay(grids.pad(levels, 9), 1.0)
    np.testing.assert_array_equal(laid.sigma, levels.sigma[places(5, 2, 2)])
    for bad in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="--method"):
            rewound(levels, *bad)


def test_rises_cost_nothing():
    levels = grids.UniformT()(paths.Linear(), 10)
    method = RePaint(jump=3, times=4)
    # 10 falls, and from 0, 3 and 6 levels before the end 3 more falls of 3 levels each.
    assert method.nfe(DDIM(1.0), method.lay(levels, 1.0)) == 10 + 3 * 3 * 3
    assert RePaint(3, 1).nfe(DDIM(), RePaint(3, 1).lay(levels, 0.5)) == 5


def test_solvers_that_do_not_begin_anew_are_refused():
    with pytest.raises(ValueError, match=r"UniPC cannot go up again.*--solver"):
        RePaint().nfe(UniPC(), grids.UniformT()(paths.Linear(), 5))


def test_resampling_approaches_the_conditional_law(correlated):
    # Two pixels of correlation 0.9; the left one is known.
    rho, y, count = 0.9, 1.5, 8192
    denoise = correlated(jnp.array([[1.0, rho], [rho, 1.0]]))
    keys = image_keys(0, jnp.arange(count))
    image = jnp.zeros((count, 1, 2, 1)).at[:, :, 0].set(y)
    mask = jnp.zeros_like(image).at[:, :, 1].set(1.0)
    levels = grids.UniformT()(paths.Cosine(), 40)

    @functools.partial(jax.jit, static_argnums=0)
    def run(method, at):
        return method(Task(keys, image, at, denoise, denoise, DDIM(1.0), mask))

    def law(method, laid):
        made = run(method, laid)
        assert jnp.all(made[:, 0, 0, 0] == y)
        inside = made[:, 0, 1, 0]
        return float(inside.mean()), float(inside.var())

    # How often it goes back up is a matter of the levels alone, so one program serves all.
    laws = {n: law(RePaint(), grids.pad(RePaint(8, n).lay(levels, 1.0), 400)) for n in (1, 3, 10)}
    np.testing.assert_allclose(law(Replace(), levels), laws[1], atol=1e-6)
    errors = [abs(mean - rho * y) for mean, _ in laws.values()]
    assert errors[0] > 0.15 and errors[0] > 2 * errors[1] > 4 * errors[2]
    variances = [abs(var - (1 - rho**2)) for _, var in laws.values()]
    assert variances[0] > 2 * variances[2]
