"""Image sets of TensorFlow Datasets, read without TensorFlow.

TFDS reads a set at random, and without TensorFlow, where it was prepared with `file_format="array_record"`.
Nothing is downloaded or prepared here: a set that is not prepared is refused, with the command to prepare it.
"""

import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etils import epath

from jaxdiff.data.images import decode
from jaxdiff.data.source import Example
from jaxdiff.data.units import Window

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


@dataclass(frozen=True, eq=False)
class TFDSSource:
    """A split of a prepared set: `records[i]` is a mapping whose feature `image` is an encoded picture."""

    name: str
    records: Sequence[Mapping[str, object]]
    image: str
    label: str | None
    label_names: tuple[str, ...]
    text: str | None
    window: Window | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        encoded = record[self.image]
        if not isinstance(encoded, bytes):
            raise ValueError(f"{self.name}: the feature {self.image} of a record is no encoded picture")
        example = Example(image=decode(encoded, f"{self.name}[{index}]", self.window))
        if self.label is not None:
            example["label"] = int(record[self.label])  # pyright: ignore[reportArgumentType]
        if self.text is not None:
            text = record[self.text]
            example["text"] = text.decode() if isinstance(text, bytes) else str(text)
        return example


def tfds_splits(spec: str) -> tuple[str, ...]:
    """The splits of the set that `spec`, NAME[/CONFIG][:VERSION][:DIR], names."""
    return tuple(_builder(spec).info.splits)


def open_tfds(spec: str, split: str, window: Window | None = None) -> TFDSSource:
    """A split, or a slice of one such as `train[:10%]`, of the prepared set NAME[/CONFIG][:VERSION][:DIR].

    The picture is the feature `image`, or the set's only image; likewise the label is the feature `label`, or
    its only class, and the caption is the feature `text` or `caption`, or its only text.
    Raises ValueError or FileNotFoundError, one line.
    """
    import tensorflow_datasets as tfds

    builder = _builder(spec)
    features, splits = builder.info.features, builder.info.splits
    if not isinstance(features, tfds.features.FeaturesDict):
        raise ValueError(f"--data.source tfds:{spec} has records without named features")
    if re.split(r"[\[+]", split)[0] not in splits:
        raise ValueError(f"--data.split {split} is not in tfds:{spec}, which has {', '.join(splits)}")
    kinds = {key: type(feature) for key, feature in features.items()}
    image = _pick(kinds, ("image",), tfds.features.Image)
    label = _pick(kinds, ("label",), tfds.features.ClassLabel)
    text = _pick(kinds, ("text", "caption"), tfds.features.Text)
    if image is None:
        raise ValueError(f"--data.source tfds:{spec} has no image feature, its features are {', '.join(kinds)}")
    decoders = {image: tfds.decode.SkipDecoding()}
    try:
        records = builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]
    except NotImplementedError as error:
        form = builder.info.file_format.value if builder.info.file_format else "an unknown format"
        raise ValueError(
            f"--data.source tfds:{spec} is prepared as {form} in {builder.data_dir}, need array_record:"
            f" {_how_to_prepare(spec, 'ANOTHER_DIR')}"
        ) from error
    except ValueError as error:
        raise ValueError(f"--data.split {split} is no split of tfds:{spec} ({_one_line(error)})") from error
    names = tuple(features[label].names) if label else ()  # pyright: ignore[reportAttributeAccessIssue]
    return TFDSSource(f"tfds:{spec} {split}", records, image, label, names, text, window)


def _builder(spec: str) -> "tfds.core.DatasetBuilder":
    """The builder of a prepared set; raises where it is unknown or not prepared."""
    import tensorflow_datasets as tfds

    name, folder = _name_and_folder(spec)
    data_dir = epath.Path(folder).expanduser() if folder else None
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(re.split("[/:]", name)[0], known, 3)
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"--data.source tfds:{spec} is unknown: TFDS has no set {name}, nor is one prepared in"
            f" {folder or 'its default folder'}{hint}"
        ) from error
    except ImportError as error:
        raise ValueError(
            f"--data.source tfds:{spec} needs a package that is missing: `pip install 'jaxdiff[tfds]'`"
            f" ({_one_line(error)})"
        ) from error
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"--data.source tfds:{spec} cannot be opened ({_one_line(error)})") from error
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"--data.source tfds:{spec} is not prepared in {builder.data_dir}:"
            f" preparing it needs TensorFlow once, {_how_to_prepare(spec, folder)}; reading it does not"
        )
    return builder


def _name_and_folder(spec: str) -> tuple[str, str]:
    """NAME[/CONFIG][:VERSION] and DIR of a spec."""
    match = re.fullmatch(r"([^:]+(?::\d+\.\d+\.\d+)?)(?::(.*))?", spec)
    if match is None or not match[1]:
        raise ValueError(f"--data.source tfds:{spec} must read tfds:NAME[/CONFIG][:VERSION][:DIR]")
    return match[1], match[2] or ""


def _how_to_prepare(spec: str, folder: str) -> str:
    command = f"tfds build {_name_and_folder(spec)[0]} --file_format=array_record"
    command += f" --data_dir={folder}" if folder else ""
    return f"`pip install 'jaxdiff[tfds]'` and `{command}`"


def _pick(kinds: Mapping[str, type], wanted: tuple[str, ...], kind: type) -> str | None:
    """The feature of that kind with a wanted name, else the only one of its kind, else None."""
    keys = [key for key in kinds if issubclass(kinds[key], kind)]
    named = [key for key in wanted if key in keys]
    return (named or (keys if len(keys) == 1 else [None]))[0]


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...")
