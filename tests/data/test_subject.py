"""One caption for all pictures, and pictures of a class beside those of a subject."""

import collections

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import Data, batches, open_source
from jaxdiff.data.captions import caption, captioned
from jaxdiff.data.source import ArraySource
from jaxdiff.data.subject import Beside, Told


def greys(n, first=0):
    """n pictures, each of one grey."""
    return ArraySource("greys", np.stack([np.full((4, 4, 3), first + i, np.uint8) for i in range(n)]))


def folder(path, n, first):
    path.mkdir()
    for i in range(n):
        Image.fromarray(np.full((4, 4, 3), first + i, np.uint8)).save(path / f"{i}.png")
    return str(path)


def test_all_pictures_share_the_caption():
    source = ArraySource("some", greys(3).images, None, (), ("a", "b", "c"))
    told = Told(source, "a sks cat")
    assert [caption(told, i) for i in range(3)] == [("a sks cat", ())] * 3
    assert told[2]["text"] == "a sks cat" and source[2]["text"] == "c"


@pytest.mark.parametrize(("few", "many", "weight"), [(3, 40, 1.0), (3, 40, 0.5), (7, 2, 1.0), (5, 9, 2.0)])
def test_the_second_counts_by_its_weight_and_all_pictures_come(few, many, weight):
    both = Beside(greys(few), greys(many, first=100), weight)
    seen = collections.Counter(int(both[i]["image"][0, 0, 0]) for i in range(len(both)))
    assert seen.keys() == {*range(few), *range(100, 100 + many)}
    first = [count for grey, count in seen.items() if grey < 100]
    second = [count for grey, count in seen.items() if grey >= 100]
    assert abs(sum(second) - weight * sum(first)) <= 0.5
    assert max(first) - min(first) <= 1 and max(second) - min(second) <= 1


def test_batches_tell_the_subject_and_its_class_apart(tmp_path):
    """From the flags to the network's conditions: every picture comes with the caption of its own half."""
    subject, of_class = folder(tmp_path / "subject", 2, 0), folder(tmp_path / "class", 6, 100)
    data = Data(subject, size=4, text=True, caption="a sks cat", prior=of_class, prior_caption="a cat")
    source = captioned(open_source(data), lambda texts: {"text_ids": np.array([[len(t)] for t in texts])}, False)
    stream = batches(data, source, 12, seed=0)
    batch = next(stream)
    stream.close()
    grey, letters = batch["image"][:, 0, 0, 0], batch["text_ids"][:, 0]
    assert len(source) == 12  # one epoch
    assert np.sum(grey >= 100) == 6
    np.testing.assert_array_equal(letters, np.where(grey >= 100, len("a cat"), len("a sks cat")))


def test_captions_of_the_class_may_be_its_own(tmp_path):
    subject, of_class = folder(tmp_path / "subject", 2, 0), folder(tmp_path / "class", 2, 100)
    names = ['{"file_name": "0.png", "text": "a cat"}', '{"file_name": "1.png", "text": "a dog"}']
    (tmp_path / "class" / "metadata.jsonl").write_text("\n".join(names))
    source = open_source(Data(subject, size=4, text=True, caption="a sks cat", prior=of_class))
    assert [caption(source, i)[0] for i in range(4)] == ["a sks cat", "a sks cat", "a cat", "a dog"]


def test_a_weight_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"--data\.prior-weight"):
        Data("emoji", 8, prior_weight=0.0)
