"""A learned noise schedule: gamma(t) = -logSNR as a monotone network of t in [0, 1].

    alpha^2 = sigmoid(-gamma)        sigma^2 = sigmoid(gamma)
    gamma(t) = gamma_min + (gamma_max - gamma_min) * (g(t) - g(0)) / (g(1) - g(0))
    g(t) = l1(t) + l3(sigmoid(l2(l1(t))))        with positive weights in l1, l2, l3

The two ends are learned by the bound itself; the shape between them does not change the bound in continuous
time, only its variance. Source: arXiv:2107.00630, Sec. 4 and App. H.
"""

import dataclasses
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core.types import Level, Params, Path


class LearnedSchedule(nn.Module):
    """``t in [0, 1] -> Level``, variance-preserving; ``method="gamma"`` gives -logSNR itself."""

    gamma_min: float = -13.3
    """Initial -logSNR at t = 0 (clean)."""
    gamma_max: float = 5.0
    """Initial -logSNR at t = 1 (noise)."""
    interior: bool = True
    """Learn the shape between the ends; False keeps -logSNR linear in t."""
    hidden: int = 1024
    """Hidden units of the interior network."""

    def setup(self) -> None:
        span = self.gamma_max - self.gamma_min
        if span <= 0:
            raise ValueError(
                f"gamma_max {self.gamma_max} must be above gamma_min {self.gamma_min}: change --schedule.gamma-max"
            )
        self.start = self.param("gamma_min", nn.initializers.constant(self.gamma_min), ())
        self.span = self.param("gamma_span", nn.initializers.constant(span), ())
        if self.interior:
            self.l1 = PositiveDense(1)
            self.l2 = PositiveDense(self.hidden)
            self.l3 = PositiveDense(1)

    def __call__(self, t: Float[Array, "*b"]) -> Level:
        """The level at ``t``."""
        gamma = self.gamma(t)
        return Level(jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma)))

    def gamma(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """-logSNR at ``t``, increasing, exactly `gamma_min` at 0 and the learned end at 1."""
        unit = t
        if self.interior:
            g0, g1 = self._shape(jnp.zeros(())), self._shape(jnp.ones(()))
            unit = (self._shape(t) - g0) / (g1 - g0)
        return self.start + jnp.abs(self.span) * unit

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Initial parameters, float32."""
        return self.init(key, jnp.zeros(()))["params"]

    def at(self, params: Params) -> Path:
        """The schedule with these parameters as a `Path` with ``t_max = 1``."""
        return SchedulePath(self, params)

    def _shape(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        line = self.l1(t[..., None])
        return (line + self.l3(jax.nn.sigmoid(self.l2(line))))[..., 0]


class PositiveDense(nn.Module):
    """A dense layer with weights ``softplus(kernel) / fan_in``, increasing in every input."""

    features: int
    """Number of outputs."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b features"]:
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.normal(1.0), (self.features,))
        return x @ (jax.nn.softplus(kernel) / x.shape[-1]) + bias


@dataclasses.dataclass(frozen=True, eq=False)  # arrays cannot be compared, so a path equals only itself
class SchedulePath:
    """A learned schedule with its parameters, as a path: what a sampler walks along."""

    schedule: LearnedSchedule
    """The module."""
    params: Params
    """Its parameters."""
    steps: int = 40
    """Halvings of the interval in which `invert` looks for t."""

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    def __call__(self, t: Float[Array, "*b"]) -> Level:
        """The level at ``t`` in [0, 1]."""
        return cast(Level, self.schedule.apply({"params": self.params}, t))

    def invert(self, ratio: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The time at which ``sigma / alpha = ratio``, by bisection; 0 or 1 outside the schedule's ends."""
        gamma = 2 * jnp.log(ratio)

        def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            here = self.schedule.apply({"params": self.params}, middle, method="gamma")
            below = cast(Array, here) < gamma
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        bounds = (jnp.zeros_like(gamma), jnp.ones_like(gamma))
        low, high = jax.lax.fori_loop(0, self.steps, halve, bounds)
        return (low + high) / 2
