"""Sets of TensorFlow Datasets, prepared and read in the test; TensorFlow is not among the tests' packages."""

import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdiff.data import Data, open_source, open_validation
from jaxdiff.data.images import BrokenImageError


def builder_class(name, features, examples):
    """A builder with 10 training and 4 test examples, example i being `examples(split, i)`."""

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def generate(split, n):
        return ((i, examples(split, i)) for i in range(n))

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, manager: {"train": generate("train", 10), "test": generate("test", 4)},
        "_generate_examples": lambda self: (),
        "__module__": __name__,
    }
    return type(name, (tfds.core.GeneratorBasedBuilder,), members, skip_registration=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, png):
    """A folder with two prepared sets: `jaxdiff_tiny` with images, one of them broken, `jaxdiff_words` without."""
    folder = tmp_path_factory.mktemp("tfds")

    def tiny(split, i):
        level = i * 10 if split == "train" else 200 + i
        image = png(np.full((6, 8, 3), level, np.uint8))
        return {
            "photo": b"broken" if (split, i) == ("test", 3) else image,
            "label": i % 3,
            "coarse": 0,
            "caption": f"{split} {i}",
            "id": "x",
        }

    features = {
        "photo": tfds.features.Image(shape=(None, None, 3)),
        "coarse": tfds.features.ClassLabel(names=["all"]),
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        "id": tfds.features.Text(),
        "caption": tfds.features.Text(),
    }
    for cls in (
        builder_class("JaxdiffTiny", features, tiny),
        builder_class("JaxdiffWords", {"words": tfds.features.Text()}, lambda split, i: {"words": "x"}),
    ):
        cls(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def levels(source):
    return sorted(int(source[i]["image"][0, 0, 0]) for i in range(len(source)))


def test_a_prepared_set_is_read(prepared):
    source = open_source(Data(f"tfds:jaxdiff_tiny:{prepared}", 6))
    assert levels(source) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert source.label_names == ("a", "b", "c") and source[0]["image"].shape == (6, 8, 3)
    for i in range(10):
        number = int(source[i]["image"][0, 0, 0]) // 10
        assert source[i]["label"] == number % 3 and source[i]["text"] == f"train {number}"


def test_splits_slices_versions_and_validation(prepared):
    spec = f"tfds:jaxdiff_tiny:1.0.0:{prepared}"
    assert len(open_source(Data(spec, 6, split="train[:30%]"))) == 3
    assert len(open_source(Data(spec, 6, split="train+test"))) == 14
    assert open_validation(Data(spec, 6, split="train+test")) is None
    validation = open_validation(Data(spec, 6))
    assert len(validation) == 4


def test_a_source_can_be_sent_to_another_process(prepared):
    source = open_source(Data(f"tfds:jaxdiff_tiny:{prepared}", 6))
    assert levels(pickle.loads(pickle.dumps(source))) == levels(source)


def test_a_broken_record_is_refused_with_set_and_place(prepared, refused):
    source = open_source(Data(f"tfds:jaxdiff_tiny:{prepared}", 6, split="test"))
    message = refused(BrokenImageError, lambda: [source[i] for i in range(4)])
    assert message.startswith(f"tfds:jaxdiff_tiny:{prepared} test[") and "not an image" in message


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tmp_path, refused):
    message = refused(FileNotFoundError, open_source, Data(f"tfds:cifar10:{tmp_path}", 32))
    assert "--data.source tfds:cifar10" in message and "TensorFlow once" in message
    assert "pip install 'jaxdiff[tfds]'" in message
    assert f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}" in message


def test_a_set_in_another_format_says_how_to_prepare_it(prepared, tmp_path, refused):
    shutil.copytree(prepared / "jaxdiff_tiny", tmp_path / "jaxdiff_tiny")
    folder = tmp_path / "jaxdiff_tiny" / "1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    for file in list(folder.glob("*array_record*")):
        file.rename(folder / file.name.replace("array_record", "tfrecord"))
    message = refused(ValueError, open_source, Data(f"tfds:jaxdiff_tiny:{tmp_path}", 6))
    assert "prepared as tfrecord" in message and "tfds build jaxdiff_tiny --file_format=array_record" in message


def test_unknown_names_are_refused(prepared, refused):
    message = refused(ValueError, open_source, Data(f"tfds:cifar11:{prepared}", 32))
    assert "no set cifar11" in message and "cifar10" in message and str(prepared) in message
    for split in ("validation", "validation[:10%]"):
        message = refused(ValueError, open_source, Data(f"tfds:jaxdiff_tiny:{prepared}", 6, split=split))
        assert f"--data.split {split} is not in" in message and "train, test" in message
    message = refused(ValueError, open_source, Data(f"tfds:jaxdiff_tiny:{prepared}", 6, split="train[x]"))
    assert "--data.split train[x]" in message
    message = refused(ValueError, open_source, Data(f"tfds:jaxdiff_tiny:2.0.0:{prepared}", 6))
    assert "no set jaxdiff_tiny:2.0.0" in message
    message = refused(ValueError, open_source, Data("tfds::x", 6))
    assert "tfds:NAME" in message


def test_a_set_without_images_is_refused(prepared, refused):
    message = refused(ValueError, open_source, Data(f"tfds:jaxdiff_words:{prepared}", 6))
    assert "no image feature" in message and "words" in message
