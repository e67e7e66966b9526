"""From a config to images: the denoiser with its guidance, and the compiled sampler."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from jaxdiff.autoencoders import is_autoencoder
from jaxdiff.build import apply_run, check_threshold, image_shape
from jaxdiff.codecs import open_codec
from jaxdiff.config import Config
from jaxdiff.core.codec import Codec, normalised, tiled
from jaxdiff.core.gaussian import check_solvable
from jaxdiff.core.types import Cond, Denoise, Estimate, Level, Params, Path, Transform
from jaxdiff.networks.apply import identity_attention
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.autoencoder import NO_DIFFUSION
from jaxdiff.sampling import guidance, threshold
from jaxdiff.sampling.classifier_guidance import classifier_guided, log_probs
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.guidance_rules import APG, CFGPlusPlus, Interval
from jaxdiff.sampling.momentum import Momentum, Push
from jaxdiff.sampling.rk45 import RK45
from jaxdiff.sampling.sample import denoiser, image_keys, initial, on_path, sample, trajectory
from jaxdiff.sampling.solver import Solver
from jaxdiff.texts import is_conditional, told


class Guides(NamedTuple):
    """The runs of other networks that sampling asks besides its own."""

    weaker: Config | None = None
    """Autoguidance: away from what this one believes."""
    classifier: Config | None = None
    """Classifier guidance: towards what this one takes for the label."""


class Weights(NamedTuple):
    """The parameters of all networks."""

    main: Params
    weaker: Params | None = None
    classifier: Params | None = None


class Scales(NamedTuple):
    """The strengths of guidance, traced: one compilation serves all."""

    cfg: Float[Array, ""]
    """Of classifier-free guidance or autoguidance."""
    pag: Float[Array, ""]
    classifier: Float[Array, ""]


Also = Sequence[tuple[Cond, Float[Array, ""]]]
"""Further conditions, each with its weight: see `guidance.composed`."""

Sampler = Callable[..., Shaped[Array, "*n b h w c"]]
"""``(weights, seed, indices, levels, cond, scales, negative={}, also=()) -> images``, uint8, or float32 latents for
`finish_of`; `negative` are conditions that guidance leads away from in place of absent ones. Every argument is
traced."""


THRESHOLDS: Mapping[str, Transform] = {
    "none": lambda denoise: denoise,
    "static": threshold.static(),
    "dynamic": threshold.dynamic(),
}
"""What `Sampling.threshold` names."""


def levels_of(config: Config, path: Path) -> Level:
    """The levels of the run's grid on `path`.

    Raises: ValueError where the run's prediction cannot be solved at one of them.
    """
    levels = config.grid(path, config.sampling.steps)
    check_solvable(config.objective.prediction, jax.tree.map(lambda a: a[:-1], levels))
    return levels


def scales_of(config: Config, classifier: float = 0.0) -> Scales:
    """The config's scales as arrays."""
    return Scales(*map(jnp.float32, (config.sampling.cfg_scale, config.sampling.pag_scale, classifier)))


def is_guided(config: Config) -> bool:
    """Whether sampling needs the network's answer without the condition as well."""
    wanted = config.sampling.cfg_scale != 1 or isinstance(config.sampling.guidance, CFGPlusPlus)
    return wanted and is_conditional(config)


def check_sampling(config: Config, guides: Guides = Guides()) -> None:
    """Refuses what makes no sense together. Raises: ValueError."""
    check_threshold(config)
    if any(is_autoencoder(c) for c in (config, *guides) if c is not None):
        raise ValueError(NO_DIFFUSION)
    if isinstance(config.network, Classifier):
        raise ValueError("this run trained a classifier, which makes no images: name it with --classifier")
    if guides.classifier is not None and not isinstance(guides.classifier.network, Classifier):
        raise ValueError("the run of --classifier trained no classifier: train one with the preset *_classifier")
    for other in (guides.weaker, guides.classifier):
        if other is not None and image_shape(other) != image_shape(config):
            raise ValueError(f"a guide for images {image_shape(other)} cannot guide images {image_shape(config)}")
    if config.sampling.pag_scale and not isinstance(config.network, UNet | DiT):
        raise ValueError(
            f"pag_scale = {config.sampling.pag_scale} is not allowed with {type(config.network).__name__}: "
            "only UNet and DiT can do without some of their attention (--pag-scale 0)"
        )
    plain = config.solver == DDIM() and config.sampling.threshold == "none"
    if isinstance(config.sampling.guidance, CFGPlusPlus) and not plain:
        raise ValueError("guidance cfgpp is not allowed here: it needs --solver ddim and --threshold none")
    if momentum_of(config) and isinstance(config.solver, RK45):
        raise ValueError(
            "momentum of guidance is not allowed with rk45, whose steps are its own (--guidance, --solver)"
        )


