"""Likelihoods against closed forms: densities of normals and mixtures, and the bits of data of known entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp, ndtr

from jaxdiff.core import paths
from jaxdiff.core.bits import BIN
from jaxdiff.core.types import Estimate, Level
from jaxdiff.sampling.adaptive import at_angle
from jaxdiff.sampling.divergence import Exact, Hutchinson
from jaxdiff.sampling.likelihood import (
    RK2,
    RK4,
    Adaptive,
    Gaussian,
    Uniform,
    angles,
    importance_bound,
    likelihood,
    log_density,
)
from jaxdiff.sampling.sample import image_keys, on_path

SHAPE = (2, 1, 2)
D = 4
PATHS = [
    paths.LinearVP(),
    paths.DiscreteVP(1000),
    paths.Cosine(),
    paths.Sigmoid(),
    paths.GeometricVE(),
    paths.Sigma(),
    paths.Linear(shift=2.0),
]


def log_mixture(data, y, noise):
    """log density of each pixel of the mixture with noise of this standard deviation."""
    variance = data.std**2 + noise**2
    terms = -0.5 * jnp.square(y[..., None] - data.means) / variance - 0.5 * jnp.log(2 * jnp.pi * variance)
    return logsumexp(jnp.log(data.weights) + terms, axis=-1)


@pytest.fixture(scope="module")
def mixture(closed_form):
    return closed_form.Mixture(jnp.array([-0.6, 0.6]), jnp.float32(0.1), jnp.array([0.5, 0.5]))


@pytest.fixture(scope="module")
def density(closed_form):
    """(y, angles, data, path's number, integrator) -> Density with the exact divergence: one compilation for all."""
    compiled = {}

    def run(y, grid, data, integrate=RK4()):
        if integrate not in compiled:
            compiled[integrate] = jax.jit(
                lambda y, grid, data: log_density(
                    image_keys(0, jnp.arange(len(y))), y, grid, closed_form.denoiser(data), Exact(), integrate
                )
            )
        return compiled[integrate](y, grid, data)

    return run


def images(data, n, seed=0):
    key_mean, key_noise = jax.random.split(jax.random.key(seed))
    means = jax.random.choice(key_mean, data.means, (n, *SHAPE), p=data.weights)
    return means + data.std * jax.random.normal(key_noise, (n, *SHAPE))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_log_density_is_the_mixtures_on_every_path(path, mixture, density):
    # The prior's mean is 0, and so is the data's; its variance matters where alpha does not reach 0.
    y, grid = images(mixture, 16), angles(path, 64)
    found = density(y, grid, mixture)
    want = jnp.sum(log_mixture(mixture, y, jnp.tan(grid[0])), axis=(1, 2, 3))
    np.testing.assert_allclose(found.log_prob / D, want / D, atol=1e-3)
    assert np.asarray(found.nfe).tolist() == [256] * 16


@pytest.mark.parametrize("clean", [1e-3, 0.5])
def test_a_path_to_pure_noise_needs_no_mean_of_zero(clean, closed_form, density):
    data = closed_form.Mixture(jnp.array([0.8, 0.8]), jnp.float32(0.3), jnp.array([0.5, 0.5]))
    y, grid = images(data, 16), angles(paths.Linear(), 64, clean)
    assert float(at_angle(grid[-1]).alpha) == 0 and float(jnp.min(at_angle(grid).alpha)) == 0
    want = log_mixture(data, y, jnp.tan(grid[0]))
    np.testing.assert_allclose(density(y, grid, data).log_prob / D, jnp.mean(want, axis=(1, 2, 3)), atol=1e-3)


@pytest.mark.parametrize("integrate, order", [(RK2(), 2), (RK4(), 4)])
def test_orders_and_calls(integrate, order, closed_form, density):
    data = closed_form.Mixture(jnp.zeros(2), jnp.float32(0.7), jnp.array([0.5, 0.5]))
    y, path = jnp.full((1, *SHAPE), 1.1), paths.Linear()
    want = float(jnp.sum(log_mixture(data, y, 0.05)))
    error = {}
    for n in (8, 16):
        # Padded with its last angle, every grid has one shape.
        found = density(y, jnp.pad(angles(path, n, clean=0.05), (0, 16 - n), mode="edge"), data, integrate)
        error[n] = abs(float(found.log_prob[0]) - want)
        assert int(found.nfe[0]) == n * (2 if order == 2 else 4)
    assert np.log2(error[8] / error[16]) == pytest.approx(order, abs=0.7)


def test_adaptive_steps_are_each_images_own_and_counted(mixture, closed_form):
    seen, exact, grid = [], closed_form.denoiser(mixture), angles(paths.Linear(), 1)

    @jax.jit
    def run(y):
        def counted(x, cur, nxt):
            jax.debug.callback(lambda alpha: seen.append(alpha), cur.alpha)
            return exact(x, cur, nxt)

        keys = image_keys(0, jnp.arange(len(y)))
        return log_density(keys, y, grid, counted, Exact(D), Adaptive(max_steps=12))

    y = images(mixture, 4)
    found = run(y)
    jax.effects_barrier()
    nfe = np.asarray(found.nfe).tolist()
    assert len(seen) == max(nfe) == 73 and min(nfe) < 73
    # The first image needs more steps than are allowed, which is said of it alone.
    want = jnp.sum(log_mixture(mixture, y, jnp.tan(grid[0])), axis=(1, 2, 3))
    assert nfe[0] == 73 and np.isnan(found.log_prob[0])
    np.testing.assert_allclose(found.log_prob[1:] / D, want[1:] / D, atol=1e-3)
    # The last one does not notice other neighbours.
    others = run(y.at[:3].set(images(mixture, 3, seed=1)))
    assert nfe[3] == int(others.nfe[3]) and nfe[:3] != np.asarray(others.nfe[:3]).tolist()
    np.testing.assert_array_equal(others.log_prob[3], found.log_prob[3])


# Divergence


MIX = jnp.array([[1.0, 0.5, -0.3, 0.2], [0.5, 2.0, 0.1, 0.4], [-0.3, 0.1, 0.5, 0.0], [0.2, 0.4, 0.0, 1.5]])


def coupled(z):
    return jnp.tanh(z.reshape(-1, D) @ MIX).reshape(z.shape)


def test_exact_divergence_is_the_trace_and_hutchinsons_mean():
    z = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    slopes = 1 - jnp.square(coupled(z).reshape(-1, D))
    want = jnp.sum(slopes * jnp.diag(MIX), axis=1)
    keys = image_keys(0, jnp.arange(3))
    for exact in (Exact(), Exact(chunk=3)):
        out, trace = exact(coupled, z, exact.probes(keys, z))
        np.testing.assert_allclose(trace, want, rtol=1e-5)
        np.testing.assert_allclose(out, coupled(z), rtol=1e-6)
    for estimate in (Hutchinson(4096), Hutchinson(4096, gaussian=True)):
        probes = estimate.probes(keys, z)
        assert probes.shape == (3, 4096, *SHAPE) and abs(float(jnp.mean(probes**2)) - 1) < 0.05
        np.testing.assert_allclose(estimate(coupled, z, probes)[1], want, atol=0.15)
    # Signs leave a diagonal Jacobian no variance; an image's probe is its key's, whatever the batch.
    one = Hutchinson()
    np.testing.assert_allclose(one(jnp.tanh, z, one.probes(keys, z))[1], Exact()(jnp.tanh, z, one.probes(keys, z))[1])
    np.testing.assert_array_equal(one.probes(keys[2:], z[2:]), one.probes(keys, z)[2:])
    with pytest.raises(ValueError, match=r"num_probes = 0 .*--divergence\.num-probes"):
        Hutchinson(0)


def test_correlated_pixels_and_the_probes_are_kept():
    cov = 0.2 * MIX @ MIX.T + 0.05 * jnp.eye(D)
    values, vectors = np.linalg.eigh(np.asarray(cov))

    def denoise(x, cur, nxt):
        along = x.reshape(-1, D) @ vectors
        alpha, sigma = cur
        alpha, sigma = alpha[:, None], sigma[:, None]
        x0 = (alpha * values / (alpha**2 * values + sigma**2) * along) @ vectors.T
        eps = (sigma / (alpha**2 * values + sigma**2) * along) @ vectors.T
        return Estimate(x0.reshape(x.shape), eps.reshape(x.shape))

    grid = angles(paths.Linear(), 40, clean=0.01)
    y = jnp.broadcast_to(jnp.array([0.3, -0.2, 0.8, 0.1]).reshape(1, *SHAPE), (512, *SHAPE))
    noisy = values + 1e-4
    along = np.asarray(y[0]).reshape(D) @ vectors
    want = float(np.sum(-0.5 * along**2 / noisy - 0.5 * np.log(2 * np.pi * noisy)))
    keys = image_keys(0, jnp.arange(512))
    exact = log_density(keys[:1], y[:1], grid, on_path(paths.Linear())(denoise), Exact()).log_prob[0]
    assert float(exact) == pytest.approx(want, abs=1e-3)
    draws = np.asarray(log_density(keys, y, grid, denoise).log_prob)
    # Kept along the trajectory, a probe's error does not average out.
    assert np.std(draws) > 0.3
    assert np.mean(draws) == pytest.approx(want, abs=4 * float(np.std(draws)) / 512**0.5)


# Bits per dimension


def bits_of(data, x0):
    """-log2 of the mass that the mixture gives to the bins."""
    upper, lower = ((x0[..., None] + s * BIN / 2 - data.means) / data.std for s in (1, -1))
    mass = jnp.sum(data.weights * (ndtr(upper) - ndtr(lower)), axis=-1)
    return -jnp.mean(jnp.log2(mass), axis=(1, 2, 3))


def on_values(x):
    return jnp.round((x + 1) * 127.5) / 127.5 - 1


@pytest.fixture(scope="module")
def measure(closed_form):
    """(data, x0, clean) -> Likelihood of 16 draws: one compilation for all data of two components."""

    @jax.jit
    def run(data, x0, grid):
        keys = image_keys(3, jnp.arange(len(x0)))
        return likelihood(keys, x0, grid, closed_form.denoiser(data), draws=16, divergence=Exact(D))

    return lambda data, x0, clean: run(data, x0, angles(paths.Linear(), 64, clean))


def test_bits_per_dimension_of_a_mixture_are_the_analytic_ones(mixture, measure):
    x0 = on_values(images(mixture, 128))
    found = measure(mixture, x0, 1e-3)
    want = bits_of(mixture, x0)
    np.testing.assert_allclose(found.bits, want, atol=0.03)
    assert float(jnp.mean(found.bits - want)) == pytest.approx(0, abs=2e-3)
    np.testing.assert_allclose(found.nats, found.bits * D * np.log(2), rtol=1e-5)
    assert np.asarray(found.nfe).tolist() == [16 * 256] * 128


def test_importance_weights_tighten_the_bound(closed_form, measure):
    # The density changes much within a bin, so that one draw is far from enough.
    narrow = closed_form.Mixture(jnp.array([-0.2, 0.2]), jnp.float32(0.4 * BIN), jnp.array([0.5, 0.5]))
    x0 = on_values(images(narrow, 128))
    found = measure(narrow, x0, 1e-4)
    bounds = {k: float(jnp.mean(importance_bound(found.log_weights, k))) for k in (1, 2, 4, 16)}
    truth = -float(jnp.mean(bits_of(narrow, x0))) * D * np.log(2)
    assert bounds[1] < bounds[2] < bounds[4] < bounds[16] < truth + 0.05
    assert truth - bounds[16] < 0.3 < 0.6 < truth - bounds[1]
    np.testing.assert_allclose(importance_bound(found.log_weights, 16), -found.nats, rtol=1e-6)
    with pytest.raises(ValueError, match="draws = 17 is not allowed: 1 to 16"):
        importance_bound(found.log_weights, 17)


@pytest.mark.parametrize("width, dequantise", [(1.0, Uniform()), (0.0, Gaussian())])
def test_evenly_spread_values_cost_eight_bits(width, dequantise, closed_form):
    # Bumps a bin apart and a bin wide add up to a flat density, in which every draw from a bin weighs the same. Spikes
    # on the values leave every value's bits to noise as wide as the spikes.
    values = jnp.arange(256) / 127.5 - 1
    data = closed_form.Mixture(values, jnp.float32(width * BIN), jnp.full(256, 1 / 256))
    x0 = values[jnp.array([20, 64, 128, 200, 33, 99, 150, 230])].reshape(2, *SHAPE)
    keys, grid = image_keys(3, jnp.arange(2)), angles(paths.Linear(), 128, clean=1.3e-3)
    found = jax.jit(lambda x0: likelihood(keys, x0, grid, closed_form.denoiser(data), dequantise, 2, Exact(D)))(x0)
    np.testing.assert_allclose(found.bits, 8.0, atol=0.01)
    np.testing.assert_allclose(found.log_weights, -8 * D * np.log(2), atol=0.03)


def test_dequantised_images_come_back_and_fill_their_bins():
    x0 = jnp.array([0, 1, 128, 255]).reshape(1, *SHAPE) / 127.5 - 1
    keys = image_keys(0, jnp.arange(4000))
    y, log_weight = Uniform()(keys, jnp.broadcast_to(x0, (4000, *SHAPE)), jnp.float32(1e-3))
    back = (y + 1) * 127.5
    np.testing.assert_array_equal(
        jnp.round(back), jnp.broadcast_to(jnp.array([0, 1, 128, 255]).reshape(x0.shape), y.shape)
    )
    inside = np.asarray(back - jnp.round(back))
    assert np.abs(inside).max() > 0.49 and np.std(inside) == pytest.approx(12**-0.5, rel=0.02)
    np.testing.assert_allclose(log_weight, D * np.log(1 / 127.5), rtol=1e-6)


def test_angles_start_clean_and_end_at_the_paths_noise():
    path = paths.GeometricVE(0.01, 50.0)
    grid = angles(path, 10)
    np.testing.assert_allclose(jnp.tan(grid[jnp.array([0, -1])]), [0.01, 50.0], rtol=1e-4)
    assert np.all(np.diff(np.asarray(grid)) > 0)
    np.testing.assert_allclose(
        jnp.tan(angles(paths.Linear(), 10, 0.02, 30.0)[jnp.array([0, -1])]), [0.02, 30.0], rtol=1e-4
    )
    level = at_angle(jnp.array([0.001, 0.7, np.pi / 2]))
    assert isinstance(level, Level)
    np.testing.assert_allclose(level.alpha[:2], np.cos([0.001, 0.7]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"num_steps = 0 is not allowed"):
        angles(path, 0)
    with pytest.raises(ValueError, match=r"clean = 0\.0 must lie"):
        angles(path, 4, 0.0)
