"""Builds a captioned set from the five folders of TensorFlow's flower photos: what flower it is, and of what colour.

Usage, from the root of the repository:

    python scripts/make_flower_captions.py flowers.zip flowers_text.zip

The archive read holds images/daisy, dandelion, roses, sunflowers and tulips. That written holds the same files and a
metadata.jsonl: file_name, text ("a photo of a yellow tulip"), label (the folder). Nobody named the colours: they are
the most frequent among the pixels of a photo's middle that are neither leaf, sky nor shade, and are left out where no
colour has a tenth of them ("a photo of a tulip").
"""

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from make_emoji_captions import save
from PIL import Image

FLOWERS = {
    "daisy": "daisy",
    "dandelion": "dandelion",
    "roses": "rose",
    "sunflowers": "sunflower",
    "tulips": "tulip",
}

LEAST = 0.1
"""The share of the middle that a colour must have to be named."""


def colours(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Which pixels, [..., 3] of 8 bits, have each colour that a flower may have."""
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float32)
    hue, saturation, value = hsv[..., 0] * 360 / 256, hsv[..., 1] / 255, hsv[..., 2] / 255
    vivid = (saturation > 0.35) & (value > 0.35)
    pale = (saturation > 0.12) & (value > 0.55)
    reddish = (hue < 16) | (hue >= 335)
    return {
        "white": (saturation <= 0.15) & (value > 0.7),
        "yellow": vivid & (hue >= 42) & (hue < 66) & (value > 0.55),
        "orange": vivid & (hue >= 16) & (hue < 42) & (value > 0.6),
        "red": vivid & reddish & (saturation > 0.65),
        "pink": pale & (reddish & (saturation <= 0.65) | (hue >= 310) & (hue < 335)),
        "purple": pale & (hue >= 255) & (hue < 310),
    }


def colour_of(pixels: np.ndarray) -> str | None:
    """The most frequent colour of the middle of a photo, [h, w, 3] of 8 bits; None where none is frequent."""
    h, w = pixels.shape[:2]
    middle = np.ascontiguousarray(pixels[h // 6 : h - h // 6, w // 6 : w - w // 6])
    shares = {name: float(found.mean()) for name, found in colours(middle).items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= LEAST else None


def text_of(flower: str, colour: str | None) -> str:
    """The caption."""
    words = f"{colour} {flower}" if colour else flower
    return f"a photo of {'an' if words[0] in 'aeiou' else 'a'} {words}"


def build(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The files of the new archive by name. Raises: ValueError where a folder is missing."""
    files, lines = {}, []
    for name in sorted(archive.namelist()):
        folder = Path(name).parent.name
        if folder not in FLOWERS or not name.endswith(".jpg"):
            continue
        files[name] = archive.read(name)
        with Image.open(io.BytesIO(files[name])) as image:
            colour = colour_of(np.asarray(image.convert("RGB")))
        line = {"file_name": name, "text": text_of(FLOWERS[folder], colour), "label": FLOWERS[folder]}
        lines.append(json.dumps(line) + "\n")
    missing = [folder for folder in FLOWERS if not any(Path(name).parent.name == folder for name in files)]
    if missing:
        raise ValueError(f"no .jpg in the folders {', '.join(missing)}")
    return {"metadata.jsonl": "".join(lines).encode()} | files


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a captioned set of flower photos.")
    parser.add_argument("flowers", type=Path, help="a .zip of photos in five folders")
    parser.add_argument("out", type=Path, help="file to write, a .zip")
    args = parser.parse_args()
    if args.out.suffix != ".zip":
        sys.exit(f"{args.out} must end in .zip")
    with zipfile.ZipFile(args.flowers) as archive:
        files = build(archive)
    save(args.out, files)
    print(f"{len(files) - 1} photos, {args.out.stat().st_size} bytes: {args.out}")


if __name__ == "__main__":
    main()
