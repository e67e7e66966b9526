"""From a trained run, an operator and a method to pictures that agree with a measurement."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from jaxdiff.build import image_shape
from jaxdiff.config import Config
from jaxdiff.core.cond import absent
from jaxdiff.core.types import Cond, Level
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.objectives.vdm import VDM
from jaxdiff.sampler import Guides, Scales, Weights, codec_of, denoise_of, momentum_of
from jaxdiff.sampling.inverse.operator import Operator, Shape, through
from jaxdiff.sampling.inverse.particles import Particles, Population
from jaxdiff.sampling.inverse.problem import Method, Problem
from jaxdiff.sampling.sample import image_keys, initial, sample_and_state
from jaxdiff.settings import Settings
from jaxdiff.texts import is_conditional
from jaxdiff.trained import Trained, open_trained
from jaxdiff.training.sharding import shard_batch, share, to_host

Images = Float[np.ndarray, "n h w c"]


class Facts(NamedTuple):
    """What a population of particles says besides its pictures; one number a population."""

    log_evidence: Float[Array | np.ndarray, "groups"]
    effective: Float[Array | np.ndarray, "groups"]


Restorer = Callable[..., tuple[Float[Array, "b h w c"], Facts | None]]
"""``(weights, seed, indices, levels, cond, scales, negative, y, noise) -> (images, facts)``: images in [-1, 1], or
latents; y has a leading axis b. Every argument is traced."""


@dataclasses.dataclass(frozen=True, eq=False)
class Restoration:
    """A run that restores what one operator has measured."""

    trained: Trained
    operator: Operator
    """On pictures."""
    method: Method
    run: Restorer
    decode: Callable[[Float[Array, "b h w c"]], Float[Array, "b H W C"]]
    """From what the network sees to pictures."""
    told: bool
    """Whether the network is told what the picture shows."""

    @property
    def nfe(self) -> int | None:
        """Network calls for an image; some methods differentiate each of them."""
        solver = self.method(Problem(self.operator, jnp.zeros((1,)), jnp.zeros(())), self.trained.config.solver)
        return solver.nfe(self.trained.levels)

    @property
    def batch_size(self) -> int:
        """Images made at once: the setting, as a multiple of the devices and of the particles."""
        parts = share(self.trained.mesh)
        if isinstance(self.method, Particles):
            parts = int(np.lcm(parts, self.method.particles))
        return -(-self.trained.settings.batch_size // parts) * parts

    def draw(
        self, indices: Int[np.ndarray, "b"], y: Float[np.ndarray, "b ..."], noise: float
    ) -> tuple[Images, Facts | None]:
        """Images of these numbers, one for each of the measurements, as intensities in [0, 1] that may leave it.

        `b` is `batch_size`.
        """
        trained = self.trained
        cond, negative = (shard_batch(trained.mesh, leaves) for leaves in trained.conditions(indices))
        given = shard_batch(trained.mesh, {"index": indices, "y": np.asarray(y, np.float32)})
        if not self.told:
            cond = dict(absent(cond))
        seed, deviation = jnp.int32(trained.settings.seed), jnp.float32(noise)
        with jax.set_mesh(trained.mesh):
            found, facts = self.run(
                trained.weights,
                seed,
                given["index"],
                trained.levels,
                cond,
                trained.scales,
                negative,
                given["y"],
                deviation,
            )
            images = to_host(self.decode(found))
        return (images.astype(np.float64) + 1) / 2, None if facts is None else jax.tree.map(to_host, facts)

    def draws(self, num: int, y: Float[np.ndarray, "..."], noise: float) -> tuple[Images, list[Facts]]:
        """Images 0 to num - 1 of one measurement."""
        size, images, facts = self.batch_size, [], []
        many = np.broadcast_to(y, (size, *y.shape))
        for first in range(0, num, size):
            some, said = self.draw(np.arange(first, first + size, dtype=np.int32), many, noise)
            images.append(some)
            facts += [] if said is None else [said]
        return np.concatenate(images)[:num], facts


def open_run(workdir: epath.PathLike, settings: Settings) -> Trained:
    """The run under these settings, without guidance unless they say what the picture shows.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    if settings.cfg_scale is None and not is_told(settings):
        settings = dataclasses.replace(settings, cfg_scale=1.0)
    trained = open_trained(workdir, settings)
    check_run(trained.config, settings)
    return trained


