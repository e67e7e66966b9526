"""Pictures side by side in one, and PNG files."""

import io
import math

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

GAP = 2
"""White pixels around each picture."""


def contact_sheet(images: UInt8[np.ndarray, "n h w c"], columns: int | None = None) -> UInt8[np.ndarray, "H W c"]:
    """n pictures in rows of `columns` (about sqrt(n) if not given), on white."""
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, c), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        sheet[top : top + h, left : left + w] = image
    return sheet


def save_png(path: epath.PathLike, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes an RGB or grey picture, under its own name only when it is whole."""
    path, encoded = epath.Path(path), io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(encoded, "PNG")
    part = path.with_suffix(".part")
    part.write_bytes(encoded.getvalue())
    part.replace(path)
