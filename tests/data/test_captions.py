"""Captions: their wordings, the table of what an encoder says of them, and what a batch holds of it."""

import io
import itertools
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import Data, batches, open_source, open_validation, validation_batches
from jaxdiff.data.captions import captioned, wordings

WORDS = ("sun", "moon", "star", "rain", "snow", "wind")


def encode(texts):
    """The number of letters, and a row that tells the text."""
    return {"text_ids": np.array([[len(t), hash(t) % 1000] for t in texts], np.int32)}


@pytest.fixture
def zipped(tmp_path):
    """Six pictures of one grey each, with captions and keywords, and one more in another split."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, words in (("train", WORDS), ("test", ("fog",))):
            lines = []
            for i, word in enumerate(words):
                buffer = io.BytesIO()
                Image.fromarray(np.full((4, 4, 3), 10 * i, np.uint8)).save(buffer, "PNG")
                archive.writestr(f"{split}/{word}.png", buffer.getvalue())
                lines.append(json.dumps({"file_name": f"{word}.png", "text": word, "keywords": [word, "sky"]}))
            archive.writestr(f"{split}/metadata.jsonl", "\n".join(lines))
    return path


def test_wordings_are_the_caption_alone_or_half_of_them_with_keywords():
    assert set(wordings("sun", ("hot", "sky"), rich=False)) == {"sun"} == set(wordings("sun", (), rich=True))
    rich = wordings("sun", ("hot", "sky"), rich=True)
    assert sorted(rich) == ["hot, sky", "sun", "sun", "sun, hot, sky"] and rich[0] == "sun"


def test_a_batch_tells_each_picture_in_one_of_its_wordings(zipped):
    data = Data(str(zipped), 4, text=True, keywords=True)
    asked = []

    def counting(texts):
        asked.extend(texts)
        return encode(texts)

    source = captioned(open_source(data), counting, keywords=True)
    assert len(asked) == len(set(asked)) == 3 * len(WORDS)  # each different text once
    stream = batches(data, source, 6, 0)
    taken = list(itertools.islice(stream, 30))
    stream.close()
    said = {word: set() for word in WORDS}
    for batch in taken:
        assert set(batch) == {"image", "text_ids"} and batch["text_ids"].shape == (6, 2)
        for image, ids in zip(batch["image"], batch["text_ids"], strict=True):
            said[WORDS[image[0, 0, 0] // 10]].add(tuple(ids.tolist()))
    for word in WORDS:
        texts = (word, f"{word}, {word}, sky", f"{word}, sky")
        assert said[word] == {tuple(row) for row in encode(texts)["text_ids"].tolist()}
    again = batches(data, source, 6, 0, start=20)
    np.testing.assert_array_equal(next(again)["text_ids"], taken[20]["text_ids"])
    again.close()


def test_validation_says_the_caption_itself(zipped):
    data = Data(str(zipped), 4, text=True, keywords=True)
    source = captioned(open_validation(data), encode, keywords=True)
    (batch,) = validation_batches(data, source, 2)
    np.testing.assert_array_equal(batch["text_ids"], [*encode(["fog"])["text_ids"], [0, 0]])


def test_pictures_without_captions_are_refused(refused):
    bare = open_source(Data("emoji", 32))
    assert captioned(bare, encode, keywords=False).rows.shape == (len(bare), 4)
    nameless = bare.__class__("nameless", bare.images[:3])
    assert "nameless" in refused(ValueError, captioned, nameless, encode, False)
