"""Folders and archives of images."""

import json
import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxdiff.data import Data, open_source, open_validation
from jaxdiff.data.images import BrokenImageError


@pytest.fixture
def folder(tmp_path, png):
    """Writes pictures of one grey level each, {file name: level}, and returns their folder."""

    def write(levels, name="set"):
        for file, level in levels.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.full((4, 4), level, np.uint8)))
        return tmp_path / name

    return write


def zipped(path, name="set.zip", inside=""):
    """The folder as an archive, its files inside a folder of that name."""
    with zipfile.ZipFile(path.parent / name, "w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                archive.write(file, f"{inside}{file.relative_to(path)}")
    return path.parent / name


def open_path(path, **fields):
    return open_source(Data(str(path), 4, **fields))


def levels(source):
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def labels(source):
    return [source.label_names[source[i]["label"]] for i in range(len(source))]


def metadata(path, *entries):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_nested_folders_are_walked_in_the_order_of_paths(folder):
    path = folder({"b.png": 1, "a/z.png": 2, "a/b/y.png": 3, "c/x.png": 4})
    (path / "notes.txt").write_text("not a picture, and not said to be one")
    (path / ".hidden.png").write_bytes(b"")
    (path / "__MACOSX").mkdir()
    (path / "__MACOSX" / "b.png").write_bytes(b"")
    source = open_path(path)
    assert levels(source) == [3, 2, 1, 4]
    assert source.label_names == () and set(source[0]) == {"image"}


def test_sub_folders_are_the_classes_where_every_picture_is_in_one(folder):
    source = open_path(folder({"dog/2.png": 1, "cat/1.png": 2, "cat/old/3.png": 3}))
    assert source.label_names == ("cat", "dog")
    assert levels(source) == [2, 3, 1] and labels(source) == ["cat", "cat", "dog"]


def test_a_folder_in_a_folder_is_no_class(folder):
    source = open_path(folder({"pictures/1.png": 1, "pictures/2.png": 2}))
    assert source.label_names == () and levels(source) == [1, 2]


def test_metadata_gives_order_text_and_labels(folder):
    path = folder({"a.png": 1, "in/b.png": 2, "c.png": 3, "unlisted.png": 4})
    metadata(
        path,
        {"file_name": "c.png", "text": "a Ü", "label": "wolf", "size": 3},
        "",
        {"file_name": "./in/b.png", "label": "ant"},
        {"file_name": "a.png", "text": "b", "label": "wolf"},
    )
    source = open_path(path)
    assert levels(source) == [3, 2, 1] and labels(source) == ["wolf", "ant", "wolf"]
    assert source.label_names == ("ant", "wolf")
    assert [source[i]["text"] for i in range(3)] == ["a Ü", "", "b"]


def test_metadata_with_numbers_for_labels(folder):
    path = folder({"a.png": 1, "b.png": 2})
    metadata(path, {"file_name": "a.png", "label": 2}, {"file_name": "b.png", "label": 0})
    source = open_path(path)
    assert source.label_names == ("0", "1", "2") and [source[i]["label"] for i in range(2)] == [2, 0]


def test_an_archive_is_the_same_set_as_its_folder(folder):
    path = folder({f"{'ab'[i % 2]}/{i}.png": i for i in range(20)})
    sources = [open_path(path), open_path(zipped(path)), open_path(zipped(path, "in.zip", inside="top/in/"))]
    sources.append(pickle.loads(pickle.dumps(sources[1])))
    expected = sources[0]
    for source in sources[1:]:
        assert source.label_names == ("a", "b")
        assert levels(source) == levels(expected) and labels(source) == labels(expected)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: int(sources[1][i % 20]["image"][0, 0, 0]), range(400)))
    assert read == levels(expected) * 20


def test_metadata_in_an_archive(folder):
    path = folder({"a.png": 1, "b.png": 2})
    metadata(path, {"file_name": "b.png", "text": "two"})
    for archive in (zipped(path), zipped(path, "in.zip", inside="top/")):
        source = open_path(archive)
        assert levels(source) == [2] and source[0]["text"] == "two"


def test_a_top_with_train_has_splits(folder):
    path = folder({"train/a/1.png": 1, "train/b/2.png": 2, "test/a/3.png": 3, "other/a/4.png": 4})
    train, test = open_path(path), open_path(path, split="test")
    assert levels(train) == [1, 2] and labels(train) == ["a", "b"] and levels(test) == [3]
    assert levels(open_validation(Data(str(path), 4))) == [3]
    assert open_validation(Data(str(folder({"1.png": 1}, "flat")), 4)) is None


