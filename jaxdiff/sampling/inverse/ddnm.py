"""DDNM: in every step the believed x0 is replaced, where it is measured, by what the measurement says.

    x0' = x0 + L A^+ (y - A x0),      eps' = (x - alpha x0') / sigma
    x'  = alpha' x0' + sigma' sqrt(1 - f) eps' + P z,      f = eta^2 (1 - (r'/r)^2)

Without noise L = 1 and P = sigma' sqrt(f) =: p, so that the picture agrees with y exactly. With noise, x' is to be no
noisier than sigma' says: for a singular value s, a = alpha' (1 - r'/r sqrt(1 - f)) being the share of x0' in x',

    L = min(1, p s / (a noise)),      P^2 = p^2 - (a L noise / s)^2

and 0 or p for what is not measured. An operator that is not linear and has a pseudo-inverse (JPEG) is taken without
noise as A^+ y - A^+ A(x0). Source: arXiv:2212.00490, Alg. 1 and Eq. 17-19 (with its time travel left out); arXiv:
2209.11888 (JPEG).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.inverse.operator import Linear, Operator, inverse
from jaxdiff.sampling.inverse.problem import Problem, Stepping
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import Solver, State, decay

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class DDNM:
    """One denoising a step."""

    eta: float = 1.0
    """Share of fresh noise, in [0, 1]; the paper's is 1, its code's 0.85."""

    own_steps = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta} is not allowed: 0 to 1 (--method ddnm)")

    def check(self, operator: Operator, noise: float) -> None:
        if operator.pinv is None:
            raise ValueError("method ddnm is not allowed with an operator without a pseudo-inverse (--method)")
        if noise > 0 and (not isinstance(operator, Linear) or operator.spectral is None):
            raise ValueError(
                f"noise = {noise} is not allowed with ddnm and this operator, whose singular values are not known: 0, "
                "or another method (--noise, --method)"
            )

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        operator, noise = problem.operator, problem.noise

        def take(
            keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
        ) -> tuple[Image, State]:
            x0, z = denoise(x, cur, nxt).x0, normal_like(keys, x)
            q = decay(cur, nxt)
            fresh = self.eta**2 * jnp.maximum(1 - jnp.square(q), 0.0)
            kept, std = jnp.sqrt(1 - fresh), nxt.sigma * jnp.sqrt(fresh)
            known = nxt.alpha * (1 - q * kept) * noise

            def trust(s: Float[Array, "..."]) -> Float[Array, "..."]:
                return jnp.where(known > std * s, std * s * inverse(known), 1.0)

            def rest(s: Float[Array, "..."]) -> Float[Array, "..."]:
                return jnp.sqrt(jnp.maximum(jnp.square(std) - jnp.square(known * trust(s) * inverse(s)), 0.0))

            if isinstance(operator, Linear) and operator.spectral is not None:
                miss = operator.adjoint(problem.y - operator.forward(x0))
                x0 = x0 + operator.spectral(lambda s: trust(s) * inverse(jnp.square(s)), miss)
                z = operator.spectral(rest, z)
            elif operator.pinv is not None:
                x0, z = x0 + operator.pinv(problem.y) - operator.pinv(operator.forward(x0)), std * z
            eps = gaussian.from_x0(cur, x, x0).eps
            return gaussian.diffuse(nxt, x0, kept * eps) + z, None

        return Stepping(take)
