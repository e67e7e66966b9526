"""Builds pairs of emoji and what makes one of the other, for networks that edit by instruction.

    python scripts/make_emoji_pairs.py emoji64.zip emoji_pairs.zip

`emoji64.zip` is what `make_emoji_captions.py` wrote. A pair is two pictures of one emoji, without a skin tone or with
one, and the words that lead from the first to the second: "dark skin tone", or "no skin tone". A pair is in test where
either picture is in test there, so no picture of the test split is seen in training, and in test the first picture is
always one of the training split. The same input gives the same bytes.
"""

import argparse
import json
import sys
import zipfile
from pathlib import Path

from make_emoji_captions import TONES, save

PLAIN = "no skin tone"


def pairs_of(lines: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The lines of both splits' metadata.jsonl, from those of the pictures."""
    emoji: dict[str, list[tuple[str, dict]]] = {}
    for split, entries in lines.items():
        for entry in entries:
            if entry["skin_tone"] is None or entry["skin_tone"] in TONES.values():
                emoji.setdefault(entry["base"], []).append((split, entry))
    found: dict[str, list[dict]] = {split: [] for split in lines}
    for some in emoji.values():
        for split, target in some:
            for other, source in some:
                if source is not target and other == "train":
                    edit = target["skin_tone"] or PLAIN
                    names = {"file_name": target["file_name"], "source_file_name": source["file_name"]}
                    found[split].append(names | {"edit": edit, "base": target["base"]})
    return found


def build(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The files of the archive by name; a picture lies in every split that shows it."""
    lines = {
        split: [json.loads(line) for line in archive.read(f"{split}/metadata.jsonl").splitlines()]
        for split in ("train", "test")
    }
    place = {entry["file_name"]: split for split, entries in lines.items() for entry in entries}
    files: dict[str, bytes] = {}
    for split, found in pairs_of(lines).items():
        files[f"{split}/metadata.jsonl"] = "".join(f"{json.dumps(line)}\n" for line in found).encode()
        for line in found:
            for name in (line["file_name"], line["source_file_name"]):
                files[f"{split}/{name}"] = archive.read(f"{place[name]}/{name}")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Build pairs of emoji, and what makes one of the other.")
    parser.add_argument("emoji", type=Path, help="what make_emoji_captions.py wrote")
    parser.add_argument("out", type=Path, help="file to write, a .zip")
    args = parser.parse_args()
    if args.out.suffix != ".zip":
        sys.exit(f"{args.out} must end in .zip")
    with zipfile.ZipFile(args.emoji) as archive:
        files = build(archive)
    save(args.out, files)
    for split in ("train", "test"):
        print(f"{files[f'{split}/metadata.jsonl'].count(b'file_name') // 2:5d}  {split}")
    print(f"{args.out.stat().st_size} bytes: {args.out}")


if __name__ == "__main__":
    main()
