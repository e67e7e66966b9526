"""Bits per dimension of a run's held-out images, as metrics of an evaluation."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from tqdm import tqdm

from jaxdiff import build
from jaxdiff.config import to_json
from jaxdiff.core.types import Cond, Denoise, Params, Path
from jaxdiff.data import open_source, open_validation, validation_batches
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives import bound
from jaxdiff.sampler import noisiest
from jaxdiff.sampling import likelihood
from jaxdiff.sampling.sample import denoiser, image_keys, on_path
from jaxdiff.trained import Trained
from jaxdiff.training import hosts
from jaxdiff.training.sharding import shard_batch, to_host
from jaxdiff.training.step import conditions, to_unit

ODE_STEPS = 80
"""Steps of fourth order from image to noise, 320 network calls: 40 were 0.1 bits too few for a trained VDM."""

BINS = 10
"""Parts of the logSNR in a bound's breakdown."""

Found = tuple[Float[Array, "b"], Float[Array, "b k"]]
Bits = Callable[
    [Key[Array, "b"], Float[Array, "b h w c"], Denoise, Path], tuple[Float[Array, "b"], Float[Array, "b k"]]
]
"""(keys, x0, denoise, path) -> (bits per dimension, their breakdown)."""


def _ode(dequantise: likelihood.Dequantise, noisy: float) -> Bits:
    def bits(keys, x0, denoise, path):
        angles = likelihood.angles(path, ODE_STEPS, noisy=noisy)
        found = likelihood.likelihood(keys, x0, angles, denoise, dequantise)
        return found.bits, jnp.zeros((x0.shape[0], 0))

    return bits


def _variational(noisy: float) -> Bits:
    def bits(keys, x0, denoise, path):
        found = bound.continuous_bound(keys, x0, path, denoise, noisy=min(noisy, 1e3))
        edges = jnp.linspace(jnp.min(found.logsnr) - 1e-3, jnp.max(found.logsnr) + 1e-3, BINS + 1)
        parts = jnp.concatenate([found.prior[:, None], bound.by_logsnr(found, edges), found.decoder[:, None]], axis=1)
        return jnp.sum(parts, axis=1), parts

    return bits


BOUNDS: Mapping[str, Callable[[float], Bits]] = {
    "nll": lambda noisy: _ode(likelihood.Uniform(), noisy),
    "nll-values": lambda noisy: _ode(likelihood.Gaussian(), noisy),
    "vlb": _variational,
}
"""nll: the probability-flow ODE's density of uniformly dequantised images; nll-values: the same by Gaussian
dequantisation, for models trained on the 256 values themselves, as VDM is; vlb: the continuous variational bound."""


def measure(name: str, trained: Trained, num: int) -> dict[str, object]:
    """The mean bits per dimension over up to `num` images held out of training, or, if there are none, trained on."""
    config = trained.config
    if config.latents is not None:
        raise ValueError(f"{name} is not defined for a run on latents, only for one on pixels (--metrics)")
    source = open_validation(config.data)
    held_out = source is not None
    source = source or open_source(config.data)
    # The kernels of attention have no derivative along a direction.
    if isinstance(config.network, UNet | DiT | PixArt | MMDiT | Flux | EDM2):
        config = dataclasses.replace(config, network=config.network.clone(attention="plain"))
    apply, mesh = build.apply_run(config), trained.mesh
    bits_of = BOUNDS[name](noisiest(config, config.objective.path_of(trained.params)))

    @jax.jit
    def run(params: Params, keys: Key[Array, "b"], x0: Float[Array, "b h w c"], cond: Cond):
        path = config.objective.path_of(params)
        denoise = on_path(path)(denoiser(apply, params, config.objective.prediction, cond))
        return bits_of(keys, x0, denoise, path)

    bits, parts, first = [], [], 0
    count = min(num, len(source))
    with tqdm(total=count, desc=name, unit="image", disable=None if hosts.is_first() else True) as bar:
        for page in validation_batches(config.data, source, trained.batch_size):
            raw = dict(page)
            mask = np.asarray(raw.pop("mask"))
            batch = shard_batch(mesh, raw)
            keys = image_keys(trained.settings.seed, first + jnp.arange(trained.batch_size))
            found, pieces = run(trained.params, keys, to_unit(batch["image"]), conditions(batch))
            real = np.flatnonzero(mask)[: count - first]
            bits.append(to_host(found)[real])
            parts.append(to_host(pieces)[real])
            first += len(real)
            bar.update(len(real))
            if first >= count:
                break
    values = np.concatenate(bits).astype(np.float64)
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    mean = float(values.mean())
    record: dict[str, object] = {"value": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error, "std": error}
    record |= {"n": len(values), "data": to_json(config.data), "held_out": held_out, "unit": "bits per dimension"}
    breakdown = np.concatenate(parts).astype(np.float64).mean(axis=0)
    if breakdown.size:
        record |= {"prior": breakdown[0], "by_logsnr": breakdown[1:-1].tolist(), "decoder": breakdown[-1]}
    return record
