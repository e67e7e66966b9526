"""The training step: loss, gradient, update, averages. Pure; `jit` it with the state donated."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdiff.core.types import Cond, Params
from jaxdiff.training import ema
from jaxdiff.training.state import Purpose, TrainState, key_for

Raw = Mapping[str, Array]
Loss = Callable[
    [Params, Key[Array, ""], Raw, Int[Array, "b"], int, Int[Array, ""]], tuple[Float[Array, ""], Mapping[str, Array]]
]
"""``(params, key, raw batch, rows, total, step) -> (mean loss over the rows, metrics)``.

Rows number examples of `total`; `step` counts the steps before this one.
"""
Metrics = dict[str, Float[Array, ""]]


def to_unit(image: Array) -> Float[Array, "b h w c"]:
    """uint8 -> float32 in [-1, 1]; latents, which are float32, as they are."""
    return image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image


def conditions(raw: Raw) -> Cond:
    """The leaves of a batch that condition the network: all but the image, whose source is the condition "image"."""
    found = {k: v for k, v in raw.items() if k not in ("image", "source")}
    return found | {"image": to_unit(raw["source"])} if "source" in raw else found


def init_state(
    params: Params, optimizer: optax.GradientTransformation, averages: tuple[ema.Average, ...]
) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, optimizer.init(params), ema.init(averages, params))


def averaged(state: TrainState) -> Params:
    """The parameters to look at during training: the first average, or the parameters themselves."""
    return state.ema[0] if state.ema else state.params


def module_norms(grads: PyTree) -> Metrics:
    """The gradient's norm, whole and for each of the network's outermost modules."""
    whole = {"grad_norm": optax.tree.norm(grads)}
    modules = {f"grad_norm/{k}/{m}": optax.tree.norm(v) for k in grads for m, v in grads[k].items()}
    return whole | modules


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    averages: tuple[ema.Average, ...],
    seed: int,
    accumulate: int = 1,
    axis: str | None = None,
    project: Callable[[Params], Params] = lambda params: params,
) -> Callable[[TrainState, Raw], tuple[TrainState, Metrics]]:
    """(state, raw batch of b images) -> (state, metrics), with `accumulate` equal parts of the batch in turn.

    `axis`: where the step runs as the program of one device (pmap), the axis over which devices share the batch.
    `project`: what the parameters are brought back to after every update.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def gradient(params: Params, key: Key[Array, ""], raw: Raw, step: Int[Array, ""]) -> PyTree:
        here = total = raw["image"].shape[0]
        rows = jnp.arange(here, dtype=jnp.int32)
        if axis is not None:
            rows, total = rows + here * jax.lax.axis_index(axis), here * jax.lax.axis_size(axis)
        if accumulate == 1:
            return value_and_grad(params, key, raw, rows, total, step)
        # Part i holds rows i, i + accumulate ...: every device keeps an equal share of each part.
        parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, accumulate, *a.shape[1:]), 1, 0), (dict(raw), rows))

        def part(i: Int[Array, ""]) -> PyTree:
            raw, rows = jax.tree.map(lambda a: a[i], parts)
            return value_and_grad(params, key, raw, rows, total, step)

        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(part, jnp.int32(0)))
        whole, _ = jax.lax.scan(
            lambda sums, i: (jax.tree.map(jnp.add, sums, part(i)), None), zero, jnp.arange(accumulate)
        )
        return jax.tree.map(lambda a: a / accumulate, whole)

    def step(state: TrainState, raw: Raw) -> tuple[TrainState, Metrics]:
        key = key_for(seed, state.step, Purpose.TRAIN)
        (value, extra), grads = gradient(state.params, key, raw, state.step)
        if axis is not None:
            value, extra, grads = jax.lax.pmean((value, extra, grads), axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = project(optax.apply_updates(state.params, updates))
        count = state.step + 1
        averaged = ema.update(averages, state.ema, params, count)
        metrics = {"loss": value, **extra, **module_norms(grads)}
        return TrainState(count, params, opt_state, averaged), metrics

    return step
