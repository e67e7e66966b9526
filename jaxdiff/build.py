"""From a config to functions: the network's `ApplyFn`, the loss, the sampler."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxdiff.config import Config
from jaxdiff.core.gaussian import check_solvable, logsnr
from jaxdiff.core.times import Stratified
from jaxdiff.core.types import ApplyFn, Cond, Level, Params, Path, Transform
from jaxdiff.networks.apply import apply_fn, init_params
from jaxdiff.objectives.base import Batch
from jaxdiff.objectives.vdm import VDM
from jaxdiff.sampling import guidance, threshold
from jaxdiff.sampling.sample import denoiser, image_keys, initial, on_path, sample, trajectory
from jaxdiff.training.step import conditions, to_unit
from jaxdiff.training.validate import Losses

Sampler = Callable[[Params, Int[Array, ""], Int[Array, "b"], Level, Cond, Float[Array, ""]], UInt8[Array, "*n b h w c"]]
"""``(params, seed, indices, levels, cond, cfg_scale) -> images``; every argument is traced."""


def image_shape(config: Config) -> tuple[int, int, int]:
    """(height, width, channels) of the run's images."""
    return config.data.size, config.data.size, config.data.channels


def init_run(config: Config, key: Key[Array, ""]) -> Params:
    """Initial parameters: {"network": ...}, and {"schedule": ...} where the path is learned."""
    key_net, key_path = jax.random.split(key)
    # Every network is initialised without conditions: the embeddings of the absent ones make the same parameters.
    params = {"network": init_params(config.network, key_net, image_shape(config), {})}
    if isinstance(config.objective, VDM):
        params["schedule"] = config.objective.path.init_params(key_path)
    return params


def loss_fn(
    config: Config,
) -> Callable[[Params, Key[Array, ""], Mapping[str, Array], Int[Array, "b"]], tuple]:
    """(params, key, raw batch, rows) -> (loss, metrics): what `training.step.make_step` minimises."""
    apply = apply_run(config)

    def loss(params: Params, key: Key[Array, ""], raw: Mapping[str, Array], row: Int[Array, "b"]) -> tuple:
        return config.objective(apply, params, key, Batch(to_unit(raw["image"]), conditions(raw), row))

    return loss


def apply_run(config: Config) -> ApplyFn:
    """The run's network as an `ApplyFn` of the run's parameters."""
    apply = apply_fn(config.network, config.objective.prediction)

    def run(params, x, cur, nxt, cond, key=None):
        return apply(params["network"], x, cur, nxt, cond, key)

    return run


def losses_fn(config: Config) -> Losses:
    """(params, key, raw batch, rows, t) -> the loss of each example at given times: what validation measures."""
    apply = apply_run(config)

    def losses(
        params: Params,
        key: Key[Array, ""],
        raw: Mapping[str, Array],
        row: Int[Array, "b"],
        t: Float[Array, "b"],
    ) -> Float[Array, "b"]:
        batch = Batch(to_unit(raw["image"]), conditions(raw), row)
        return config.objective.losses(apply, params, key, batch, t)

    return losses


def validation_times(config: Config, params: Params, count: int = 10) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """(times, their logSNR): the middles of `count` equally likely parts of the law of the training times."""
    law = config.objective.times
    law = law.law if isinstance(law, Stratified) else law
    path = config.objective.path_of(params)
    times = law.quantile((jnp.arange(count) + 0.5) / count, path)
    return times, logsnr(path(times))


def check_data(config: Config, label_names: Sequence[str]) -> None:
    """Refuses a network whose classes are not those of the data.

    Raises: ValueError.
    """
    classes = config.network.num_classes
    if classes not in (0, len(label_names)):
        raise ValueError(
            f"num_classes = {classes} does not fit {config.data.source}, which has {len(label_names)} classes: "
            f"allowed are 0 (no labels) and {len(label_names)} (--network.num-classes)"
        )


def check_devices(config: Config, count: int) -> None:
    """Refuses a batch that cannot be cut into equal parts. Raises: ValueError."""
    parts = count * config.optim.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size = {config.batch_size} is not a multiple of {parts} "
            f"({count} device(s) x --optim.accumulate {config.optim.accumulate}) (--batch-size)"
        )


def levels_of(config: Config, path: Path) -> Level:
    """The levels of the run's grid on `path`.

    Raises: ValueError where the run's prediction cannot be solved at one of them.
    """
    levels = config.grid(path, config.sampling.steps)
    check_solvable(config.objective.prediction, jax.tree.map(lambda a: a[:-1], levels))
    return levels


THRESHOLDS: Mapping[str, Transform] = {
    "none": lambda denoise: denoise,
    "static": threshold.static(),
    "dynamic": threshold.dynamic(),
}
"""What `Sampling.threshold` names."""


def to_uint8(x: Float[Array, "*n b h w c"]) -> UInt8[Array, "*n b h w c"]:
    """[-1, 1] -> 0 ... 255, rounded, clipped."""
    return jnp.round(jnp.clip(127.5 * (x + 1), 0, 255)).astype(jnp.uint8)


def sampler(config: Config, steps_too: bool = False) -> Sampler:
    """The jitted sampler: one compilation serves every seed, label, grid of one length, and guidance scale.

    Solver, thresholding, and whether there is guidance at all are the config's. `steps_too` returns the state after
    every step, [num_steps, b, h, w, c].
    """
    apply, prediction = apply_run(config), config.objective.prediction

    @jax.jit
    def run(
        params: Params,
        seed: Int[Array, ""],
        indices: Int[Array, "b"],
        levels: Level,
        cond: Cond,
        cfg_scale: Float[Array, ""],
    ) -> UInt8[Array, "*n b h w c"]:
        keys = image_keys(seed, indices)
        if is_guided(config):
            denoise = guidance.guided(guidance.pair(apply, params, prediction, cond), guidance.cfg(cfg_scale))
        else:
            denoise = denoiser(apply, params, prediction, cond)
        denoise = on_path(config.objective.path_of(params))(THRESHOLDS[config.sampling.threshold](denoise))
        x = initial(keys, image_shape(config), jax.tree.map(lambda a: a[0], levels))
        scan = trajectory if steps_too else sample
        return to_uint8(scan(keys, x, levels, denoise, config.solver))

    return run


def labels_for(config: Config, indices: Int[np.ndarray, "b"], label: int | None = None) -> Cond:
    """The condition of sampled images: `label` for all, or the classes in turn; {} without classes."""
    classes = config.network.num_classes
    if classes == 0:
        return {}
    return {"label": jnp.asarray(indices % classes if label is None else np.full_like(indices, label), jnp.int32)}


def is_guided(config: Config) -> bool:
    """Whether sampling needs the network's answer without the condition as well."""
    return config.sampling.cfg_scale != 1 and config.network.num_classes > 0


def preview(config: Config, count: int = 64) -> Callable[[Params], UInt8[np.ndarray, "n h w c"]]:
    """params -> the first `count` images of the run's seed, as `sample.py` makes them by default."""
    run = sampler(config)
    indices = np.arange(count)

    def images(params: Params) -> UInt8[np.ndarray, "n h w c"]:
        levels = levels_of(config, config.objective.path_of(params))
        scale = jnp.float32(config.sampling.cfg_scale)
        cond = labels_for(config, indices)
        return np.asarray(run(params, jnp.int32(config.seed), jnp.asarray(indices), levels, cond, scale))

    return images
