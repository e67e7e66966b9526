"""Pictures as arrays: decoding, colour channels, resizing. Every array is uint8 [h, w, c].

A picture with transparency is laid on white. Sixteen-bit grey is scaled to eight bits. Resizing halves by
2x2 means while the picture is at least twice too large and then takes one antialiased bicubic step, the
usual preparation of ImageNet-64 (Source: arXiv:2105.05233, published code).
"""

import io
import struct
import zlib

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxdiff.data.config import Crop

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on a file that it cannot read."""


class BrokenImageError(ValueError):
    """A file that is not a readable image. The message is one line that begins with the file's name."""


def broken(name: str, error: Exception) -> BrokenImageError:
    """The error for the file `name`, with what Pillow or the system said of it."""
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    return BrokenImageError(f"{name} cannot be read ({reason}): remove it, or skip such files with --data.skip-broken")


def decode(encoded: bytes, name: str) -> UInt8[np.ndarray, "h w c"]:
    """uint8 [h, w, c] with c = 1 or 3: the picture in `encoded` (PNG, JPEG, ...), upright by its EXIF tag.

    Raises BrokenImageError with `name` where `encoded` is no picture, or is cut off.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return to_array(ImageOps.exif_transpose(image))
    except BROKEN as error:
        raise broken(name, error) from error


def to_array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """uint8 [h, w, 1] of a grey picture, uint8 [h, w, 3] of any other; raises ValueError for float pixels."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("pixels beyond 16 bits; save it with 8 or 16 bits")
        return ((wide + 128) // 257).astype(np.uint8)[..., None]
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        grey = image.mode in ("LA", "La", "L", "1")
        flat = Image.alpha_composite(white, image.convert("RGBA"))
        return np.atleast_3d(np.asarray(flat.convert("L" if grey else "RGB")))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def with_channels(image: UInt8[np.ndarray, "h w c"], channels: int) -> UInt8[np.ndarray, "h w c2"]:
    """The picture with 1 or 3 channels: RGBA is laid on white, grey is BT.601's luma of RGB."""
    if image.shape[2] == 4:
        image = to_array(Image.fromarray(image))
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def resize(image: UInt8[np.ndarray, "h w c"], height: int, width: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The picture, of 1 or 3 channels, at height x width pixels."""
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.reduce(2)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(height, width, image.shape[2])


def fit(image: UInt8[np.ndarray, "h w c"], size: int, crop: Crop) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The picture scaled for `crop`: [size, size, c], but with `random` only its short side is `size`."""
    height, width = image.shape[:2]
    if crop == "none":
        return resize(image, size, size)
    scale = size / min(height, width)
    tall, wide = max(size, round(height * scale)), max(size, round(width * scale))
    image = resize(image, tall, wide)
    return image if crop == "random" else window(image, size, 0.5)


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
