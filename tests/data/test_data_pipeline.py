"""The Grain pipeline. Picture i of the set that most tests read has the value i in every pixel."""

import itertools
import json
import logging
import threading

import numpy as np
import pytest

from jaxdiff.data import Data, batches, open_source, validation_batches
from jaxdiff.data.images import BrokenImageError
from jaxdiff.data.source import ArraySource

N = 23
RNG = np.random.default_rng(0)


def numbered(n=N):
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 3))
    return ArraySource("numbered", np.ascontiguousarray(images), np.arange(n) % 10, tuple("0123456789"))


def noisy(n=N):
    """Pictures that are not square, so that every random choice shows."""
    return ArraySource("noisy", RNG.integers(0, 256, (n, 8, 14, 3), dtype=np.uint8), np.arange(n), tuple("x" * n))


PLAIN = Data("numbered", 4)
RANDOM = Data("noisy", 8, flip=True, crop="random", augment=0.5)


def take(iterator, n):
    out = list(itertools.islice(iterator, n))
    iterator.close()
    return out


def numbers(taken):
    return np.concatenate([batch["image"][:, 0, 0, 0] for batch in taken])


def assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert set(left) == set(right)
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def test_a_batch_has_the_promised_shapes():
    (batch,) = take(batches(RANDOM, noisy(), 6, 0), 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((6, 8, 8, 3), "uint8"), "label": ((6,), "int32"), "augment": ((6, 9), "float32"),
    }  # fmt: skip
    (batch,) = take(batches(Data("numbered", 6, channels=1), numbered(), 6, 0), 1)
    assert batch["image"].shape == (6, 6, 6, 1)


def test_labels_belong_to_their_images_and_can_be_left_out():
    for batch in take(batches(PLAIN, numbered(), 5, 0), 10):
        np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 10)
    (batch,) = take(batches(Data("numbered", 4, labels=False), numbered(), 5, 0), 1)
    assert set(batch) == {"image"}
    (batch,) = take(batches(PLAIN, ArraySource("bare", numbered().images), 5, 0), 1)
    assert set(batch) == {"image"}


@pytest.mark.parametrize("batch_size", [1, 5, 23, 60])
def test_every_epoch_holds_every_picture_once_in_an_order_of_its_own(batch_size):
    seen = numbers(take(batches(PLAIN, numbered(), batch_size, 0), -(-4 * N // batch_size)))
    epochs = seen[: 4 * N].reshape(4, N)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(N))
    for first, second in itertools.combinations(epochs, 2):
        assert (first != second).any()


def test_the_seed_and_nothing_else_fixes_the_sequence():
    source = noisy()
    first = take(batches(RANDOM, source, 5, 7), 12)
    assert_same(first, take(batches(RANDOM, source, 5, 7), 12))
    other = take(batches(RANDOM, source, 5, 8), 12)
    assert any((a["label"] != b["label"]).any() for a, b in zip(first, other, strict=True))
    longer = take(batches(RANDOM, source, 10, 7), 6)  # the elements do not depend on the size of a batch
    for key in first[0]:
        np.testing.assert_array_equal(np.concatenate([b[key] for b in first]), np.concatenate([b[key] for b in longer]))


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 2, 4, 5]], [[2], [0, 1, 2, 3]]])
def test_processes_share_each_batch_by_rows(parts):
    source = noisy()
    whole = take(batches(RANDOM, source, 6, 0, start=2), 9)
    for rows in parts:
        for batch, some in zip(whole, take(batches(RANDOM, source, 6, 0, rows, start=2), 9), strict=True):
            for key in batch:
                np.testing.assert_array_equal(some[key], batch[key][rows])


