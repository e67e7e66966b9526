"""The Grain pipeline: from a source to batches, the same at any number of processes and after any resume.

The pictures of a run form one endless sequence of elements g = 0, 1, 2, ...: epoch after epoch of the set,
each in an order of its own. Batch k of B is the elements k*B to (k+1)*B - 1, so batches run across the ends
of epochs and none is short. Element g, with its crop, mirroring and augmentation, depends on (seed, g) alone;
a process reads only the rows of every batch that its devices hold, and any step is reached without reading those
before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NotRequired, TypedDict, cast

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float32, Int32, UInt8

from jaxdiff.data.augment import LABELS, augment
from jaxdiff.data.config import Data
from jaxdiff.data.images import lowered, noisy, window
from jaxdiff.data.pictures import Picture, Pictures
from jaxdiff.data.records import TEXT
from jaxdiff.data.source import Source

READ_AHEAD = 4
"""Batches that wait, ready, for the training step."""

THREADS = 2
"""Threads that read ahead in this process: few, for on a small machine they share the step's cores."""


class Batch(TypedDict):
    """What a training step sees: image uint8 [b, h, w, c], or float32 latents; label int32 [b] where the set has any;
    augment float32 [b, 9] where EDM's augmentation is on; source uint8 [b, h, w, c], the picture that the network is
    shown beside it, with `Data.low` or `Data.pairs`; with `Data.text` the captions' features, or text_ids, their
    tokens, -1 where there is none; in validation, mask bool [b], False in padding."""

    image: UInt8[np.ndarray, "b h w c"] | Float32[np.ndarray, "b h w c"]
    label: NotRequired[Int32[np.ndarray, " b"]]
    augment: NotRequired[Float32[np.ndarray, "b 9"]]
    source: NotRequired[UInt8[np.ndarray, "b h w c"]]
    text_tokens: NotRequired[Float32[np.ndarray, "b n d"]]
    text_mask: NotRequired[Float32[np.ndarray, "b n"]]
    text_pooled: NotRequired[Float32[np.ndarray, "b d"]]
    text_ids: NotRequired[Int32[np.ndarray, "b n"]]
    mask: NotRequired[Bool[np.ndarray, " b"]]


