"""The Grain pipeline: from a source to batches, the same at any number of processes and after any resume.

The pictures of a run form one endless sequence of elements g = 0, 1, 2, ...: epoch after epoch of the set,
each in an order of its own. Batch k of B is the elements k*B to (k+1)*B - 1, so batches run across the ends
of epochs and none is short. Element g, with its crop, mirroring and augmentation, depends on (seed, g) alone;
process p of P reads rows p*B/P to (p+1)*B/P - 1 of every batch, and any step is reached without reading those
before it.
"""

from collections.abc import Iterator, Mapping
from typing import NotRequired, TypedDict

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float32, Int32, UInt8

from jaxdiff.data.augment import LABELS, augment
from jaxdiff.data.config import Data
from jaxdiff.data.images import window
from jaxdiff.data.pictures import Picture, Pictures
from jaxdiff.data.source import Source

READ_AHEAD = 4
"""Batches that wait, ready, for the training step."""

THREADS = 2
"""Threads that read ahead in this process: few, for on a small machine they share the step's cores."""


class Batch(TypedDict):
    """What a training step sees: image uint8 [b, h, w, c]; label int32 [b] where the set has labels;
    augment float32 [b, 9] where EDM's augmentation is on; in validation, mask bool [b], False in padding."""

    image: UInt8[np.ndarray, "b h w c"]
    label: NotRequired[Int32[np.ndarray, " b"]]
    augment: NotRequired[Float32[np.ndarray, "b 9"]]
    mask: NotRequired[Bool[np.ndarray, " b"]]


class Rows(grain.MapDataset):
    """The elements of `parent` that one process reads: its rows of each batch, batch after batch."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, index: int, count: int):
        super().__init__(parent)
        self.batch_size, self.first, self.rows = batch_size, index * batch_size // count, batch_size // count

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size * self.rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self.rows)
        return self._parent[batch * self.batch_size + self.first + row]


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
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
) -> Batches:
    """The batches of a run from step `start` on: rows of this process of each global batch of `batch_size`.

    Every epoch holds each picture once, in an order that (seed, epoch) fixes. Raises ValueError for an empty
    source, a seed outside 0..2^32-1, and a batch that the processes cannot share evenly.
    """
    if not len(source):
        raise ValueError(f"{source.name} has no images left to train on (--data.source, --data.holdout)")
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be in 0..{2**32 - 1}, got {seed}")
    check_rows(batch_size, process_index, process_count)
    pictures = Pictures(data, source)
    dataset = grain.MapDataset.source(pictures).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(Vary(data))
    dataset = Rows(dataset, batch_size, process_index, process_count)
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)  # there is no last batch
    return Batches(dataset, pictures, data.workers, start)


def validation_batches(
    data: Data, source: Source, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """One pass over `source` in its own order, cropped at the centre, with nothing random.

    ceil(n / batch_size) batches; in the rows that fill the last one `mask` is False, image and label are 0.
    """
    check_rows(batch_size, process_index, process_count)
    pictures = Pictures(data, source)
    rows = batch_size // process_count
    for first in range(process_index * rows, len(source) + process_index * rows, batch_size):
        yield validation_batch(data, pictures, range(first, first + rows))


def validation_batch(data: Data, pictures: Pictures, places: range) -> Batch:
    """The pictures at `places` in their order, padded where the set has ended."""
    n = len(places)
    batch = Batch(
        image=np.zeros((n, data.size, data.size, data.channels), np.uint8),
        mask=np.array([i < len(pictures) for i in places]),
    )
    if pictures.labelled:
        batch["label"] = np.zeros(n, np.int32)
    if data.augment:
        batch["augment"] = np.zeros((n, LABELS), np.float32)
    for row, i in enumerate(places):
        if i < len(pictures):
            picture = pictures[i]
            batch["image"][row] = window(picture["image"], data.size, 0.5)
            if "label" in batch and "label" in picture:
                batch["label"][row] = picture["label"]
    return batch


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


def check_rows(batch_size: int, process_index: int, process_count: int) -> None:
    """Raises ValueError unless `process_count` processes share a batch evenly."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"--batch-size must be a positive multiple of the {process_count} processes, got {batch_size}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, got {process_index}")


class Vary(grain.transforms.RandomMap):
    """What is random about an element: the place of a random crop, mirroring, EDM's augmentation."""

    def __init__(self, data: Data):
        self.data = data

    def random_map(self, element: Picture, rng: np.random.Generator) -> Picture:
        data, out = self.data, element.copy()
        image = window(element["image"], data.size, rng.random() if data.crop == "random" else 0.5)
        if data.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        if data.augment:
            image, out["augment"] = augment(rng, image, data.augment)
        out["image"] = image
        return out
