"""Particles: many chains that are weighted by what the measurement says of them, and drawn again by their weights.

A population of K chains follows DDPM's ancestral steps p(x' | x). With g(x) = p(y | x) as of `problem.likelihood`
(the twist), which needs only be roughly right, a chain moves by q(x' | x), whose denoiser is pushed up the slope of
log g, and its weight is multiplied by

    p(x' | x) g(x') / (q(x' | x) g(x)),      g(x0) = N(y; A(x0), noise^2 I) in the end

so that weighted chains are distributed by the posterior of the data that the ancestral chain draws, whatever g is, as
K grows. Where the effective sample size 1 / sum w^2 falls below a share of K, chains are drawn anew (systematically);
in the end always, so that what comes out has equal weights. The product of the mean weights estimates the evidence
p(y).

`twist` = 0 leaves the moves alone and only weighs: steering by the difference of g along the way (FK steering). No
derivatives are needed then, but more chains are.

Source: arXiv:2306.17775, Alg. 1 and Eq. 6-8 (twisted diffusion sampler); arXiv:2501.06848, Sec. 3 (FK steering);
arXiv:cs/0507025 (systematic resampling).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.core import gaussian
from jaxdiff.core.types import Denoise, Level
from jaxdiff.sampling.inverse.operator import Operator, seen_of
from jaxdiff.sampling.inverse.problem import Problem, Stepping, each, likelihood, need_noise, spread, with_pull
from jaxdiff.sampling.sample import normal_like
from jaxdiff.sampling.solver import Solver, State, decay

Image = Float[Array, "b h w c"]
Weights = Float[Array, "groups k"]


class Population(NamedTuple):
    """Of `groups` populations of k chains each."""

    log_weight: Weights
    """Their exponentials add up to 1."""
    pending: Weights
    """log p(x' | x) - log q(x' | x) - log g(x) of the last move, to which log g(x') is still to be added."""
    log_evidence: Float[Array, "groups"]
    """Of y, so far; in the units of y (`operator.offset`: twice those of a file)."""
    effective: Float[Array, "groups"]
    """The least effective sample size so far."""


@dataclasses.dataclass(frozen=True)
class Particles:
    """One denoising a step for each chain, and one product with its derivative unless twist = 0.

    Successive images of a batch are one population, so that they depend on each other.
    """

    particles: int = 16
    """Chains in a population, K."""
    twist: float = 1.0
    """Strength of the push along the slope of log g; 0: none."""
    threshold: float = 0.5
    """Chains are drawn again where the effective sample size is below this share of them, in [0, 1]."""
    std: float = 1.0
    """Deviation of the data's pixels, from which the width of g follows; rather too large, which guides less, than too
    small for what is measured together, where a few rare chains would have most of the weight."""

    own_steps = True

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles = {self.particles} is not allowed: at least 1 (--method)")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold} is not allowed: 0 to 1 (--method)")
        if not (self.std > 0 and self.twist >= 0):
            raise ValueError(f"std = {self.std}, twist = {self.twist} are not allowed: above 0, at least 0 (--method)")

    def check(self, operator: Operator, noise: float) -> None:
        need_noise("tds and fk", noise)

    def __call__(self, problem: Problem, solver: Solver) -> Solver:
        k = self.particles

        def first(x: Image, levels: Level) -> State:
            if x.shape[0] % k:
                raise ValueError(f"{x.shape[0]} images are no populations of {k} particles (--batch-size, --method)")
            groups = x.shape[0] // k
            even = jnp.full((groups, k), -math.log(k))
            return Population(even, jnp.zeros((groups, k)), jnp.zeros(groups), jnp.full(groups, float(k)))

        def take(
            keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
        ) -> tuple[Image, State]:
            believed, pull = with_pull(denoise, x, cur, nxt)
            log_g, slope = likelihood(problem, believed.x0, spread(cur, self.std))
            gradient = pull(slope) if self.twist > 0 else jnp.zeros_like(x)
            state = weighed(state, state.pending + log_g.reshape(-1, k))
            few = effective_size(state.log_weight) < self.threshold * k
            chosen, state = drawn(keys, state, few)
            believed = jax.tree.map(lambda a: a[chosen], believed)
            gradient, log_g = gradient[chosen], log_g[chosen]

            q, guided = decay(cur, nxt), gaussian.pushed(cur, believed, self.twist * gradient)
            plain = gaussian.diffuse(nxt, believed.x0, q * believed.eps)
            std = nxt.sigma * jnp.sqrt(jnp.maximum(1 - jnp.square(q), 0.0))
            push = jnp.where(std > 0, gaussian.diffuse(nxt, guided.x0, q * guided.eps) - plain, 0.0)
            z = normal_like(keys, x)
            x = plain + push + std * z
            # In units of the step's deviation p's and q's exponents differ by this.
            way = push / jnp.where(std > 0, std, 1.0)
            pending = -each(way * z + 0.5 * jnp.square(way)) - log_g
            state = state._replace(pending=pending.reshape(-1, k))

            def ended() -> tuple[Image, State]:
                exact = log_density(problem, x).reshape(-1, k)
                last = weighed(state, state.pending + exact)
                chosen, last = drawn(keys, last, jnp.ones_like(few))
                return x[chosen], last

            return jax.lax.cond(nxt.sigma == 0, ended, lambda: (x, state))

        return Stepping(take, first)


def weighed(state: Population, log_factor: Weights) -> Population:
    """The weights multiplied by these factors, and the evidence by their weighted mean."""
    log_weight = state.log_weight + log_factor
    total = jax.nn.logsumexp(log_weight, axis=1)
    log_weight = log_weight - total[:, None]
    least = jnp.minimum(state.effective, effective_size(log_weight))
    return state._replace(log_weight=log_weight, log_evidence=state.log_evidence + total, effective=least)


def effective_size(log_weight: Weights) -> Float[Array, "groups"]:
    """1 / sum w^2, between 1 and k."""
    return jnp.exp(-jax.nn.logsumexp(2 * log_weight, axis=1))


def drawn(
    keys: Key[Array, "b"], state: Population, needed: Bool[Array, "groups"]
) -> tuple[Int[Array, "b"], Population]:
    """(numbers of the chains that go on, the state with even weights), or all as it is where it is not needed."""
    groups, k = state.log_weight.shape
    # One number a population, from the key of its first chain.
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys[::k])
    summed = jnp.cumsum(jnp.exp(state.log_weight), axis=1)
    places = (jnp.arange(k) + u[:, None]) / k * summed[:, -1:]
    found = jnp.minimum(jax.vmap(jnp.searchsorted)(summed, places), k - 1)
    own = jnp.where(needed[:, None], found, jnp.arange(k))
    even = jnp.where(needed[:, None], -math.log(k), state.log_weight)
    return (own + k * jnp.arange(groups)[:, None]).ravel(), state._replace(log_weight=even)


def log_density(problem: Problem, x0: Image) -> Float[Array, "b"]:
    """log N(y; A(x0), noise^2 I), over what is measured."""
    operator = problem.operator
    miss = (problem.y - operator.forward(x0)) / problem.noise
    seen = float(seen_of(operator).sum())
    return -0.5 * each(jnp.square(miss)) - seen * (0.5 * math.log(2 * math.pi) + jnp.log(problem.noise))
