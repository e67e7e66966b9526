"""From a config and a method of editing to one compiled function."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxdiff.config import Config
from jaxdiff.core.cond import absent
from jaxdiff.core.types import Cond, Denoise, Level
from jaxdiff.sampler import Also, Guides, Scales, Weights, check_sampling, denoise_of, momentum_of, solver_of, to_uint8
from jaxdiff.sampling.editing.sdedit import Generate
from jaxdiff.sampling.editing.task import Mask, Method, Task
from jaxdiff.sampling.editing.windows import Windows
from jaxdiff.sampling.guidance_rules import CFG
from jaxdiff.sampling.momentum import Push
from jaxdiff.sampling.sample import image_keys

Image = Float[Array, "b h w c"]


class Inputs(NamedTuple):
    """The pictures of a batch, in [-1, 1] or latents; traced, as all else that an edit is given."""

    image: Image
    mask: Mask | None = None
    other: Image | None = None
    """Second pictures, where two are interpolated."""
    place: Float[Array, "b"] | None = None
    """How far from the first to the second."""


class Words(NamedTuple):
    """What the network is told."""

    target: Cond
    """Of the result."""
    source: Cond
    """Of the picture."""
    negative: Cond | None = None
    """What guidance leads away from in place of nothing."""
    also: Also = ()
    """What else the result shall be."""
    words: Int[Array, "b n"] | None = None
    """Of each token of the target the source's whose attention maps it may take, -1: none."""
    image_scale: Float[Array, ""] | None = None
    """Strength of guidance along the picture that the network is shown; None: the picture is not guided along."""


Editor = Callable[..., Shaped[Array, "b h w c"]]
"""``(weights, seed, indices, levels, words, scales, inputs) -> images``, uint8, or float32 latents for `finish_of`;
`levels` are those that the method has laid."""


def unguided(config: Config) -> Config:
    """The same without guidance along what the network is told."""
    sampling = dataclasses.replace(config.sampling, cfg_scale=1.0, guidance=CFG())
    return dataclasses.replace(config, sampling=sampling)


def check_edit(config: Config, method: Method, windows: Windows | None = None) -> None:
    """Refuses what makes no sense together. Raises: ValueError."""
    if momentum_of(config) and (windows is not None or method.solver is not None):
        raise ValueError("momentum of guidance is not allowed with this method or with windows (--guidance)")
    if config.image_channels and not (isinstance(method, Generate) and windows is None):
        raise ValueError("this network makes pictures from the one that it is shown: --method generate, in no windows")
    method.nfe(config.solver, Level(jnp.array([0.5, 1.0]), jnp.array([0.5, 0.0])))  # refuses solvers that it cannot use


def with_method(config: Config, method: Method) -> Config:
    """The config with the solver that the method works with."""
    return config if method.solver is None else dataclasses.replace(config, solver=method.solver)


def shown(words: Words, image: Image, cfg_scale: Float[Array, ""]) -> Words:
    """The words of a network that is also shown the picture, with both strengths of guidance:

        none + s_I (image - none) + s (all - image)             none, image: told nothing, shown the picture alone

    With s_I = 1 this is guidance away from `image`, which needs no belief without the picture. Source:
    arXiv:2211.09800, Eq. 3.
    """
    beside, negative = {"image": image}, words.negative or {}
    target, source = {**words.target, **beside}, {**words.source, **beside}
    if words.image_scale is None:
        return words._replace(target=target, source=source, negative={**negative, **beside})
    alone = {**absent(words.target), **negative, **beside}
    also = (*words.also, (alone, (words.image_scale - cfg_scale) / cfg_scale))
    return words._replace(target=target, source=source, negative=words.negative, also=also)


def side_by_side(words: Words, until: Float[Array, "2"]) -> tuple[Cond, Cond | None]:
    """(the source's conditions and then the target's, which takes the source's maps; what guidance leads away from).

    `until`: the sigma/alpha down to which words, and pixels, do.
    """
    assert words.words is not None
    both = {name: jnp.concatenate([leaf, words.target[name]]) for name, leaf in words.source.items()}
    count = words.words.shape[0]
    own, taken = jnp.full(count, -1, jnp.int32), jnp.zeros(count, jnp.int32)
    both["text_words"] = jnp.concatenate([jnp.full_like(words.words, -1), words.words])
    both["text_pixels"] = jnp.concatenate([own, taken])
    both["text_until"] = jnp.broadcast_to(until, (2 * count, 2))
    negative = words.negative
    return both, negative and {name: jnp.concatenate([leaf, leaf]) for name, leaf in negative.items()}


def editor(config: Config, guides: Guides, method: Method, windows: Windows | None = None) -> Editor:
    """The jitted editor: one compilation serves every seed, picture, mask, prompt, strength and scale of guidance."""
    config = with_method(config, method)
    check_sampling(config, guides)
    check_edit(config, method, windows)

    plain = unguided(config)
    plain = dataclasses.replace(plain, sampling=dataclasses.replace(plain.sampling, pag_scale=0.0))

    def wide(denoise: Denoise) -> Denoise:
        return denoise if windows is None else windows(denoise)

    @jax.jit
    def run(
        weights: Weights,
        seed: Int[Array, ""],
        indices: Int[Array, "b"],
        levels: Level,
        words: Words,
        scales: Scales,
        inputs: Inputs,
    ) -> Shaped[Array, "b h w c"]:
        if config.image_channels:
            words = shown(words, inputs.image, scales.cfg)

        def denoise_with(push: Push | None = None) -> Denoise:
            return wide(denoise_of(config, guides, weights, words.target, scales, push, words.negative, words.also))

        def paired(until: Float[Array, "2"]) -> Denoise:
            both, negative = side_by_side(words, until)
            return wide(denoise_of(config, guides, weights, both, scales, None, negative))

        source = wide(denoise_of(plain, Guides(), Weights(weights.main), words.source, scales))
        solver = solver_of(config, denoise_with)
        keys = image_keys(seed, indices)
        asked = (levels, denoise_with(), source, solver)
        together = paired if words.words is not None else None
        x = method(Task(keys, inputs.image, *asked, inputs.mask, inputs.other, inputs.place, together))
        return x if config.latents is not None else to_uint8(x)

    return run
