"""The pictures of `jaxdiff anomaly`: maps as colours, and rows of image, reconstruction and map."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

BRIGHTEST = 0.999
"""The quantile of all maps' values that is shown brightest."""


def heat(maps: Float[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """The maps as colours from black (no difference) on; one scale for all."""
    from matplotlib import colormaps

    top = float(np.quantile(maps, BRIGHTEST)) or 1.0
    coloured = colormaps["inferno"](np.clip(maps / top, 0, 1))[..., :3]
    return np.round(255 * coloured).astype(np.uint8)


def rows_page(
    images: UInt8[np.ndarray, "n h w c"],
    rebuilt: UInt8[np.ndarray, "n h w c"],
    maps: UInt8[np.ndarray, "n h w 3"],
    titles: Sequence[str],
) -> bytes:
    """A PNG of three rows: the images with their titles, their reconstructions, the maps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(images)
    figure = Figure(figsize=(1.2 * count, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (name, pictures) in enumerate({"image": images, "reconstruction": rebuilt, "map": maps}.items()):
        for column, picture in enumerate(pictures):
            axis = figure.add_subplot(3, count, row * count + column + 1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            if column == 0:
                axis.set_ylabel(name, fontsize=8)
            if row == 0:
                axis.set_title(titles[column], fontsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    return drawn.getvalue()
