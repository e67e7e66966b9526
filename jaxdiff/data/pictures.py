"""A source fitted to a run: its pictures resized, converted, kept in memory, broken ones passed over."""

import logging
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from jaxdiff.data.config import Data
from jaxdiff.data.images import BrokenImageError, fit, with_channels
from jaxdiff.data.source import Example, Source

log = logging.getLogger(__name__)

CACHE_BYTES = 2**30
"""Largest set of fitted pictures that is kept in memory."""


class Picture(TypedDict):
    """image uint8 [h, w, c], fitted to the run; label int32 [], augment float32 [9] where it has them."""

    image: UInt8[np.ndarray, "h w c"]
    label: NotRequired[Int32[np.ndarray, ""]]
    augment: NotRequired[Float32[np.ndarray, "9"]]


class Pictures:
    """`source` as `data` wants it: [size, size, c]; for a random crop the short side is size.

    They are kept in memory as they are first read, if the whole set is below 1 GiB and no workers read it.
    A broken picture raises BrokenImageError or, with `data.skip_broken`, is replaced by the next good one in
    the set, so that batches stay full; `broken` holds the places of those met so far.
    """

    def __init__(self, data: Data, source: Source):
        self.data, self.source = data, source
        self.labelled = data.labels and bool(source.label_names)
        self.broken: set[int] = set()
        shape = (len(source), data.size, data.size, data.channels)
        small = data.crop != "random" and data.workers == 0 and np.prod(shape, dtype=float) <= CACHE_BYTES
        self.images = np.empty(shape if small else (0, 0, 0, 0), np.uint8)
        self.labels = np.empty(len(self.images), np.int32)
        self.kept = np.zeros(len(self.images), bool)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Picture:
        if not len(self.kept):
            return self.fitted(index)
        if not self.kept[index]:
            picture = self.fitted(index)
            self.images[index] = picture["image"]
            self.labels[index] = picture.get("label", 0)
            self.kept[index] = True  # last, for threads that read the same place
        picture = Picture(image=self.images[index])
        if self.labelled:
            picture["label"] = np.asarray(self.labels[index])
        return picture

    def fitted(self, index: int) -> Picture:
        """The picture at `index`, or the first good one after it, read and fitted."""
        example = self.good(index)
        image = fit(with_channels(example["image"], self.data.channels), self.data.size, self.data.crop)
        picture = Picture(image=image)
        if self.labelled and "label" in example:
            picture["label"] = np.asarray(example["label"], np.int32)
        return picture

    def good(self, index: int) -> Example:
        """The example at `index`; with `skip_broken`, the first readable one from there on, round the set."""
        if not self.data.skip_broken:
            return self.source[index]
        n = len(self.source)
        for i in range(index, index + n):
            try:
                return self.source[i % n]
            except BrokenImageError as error:
                self.skip(i % n, error)
        raise ValueError(f"{self.source.name}: none of its {n} images can be read (--data.source)")

    def skip(self, index: int, error: BrokenImageError) -> None:
        """Counts a broken picture, and warns of the 1st, 10th, 100th, ... ."""
        if index in self.broken:
            return
        self.broken.add(index)
        count = len(self.broken)
        if count == 10 ** (len(str(count)) - 1):
            log.warning("skipped %d broken image%s so far: %s", count, "s" * (count > 1), error)
