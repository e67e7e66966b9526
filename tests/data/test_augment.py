"""EDM's augmentation: the geometry moves points where the table says, and the label tells it."""

import cmath

import numpy as np
import pytest

from jaxdiff.data.augment import LABELS, Warp, augment, draw, label, transform


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_probability_zero_changes_nothing(image):
    out, told = augment(np.random.default_rng(1), image, 0.0)
    np.testing.assert_array_equal(out, image)
    assert told.shape == (LABELS,) and told.dtype == np.float32 and not told.any()


def test_mirroring_is_exact(image):
    np.testing.assert_array_equal(transform(image, Warp(x_flip=1)), image[:, ::-1])
    np.testing.assert_array_equal(transform(image, Warp(y_flip=1)), image[::-1])
    np.testing.assert_array_equal(transform(image, Warp(x_flip=1, y_flip=1)), image[::-1, ::-1])


def test_a_shift_by_whole_pixels_moves_them_and_mirrors_the_border(image):
    right = transform(image, Warp(shift_x=1.5))  # 1.5 / 8 of 16 pixels = 3
    np.testing.assert_array_equal(right[:, 3:], image[:, :-3])
    np.testing.assert_array_equal(right[:, :3], image[:, 3:0:-1])
    up = transform(image, Warp(shift_y=-1.0))
    np.testing.assert_array_equal(up[:-2], image[2:])
    np.testing.assert_array_equal(up[-2:], image[-2:-4:-1])


def test_a_quarter_turn_is_exact(image):
    turned = transform(image, Warp(angle=np.pi / 2)).astype(int)
    assert np.abs(turned - np.rot90(image)).max() <= 1


@pytest.mark.parametrize(
    "warp",
    [
        Warp(scale=1.7),
        Warp(scale=-1.2),
        Warp(angle=0.4),
        Warp(stretch=1.5),
        Warp(stretch=-1.5, direction=0.7),
        Warp(shift_x=0.37, shift_y=-0.61),
        Warp(x_flip=1, angle=-1.1, shift_x=0.4),
        Warp(y_flip=1, scale=0.8, angle=2.0, direction=-0.9, stretch=1.0, shift_x=-0.3, shift_y=0.5),
    ],
)
@pytest.mark.parametrize("shape", [(48, 48), (40, 56)])
def test_every_point_goes_where_the_table_says(warp, shape):
    """The image is a linear function of place, which bicubic interpolation reproduces, so the value at a point
    q of the result tells which point p of the image it shows; p is carried to q here by complex numbers."""
    height, width = shape
    y, x = np.mgrid[:height, :width] + 0.5
    z = (x - width / 2) + 1j * (y - height / 2)
    ramps = np.stack([128 + 3 * z.real, 128 + 3 * z.imag], axis=2).round().astype(np.uint8)
    out = transform(np.concatenate([ramps, ramps[..., :1]], axis=2), warp)
    radius = np.linspace(1, 7, 4)[:, None] * np.exp(2j * np.pi * np.arange(9) / 9)
    for p in radius.ravel():
        q = complex(p.real * (1 - 2 * warp.x_flip), p.imag * (1 - 2 * warp.y_flip))
        q *= 2 ** (warp.scale / 5) * cmath.exp(-1j * warp.angle)
        along = q * cmath.exp(-1j * warp.direction)
        along = complex(along.real * 2 ** (warp.stretch / 5), along.imag / 2 ** (warp.stretch / 5))
        q = along * cmath.exp(1j * warp.direction)
        q += complex(warp.shift_x * width / 8, warp.shift_y * height / 8)
        shown = bilinear(out, q.real + width / 2, q.imag + height / 2)[:2]
        assert np.abs(shown - (128 + 3 * p.real, 128 + 3 * p.imag)).max() < 1.5


def bilinear(image, x, y):
    """The value at a point, pixel centres lying at halves."""
    left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    u, v = x - 0.5 - left, y - 0.5 - top
    corner = image[top : top + 2, left : left + 2].astype(float)
    return (1 - v) * ((1 - u) * corner[0, 0] + u * corner[0, 1]) + v * ((1 - u) * corner[1, 0] + u * corner[1, 1])


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (7, 5, 1)])
def test_small_and_strong_cases_keep_the_shape(shape):
    picture = np.full(shape, 90, np.uint8)
    out = transform(picture, Warp(scale=-8.0, angle=1.0, stretch=6.0, direction=0.5, shift_x=9.0, shift_y=-9.0))
    np.testing.assert_array_equal(out, picture)  # a flat picture stays flat


@pytest.mark.parametrize("warp", [Warp(x_flip=1), Warp(scale=0.7, angle=0.4, stretch=1.0, shift_x=-0.3)])
def test_images_of_more_bits_move_as_those_of_eight_do(image, warp):
    deep = transform((image / 127.5 - 1).astype(np.float32), warp)
    assert deep.dtype == np.float32 and np.abs(deep).max() <= 1
    np.testing.assert_allclose(127.5 * (deep + 1), transform(image, warp), atol=1)


def test_the_label_tells_the_parameters():
    told = label(Warp(1, 1, 0.5, np.pi / 2, np.pi, 2.0, -0.25, 0.75))
    np.testing.assert_allclose(told, [1, 1, 0.5, -1, 1, -2, 0, -0.25, 0.75], atol=1e-6)
    assert not label(Warp(direction=1.0)).any()


def test_the_label_belongs_to_the_image(image):
    """An image transformed by the parameters that its label tells is the augmented image."""
    rng, moved = np.random.default_rng(3), 0
    for _ in range(200):
        out, told = augment(rng, image, 0.3)
        if told[5:7].any():  # (direction, stretch) cannot be told from (direction + pi, -stretch)
            continue
        angle = float(np.arctan2(told[4], told[3] + 1))
        flips = {"x_flip": int(told[0]), "y_flip": int(told[1])}
        shifts = {"shift_x": float(told[7]), "shift_y": float(told[8])}
        again = transform(image, Warp(scale=float(told[2]), angle=angle, **flips, **shifts))
        assert np.abs(out.astype(int) - again).max() <= 1
        moved += bool((out != image).any())
    assert moved > 50


def test_each_transformation_has_its_own_probability_and_law():
    rng, n, p = np.random.default_rng(0), 8_000, 0.3
    warps = np.array([draw(rng, p) for _ in range(n)])
    on = warps != 0
    noise = 4 * 0.5 / np.sqrt(n)
    assert abs(on[:, 0].mean() - 0.5) < noise  # mirrored always
    assert abs(on[:, 1].mean() - p / 2) < noise
    for column in (2, 3, 5, 6):
        assert abs(on[:, column].mean() - p) < noise
    assert (on[:, 4] == on[:, 5]).all() and (on[:, 6] == on[:, 7]).all()
    groups = on[:, [2, 3, 5, 6]].astype(float)
    assert np.abs(np.corrcoef(groups.T) - np.eye(4)).max() < 0.06  # independent of each other
    for column in (2, 5, 6, 7):
        drawn = warps[on[:, column], column]
        assert abs(drawn.mean()) < 0.09 and abs(drawn.std() - 1) < 0.07
    for column in (3, 4):
        drawn = warps[on[:, column], column]
        assert np.abs(drawn).max() <= np.pi and abs(drawn.std() - np.pi / np.sqrt(3)) < 0.09
