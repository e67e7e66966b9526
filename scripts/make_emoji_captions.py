"""Builds the set of captioned emoji for text to image: 64x64, with skin tones, a part of them held out.

Usage, from the root of the repository, with the two inputs of `make_emoji.py`:

    python scripts/make_emoji_captions.py google/package names/package emoji64.zip

The archive has two splits, train and test, each with its pictures (64x64 RGBA PNG, each distinct picture once) and a
metadata.jsonl: file_name, text (the English name), keywords, label (the category), skin_tone (null without one), base
(the emoji without its skin tone). A fifth of the pairs (base, skin tone) is in test, chosen by a hash of the pair
alone, so that a network sees every base and every skin tone, but not these together. The same input gives the same
bytes.
"""

import argparse
import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from make_emoji import hex_key, read_version
from PIL import Image

HELD_OUT = 5
"""One of so many pairs is in test."""

TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}


def split_of(base: str, tone: str | None) -> str:
    """train or test; an emoji without a skin tone is always in train."""
    if tone is None:
        return "train"
    digest = hashlib.sha256(f"{base} {tone}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % HELD_OUT == 0 else "train"


def read_words(package: Path) -> dict[str, tuple[str, list[str]]]:
    """(English name, keywords) of each emoji and of each with a skin tone, by `hex_key`."""
    words = {}
    for entry in json.loads((package / "en" / "data.json").read_text(encoding="utf-8")):
        keywords = entry.get("tags", [])
        for one in (entry, *entry.get("skins", [])):
            words[hex_key(one["hexcode"])] = one["label"], keywords
    return words


def tone_of(code: str) -> str | None:
    """The skin tones among an emoji's code points: "light skin tone", or two, with a comma between."""
    return ", ".join(TONES[part] for part in code.upper().split("-") if part in TONES) or None


def entries(google: Path, words: dict[str, tuple[str, list[str]]]) -> Iterator[tuple[dict, Path]]:
    """(a line of metadata.jsonl without its file, the picture) in Unicode's order, each base before its skin tones."""
    found = json.loads((google / "emoji.json").read_text(encoding="utf-8"))
    for entry in sorted(found, key=lambda e: e["sort_order"]):
        for one in (entry, *entry.get("skin_variations", {}).values()):
            if not one["has_img_google"]:
                continue
            text, keywords = words.get(hex_key(one["unified"]), (entry["name"].lower(), []))
            line = {"text": text, "keywords": keywords, "label": entry["category"]}
            line |= {"skin_tone": tone_of(one["unified"]), "base": hex_key(entry["unified"])}
            yield line, google / "img" / "google" / "64" / one["image"]


def build(google: Path, words: dict[str, tuple[str, list[str]]]) -> dict[str, bytes]:
    """The files of the archive by name."""
    files: dict[str, bytes] = {}
    lines: dict[str, list[str]] = {"train": [], "test": []}
    seen = set()
    for line, path in entries(google, words):
        with Image.open(path) as image:
            pixels = image.convert("RGBA").tobytes()
        if pixels in seen:
            continue
        seen.add(pixels)
        split = split_of(line["base"], line["skin_tone"])
        lines[split].append(json.dumps({"file_name": f"images/{path.name}", **line}))
        files[f"{split}/images/{path.name}"] = path.read_bytes()
    lists = {f"{split}/metadata.jsonl": "".join(f"{line}\n" for line in some).encode() for split, some in lines.items()}
    return lists | files


def save(path: Path, files: dict[str, bytes]) -> None:
    """An archive with fixed time stamps."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the set of captioned emoji.")
    parser.add_argument("google", type=Path, help="unpacked emoji-datasource-google 16.0.0")
    parser.add_argument("names", type=Path, help="unpacked emojibase-data 17.0.0")
    parser.add_argument("out", type=Path, help="file to write, a .zip")
    args = parser.parse_args()
    if args.out.suffix != ".zip":
        sys.exit(f"{args.out} must end in .zip")
    read_version(args.google, "emoji-datasource-google", "16.0.0")
    read_version(args.names, "emojibase-data", "17.0.0")
    files = build(args.google, read_words(args.names))
    save(args.out, files)
    for split in ("train", "test"):
        print(f"{sum(name.startswith(f'{split}/images') for name in files):5d}  {split}")
    print(f"{args.out.stat().st_size} bytes: {args.out}")


if __name__ == "__main__":
    main()
