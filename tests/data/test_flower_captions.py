"""The captions that scripts/make_flower_captions.py gives to photos of flowers."""

import importlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def captions(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "scripts"), *sys.path])
    return importlib.import_module("make_flower_captions")


GRASS = (40, 110, 30)


def photo(colour):
    """A green picture with a disc of this colour in its middle."""
    y, x = np.mgrid[:48, :48] - 23.5
    return np.where((np.hypot(x, y) < 12)[..., None], np.uint8(colour), np.uint8(GRASS))


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("white", (245, 245, 240)),
        ("yellow", (250, 215, 20)),
        ("orange", (245, 140, 10)),
        ("red", (200, 15, 20)),
        ("pink", (245, 150, 190)),
        ("purple", (150, 80, 200)),
        (None, GRASS),
        (None, (90, 160, 240)),  # a sky
    ],
)
def test_the_colour_of_the_middle_is_named(captions, name, colour):
    assert captions.colour_of(photo(colour)) == name


def test_captions_say_colour_and_flower(captions):
    assert captions.text_of("tulip", "red") == "a photo of a red tulip"
    assert captions.text_of("tulip", "orange") == "a photo of an orange tulip"
    assert captions.text_of("daisy", None) == "a photo of a daisy"


def archive_of(folders):
    """A .zip of one yellow photo a folder, and of a licence."""
    buffer, image = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo((250, 215, 20))).save(image, "JPEG", quality=95)
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("LICENSE.txt", "of each photo")
        for folder in folders:
            archive.writestr(f"images/{folder}/1.jpg", image.getvalue())
    return zipfile.ZipFile(buffer)


def test_every_photo_gets_a_line(captions):
    with archive_of(captions.FLOWERS) as archive:
        files = captions.build(archive)
        lines = [json.loads(line) for line in files.pop("metadata.jsonl").splitlines()]
        assert {line["file_name"] for line in lines} == set(files) == set(archive.namelist()) - {"LICENSE.txt"}
        assert all(files[name] == archive.read(name) for name in files)  # to the byte
    texts = {line["label"]: line["text"] for line in lines}
    assert texts["rose"] == "a photo of a yellow rose"
    with archive_of(["daisy", "roses"]) as archive, pytest.raises(ValueError, match="dandelion, sunflowers, tulips"):
        captions.build(archive)
