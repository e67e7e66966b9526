"""Averages of the parameters over training: pure functions on pytrees, always float32.

Every average is ``m <- m + (1 - beta_t) (p - m)``, where t counts the updates from 1.

`Decay` is the usual exponential average. `Power` weighs the parameters of step tau by a power of tau, so its length
is the same fraction of the run at any step:

    m(t) = (gamma + 1) / t**(gamma + 1) * integral of tau**gamma p(tau) dtau over 0 < tau < t,
    beta_t = (1 - 1/t)**(gamma + 1),
    sigma_rel**2 = (gamma + 1) / ((gamma + 2)**2 (gamma + 3)),

where sigma_rel is the standard deviation of tau under these weights, as a fraction of t. Snapshots of one or two such
averages along a run span the averages of other lengths, which can so be made after training: least squares on
the inner products of the weights gives the factors (`posthoc_weights`), and `combine` adds the snapshots up.

Source: arXiv:2312.02696, Sec. 3 and App. C.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from jaxdiff.core.types import Params

Snapshot = tuple[int, float]
"""``(step, sigma_rel)``: a `Power` average of that length after that many updates."""


@dataclasses.dataclass(frozen=True)
class Decay:
    """The exponential average: beta_t = decay, or min(decay, (1 + t) / (10 + t)) with warm-up."""

    decay: float = 0.9999
    """beta, in [0, 1); the average reaches back about 1 / (1 - decay) steps."""
    warmup: bool = True
    """Shorter averages early in a run, so that the initial parameters are soon forgotten."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay = {self.decay} must be in [0, 1) (--ema.decay)")


@dataclasses.dataclass(frozen=True)
class Power:
    """The power-function average of EDM2: the same fraction of a run at any step.

    Source: arXiv:2312.02696, Sec. 3.1.
    """

    sigma_rel: float = 0.05
    """Length as a fraction of the run, in (0, 12**-0.5 = 0.2887]: the relative spread of the weights in time."""

    def __post_init__(self) -> None:
        gamma_of(self.sigma_rel)


Average = Decay | Power
Averages = tuple[Average, ...]


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma >= 0 of the profile whose relative standard deviation is sigma_rel, in (0, 12**-0.5].

    Raises: ValueError outside that range (gamma = 0 is the plain mean of the run, the longest average).
    Source: arXiv:2312.02696, Eq. 123 and Alg. 2.
    """
    if not 0 < sigma_rel <= 12**-0.5 * (1 + 1e-12):  # with room for the rounding of `sigma_rel_of(0)`
        raise ValueError(f"sigma_rel = {sigma_rel} must be in (0, {12**-0.5:.4f}] (--ema.sigma-rel)")
    # With u = gamma + 2: u**2 (u + 1) sigma_rel**2 = u - 1, whose three roots are real; the largest is ours.
    square = float(sigma_rel) ** -2
    return max(0.0, float(np.roots([1.0, 1.0, -square, square]).real.max()) - 2)


def sigma_rel_of(gamma: float) -> float:
    """The inverse of `gamma_of`: sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), for gamma >= 0.

    Source: arXiv:2312.02696, Eq. 123.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma = {gamma} must be at least 0")
    return float((gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5))


def gain(average: Average, step: Int[Array, ""]) -> Float[Array, ""]:
    """1 - beta_t, the weight of the parameters after update t = step >= 1, float32."""
    t = step.astype(jnp.float32)
    match average:
        case Decay(decay, warmup=False):
            return jnp.float32(1 - decay)
        case Decay(decay):
            return jnp.maximum(jnp.float32(1 - decay), 9 / (10 + t))
        case Power(sigma_rel):
            # log1p and expm1: 1 - beta is about (gamma + 1) / t, which a difference would lose in rounding.
            return -jnp.expm1((gamma_of(sigma_rel) + 1) * jnp.log1p(-1 / t))


def init(averages: Averages, params: Params) -> tuple[Params, ...]:
    """One float32 copy of the parameters per average (copies, so that a donated state shares no buffer)."""
    return tuple(jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) for _ in averages)


def update(averages: Averages, ema: tuple[Params, ...], params: Params, step: Int[Array, ""]) -> tuple[Params, ...]:
    """The averages after the optimiser's update number `step` (from 1), which made `params`; float32."""
    return tuple(_update(gain(average, step), m, params) for average, m in zip(averages, ema, strict=True))


