"""Decoding, colour and resizing."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.images import BrokenImageError, decode, fit, resize, unfit, window, with_channels
from jaxdiff.data.units import Window

RNG = np.random.default_rng(0)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def test_grey_and_colour_are_returned_unchanged():
    grey, colour = noise(5, 7), noise(5, 7, 3)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(grey)), "g")[..., 0], grey)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(colour)), "c"), colour)


def test_transparency_is_laid_on_white():
    """alpha * colour + (1 - alpha) * 255"""
    rgba = noise(16, 16, 4)
    alpha = rgba[..., 3:] / 255
    expected = alpha * rgba[..., :3] + (1 - alpha) * 255
    assert np.abs(decode(encode(Image.fromarray(rgba)), "x") - expected).max() <= 1
    assert np.abs(with_channels(rgba, 3) - expected).max() <= 1
    grey = Image.fromarray(rgba).convert("LA")
    flat = decode(encode(grey), "x")
    assert flat.shape == (16, 16, 1)
    luminance = np.asarray(grey.convert("L"))[..., None]
    assert np.abs(flat - (alpha * luminance + (1 - alpha) * 255)).max() <= 1


def test_palettes_become_colours():
    colour = np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 4, axis=0)
    picture = Image.fromarray(colour).quantize(2)
    np.testing.assert_array_equal(decode(encode(picture), "x"), colour)
    red = int(np.asarray(picture)[0, 0])
    transparent = decode(encode(picture, transparency=red), "x")
    assert (transparent[:, 0] == 255).all() and (transparent[:, 1] == (0, 0, 255)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_more_than_eight_bits_need_a_window_and_keep_them(kind, refused):
    """4,096 values stay 4,096: no file says whether its white is 4095 or 65535."""
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    encoded = encode(Image.fromarray(values), kind)
    message = refused(BrokenImageError, decode, encoded, "chest.png")
    assert message.startswith("chest.png ") and "more than 8 bits" in message and "--data.window" in message
    decoded = decode(encoded, "x", Window(0, 4095))
    assert decoded.dtype == np.float32 and decoded.shape == (64, 64, 1)
    np.testing.assert_array_equal(np.round((decoded[..., 0] + 1) / 2 * 4095), values)
    assert len(np.unique(decoded)) == 4096
    assert decode(encoded, "x", Window(1000, 2000)).min() == -1


def test_floats_have_a_window_and_no_nan(refused):
    values = np.linspace(-3, 3, 64, dtype=np.float32).reshape(8, 8)
    found = decode(encode(Image.fromarray(values), "TIFF"), "x", Window(-4, 4))
    np.testing.assert_allclose(found[..., 0] * 4, values, atol=1e-6)
    values[2, 5] = np.nan
    message = refused(BrokenImageError, decode, encode(Image.fromarray(values), "TIFF"), "x.tif", Window(-4, 4))
    assert "x.tif" in message and "NaN" in message and "[2, 5]" in message


def test_eight_bits_have_no_window(refused):
    for picture in (noise(4, 4), noise(4, 4, 3)):
        message = refused(BrokenImageError, decode, encode(Image.fromarray(picture)), "x.png", Window(0, 4095))
        assert "8 bits" in message and "--data.window" in message


def test_a_photograph_is_turned_upright():
    colour, exif = noise(4, 6, 3), Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    decoded = decode(encode(Image.fromarray(colour), exif=exif), "x")
    np.testing.assert_array_equal(decoded, np.rot90(colour, -1))


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"these are words", "not an image"),
        (b"", "not an image"),
        (encode(Image.fromarray(noise(40, 40, 3)))[:-500], "truncated"),
        (encode(Image.fromarray(noise(40, 40, 3)), "JPEG")[:-500], "truncated"),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_a_broken_file_is_refused_by_name(encoded, reason, refused):
    message = refused(BrokenImageError, decode, encoded, "some/file.png")
    assert message.startswith("some/file.png ") and reason in message
    assert "--data.skip-broken" in message


def test_channels_are_converted_both_ways():
    grey = noise(6, 6, 1)
    colour = with_channels(grey, 3)
    assert colour.shape == (6, 6, 3) and (colour == grey).all()
    np.testing.assert_array_equal(with_channels(colour, 1), grey)
    rgb = noise(6, 6, 3)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(with_channels(rgb, 1)[..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(with_channels(rgb, 3), rgb)


@pytest.mark.parametrize("channels", [1, 3])
def test_halving_is_the_mean_of_four_pixels(channels):
    image = noise(8, 12, channels)
    means = image.reshape(4, 2, 6, 2, channels).mean(axis=(1, 3))
    assert np.abs(resize(image, 4, 6) - means).max() <= 0.5


@pytest.mark.parametrize("shape", [(5, 9), (16, 16), (40, 23), (7, 40)])
def test_resizing_keeps_a_flat_picture_flat_and_a_ramp_a_ramp(shape):
    assert (resize(np.full((16, 16, 3), 77, np.uint8), *shape) == 77).all()
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3 + 20, (64, 64, 1))
    centres = (np.arange(shape[1]) + 0.5) * 64 / shape[1] - 0.5
    inside = (centres > 12) & (centres < 52)
    out = resize(np.ascontiguousarray(ramp), *shape)[..., 0]
    assert np.abs(out - (3 * centres + 20))[:, inside].max() <= 1.5


def test_fit_makes_squares():
    left, middle, right = noise(8, 4, 3), noise(8, 8, 3), noise(8, 6, 3)
    wide = np.concatenate([left, middle, right], axis=1)
    np.testing.assert_array_equal(fit(wide[:, :16], 8, "center"), wide[:, 4:12])
    assert fit(wide, 4, "random").shape == (4, 9, 3)
    assert fit(wide, 4, "none").shape == (4, 4, 3)
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(fit(tall[:16], 8, "center"), tall[4:12])
    assert fit(noise(1000, 3, 1), 4, "center").shape == (4, 4, 1)


def test_a_window_reaches_both_ends():
    wide = noise(4, 9, 3)
    np.testing.assert_array_equal(window(wide, 4, 0.0), wide[:, :4])
    np.testing.assert_array_equal(window(wide, 4, 1.0), wide[:, 5:])
    np.testing.assert_array_equal(window(wide[:, :4], 4, 0.7), wide[:, :4])


def test_floats_are_resized_as_bytes_are():
    picture = 64 + noise(40, 30, 1) // 2  # so that nothing is clipped on the way
    deep = (picture / 127.5 - 1).astype(np.float32)
    for shape in ((10, 7), (16, 16), (50, 60)):
        both = resize(picture, *shape), resize(deep, *shape)
        assert both[1].dtype == np.float32 and np.abs(both[1]).max() <= 1
        assert np.abs(127.5 * (both[1] + 1) - both[0]).max() <= 2  # bytes are rounded after every step
    assert with_channels(deep, 3).shape == (40, 30, 3)


@pytest.mark.parametrize("crop", ["center", "none"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 16), (12, 20), (8, 8)])
def test_what_is_laid_back_fits_again(height, width, crop):
    """A smooth square laid back on its picture and fitted again is the square."""
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 8), np.linspace(-0.5, 0.5, 8))
    square = (0.3 * x + 0.5 * y + 0.2).astype(np.float32)[..., None]
    laid = unfit(square, height, width, crop)
    assert laid.shape == (height, width, 1)
    inside = np.s_[1:-1, 1:-1]  # at the border bicubic steps see what was cut
    np.testing.assert_allclose(fit(laid, 8, crop)[inside], square[inside], atol=0.03)
    if crop == "center" and height == 2 * width:
        assert np.all(laid[: height // 8] == 0) and np.all(laid[-height // 8 :] == 0)
