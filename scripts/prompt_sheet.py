"""Prompts and their samples, a row for each: the figures of docs/text-to-image.md.

python sample.py RUN --prompts prompts.txt --out OUT --num 8
python scripts/prompt_sheet.py OUT figure.png [COLUMNS]
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

EACH = 8
"""Samples in a row."""


def main(out: Path, figure: Path, columns: int = 2) -> None:
    folders = sorted(p for p in out.iterdir() if (p / "info.json").exists())
    rows = []
    for folder in folders:
        images = [np.asarray(Image.open(p).convert("RGB")) for p in sorted((folder / "images").iterdir())[:EACH]]
        rows.append((json.loads((folder / "info.json").read_text())["prompt"], np.concatenate(images, axis=1)))
    height, width = rows[0][1].shape[:2]
    lines = -(-len(rows) // columns)
    size = (columns * width / 52, lines * (height + 14) / 52)
    plot, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for place in axes.T.flat:
        place.axis("off")
    for place, (prompt, image) in zip(axes.T.flat, rows, strict=False):
        place.imshow(image, interpolation="nearest")
        place.set_title(prompt, fontsize=8, loc="left", pad=2)
    plot.savefig(figure, dpi=104)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
