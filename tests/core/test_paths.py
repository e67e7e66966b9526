"""Laws of the noise schedules, and each against its paper's formula in float64."""

import decimal
import typing
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import paths
from jaxdiff.core.betas import CosineBetas, LinearBetas
from jaxdiff.core.paths import Cosine, DiscreteVP, GeometricVE, Linear, LinearVP, Sigma, Sigmoid, logsnr_rate
from jaxdiff.core.types import Level, Path


# Each paper's formula in extended precision: t -> (alpha, sigma).
def linear_vp(t, low=0.1, high=20.0):
    log_alpha = -(t**2) * (high - low) / 4 - t * low / 2
    return np.exp(log_alpha), np.sqrt(-np.expm1(2 * log_alpha))


def cosine(t, shift=1.0):
    snr = np.tan(np.pi * t / 2, dtype=np.longdouble) ** -2 / shift**2
    return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))


def sigmoid(t, start="-3", end="3", tau="1"):
    # 1 - alpha_bar and alpha_bar both cancel: 60 decimals.
    with decimal.localcontext(prec=60):
        low, high, tau = Decimal(start), Decimal(end), Decimal(tau)

        def logistic(u):
            return 1 / (1 + (-u / tau).exp())

        first, last, here = logistic(low), logistic(high), [logistic(low + Decimal(float(s)) * (high - low)) for s in t]
        alpha = [((last - h) / (last - first)).sqrt() for h in here]
        sigma = [((h - first) / (last - first)).sqrt() for h in here]
    return np.array(alpha, np.longdouble), np.array(sigma, np.longdouble)


def geometric(t, low=0.01, high=50.0):
    return np.ones_like(t), low ** (1 - t) * high**t


def linear(t, shift=1.0):
    s = shift * t / (1 + (shift - 1) * t)
    return 1 - s, s


def chain(betas):
    """The DDPM chain of these variances, log(alpha_bar) interpolated between the steps."""

    def levels(t):
        log_alpha_bar = np.concatenate([[0], np.log(np.cumprod(1 - betas.astype(np.longdouble)))])
        k = np.minimum(np.floor(t).astype(int), len(betas) - 1)
        here = log_alpha_bar[k] + (t - k) * (log_alpha_bar[k + 1] - log_alpha_bar[k])
        return np.exp(here / 2), np.sqrt(-np.expm1(here))

    return levels


def cosine_betas(n):
    f = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


CASES = {
    "linear-vp": (LinearVP(), linear_vp),
    "linear-vp-short": (LinearVP(0.5, 4.0), lambda t: linear_vp(t, 0.5, 4.0)),
    "ddpm": (DiscreteVP(), chain(np.linspace(1e-4, 0.02, 1000))),
    "iddpm": (DiscreteVP(1000, CosineBetas()), chain(cosine_betas(1000))),
    "iddpm-7": (DiscreteVP(7, CosineBetas()), chain(cosine_betas(7))),
    "cosine": (Cosine(), cosine),
    "cosine-shift": (Cosine(8.0), lambda t: cosine(t, 8.0)),
    "sigmoid": (Sigmoid(), sigmoid),
    "sigmoid-late": (Sigmoid(0.0, 3.0, 0.3), lambda t: sigmoid(t, "0", "3", "0.3")),
    "sigmoid-steep": (Sigmoid(tau=0.1), lambda t: sigmoid(t, tau="0.1")),
    "sigmoid-steepest": (Sigmoid(tau=0.05), lambda t: sigmoid(t, tau="0.05")),
    "geometric-ve": (GeometricVE(), geometric),
    "edm": (Sigma(), lambda t: (np.ones_like(t), t)),
    "linear": (Linear(), linear),
    "linear-shift": (Linear(3.0), lambda t: linear(t, 3.0)),
    "linear-small-shift": (Linear(0.1), lambda t: linear(t, 0.1)),
}
every = pytest.mark.parametrize("path, formula", CASES.values(), ids=CASES.keys())


