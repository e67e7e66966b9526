"""The embedded set, and the script that makes it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import Data, open_source
from jaxdiff.data.arrays import open_emoji

COUNTS = {
    "Activities": 85, "Animals & Nature": 159, "Component": 5, "Flags": 261, "Food & Drink": 131,
    "Objects": 264, "People & Body": 381, "Smileys & Emotion": 169, "Symbols": 224, "Travel & Places": 218,
}  # fmt: skip
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_emoji.py"


def test_the_set_is_whole():
    emoji = open_emoji()
    assert emoji.images.shape == (1897, 32, 32, 3)
    counts = np.bincount(emoji.label)
    assert dict(zip(emoji.label_names, counts.tolist(), strict=True)) == COUNTS
    assert len({image.tobytes() for image in emoji.images}) == 1897
    assert all(emoji.text)


def test_pictures_captions_and_labels_belong_together():
    emoji = open_emoji()
    by_text = {emoji[i]["text"]: emoji[i] for i in range(len(emoji))}
    heart, blue = by_text["red heart"], by_text["blue heart"]
    assert emoji.label_names[heart["label"]] == "Smileys & Emotion"
    assert heart["image"][16, 16].argmax() == 0 and blue["image"][16, 16].argmax() == 2
    assert (heart["image"][0, 0] == 255).all()  # the background is white
    france = by_text["flag: France"]
    assert emoji.label_names[france["label"]] == "Flags"
    assert france["image"][16, 6].argmax() == 2 and france["image"][16, 26].argmax() == 0


def test_one_category_is_a_set_without_labels():
    emoji, flags = open_emoji(), open_source(Data("emoji:flags", 32))
    assert len(flags) == COUNTS["Flags"] and flags.label_names == () and "label" not in flags[0]
    chosen = np.flatnonzero(emoji.label == emoji.label_names.index("Flags"))
    for i in (0, 100, 260):
        np.testing.assert_array_equal(flags[i]["image"], emoji.images[chosen[i]])
        assert flags[i]["text"] == emoji.text[chosen[i]]


def test_an_unknown_category_or_split_is_refused_with_the_allowed_ones(refused):
    message = refused(ValueError, open_source, Data("emoji:cars", 32))
    assert "--data.source emoji:cars" in message
    assert "smileys-emotion" in message and "travel-places" in message
    message = refused(ValueError, open_source, Data("emoji", 32, split="test"))
    assert "--data.split test" in message and "train" in message


def test_the_licence_lies_beside_the_pictures():
    text = SCRIPT.parents[1].joinpath("jaxdiff", "data", "emoji.LICENSE.txt").read_text()
    for phrase in ("Apache", "emoji-datasource-google 16.0.0", "emojibase-data 17.0.0", "Permission is hereby"):
        assert phrase in text


@pytest.fixture
def packages(tmp_path):
    """Two folders like the npm packages: two emoji, a third with the picture of the first, a fourth with none."""
    google, names = tmp_path / "google", tmp_path / "names"
    (google / "img" / "google" / "64").mkdir(parents=True)
    (names / "en").mkdir(parents=True)
    entries = []
    pictures = {"1f600": (255, 0, 0, 255), "2764-fe0f": (0, 0, 255, 128), "1f601": (255, 0, 0, 255)}
    added = {"1f600": "2.0", "2764-fe0f": "0.6", "1f601": "0.6"}
    for order, (code, colour) in enumerate(pictures.items()):
        picture = np.zeros((64, 64, 4), np.uint8)
        picture[:32] = colour
        Image.fromarray(picture).save(google / "img" / "google" / "64" / f"{code}.png")
        entries.append(
            {
                "name": f"NAME {order}", "unified": code.upper(), "image": f"{code}.png", "has_img_google": True,
                "category": "Symbols" if "-" in code else "Smileys", "sort_order": order,
                "added_in": added[code],
            }
        )  # fmt: skip
    entries.append({**entries[0], "has_img_google": False, "image": "missing.png"})
    (google / "emoji.json").write_text(json.dumps(entries[::-1]))
    (names / "en" / "data.json").write_text(json.dumps([{"hexcode": "2764", "label": "red heart"}]))
    version(google, "emoji-datasource-google", "16.0.0")
    version(names, "emojibase-data", "17.0.0")
    return google, names


def version(package, name, number):
    (package / "package.json").write_text(json.dumps({"name": name, "version": number}))


def run_script(monkeypatch, *args):
    spec = importlib.util.spec_from_file_location("make_emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["make_emoji.py", *map(str, args)])
    module.main()


def test_the_script_lays_on_white_drops_repeats_and_writes_the_same_bytes_twice(packages, tmp_path, monkeypatch):
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    for out in (first, second):
        run_script(monkeypatch, *packages, "--out", out)
    assert first.read_bytes() == second.read_bytes()
    with np.load(first, allow_pickle=False) as arrays:
        assert arrays["text"].tolist() == ["red heart", "name 2"]  # the older of the two red ones
        assert [arrays["categories"][k] for k in arrays["label"]] == ["Symbols", "Smileys"]
        images = arrays["images"]
    assert images.shape == (2, 32, 32, 3)
    assert (images[1, :16] == (255, 0, 0)).all() and (images[:, 16:] == 255).all()
    assert np.abs(images[0, :16].astype(int) - (127, 127, 255)).max() <= 1


def test_the_script_refuses_another_version(packages, tmp_path, monkeypatch):
    google, names = packages
    version(names, "emojibase-data", "16.0.3")
    with pytest.raises(SystemExit, match=r"emojibase-data 16\.0\.3, need emojibase-data 17\.0\.0"):
        run_script(monkeypatch, google, names, "--out", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
