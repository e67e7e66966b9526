"""The levels that a sampler visits."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import grids
from jaxdiff.core.betas import CosineBetas
from jaxdiff.core.grid_tables import AlignYourSteps, Table
from jaxdiff.core.grids import (
    Karras,
    Leading,
    Linspace,
    Polynomial,
    RestartInterval,
    Restarts,
    Spread,
    Trailing,
    UniformLogSNR,
    UniformT,
)
from jaxdiff.core.paths import Cosine, DiscreteVP, GeometricVE, Linear, LinearVP, Sigma, Sigmoid

PATHS = [
    LinearVP(),
    DiscreteVP(),
    DiscreteVP(1000, CosineBetas()),
    Cosine(2.0),
    Sigmoid(),
    GeometricVE(0.001, 100.0),
    Sigma(),
    Linear(3.0),
]
GRIDS = [
    UniformT(),
    UniformT(0.9),
    Polynomial(),
    Polynomial(3.0, 0.5),
    UniformLogSNR(0.95, 0.01),
    Karras(0.01, 40.0),
    Karras(0.01, 40.0, 1.0),
    Trailing(),
    Leading(),
    Linspace(),
    Spread(),
    Table((30.0, 3.0, 1.0, 0.02)),
    AlignYourSteps("sdxl"),
]
paths = pytest.mark.parametrize("path", PATHS, ids=repr)
each = pytest.mark.parametrize("grid", GRIDS, ids=repr)


def ratios(levels):
    return np.asarray(levels.sigma, float) / np.maximum(np.asarray(levels.alpha, float), 1e-300)


def times_of(grid, num_steps, t_max=1000.0):
    """The times of a grid's levels, all but the last: on EDM's path they are the sigmas themselves."""
    return np.asarray(grid(Sigma(t_max), num_steps).sigma)[:-1]


def test_all_grids_are_tested():
    assert {type(grid) for grid in GRIDS} == set(typing.get_args(grids.PlainGrid))
    assert {*typing.get_args(grids.PlainGrid), Restarts} == set(typing.get_args(grids.AnyGrid))


@paths
@each
def test_levels_fall_to_the_exactly_clean_one(path, grid):
    for num_steps in 1, 12:
        levels = grid(path, num_steps)
        assert levels.alpha.shape == levels.sigma.shape == (num_steps + 1,)
        assert levels.alpha.dtype == levels.sigma.dtype == jnp.float32
        assert levels.alpha[-1] == 1 and levels.sigma[-1] == 0
        assert np.all(np.diff(ratios(levels)) < 0)
        # Every level lies on the path.
        again = path(path.invert((levels.sigma / levels.alpha)[:-1]))
        np.testing.assert_allclose(again.alpha, levels.alpha[:-1], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(again.sigma, levels.sigma[:-1], rtol=1e-3, atol=1e-6)


@paths
def test_grids_begin_exactly_at_pure_noise(path):
    noise = path(jnp.float32(path.t_max))
    for grid in UniformT(), Polynomial(), Trailing(), Trailing(41):
        levels = grid(path, 12)
        assert (levels.alpha[0], levels.sigma[0]) == (noise.alpha, noise.sigma)


def test_start_moves_the_first_level():
    for grid in UniformT(0.75), Polynomial(2.0, 0.75), UniformLogSNR(0.75):
        assert times_of(grid, 12)[0] == 750


def test_uniform_and_polynomial_times():
    np.testing.assert_array_equal(times_of(UniformT(), 4), [1000, 750, 500, 250])
    np.testing.assert_array_equal(times_of(Polynomial(), 4), [1000, 562.5, 250, 62.5])
    np.testing.assert_array_equal(times_of(Polynomial(1.0), 4), times_of(UniformT(), 4))
    np.testing.assert_array_equal(times_of(UniformT(), 50), np.arange(1000, 0, -20))


@paths
def test_uniform_logsnr(path):
    logsnr = -2 * np.log(ratios(UniformLogSNR(0.9, 0.02)(path, 12))[:-1])
    np.testing.assert_allclose(logsnr, np.linspace(logsnr[0], logsnr[-1], 12), atol=2e-4)
    ends = path(jnp.asarray([0.9 * path.t_max, 0.02 * path.t_max]))
    np.testing.assert_allclose(logsnr[[0, -1]], -2 * np.log(ratios(ends)), atol=2e-4)


def test_uniform_logsnr_of_one_step_is_its_start():
    np.testing.assert_array_equal(times_of(UniformLogSNR(0.9), 1), [900])


@pytest.mark.parametrize("path", [Linear(), Cosine(), Sigmoid()], ids=repr)
def test_uniform_logsnr_refuses_infinite_ends(path):
    with pytest.raises(ValueError, match=r"infinite logSNR.*--grid\.start, --grid\.end"):
        UniformLogSNR()(path, 10)
    with pytest.raises(ValueError, match="infinite logSNR"):
        UniformLogSNR(0.9, 0.0)(path, 10)


@pytest.mark.parametrize("num_steps", [1, 2, 18])
@pytest.mark.parametrize("rho", [7.0, 1.0, 3.0])
def test_karras_is_the_papers_formula(num_steps, rho):
    """arXiv:2206.00364, Eq. 5, at full float32 accuracy on EDM's path."""
    low, high = 0.002, 80.0
    i = np.arange(num_steps, dtype=float)
    between = i / (num_steps - 1) if num_steps > 1 else i
    expected = (high ** (1 / rho) + between * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    levels = Karras(low, high, rho)(Sigma(), num_steps)
    np.testing.assert_allclose(levels.sigma[:-1], expected, rtol=1e-7)
    np.testing.assert_array_equal(levels.alpha, np.ones(num_steps + 1))


@paths
def test_karras_has_the_same_ratios_on_every_path(path):
    grid = Karras(0.02, 30.0)
    np.testing.assert_allclose(ratios(grid(path, 12))[:-1], ratios(grid(Sigma(), 12))[:-1], rtol=1e-4)


def test_karras_refuses_what_the_path_does_not_reach():
    with pytest.raises(ValueError, match=r"sigma_max = 80 .* at most 50 \(--grid\.sigma-max\)$"):
        Karras()(GeometricVE(0.001, 50.0), 10)
    with pytest.raises(ValueError, match=r"sigma_min = 0.002 .* at least 0.01 \(--grid\.sigma-min\)$"):
        Karras()(GeometricVE(0.01, 80.0), 10)
    # The path's own ends are reached, exactly.
    levels = Karras(0.01, 50.0)(GeometricVE(), 10)
    assert levels.sigma[0] == 50 and levels.sigma[-2] == np.float32(0.01)


def test_visited_steps_of_the_papers():
    """arXiv:2305.08891, Table 2 (T = 1000, 10 steps); steps are counted from 1."""
    np.testing.assert_array_equal(times_of(Trailing(), 10), [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100])
    np.testing.assert_array_equal(times_of(Leading(), 10), [901, 801, 701, 601, 501, 401, 301, 201, 101, 1])


@pytest.mark.parametrize("num_steps", [1, 7, 64, 999])
def test_spaced_steps_are_distinct_steps_of_the_chain(num_steps):
    trailing, leading = (times_of(grid, num_steps) for grid in (Trailing(), Leading()))
    for steps in trailing, leading:
        assert len(set(steps)) == num_steps and set(steps) <= set(range(1, 1001))
    assert trailing[0] == 1000 and leading[-1] == 1
    # As published (arXiv:2305.08891, Table 2): round(N, N - N/n, ...) and 1 + c i with c = floor(N / n).
    np.testing.assert_array_equal(trailing, np.round(np.arange(num_steps, 0, -1) * (1000 / num_steps)))
    assert set(np.diff(leading)) <= {-float(1000 // num_steps)}


def test_a_chain_on_another_clock():
    np.testing.assert_array_equal(times_of(Trailing(100), 4, t_max=1.0), [1, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(times_of(Leading(100), 4, t_max=400.0), [304, 204, 104, 4])


def test_align_your_steps_as_published():
    """arXiv:2404.14507, Table 3."""
    ten = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    np.testing.assert_allclose(AlignYourSteps()(Sigma(), 10).sigma[:-1], ten, rtol=1e-6)
    # Twice the steps keep the ten, and put one in the middle of two logarithms; the table's last stands for clean.
    twenty = np.asarray(AlignYourSteps()(Sigma(), 20).sigma)
    np.testing.assert_allclose(twenty[:-1:2], ten, rtol=1e-6)
    np.testing.assert_allclose(twenty[[1, 19]], [(14.615 * 6.475) ** 0.5, (0.152 * 0.029) ** 0.5], rtol=1e-6)
    np.testing.assert_allclose(AlignYourSteps("svd")(Sigma(700.0), 1).sigma, [700, 0])
    with pytest.raises(ValueError, match=r"sd15's first sigma/alpha = 14.615 is not on this path: at most 12 "):
        AlignYourSteps()(Sigma(12.0), 10)


def test_a_table_is_visited_as_it_is():
    table = Table((20.0, 3.0, 0.5))
    np.testing.assert_allclose(table(Sigma(), 3).sigma, [20, 3, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(table(Sigma(), 5).sigma, [20, 60**0.5, 3, 1.5**0.5, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(table(Sigma(), 2).sigma, [20, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(ratios(table(LinearVP(), 3)), [20, 3, 0.5, 0], rtol=1e-4)
    with pytest.raises(ValueError, match=r"20 is not on this path: at most 10 \(--grid\.ratios\)"):
        table(Sigma(10.0), 3)


def test_restarts_go_back_and_forth():
    grid = Restarts(Karras(0.02, 10.0, 1.0), (RestartInterval(0.9, 5.0, 2, 3), RestartInterval(4.2, 8.0, 1, 1)))
    levels = np.asarray(grid(Sigma(), 12).sigma)
    main = np.asarray(grid.grid(Sigma(), 12).sigma)
    assert len(levels) - 1 == 12 + 2 * 4 + 2
    # The grid's own levels nearest to the low ends are where the loops begin and end.
    first, second = (main[np.argmin(np.abs(main - low))] for low in (4.2, 0.9))
    at, until = (int(np.argmax(main == v)) for v in (first, second))
    once = (5 ** (1 / 7) + np.arange(4) / 3 * (second ** (1 / 7) - 5 ** (1 / 7))) ** 7
    want = [main[: at + 1], [8.0, first], main[at + 1 : until + 1], once, once, main[until + 1 :]]
    np.testing.assert_allclose(levels, np.concatenate(want), rtol=1e-5)
    # Rises are one for each time, and all levels lie on the path.
    assert np.sum(np.diff(levels) > 0) == 3
    for path in LinearVP(), Linear(3.0):
        np.testing.assert_allclose(ratios(grid(path, 12)), levels, rtol=5e-4, atol=1e-6)
    none = Restarts(Karras(), (RestartInterval(times=0),))(Sigma(), 18)
    np.testing.assert_array_equal(none.sigma, Karras()(Sigma(), 18).sigma)
    with pytest.raises(ValueError, match=r"high = 0.3 must be above 10, .*\(--grid\.intervals\)"):
        Restarts(Karras(0.02, 10.0))(Sigma(), 1)


def test_padding_is_clean():
    levels = grids.pad(Karras()(Sigma(), 5), 8)
    np.testing.assert_array_equal(levels.sigma[:6], Karras()(Sigma(), 5).sigma)
    np.testing.assert_array_equal(levels.sigma[6:], np.zeros(3))
    np.testing.assert_array_equal(levels.alpha, np.ones(9))
    with pytest.raises(ValueError, match="num_steps = 4 is not allowed: at least 5"):
        grids.pad(levels._replace(alpha=levels.alpha[:6], sigma=levels.sigma[:6]), 4)


def test_jit_is_no_jit():
    for grid in Karras(0.01, 40.0), UniformLogSNR(0.95, 0.01), Trailing(), Restarts(Karras(0.01, 40.0)):
        for path in LinearVP(), Linear():
            traced = jax.jit(functools.partial(grid, path, 5))()
            for a, b in zip(traced, grid(path, 5), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    "make, flag",
    [
        *((functools.partial(grid, Sigma(), n), "--steps") for grid in GRIDS for n in (0, -3)),
        (functools.partial(Trailing(), DiscreteVP(), 1001), "--steps"),
        (functools.partial(Leading(50), DiscreteVP(), 51), "--steps"),
        (lambda: UniformT(0.0), "--grid.start"),
        (lambda: UniformT(1.5), "--grid.start"),
        (lambda: Polynomial(start=-1.0), "--grid.start"),
        (lambda: Polynomial(power=0.0), "--grid.power"),
        (lambda: UniformLogSNR(start=2.0), "--grid.start"),
        (lambda: UniformLogSNR(start=0.5, end=0.6), "--grid.end"),
        (lambda: Karras(sigma_min=0.0), "--grid.sigma-min"),
        (lambda: Karras(sigma_max=0.001), "--grid.sigma-max"),
        (lambda: Karras(rho=0.0), "--grid.rho"),
        (lambda: Table(()), "--grid.ratios"),
        (lambda: Table((1.0, 1.0)), "--grid.ratios"),
        (lambda: Table((1.0, 0.0)), "--grid.ratios"),
        (functools.partial(Table((1.0,)), Sigma(), 2), "--steps"),
        (lambda: RestartInterval(0.3, 0.1), "--grid.intervals"),
        (lambda: RestartInterval(steps=0), "--grid.intervals"),
    ],
)
def test_errors_are_one_line_and_name_the_flag(make, flag):
    with pytest.raises(ValueError) as error:
        make()
    assert flag in str(error.value) and "\n" not in str(error.value)


def test_visited_steps_of_published_schedulers():
    """Leading with Stable Diffusion's offset, DPM-Solver's one step more, and grids that end at step 1."""
    np.testing.assert_array_equal(times_of(Leading(offset=1), 4), [752, 502, 252, 2])
    np.testing.assert_array_equal(times_of(Leading(offset=1, extra=1), 4), [802, 602, 402, 202])
    np.testing.assert_array_equal(times_of(Linspace(), 4), [1000, 667, 334, 1])
    np.testing.assert_array_equal(times_of(Linspace(extra=1), 4), [1000, 750, 501, 251])
    np.testing.assert_allclose(times_of(Linspace(rounded=False), 3), [1000, 500.5, 1])
    np.testing.assert_allclose(times_of(Spread(1.0, 0.1), 4, t_max=1.0), [1, 0.7, 0.4, 0.1], rtol=1e-6)
    path = DiscreteVP()
    for grid in Leading(last=1), Trailing(last=1), Linspace(last=1):
        levels = grid(path, 5)
        assert levels.sigma.shape == (6,) and levels.sigma[-1] == path(jnp.float32(1)).sigma
    for wrong in functools.partial(Leading(offset=1), path, 1000), functools.partial(Linspace(extra=2), path, 5):
        with pytest.raises(ValueError, match="--grid"):
            wrong()
