"""What a source of images is, and sources made of others. A source is read by index and can be pickled."""

from dataclasses import dataclass
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer, UInt8


class Example(TypedDict):
    """One picture: image uint8 [h, w, c] of its own size, and the class, caption and keywords that the set gives.

    Of a precomputed set image may be float32 latents, ``flipped`` those of the mirrored picture, and ``text_tokens``
    [n, d], ``text_mask`` [n] (1: a token, 0: none) and ``text_pooled`` [d] what a text encoder said of the caption.
    ``text_rows`` are places in a table of such features (`captions.Captioned`).
    """

    image: UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]
    label: NotRequired[int]
    text: NotRequired[str]
    keywords: NotRequired[tuple[str, ...]]
    source: NotRequired[UInt8[np.ndarray, "h w c"]]
    """The picture that this one is made from, where the set has pairs."""
    flipped: NotRequired[UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]]
    text_tokens: NotRequired[Float32[np.ndarray, "n d"]]
    text_mask: NotRequired[Float32[np.ndarray, " n"]]
    text_pooled: NotRequired[Float32[np.ndarray, " d"]]
    text_rows: NotRequired[Int32[np.ndarray, " k"]]


@runtime_checkable
class Source(Protocol):
    """A set of pictures: `source[i]`, 0 <= i < len(source); raises BrokenImageError where a file is none."""

    @property
    def name(self) -> str:
        """The set in words, for messages."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each class; empty if the set has no labels."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Pictures of one size in memory: images [n, h, w, c], label [n] or None, as many texts or none."""

    name: str
    images: UInt8[np.ndarray, "n h w c"]
    label: Integer[np.ndarray, " n"] | None = None
    label_names: tuple[str, ...] = ()
    text: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        example = Example(image=self.images[index])
        if self.label is not None:
            example["label"] = int(self.label[index])
        if self.text:
            example["text"] = self.text[index]
        return example


@dataclass(frozen=True, eq=False)
class Subset:
    """The pictures of `source` at the given places, in that order."""

    source: Source
    indices: Integer[np.ndarray, " m"]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.source.label_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[index])]


def partition(n: int, holdout: float) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " m"]]:
    """The places in 0..n-1 to train on, and the round(holdout * n) places held out, each in rising order.

    A place is held out by a fixed hash of its number (the finaliser of SplitMix64), so the choice depends on
    n and holdout alone: not on the seed of a run, nor on a library's random numbers.
    """
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = np.argsort(z ^ (z >> np.uint64(31)), kind="stable")
    held = round(holdout * n)
    return np.sort(order[held:]), np.sort(order[:held])
