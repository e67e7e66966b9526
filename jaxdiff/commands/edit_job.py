"""What `jaxdiff edit` works on once everything is read and checked: batches of pictures, and what comes of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from tqdm import tqdm

from jaxdiff import inputs
from jaxdiff.core.codec import Codec
from jaxdiff.core.types import Level
from jaxdiff.editor import Inputs, Words, editor
from jaxdiff.inputs import Prepared
from jaxdiff.sampling.editing.task import Method
from jaxdiff.sampling.editing.windows import Windows
from jaxdiff.trained import Leaves, Trained
from jaxdiff.training import hosts
from jaxdiff.training.contact_sheet import contact_sheet
from jaxdiff.training.sharding import replicated, shard_batch, to_host

MOST_ROWS, MOST_COLUMNS = 16, 8
"""Pictures, and results of each, in before_after.png."""

Images = UInt8[np.ndarray, "n h w c"]


class Told(NamedTuple):
    """What the network is told of every picture: leaves with one row."""

    target: Leaves
    source: Leaves
    negative: Leaves | None
    words: Int[np.ndarray, "1 n"] | None = None
    """As in `editor.Words`."""


class Job(NamedTuple):
    """Everything that the results depend on."""

    trained: Trained
    """With the method's solver in its config."""
    method: Method
    levels: Level
    """As the method has laid them."""
    windows: Windows | None
    codec: Codec | None
    factor: int
    """Pixels a side for each pixel that the network sees."""
    pictures: list[Prepared]
    other: Prepared | None
    told: Told
    num: int
    """Results of each picture."""
    image_scale: float | None = None
    """As in `editor.Words`."""

    @property
    def nfe(self) -> int | None:
        """Network calls for a result."""
        calls, shape = self.method.nfe(self.trained.config.solver, self.levels), self.pictures[0].image.shape
        if calls is None or self.windows is None:
            return calls
        return calls * self.windows.count(shape[0] // self.factor, shape[1] // self.factor)


Batch = tuple[Int[np.ndarray, "b"], Mapping[str, np.ndarray]]
"""(numbers of the results, the fields of `Inputs`)."""


def make(job: Job, parts: Sequence[Batch]) -> Images:
    """The results, `num` of the first picture, then of the second ...; outside the masks they are the pictures."""
    trained, total = job.trained, len(job.pictures) * job.num
    run = editor(trained.config, trained.guides, job.method, job.windows)
    levels = hosts.place(job.levels, replicated(trained.mesh))
    seed, size, made = jnp.int32(trained.settings.seed), trained.batch_size, []
    for index, batch in tqdm(parts, unit="batch", disable=len(parts) == 1 or not hosts.is_first()):
        words = words_of(job, size)
        given = shard_batch(trained.mesh, {"index": index, **batch})
        index = given.pop("index")
        with jax.set_mesh(trained.mesh):
            found = to_host(run(trained.weights, seed, index, levels, words, trained.scales, Inputs(**given)))
        made.append(trained.finish(found))
    images = np.concatenate(made)[:total]
    masks = masks_of(job)
    if masks is None:
        return images
    which = np.arange(total) // job.num
    before = np.stack([picture.image for picture in job.pictures])
    return inputs.composited(images, before[which], masks[which])


def words_of(job: Job, count: int) -> Words:
    """What a batch is told, spread over the devices."""

    def spread(leaves: Leaves) -> dict[str, jax.Array]:
        return shard_batch(job.trained.mesh, {name: np.repeat(leaf, count, axis=0) for name, leaf in leaves.items()})

    told, scale = job.told, job.image_scale
    return Words(
        spread(told.target),
        spread(told.source),
        None if told.negative is None else spread(told.negative),
        job.trained.also(count),
        None if told.words is None else spread({"words": told.words})["words"],
        None if scale is None else jnp.float32(scale),
    )


def batches(job: Job) -> Iterator[Batch]:
    """The batches of an edit, all of one size: the last is filled up with what is left out again."""
    total, size = len(job.pictures) * job.num, job.trained.batch_size
    seen = encoded(job, np.stack([picture.image for picture in job.pictures]))
    other = None if job.other is None else encoded(job, job.other.image[None])[0]
    masks = masks_of(job)
    small = None if masks is None else inputs.shrunk(masks, job.factor)[..., None].astype(np.float32)
    for first in range(0, total, size):
        index = np.arange(first, first + size, dtype=np.int32)
        which = np.minimum(index, total - 1) // job.num
        fields = {"image": seen[which]}
        if small is not None:
            fields["mask"] = small[which]
        if other is not None:
            fields["other"] = np.broadcast_to(other, fields["image"].shape)
            fields["place"] = places(job.num)[index % job.num]
        yield index, fields


def places(num: int) -> Float32[np.ndarray, " n"]:
    """How far from the first picture to the second each of `num` frames is: from 0 to 1, or the middle."""
    return np.linspace(0, 1, num, dtype=np.float32) if num > 1 else np.full(1, 0.5, np.float32)


def encoded(job: Job, images: Images) -> Float[np.ndarray, "n h2 w2 c2"]:
    """What the network sees of these pictures, one at a time."""
    units = images.astype(np.float32) / 127.5 - 1
    codec = job.codec
    return units if codec is None else np.concatenate([np.asarray(codec.encode(jnp.asarray(x[None]))) for x in units])


def masks_of(job: Job) -> Bool[np.ndarray, "n h w"] | None:
    """The masks of the pictures, None where they have none."""
    masks = [picture.mask for picture in job.pictures if picture.mask is not None]
    return np.stack(masks) if masks else None


def before_after(job: Job, results: Images) -> UInt8[np.ndarray, "H W c"]:
    """A row a picture: it, its mask if it has one, its results, and the second picture if there is one."""
    rows, shown = [], min(job.num, MOST_COLUMNS)
    for i, (image, mask) in enumerate(job.pictures[:MOST_ROWS]):
        row = [image] if mask is None else [image, inputs.grey(mask, image.shape[2])]
        row += list(results[i * job.num : i * job.num + shown])
        rows += row if job.other is None else [*row, job.other.image]
    return contact_sheet(np.stack(rows), columns=len(rows) // min(len(job.pictures), MOST_ROWS))