def check_alone(config: Config) -> None:
    """Refuses networks that make pictures from pictures. Raises: ValueError."""
    if config.image_channels:
        raise ValueError("this network makes pictures from pictures: jaxdiff edit DIR --image FILE")


def momentum_of(config: Config) -> float:
    """The weight of the guidance of earlier steps, 0 where they are forgotten."""
    rule = config.sampling.guidance
    return rule.momentum if isinstance(rule, APG) else 0.0


def solver_of(config: Config, denoise_with: Callable[[Push], Denoise]) -> Solver:
    """The config's solver, with a memory where its guidance has momentum."""
    beta = momentum_of(config)
    return Momentum(config.solver, beta, denoise_with) if beta else config.solver


def denoise_of(
    config: Config,
    guides: Guides,
    weights: Weights,
    cond: Cond,
    scales: Scales,
    push: Push | None = None,
    negative: Cond | None = None,
    also: Also = (),
) -> Denoise:
    """The run's network as a denoiser, guided and thresholded as the config says, to be asked at any level.

    `push` is what momentum makes of the difference that guidance goes along; `also` are further conditions with their
    weights.
    """
    prediction, sampling = config.objective.prediction, config.sampling
    apply, own = apply_run(config), told(config, cond)
    main = denoiser(apply, weights.main, prediction, own)
    chosen = sampling.guidance
    rule = chosen(scales.cfg, push) if isinstance(chosen, APG) and push else chosen(scales.cfg)
    denoise = main
    if guides.weaker is not None:
        other = guides.weaker
        weaker = denoiser(apply_run(other), weights.weaker, other.objective.prediction, told(other, cond))
        weaker = on_path(other.objective.path_of(weights.weaker))(weaker)
        denoise = guidance.guided(guidance.pair_of(main, weaker), rule)
    elif is_guided(config) or also:
        more = [(told(config, other), weight) for other, weight in also]
        pair = guidance.composed(apply, weights.main, prediction, own, more, told(config, negative or {}))
        denoise = guidance.guided(pair, rule)
    if denoise is not main and sampling.interval != Interval():
        denoise = sampling.interval.switch(denoise, main)
    if sampling.pag_scale and isinstance(config.network, UNet | DiT):
        perturbed = denoiser(apply_run(config, identity_attention(config.network)), weights.main, prediction, own)
        denoise = away_from(perturbed, main, denoise, scales.pag)
    if guides.classifier is not None:
        other = guides.classifier
        path = other.objective.path_of(weights.classifier)
        probs = log_probs(apply_run(other), weights.classifier, other.objective.prediction, path)
        denoise = classifier_guided(probs, cond["label"], scales.classifier)(denoise)
    return on_path(config.objective.path_of(weights.main))(THRESHOLDS[sampling.threshold](denoise))


def away_from(perturbed: Denoise, main: Denoise, denoise: Denoise, scale: Float[Array, ""]) -> Denoise:
    """denoise + scale (main - perturbed). Source: arXiv:2403.17377, Eq. 16."""
    if denoise is main:
        return guidance.guided(guidance.pair_of(main, perturbed), guidance.pag(scale))

    def pushed(x: Float[Array, "b h w c"], cur: Level, nxt: Level) -> Estimate:
        guided, plain, less = (ask(x, cur, nxt) for ask in (denoise, main, perturbed))
        return Estimate(guided.x0 + scale * (plain.x0 - less.x0), guided.eps + scale * (plain.eps - less.eps), guided.v)

    return pushed


