"""Images noised in part and taken back: what a network makes of an image that it did not draw.

    noise     x = alpha x0 + sigma eps at the first level, then sampling from there
    encode    the ODE from x0 up to the first level and down again, which invents nothing where the network knows x0

A network that has seen normal images alone gives back a normal one: where the two differ, the image is not as the
training set is.

Source: Wyatt et al., "AnoDDPM", CVPR Workshops 2022 (noise); arXiv:2203.04306, Alg. 1 (encode; without its classifier,
for which guidance stands: a label, and --cfg-scale, in the way down).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxdiff.config import Config
from jaxdiff.core.cond import absent
from jaxdiff.core.gaussian import diffuse
from jaxdiff.core.levels import check_high, from_ratios, from_times
from jaxdiff.core.types import Cond, Denoise, Level, Path
from jaxdiff.sampler import Guides, Scales, Weights, check_sampling, denoise_of, solver_of
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.guidance_rules import CFG
from jaxdiff.sampling.sample import image_keys, initial, sample
from jaxdiff.sampling.solver import Solver

Image = Float[Array, "b h w c"]
Keys = Key[Array, "b"]

Reconstructor = Callable[..., Image]
"""``(weights, seed, indices, x0, levels, cond, scales, negative=None) -> x``: images in [-1, 1], taken to levels[0] and
back. Every argument is traced."""


def levels_from(levels: Level, path: Path, ratio: float) -> Level:
    """A falling grid laid anew from sigma/alpha = `ratio` on: its times shrunk, as many steps as before.

    Raises: ValueError where the path does not reach so far, or the grid rises.
    """
    if not 0 < ratio < np.inf:
        raise ValueError(f"noise = {ratio} is not allowed: above 0 (--noise)")
    check_high(path, "noise", ratio, "--noise")
    alpha, sigma = (np.asarray(v, np.float64) for v in levels)
    if sigma[-1] != 0 or np.any(np.diff(sigma) >= 0):
        raise ValueError("this grid does not fall all the way to clean images: choose another (--grid)")
    ratios = np.divide(sigma, alpha, out=np.full_like(alpha, np.inf), where=alpha > 0)[:-1]
    times = np.asarray(path.invert(jnp.asarray(ratios, jnp.float32)), np.float64)
    first = float(path.invert(jnp.float32(ratio)))
    laid = from_times(path, jnp.asarray(times * (first / times[0]), jnp.float32))
    # The first level is the one that was asked for, to the bit, and not what its time rounds to.
    start = from_ratios(path, jnp.asarray([ratio], jnp.float32))
    return jax.tree.map(lambda a, b: a.at[0].set(b[0]), laid, start)


def from_noise(keys: Keys, x0: Image, levels: Level, denoise: Denoise, solver: Solver) -> Image:
    """x0 noised to the first level and sampled from there: alpha x0 + sigma eps, eps the keys' initial noise."""
    first = jax.tree.map(lambda a: a[0], levels)
    h, w, c = x0.shape[1:]
    x = diffuse(first, x0, jnp.zeros_like(x0)) + initial(keys, (h, w, c), first)
    return sample(keys, x, levels, denoise, solver)


def from_encoding(keys: Keys, x0: Image, levels: Level, up: Denoise, down: Denoise) -> Image:
    """x0 taken along the ODE of `up` to the first level, and along that of `down` to the last, by DDIM.

    It starts at the last level above the clean one, where networks are not defined, as x0 without its little noise.
    """
    rising = jax.tree.map(lambda a: a[:-1][::-1], levels)
    start = diffuse(jax.tree.map(lambda a: a[0], rising), x0, jnp.zeros_like(x0))
    return sample(keys, sample(keys, start, rising, up, DDIM()), levels, down, DDIM())


def reconstructor(config: Config, guides: Guides = Guides(), encode: bool = False) -> Reconstructor:
    """The jitted way up and down again; `encode`: along the ODE, without noise and without guidance on the way up.

    Image i of a seed has the noise of sample i of that seed. Raises: ValueError where the config cannot be sampled.
    """
    check_sampling(config, guides)
    if config.latents is not None:
        raise ValueError("a run on latents cannot reconstruct pictures: name one that was trained on pixels (DIR)")

    @jax.jit
    def run(
        weights: Weights,
        seed: Int[Array, ""],
        indices: Int[Array, "b"],
        x0: Image,
        levels: Level,
        cond: Cond,
        scales: Scales,
        negative: Cond | None = None,
    ) -> Image:
        keys = image_keys(seed, indices)
        denoise_with = functools.partial(denoise_of, config, guides, weights, cond, scales, negative=negative)
        if not encode:
            return from_noise(keys, x0, levels, denoise_with(), solver_of(config, denoise_with))
        unguided = denoise_of(plain(config), Guides(), weights, absent(cond), scales)
        return from_encoding(keys, x0, levels, unguided, denoise_with())

    return run


def plain(config: Config) -> Config:
    """The config without guidance of any kind."""
    sampling = dataclasses.replace(config.sampling, cfg_scale=1.0, pag_scale=0.0, guidance=CFG())
    return dataclasses.replace(config, sampling=sampling)
