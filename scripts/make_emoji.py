"""Builds `jaxdiff/data/emoji.npz`, the image set that ships inside the package.

Usage, from the root of the repository, with npm's own client for the two inputs:

    npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0
    mkdir google names
    tar xzf emoji-datasource-google-16.0.0.tgz -C google
    tar xzf emojibase-data-17.0.0.tgz -C names
    python scripts/make_emoji.py google/package names/package

The set holds every emoji that has a picture, without skin tones, in Unicode's order, each distinct picture
once, composited on white and halved to 32x32. The same input gives the same bytes.
Arrays: images uint8 [n, 32, 32, 3], text str [n] (its English name), label uint8 [n], categories str [10].
"""

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
OUT = Path(__file__).resolve().parent.parent / "jaxdiff" / "data" / "emoji.npz"


def read_version(package: Path, name: str, version: str) -> None:
    """Refuses a folder that is not the unpacked npm package `name` at `version`."""
    path = package / "package.json"
    if not path.is_file():
        sys.exit(f"{package} is not an unpacked npm package: it has no package.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    if (found["name"], found["version"]) != (name, version):
        sys.exit(f"{package} holds {found['name']} {found['version']}, need {name} {version}")


def hex_key(code: str) -> str:
    """The emoji's code points without variation selectors, on which the two packages differ."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def read_names(package: Path) -> dict[str, str]:
    """English name of each emoji, by `hex_key`."""
    entries = json.loads((package / "en" / "data.json").read_text(encoding="utf-8"))
    return {hex_key(entry["hexcode"]): entry["label"] for entry in entries}


def on_white(path: Path) -> np.ndarray:
    """uint8 [32, 32, 3]: the 64x64 RGBA picture on white, halved by the mean of 2x2 pixels."""
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    flat = Image.alpha_composite(white, rgba).convert("RGB")
    return np.asarray(flat.resize((SIZE, SIZE), Image.Resampling.BOX))


def build(google: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays of the set, in Unicode's order. Of emoji that share a picture the oldest is kept, so that the
    tricolour is the flag of France and not of Clipperton Island."""
    entries = json.loads((google / "emoji.json").read_text(encoding="utf-8"))
    entries = [entry for entry in entries if entry["has_img_google"]]
    kept: dict[bytes, tuple[dict, np.ndarray]] = {}
    for entry in sorted(entries, key=lambda e: (float(e["added_in"]), e["sort_order"])):
        image = on_white(google / "img" / "google" / "64" / entry["image"])
        kept.setdefault(image.tobytes(), (entry, image))
    chosen = sorted(kept.values(), key=lambda pair: pair[0]["sort_order"])
    categories = sorted({entry["category"] for entry, _ in chosen})
    return {
        "images": np.stack([image for _, image in chosen]),
        "text": np.array([names.get(hex_key(entry["unified"]), entry["name"].lower()) for entry, _ in chosen]),
        "label": np.array([categories.index(entry["category"]) for entry, _ in chosen], np.uint8),
        "categories": np.array(categories),
    }


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A compressed npz with fixed time stamps: `np.savez` writes the current time into the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the embedded emoji set.")
    parser.add_argument("google", type=Path, help="unpacked emoji-datasource-google 16.0.0")
    parser.add_argument("names", type=Path, help="unpacked emojibase-data 17.0.0")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    args = parser.parse_args()
    read_version(args.google, "emoji-datasource-google", "16.0.0")
    read_version(args.names, "emojibase-data", "17.0.0")
    arrays = build(args.google, read_names(args.names))
    save(args.out, arrays)
    counts = np.bincount(arrays["label"])
    for name, count in zip(arrays["categories"], counts, strict=True):
        print(f"{count:5d}  {name}")
    print(f"{len(arrays['images']):5d}  images, {args.out.stat().st_size} bytes: {args.out}")


if __name__ == "__main__":
    main()