def to_uint8(x: Float[Array, "*n b h w c"]) -> UInt8[Array, "*n b h w c"]:
    """[-1, 1] -> 0 ... 255, rounded, clipped."""
    return jnp.round(jnp.clip(127.5 * (x + 1), 0, 255)).astype(jnp.uint8)


def sampler(config: Config, guides: Guides = Guides(), steps_too: bool = False) -> Sampler:
    """The jitted sampler: one compilation serves every seed, label, grid of one length, and scale of guidance.

    Solver, thresholding, the rule of guidance and whether there is any are the config's. `steps_too` returns the state
    after every step, [num_steps, b, h, w, c].
    """
    check_sampling(config, guides)

    @jax.jit
    def run(
        weights: Weights,
        seed: Int[Array, ""],
        indices: Int[Array, "b"],
        levels: Level,
        cond: Cond,
        scales: Scales,
        negative: Cond | None = None,
        also: Also = (),
    ) -> Shaped[Array, "*n b h w c"]:
        keys = image_keys(seed, indices)
        told_what = {"negative": negative, "also": also}
        denoise_with = functools.partial(denoise_of, config, guides, weights, cond, scales, **told_what)
        x = initial(keys, image_shape(config), jax.tree.map(lambda a: a[0], levels))
        scan = trajectory if steps_too else sample
        x = scan(keys, x, levels, denoise_with(), solver_of(config, denoise_with))
        return x if config.latents is not None else to_uint8(x)

    return run


def codec_of(config: Config, tile: int = 0) -> Codec | None:
    """Between pictures in [-1, 1] and what the run's network sees of them; None for a run on pixels.

    `tile`: side of the tiles that latents are decoded in, which share a quarter; 0: whole.

    Raises: ValueError or FileNotFoundError where the codec is not named or is another one.
    """
    latents = config.latents
    if latents is None:
        return None
    name, _, files = config.codec.partition("=")
    if name != latents.codec or not files:
        raise ValueError(
            f"codec {config.codec!r} is not allowed: this run makes latents of {latents.codec}, "
            f"name the decoder's weights (--codec {latents.codec}=FILE)"
        )
    opened = open_codec(config.codec)
    if name == "run" and opened.sha256 != latents.sha256:
        raise ValueError(f"codec {config.codec!r} is not allowed: other weights made the latents (--codec)")
    codec = tiled(opened.codec, tile, tile // 4, opened.factor) if tile else opened.codec
    return normalised(codec, latents.mean, latents.std)


def finish_of(
    config: Config, tile: int = 0
) -> Callable[[Shaped[np.ndarray, "*n b h w c"]], UInt8[np.ndarray, "*n b H W C"]]:
    """From what the sampler returns to images: decodes latents, and leaves pixels alone; `codec_of` says the rest."""
    codec = codec_of(config, tile)
    if codec is None:
        return lambda images: images

    def finish(z: Shaped[np.ndarray, "*n b h w c"]) -> UInt8[np.ndarray, "*n b H W C"]:
        batches = z.reshape(-1, *z.shape[-4:])  # one batch at a time: pictures are far larger than their latents
        images = np.stack([np.asarray(to_uint8(codec.decode(jnp.asarray(batch)))) for batch in batches])
        return images.reshape(*z.shape[:-3], *images.shape[-3:])

    return finish


def labels_for(
    config: Config, indices: Int[np.ndarray, "b"], label: int | None = None, guides: Guides = Guides()
) -> Cond:
    """The condition of sampled images: `label` for all, or the classes in turn; {} without classes."""
    networks = [c.network for c in (config, guides.classifier) if c is not None]
    classes = max(network.num_classes for network in networks)
    if classes == 0:
        return {}
    return {"label": jnp.asarray(indices % classes if label is None else np.full_like(indices, label), jnp.int32)}


def noisiest(config: Config, path: Path) -> float:
    """The largest sigma/alpha at which the run's network can be asked: infinity where alpha = 0 is no trouble."""
    try:
        check_solvable(config.objective.prediction, Level(jnp.zeros(1), jnp.ones(1)))
    except ValueError:
        level = path(jnp.float32(path.t_max))
        return min(float(level.sigma / level.alpha), 1e3)
    return math.inf
