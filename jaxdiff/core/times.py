"""Laws of the training times: values (key, n, path) -> t[n], each the inverse CDF of a uniform variable."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Path
from jaxdiff.core.weights import AnyWeight

Times = Float[Array, "n"]

HALF = 2.0**-24
"""Half the spacing of JAX's float32 uniforms."""


def open_uniform(key: Key[Array, ""], n: int) -> Times:
    """n uniforms in (0, 1), the middles of 2**23 bins: never an end, where weights may blow up."""
    return jax.random.uniform(key, (n,)) + HALF


@runtime_checkable
class Quantile(Protocol):
    """A law that can be stratified: u in (0, 1) -> t."""

    def quantile(self, u: Times, path: Path) -> Times: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """t uniform on (start, 1) * t_max."""

    start: float = 0.0
    """The smallest time, as a fraction of t_max (score SDE: 1e-5)."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start = {self.start} must lie in [0, 1) (--times.start)")

    def quantile(self, u: Times, path: Path) -> Times:
        return path.t_max * (self.start + (1 - self.start) * u)

    def __call__(self, key: Key[Array, ""], n: int, path: Path) -> Times:
        return self.quantile(open_uniform(key, n), path)


@dataclasses.dataclass(frozen=True)
class UniformSteps:
    """t uniform on a chain's N steps, {1 ... N} * t_max / N. Source: arXiv:2006.11239, Alg. 1."""

    num_steps: int = 1000
    """N."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps} is not allowed: at least 1 (--times.num-steps)")

    def quantile(self, u: Times, path: Path) -> Times:
        step = jnp.minimum(jnp.floor(u * self.num_steps) + 1, self.num_steps)
        return jnp.minimum(step * (path.t_max / self.num_steps), path.t_max)

    def __call__(self, key: Key[Array, ""], n: int, path: Path) -> Times:
        return self.quantile(open_uniform(key, n), path)


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std**2): EDM's law on `Sigma`, the logit-normal law on `Linear`.

    Source: arXiv:2206.00364, Table 1; arXiv:2403.03206, Sec. 3.1.
    """

    mean: float = -1.2
    """Mean of log(sigma / alpha): EDM -1.2, SD3 0."""
    std: float = 1.2
    """Its standard deviation: EDM 1.2, SD3 1."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std = {self.std} must be above 0 (--times.std)")

    def quantile(self, u: Times, path: Path) -> Times:
        return path.invert(jnp.exp(self.mean + self.std * jax.scipy.special.ndtri(u)))

    def __call__(self, key: Key[Array, ""], n: int, path: Path) -> Times:
        return self.quantile(open_uniform(key, n), path)


@dataclasses.dataclass(frozen=True)
class Importance:
    """Density of t proportional to a weight, so that a loss of weight 1 has the weighted loss's expectation
    (up to a constant) with less variance. Source: arXiv:2101.09258, Sec. 5.1 (for the likelihood weight).
    """

    weight: AnyWeight
    """The weight that uniform times would have had."""
    start: float = 1e-5
    """The smallest time, as a fraction of t_max: the weight must be finite there."""
    bins: int = 1000
    """Resolution of the numerical inverse CDF."""

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise ValueError(f"start = {self.start} must lie between 0 and 1 (--times.start)")
        if self.bins < 1:
            raise ValueError(f"bins = {self.bins} is not allowed: at least 1 (--times.bins)")

    def quantile(self, u: Times, path: Path) -> Times:
        # Geometric bins: likelihood weights blow up as 1/t towards the clean end.
        edges = path.t_max * jnp.geomspace(self.start, 1.0, self.bins + 1)
        middles = 0.5 * (edges[1:] + edges[:-1])
        mass = self.weight(path(middles)) * jnp.diff(edges)
        cdf = jnp.concatenate([jnp.zeros(1), jnp.cumsum(mass)])
        return jnp.interp(u * cdf[-1], cdf, edges)

    def __call__(self, key: Key[Array, ""], n: int, path: Path) -> Times:
        return self.quantile(open_uniform(key, n), path)


@dataclasses.dataclass(frozen=True)
class Stratified:
    """Any law with its n uniforms spread evenly, u_i = (u + i/n) mod 1: less variance, same expectation.

    Each u_i by itself is uniform. Source: arXiv:2107.00630, App. I.1 (low-discrepancy sampler).
    """

    law: Uniform | UniformSteps | LogNormal | Importance = Uniform()
    """The law of each time."""

    def __call__(self, key: Key[Array, ""], n: int, path: Path) -> Times:
        u = jnp.mod(open_uniform(key, 1) + jnp.arange(n) / n, 1.0)
        return self.law.quantile(jnp.maximum(u, HALF), path)


AnyTimeLaw = Uniform | UniformSteps | LogNormal | Importance | Stratified
"""The laws that a config may hold."""
