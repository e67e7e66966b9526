"""Softmax attention, by the kernel that suits the platform that a program is compiled for.

    out = softmax(q k^T / sqrt(d)) v        for each head; the softmax is float32

Plain matrix products are the reference, and all there is on a CPU and under forward-mode differentiation. The others
never write the n x n map to memory: cuDNN's on NVIDIA GPUs, and on TPUs a Pallas kernel, for long sequences.
"""

from collections.abc import Callable
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.networks.axes import free_axes, program_platform, spread

Kernel: TypeAlias = Callable[
    [Float[Array, "b n heads d"], Float[Array, "b m heads d"], Float[Array, "b m heads d"]], Float[Array, "b n heads d"]
]
"""``(q, k, v) -> out``."""

TILE = 128
"""Tokens in the smallest block of the TPU kernel: both sequences must be multiples of it."""

LONG = 1024
"""Tokens from which the TPU kernel is used: below, the map is small and XLA fuses the plain one well."""


def plain(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    mask: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n heads d"]:
    """Attention by matrix products: the reference. `mask`: the keys that may be seen, at least one for each example."""
    seen = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")


def borrowed(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    mask: Bool[Array, "b m"] | None,
    taken: Int[Array, "b m"],
) -> Float[Array, "b n heads d"]:
    """Attention with maps of other examples: those of the source, half a batch before (prompt-to-prompt).

    Key j's column of the map is column `taken[j]` of the source's, or its own where that is -1. The result's rows need
    not sum to one, as in the paper. Source: arXiv:2208.01626, Eq. 3 and Sec. 3.
    """
    logits = jnp.einsum("bnhd,bmhd->bhnm", q.astype(jnp.float32), k.astype(jnp.float32)) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    maps = jax.nn.softmax(logits, axis=-1)
    place = taken[:, None, None, :]
    source = jnp.take_along_axis(jnp.roll(maps, q.shape[0] // 2, axis=0), jnp.maximum(place, 0), axis=-1)
    maps = jnp.where(place >= 0, source, maps)
    return jnp.einsum("bhnm,bmhd->bnhd", maps.astype(v.dtype), v)


def cudnn(
    q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], v: Float[Array, "b m heads d"]
) -> Float[Array, "b n heads d"]:
    """cuDNN's attention: 16-bit floats on an NVIDIA GPU, d a multiple of 8 up to 128, n and m even (for gradients)."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def splash(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    interpret: bool = False,
) -> Float[Array, "b n heads d"]:
    """The Pallas kernel for TPUs; n and m are multiples of `TILE`. `interpret` runs it anywhere, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, n, heads, d), m = q.shape, k.shape[1]
    rows, columns = (max(tile for tile in (TILE, 2 * TILE, 4 * TILE) if size % tile == 0) for size in (n, m))
    blocks = kernels.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    everything = masks.MultiHeadMask([masks.FullMask((n, m))] * heads)
    run = kernels.make_splash_mha(everything, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * jnp.asarray(d**-0.5, q.dtype), k, v))
    return jnp.swapaxes(cast(Array, jax.vmap(run)(q, k, v)), 1, 2)


def kernel_for(
    platform: str, q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], shards: int = 1
) -> Kernel:
    """The fastest that takes these queries and keys, where the queries are cut into `shards` along their tokens."""
    (_, n, _, d), m = q.shape, k.shape[1]
    if platform == "tpu" and m >= LONG and m % TILE == 0 and n % (shards * TILE) == 0:
        return splash
    fits = q.dtype.itemsize == 2 and d % 8 == 0 and d <= 128 and n % (2 * shards) == m % 2 == 0
    if platform == "gpu" and fits and has_cudnn():
        return cudnn
    return plain


def has_cudnn() -> bool:
    """Whether the GPUs here are NVIDIA's, of the generations (Ampere and later) that cuDNN's attention is for."""
    device = jax.devices()[0]
    generation = str(getattr(device, "compute_capability", "0")).split(".")[0]
    return "cuda" in device.client.platform_version and int(generation) >= 8


def fastest(
    q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], v: Float[Array, "b m heads d"]
) -> Float[Array, "b n heads d"]:
    """`kernel_for` this program, on each device's part of the mesh in force.

    The compiler cannot divide the kernels by itself, so they run per device: images over ``data`` and ``fsdp``, heads
    over ``tensor``, and queries over ``sequence``, where each device gathers all keys and values.
    """
    b, n, heads, _ = q.shape
    batch, tokens, split = spread("batch", b), spread("tokens", n), spread("heads", heads)
    free = free_axes()
    kernel = kernel_for(program_platform(), q, k, free[tokens[0]] if tokens else 1)
    if kernel is plain or not free:
        return kernel(q, k, v)
    return on_mesh(kernel, PartitionSpec(batch, tokens, split, None), PartitionSpec(batch, None, split, None))(q, k, v)


def on_mesh(kernel: Kernel, queries: PartitionSpec, keys: PartitionSpec) -> Kernel:
    """The kernel on each device's part of `q`, and of `k` and `v`, of the mesh in force."""
    return jax.shard_map(kernel, in_specs=(queries, keys, keys), out_specs=queries, check_vma=False)