def test_a_run_resumes_at_any_step_inside_an_epoch():
    source = noisy()
    whole = take(batches(RANDOM, source, 4, 3), 14)
    for step in (0, 3, 7, 12):
        interrupted = batches(RANDOM, source, 4, 3)
        for _ in range(step):
            next(interrupted)
        state = json.loads(json.dumps(interrupted.get_state()))
        interrupted.close()
        resumed = batches(RANDOM, source, 4, 3)
        next(resumed)
        resumed.set_state(state)
        assert_same(take(resumed, 14 - step), whole[step:])
        assert_same(take(batches(RANDOM, source, 4, 3, start=step), 14 - step), whole[step:])
    assert len(json.dumps(state)) < 50


def test_a_far_step_is_reached_without_reading_the_way_there():
    source = Counting(numbered())
    far = batches(PLAIN, source, 4, 0, start=10**9)
    assert far.get_state() == {"step": 10**9}
    assert next(far)["image"].shape == (4, 4, 4, 3)
    far.close()
    assert sum(source.reads.values()) <= 4 * 10  # the batch and what was read ahead


def test_workers_read_the_same_batches():
    source = noisy()
    with_workers = Data("noisy", 8, flip=True, crop="random", augment=0.5, workers=2)
    assert_same(take(batches(with_workers, source, 4, 3, start=5), 5), take(batches(RANDOM, source, 4, 3, start=5), 5))


def test_flipping_mirrors_half_of_the_images_anew_each_epoch():
    source = ArraySource("ramp", RNG.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8), np.arange(N), tuple("x" * N))
    taken = take(batches(Data("ramp", 4, flip=True), source, N, 0), 20)
    flipped = np.zeros((20, N), bool)
    for epoch, batch in enumerate(taken):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            flipped[epoch, label] = (image == source.images[label][:, ::-1]).all()
            assert flipped[epoch, label] or (image == source.images[label]).all()
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(20 * N)
    assert flipped.any(axis=0).all() and not flipped.all(axis=0).any()
    for batch in take(batches(Data("ramp", 4), source, N, 0), 2):
        np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])


def test_random_crops_reach_every_place_and_centred_ones_only_one():
    source = noisy(1)
    places = {image.tobytes(): x for x in range(7) if (image := source.images[0][:, x : x + 8]).any()}
    taken = take(batches(Data("noisy", 8, crop="random"), source, 8, 0), 30)
    seen = [places[image.tobytes()] for batch in taken for image in batch["image"]]
    assert set(seen) == set(range(7))
    for batch in take(batches(Data("noisy", 8), source, 8, 0), 2):
        assert {places[image.tobytes()] for image in batch["image"]} == {3}


def test_augmentation_tells_its_label():
    source, mirrored = noisy(), []
    for batch in take(batches(Data("noisy", 8, augment=1e-9), source, 8, 0), 8):
        for image, label, told in zip(batch["image"], batch["label"], batch["augment"], strict=True):
            centre = source.images[label][:, 3:11]
            np.testing.assert_array_equal(image, centre[:, ::-1] if told[0] else centre)
            assert not told[1:].any()
            mirrored.append(told[0])
    assert set(mirrored) == {0, 1}


class Counting:
    """A source that counts how often each picture is read, and finds those in `bad` broken."""

    def __init__(self, source, bad=()):
        self.source, self.bad, self.name, self.label_names = source, bad, source.name, source.label_names
        self.reads, self.lock = dict.fromkeys(range(len(source)), 0), threading.Lock()

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        with self.lock:
            self.reads[index] += 1
        if index in self.bad:
            raise BrokenImageError(f"file{index}.png cannot be read (not an image)")
        return self.source[index]


def test_small_sets_are_decoded_once():
    source = Counting(numbered())
    iterator = batches(PLAIN, source, N, 0)
    first = [next(iterator) for _ in range(12)]
    reads = dict(source.reads)
    for batch in itertools.islice(iterator, 12):
        np.testing.assert_array_equal(np.sort(batch["image"][:, 0, 0, 0]), np.arange(N))
    iterator.close()
    assert source.reads == reads and min(reads.values()) == 1
    assert sorted(numbers(first[:1])) == list(range(N))


