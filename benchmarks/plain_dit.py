"""A diffusion transformer the way that most would write it in Flax: a loop over blocks with their own parameters.

The same function as `jaxdiff.networks.dit.DiT`, with Flax's attention and norms, nothing recomputed in the backward
pass, and a step under plain `jax.jit`. What it costs on a TPU is what `benchmarks.tpu` measures.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class PlainBlock(nn.Module):
    """Attention and MLP, modulated by the embedding."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        width = x.shape[-1]
        zeros = nn.initializers.zeros
        mod = nn.Dense(6 * width, dtype=self.dtype, kernel_init=zeros)(nn.silu(emb))[:, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(mod, 6, axis=-1)
        h = nn.LayerNorm(1e-6, use_bias=False, use_scale=False, dtype=self.dtype)(x) * (1 + scale_1) + shift_1
        x = x + gate_1 * nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(h)
        h = nn.LayerNorm(1e-6, use_bias=False, use_scale=False, dtype=self.dtype)(x) * (1 + scale_2) + shift_2
        h = nn.Dense(4 * width, dtype=self.dtype)(h)
        return x + gate_2 * nn.Dense(width, dtype=self.dtype)(nn.gelu(h))


class PlainDiT(nn.Module):
    """``(x, t) -> [b, h, w, c]``; parameters float32, `dtype` for the rest."""

    depth: int = 28
    width: int = 1152
    heads: int = 16
    patch: int = 2
    dtype: jnp.dtype = jnp.dtype("bfloat16")

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        b, height, width, c = x.shape
        p, rows, cols = self.patch, height // self.patch, width // self.patch
        angle = t[:, None] * jnp.exp(-np.log(10000.0) / 128 * jnp.arange(128))
        emb = nn.Dense(self.width)(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1))
        emb = nn.Dense(self.width)(nn.silu(emb))
        h = nn.Conv(self.width, (p, p), strides=(p, p), dtype=self.dtype)(x).reshape(b, rows * cols, self.width)
        h = h + jnp.asarray(positions(rows, cols, self.width), self.dtype)
        for _ in range(self.depth):
            h = PlainBlock(self.heads, self.dtype)(h, emb)
        mod = nn.Dense(2 * self.width, kernel_init=nn.initializers.zeros)(nn.silu(emb))[:, None]
        shift, scale = jnp.split(mod, 2, axis=-1)
        h = nn.LayerNorm(1e-6, use_bias=False, use_scale=False)(h) * (1 + scale) + shift
        h = nn.Dense(p * p * c, kernel_init=nn.initializers.zeros)(h)
        return h.reshape(b, rows, cols, p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def positions(rows: int, cols: int, width: int) -> np.ndarray:
    """Fixed sines and cosines of the row and of the column of each token."""
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), -1).reshape(-1, 2, 1)
    angle = (place / 10000.0 ** (np.arange(width // 4) / (width // 4))).reshape(rows * cols, -1)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def plain_step(network: PlainDiT, rule: optax.GradientTransformation, decay: float = 0.9999):
    """(state, image) -> (state, loss), where the state is (number, params, moments, average)."""

    def step(state: tuple, image: jax.Array) -> tuple[tuple, jax.Array]:
        number, params, moments, average = state
        key_t, key_eps = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
        x0 = image.astype(jnp.float32) / 127.5 - 1
        t = jax.random.uniform(key_t, image.shape[:1])
        eps = jax.random.normal(key_eps, image.shape)
        angle = (t * jnp.pi / 2)[:, None, None, None]

        def loss(params: dict) -> jax.Array:
            out = network.apply({"params": params}, jnp.cos(angle) * x0 + jnp.sin(angle) * eps, 1000 * t)
            return jnp.mean(jnp.square(jnp.asarray(out) - eps))

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = rule.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda m, p: m + (1 - decay) * (p - m), average, params)
        return (number + 1, params, moments, average), value

    return step


def plain_state(network: PlainDiT, rule: optax.GradientTransformation, shape: tuple[int, int, int]) -> tuple:
    """The state before the first step."""
    params = network.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))["params"]
    return jnp.int32(0), params, rule.init(params), jax.tree.map(jnp.copy, params)
