"""From a config to functions: the network's `ApplyFn`, the loss, what is validated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxdiff import autoencoders
from jaxdiff.adapters import check_start, combine, initial, is_adapted
from jaxdiff.config import Config, from_json, to_json
from jaxdiff.core.gaussian import logsnr
from jaxdiff.core.magnitudes import on_sphere
from jaxdiff.core.times import Stratified
from jaxdiff.core.types import ApplyFn, Params
from jaxdiff.networks.apply import Perturbed, apply_fn, init_params
from jaxdiff.networks.axes import parameter_axes
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives import uncertainty
from jaxdiff.objectives.base import Batch
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.vdm import VDM
from jaxdiff.training.optim import optimizer
from jaxdiff.training.sharding import partition
from jaxdiff.training.state import Purpose, TrainState, key_for
from jaxdiff.training.step import Loss, Metrics, Raw, conditions, init_state, make_step, to_unit
from jaxdiff.training.validate import Losses


def image_shape(config: Config) -> tuple[int, int, int]:
    """(height, width, channels) of the run's images."""
    return config.data.size, config.data.size, config.data.channels


def init_run(config: Config, key: Key[Array, ""]) -> Params:
    """Initial parameters: {"network": ...}, {"schedule": ...} where the path is learned, {"uncertainty": ...} where
    the weight of the loss is."""
    if autoencoders.is_autoencoder(config):
        return autoencoders.init_autoencoder(config, key)
    key_net, key_path = jax.random.split(key)
    # Every network is initialised without conditions: the embeddings of the absent ones make the same parameters.
    params = {"network": init_params(config.network, key_net, image_shape(config), {})}
    if isinstance(config.objective, VDM):
        params["schedule"] = config.objective.path.init_params(key_path)
    if isinstance(config.objective, Denoising) and config.objective.uncertainty:
        params["uncertainty"] = uncertainty.init_params(key_path, config.objective.uncertainty)
    return params


def loss_fn(config: Config) -> Loss:
    """(params, key, raw batch, rows, total, step) -> (loss, metrics): what `training.step.make_step` minimises."""
    # An objective and what it asks belong together, which the types of a union do not say.
    objective: Any = config.objective
    apply = autoencoders.players(config) if autoencoders.is_autoencoder(config) else apply_run(config)

    def loss(
        params: Params,
        key: Key[Array, ""],
        raw: Mapping[str, Array],
        row: Int[Array, "b"],
        total: int,
        step: Int[Array, ""],
    ) -> tuple:
        return objective(apply, params, key, Batch(to_unit(raw["image"]), conditions(raw), row, total, step))

    return loss


def step_fn(config: Config, axis: str | None = None) -> Callable[..., tuple[TrainState, Metrics]]:
    """(state, raw batch, frozen) -> (state, metrics): the run's training step, not yet jitted; `axis` of `make_step`.

    `frozen` are the parameters that the trained part is added to, and left out where all parameters are trained.
    """
    rule, plain = optimizer(config.optim, config.steps), loss_fn(config)

    def step(state: TrainState, raw: Raw, frozen: Params | None = None) -> tuple[TrainState, Metrics]:
        def loss(
            part: Params, key: Key[Array, ""], raw: Raw, row: Int[Array, "b"], total: int, count: Int[Array, ""]
        ) -> tuple:
            return plain(combine(config, frozen, part), key, raw, row, total, count)

        parts, project = config.optim.accumulate, projection(config)
        return make_step(loss, rule, config.ema, config.seed, parts, axis, project)(state, raw)

    return step


def projection(config: Config) -> Callable[[Params], Params]:
    """What every update ends with: EDM2's forced normalisation of the weights; all others stay as they are.

    Source: arXiv:2312.02696, Sec. 2.4 and App. B.4.
    """
    forced = isinstance(config.network, EDM2) and not is_adapted(config)
    return on_sphere if forced else lambda params: params


def trained_part(config: Config) -> Params:
    """What the run trains, at first, by its seed."""
    key = key_for(config.seed, 0, Purpose.INIT)
    if not is_adapted(config):
        return init_run(config, key)
    return initial(config, jax.eval_shape(lambda: init_run(config, key)), key)


def state_fn(config: Config, mesh: Mesh) -> tuple[Callable[..., TrainState], TrainState]:
    """(what makes the first state, of other parameters where it is given some; its shapes with their places)."""

    def init(part: Params | None = None) -> TrainState:
        part = trained_part(config) if part is None else part
        return init_state(part, optimizer(config.optim, config.steps), config.ema)

    abstract = jax.eval_shape(init)
    places = partition(abstract, mesh, parameter_axes)
    return init, jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), abstract, places)


def frozen_shapes(config: Config, mesh: Mesh) -> tuple[Params, ...]:
    """The shapes, with their places on the mesh, of the parameters that stay as they are; () where all are trained."""
    if not is_adapted(config):
        return ()
    abstract = jax.eval_shape(lambda: init_run(config, key_for(config.seed, 0, Purpose.INIT)))
    places = partition(abstract, mesh, parameter_axes)
    return (jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), abstract, places),)


