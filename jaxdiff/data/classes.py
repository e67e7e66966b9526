"""The classes of a set: every picture's label, and the pictures of some classes alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from jaxdiff.data.files import FileSource
from jaxdiff.data.medical.slices import SliceSource
from jaxdiff.data.records import RecordSource, unpack
from jaxdiff.data.source import ArraySource, Example, Source, Subset
from jaxdiff.data.subject import Told
from jaxdiff.data.tfds import TFDSSource


@dataclass(frozen=True, eq=False)
class OfClasses:
    """The pictures of `source` at the given places, with labels of their own: places in `label_names`."""

    source: Source
    indices: Integer[np.ndarray, " m"]
    label: Integer[np.ndarray, " m"]
    label_names: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.source.name} ({', '.join(self.label_names)})"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        example = self.source[int(self.indices[index])].copy()
        example["label"] = int(self.label[index])
        return example


def labels_of(source: Source) -> Integer[np.ndarray, " n"] | None:
    """The label of every picture, without decoding any; None where the set has no classes."""
    match source:
        case ArraySource() | FileSource() | OfClasses() | SliceSource():
            return source.label
        case Subset():
            labels = labels_of(source.source)
            return None if labels is None else labels[source.indices]
        case Told():
            return labels_of(source.source)
        case TFDSSource() if source.label is not None:
            return np.array([int(record[source.label]) for record in source.records], np.int32)  # pyright: ignore
        case RecordSource() if any(a.name == "label" for a in source.header.arrays):
            records = (source.records[i] for i in range(len(source)))
            return np.array([int(unpack(source.header.arrays, record)[0]["label"]) for record in records], np.int32)
    return None


def class_of(name: str, label_names: Sequence[str], flag: str) -> int:
    """The class that a name or a number means. Raises: ValueError, naming the classes and the flag."""
    named = {known.casefold(): i for i, known in enumerate(label_names)}
    index = named.get(name.casefold(), int(name) if name.isdecimal() else -1)
    if not 0 <= index < len(label_names):
        known = f"0 to {len(label_names) - 1}, or one of {', '.join(label_names)}" if label_names else "it has none"
        raise ValueError(f"{name!r} is no class of this set: {known} ({flag})")
    return index


def of_classes(source: Source, names: Sequence[str], flag: str = "--data.classes") -> OfClasses:
    """The pictures of these classes, in the set's order; class k of the new set is `names[k]`.

    Raises: ValueError where the set has no such class, or no picture of it.
    """
    labels = labels_of(source)
    if labels is None or not source.label_names:
        raise ValueError(f"{source.name} has no classes to choose from ({flag})")
    chosen = [class_of(name, source.label_names, flag) for name in names]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"a class is named twice: {', '.join(names)} ({flag})")
    new = np.full(len(source.label_names), -1, np.int32)
    new[chosen] = np.arange(len(chosen))
    places = np.flatnonzero(new[labels] >= 0)
    if not len(places):
        raise ValueError(f"{source.name} has no pictures of {', '.join(names)} ({flag})")
    return OfClasses(source, places, new[labels[places]], tuple(source.label_names[i] for i in chosen))
