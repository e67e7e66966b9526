"""DDRM: a diffusion in the operator's own coordinates, each of its singular values treated by how well it is measured.

In u = x / alpha, r = sigma / alpha, with v = A^+ y, whose coordinates have noise of deviation noise / s, the next u'
has in the directions of the singular value s the mean and the variance

    s = 0                x0 + sqrt(1 - eta^2) r' eps                          eta^2 r'^2
    r' < noise / s       x0 + sqrt(1 - eta^2) r' (v - x0) s / noise           eta^2 r'^2
    r' >= noise / s      (1 - eta_b) x0 + eta_b v                             r'^2 - eta_b^2 (noise / s)^2

The paper's first x has the mean v where it is measured; here it is noise alone, as for every other solver, which makes
no difference where sampling starts at much noise. Source: arXiv:2201.11793, Eq. 7-8.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.inverse.operator import Linear, Operator, inverse
from jaxdiff.sampling.inverse.problem import Problem, Stepping, need_linear
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class DDRM:
    """One denoising a step."""

    eta: float = 0.85
    """Share of fresh noise where the measurement says little, in [0, 1]."""
    eta_b: float = 1.0
    """Share of the measurement where it says more than x does, in [0, 1]."""

    own_steps = True

    def __post_init__(self) -> None:
        for name in ("eta", "eta_b"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} is not allowed: 0 to 1 (--method ddrm)")

    def check(self, operator: Operator, noise: float) -> None:
        need_linear("ddrm", operator)
        if isinstance(operator, Linear) and operator.spectral is None:
            raise ValueError(
                "method ddrm is not allowed with this operator, whose singular values are not known: ddnm without "
                "noise, pigdm, dps, diffpir and daps do without (--method)"
            )

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        operator, noise = problem.operator, problem.noise
        if not isinstance(operator, Linear) or operator.spectral is None:
            raise ValueError("DDRM needs the singular values of its operator")
        spectral = operator.spectral

        def take(
            keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
        ) -> tuple[Image, State]:
            x0, eps, _ = denoise(x, cur, nxt)
            r, kept = nxt.sigma / nxt.alpha, jnp.sqrt(1 - self.eta**2)

            def by_case(s: Float[Array, "..."], none, little, much) -> Float[Array, "..."]:
                return jnp.where(s == 0, none, jnp.where(r * s < noise, little, much))

            def of_x0(s: Float[Array, "..."]) -> Float[Array, "..."]:
                return by_case(s, 1.0, 1 - kept * r * s * inverse(noise), 1 - self.eta_b)

            def of_eps(s: Float[Array, "..."]) -> Float[Array, "..."]:
                return by_case(s, kept * r, 0.0, 0.0)

            def of_v(s: Float[Array, "..."]) -> Float[Array, "..."]:
                return by_case(s, 0.0, kept * r * s * inverse(noise), self.eta_b) * inverse(jnp.square(s))

            def of_z(s: Float[Array, "..."]) -> Float[Array, "..."]:
                rest = jnp.square(r) - jnp.square(self.eta_b * noise * inverse(s))
                return by_case(s, self.eta * r, self.eta * r, jnp.sqrt(jnp.maximum(rest, 0.0)))

            u = spectral(of_x0, x0) + spectral(of_eps, eps)
            u += spectral(of_v, operator.adjoint(problem.y)) + spectral(of_z, normal_like(keys, x))
            return nxt.alpha * u, None

        return Stepping(take)
