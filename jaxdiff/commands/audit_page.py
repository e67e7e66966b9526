"""The page of `jaxdiff audit`: the closest samples beside their training images, and real images beside theirs."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

Pair = tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "h w c"], float]
"""(an image, its nearest training image, their distance)."""


def pairs_page(samples: Sequence[Pair], real: Sequence[Pair], space: str) -> bytes:
    """A PNG: a row a pair, samples to the left and held-out images to the right, each beside its nearest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(len(samples), len(real))
    figure = Figure(figsize=(6.6, 1.6 * count + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    heads = ("sample", "nearest training image", "held-out image", "nearest training image")
    for row in range(count):
        pairs = [pairs[row] if row < len(pairs) else None for pairs in (samples, real)]
        for column in range(4):
            axis = figure.add_subplot(count, 4, 4 * row + column + 1)
            axis.set_axis_off()
            pair = pairs[column // 2]
            if pair is None:
                continue
            image = pair[1] if column % 2 else pair[0]
            axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            said = f"{space}: {pair[2]:.3g}" if column % 2 else ""
            axis.set_title("\n".join(t for t in ((heads[column] if row == 0 else ""), said) if t), fontsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    return drawn.getvalue()
