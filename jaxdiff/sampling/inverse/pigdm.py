"""Pseudo-inverse guidance (PiGDM): the score of a normal likelihood is added to the denoiser's.

    x0' = x0 + sigma^2 / alpha g,      eps' = eps - sigma g
    g   = (dx0/dx)^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A x0)

A transform, for every solver. It is exact where p(x0 | x) is a normal with the covariance r^2 I: for pixels that are
independent normals of deviation `std`. Elsewhere the likelihood's width is wrong, and the posterior biased. The paper's
algorithm multiplies g by r^2 and other factors of its VP grid, which has no limit for many steps; this is Bayes' rule.

Source: Song, Vahdat, Mardani and Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023,
Eq. 5-8.
"""

import dataclasses

from jaxtyping import Array, Float

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Estimate, Level, Transform
from jaxdiff.sampling.inverse.operator import Operator
from jaxdiff.sampling.inverse.problem import Problem, Steered, likelihood, need_linear, spread, with_pull
from jaxdiff.sampling.solver import Solver

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class PiGDM:
    """The solver's denoisings, each with one product with the denoiser's derivative."""

    std: float = 1.0
    """Deviation of the data's pixels, from which r follows; 1 in the paper."""
    scale: float = 1.0
    """Strength of the guidance; 1 is Bayes' rule."""

    own_steps = False

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std = {self.std} is not allowed: above 0 (--method pigdm)")

    def check(self, operator: Operator, noise: float) -> None:
        need_linear("pigdm", operator)

    def transform(self, problem: Problem) -> Transform:
        """From the denoiser of the data to that of the posterior."""

        def transform(denoise: Denoise) -> Denoise:
            def guided(x: Image, cur: Level, nxt: Level) -> Estimate:
                believed, pull = with_pull(denoise, x, cur, nxt)
                _, slope = likelihood(problem, believed.x0, spread(cur, self.std))
                return gaussian.pushed(cur, believed, self.scale * pull(slope))

            return guided

        return transform

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        return Steered(solver, self.transform(problem))
