"""Pictures as arrays: decoding, colour channels, resizing. Every array is uint8 [h, w, c], or float32 in [-1, 1].

A picture with transparency is laid on white. Grey of more than eight bits keeps them, as float32 by a window of its
values, which must be said: nobody knows whether the white of a file of 16 bits is 4095 or 65535. Resizing halves by
2x2 means while the picture is at least twice too large and then takes one antialiased bicubic step, the
usual preparation of ImageNet-64 (Source: arXiv:2105.05233, published code).
"""

import io
import struct
import zlib

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdiff.data.config import Crop
from jaxdiff.data.units import Window, check_finite, to_network

Pixels = UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]
Others = UInt8[np.ndarray, "h2 w2 c2"] | Float32[np.ndarray, "h2 w2 c2"]
"""Pixels of another size or with other channels."""

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on a file that it cannot read."""


class BrokenImageError(ValueError):
    """A file that is not a readable image. The message is one line that begins with the file's name."""


def broken(name: str, error: Exception) -> BrokenImageError:
    """The error for the file `name`, with what Pillow or the system said of it."""
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return BrokenImageError(f"{name} cannot be read ({reason}): remove it, or skip such files with --data.skip-broken")


def decode(encoded: bytes, name: str, window: Window | None = None) -> Pixels:
    """[h, w, c] with c = 1 or 3: the picture in `encoded` (PNG, JPEG, ...), upright by its EXIF tag.

    uint8, or with a `window`, which only grey pictures of more than eight bits have, float32 in [-1, 1].
    Raises BrokenImageError with `name` where `encoded` is no picture, is cut off, or has more bits and no window.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            upright = ImageOps.exif_transpose(image)
            return to_array(upright) if window is None else deep_array(upright, window)
    except BROKEN as error:
        raise broken(name, error) from error


def is_deep(image: Image.Image) -> bool:
    """Whether pixels have more than eight bits."""
    return image.mode in ("F", "I") or image.mode.startswith("I;")


def deep_array(image: Image.Image, window: Window) -> Float32[np.ndarray, "h w 1"]:
    """float32 in [-1, 1] of a grey picture of more than eight bits. Raises: ValueError for others, and for NaN."""
    if not is_deep(image):
        raise ValueError("it has 8 bits, and a window (--data.window) is for grey images of more")
    values = np.asarray(image)
    if image.mode == "F":
        check_finite(values)
    return to_network(values, window)[..., None]


def to_array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """uint8 [h, w, 1] of a grey picture, uint8 [h, w, 3] of any other; raises ValueError for more than eight bits."""
    if is_deep(image):
        bits = "floating-point pixels" if image.mode == "F" else "more than 8 bits"
        raise ValueError(f"it has {bits}: say which values are black and white, such as --data.window 0 65535")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        grey = image.mode in ("LA", "La", "L", "1")
        flat = Image.alpha_composite(white, image.convert("RGBA"))
        return np.atleast_3d(np.asarray(flat.convert("L" if grey else "RGB")))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def with_channels(image: Pixels, channels: int) -> Others:
    """The picture with 1 or 3 channels: RGBA is laid on white, grey is BT.601's luma of RGB."""
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 4:
        return with_channels(to_array(Image.fromarray(image)), channels)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def resize(image: Pixels, height: int, width: int) -> Others:
    """The picture, of 1 or 3 channels, at height x width pixels."""
    if image.shape[:2] == (height, width):
        return image
    if image.dtype != np.uint8:
        planes = [_resized(Image.fromarray(plane), height, width) for plane in np.moveaxis(image, 2, 0)]
        return np.clip(np.stack(planes, axis=2), -1, 1)  # bicubic steps overshoot at edges
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return _resized(picture, height, width).reshape(height, width, image.shape[2])


def _resized(picture: Image.Image, height: int, width: int) -> Shaped[np.ndarray, "..."]:
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.reduce(2)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def fit(image: Pixels, size: int, crop: Crop) -> Others:
    """The picture scaled for `crop`: [size, size, c], but with `random` only its short side is `size`."""
    height, width = image.shape[:2]
    if crop == "none":
        return resize(image, size, size)
    scale = size / min(height, width)
    tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
    image = resize(image, tall, wide)
    return image if crop == "random" else window(image, size, 0.5)


def unfit(image: Float32[np.ndarray, "h w c"], height: int, width: int, crop: Crop) -> Float32[np.ndarray, "h2 w2 c"]:
    """A square image laid back on the picture of height x width pixels that was fitted to it; 0 where that was cut."""
    size = image.shape[0]
    if crop != "none":
        scale = size / min(height, width)
        tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
        top, left = round(0.5 * (tall - size)), round(0.5 * (wide - size))
        image = np.pad(image, ((top, tall - size - top), (left, wide - size - left), (0, 0)))
    if image.shape[:2] == (height, width):
        return image
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, 2, 0)]
    resized = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return np.stack(resized, axis=2)


def lowered(image: UInt8[np.ndarray, "h w c"], side: int) -> UInt8[np.ndarray, "h w c"]:
    """The square picture shrunk to side x side pixels, and as large as it was again."""
    return resize(resize(np.ascontiguousarray(image), side, side), *image.shape[:2])


def noisy(rng: np.random.Generator, image: UInt8[np.ndarray, "h w c"], most: float) -> UInt8[np.ndarray, "h w c"]:
    """The picture with noise of a standard deviation from 0 to `most`, in units of half the range: conditioning
    augmentation, by which a network learns not to trust the picture's every pixel. Source: arXiv:2106.15282, Sec. 4.
    """
    if not most:
        return image
    std = 127.5 * rng.uniform(0, most)
    return np.clip(np.round(image + std * rng.standard_normal(image.shape)), 0, 255).astype(np.uint8)


def window(image: Shaped[np.ndarray, "h w c"], size: int, where: float) -> Shaped[np.ndarray, "size size c"]:
    """A size x size window of the picture, or of latents; `where` in [0, 1] runs from its first to its last place."""
    top = round(where * (image.shape[0] - size))
    left = round(where * (image.shape[1] - size))
    return image[top : top + size, left : left + size]
