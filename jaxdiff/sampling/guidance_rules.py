"""Rules of guidance that differ from plain classifier-free guidance: values that make a `Rule` of a scale.

    guided(pair, APG(eta=0.0, radius=2.5)(scale))
    guided(pair, Interval(0.3, 3.0)(CFG()(scale)))

The scale s comes apart, so that it may be traced: one compilation serves all. m is the main belief, r the
reference; |.| and <., .> run over the pixels of one image.

    CFG            r + s (m - r)
    Rescale        v' = r + s (m - r);  v = (phi std(m) / std(v') + 1 - phi) v'               on v
    APG            m + (s - 1) (d - (1 - eta) <d, m> m / |m|^2),  d = a min(1, R / |a|)      on x0
                   with a = m - r, plus momentum times the a of the step before
    CFGPlusPlus    x0 = r + s (m - r),  eps = r
    CFGZeroStar    c r + s (m - c r),  c = <m, r> / |r|^2                                      on eps - x0

A rule on one quantity solves for x0 and eps with x = alpha x0 + sigma eps again; only CFGPlusPlus leaves that plane.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.core import gaussian
from jaxdiff.core.predictions import Flow, V
from jaxdiff.core.types import Denoise, Estimate, Level, Prediction
from jaxdiff.sampling.guidance import Rule, Scale, cfg
from jaxdiff.sampling.momentum import Push

Image = Float[Array, "b h w c"]
PerImage = Float[Array, "b 1 1 1"]

PIXELS = (1, 2, 3)
TINY = 1e-12
"""Keeps 0 / 0 from arising where there is nothing to scale."""


@dataclasses.dataclass(frozen=True)
class CFG:
    """Classifier-free guidance: `cfg`. Source: arXiv:2207.12598, Eq. 6."""

    def __call__(self, scale: Scale) -> Rule:
        return cfg(scale)


@dataclasses.dataclass(frozen=True)
class Rescale:
    """CFG whose result has, for phi = 1, the standard deviation of the main belief: less burnt colours.

    Taken of v = alpha eps - sigma x0, which the paper's network returns: at pure noise that is -x0, where the
    excess is, and near the image it is eps, which needs no correction. Source: arXiv:2305.08891, Eq. 14-16.
    """

    phi: float = 0.7
    """Share of the rescaled result, in [0, 1]; 0 is CFG. The paper's choice is 0.7."""

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi = {self.phi} is not allowed: 0 (plain CFG) to 1 (--guidance.phi)")

    def __call__(self, scale: Scale) -> Rule:
        def rule(main: Estimate, ref: Estimate, x: Image, cur: Level) -> Estimate:
            v_main, v_ref = (_as(V(), cur, belief) for belief in (main, ref))
            v = v_ref + _each(scale, x) * (v_main - v_ref)
            var_main, var = (jnp.var(a, PIXELS, keepdims=True) + TINY for a in (v_main, v))
            v = (self.phi * jnp.sqrt(var_main / var) + (1 - self.phi)) * v
            return gaussian.estimate(V(), cur, x, v)._replace(v=main.v)

        return rule


