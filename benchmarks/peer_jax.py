"""What the JAX peers have in common: their networks under one plain step and one plain DDIM scan.

Only their networks are compared. The rest is written here as most would write it: optax, jitted, the state donated; one
device with all threads, which is what JAX gives where nothing else is asked of it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.flops import count_flops
from benchmarks.sizes import BETAS, CHANNELS, CLIP, DECAY, RATE, SIDE, TIMES, Spec, spec_of
from benchmarks.worker import Case, serve


class Peer(NamedTuple):
    """A network of another library."""

    init: Callable
    """(key, x, t) -> params; t in [0, 1]."""
    apply: Callable
    """(params, x, t, key or None) -> output; a key switches dropout on."""
    version: str
    differs: str
    """How its network differs from the one that it is compared with."""


def serve_peer(peer_of: Callable[[Spec], Peer]) -> None:
    """Answers the driver with the networks that `peer_of` makes."""

    def make(fields: dict) -> Case:
        spec = spec_of(fields)
        peer = peer_of(spec)
        x, t = jnp.zeros((1, SIDE, SIDE, CHANNELS[spec.network])), jnp.zeros(1)
        params = jax.jit(lambda: peer.init(jax.random.key(0), x, t))()
        about = {"version": peer.version, "devices": jax.device_count(), "differs": peer.differs}
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        run, flops = (training if spec.task == "train" else sampling)(spec, peer, params)
        return Case(run, flops, count, about)

    serve(make)


def schedule() -> tuple[jax.Array, jax.Array]:
    """alpha and sigma at steps 0 ... TIMES; step 0 is clean."""
    alpha_bar = np.cumprod(1 - np.concatenate([[0.0], np.linspace(*BETAS, TIMES)]))
    return jnp.asarray(np.sqrt(alpha_bar), jnp.float32), jnp.asarray(np.sqrt(1 - alpha_bar), jnp.float32)


def training(spec: Spec, peer: Peer, params: dict) -> tuple[Callable[[], object], float]:
    """Loss on noised images, gradient, clipping, AdamW, average."""
    rule = optax.adamw(RATE, weight_decay=0.0)
    if CLIP[spec.network]:
        rule = optax.chain(optax.clip_by_global_norm(CLIP[spec.network]), rule)
    alpha, sigma = schedule()
    shape = (spec.batch, SIDE, SIDE, CHANNELS[spec.network])

    def step(state: tuple, image: jax.Array) -> tuple[tuple, jax.Array]:
        number, params, moments, average = state
        key_t, key_eps, key_net = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)
        x0 = image.astype(jnp.float32) / 127.5 - 1
        t = jax.random.randint(key_t, (spec.batch,), 1, TIMES + 1)
        eps = jax.random.normal(key_eps, shape)
        x = alpha[t][:, None, None, None] * x0 + sigma[t][:, None, None, None] * eps

        def loss(params: dict) -> jax.Array:
            return jnp.mean(jnp.square(peer.apply(params, x, t / TIMES, key_net) - eps))

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = rule.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda m, p: m + (1 - DECAY) * (p - m), average, params)
        return (number + 1, params, moments, average), value

    state = (jnp.int32(0), params, rule.init(params), jax.tree.map(jnp.copy, params))
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    flops = count_flops(step, state, image)
    compiled, holder = jax.jit(step, donate_argnums=0), [state]

    def run() -> None:
        holder[0], value = compiled(holder[0], image)
        jax.block_until_ready((holder[0], value))

    return run, flops


def sampling(spec: Spec, peer: Peer, params: dict) -> tuple[Callable[[], object], float]:
    """DDIM with clipped x0, one network call in each step of the scan."""
    alpha, sigma = schedule()
    steps = jnp.asarray(np.linspace(TIMES, 0, spec.calls + 1).round().astype(np.int32))
    shape = (spec.batch, SIDE, SIDE, CHANNELS[spec.network])

    @jax.jit
    def sample(params: dict, seed: jax.Array) -> jax.Array:
        def step(x: jax.Array, pair: tuple) -> tuple[jax.Array, None]:
            cur, nxt = pair
            out = peer.apply(params, x, jnp.broadcast_to(cur / TIMES, shape[:1]), None)
            x0 = jnp.clip((x - sigma[cur] * out) / alpha[cur], -1, 1)
            eps = (x - alpha[cur] * x0) / sigma[cur]
            return alpha[nxt] * x0 + sigma[nxt] * eps, None

        x = jax.random.normal(jax.random.key(seed), shape)
        x, _ = jax.lax.scan(step, x, (steps[:-1], steps[1:]))
        return jnp.round(jnp.clip(127.5 * (x + 1), 0, 255)).astype(jnp.uint8)

    seed = jnp.int32(0)
    return lambda: sample(params, seed).block_until_ready(), count_flops(sample, params, seed)
