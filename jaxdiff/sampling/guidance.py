"""Guidance: two beliefs about one x, and a rule that makes one of them.

    guided(pair(apply, params, prediction, cond), cfg(scale))        classifier-free
    guided(pair_of(main, weaker), cfg(scale))                        autoguidance
    guided(pair_of(main, perturbed), pag(scale))                     perturbed attention

A pair is (x, cur, nxt) -> (main, ref); a rule is (main, ref, x, cur) -> Estimate. A rule that is not
a weighted mean of the two (weights summing to 1, which keeps x = alpha x0 + sigma eps) ends with
`gaussian.from_x0` or `gaussian.estimate`. The rules other than `cfg` are in `guidance_rules.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core import gaussian
from jaxdiff.core.cond import absent
from jaxdiff.core.types import ApplyFn, Cond, Denoise, Estimate, Level, Params, Prediction
from jaxdiff.sampling.sample import denoiser

Image = Float[Array, "b h w c"]

Pair = Callable[[Image, Level, Level], tuple[Estimate, Estimate]]
"""``(x, cur, nxt) -> (main, ref)``."""

Rule = Callable[[Estimate, Estimate, Image, Level], Estimate]
"""``(main, ref, x, cur) -> Estimate``."""

Scale = float | Float[Array, ""] | Float[Array, "b"]
"""The strength of guidance: one for all, or one per image; may be traced. 1 is none."""


def pair(apply: ApplyFn, params: Params, prediction: Prediction, cond: Cond, negative: Cond | None = None) -> Pair:
    """main with `cond` and ref with the absent condition, in one network call on a batch of 2b.

    `negative`: leaves of the condition that ref has in place of absent ones (a negative prompt).
    """
    other = {**absent(cond), **(negative or {})}
    # Each image's two rows are neighbours, so that a batch sharded over devices stays where it is.
    both = {name: jnp.stack([leaf, other[name]], axis=1).reshape(-1, *leaf.shape[1:]) for name, leaf in cond.items()}
    denoise = denoiser(apply, params, prediction, both)

    def level_of_both(level: Level) -> Level:
        return jax.tree.map(lambda a: jnp.repeat(a, 2) if a.ndim else a, level)

    def beliefs(x: Image, cur: Level, nxt: Level) -> tuple[Estimate, Estimate]:
        together = denoise(jnp.repeat(x, 2, axis=0), *(level_of_both(level) for level in (cur, nxt)))
        apart = jax.tree.map(lambda a: a.reshape(-1, 2, *a.shape[1:]), together)
        return jax.tree.map(lambda a: a[:, 0], apart), jax.tree.map(lambda a: a[:, 1], apart)

    return beliefs


def pair_of(main: Denoise, ref: Denoise) -> Pair:
    """Two denoisers as a pair; where both are conditioned, guidance leaves the condition alone.

    Autoguidance's `ref` is a smaller or less trained network of the same task (arXiv:2406.02507, Sec. 3);
    perturbed-attention guidance's is `main` with identity attention.
    """

    def beliefs(x: Image, cur: Level, nxt: Level) -> tuple[Estimate, Estimate]:
        return main(x, cur, nxt), ref(x, cur, nxt)

    return beliefs


def guided(pair: Pair, rule: Rule) -> Denoise:
    """The `Denoise` that asks the pair and lets the rule decide."""

    def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
        main, ref = pair(x, cur, nxt)
        return rule(main, ref, x, cur)

    return denoise


def cfg(scale: Scale) -> Rule:
    """Classifier-free guidance, ref + scale * (main - ref), of x0 and eps alike.

    `scale`: 1 is no guidance, 0 ignores the condition. It is the paper's 1 + w. Source: arXiv:2207.12598, Eq. 6.
    """

    def rule(main: Estimate, ref: Estimate, x: Image, cur: Level) -> Estimate:
        s = gaussian.expand(jnp.asarray(scale), x)
        return Estimate(ref.x0 + s * (main.x0 - ref.x0), ref.eps + s * (main.eps - ref.eps), main.v)

    return rule


def pag(scale: Scale) -> Rule:
    """main + scale * (main - ref), for a `ref` with perturbed attention: here 0 is no guidance, as in the paper.

    Source: arXiv:2403.17377, Sec. 4.
    """
    return cfg(1 + scale)
