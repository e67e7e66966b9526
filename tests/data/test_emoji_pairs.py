"""Pairs of emoji for networks that edit: what is held out of the pictures is held out of the pairs."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import Data, open_source
from jaxdiff.data.pictures import Pictures

SCRIPTS = Path(__file__).parents[2] / "scripts"
TONES = (None, "light skin tone", "dark skin tone")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Two hands in three tones, one of each held out, and a cat, which has none."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    sys.modules.pop("make_emoji_pairs", None)
    import make_emoji_pairs

    lines: dict[str, list[dict]] = {"train": [], "test": []}
    files = {}
    for number, (base, tone) in enumerate([*((b, t) for b in ("1F44B", "1F44D") for t in TONES), ("1F431", None)]):
        split = "test" if (base, tone) in (("1F44B", TONES[1]), ("1F44D", TONES[2])) else "train"
        name, buffer = f"images/{number}.png", io.BytesIO()
        Image.fromarray(np.full((8, 8, 4), (30 * number, 0, 0, 255), np.uint8)).save(buffer, "PNG")
        files[f"{split}/{name}"] = buffer.getvalue()
        lines[split].append({"file_name": name, "text": f"{base} {tone}", "base": base, "skin_tone": tone})
    with zipfile.ZipFile(tmp_path / "emoji.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for split, some in lines.items():
            archive.writestr(f"{split}/metadata.jsonl", "".join(f"{json.dumps(line)}\n" for line in some))
    monkeypatch.setattr(sys, "argv", ["make_emoji_pairs.py", str(tmp_path / "emoji.zip"), str(tmp_path / "pairs.zip")])
    make_emoji_pairs.main()
    return tmp_path / "pairs.zip", lines


def test_no_picture_of_the_test_split_is_seen_in_training(made):
    archive, lines = made
    with zipfile.ZipFile(archive) as found:
        pairs = {s: [json.loads(x) for x in found.read(f"{s}/metadata.jsonl").splitlines()] for s in ("train", "test")}
    held_out = {line["file_name"] for line in lines["test"]}
    for pair in pairs["train"]:
        assert not held_out & {pair["file_name"], pair["source_file_name"]}
    assert len(pairs["train"]) == 2 * 2 and len(pairs["test"]) == 2 * 2  # each of two from each of the other two
    assert all(pair["file_name"] in held_out and pair["source_file_name"] not in held_out for pair in pairs["test"])
    assert {pair["edit"] for pair in pairs["test"]} == {"light skin tone", "dark skin tone"}
    assert "no skin tone" in {pair["edit"] for pair in pairs["train"]}
    assert not any(pair["base"] == "1F431" for pair in pairs["train"] + pairs["test"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_training_reads_the_archive(made, split):
    data = Data(str(made[0]), size=8, labels=False, pairs=True, split=split)
    source = open_source(data)
    pictures = Pictures(data, source)
    assert len(source) == 4
    for i in range(4):
        assert not np.array_equal(pictures[i]["image"], pictures[i]["source"])
