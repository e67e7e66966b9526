"""What a network is shown beside each picture: a small one enlarged again, or the picture that it is made from."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import Data, batches, open_source, validation_batches
from jaxdiff.data.captions import caption
from jaxdiff.data.images import lowered, resize
from jaxdiff.data.source import ArraySource

RNG = np.random.default_rng(0)
SOURCE = ArraySource("noise", RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))


def take(data, source, n=4):
    reader = batches(data, source, 6, 0)
    out = list(itertools.islice(reader, n))
    reader.close()
    return out


def test_a_small_picture_is_made_of_each():
    data = Data("noise", 8, low=4, flip=True)
    for batch in (*take(data, SOURCE), *validation_batches(data, SOURCE, 6)):
        assert batch["source"].shape == batch["image"].shape and batch["source"].dtype == np.uint8
        for image, shown in zip(batch["image"], batch["source"], strict=True):
            np.testing.assert_array_equal(shown, resize(resize(np.ascontiguousarray(image), 4, 4), 8, 8))
            np.testing.assert_array_equal(shown, lowered(image, 4))


def test_noise_differs_in_size_and_is_not_there_in_validation():
    grey = ArraySource("grey", np.full((12, 16, 16, 3), 128, np.uint8))
    data = Data("grey", 16, low=8, low_noise=0.5)
    stds = np.concatenate([batch["source"].astype(float).std((1, 2, 3)) for batch in take(data, grey, 10)])
    assert stds.min() < 8 and 40 < stds.max() < 127.5 * 0.5 * 1.1 and abs(stds.mean() - 127.5 * 0.25) < 8
    (page, *_) = validation_batches(data, grey, 6)
    assert np.all(page["source"] == 128)
    again = take(data, grey, 2)
    np.testing.assert_array_equal(again[1]["source"], take(data, grey, 2)[1]["source"])


@pytest.fixture
def pairs(tmp_path):
    """A folder of six pairs: each picture is its source with one value less."""
    lines = []
    for i in range(6):
        image = RNG.integers(1, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"before{i}.png")
        Image.fromarray(image - 1).save(tmp_path / f"after{i}.png")
        line = {"file_name": f"after{i}.png", "source_file_name": f"before{i}.png", "edit": f"less of {i}"}
        lines.append(json.dumps(line))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_pairs_are_cropped_and_mirrored_alike(pairs):
    data = Data(str(pairs), 8, flip=True, crop="random", pairs=True)
    source = open_source(data)
    # Resizing 9 to 8 rounds, so that the difference may be 0 or 2 here and there.
    for batch in (*take(data, source), *validation_batches(data, source, 6)):
        difference = batch["source"].astype(int) - batch["image"]
        assert np.abs(difference - 1).max() <= 1 and abs(difference.mean() - 1) < 0.05
    assert [caption(source, i)[0] for i in range(6)] == [f"less of {i}" for i in range(6)]
    (batch,) = take(Data(str(pairs), 8), source, 1)
    assert "source" not in batch


def test_what_is_wrong_with_pairs_is_said(pairs, tmp_path):
    with pytest.raises(ValueError, match=r"source_file_name.*--no-data\.pairs"):
        take(Data("noise", 8, pairs=True), SOURCE, 1)
    text = (pairs / "metadata.jsonl").read_text()
    (pairs / "metadata.jsonl").write_text(text.replace('"before2.png"', '"missing.png"'))
    with pytest.raises(FileNotFoundError, match=r"line 3: missing\.png"):
        open_source(Data(str(pairs), 8))
    (pairs / "metadata.jsonl").write_text(text.replace(', "source_file_name": "before2.png"', ""))
    with pytest.raises(ValueError, match="every line must have a source_file_name"):
        open_source(Data(str(pairs), 8))


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"low": 8}, "--data.low"),
        ({"low": -1}, "--data.low"),
        ({"low": 4, "low_noise": 2.0}, "--data.low-noise"),
        ({"low": 4, "pairs": True}, "--data.pairs"),
        ({"pairs": True, "augment": 0.1}, "--data.augment"),
        ({"source": "records:x", "low": 4}, "--data.pairs"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, flag):
    with pytest.raises(ValueError, match=flag):
        Data(**{"source": "emoji", "size": 8, **fields})
