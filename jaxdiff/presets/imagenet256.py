"""ImageNet at 256x256 in the latents of an autoencoder (32x32x4), class-conditional, by DiT and by SiT.

The data are latents, computed once from the pictures (`records:DIR`). Deviations: they are normalised channel by
channel, the average's warm-up is the one of `Decay`, and the networks compute in bfloat16.
"""

import dataclasses

from jaxdiff.config import Config, Sampling
from jaxdiff.core import betas, grids, paths, predictions, times
from jaxdiff.core.predictions import PathTime
from jaxdiff.data import Data
from jaxdiff.networks.dit import DiT
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.sampling.ancestral import Ancestral
from jaxdiff.sampling.heun import Heun
from jaxdiff.training.ema import Decay
from jaxdiff.training.optim import AdamW, Optim

LATENTS = Data("records:imagenet256_latents", size=32, channels=4, flip=True)
"""Latents of the pictures and of their mirror images, made by `jaxdiff precompute`."""


def _dit(depth: int, width: int, heads: int, learned_variance: bool = True) -> DiT:
    """Patches of 2. Source: arXiv:2212.09748, Table 1. Its computation in float32 is `--network.dtype float32`."""
    return DiT(
        patch=2,
        width=width,
        depth=depth,
        heads=heads,
        num_classes=1000,
        learned_variance=learned_variance,
        dtype="bfloat16",
    )


def _dit_run(network: DiT, steps: int, cfg_scale: float) -> Config:
    """DiT's run: ADM's diffusion with linear betas. Source: arXiv:2212.09748, Sec. 4."""
    chain = paths.DiscreteVP(1000, betas.LinearBetas(1e-4, 0.02))
    return Config(
        data=LATENTS,
        network=network,
        objective=Hybrid(
            path=chain,
            prediction=predictions.Eps(PathTime(chain, offset=-1.0)),
            times=times.UniformSteps(1000),
            vlb_scale=0.001,
            drop=0.1,  # its code, as in arXiv:2207.12598
        ),
        optim=Optim(learning_rate=1e-4, rule=AdamW(), warmup=0),  # no weight decay
        ema=(Decay(0.9999),),
        solver=Ancestral(u=None),
        grid=grids.Trailing(1000),
        sampling=Sampling(steps=250, cfg_scale=cfg_scale, threshold="none"),
        steps=steps,
        batch_size=256,
        log_every=100,
        save_every=5000,
    )


def imagenet256_dit_s2() -> Config:
    """ImageNet-256 by DiT-S/2 (arXiv:2212.09748): 32x32 latents, learned variance, class-conditional."""
    return _dit_run(_dit(12, 384, 6), 400_000, 1.0)


def imagenet256_dit_b2() -> Config:
    """ImageNet-256 by DiT-B/2 (arXiv:2212.09748)."""
    return _dit_run(_dit(12, 768, 12), 400_000, 1.0)


def imagenet256_dit_l2() -> Config:
    """ImageNet-256 by DiT-L/2 (arXiv:2212.09748)."""
    return _dit_run(_dit(24, 1024, 16), 400_000, 1.0)


def imagenet256_dit_xl2() -> Config:
    """ImageNet-256 by DiT-XL/2 (arXiv:2212.09748): 7 M steps, guidance 1.5."""
    return _dit_run(_dit(28, 1152, 16), 7_000_000, 1.5)


def imagenet256_sit_xl2() -> Config:
    """ImageNet-256 by SiT-XL/2 (arXiv:2401.08740): DiT's network, straight paths, velocity, uniform times."""
    path = paths.Linear()
    return dataclasses.replace(
        _dit_run(_dit(28, 1152, 16, learned_variance=False), 7_000_000, 1.5),
        objective=Denoising(
            path=path,
            prediction=predictions.Flow(PathTime(path)),
            times=times.Uniform(),
            drop=0.1,
        ),
        solver=Heun(),
        grid=grids.UniformT(),
        sampling=Sampling(steps=125, cfg_scale=1.5, threshold="none"),  # 250 network calls
    )