def each_but(*types):
    """Every path but those of these types."""
    kept = {name: path for name, (path, _) in CASES.items() if not isinstance(path, types)}
    return pytest.mark.parametrize("path", kept.values(), ids=kept.keys())


# One length for all, so that every operation is compiled once.
FINE = np.linspace(0, 1, 4097)
ENDS = np.concatenate([np.geomspace(1e-6, 0.1, 1500), np.linspace(0.1, 0.9, 1097), 1 - np.geomspace(0.1, 1e-5, 1500)])


def f32(values):
    return jnp.asarray(values, jnp.float32)


def ratio(level: Level):
    return level.sigma / level.alpha


def test_all_paths_are_tested():
    assert {type(path) for path, _ in CASES.values()} == set(typing.get_args(paths.FixedPath))
    assert all(isinstance(path, Path) for path, _ in CASES.values())


@each_but()
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_ends_are_exact(path, wrap):
    alpha, sigma = wrap(path)(f32([0.0, path.t_max]))
    assert alpha[0] == 1
    assert sigma[0] == (np.float32(path.sigma_min) if isinstance(path, GeometricVE) else 0)
    if isinstance(path, Cosine | Sigmoid | Linear):
        assert alpha[1] == 0 and sigma[1] == 1
    if isinstance(path, GeometricVE | Sigma):
        assert alpha[1] == 1 and sigma[1] == np.float32(path.sigma_max)
    # A zero with a sign would turn the ratio at pure noise into -inf.
    assert not np.signbit(alpha).any() and not np.signbit(sigma).any()
    back = wrap(path.invert)(f32([0.0, np.inf]))
    assert back[0] == 0 and back[1] == np.float32(path.t_max)


@every
def test_formula_of_the_paper(path, formula):
    t = np.float32(path.t_max * ENDS)
    level, truth = path(f32(t)), formula(t.astype(np.longdouble))
    for value, expected in zip(level, truth, strict=True):
        np.testing.assert_allclose(np.asarray(value, np.longdouble), expected, rtol=4e-6)


@each_but(GeometricVE, Sigma, Linear)
def test_variance_preserved(path):
    alpha, sigma = path(f32(path.t_max * FINE))
    np.testing.assert_allclose(np.square(alpha, dtype=float) + np.square(sigma, dtype=float), 1, atol=3e-7)


@each_but()
def test_snr_falls_strictly(path):
    level = path(f32(path.t_max * FINE))
    assert np.all(np.diff(ratio(level)) > 0)
    assert np.all(np.diff(level.alpha) <= 0) and np.all(np.diff(level.sigma) >= 0)


@each_but()
def test_invert_round_trip_of_times(path):
    for u in FINE, ENDS:
        t = f32(path.t_max * u)
        back = path.invert(ratio(path(t)))
        np.testing.assert_allclose(back, t, atol=3e-7 * path.t_max)
        if not isinstance(path, GeometricVE):
            np.testing.assert_allclose(back, t, rtol=1e-5)


@each_but()
def test_invert_round_trip_of_ratios(path):
    most = min(50.0, 0.99 * float(ratio(path(f32(path.t_max * FINE)))[-1]))
    r = f32(np.geomspace(0.0101, most, FINE.size))
    np.testing.assert_allclose(ratio(path(path.invert(r))), r, rtol=1e-4)


@each_but(Sigma)
def test_invert_never_leaves_the_path(path):
    t = path.invert(f32(np.geomspace(1e-18, 1e18, FINE.size)))
    assert np.all(np.diff(t) >= 0) and t[0] >= 0 and t[-1] <= path.t_max


@pytest.mark.parametrize("shift", [0.25, 2.0, 16.0])
def test_shift_laws(shift):
    t = f32(0.01 + 0.98 * FINE)
    for cls in Cosine, Linear:
        moved, plain = ratio(cls(shift)(t)), ratio(cls()(t))
        np.testing.assert_allclose(moved, shift * plain, rtol=1e-5)
        logsnr = [-2 * np.log(np.asarray(r, float)) for r in (moved, plain)]
        np.testing.assert_allclose(logsnr[0], logsnr[1] - 2 * np.log(shift), atol=1e-5)
    # SD3's Eq. 23 maps the time itself.
    np.testing.assert_allclose(Linear(shift)(t).sigma, shift * t / (1 + (shift - 1) * t), rtol=1e-6)


