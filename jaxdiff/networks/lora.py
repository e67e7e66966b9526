"""Low-rank changes of a network's kernels (LoRA): pure functions on trees of parameters; networks know nothing of them.

    W' = W + scale * down up          W [in, out], down [in, r], up [r, out], r much smaller than in and out

A tree of factors has ``{"down": ..., "up": ...}`` in place of each kernel that changes, and nothing of the rest. Axes
of our kernels besides the two: blocks that are stacked come first, and have factors of their own; a convolution's
height and width belong to `down`, as if a narrow convolution and a 1x1 one came after each other; what outputs have
(heads, or query, key and value side by side) belongs to `up`.

    kernel [L, in, 3, heads, d]         down [L, in, r]          up [L, r, 3, heads, d]
    kernel [h, w, in, out]              down [h, w, in, r]       up [r, out]

Source: arXiv:2106.09685, Sec. 4.1, whose B and A are our up and down, transposed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Params

Where: TypeAlias = tuple[str, ...]
"""Where a parameter stands in the tree."""

DOWN, UP = "down", "up"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which kernels change, and how."""

    rank: int = 0
    """Rank of the change of each kernel; 0: all parameters are trained, and no factors."""
    alpha: float = 0.0
    """The change is alpha / rank times the product of its factors; 0: alpha is the rank."""
    targets: Literal["attention", "all"] = "attention"
    """The kernels that change: those of attention, or of all dense layers and convolutions."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank = {self.rank} is not allowed: at least 0 (--lora.rank)")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha = {self.alpha} is not allowed: at least 0 and finite (--lora.alpha)")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank if self.alpha else 1.0

    @property
    def chosen(self) -> Callable[[Where], bool]:
        """Whether the kernel at a path changes."""
        return in_attention if self.targets == "attention" else any_kernel


class Part(NamedTuple):
    """A low-rank change, and how much of it."""

    factors: Params
    scale: float | Float[Array, ""]


def product(
    down: Float[Array, "*n r"], up: Float[Array, "*m"], shape: tuple[int, ...], scale: float | Float[Array, ""] = 1.0
) -> Float[Array, "*k"]:
    """``scale * down up`` as a kernel of this shape. Raises ValueError where the factors do not fit it."""
    stack = down.ndim + up.ndim - 2 - len(shape)
    meet = stack in (0, 1) and down.shape[:stack] == up.shape[:stack] and down.shape[-1] == up.shape[stack]
    if not meet or (*down.shape[:-1], *up.shape[stack + 1 :]) != tuple(shape):
        raise ValueError(f"factors {list(down.shape)} and {list(up.shape)} make no kernel {list(shape)}")
    rank, lead = down.shape[-1], down.shape[:stack]
    # Float32 to its last bits, on machines too that would round the factors to bfloat16.
    high = jax.lax.Precision.HIGHEST
    return scale * jnp.matmul(down.reshape(*lead, -1, rank), up.reshape(*lead, rank, -1), precision=high).reshape(shape)


def merge(params: Params, factors: Params, scale: float | Float[Array, ""] = 1.0) -> Params:
    """`params` with ``scale * down up`` added to every kernel of which there are factors.

    `scale` is LoRA's alpha / r. Raises ValueError for factors of a kernel that is not there, or of another shape.
    """
    if is_pair(factors):
        if isinstance(params, Mapping):
            raise ValueError("factors stand in the place of a module, not of a kernel")
        return params + product(factors[DOWN], factors[UP], params.shape, scale)
    if not isinstance(params, Mapping) or factors.keys() - params.keys():
        unknown = sorted(factors.keys() - (params.keys() if isinstance(params, Mapping) else set()))
        raise ValueError(f"factors of {', '.join(unknown)}, which this network has not")
    return {name: merge(leaf, factors[name], scale) if name in factors else leaf for name, leaf in params.items()}


def merge_all(params: Params, parts: Iterable[Part]) -> Params:
    """`params` with several changes added, each by its own scale; their order makes no difference but for rounding."""
    for part in parts:
        params = merge(params, part.factors, part.scale)
    return params


def is_pair(node: object) -> bool:
    """Whether this is the two factors of one kernel, and no module."""
    return isinstance(node, Mapping) and node.keys() == {DOWN, UP} and not isinstance(node[DOWN], Mapping)


def initial(
    key: Key[Array, ""], shapes: Mapping[str, object], rank: int, chosen: Callable[[Where], bool]
) -> Mapping[str, Params]:
    """Factors of the `chosen` kernels: `down` normal of variance 1 / fan-in, `up` zero, so that nothing changes yet.

    `shapes` is a tree of parameters, or of their shapes. Raises ValueError where no kernel is chosen.
    """
    factors: dict[str, Params] = {}
    for number, (keys, leaf) in enumerate(jax.tree_util.tree_flatten_with_path(shapes)[0]):
        path = tuple(str(key.key) for key in keys)
        if path[-1] != "kernel" or not chosen(path):
            continue
        inner, outer = split_shape(path, leaf.shape)
        stack = inner[: stacked(path)]
        draw = jax.random.normal(jax.random.fold_in(key, number), (*inner, rank))
        node = factors
        for name in path[:-1]:
            node = node.setdefault(name, {})
        down = draw / math.prod(inner[len(stack) :]) ** 0.5
        node["kernel"] = {DOWN: down, UP: jnp.zeros((*stack, rank, *outer))}
    if not factors:
        raise ValueError("this network has no attention: --lora.targets all")
    return factors


def split_shape(path: Where, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the axes of a kernel that belong to `down`, those that belong to `up`)."""
    inputs = stacked(path) + (3 if is_convolution(path, shape) else 1)
    return tuple(shape[:inputs]), tuple(shape[inputs:])


def stacked(path: Where) -> int:
    """Axes in front of a parameter along which blocks are stacked: 1 or 0."""
    return int(any(name.endswith("blocks") for name in path))


def is_convolution(path: Where, shape: tuple[int, ...]) -> bool:
    """Whether the kernel at this place has a height and a width: as many axes has only that of query, key and value."""
    return len(shape) - stacked(path) == 4 and not path[-2].endswith("qkv")


def any_kernel(path: Where) -> bool:
    """All dense layers and convolutions."""
    return path[-1] == "kernel"


def in_attention(path: Where) -> bool:
    """The dense layers of attention: those of queries, keys and values, and the one behind them."""
    layer = path[-2] if len(path) > 1 else ""
    inside = stacked(path) or any("attention" in name for name in path[:-1])
    named = layer in ("q", "k", "v", "out") or layer.endswith(("qkv", "_out"))
    return bool(inside) and named and layer != "proj_out"