def test_a_split_with_metadata_of_its_own(folder):
    path = folder({"train/1.png": 1, "train/2.png": 2, "val/3.png": 3})
    metadata(path / "train", {"file_name": "2.png", "text": "two"})
    source = open_path(path)
    assert levels(source) == [2] and source[0]["text"] == "two"


def test_an_unknown_split_is_refused(folder, refused):
    path = folder({"train/1.png": 1, "val/3.png": 3})
    message = refused(ValueError, open_source, Data(str(path), 4, split="test"))
    assert "--data.split test" in message and "train, val" in message


def test_missing_and_empty_places_are_refused(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    message = refused(FileNotFoundError, open_source, Data(str(tmp_path / "empty"), 4))
    assert "--data.source" in message and "empty has no images" in message and ".png" in message
    for name in ("none", "none.zip"):
        message = refused(FileNotFoundError, open_source, Data(str(tmp_path / name), 4))
        assert f"{name} does not exist" in message and "--data.source" in message
    (tmp_path / "words.zip").write_text("not an archive")
    assert "words.zip" in refused(ValueError, open_source, Data(str(tmp_path / "words.zip"), 4))
    message = refused(ValueError, open_source, Data(str(tmp_path / "empty" / "notes.txt"), 4))
    assert "notes.txt must be a folder or .zip" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", ["not JSON"]),
        ("[1]", ["file_name"]),
        ('{"text": "x"}', ["file_name"]),
        ('{"file_name": "gone.png"}', ["gone.png does not exist"]),
        ('{"file_name": "../outside.png"}', ["../outside.png does not exist"]),
        ('{"file_name": "a.png", "label": -1}', ["label -1", "0..99999"]),
        ('{"file_name": "a.png", "label": 100000}', ["label 100000", "0..99999"]),
        ('{"file_name": "a.png", "label": 1.5}', ["label", "1.5"]),
        ('{"file_name": "a.png", "label": true}', ["label", "True"]),
        ('{"file_name": "a.png", "text": 3}', ["text", "3"]),
    ],
)
def test_a_wrong_line_of_metadata_is_refused_with_its_number(folder, refused, line, words):
    path = folder({"a.png": 1})
    folder({"outside.png": 1}, ".")
    metadata(path, {"file_name": "a.png", "label": 1}, line)
    message = refused((ValueError, FileNotFoundError), open_source, Data(str(path), 4))
    assert "metadata.jsonl line 2" in message
    for word in words:
        assert word in message


def test_metadata_as_a_whole_is_checked(folder, refused):
    path = folder({"a.png": 1, "b.png": 2})
    for other in ({"file_name": "b.png"}, {"file_name": "b.png", "label": "x"}):
        metadata(path, {"file_name": "a.png", "label": 1}, other)
        assert "label of one kind" in refused(ValueError, open_source, Data(str(path), 4))
    metadata(path, "")
    assert "lists no images" in refused(ValueError, open_source, Data(str(path), 4))
    (path / "metadata.jsonl").write_bytes(b'{"file_name": "\xff"}')
    assert "UTF-8" in refused(ValueError, open_source, Data(str(path), 4))


def test_a_broken_picture_is_refused_by_its_own_name(folder, refused):
    path = folder({"a.png": 1, "in/b.png": 2, "c.png": 3})
    (path / "in" / "b.png").write_text("words")
    archive = zipped(path)
    source = open_path(path)
    (path / "c.png").unlink()  # gone since the set was opened
    assert str(path / "in" / "b.png") in refused(BrokenImageError, source.__getitem__, 2)
    assert str(path / "c.png") in refused(BrokenImageError, source.__getitem__, 1)
    assert "set.zip/in/b.png" in refused(BrokenImageError, open_path(archive).__getitem__, 2)


def test_a_damaged_member_of_an_archive_is_refused_by_its_name(folder, refused):
    archive = zipped(folder({"a.png": 1, "b.png": 2}))
    damaged = archive.read_bytes().replace(b"IDAT", b"IDOT", 1)  # the archive's checksum finds it
    shutil.move(archive, archive.with_name("whole.zip"))
    archive.write_bytes(damaged)
    source = open_path(archive)
    assert "set.zip/a.png" in refused(BrokenImageError, source.__getitem__, 0)
    assert source[1]["image"][0, 0, 0] == 2
