"""A small digit classifier, by which the samples of Stacked-MNIST are counted."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, UInt8


class Digits(nn.Module):
    """Images [b, 28, 28, 1] in [-1, 1] -> ten logits."""

    @nn.compact
    def __call__(self, x: Float[Array, "b 14 14 1"]) -> Float[Array, "b 10"]:
        for channels in (16, 32):
            x = nn.max_pool(nn.relu(nn.Conv(channels, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1))))


def init() -> PyTree:
    """Initial parameters."""
    return Digits().init(jax.random.key(0), jnp.zeros((1, 14, 14, 1)))


def train(
    params: PyTree, images: UInt8[np.ndarray, "n 14 14"], labels: UInt8[np.ndarray, "n"], steps: int, batch: int = 64
) -> PyTree:
    """The classifier's parameters after `steps` of Adam, the rate falling to 0 along a cosine."""
    model, rule = Digits(), optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    pictures, classes = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    opt = rule.init(params)

    def loss(params: PyTree, rows: Array) -> Array:
        logits = cast(Array, model.apply(params, pictures[rows, ..., None] / 127.5 - 1))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, classes[rows]))

    @jax.jit
    def step(params: PyTree, opt: PyTree, number: int) -> tuple[PyTree, PyTree]:
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), number), (batch,), 0, len(images))
        updates, opt = rule.update(jax.grad(loss)(params, rows), opt)
        return optax.apply_updates(params, updates), opt

    for number in range(steps):
        params, opt = step(params, opt, number)
    return params


def classify(params: PyTree, x: Float[np.ndarray, "n 14 14"], page: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """(digit, its probability) of each image in [-1, 1]."""
    predict = jax.jit(lambda x: jax.nn.softmax(cast(Array, Digits().apply(params, x[..., None]))))
    full = np.concatenate([x, np.zeros((-len(x) % page, *x.shape[1:]), x.dtype)])
    out = np.concatenate([np.asarray(predict(full[i : i + page])) for i in range(0, len(full), page)])[: len(x)]
    return out.argmax(-1), out.max(-1)
