"""`.npz` files and Fashion-MNIST's idx files."""

import gzip
import struct

import numpy as np
import pytest

from jaxdiff.data import Data, open_source, open_validation
from jaxdiff.data.arrays import FASHION_LABELS

RNG = np.random.default_rng(0)


def pictures(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 3), (5, 6, 7, 4)])
def test_npz_returns_its_pictures_labels_and_texts(tmp_path, shape):
    images, path = pictures(*shape), tmp_path / "set.npz"
    np.savez(path, images=images, label=[2, 0, 1, 1, 2], categories=["a", "b", "c"], text=list("vwxyz"))
    source = open_source(Data(str(path), 6))
    assert len(source) == 5 and source.label_names == ("a", "b", "c")
    for i in range(5):
        np.testing.assert_array_equal(source[i]["image"].reshape(shape[1:]), images[i])
    assert [source[i]["label"] for i in range(5)] == [2, 0, 1, 1, 2]
    assert [source[i]["text"] for i in range(5)] == list("vwxyz")


def test_npz_needs_nothing_but_images(tmp_path):
    np.savez(tmp_path / "set.npz", images=pictures(3, 4, 4))
    source = open_source(Data(str(tmp_path / "set.npz"), 4))
    assert source.label_names == () and set(source[0]) == {"image"}


def test_npz_numbers_its_classes_where_it_does_not_name_them(tmp_path):
    np.savez(tmp_path / "set.npz", images=pictures(3, 4, 4), labels=[0, 3, 1])
    assert open_source(Data(str(tmp_path / "set.npz"), 4)).label_names == ("0", "1", "2", "3")


def test_medmnist_names_are_read_by_split(tmp_path):
    path, arrays = tmp_path / "med.npz", {}
    for split, n in (("train", 6), ("val", 4), ("test", 3)):
        arrays[f"{split}_images"] = pictures(n, 4, 4)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(path, **arrays)
    train, test = open_source(Data(str(path), 4)), open_source(Data(str(path), 4, split="test"))
    assert (len(train), len(test)) == (6, 3) and train[1]["label"] == 1
    np.testing.assert_array_equal(test[2]["image"][..., 0], arrays["test_images"][2])
    validation = open_validation(Data(str(path), 4))
    np.testing.assert_array_equal(validation[3]["image"][..., 0], arrays["val_images"][3])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": pictures(2, 4, 4)}, ["images"]),
        ({"images": pictures(2, 4, 4) / 255}, ["uint8", "float64"]),
        ({"images": pictures(2, 4, 4, 2)}, ["c = 1, 3 or 4", "[2, 4, 4, 2]"]),
        ({"images": pictures(0, 4, 4)}, ["no images"]),
        ({"images": pictures(2, 4, 4), "label": [0, 5], "categories": ["a", "b"]}, ["label 5", "0..1"]),
        ({"images": pictures(2, 4, 4), "label": [0, -1]}, ["label -1"]),
        ({"images": pictures(2, 4, 4), "label": [0, 1, 1]}, ["label", "[3]"]),
        ({"images": pictures(2, 4, 4), "label": [0.5, 1.0]}, ["label", "float64"]),
        ({"images": pictures(2, 4, 4), "text": ["one"]}, ["text", "(1,)"]),
        ({"images": np.array([None, "x"], dtype=object)}, ["Python objects"]),
    ],
)
def test_a_wrong_npz_is_refused_with_its_name(tmp_path, refused, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    message = refused(ValueError, open_source, Data(str(tmp_path / "bad.npz"), 4))
    assert "bad.npz" in message
    for word in words:
        assert word in message


def test_what_is_no_npz_is_refused_with_its_name(tmp_path, refused):
    message = refused(FileNotFoundError, open_source, Data(str(tmp_path / "none.npz"), 4))
    assert "--data.source" in message and "none.npz" in message
    (tmp_path / "text.npz").write_text("not an archive")
    with open(tmp_path / "array.npz", "wb") as stream:
        np.save(stream, pictures(2, 4, 4))
    np.savez(tmp_path / "cut.npz", images=pictures(20, 40, 40))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:])
    for name in ("text.npz", "array.npz", "cut.npz", "flipped.npz"):
        assert name in refused(ValueError, open_source, Data(str(tmp_path / name), 4))


def test_an_npz_without_the_split_is_refused_with_those_it_has(tmp_path, refused):
    np.savez(tmp_path / "set.npz", images=pictures(2, 4, 4))
    message = refused(ValueError, open_source, Data(str(tmp_path / "set.npz"), 4, split="test"))
    assert "--data.split test" in message and "has train" in message


def write_idx(folder, name, array, compress):
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    if compress:
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    else:
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_reads_idx_files(tmp_path, compress):
    sets = {}
    for part, n in (("train", 12), ("t10k", 5)):
        sets[part] = pictures(n, 28, 28), (np.arange(n) % 10).astype(np.uint8)
        write_idx(tmp_path, f"{part}-images-idx3-ubyte", sets[part][0], compress)
        write_idx(tmp_path, f"{part}-labels-idx1-ubyte", sets[part][1], compress)
    data = Data(f"fashion_mnist:{tmp_path}", 28, 1)
    train, test = open_source(data), open_validation(data)
    assert (len(train), len(test)) == (12, 5) and train.label_names == FASHION_LABELS
    np.testing.assert_array_equal(train[7]["image"][..., 0], sets["train"][0][7])
    np.testing.assert_array_equal(test[4]["image"][..., 0], sets["t10k"][0][4])
    assert train[11]["label"] == 1 and test[4]["label"] == 4


def test_missing_fashion_mnist_names_the_package_and_the_flag(tmp_path, refused):
    message = refused(FileNotFoundError, open_source, Data(f"fashion_mnist:{tmp_path}", 28, 1))
    assert "apt-get install dataset-fashion-mnist" in message
    assert "--data.source fashion_mnist:DIR" in message and str(tmp_path) in message


def test_a_damaged_idx_file_is_refused_with_its_name(tmp_path, refused):
    write_idx(tmp_path, "train-labels-idx1-ubyte", np.zeros(12, np.uint8), False)
    name = "train-images-idx3-ubyte"
    write_idx(tmp_path, name, pictures(12, 28, 28), False)
    path = tmp_path / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:3], b"\0\0\x09" + whole[3:]):
        path.write_bytes(damaged)
        assert name in refused(ValueError, open_source, Data(f"fashion_mnist:{tmp_path}", 28, 1))
    path.unlink()
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(whole)[:-20])
    assert f"{name}.gz" in refused(ValueError, open_source, Data(f"fashion_mnist:{tmp_path}", 28, 1))
    message = refused(ValueError, open_source, Data(f"fashion_mnist:{tmp_path}", 28, 1, split="val"))
    assert "--data.split val" in message and "train, test" in message