@dataclasses.dataclass(frozen=True)
class APG:
    """Adaptive projected guidance: the part of the push along the believed image, which saturates it, is held back.

    `momentum` is a memory of the steps before, which a rule has not: it is added by the solver of `momentum.py`, and a
    rule made without one is that of the first step. Source: arXiv:2410.02416, Alg. 1.
    """

    eta: float = 0.0
    """Share of the part of m - r parallel to m that is kept; 1 keeps it whole, which is CFG."""
    radius: float = math.inf
    """Greatest norm of m - r in an image, in x0's units (2.5 for EDM2's latents, 15 for SDXL's in the paper)."""
    momentum: float = 0.0
    """Weight of the running average that is added to m - r, in (-1, 1): -0.75 to -0.5 in the paper; 0: none."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta):
            raise ValueError(f"eta = {self.eta} is not allowed: a finite number, 0 to 1 in the paper (--guidance.eta)")
        if not self.radius > 0:
            raise ValueError(f"radius = {self.radius} is not allowed: above 0, inf for none (--guidance.radius)")
        if not -1 < self.momentum < 1:
            raise ValueError(
                f"momentum = {self.momentum} is not allowed: between -1 and 1, 0 for none (--guidance.momentum)"
            )

    def __call__(self, scale: Scale, remembered: Push = lambda difference: difference) -> Rule:
        """The rule; `remembered` gives m - r its momentum."""

        def rule(main: Estimate, ref: Estimate, x: Image, cur: Level) -> Estimate:
            push = remembered(main.x0 - ref.x0)
            push *= jnp.minimum(1.0, self.radius / jnp.sqrt(jnp.maximum(_dot(push, push), TINY)))
            parallel = _dot(push, main.x0) / jnp.maximum(_dot(main.x0, main.x0), TINY) * main.x0
            x0 = main.x0 + (_each(scale, x) - 1) * (push - (1 - self.eta) * parallel)
            return gaussian.from_x0(cur, x, x0, main.v)

        return rule


@dataclasses.dataclass(frozen=True)
class CFGPlusPlus:
    """CFG++: the image is guided, the noise that is put back is the reference's.

    The scale is the paper's lambda, in [0, 1], and 1 is not "no guidance": a DDIM step from r = sigma/alpha to r' is
    CFG's at the scale lambda / (1 - r'/r). The result is off the plane x = alpha x0 + sigma eps on purpose, so it is
    for DDIM with eta = 0, which reads both; a transform that makes eps of x and x0 anew (thresholding) or a solver
    that does, undoes it. Source: arXiv:2406.08070, Alg. 2.
    """

    def __call__(self, scale: Scale) -> Rule:
        def rule(main: Estimate, ref: Estimate, x: Image, cur: Level) -> Estimate:
            return Estimate(ref.x0 + _each(scale, x) * (main.x0 - ref.x0), ref.eps, main.v)

        return rule


@dataclasses.dataclass(frozen=True)
class CFGZeroStar:
    """CFG-Zero*: the reference's velocity is scaled to fit the main one best, and the noisiest steps stand still.

    Taken of rectified flow's velocity eps - x0 on every path. A zero velocity is x0 = eps = x / (alpha + sigma), and
    moves x not at all where alpha + sigma = 1 (thresholding such an x0 does move it). A rule sees levels and no step
    numbers, so the paper's first steps are those from the noisiest levels. Source: arXiv:2503.18886, Sec. 4.
    """

    zero_from: float | None = math.inf
    """The least sigma/alpha at which the velocity is 0. inf: at alpha = 0 alone, which is the paper's one step where
    the grid starts there; None: nowhere."""

    def __post_init__(self) -> None:
        if self.zero_from is not None and not self.zero_from > 0:
            raise ValueError(f"zero_from = {self.zero_from} is not allowed: above 0, or None (--guidance.zero-from)")

    def __call__(self, scale: Scale) -> Rule:
        def rule(main: Estimate, ref: Estimate, x: Image, cur: Level) -> Estimate:
            u_main, u_ref = (_as(Flow(), cur, belief) for belief in (main, ref))
            u_ref *= _dot(u_main, u_ref) / jnp.maximum(_dot(u_ref, u_ref), TINY)
            u = u_ref + _each(scale, x) * (u_main - u_ref)
            if self.zero_from is not None:
                u = jnp.where(gaussian.expand(cur.sigma / cur.alpha, x) >= self.zero_from, 0.0, u)
            return gaussian.estimate(Flow(), cur, x, u)._replace(v=main.v)

        return rule


AnyRule = CFG | Rescale | APG | CFGPlusPlus | CFGZeroStar
"""The rules that a config may hold: ``scale -> Rule``."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """Guidance at low < sigma/alpha <= high alone: any rule, or any guided denoiser; elsewhere the main belief.

    EDM2-S on ImageNet-512 has 0.28 and 2.90. Source: arXiv:2404.07724, Sec. 3.
    """

    low: float = 0.0
    """sigma/alpha up to which there is no guidance."""
    high: float = math.inf
    """sigma/alpha beyond which there is no guidance."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(
                f"interval ({self.low}, {self.high}] is not allowed: 0 <= low <= high (--interval.low, --interval.high)"
            )

    def holds(self, level: Level) -> Bool[Array, "*b"]:
        """Whether there is guidance at this level."""
        ratio = level.sigma / level.alpha
        return (self.low < ratio) & (ratio <= self.high)

    def __call__(self, rule: Rule) -> Rule:
        """The rule inside; outside main alone (the reference is asked all the same)."""

        def limited(main: Estimate, ref: Estimate, x: Image, cur: Level) -> Estimate:
            here = self.holds(jax.tree.map(lambda a: gaussian.expand(a, x), cur))
            return jax.tree.map(lambda a, b: jnp.where(here, a, b), rule(main, ref, x, cur), main)

        return limited

    def switch(self, inside: Denoise, outside: Denoise) -> Denoise:
        """`inside` in the interval, `outside` (the unguided denoiser) beyond it, of which only one is computed.

        For the scalar levels of solvers. Both must agree on whether there is a v.
        """

        def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
            return jax.lax.cond(self.holds(cur), inside, outside, x, cur, nxt)

        return denoise


def _as(prediction: Prediction, level: Level, belief: Estimate) -> Image:
    return gaussian.target(prediction, level, belief.x0, belief.eps)


def _each(scale: Scale, x: Image) -> Array:
    return gaussian.expand(jnp.asarray(scale), x)


def _dot(a: Image, b: Image) -> PerImage:
    return jnp.sum(a * b, axis=PIXELS, keepdims=True)
