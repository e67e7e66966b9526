"""From the text of --data.source to sets, and what is held out of them."""

import numpy as np
import pytest

from jaxdiff.data import Data, Source, open_source, open_validation
from jaxdiff.data.source import partition


def test_an_unknown_source_is_refused_with_the_kinds_there_are(refused):
    for spec in ("imagenet", "tfds:", "tfds"):
        message = refused(ValueError, open_source, Data(spec, 32))
        assert "--data.source" in message and repr(spec) in message
        for kind in ("emoji:CATEGORY", "fashion_mnist", "tfds:NAME", "folder", ".npz"):
            assert kind in message
    message = refused(FileNotFoundError, open_source, Data("some/where", 32))
    assert "--data.source some/where does not exist" in message


def test_a_source_is_a_source():
    assert isinstance(open_source(Data("emoji", 32)), Source)
    assert isinstance(open_source(Data("emoji", 32, holdout=0.1)), Source)


@pytest.mark.parametrize(("n", "holdout"), [(1, 0.5), (10, 0.1), (1897, 0.05), (1897, 0.5), (7, 0.0)])
def test_a_partition_is_a_partition(n, holdout):
    train, held = partition(n, holdout)
    assert len(held) == round(n * holdout)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(n))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()


def test_what_is_held_out_is_spread_over_the_set():
    _, held = partition(100_000, 0.1)
    tenths = np.bincount(held // 10_000, minlength=10)
    assert np.abs(tenths - 1000).max() < 150
    assert abs((held % 2).mean() - 0.5) < 0.03


def test_training_never_sees_what_is_held_out():
    data = Data("emoji:flags", 32, holdout=0.1)
    train, held = open_source(data), open_validation(data)
    texts = [{source[i]["text"] for i in range(len(source))} for source in (train, held)]
    assert len(held) == 26 and len(texts[0]) + len(texts[1]) == 261
    assert not texts[0] & texts[1]
    whole = open_source(Data("emoji:flags", 32))
    assert texts[0] | texts[1] == {whole[i]["text"] for i in range(len(whole))}


def test_a_part_keeps_labels_and_names():
    data = Data("emoji", 32, holdout=0.2)
    whole, held = open_source(Data("emoji", 32)), open_validation(data)
    _, places = partition(1897, 0.2)
    assert held.label_names == whole.label_names
    for i in (0, 100, len(held) - 1):
        assert held[i]["text"] == whole[int(places[i])]["text"]
        assert held[i]["label"] == whole[int(places[i])]["label"]


def test_nothing_to_validate_on_is_none(tmp_path):
    assert open_validation(Data("emoji", 32)) is None
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 4, 4), np.uint8))
    assert open_validation(Data(str(tmp_path / "set.npz"), 4, holdout=0.1)) is None


def test_holdout_goes_before_a_split_of_its_own(tmp_path):
    arrays = {f"{split}_images": np.full((n, 4, 4), n, np.uint8) for split, n in (("train", 20), ("test", 6))}
    np.savez(tmp_path / "set.npz", **arrays)
    spec = str(tmp_path / "set.npz")
    assert len(open_validation(Data(spec, 4))) == 6
    held = open_validation(Data(spec, 4, holdout=0.25))
    assert len(held) == 5 and held[0]["image"][0, 0, 0] == 20
    assert open_validation(Data(spec, 4, split="test")) is None
