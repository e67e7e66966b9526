"""A source fitted to a run: its pictures resized, converted, kept in memory, broken ones passed over."""

import logging
from typing import NotRequired, TypedDict, cast

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from jaxdiff.data.captions import Captioned
from jaxdiff.data.config import Data
from jaxdiff.data.images import BrokenImageError, fit, with_channels
from jaxdiff.data.records import TEXT
from jaxdiff.data.source import Example, Source

log = logging.getLogger(__name__)

CACHE_BYTES = 2**30
"""Largest set of fitted pictures that is kept in memory."""


class Picture(TypedDict):
    """image uint8 [h, w, c], fitted to the run, or float32 latents; the rest where it has them.

    label int32 [], augment float32 [9], ``source`` (what the network is shown beside it), ``flipped`` (the latents of
    the mirrored picture), and what a text encoder said of its caption: text_tokens float32 [n, d], text_mask float32
    [n], text_pooled float32 [d]; or text_rows int32 [k], where in the table of captions its wordings are.
    """

    image: UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]
    label: NotRequired[Int32[np.ndarray, ""]]
    augment: NotRequired[Float32[np.ndarray, "9"]]
    source: NotRequired[UInt8[np.ndarray, "h w c"]]
    flipped: NotRequired[Float32[np.ndarray, "h w c"]]
    text_tokens: NotRequired[Float32[np.ndarray, "n d"]]
    text_mask: NotRequired[Float32[np.ndarray, " n"]]
    text_pooled: NotRequired[Float32[np.ndarray, " d"]]
    text_rows: NotRequired[Int32[np.ndarray, " k"]]


def nbytes(picture: Picture) -> int:
    """Bytes of all its arrays."""
    return sum(leaf.nbytes for leaf in cast(dict[str, np.ndarray], picture).values())


class Pictures:
    """`source` as `data` wants it: [size, size, c]; for a random crop the short side is size.

    They are kept in memory as they are first read, if the whole set is below 1 GiB and no workers read it.
    A broken picture raises BrokenImageError or, with `data.skip_broken`, is replaced by the next good one in
    the set, so that batches stay full; `broken` holds the places of those met so far.
    """

    def __init__(self, data: Data, source: Source):
        self.data, self.source = data, source
        self.labelled = data.labels and bool(source.label_names)
        self.captions = source.table if isinstance(source, Captioned) else {}
        self.broken: set[int] = set()
        may_keep = data.crop != "random" and data.workers == 0
        nothing: list[Picture | None] = [None] * len(source)
        self.kept = nothing if may_keep else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Picture:
        kept = self.kept  # other threads may end the keeping meanwhile
        if kept is None:
            return self.fitted(index)
        picture = kept[index]
        if picture is None:
            picture = self.fitted(index)
            if len(self) * nbytes(picture) > CACHE_BYTES:
                self.kept = None
                return picture
            kept[index] = picture
        return picture

    def fitted(self, index: int) -> Picture:
        """The picture at `index`, or the first good one after it, read and fitted."""
        return self.fit(self.good(index))

    def fit(self, example: Example) -> Picture:
        """The example's picture, fitted, with what else the run wants of it."""
        image = example["image"]
        if image.shape != (self.data.size, self.data.size, self.data.channels):  # never latents: those are refused
            image = fit(with_channels(image, self.data.channels), self.data.size, self.data.crop)
        picture = Picture(image=image)
        if self.data.pairs:
            picture["source"] = self.fit_source(example, image)
        if self.labelled and "label" in example:
            picture["label"] = np.asarray(example["label"], np.int32)
        if self.data.flip and "flipped" in example and image.dtype != np.uint8:
            picture["flipped"] = example["flipped"]
        if "text_rows" in example:
            picture["text_rows"] = example["text_rows"]
        elif self.data.text:
            cast(dict, picture).update({key: cast(dict, example)[key] for key in TEXT})
        return picture

    def fit_source(self, example: Example, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """The picture that the example's is made from, fitted alike. Raises: ValueError where there is none."""
        if "source" not in example:
            raise ValueError(f"{self.source.name} has no source_file_name in its metadata.jsonl (--no-data.pairs)")
        found = fit(with_channels(example["source"], self.data.channels), self.data.size, self.data.crop)
        if found.shape != image.shape:
            raise ValueError(f"{self.source.name} has a pair of pictures of two shapes (--data.crop center or none)")
        return found

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