@pytest.mark.parametrize(
    "betas, n", [(LinearBetas(), n) for n in (21, 100, 4000)] + [(CosineBetas(), n) for n in (1, 2, 50, 4000)]
)
def test_chain_is_the_cumulative_product(betas, n):
    path = DiscreteVP(n, betas)
    assert path.t_max == n and betas(n).shape == (n,) and betas(n).dtype == np.float64
    alpha_bar = np.cumprod(1 - betas(n))
    # Padded to one length with the last step.
    steps = np.minimum(np.arange(1, 4098), n)
    alpha_bar = alpha_bar[steps - 1]
    alpha, sigma = path(f32(steps))
    np.testing.assert_allclose(np.square(alpha, dtype=float), alpha_bar, rtol=3e-6)
    np.testing.assert_allclose(np.square(sigma, dtype=float), 1 - alpha_bar, rtol=3e-6)


def test_betas_of_the_papers():
    np.testing.assert_allclose(LinearBetas()(1000), np.linspace(1e-4, 0.02, 1000), rtol=1e-12)
    # The stretch keeps the sum of the variances.
    np.testing.assert_allclose([LinearBetas()(n).sum() for n in (50, 250, 4000)], 10.05, rtol=1e-9)
    for n in 10, 1000:
        f = np.cos((np.arange(n) / n + 0.008) / 1.008 * np.pi / 2) ** 2
        np.testing.assert_allclose(np.cumprod(1 - CosineBetas()(n))[:-1], f[1:] / f[0], rtol=1e-9)
        assert CosineBetas()(n)[-1] == 0.999


def test_chain_between_its_steps():
    path = DiscreteVP(50, CosineBetas())
    before, middle, after = (np.log(path(f32(np.arange(48) + d)).alpha) for d in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(middle, (before + after) / 2, atol=1e-6)


@every
def test_logsnr_rate_is_the_derivative(path, formula):
    u = 0.05 + 0.9 * FINE
    # Inside one step of a chain, where the derivative is constant.
    t = np.floor(path.t_max * u) + 0.5 if isinstance(path, DiscreteVP) else path.t_max * u
    t = np.float32(t).astype(float)
    h = 1e-5 * path.t_max

    def logsnr(t):
        alpha, sigma = formula(t)
        return 2 * (np.log(alpha) - np.log(sigma))

    rate = -(logsnr(t + h) - logsnr(t - h)) / (2 * h)
    np.testing.assert_allclose(logsnr_rate(path, path(f32(t))), rate.astype(float), rtol=2e-4)


@pytest.mark.parametrize(
    "make, flag",
    [
        (lambda: LinearVP(beta_min=0.0), "--path.beta-min"),
        (lambda: LinearVP(beta_max=float("inf")), "--path.beta-max"),
        (lambda: DiscreteVP(0), "--path.num-steps"),
        (lambda: DiscreteVP(20), "--path.num-steps"),
        (lambda: DiscreteVP(1), "--path.num-steps"),
        (lambda: DiscreteVP(100, LinearBetas(last=0.2)), "--path.num-steps"),
        (lambda: Cosine(-1.0), "--path.shift"),
        (lambda: Linear(0.0), "--path.shift"),
        (lambda: Sigmoid(tau=0.0), "--path.tau"),
        (lambda: Sigmoid(tau=0.01), "--path.tau"),
        (lambda: Sigmoid(start=3.0), "--path.end"),
        (lambda: GeometricVE(sigma_min=0.0), "--path.sigma-min"),
        (lambda: GeometricVE(sigma_min=50.0), "--path.sigma-max"),
        (lambda: Sigma(0.0), "--path.sigma-max"),
    ],
)
def test_errors_are_one_line_and_name_the_flag(make, flag):
    with pytest.raises(ValueError) as error:
        make()
    assert flag in str(error.value) and "\n" not in str(error.value)