def _update(weight: Float[Array, ""], ema: Params, params: Params) -> Params:
    return jax.tree.map(lambda m, p: m + weight * (p.astype(jnp.float32) - m), ema, params)


def _inner(a: Sequence[Snapshot], b: Sequence[Snapshot]) -> Float64[np.ndarray, "a b"]:
    """Inner products of power profiles over time.

    For s <= t: integral of p_s p_t = (gamma_s + 1)(gamma_t + 1) / (gamma_s + gamma_t + 1) (s/t)**gamma_t / t,
    gathered in the exponent, where large gammas and steps cannot overflow.
    """
    step_a, step_b = (np.array([float(step) for step, _ in x]) for x in (a, b))
    gamma_a, gamma_b = (np.array([gamma_of(sigma_rel) for _, sigma_rel in x]) for x in (a, b))
    step_a, gamma_a = step_a[:, None], gamma_a[:, None]
    later = np.where(step_a < step_b, gamma_b, gamma_a)
    log = np.log1p(gamma_a) + np.log1p(gamma_b) - np.log1p(gamma_a + gamma_b)
    return np.exp(log - np.log(np.maximum(step_a, step_b)) - later * np.abs(np.log(step_a / step_b)))


def posthoc_weights(snapshots: Sequence[Snapshot], target: Snapshot) -> Float64[np.ndarray, "n"]:
    """Factors w_i such that ``sum_i w_i * snapshot_i`` is nearest the `Power` average `target`; they sum to 1.

    Nearest in the profiles: w minimises the integral over time of (sum_i w_i p_i - p_target)**2. Without the
    constraint on the sum, which the paper leaves out, the parameters' mean would be scaled by the sum's error.

    Args:
        snapshots: ``(step, sigma_rel)`` of each, all different.
        target: ``(step, sigma_rel)``; best at the step of a snapshot, with sigma_rel between tracked lengths.

    Raises: ValueError where there is no snapshot, one is given twice, or a step is outside [1, the last one].
    Source: arXiv:2312.02696, Alg. 3.
    """
    _check(snapshots, target)
    gram, cross = _inner(snapshots, snapshots), _inner(snapshots, [target])[:, 0]
    # In units of each profile's norm the system is well scaled. The last row and column hold the constraint.
    norm = np.sqrt(np.diag(gram))
    ones = norm.min() / norm
    n = len(snapshots)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = gram / np.outer(norm, norm)
    system[:n, n] = system[n, :n] = ones
    right = np.append(cross / norm * norm.min(), norm.min() ** 2)
    return np.linalg.lstsq(system, right, rcond=1e-14)[0][:n] / (norm * norm.min())


def posthoc_error(snapshots: Sequence[Snapshot], target: Snapshot, weights: Float64[np.ndarray, "n"]) -> float:
    """How far the weighted profiles are from the target's: the L2 distance over time over the target's norm."""
    _check(snapshots, target)
    square = _inner([target], [target])[0, 0]
    cross = _inner(snapshots, [target])[:, 0] @ weights
    return float(np.sqrt(max(0.0, 1 + (weights @ _inner(snapshots, snapshots) @ weights - 2 * cross) / square)))


def _check(snapshots: Sequence[Snapshot], target: Snapshot) -> None:
    steps = [step for step, _ in snapshots]
    if not snapshots:
        raise ValueError("there are no snapshots of power-function averages to combine (--ema)")
    if len(set(snapshots)) < len(snapshots) or min(steps) < 1:
        raise ValueError(f"snapshots {sorted(snapshots)} must be different, with steps from 1")
    if not 1 <= target[0] <= max(steps):
        raise ValueError(f"step = {target[0]} must be in [1, {max(steps)}], the last snapshot (--step)")


def combine(weights: Float64[np.ndarray, "n"], trees: Iterable[Params]) -> Params:
    """``sum_i weights_i * trees_i`` leaf by leaf, added up in float64 on the host, as float32.

    The factors have both signs and can be large, hence float64. `trees` may be a generator: one is held at a time.
    """
    total = None
    for weight, tree in zip(weights, trees, strict=True):
        part = jax.tree.map(lambda x, w=weight: w * np.asarray(x, np.float64), tree)
        total = part if total is None else jax.tree.map(np.add, total, part)
    if total is None:
        raise ValueError("there are no snapshots to combine (--ema)")
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), total)
