"""The input pipeline's images a second, and what checkpoints and waiting for data cost a training loop."""

import dataclasses
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.worker import serve
from jaxdiff import build
from jaxdiff.config import Config, to_json
from jaxdiff.data import Data, batches, open_source
from jaxdiff.networks.axes import parameter_axes
from jaxdiff.presets import preset
from jaxdiff.training.checkpoint import open_checkpoints
from jaxdiff.training.cpu import use_cpu
from jaxdiff.training.engine import jit_engine
from jaxdiff.training.monitor import AHEAD
from jaxdiff.training.optim import optimizer
from jaxdiff.training.sharding import make_mesh, partition
from jaxdiff.training.state import Purpose, key_for
from jaxdiff.training.step import init_state, make_step


def write_images(folder: Path, kind: str, side: int, number: int) -> None:
    """Pictures of smooth colours with a little noise, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (side, side, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{i:04d}.{kind}")


def rate(kind: str, stored: int, size: int, workers: int, seconds: float, batch: int = 64) -> dict[str, Any]:
    """Images a second: of the embedded emoji, or of a folder of `png` or `jpg` of `stored` pixels a side."""
    with tempfile.TemporaryDirectory() as folder:
        if kind != "emoji":
            write_images(Path(folder), kind, stored, 256)
        data = Data("emoji" if kind == "emoji" else folder, size=size, flip=True, labels=False, workers=workers)
        reader = batches(data, open_source(data), batch, 0)
        for _ in range(8):  # what was read ahead while the pipeline started
            next(reader)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(reader)
            count += batch
        elapsed = time.perf_counter() - start
        reader.close()
    return {"rate": count / elapsed}


def small_run(quick: bool) -> Config:
    """The preset smileys; for a quick look a network of a few hundred parameters."""
    config = preset("smileys")
    if quick:
        network = config.network.clone(channels=8, channel_mults=(1,), attention_resolutions=(), middle_attention=False)
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, size=8), network=network, batch_size=8
        )
    return config


def loop(seconds: float, turns: int, quick: bool = False) -> dict[str, Any]:
    """Training as train.py does it: turns with one checkpoint at their start between turns without.

    Each turn is as many steps as take `seconds`. `cost` is what a checkpoint adds, in seconds; `overhead` that as a
    fraction of the time at the preset's own `save_every`; `waiting` the share of the time spent waiting for a batch.
    """
    config = small_run(quick)
    use_cpu(config.batch_size)
    mesh, rule = make_mesh(config.mesh), optimizer(config.optim, config.steps)

    def init():
        return init_state(build.init_run(config, key_for(config.seed, 0, Purpose.INIT)), rule, config.ema)

    abstract = jax.eval_shape(init)
    places = partition(abstract, mesh, parameter_axes)
    placed = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), abstract, places)
    state = jax.jit(init, out_shardings=places, compiler_options={"xla_backend_optimization_level": 0})()
    step = make_step(build.loss_fn(config), rule, config.ema, config.seed)
    engine = jit_engine(mesh, step, placed, config.batch_size)
    data = batches(config.data, open_source(config.data), config.batch_size, config.seed)
    holder, waited = [engine.spread(state)], [0.0]

    def steps(count: int) -> float:
        start, pending = time.perf_counter(), deque()
        for _ in range(count):
            before = time.perf_counter()
            batch = next(data)
            waited[0] += time.perf_counter() - before
            holder[0], metrics = engine.step(holder[0], batch)
            pending.append(metrics)
            if len(pending) > AHEAD:
                jax.block_until_ready(pending.popleft())
        jax.block_until_ready(holder[0])
        return time.perf_counter() - start

    steps(2)
    count = max(2, round(seconds / (steps(4) / 4)))
    waited[0], plain, saving = 0.0, [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = open_checkpoints(Path(folder))
        for turn in range(turns):
            plain.append(steps(count))
            start = time.perf_counter()
            checkpoints.save(turn + 1, engine.whole(holder[0]), data.get_state(), {"config": to_json(config)})
            steps(count)
            saving.append(time.perf_counter() - start)
            checkpoints.wait()
        checkpoints.close()
    data.close()
    share = waited[0] / (sum(plain) + sum(saving))
    cost = statistics.median(saving) - statistics.median(plain)
    each = statistics.median(plain) / count
    return {
        "plain": plain,
        "saving": saving,
        "steps": count,
        "cost": cost,
        "step": each,
        "waiting": share,
        "save_every": config.save_every,
        "overhead": cost / (config.save_every * each),
        "batch": config.batch_size,
    }


if __name__ == "__main__":
    serve(calls={"rate": rate, "loop": loop})
