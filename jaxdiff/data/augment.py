"""EDM's non-leaky augmentation: geometric transformations whose parameters the network is told.

Each of five transformations is applied with probability p; mirroring is applied always, as in the paper, so a run
that augments needs no flip of its own. Where one is not applied its parameters, and so its labels, are zero.
The network samples clean images under the label 0.

| transformation | matrix, x to the right and y downwards from the centre | parameters | labels |
|---|---|---|---|
| x-flip | scale (1 - 2 a0, 1) | a0 in {0, 1} | a0 |
| y-flip | scale (1, 1 - 2 a1) | a1 in {0, 1} | a1 |
| scaling | scale by 2^(a2 / 5) | a2 ~ N(0, 1) | a2 |
| rotation | rotate by -a3 | a3 ~ U(-pi, pi) | cos a3 - 1, sin a3 |
| anisotropy | scale by 2^(a5 / 5) along the direction a4, by 2^(-a5 / 5) across it | a4 ~ U(-pi, pi), a5 ~ N(0, 1) | a5 cos a4, a5 sin a4 |
| translation | shift by (a6, a7) / 8 of the width and height | a6, a7 ~ N(0, 1) | a6, a7 |

Source: arXiv:2206.00364, App. F.2. The paper resamples with a wavelet filter at twice the resolution; here one bicubic
step does it.
"""  # noqa: E501

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

LABELS = 9
"""Length of the label."""


class Warp(NamedTuple):
    """The parameters a0..a7 of one image's transformation; all zero is none."""

    x_flip: int = 0
    y_flip: int = 0
    scale: float = 0.0
    angle: float = 0.0
    direction: float = 0.0
    stretch: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0


Image8OrFloat = UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]
"""Of 8 bits, or of more as float32 in [-1, 1]."""


def augment(rng: np.random.Generator, image: Image8OrFloat, p: float) -> tuple[Image8OrFloat, Float32[np.ndarray, "9"]]:
    """A transformed image of the same shape and its label; p in [0, 1], and p = 0 changes nothing."""
    warp = draw(rng, p)
    return transform(image, warp), label(warp)


def draw(rng: np.random.Generator, p: float) -> Warp:
    """Draws the parameters: mirroring with probability 1/2, every other transformation with probability p."""
    if p == 0:
        return Warp()
    x_flip, y_flip = (int(bit) for bit in rng.integers(0, 2, 2))
    flips, scales, rotates, stretches, shifts = (bool(on) for on in rng.random(5) < p)
    angle, direction = rng.uniform(-np.pi, np.pi, 2).tolist()
    scale, stretch, shift_x, shift_y = rng.standard_normal(4).tolist()
    return Warp(
        x_flip=x_flip,
        y_flip=y_flip * flips,
        scale=scale * scales,
        angle=angle * rotates,
        direction=direction * stretches,
        stretch=stretch * stretches,
        shift_x=shift_x * shifts,
        shift_y=shift_y * shifts,
    )


def label(warp: Warp) -> Float32[np.ndarray, "9"]:
    """The nine numbers that the network is told; zero for no transformation."""
    return np.array(
        [
            warp.x_flip,
            warp.y_flip,
            warp.scale,
            np.cos(warp.angle) - 1,
            np.sin(warp.angle),
            warp.stretch * np.cos(warp.direction),
            warp.stretch * np.sin(warp.direction),
            warp.shift_x,
            warp.shift_y,
        ],
        np.float32,
    )


def transform(image: Image8OrFloat, warp: Warp) -> Image8OrFloat:
    """The transformed image. What comes from outside the frame is the image's mirror image."""
    image = image[:: 1 - 2 * warp.y_flip, :: 1 - 2 * warp.x_flip]
    if warp._replace(x_flip=0, y_flip=0) == Warp():
        return image
    height, width = image.shape[:2]
    centre = np.array([width, height]) / 2
    linear = rotation(warp.direction) @ np.diag(2.0 ** (np.array([1, -1]) * warp.stretch / 5))
    linear = linear @ rotation(-warp.direction) @ rotation(-warp.angle) * 2.0 ** (warp.scale / 5)
    inverse = np.linalg.inv(linear)
    shift = np.array([warp.shift_x * width, warp.shift_y * height]) / 8

    # where each output point comes from: inverse @ (point - centre - shift) + centre
    offset = centre - inverse @ (centre + shift)
    corners = np.array([[0, 0, width, width], [0, height, 0, height]])
    reach = inverse @ corners + offset[:, None]
    beyond = np.maximum(-reach.min(axis=1), reach.max(axis=1) - 2 * centre)
    pad_x, pad_y = np.maximum(np.ceil(beyond).astype(int) + 2, 2).tolist()  # 2: the bicubic kernel

    padded = np.pad(image, ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="reflect")
    rows = np.column_stack([inverse, offset + np.array([pad_x, pad_y])]).ravel().tolist()
    bicubic = Image.Resampling.BICUBIC
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(padded, -1, 0)]
    turned = [p.transform((width, height), Image.Transform.AFFINE, rows, bicubic) for p in planes]
    moved = np.stack([np.asarray(plane) for plane in turned], axis=-1)
    return moved if image.dtype == np.uint8 else np.clip(moved, -1, 1)  # the kernel overshoots; 8 bits are clipped


def rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    """The matrix [[cos, -sin], [sin, cos]] of an angle in radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
