"""The divergence of a velocity field of images: exact, or Hutchinson's estimate v . (J^T v) with E[v v^T] = I.

Derivatives are taken backwards, as everywhere in loops: on a CPU convolutions are fast so (networks/convolution.py).

Source: arXiv:2011.13456, App. D.2 (Hutchinson's probes, kept along the trajectory).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Image = Float[Array, "b h w c"]
Probes = Float[Array, "b n h w c"]
Velocity = Callable[[Image], Image]


@runtime_checkable
class Divergence(Protocol):
    """How the trace of a Jacobian is found."""

    def probes(self, keys: Key[Array, "b"], x: Image) -> Probes:
        """What is drawn once per image, from its own key, and kept along its trajectory."""
        ...

    def __call__(self, velocity: Velocity, z: Image, probes: Probes) -> tuple[Image, Float[Array, "b"]]:
        """(velocity(z), its divergence); an image's velocity may depend on that image alone."""
        ...


@dataclasses.dataclass(frozen=True)
class Exact:
    """The trace of the Jacobian, one gradient per dimension: for small images."""

    chunk: int = 16
    """Directions taken at once: memory for time."""

    def probes(self, keys: Key[Array, "b"], x: Image) -> Probes:
        return jnp.zeros((x.shape[0], 0, *x.shape[1:]))

    def __call__(self, velocity: Velocity, z: Image, probes: Probes) -> tuple[Image, Float[Array, "b"]]:
        out, pull = jax.vjp(velocity, z)
        d = math.prod(z.shape[1:])

        def diagonal(i: Array) -> Float[Array, "b"]:
            direction = jnp.zeros(d).at[i].set(1.0).reshape(z.shape[1:])
            (gradient,) = pull(jnp.broadcast_to(direction, z.shape))
            return gradient.reshape(-1, d)[:, i]

        return out, jnp.sum(jax.lax.map(diagonal, jnp.arange(d), batch_size=min(self.chunk, d)), axis=0)


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """The mean of v . (J^T v) over random probes v: unbiased, at one gradient each."""

    num_probes: int = 1
    """Probes per image."""
    gaussian: bool = False
    """Standard normal probes; else Rademacher's signs, whose variance is smaller."""

    def __post_init__(self) -> None:
        if self.num_probes < 1:
            raise ValueError(f"num_probes = {self.num_probes} is not allowed: at least 1 (--divergence.num-probes)")

    def probes(self, keys: Key[Array, "b"], x: Image) -> Probes:
        draw = jax.random.normal if self.gaussian else jax.random.rademacher
        return jax.vmap(lambda key: draw(key, (self.num_probes, *x.shape[1:]), jnp.float32))(keys)

    def __call__(self, velocity: Velocity, z: Image, probes: Probes) -> tuple[Image, Float[Array, "b"]]:
        out, pull = jax.vjp(velocity, z)
        (gradients,) = jax.vmap(pull, in_axes=1, out_axes=1)(probes)
        return out, jnp.mean(jnp.sum(probes * gradients, axis=(2, 3, 4)), axis=1)
