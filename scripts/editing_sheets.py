"""The pictures of docs/editing.md: commands with the model that ships, and sheets of what comes of them.

python scripts/editing_sheets.py OUT [NAME ...]        all sheets, or these, to docs/editing_NAME.png

What is edited are emoji of the embedded set, which the model has seen, and a drawing that it has not. Nothing is
chosen: the seeds are the commands' own.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

from jaxdiff.commands import edit
from jaxdiff.data.arrays import open_emoji

DOCS = Path(__file__).parents[1] / "docs"
Row = tuple[str, list[np.ndarray]]


def emoji(caption: str) -> np.ndarray:
    """The embedded picture with this caption."""
    source = open_emoji()
    return np.asarray(source.images[source.text.index(caption)])


def save(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def mask(out: Path, name: str, left: int, top: int, right: int, bottom: int) -> Path:
    """A mask, white in a rectangle."""
    picture = np.zeros((32, 32), np.uint8)
    picture[top:bottom, left:right] = 255
    return save(picture, out / f"{name}.png")


def run(out: Path, *args: object) -> list[np.ndarray]:
    """The results of a command."""
    if not (out / "info.json").exists():
        edit.main(["emoji", "--out", str(out), *map(str, args)])
    return [np.asarray(Image.open(p).convert("RGB")) for p in sorted((out / "images").iterdir())]


def drawing(out: Path) -> Path:
    """A face with a hat in five strokes, which no set has."""
    large = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(large)
    draw.ellipse((40, 60, 216, 236), fill=(250, 200, 60))
    draw.rectangle((30, 40, 226, 90), fill=(40, 70, 160))
    for x in (95, 160):
        draw.ellipse((x - 12, 120, x + 12, 150), fill=(60, 40, 30))
    draw.arc((90, 140, 166, 205), 20, 160, fill=(60, 40, 30), width=12)
    return save(np.asarray(large.resize((32, 32), Image.Resampling.BOX)), out / "drawing.png")


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def masked(image: np.ndarray, file: Path) -> np.ndarray:
    """The picture, grey where it is to be made anew."""
    hole = np.asarray(Image.open(file).convert("L"))[..., None] >= 128
    return np.where(hole, np.uint8(150), image)


def sheet(name: str, rows: list[Row]) -> None:
    """Rows of pictures with words on their left, on one canvas."""
    wide = max(sum(p.shape[1] + 2 for p in row) for _, row in rows)
    high = [max(p.shape[0] for p in row) + 2 for _, row in rows]
    canvas = np.full((sum(high), wide, 3), 255, np.uint8)
    top = 0
    for (_, row), h in zip(rows, high, strict=True):
        left = 0
        for picture in row:
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += picture.shape[1] + 2
        top += h
    scale = 2
    labels = 210
    figure, axes = plt.subplots(figsize=((labels + scale * wide) / 100, scale * sum(high) / 100), dpi=100)
    figure.subplots_adjust(left=labels / (labels + scale * wide), right=1, top=1, bottom=0)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.axis("off")
    top = 0
    for (words, _), h in zip(rows, high, strict=True):
        axes.text(-4, top + h / 2, words, ha="right", va="center", fontsize=8)
        top += h
    figure.savefig(DOCS / f"editing_{name}.png")
    plt.close(figure)


def strength(out: Path) -> list[Row]:
    image, rows = drawing(out), []
    for value in (0.3, 0.5, 0.7, 0.9):
        args = ("--image", image, "--prompt", "smiling face with hat", "--strength", value, "--num", 6)
        rows.append((f"--strength {value}", [read(image), *run(out / f"strength{value}", *args)]))
    return rows


def inpaint(out: Path) -> list[Row]:
    rows = []
    for caption, box in (
        ("grinning cat", (0, 16, 32, 32)),
        ("woman astronaut", (6, 2, 26, 16)),
        ("red heart", (16, 0, 32, 32)),
    ):
        image = save(emoji(caption), out / f"{caption}.png")
        hole = mask(out, f"hole {caption}", *box)
        for method in ("replace", "repaint(jump=10, times=5)"):
            args = ("--image", image, "--mask", hole, "--prompt", caption, "--method", method, "--num", 6)
            made = run(out / f"inpaint {caption} {method.split('(')[0]}", *args)
            rows.append((f"{caption}: {method.split('(')[0]}", [read(image), masked(read(image), hole), *made]))
    return rows


def words(out: Path) -> list[Row]:
    rows = []
    for source, targets in (
        ("waving hand", ("waving hand: dark skin tone", "waving hand: light skin tone", "raised fist")),
        ("woman astronaut", ("woman astronaut: dark skin tone", "man astronaut", "woman firefighter")),
    ):
        image = save(emoji(source), out / f"{source}.png")
        for method in ("ddim-inversion", "ddpm-inversion", "prompt-to-prompt"):
            made = [read(image)]
            for target in (source, *targets):
                args = ("--image", image, "--source-prompt", source, "--prompt", target, "--method", method, "--num", 1)
                made += run(out / f"words {source} {target} {method}", *args)
            rows.append((f"{source}: {method}", made))
    return rows


def between(out: Path) -> list[Row]:
    rows = []
    for first, second in (
        ("woman astronaut", "man astronaut"),
        ("grinning face", "grinning cat"),
        ("red heart", "star"),
    ):
        files = [save(emoji(caption), out / f"{caption}.png") for caption in (first, second)]
        args = ("--image", files[0], "--image2", files[1], "--num", 9)
        rows.append((f"{first}\nto {second}", [*map(read, files), *run(out / f"between {first}", *args)]))
    image = drawing(out)
    for factor in (16, 8, 4):
        args = ("--image", image, "--method", f"ilvr(factor={factor})", "--num", 6, "--prompt", "face with hat")
        rows.append((f"ilvr(factor={factor})", [read(image), *run(out / f"ilvr{factor}", *args)]))
    return rows


def wide(out: Path) -> list[Row]:
    rows = []
    for prompt in ("red heart", "waving hand: medium skin tone"):
        args = ("--prompt", prompt, "--num", 1)
        rows.append((f"--canvas 32 192\n{prompt}", run(out / f"canvas {prompt}", *args, "--canvas", 32, 192)))
        tile = run(out / f"tile {prompt}", *args, "--canvas", 32, 64, "--seamless")
        rows.append((f"--canvas 32 64 --seamless\n{prompt}, three times", [np.concatenate(tile * 3, axis=1)]))
    return rows


SHEETS: Mapping[str, Callable[[Path], list[Row]]] = {
    "strength": strength,
    "inpaint": inpaint,
    "words": words,
    "between": between,
    "wide": wide,
}


def main(out: Path, *names: str) -> None:
    for name in names or SHEETS:
        sheet(name, SHEETS[name](out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
