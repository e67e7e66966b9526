"""The folder that images are written to: grid.png, images/000000.png ..., info.json.

`sample.py`, `jaxdiff edit` and `jaxdiff restore` all lay it out so.
"""

import io
import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
from etils import epath
from jaxtyping import UInt8

from jaxdiff.training import hosts
from jaxdiff.training.contact_sheet import contact_sheet, save_png

MOST_IN_GRID = 256
"""Images in grid.png."""


def prepare_out(out: epath.PathLike) -> epath.Path:
    """Makes the folder. Raises: ValueError where that cannot be."""
    out = epath.Path(out)
    try:
        if hosts.is_first():
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out {out} cannot be written: {error.strerror} (--out)") from error
    return out


def write_images(
    out: epath.Path,
    images: UInt8[np.ndarray, "n h w c"],
    info: Mapping[str, object],
    format: Literal["png", "npz"] = "png",
    sheets: Mapping[str, UInt8[np.ndarray, "_ _ _"]] = {},
) -> None:
    """Writes the images, their grid, further `sheets` by file name, and last info.json, whose presence says "whole"."""
    out.mkdir(parents=True, exist_ok=True)
    save_png(out / "grid.png", contact_sheet(images[:MOST_IN_GRID]))
    if format == "npz":
        whole = io.BytesIO()
        np.savez_compressed(whole, images=images)
        (out / "samples.npz").write_bytes(whole.getvalue())
    else:
        (out / "images").mkdir(exist_ok=True)
        for i, image in enumerate(images):
            save_png(out / "images" / f"{i:06d}.png", image)
    for name, sheet in sheets.items():
        save_png(out / name, sheet)
    (out / "info.json").write_text(json.dumps(info, indent=1) + "\n")