class Rows(grain.MapDataset):
    """The elements of `parent` that one process reads: its rows of each batch, batch after batch."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(parent)
        self.batch_size, self.rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size * len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self.rows))
        return self._parent[batch * self.batch_size + self.rows[row]]


class Batches:
    """An endless iterator of batches. Its state is the number of the next step, whatever reads ahead."""

    def __init__(self, dataset: grain.MapDataset, pictures: Pictures, workers: int, start: int):
        self.dataset, self.pictures, self.workers, self.step = dataset, pictures, workers, start
        self.reader: grain.DatasetIterator | None = None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        reader = self.reader or read_ahead(self.dataset[self.step :], self.workers)
        self.reader = reader
        batch = next(reader)
        self.step += 1
        return batch

    @property
    def broken(self) -> int:
        """Number of broken pictures met and skipped so far by this process (0 where workers read)."""
        return len(self.pictures.broken)

    def get_state(self) -> dict[str, int]:
        """{"step": number of the next batch}: all that a checkpoint needs, as JSON."""
        return {"step": self.step}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on at the batch that `state`, from `get_state`, names."""
        self.close()
        self.step = int(state["step"])

    def close(self) -> None:
        """Ends the threads or processes that read ahead; the next batch starts them again."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None


def batches(
    data: Data,
    source: Source,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    start: int = 0,
) -> Batches:
    """The batches of a run from step `start` on: these `rows` of each batch of `batch_size`, by default all.

    Every epoch holds each picture once, in an order that (seed, epoch) fixes. Raises ValueError for an empty
    source, a seed outside 0..2^32-1, and rows outside the batch.
    """
    if not len(source):
        raise ValueError(f"{source.name} has no images left to train on (--data.source, --data.holdout)")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be in 0..{2**32 - 1}, got {seed}")
    rows = check_rows(batch_size, rows)
    pictures = Pictures(data, source)
    dataset = grain.MapDataset.source(pictures).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(Vary(data, pictures.captions))
    dataset = Rows(dataset, batch_size, rows)
    dataset = dataset.batch(len(rows), drop_remainder=True)  # there is no last batch
    return Batches(dataset, pictures, data.workers, start)


def validation_batches(
    data: Data, source: Source, batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[Batch]:
    """One pass over `source` in its own order, cropped at the centre, with nothing random: `rows` of each batch.

    ceil(n / batch_size) batches; in the rows that fill the last one `mask` is False, image and label are 0.
    """
    rows = check_rows(batch_size, rows)
    pictures = Pictures(data, source)
    for first in range(0, len(source), batch_size):
        yield validation_batch(data, pictures, [first + row for row in rows])


def validation_batch(data: Data, pictures: Pictures, places: Sequence[int]) -> Batch:
    """The pictures at `places` in their order, padded where the set has ended."""
    rows = [pictures[i] if i < len(pictures) else None for i in places]
    some = next((row for row in rows if row is not None), None) or pictures[0]
    texts = text_of(some, pictures.captions, 0)
    n, shape = len(places), (data.size, data.size, data.channels)
    batch = Batch(image=np.zeros((n, *shape), some["image"].dtype), mask=np.array([row is not None for row in rows]))
    if pictures.labelled:
        batch["label"] = np.zeros(n, np.int32)
    if data.augment:
        batch["augment"] = np.zeros((n, LABELS), np.float32)
    if data.low or data.pairs:
        batch["source"] = np.zeros((n, *shape), np.uint8)
    blank = {key: np.zeros((n, *leaf.shape), leaf.dtype) for key, leaf in texts.items()}
    for i, row in enumerate(rows):
        if row is not None:
            batch["image"][i] = window(row["image"], data.size, 0.5)
            if "source" in batch:
                batch["source"][i] = shown(data, row, batch["image"][i], 0.5)
            if "label" in batch and "label" in row:
                batch["label"][i] = row["label"]
            for key, leaf in text_of(row, pictures.captions, 0).items():
                blank[key][i] = leaf
    cast(dict, batch).update(blank)
    return batch


def shown(data: Data, picture: Picture, image: UInt8[np.ndarray, "h w c"], where: float) -> UInt8[np.ndarray, "h w c"]:
    """What the network is shown beside `image`, the window of the picture at `where`, without mirroring and noise."""
    return window(picture["source"], data.size, where) if "source" in picture else lowered(image, data.low)


def text_of(picture: Picture, table: Mapping[str, np.ndarray], wording: int) -> dict[str, np.ndarray]:
    """What the network is told of a picture's caption, in one of its wordings; {} where it is told nothing."""
    if "text_rows" in picture:
        row = picture["text_rows"][wording]
        return {key: leaf[row] for key, leaf in table.items()}
    return {key: leaf for key, leaf in cast(dict[str, np.ndarray], picture).items() if key in TEXT}


def read_ahead(dataset: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    """Iterates over `dataset`, whose elements are batches, a few of them ahead."""
    if workers == 0:
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=READ_AHEAD)
        return iter(dataset.to_iter_dataset(options))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes read absl's flags, which only absl's own main parses
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=READ_AHEAD)
    return iter(dataset.to_iter_dataset(options).mp_prefetch(processes))


def check_rows(batch_size: int, rows: Sequence[int] | None) -> Sequence[int]:
    """The rows, or all of them. Raises: ValueError for none, and for rows outside the batch."""
    rows = range(batch_size) if rows is None else rows
    if not rows or not 0 <= min(rows) <= max(rows) < batch_size:
        raise ValueError(f"rows {list(rows)} of a batch must be some of 0..{batch_size - 1} (--batch-size)")
    return rows


class Vary(grain.transforms.RandomMap):
    """What is random about an element: the place of a random crop, mirroring, EDM's augmentation, the wording."""

    def __init__(self, data: Data, captions: Mapping[str, np.ndarray]):
        self.data, self.captions = data, captions

    def random_map(self, element: Picture, rng: np.random.Generator) -> Picture:
        data, out = self.data, element.copy()
        where = rng.random() if data.crop == "random" else 0.5
        image = window(element["image"], data.size, where)
        flipped = out.pop("flipped", None)
        mirrored = data.flip and rng.random() < 0.5
        if mirrored:
            image = image[:, ::-1] if flipped is None else flipped
        if data.augment:
            image, out["augment"] = augment(rng, image, data.augment)
        out["image"] = image
        if data.pairs:
            source = shown(data, element, image, where)
            out["source"] = source[:, ::-1] if mirrored else source
        elif data.low:
            out["source"] = noisy(rng, lowered(image, data.low), data.low_noise)
        rows = out.pop("text_rows", None)
        if rows is not None:
            cast(dict, out).update(text_of(element, self.captions, int(rng.integers(len(rows)))))
        return out
