"""Linear operators: adjoints, pseudo-inverses, solutions and singular values against their dense matrices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from PIL import Image

from jaxdiff.names import OPERATORS, value_of
from jaxdiff.sampling.inverse import kspace_masks
from jaxdiff.sampling.inverse.operator import (
    Linear,
    conjugate_gradients,
    divided,
    from_matrix,
    matrix_of,
    through,
)

COILS = np.random.default_rng(2).normal(size=(3, 8, 6, 2)) @ np.array([1, 1j])
LINEAR = {
    "mask": ("mask(hidden=0.4)", (8, 6, 2)),
    "box": ("box", (8, 8, 1)),
    "downsample": ("downsample(factor=2)", (8, 6, 2)),
    "bicubic": ("bicubic(factor=2)", (8, 6, 2)),
    "blur": ("blur(std=0.6)", (8, 6, 2)),
    "blur, odd": ("blur(std=0.6)", (7, 9, 1)),
    "blur with edges": ("blur(std=0.6, circular=False)", (8, 6, 2)),
    "motion": ("motion(length=3.0, angle=20.0)", (8, 7, 1)),
    "motion with edges": ("motion(length=3.0, angle=20.0, circular=False)", (8, 7, 1)),
    "grey": ("grey", (5, 4, 3)),
    "mri": ("mri(acceleration=2.0, centre=0.2)", (8, 6, 2)),
    "mri, odd": ("mri-poisson(acceleration=2.0)", (7, 9, 1)),
    "complex mri": ("mri-radial(acceleration=2.0, complex_image=True)", (8, 6, 2)),
    "coils": ("mri(acceleration=2.0, centre=0.2, coils=3)", (8, 6, 1)),
    "complex coils": ("mri-poisson(acceleration=2.0, coils=2, complex_image=True)", (8, 6, 2)),
    "ct": ("ct(views=5)", (8, 8, 2)),
    "ct, many views": ("ct(views=12, arc=150.0)", (7, 7, 1)),
    "ct-fan": ("ct-fan(views=6, distance=1.5)", (8, 8, 1)),
}
KNOWN = [name for name in LINEAR if not ("coils" in name or name == "motion with edges")]
"""Those whose singular values are known."""
EXACT = [name for name in KNOWN if not name.startswith("ct")]
"""Those with a true pseudo-inverse, and not a regularised one."""


@functools.cache
def made(name):
    """(the operator, its functions compiled, and its matrix)."""
    text, shape = LINEAR[name]
    operator = value_of(text, OPERATORS, "--operator").on(shape, {})
    assert isinstance(operator, Linear) and operator.shape == shape
    matrix = matrix_of(operator)
    functions = {f: jax.jit(getattr(operator, f)) for f in ("forward", "adjoint", "pinv", "solve")}
    return dataclasses.replace(operator, **functions), matrix


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, *shape)), jnp.float32)


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


@pytest.mark.parametrize("name", LINEAR)
def test_adjoints_pass_the_dot_product_test(name):
    operator, _ = made(name)
    x, y = normal(operator.shape), normal(operator.measured, 1)
    forward, adjoint = operator.forward(x), operator.adjoint(y)
    assert forward.shape == y.shape and adjoint.shape == x.shape
    left, right = np.sum(flat(forward) * flat(y), 1), np.sum(flat(x) * flat(adjoint), 1)
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)
    assert np.abs(left).min() > 1e-3
    # Linear: twice the picture is twice the measurement, and each example is by itself.
    np.testing.assert_allclose(flat(operator.forward(2 * x[::-1])), 2 * flat(forward)[::-1], atol=1e-4)


@pytest.mark.parametrize("name", LINEAR)
def test_solve_inverts_the_regularised_normal_matrix(name):
    operator, a = made(name)
    # What is measured lies where the scan goes, and everywhere else it is 0.
    seen = 1.0 if operator.seen is None else operator.seen
    y, lam = normal(operator.measured, 3) * seen, 0.3
    want = np.linalg.solve(a @ a.T + lam * np.eye(len(a)), flat(y).T).T
    np.testing.assert_allclose(flat(operator.solve(y, jnp.float32(lam))), want, atol=2e-4)


@pytest.mark.parametrize("name", EXACT)
def test_pseudo_inverses_are(name):
    operator, a = made(name)
    cut = 0.01 if "blur" in name or "motion" in name else 1e-3
    y, x = normal(operator.measured, 4), normal(operator.shape)
    found = flat(operator.pinv(y))
    np.testing.assert_allclose(found, flat(y) @ np.linalg.pinv(a, rcond=cut).T, atol=2e-3 * np.abs(found).max())
    again = operator.forward(operator.pinv(operator.forward(x)))
    np.testing.assert_allclose(flat(again), flat(operator.forward(x)), atol=3 * cut * np.abs(a).max() + 1e-4)


@pytest.mark.parametrize("name", [name for name in LINEAR if "coils" in name or name == "motion with edges"])
def test_regularised_inverses_agree_with_the_measurement(name):
    operator, _ = made(name)
    y = operator.forward(normal(operator.shape))
    gap = flat(operator.forward(operator.pinv(y))) - flat(y)
    assert np.sqrt(np.mean(gap**2)) < 0.02 * np.sqrt(np.mean(flat(y) ** 2))


@pytest.mark.parametrize("name", KNOWN)
def test_functions_of_singular_values(name):
    operator, a = made(name)
    _, s, vt = np.linalg.svd(a, full_matrices=True)
    values = np.zeros(vt.shape[0])
    values[: s.size] = s
    x = normal(operator.shape)

    def f(s):
        return 1 / (1 + s) + s * s

    spectral = jax.jit(lambda x: [operator.spectral(g, x) for g in (f, lambda s: 1 + 0 * s)])
    found, same = spectral(x)
    want = flat(x) @ (vt.T @ np.diag(f(values)) @ vt)
    # Singular values below a hundredth may count as 0: 1 / (1 + s) moves by that much.
    np.testing.assert_allclose(flat(found), want, atol=0.01 * np.abs(want).max())
    np.testing.assert_allclose(flat(same), flat(x), atol=1e-4)


@pytest.mark.parametrize("name", LINEAR)
def test_files_hold_measurements_of_intensities(name):
    operator, a = made(name)
    picture = np.random.default_rng(0).uniform(size=operator.shape)
    y = operator.forward(jnp.asarray(2 * picture - 1, jnp.float32)[None])[0]
    np.testing.assert_allclose((np.ravel(y) + np.ravel(operator.offset)) / 2, a @ picture.ravel(), atol=1e-4)


@pytest.mark.parametrize("name", ["mask", "box", "mri", "complex mri", "coils"])
def test_what_is_not_seen_is_zero(name):
    operator, _ = made(name)
    y = operator.forward(normal(operator.shape))
    seen = np.broadcast_to(operator.seen, y.shape)
    assert np.all(np.asarray(y)[seen == 0] == 0) and 0.2 < seen.mean() < 0.95


# Against other people's operators.


def test_circular_blur_is_scipys():
    x = np.random.default_rng(0).normal(size=(12, 10))
    operator = value_of("blur(std=1.2)", OPERATORS, "--operator").on((12, 10, 1), {})
    want = scipy.ndimage.gaussian_filter(x, 1.2, mode="wrap", radius=5)
    found = np.asarray(operator.forward(jnp.asarray(x, jnp.float32)[None, ..., None]))[0, ..., 0]
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_blur_with_edges_is_scipys():
    x = np.random.default_rng(0).normal(size=(12, 10))
    for text, kernel in (("blur(std=1.2, circular=False)", None), ("motion(circular=False, length=5.0)", "motion")):
        spec = value_of(text, OPERATORS, "--operator")
        taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.2) ** 2)
        window = np.outer(taps, taps) / taps.sum() ** 2
        if kernel == "motion":
            spread = spec.on((21, 21, 1), {}).forward(jnp.zeros((1, 21, 21, 1)).at[0, 10, 10].set(1.0))
            window = np.asarray(spread, np.float64)[0, ..., 0]
            assert np.isclose(window.sum(), 1) and np.allclose(window, window.T[::-1, ::-1], atol=1e-6)
        operator = spec.on((12, 10, 1), {})
        found = np.asarray(operator.forward(jnp.asarray(x, jnp.float32)[None, ..., None]))[0, ..., 0]
        np.testing.assert_allclose(found, scipy.signal.convolve2d(x, window, mode="same"), atol=1e-5)


def test_motion_is_a_line_of_its_length_and_angle():
    operator = value_of("motion(length=7.0, angle=90.0)", OPERATORS, "--operator").on((15, 15, 1), {})
    x = jnp.zeros((1, 15, 15, 1)).at[0, 7, 7].set(1.0)
    spread = np.asarray(operator.forward(x))[0, ..., 0]
    assert np.allclose(spread[:, [5, 6, 8, 9]], 0, atol=1e-6) and np.isclose(spread.sum(), 1, atol=1e-5)
    assert np.allclose(spread[5:10, 7], 1 / 6, atol=0.01) and np.allclose(spread[[2, 12], 7], 0, atol=1e-6)


def test_bicubic_is_pillows():
    x = np.random.default_rng(0).uniform(size=(16, 12)).astype(np.float32)
    want = np.asarray(Image.fromarray(x).resize((3, 4), Image.Resampling.BICUBIC))
    operator = value_of("bicubic(factor=4)", OPERATORS, "--operator").on((16, 12, 1), {})
    np.testing.assert_allclose(operator.forward(jnp.asarray(x)[None, ..., None])[0, ..., 0], want, atol=1e-4)


def test_downsampling_takes_means():
    x = jnp.arange(32.0).reshape(1, 4, 8, 1)
    operator = value_of("downsample(factor=4)", OPERATORS, "--operator").on((4, 8, 1), {})
    np.testing.assert_allclose(operator.forward(x)[0, :, :, 0], [[13.5, 17.5]], rtol=1e-5)


def test_kspace_is_numpys_centred_transform():
    x = np.random.default_rng(0).normal(size=(8, 6))
    operator, _ = made("mri")
    measured = np.asarray(operator.forward(jnp.asarray(np.stack([x, x], -1), jnp.float32)[None]))[0, 0, :, :, 0]
    want = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x), norm="ortho"))
    mask = operator.seen[..., 0, 0]
    np.testing.assert_allclose(measured @ [1, 1j], want * mask, atol=1e-5)
    assert mask[:, 3].all() and set(np.unique(mask)) == {0, 1}


def test_sensitivities_light_each_coil():
    x = normal((8, 6, 1))
    spec = value_of("mri(acceleration=2.0, centre=0.2)", OPERATORS, "--operator")
    operator = spec.on((8, 6, 1), {"sensitivities": COILS, "kspace_mask": np.ones((8, 6))})
    measured = np.asarray(operator.forward(x))[0, ..., 0, :] @ [1, 1j]
    picture = COILS * np.asarray(x)[0, ..., 0]
    want = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(picture, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    np.testing.assert_allclose(measured, want, atol=1e-4)


@pytest.mark.parametrize("acceleration", [2.0, 4.0, 8.0])
def test_masks_have_their_acceleration(acceleration):
    h, w = 48, 40
    cartesian = kspace_masks.cartesian(h, w, acceleration, 0.08, 0)
    poisson = kspace_masks.poisson_disc(h, w, acceleration, 0.1, 0)
    radial = kspace_masks.radial(h, w, acceleration)
    assert cartesian.sum() == h * round(w / acceleration) and poisson.sum() == round(h * w / acceleration)
    assert 0 <= radial.sum() - h * w / acceleration < 2 * max(h, w)  # up to one spoke
    for mask in (cartesian, poisson, radial):
        assert mask.shape == (h, w) and mask[h // 2, w // 2] == 1 and set(np.unique(mask)) == {0, 1}
    assert np.all(cartesian == cartesian[:1])
    assert np.any(poisson != kspace_masks.poisson_disc(h, w, acceleration, 0.1, 1))


def test_poisson_discs_keep_their_distance():
    mask = kspace_masks.poisson_disc(64, 64, 8.0, 0.05, 0)
    places = np.argwhere(mask)
    far = places[np.hypot(*(places - 32).T) > 16]
    gaps = np.sqrt(((far[:, None] - far) ** 2).sum(-1)) + 99 * np.eye(len(far))
    # As many at random would have neighbours.
    assert gaps.min() >= 2
    near = np.hypot(*(places - 32).T)
    assert (near < 16).sum() / (np.pi * 16**2) > 2 * (near >= 16).sum() / (64**2 - np.pi * 16**2)


# The constructors.


def test_conjugate_gradients_solve_each_example_by_itself():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 6))
    a, y = half @ half.T + np.eye(6), np.stack([rng.normal(size=6), np.zeros(6), 1e4 * rng.normal(size=6)])
    found = conjugate_gradients(lambda z: z @ jnp.asarray(a, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(found, np.linalg.solve(a, y.T).T, rtol=1e-3, atol=1e-5)
    assert np.all(found[1] == 0)


def test_division_whitens_the_noise():
    operator, a = made("downsample")
    std = np.random.default_rng(0).uniform(0.5, 2, operator.measured)
    white = divided(operator, jnp.asarray(std, jnp.float32))
    np.testing.assert_allclose(matrix_of(white), a / std.reshape(-1, 1), atol=1e-5)
    y = normal(operator.measured)
    np.testing.assert_allclose(white.pinv(y / std), operator.pinv(y), atol=1e-5)


def test_matrices_of_full_rank_and_taller_than_wide():
    a = np.random.default_rng(0).normal(size=(9, 4))
    operator = from_matrix((2, 2, 1), (9, 1), a)
    np.testing.assert_allclose(matrix_of(operator), a, atol=1e-5)
    y = normal((9, 1))
    np.testing.assert_allclose(flat(operator.pinv(y)), flat(y) @ np.linalg.pinv(a).T, atol=1e-4)


def test_operators_through_a_decoder():
    operator, a = made("downsample")
    inner = through(operator, lambda z: 3 * jnp.repeat(z, 2, axis=1), (4, 6, 2))
    z = normal((4, 6, 2))
    want = flat(3 * np.repeat(np.asarray(z), 2, axis=1)) @ a.T
    np.testing.assert_allclose(flat(inner.forward(z)), want, atol=1e-4)


@pytest.mark.parametrize(
    "text, shape, arrays, words",
    [
        ("mask(hidden=1.5)", (8, 8, 1), {}, "hidden"),
        ("mask", (8, 8, 1), {"mask": np.ones((4, 8))}, "mask of 8x4"),
        ("mask", (8, 8, 1), {"mask": np.ones((8, 8))}, "whole picture"),
        ("downsample(factor=3)", (8, 8, 1), {}, "factor = 3"),
        ("bicubic(factor=1)", (8, 8, 1), {}, "factor = 1"),
        ("blur(std=0.0)", (8, 8, 1), {}, "std"),
        ("motion(length=0.5)", (8, 8, 1), {}, "length"),
        ("grey", (8, 8, 1), {}, "1 channels"),
        ("jpeg(quality=0)", (8, 8, 1), {}, "quality"),
        ("mri(acceleration=1.0)", (8, 8, 1), {}, "acceleration"),
        ("mri(centre=0.9)", (8, 8, 1), {}, "centre"),
        ("mri(complex_image=True)", (8, 8, 1), {}, "complex_image"),
        ("mri", (8, 8, 1), {"sensitivities": np.ones((2, 4, 4))}, "sensitivities"),
        ("mri", (8, 8, 1), {"kspace_mask": np.ones((4, 4))}, "kspace_mask"),
        ("ct", (8, 6, 1), {}, "square"),
        ("ct(views=0)", (8, 8, 1), {}, "views"),
        ("ct(photons=0.5)", (8, 8, 1), {}, "photons"),
        ("ct-fan(distance=0.5)", (8, 8, 1), {}, "distance"),
        ("phase(oversample=0.5)", (8, 8, 1), {}, "oversample"),
    ],
)
def test_mistakes_are_one_line(text, shape, arrays, words):
    with pytest.raises(ValueError, match=words) as error:
        value_of(text, OPERATORS, "--operator").on(shape, arrays)
    assert "\n" not in str(error.value) and "--" in str(error.value)
