"""Guidance: two beliefs about one x, and a rule that makes one of them.

    guided(pair(apply, params, prediction, cond), cfg(scale))        classifier-free
    guided(composed(apply, ..., cond, also), cfg(scale))             several conditions at once
    guided(pair_of(main, weaker), cfg(scale))                        autoguidance
    guided(pair_of(main, perturbed), pag(scale))                     perturbed attention

A pair is (x, cur, nxt) -> (main, ref); a rule is (main, ref, x, cur) -> Estimate. A rule that is not
a weighted mean of the two (weights summing to 1, which keeps x = alpha x0 + sigma eps) ends with
`gaussian.from_x0` or `gaussian.estimate`. The rules other than `cfg` are in `guidance_rules.py`.
"""

from collections.abc import Callable, Sequence

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


def beliefs_of(
    apply: ApplyFn, params: Params, prediction: Prediction, conds: Sequence[Cond]
) -> Callable[[Image, Level, Level], tuple[Estimate, ...]]:
    """``(x, cur, nxt) -> `` what is believed under each of k conditions, in one network call on a batch of k b."""
    k = len(conds)
    # Each image's rows are neighbours, so that a batch sharded over devices stays where it is.
    rows = {
        name: jnp.stack([cond[name] for cond in conds], axis=1).reshape(-1, *leaf.shape[1:])
        for name, leaf in conds[0].items()
    }
    denoise = denoiser(apply, params, prediction, rows)

    def level_of_all(level: Level) -> Level:
        return jax.tree.map(lambda a: jnp.repeat(a, k) if a.ndim else a, level)

    def beliefs(x: Image, cur: Level, nxt: Level) -> tuple[Estimate, ...]:
        together = denoise(jnp.repeat(x, k, axis=0), *(level_of_all(level) for level in (cur, nxt)))
        apart = jax.tree.map(lambda a: a.reshape(-1, k, *a.shape[1:]), together)
        return tuple(jax.tree.map(lambda a, i=i: a[:, i], apart) for i in range(k))

    return beliefs


def pair(apply: ApplyFn, params: Params, prediction: Prediction, cond: Cond, negative: Cond | None = None) -> Pair:
    """main with `cond` and ref with the absent condition, in one network call on a batch of 2b.

    `negative`: leaves of the condition that ref has in place of absent ones (a negative prompt).
    """
    return composed(apply, params, prediction, cond, (), negative)


def composed(
    apply: ApplyFn,
    params: Params,
    prediction: Prediction,
    cond: Cond,
    also: Sequence[tuple[Cond, Float[Array, ""]]],
    negative: Cond | None = None,
) -> Pair:
    """`pair` whose main belief is told of further conditions c_i, each with a weight w_i:

        main = m(cond) + sum_i w_i (m(c_i) - ref)

    With w_i = 1 the picture shall be of all of them (AND), with w_i = -1 of none of them (NOT): the densities are
    multiplied and divided by each other. One network call on a batch of (2 + the number of them) b.
    Source: arXiv:2206.01714, Eq. 11-13.
    """
    ref = {**absent(cond), **(negative or {})}
    ask = beliefs_of(apply, params, prediction, (cond, *(other for other, _ in also), ref))

    def beliefs(x: Image, cur: Level, nxt: Level) -> tuple[Estimate, Estimate]:
        main, *others, ref = ask(x, cur, nxt)
        x0, eps = main.x0, main.eps
        for (_, weight), other in zip(also, others, strict=True):
            x0, eps = x0 + weight * (other.x0 - ref.x0), eps + weight * (other.eps - ref.eps)
        return Estimate(x0, eps, main.v), ref

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