def check_run(config: Config, settings: Settings) -> None:
    """Refuses guidance that remembers, and a network that must be told what a picture shows and is not.

    Raises: ValueError.
    """
    if momentum_of(config):
        raise ValueError("momentum of guidance is not allowed here (--guidance)")
    objective = config.objective
    drops = isinstance(objective, Denoising | Hybrid | VDM) and objective.drop > 0
    if is_conditional(config) and not (drops or is_told(settings)):
        raise ValueError(
            "this network was trained with conditions alone (drop = 0): say what the picture shows (--label, --prompt)"
        )


def is_told(settings: Settings) -> bool:
    """Whether the settings say what the picture shows."""
    return settings.label is not None or settings.prompt is not None


def picture_shape(config: Config) -> Shape:
    """(height, width, channels) of the run's pictures, of which latents may stand for more pixels."""
    h, w, c = image_shape(config)
    return (h, w, c) if config.latents is None else (h * config.latents.factor, w * config.latents.factor, 3)


def restoration(trained: Trained, operator: Operator, method: Method, noise: float) -> Restoration:
    """The run with this operator and method; `noise` (of pictures in [-1, 1]) is only checked.

    Raises: ValueError where the method cannot take the operator or the noise, or a solver is named that it has no use
    for.
    """
    config, settings = trained.config, trained.settings
    codec = codec_of(config, settings.tile)
    seen = operator if codec is None else through(operator, codec.decode, image_shape(config))
    method.check(seen, noise)
    if settings.solver is not None and method.own_steps:
        raise ValueError(
            f"solver {settings.solver} is not allowed with this method, whose steps are its own (--solver, --method)"
        )
    decode = (lambda x: x) if codec is None else jax.jit(codec.decode)
    return Restoration(
        trained, operator, method, restorer(config, trained.guides, seen, method), decode, is_told(settings)
    )


def restorer(config: Config, guides: Guides, operator: Operator, method: Method) -> Restorer:
    """The jitted sampler of the posterior: one compilation serves every measurement, noise, seed and grid of one
    length."""

    @jax.jit
    def run(
        weights: Weights,
        seed: Int[Array, ""],
        indices: Int[Array, "b"],
        levels: Level,
        cond: Cond,
        scales: Scales,
        negative: Cond,
        y: Float[Array, "b ..."],
        noise: Float[Array, ""],
    ) -> tuple[Float[Array, "b h w c"], Facts | None]:
        keys = image_keys(seed, indices)
        denoise = denoise_of(config, guides, weights, cond, scales, negative=negative)
        solver = method(Problem(operator, y, noise), config.solver)
        x = initial(keys, image_shape(config), jax.tree.map(lambda a: a[0], levels))
        x, state = sample_and_state(keys, x, levels, denoise, solver)
        return x, Facts(state.log_evidence, state.effective) if isinstance(state, Population) else None

    return run


def statistics(images: Images, credible: float) -> Mapping[str, Float[np.ndarray, "h w c"]]:
    """Mean, standard deviation and the ends of the intervals of the posterior's draws, pixel by pixel.

    The ends are the quantiles of the order statistics' expected places k / (n + 1), so that one more draw lies inside
    with the probability `credible`, or, of fewer than 2 / (1 - credible) - 1 draws, with that of `nominal`.
    """
    low, high = np.quantile(images, [(1 - credible) / 2, (1 + credible) / 2], axis=0, method="weibull")
    std = images.std(axis=0, ddof=1) if len(images) > 1 else np.zeros(images.shape[1:])
    return {"mean": images.mean(axis=0), "std": std, "low": low, "high": high}


def nominal(num: int, credible: float) -> float:
    """The probability with which one more draw lies between the ends of the interval of `num` draws."""
    return min(credible, (num - 1) / (num + 1))