def apply_run(config: Config, perturbed: Perturbed | None = None) -> ApplyFn:
    """The run's network as an `ApplyFn` of the run's parameters; `perturbed`: without some of its attention."""
    apply = apply_fn(config.network, config.objective.prediction, perturbed)

    def run(params, x, cur, nxt, cond, key=None):
        return apply(params["network"], x, cur, nxt, cond, key)

    return run


def losses_fn(config: Config) -> Losses:
    """(params, key, raw batch, rows, t) -> the loss of each example at given times: what validation measures.

    Of an autoencoder it is the PSNR of each picture, in decibel, at any time.
    """
    objective: Any = config.objective
    rebuilds = autoencoders.is_autoencoder(config)
    apply = autoencoders.players(config, perceptual=False) if rebuilds else apply_run(config)

    def losses(
        params: Params,
        key: Key[Array, ""],
        raw: Mapping[str, Array],
        row: Int[Array, "b"],
        t: Float[Array, "b"],
    ) -> Float[Array, "b"]:
        batch = Batch(to_unit(raw["image"]), conditions(raw), row)
        return objective.psnr(apply, params, batch) if rebuilds else objective.losses(apply, params, key, batch, t)

    return losses


def validation_times(config: Config, params: Params, count: int = 10) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """(times, their logSNR): the middles of `count` equally likely parts of the law of the training times."""
    law = config.objective.times
    law = law.law if isinstance(law, Stratified) else law
    path = config.objective.path_of(params)
    times = law.quantile((jnp.arange(count) + 0.5) / count, path)
    return times, logsnr(path(times))


def up_to_date(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a run, with the defaults of fields that its version of the config did not have."""
    return record | {"config": to_json(from_json(record["config"]))}


def check_data(config: Config, label_names: Sequence[str]) -> None:
    """Refuses a network whose classes are not those of the data, and what only pixels allow where it learns latents.

    Raises: ValueError.
    """
    check_text(config)
    if autoencoders.is_autoencoder(config) and config.latents is not None:
        raise ValueError(f"an autoencoder learns from pictures, not from latents: {config.data.source} (--data.source)")
    check_start(config)
    if config.latents is not None:
        check_threshold(config)
        if isinstance(config.objective, VDM):
            raise ValueError("a bound on the bits of pixels cannot be trained on latents: choose another preset")
    if config.data.is_deep and isinstance(config.objective, VDM):
        raise ValueError(
            "a bound on the bits of 256 values cannot be trained on images of more bits: choose another preset"
        )
    shows = config.data.channels if config.data.low or config.data.pairs else 0
    if config.image_channels != shows:
        raise ValueError(
            f"image_channels = {config.image_channels} does not fit the data, which show a picture of {shows} "
            "(--network.image-channels, --data.low, --data.pairs)"
        )
    classes = config.network.num_classes
    if classes not in (0, len(label_names)):
        raise ValueError(
            f"num_classes = {classes} does not fit {config.data.source}, which has {len(label_names)} classes: "
            f"allowed are 0 (no labels) and {len(label_names)} (--network.num-classes)"
        )


def check_text(config: Config) -> None:
    """Refuses captions that nothing reads, or that the network does not listen to. Raises: ValueError."""
    told = isinstance(config.network, UNet | PixArt | MMDiT | Flux)
    network = config.network if isinstance(config.network, UNet) else UNet()  # no other learns to read
    if config.data.text != bool(config.text):
        raise ValueError(
            f"text {config.text!r} is not allowed with data.text = {config.data.text}: captions need both "
            "(--data.text, --text)"
        )
    silent = isinstance(config.network, UNet) and not (network.text_width or network.text_pooled)
    if config.data.text and (silent or not told):
        raise ValueError("captions are not allowed: this network is told of no texts (--no-data.text)")
    if (config.text == "words") != (network.text_encoder is not None):
        raise ValueError(
            f"text {config.text!r} does not fit this network: words is for one with a text encoder of its own, "
            "and for no other (--text)"
        )


def check_threshold(config: Config) -> None:
    """Refuses thresholds of latents. Raises: ValueError."""
    if config.latents is not None and config.sampling.threshold != "none":
        raise ValueError(
            f"threshold = {config.sampling.threshold} is not allowed with latents, which leave [-1, 1]: "
            "--sampling.threshold none (sample.py: --threshold none)"
        )


def check_devices(config: Config, count: int) -> None:
    """Refuses a batch that cannot be cut into equal parts on this many devices. Raises: ValueError."""
    data, fsdp, _, _ = config.mesh.sizes(count)
    parts = data * fsdp * config.optim.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size = {config.batch_size} is not a multiple of {parts} "
            f"({data * fsdp} device(s) x --optim.accumulate {config.optim.accumulate}) (--batch-size)"
        )
    if config.engine == "pmap" and data != count:
        raise ValueError("engine = pmap is not allowed with a mesh of other axes than data (--engine, --mesh.fsdp ...)")
