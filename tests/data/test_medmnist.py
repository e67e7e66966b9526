"""MedMNIST's files by name, and training on some classes of a set."""

import numpy as np
import pytest

from jaxdiff.data import Data, open_source, open_validation
from jaxdiff.data.classes import labels_of

RNG = np.random.default_rng(0)


@pytest.fixture
def medmnist(tmp_path):
    """Writes a file of MedMNIST and returns its place."""

    def write(name, size=28, channels=(), findings=1, counts=(9, 4, 6)):
        arrays = {}
        for split, n in zip(("train", "val", "test"), counts, strict=True):
            arrays[f"{split}_images"] = RNG.integers(0, 256, (n, size, size, *channels), np.uint8)
            arrays[f"{split}_labels"] = (np.arange(n * findings).reshape(n, findings) % 2).astype(np.uint8)
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name, arrays

    return write


@pytest.mark.parametrize(
    ("name", "size", "channels"), [("pneumoniamnist.npz", 28, ()), ("bloodmnist_64.npz", 64, (3,))]
)
def test_grey_and_colour_of_any_size(medmnist, name, size, channels):
    path, arrays = medmnist(name, size, channels)
    for split in ("train", "val", "test"):
        source = open_source(Data(f"medmnist:{path}", size, split=split))
        assert len(source) == len(arrays[f"{split}_images"])
        last = len(source) - 1
        shape = (size, size, *(channels or (1,)))
        np.testing.assert_array_equal(source[last]["image"], arrays[f"{split}_images"][last].reshape(shape))
        assert source[last]["label"] == arrays[f"{split}_labels"][last, 0]


def test_classes_have_their_names(medmnist):
    path, _ = medmnist("pneumoniamnist_128.npz")
    assert open_source(Data(f"medmnist:{path}", 28)).label_names == ("normal", "pneumonia")
    path, _ = medmnist("retinamnist.npz")
    assert open_source(Data(f"medmnist:{path}", 28)).label_names == ("0", "1")


def test_several_findings_at_once_are_no_class(medmnist):
    path, _ = medmnist("chestmnist.npz", findings=14)
    source = open_source(Data(f"medmnist:{path}", 28))
    assert source.label_names == () and "label" not in source[0]
    with pytest.raises(ValueError, match="classes"):
        open_source(Data(f"medmnist:{path}", 28, classes=("normal",)))


def test_a_name_is_looked_for_at_home(medmnist, tmp_path, monkeypatch, refused):
    message = refused(FileNotFoundError, open_source, Data("medmnist:pneumoniamnist", 28))
    assert "pneumoniamnist.npz" in message and ".medmnist" in message and "--data.source medmnist:FILE" in message
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".medmnist").mkdir()
    path, _ = medmnist("pneumoniamnist.npz")
    path.rename(tmp_path / ".medmnist" / path.name)
    for spec in ("pneumoniamnist", "pneumoniamnist.npz"):
        assert len(open_source(Data(f"medmnist:{spec}", 28))) == 9


def test_another_npz_is_no_medmnist(tmp_path, refused):
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 4, 4), np.uint8))
    assert "set.npz" in refused(ValueError, open_source, Data(f"medmnist:{tmp_path / 'set.npz'}", 4))
    arrays = {f"{split}_images": np.zeros((2, 8, 8, 8), np.uint8) for split in ("train", "val", "test")}
    np.savez(tmp_path / "organmnist3d.npz", **arrays)
    assert "c = 1, 3 or 4" in refused(ValueError, open_source, Data(f"medmnist:{tmp_path / 'organmnist3d.npz'}", 8))


def labelled(path, labels, categories=("a", "b", "c")):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    np.savez(path, images=images, label=labels, categories=list(categories))
    return str(path)


def test_chosen_classes_are_the_only_ones(tmp_path):
    path = labelled(tmp_path / "set.npz", [0, 1, 2, 1, 0, 2])
    source = open_source(Data(path, 4, classes=("C", "0")))
    assert source.label_names == ("c", "a")
    seen = [(int(source[i]["image"][0, 0, 0]), source[i]["label"]) for i in range(len(source))]
    assert seen == [(0, 1), (2, 0), (4, 1), (5, 0)]
    np.testing.assert_array_equal(labels_of(source), [1, 0, 1, 0])


def test_what_is_held_out_is_of_the_classes_too(tmp_path):
    path = labelled(tmp_path / "set.npz", [0, 1] * 50, "ab")
    data = Data(path, 4, classes=("b",), holdout=0.2)
    train, held = open_source(data), open_validation(data)
    levels = [{int(s[i]["image"][0, 0, 0]) for i in range(len(s))} for s in (train, held)]
    assert len(train) == 40 and len(held) == 10 and not levels[0] & levels[1]
    assert levels[0] | levels[1] == set(range(1, 100, 2)) and labels_of(train).max() == 0


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("d",), ["'d'", "a, b, c"]),
        (("3",), ["'3'", "0 to 2"]),
        (("a", "0"), ["twice"]),
        (("b",), ["no pictures of b"]),
    ],
)
def test_a_class_that_is_not_there_is_refused(tmp_path, refused, classes, words):
    path = labelled(tmp_path / "set.npz", [0, 2])
    message = refused(ValueError, open_source, Data(path, 4, classes=classes))
    assert "--data.classes" in message and all(word in message for word in words)


def test_classes_of_folders(tmp_path, png, refused):
    for i, name in enumerate(("cat", "dog", "cat", "eel")):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name / f"{i}.png").write_bytes(png(np.full((4, 4), i, np.uint8)))
    source = open_source(Data(str(tmp_path / "set"), 4, classes=("eel", "cat")))
    assert [(int(source[i]["image"][0, 0, 0]), source[i]["label"]) for i in range(3)] == [(0, 1), (2, 1), (3, 0)]
    assert "no classes" in refused(ValueError, open_source, Data("emoji:smileys-emotion", 32, classes=("a",)))