def test_a_broken_image_stops_with_its_name(refused):
    iterator = batches(PLAIN, Counting(numbered(), bad={11}), 5, 0)
    message = refused(BrokenImageError, take, iterator, 5)
    assert message.startswith("file11.png ")
    iterator.close()


def test_broken_images_are_skipped_and_counted(caplog):
    data = Data("numbered", 4, skip_broken=True)
    bad = {4, 11, 12, N - 1}
    with caplog.at_level(logging.WARNING):
        iterator = batches(data, Counting(numbered(), bad), 5, 0)
        taken = list(itertools.islice(iterator, 2 * N))
        iterator.close()
    whole = numbers(take(batches(PLAIN, numbered(), 5, 0), 2 * N))
    instead = {4: 5, 11: 13, 12: 13, N - 1: 0}
    assert numbers(taken).tolist() == [instead.get(i, i) for i in whole.tolist()]
    for batch in taken:
        np.testing.assert_array_equal(batch["label"], batch["image"][:, 0, 0, 0] % 10)
    assert iterator.broken == len(bad)
    (record,) = caplog.records
    assert "skipped 1 broken image so far" in record.getMessage() and "file" in record.getMessage()
    assert_same(take(batches(data, Counting(numbered(), bad), 5, 0, start=3), 4), taken[3:7])


def test_a_set_of_broken_images_alone_is_refused(refused):
    data = Data("numbered", 4, skip_broken=True)
    message = refused(ValueError, take, batches(data, Counting(numbered(), range(N)), 5, 0), 1)
    assert "none of its 23 images" in message and "--data.source" in message


@pytest.mark.parametrize("count", [1, 2])
def test_validation_is_one_ordered_pass_with_a_mask(count):
    parts = [
        list(validation_batches(PLAIN, numbered(), 8, range(8 * p // count, 8 * (p + 1) // count)))
        for p in range(count)
    ]
    assert [len(part) for part in parts] == [3] * count
    joined = [{k: np.concatenate([part[i][k] for part in parts]) for k in parts[0][0]} for i in range(3)]
    images = np.concatenate([batch["image"] for batch in joined])
    mask = np.concatenate([batch["mask"] for batch in joined])
    assert mask.tolist() == [True] * N + [False]
    assert images[mask][:, 0, 0, 0].tolist() == list(range(N)) and not images[~mask].any()
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in joined])[:N], np.arange(N) % 10)


def test_validation_has_nothing_random():
    source = noisy()
    (batch,) = validation_batches(RANDOM, source, N)
    np.testing.assert_array_equal(batch["image"], source.images[:, :, 3:11])
    assert batch["augment"].shape == (N, 9) and not batch["augment"].any()


def test_what_cannot_be_batched_is_refused(refused):
    source = numbered()
    assert "--seed" in refused(ValueError, batches, PLAIN, source, 4, -1)
    assert "--seed" in refused(ValueError, batches, PLAIN, source, 4, 2**32)
    assert "--batch-size" in refused(ValueError, batches, PLAIN, source, 0, 0)
    assert "0..3" in refused(ValueError, batches, PLAIN, source, 4, 0, [3, 4])
    empty = ArraySource("empty", source.images[:0])
    assert "no images" in refused(ValueError, batches, PLAIN, empty, 4, 0)


def test_the_emoji_come_through_the_whole_pipeline():
    data = Data("emoji:smileys-emotion", 32)
    source = open_source(data)
    seen = {image.tobytes() for batch in take(batches(data, source, 169, 0), 1) for image in batch["image"]}
    assert seen == {source[i]["image"].tobytes() for i in range(169)}
    small = Data("emoji", 16, channels=1)
    (batch,) = take(batches(small, open_source(small), 8, 0), 1)
    assert batch["image"].shape == (8, 16, 16, 1)
