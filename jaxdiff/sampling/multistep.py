"""What the multistep solvers share: their memory, and Adams' rules with an exponential weight.

With lambda = log(alpha / sigma) and h = lambda' - lambda the probability-flow ODE from one level to the next is

    x' = (sigma'/sigma) x + alpha' integral of exp(-(h - s)) x0(lambda + s) ds        over s from 0 to h
       = (alpha'/alpha) x - sigma' integral of exp(h - s) eps(lambda + s) ds

and a constant x0 or eps makes either of them DDIM's step. A method adds what a polynomial through the values at
other levels, lambda + u h, changes of it: h sum_j w_j (value_j - value_0), with value_0 at u = 0 and

    w_j = integral of exp(-(1 - t) h) L_j(t) dt        over t from 0 to 1, L_j being Lagrange's polynomials

exactly, for as many of the levels as the order allows. Only differences of values are added, to a step that is
finite at both ends, so where lambda is infinite (from alpha = 0, to sigma = 0) the order is 1 and nothing is added.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdiff.core.types import Level
from jaxdiff.sampling.solver import decay, num_steps

Image = Float[Array, "b h w c"]
Scalar = Float[Array, ""]
Result = TypeVar("Result", bound=PyTree[Array])

TERMS = 16
"""Of the series of an exponential integral: enough for double precision at |h| <= 1."""


NEAR = 1e-5
"""Levels closer than this in lambda are the same: rounding, at the finest grids' steps of 1e-3."""


class History(NamedTuple):
    """The last values, newest first, where they were seen, and how many are valid."""

    values: Float[Array, "k b h w c"]
    at: Float[Array, "k"]
    count: Int[Array, ""]
    ends: Float[Array, "3"]
    """lambda where the last step of the grid starts, the last but one, and the last but two."""


def begin(x: Image, levels: Level, length: int) -> History:
    """The empty history of `length` values."""
    at = jnp.zeros(length, levels.sigma.dtype)
    last = num_steps(levels) - 1 - jnp.arange(3)
    start = half_logsnr(Level(*(jnp.take(a, last, mode="clip") for a in levels)))
    return History(jnp.zeros((length, *x.shape), x.dtype), at, jnp.int32(0), start)


def push(history: History, value: Image, at: Scalar) -> History:
    """The history with the newest value, seen at `at`, which grows as noise falls.

    At a level noisier than the last one the older values are forgotten. A value at an infinite `at` lies on no
    polynomial: it does not count.
    """
    kept = jnp.where(at > history.at[0], history.count, 0)
    count = jnp.where(jnp.isfinite(at), jnp.minimum(kept + 1, history.at.size), 0)
    values = jnp.concatenate([value[None], history.values[:-1]])
    return History(values, jnp.append(at, history.at[:-1]), count.astype(jnp.int32), history.ends)


def unless_repeated(cur: Level, nxt: Level, new: Result, old: Result) -> Result:
    """What a step makes of x and its state, or both as they were where the level is repeated, which is no step."""
    repeated = nxt.sigma * cur.alpha == nxt.alpha * cur.sigma
    return jax.tree.map(lambda a, b: jnp.where(repeated, b, a), new, old)


def half_logsnr(level: Level) -> Float[Array, "*b"]:
    """lambda = log(alpha / sigma)."""
    return jnp.log(level.alpha) - jnp.log(level.sigma)


def steps_after(history: History) -> Int[Array, ""]:
    """How many steps of the grid come after the one from the newest value's level, 3 standing for more."""
    return jnp.sum(history.at[0] < history.ends - NEAR)


class Stride(NamedTuple):
    """The step in lambda, h > 0 (1 where there is none), and whether there is one: finite and towards less noise."""

    h: Scalar
    usable: Array


def stride(cur: Level, nxt: Level) -> Stride:
    """h = lambda' - lambda, exact to rounding for tiny steps."""
    h = -jnp.log(decay(cur, nxt))
    usable = jnp.isfinite(h) & (h > 0)
    return Stride(jnp.where(usable, h, 1.0), usable)


