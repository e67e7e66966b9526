"""Laws of the loss weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.betas import CosineBetas
from jaxdiff.core.gaussian import from_x0, target
from jaxdiff.core.paths import Cosine, DiscreteVP, GeometricVE, Linear, LinearVP, Sigma
from jaxdiff.core.predictions import EDM, X0, Eps, Flow, Score, V
from jaxdiff.core.types import Level
from jaxdiff.core.weights import P2, SNR, VLB, EDMWeight, MinSNR, One, Sigmoid, TruncatedSNR, convert

PREDICTIONS = [Eps(), X0(), V(), Flow(), Score(), EDM(0.5)]
ENDS = Level(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))


def vp(logsnr):
    """Variance-preserving levels of these logSNRs, and their SNRs in float64."""
    snr = np.exp(logsnr)
    alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    return Level(jnp.asarray(alpha, jnp.float32), jnp.asarray(sigma, jnp.float32)), snr


LEVELS, SNRS = vp(np.linspace(-8, 8, 33))


@pytest.mark.parametrize("weight", [One(), SNR(), MinSNR(), P2(), EDMWeight(), Sigmoid(Cosine())], ids=repr)
@pytest.mark.parametrize("of", PREDICTIONS, ids=lambda p: type(p).__name__)
def test_one_x0_error_costs_the_same_in_every_prediction(weight, of):
    level = Level(jnp.array([0.9, 0.6, 0.3, 0.8]), jnp.array([0.2, 0.8, 2.0, 0.6]))
    x, x0, guess = (jax.random.normal(jax.random.key(seed), (4, 2, 2, 1)) for seed in range(3))
    losses = []
    for to in PREDICTIONS:
        right, wrong = (np.asarray(target(to, level, *from_x0(level, x, v)[:2]), float) for v in (x0, guess))
        squared = np.mean((right - wrong) ** 2, axis=(1, 2, 3))
        losses.append(np.asarray(convert(weight, of=of, to=to)(level), float) * squared)
    own = losses[PREDICTIONS.index(of)]
    np.testing.assert_allclose(losses, np.broadcast_to(own, (len(losses), 4)), rtol=2e-4)
    # In the weight's own prediction nothing is changed.
    np.testing.assert_allclose(convert(weight, of=of, to=of)(level), weight(level), rtol=1e-5)


def test_snr_of_x0_is_one_of_eps():
    np.testing.assert_allclose(convert(SNR(), of=X0(), to=Eps())(LEVELS), 1, rtol=1e-5)
    np.testing.assert_allclose(convert(One(), of=Eps(), to=X0())(LEVELS), SNRS, rtol=1e-5)
    # SNR + 1 of x0 is 1 of v, on a variance-preserving path (arXiv:2202.00512, Sec. 4).
    np.testing.assert_allclose(convert(One(), of=V(), to=X0())(LEVELS), SNRS + 1, rtol=1e-5)


def test_min_snr():
    as_v = np.minimum(SNRS, 5) / (SNRS + 1)
    np.testing.assert_allclose(convert(MinSNR(), of=X0(), to=V())(LEVELS), as_v, rtol=1e-5)
    as_eps = np.minimum(SNRS, 3) / SNRS
    np.testing.assert_allclose(convert(MinSNR(3.0), of=X0(), to=Eps())(LEVELS), as_eps, rtol=1e-5)


def test_truncated_snr():
    np.testing.assert_allclose(TruncatedSNR()(LEVELS), np.maximum(SNRS, 1), rtol=1e-5)
    assert set(np.unique(TruncatedSNR()(vp(np.linspace(-8, -0.01, 9))[0]))) == {1.0}


def test_p2():
    np.testing.assert_array_equal(P2(gamma=0.0)(LEVELS), One()(LEVELS))
    # With k = gamma = 1, the variance of the noise on a variance-preserving path.
    np.testing.assert_allclose(P2()(LEVELS), np.asarray(LEVELS.sigma, float) ** 2, rtol=1e-5)
    np.testing.assert_allclose(P2(k=2.0, gamma=0.5)(LEVELS), 1 / np.sqrt(2 + SNRS), rtol=1e-5)


@pytest.mark.parametrize("s", [0.5, 1.7])
def test_edm_weight_is_one_of_its_own_output(s):
    sigma = np.geomspace(0.002, 80, 20)
    level = Level(jnp.ones(20), jnp.asarray(sigma, jnp.float32))
    np.testing.assert_allclose(EDMWeight(s)(level), (sigma**2 + s**2) / (sigma * s) ** 2, rtol=1e-5)
    for levels in level, LEVELS:
        np.testing.assert_allclose(convert(EDMWeight(s), of=X0(), to=EDM(s))(levels), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "weight, of, to, limits",
    [
        (SNR(), X0(), Eps(), (1, 1)),
        (SNR(), X0(), V(), (1, 0)),
        (SNR(), X0(), Flow(), (1, 0)),
        (TruncatedSNR(), X0(), V(), (1, 1)),
        (TruncatedSNR(), X0(), Flow(), (1, 1)),
        (MinSNR(), X0(), V(), (0, 0)),
        (EDMWeight(), X0(), EDM(), (1, 1)),
        (EDMWeight(0.5), X0(), Flow(), (1, 4)),
        (One(), Eps(), V(), (1, 0)),
        (P2(), Eps(), V(), (0, 0)),
        (One(), V(), Flow(), (1, 1)),
        (One(), EDM(), V(), (1, 4)),
        (Sigmoid(Linear()), Eps(), V(), (0, None)),
    ],
    ids=repr,
)
def test_weights_at_the_ends_are_limits(weight, of, to, limits):
    clean, noise = convert(weight, of=of, to=to)(ENDS)
    np.testing.assert_allclose(clean, limits[0], rtol=1e-5, atol=1e-15)
    if limits[1] is not None:
        np.testing.assert_allclose(noise, limits[1], rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize(
    "path", [LinearVP(), DiscreteVP(50, CosineBetas()), Cosine(2.0), GeometricVE(), Sigma(), Linear(3.0)], ids=repr
)
@pytest.mark.parametrize("s", [0.3, 1.0])
def test_vlb_integrates_to_an_information(path, s):
    """For data N(0, s**2) and the exact denoiser, the weighted eps error integrates to a mutual information.

    E (eps - eps_hat)**2 = snr s**2 / (1 + snr s**2), and so between two times
    (1/2) integral -dlogSNR/dt E (eps - eps_hat)**2 dt = (1/2) log((1 + snr_a s**2) / (1 + snr_b s**2)).
    """
    n, first, last = 20_000, 0.01, 0.99
    if isinstance(path, DiscreteVP):
        first, last = 0.02, 0.98
    edges = np.linspace(first, last, n + 1)
    middles = path(jnp.asarray(path.t_max * (edges[1:] + edges[:-1]) / 2, jnp.float32))
    snr = (np.asarray(middles.alpha, float) / np.asarray(middles.sigma, float)) ** 2
    integral = np.sum(np.asarray(VLB(path)(middles), float) * snr * s**2 / (1 + snr * s**2)) * (last - first) / n
    alpha, sigma = (np.asarray(v, float) for v in path(jnp.array([first, last]) * path.t_max))
    a, b = np.log1p((alpha / sigma) ** 2 * s**2)
    np.testing.assert_allclose(integral, (a - b) / 2, rtol=2e-4)


def test_sigmoid():
    t = np.linspace(0.02, 0.98, 25)
    level = Cosine()(jnp.asarray(t, jnp.float32))
    logsnr = -2 * np.log(np.tan(np.pi * t / 2))
    rate = 2 * np.pi / np.sin(np.pi * t)
    for bias in -1.0, -3.0:
        expected = rate / (1 + np.exp(logsnr - bias))
        np.testing.assert_allclose(Sigmoid(Cosine(), bias)(level), expected, rtol=1e-4)
        # SiD2 writes it for the x0 error: rate * e**b * sigmoid(logSNR - b).
        as_x0 = rate * np.exp(bias) / (1 + np.exp(bias - logsnr))
        np.testing.assert_allclose(convert(Sigmoid(Cosine(), bias), Eps(), X0())(level), as_x0, rtol=1e-4)


@pytest.mark.parametrize("weight", [VLB, Sigmoid])
def test_a_weight_for_uniform_times_does_not_see_the_clock(weight):
    """On one and the same geometric schedule, run over [0, 1] or over the sigmas themselves, the mean is the same."""
    sigma = jnp.geomspace(0.02, 40.0, 50)
    level = Level(jnp.ones(50), sigma)
    # d logSNR = -2 d log(sigma) = -2 d sigma / sigma: densities of t differ by the clocks' derivatives.
    slow, fast = weight(GeometricVE())(level), weight(Sigma())(level)
    np.testing.assert_allclose(fast / slow, 80 / (sigma * np.log(5000)), rtol=1e-4)


def test_unit_weights_broadcast_with_the_level():
    for a, weight in itertools.product([jnp.array(0.6), jnp.full(3, 0.6)], [One(), SNR(), P2(), EDMWeight()]):
        assert weight(Level(a, a)).shape == a.shape


@pytest.mark.parametrize(
    "make, flag",
    [
        (lambda: MinSNR(0.0), "--weight.gamma"),
        (lambda: P2(k=0.0), "--weight.k"),
        (lambda: EDMWeight(0.0), "--weight.sigma-data"),
    ],
)
def test_errors_are_one_line_and_name_the_flag(make, flag):
    with pytest.raises(ValueError) as error:
        make()
    assert flag in str(error.value) and "\n" not in str(error.value)
