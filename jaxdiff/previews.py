"""What a run shows of itself while it trains: the first images of its seed."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from jaxdiff.config import Config
from jaxdiff.core.types import Params
from jaxdiff.data import Source
from jaxdiff.data.pictures import Pictures
from jaxdiff.data.pipeline import validation_batch
from jaxdiff.sampler import Weights, finish_of, labels_for, levels_of, sampler, scales_of
from jaxdiff.texts import Reader
from jaxdiff.training.sharding import shard_batch, share, to_host

COUNT = 64
"""Images in a preview."""


def first_images(
    config: Config, mesh: Mesh, reader: Reader | None, captions: Sequence[str], source: Source
) -> Callable[[Params], UInt8[np.ndarray, "n h w c"]]:
    """params -> the first images of the run's seed, as `sample.py` makes them; `captions` in turn.

    A network that makes pictures from pictures is shown those of `source`, in turn.
    """
    run, finish = sampler(config), finish_of(config)
    indices = np.arange(-(-COUNT // share(mesh)) * share(mesh), dtype=np.int32)
    leaves: dict[str, np.ndarray | jax.Array] = dict(labels_for(config, indices))
    away = {}
    if reader is not None:
        leaves |= reader.conditions([captions[int(i) % len(captions)] for i in indices])
        away = reader.away(None, len(indices))
    if config.image_channels:
        some = validation_batch(config.data, Pictures(config.data, source), range(min(COUNT, len(source))))
        assert "source" in some
        leaves["image"] = some["source"][indices % len(some["source"])].astype(np.float32) / 127.5 - 1

    def images(params: Params) -> UInt8[np.ndarray, "n h w c"]:
        levels = levels_of(config, config.objective.path_of(params))
        inputs = shard_batch(mesh, {"index": indices, **leaves})
        index, seed, negative = inputs.pop("index"), jnp.int32(config.seed), shard_batch(mesh, away)
        with jax.set_mesh(mesh):
            found = to_host(run(Weights(params), seed, index, levels, inputs, scales_of(config), negative))
        return finish(found)[:COUNT]

    return images