def allowed(history: History, order: int, lower_order_final: bool) -> Int[Array, ""]:
    """The order of the step from the newest value's level: at most 1, 2 ... at the start, and ... 2, 1 at the end."""
    most = jnp.clip(history.count, 1, order)
    return jnp.minimum(most, steps_after(history) + 1) if lower_order_final else most


def nodes(history: History, h: Scalar) -> list[Scalar]:
    """Where the older values lie, in steps from the newest: u_1, u_2 ... < 0."""
    return [(at - history.at[0]) / h for at in history.at[1:]]


def moments(h: Scalar, n: int) -> list[Scalar]:
    """M_k = integral of exp(-(1 - t) h) t**k over t from 0 to 1, k = 0 ... n, for h of either sign and any size."""
    small = jnp.abs(h) < 1
    near, far = jnp.where(small, h, 0.0), jnp.where(small, 1.0, h)
    # h M_k = 1 - k M_(k-1): downwards from a series for small h, upwards otherwise, where it loses no digits.
    series = jnp.ones_like(h)
    for m in reversed(range(1, TERMS)):
        series = 1 - near / (m + n + 1) * series
    down = [series / (n + 1)]
    for k in reversed(range(1, n + 1)):
        down.append((1 - near * down[-1]) / k)
    up = [-jnp.expm1(-far) / far]
    for k in range(1, n + 1):
        up.append((1 - k * up[-1]) / far)
    return [jnp.where(small, a, b) for a, b in zip(reversed(down), up, strict=True)]


def adams(h: Scalar, nodes: list[Scalar], order: Int[Array, ""], pair: Scalar | None = None) -> Float[Array, "k"]:
    """h w_j of the first order - 1 nodes, and zeros: the integral of the polynomial through them and u = 0.

    `pair` takes the place of M_1 where the line through two values is integrated (order 2): some methods have a
    rule of their own there, which agrees to the order.
    """
    k_max = len(nodes)
    if not k_max:
        return jnp.zeros(0, h.dtype)
    moment = moments(h, k_max)
    u = [jnp.zeros_like(h), *nodes]
    weights = [jnp.zeros_like(h)] * k_max
    newton = [jnp.ones_like(h)]  # coefficients of (t - u_0) ... (t - u_(k-1)), the constant first
    # Newton's form: each further value adds one term, so that the order masks terms.
    for k in range(1, k_max + 1):
        above, below = [jnp.zeros_like(h), *newton], [*newton, jnp.zeros_like(h)]
        newton = [a - u[k - 1] * b for a, b in zip(above, below, strict=True)]
        integral = sum(c * m for c, m in zip(newton, moment, strict=False))
        if k == 1 and pair is not None:
            integral = jnp.where(order == 2, pair, integral)
        for j in range(1, k + 1):
            gap = jnp.ones_like(h)
            for i in range(k + 1):
                gap = gap * (u[j] - u[i]) if i != j else gap
            share = jnp.where(order > k, integral / jnp.where(order > k, gap, 1.0), 0.0)
            weights[j - 1] = weights[j - 1] + share
    return h * jnp.stack(weights)


class Unfinished(NamedTuple):
    """What a step with a corrector leaves: its values, what its predictor added, and the corrector's weights."""

    history: History
    added: Image
    weights: Float[Array, "k"]
    """Of the x0 that is still to come, less the history's newest, and of the history's older ones, less the newest."""


def unfinished(x: Image, levels: Level, length: int) -> Unfinished:
    """The state before the first step: nothing to correct."""
    history = begin(x, levels, length)
    return Unfinished(history, jnp.zeros_like(x), jnp.zeros(length, levels.sigma.dtype))


def correction(state: Unfinished, x0: Image, at: Scalar) -> Image:
    """What the corrector changes of x once the x0 believed there is known; zero where the last step ended elsewhere."""
    history = state.history
    newest = history.values[0]
    change = combine(state.weights, jnp.concatenate([x0[None], history.values[1:]]), newest) - state.added
    return jnp.where((history.count > 0) & (at > history.at[0]), change, 0.0)


def combine(weights: Float[Array, "k"], values: Float[Array, "k b h w c"], origin: Image) -> Image:
    """The sum of weights_j (values_j - origin)."""
    return jnp.tensordot(weights, values - origin, axes=1)
