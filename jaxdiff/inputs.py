"""The pictures and masks that a command is given: read, checked, brought to the size that a network takes.

A mask is white (from 128 of 255 on) where the picture is to be made anew.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8
from PIL import Image

from jaxdiff.data.files import SUFFIXES
from jaxdiff.data.images import BrokenImageError, decode, resize, with_channels

Picture = UInt8[np.ndarray, "h w c"]
Mask = Bool[np.ndarray, "h w"]

Fit = Literal["none", "crop", "pad", "squeeze", "windows"]
"""How a picture of another size is met: refused; scaled and cut; scaled and framed in white; scaled unevenly; left as
it is, and edited in windows."""

WHITE = 128
"""The least grey value of a mask that counts as white."""


class Given(NamedTuple):
    """A picture as it was given."""

    file: str
    sha256: str
    """Of the file."""
    image: Picture


class Margins(NamedTuple):
    """Pixels that are added around a picture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


class Prepared(NamedTuple):
    """A picture as it is worked on, and where it is to be made anew."""

    image: Picture
    mask: Mask | None


def read_pictures(path: epath.PathLike, channels: int, flag: str) -> list[Given]:
    """The picture in a file, or those in a folder in the order of their names.

    Raises: FileNotFoundError or ValueError, one line that names the flag.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path} ({flag})")
    files = [path]
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: p.name)
        if not files:
            raise ValueError(f"{path} has no images: {', '.join(sorted(SUFFIXES))} ({flag})")
    return [read_picture(file, channels, flag) for file in files]


def read_picture(file: epath.Path, channels: int, flag: str) -> Given:
    """A picture with 1 or 3 channels, without loss but for transparency, which is laid on white.

    Raises: ValueError for what is no picture, or would lose colours or bits.
    """
    encoded = file.read_bytes()
    if has_deep_pixels(encoded):
        raise ValueError(f"{file} has pixels of 16 bits, which would be cut to 8: save it with 8 bits ({flag})")
    try:
        image = decode(encoded, str(file))
    except BrokenImageError as error:
        raise ValueError(f"{str(error).split(': remove it')[0]} ({flag})") from error
    if channels == 1 and image.shape[2] == 3:
        if not (image == image[..., :1]).all():
            raise ValueError(f"{file} has colours, and this network makes grey pictures: convert it first ({flag})")
        image = image[..., :1]
    return Given(str(file), hashlib.sha256(encoded).hexdigest(), with_channels(image, channels))


def is_png(encoded: bytes) -> bool:
    """Whether these bytes begin as a PNG."""
    return encoded[:8] == b"\x89PNG\r\n\x1a\n"


def has_deep_pixels(encoded: bytes) -> bool:
    """Whether this is a PNG of 16 bits."""
    return is_png(encoded) and encoded[24] == 16


def has_deep_colours(encoded: bytes) -> bool:
    """Whether this is a PNG of 16-bit colours, of which Pillow keeps the upper eight bits."""
    return is_png(encoded) and encoded[24:26] in (b"\x10\x02", b"\x10\x06")


def read_masks(path: epath.PathLike, pictures: Sequence[Given]) -> list[Mask]:
    """A mask for each picture: one file for all of them, or a folder with a file of each one's name.

    Raises: FileNotFoundError or ValueError for a mask of another size than its picture, or without white.
    """
    path = epath.Path(path)
    if not path.is_dir():
        return [read_mask(path, picture) for picture in pictures]
    stems = {p.stem: p for p in path.iterdir() if p.suffix.lower() in SUFFIXES}
    found = []
    for picture in pictures:
        name = epath.Path(picture.file).stem
        if name not in stems:
            raise FileNotFoundError(f"{path} has no mask named {name} (--mask)")
        found.append(read_mask(stems[name], picture))
    return found


def read_mask(file: epath.Path, picture: Given) -> Mask:
    """The mask of a picture. Raises: FileNotFoundError or ValueError."""
    if not file.exists():
        raise FileNotFoundError(f"there is no file {file} (--mask)")
    try:
        image = with_channels(decode(file.read_bytes(), str(file)), 1)[..., 0]
    except BrokenImageError as error:
        raise ValueError(f"{str(error).split(': remove it')[0]} (--mask)") from error
    if image.shape != picture.image.shape[:2]:
        raise ValueError(
            f"the mask {file} is {size_of(image)} pixels and the picture {picture.file} {size_of(picture.image)}: "
            "both must have one size (--mask)"
        )
    if not (image >= WHITE).any():
        raise ValueError(f"the mask {file} has no white, so nothing is to be made anew (--mask)")
    return image >= WHITE


def prepare(
    picture: Given, mask: Mask | None, side: int, fit: Fit = "none", margins: Margins = Margins(), flag: str = "--image"
) -> Prepared:
    """The picture, fitted, with margins that its mask takes in; `side` x `side` pixels, or with "windows" its own size.

    The margins hold the picture's edge, drawn out. Raises: ValueError where it does not fit.
    """
    if min(margins) < 0:
        raise ValueError(f"margins {tuple(margins)} are not allowed: at least 0 (--outpaint)")
    height, width = (side - margins.top - margins.bottom, side - margins.left - margins.right)
    if fit == "windows":
        height, width = picture.image.shape[:2]
    if min(height, width) < 1:
        raise ValueError(f"margins {tuple(margins)} leave nothing of {side} x {side} pixels (--outpaint)")
    if fit == "none" and picture.image.shape[:2] != (height, width):
        raise ValueError(
            f"{picture.file} is {size_of(picture.image)} pixels and must be {width} x {height} here: --fit crop, pad "
            f"or squeeze resizes it, --fit windows edits what is larger than {side} x {side} in windows ({flag}, --fit)"
        )
    image = fitted(picture.image, height, width, fit)
    if mask is not None:
        # What pads it is part of the picture, which stays.
        grey = fitted(255 - np.uint8(255) * mask[..., None], height, width, fit)
        mask = grey[..., 0] <= 255 - WHITE
    sides = ((margins.top, margins.bottom), (margins.left, margins.right))
    image = np.pad(image, (*sides, (0, 0)), mode="edge")
    if max(margins):
        mask = np.zeros((height, width), bool) if mask is None else mask
        mask = np.pad(mask, sides, constant_values=True)
    if mask is not None and not mask.any():
        raise ValueError(f"nothing white is left of the mask of {picture.file} (--mask, --fit)")
    if fit == "windows" and min(image.shape[:2]) < side:
        raise ValueError(
            f"{picture.file} is {size_of(image)} pixels, too small for windows of {side} x {side} ({flag}, --fit)"
        )
    return Prepared(image, mask)


def fitted(image: Picture, height: int, width: int, fit: Fit) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The picture at height x width pixels. Raises: ValueError, where `fit` is "none" or "windows", for other sizes."""
    h, w = image.shape[:2]
    if (h, w) == (height, width) or fit in ("none", "windows"):
        return image
    if fit == "squeeze":
        return resize(image, height, width)
    scale = (max if fit == "crop" else min)(height / h, width / w)
    tall, wide = max(1, round(h * scale)), max(1, round(w * scale))
    image = resize(image, tall, wide)
    top, left = round(abs(tall - height) / 2), round(abs(wide - width) / 2)
    if fit == "crop":
        return image[top : top + height, left : left + width]
    out = np.full((height, width, image.shape[2]), 255, np.uint8)
    out[top : top + tall, left : left + wide] = image
    return out


def enlarged(image: Picture, small: int, side: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """A picture of `small` x `small` pixels at side x side; of another size, or where both are one, as it is."""
    return resize(image, side, side) if small != side and image.shape[:2] == (small, small) else image


def shrunk(mask: Bool[np.ndarray, "n h w"], factor: int) -> Bool[np.ndarray, "n h2 w2"]:
    """The mask of latents: white where any pixel of a latent one is."""
    n, h, w = mask.shape
    return np.any(mask.reshape(n, h // factor, factor, w // factor, factor), axis=(2, 4))


def composited(
    made: UInt8[np.ndarray, "n h w c"], image: UInt8[np.ndarray, "n h w c"], mask: Bool[np.ndarray, "n h w"]
) -> UInt8[np.ndarray, "n h w c"]:
    """What was made where the mask is white; elsewhere the picture, bit for bit."""
    return np.where(mask[..., None], made, image)


def size_of(image: np.ndarray) -> str:
    """Width x height."""
    return f"{image.shape[1]} x {image.shape[0]}"


def grey(mask: Mask, channels: int) -> Picture:
    """The mask as a picture."""
    return np.asarray(Image.fromarray(mask).convert("L"))[..., None].repeat(channels, axis=2)
