"""CIFAR-10, by seven methods with their papers' hyperparameters. Each is a row of the same few values.

Deviations, all of them: the average's warm-up is the one of `Decay`, and Adam's first updates use optax's
bias correction, whatever the paper's code did.
"""

import math

from jaxdiff.config import Config, Sampling
from jaxdiff.core import betas, grids, paths, predictions, times
from jaxdiff.core.predictions import LogRatio, PathTime
from jaxdiff.data import Data
from jaxdiff.networks.schedule import LearnedSchedule
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.objectives.vdm import VDM
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.euler_maruyama import EulerMaruyama
from jaxdiff.sampling.heun import Heun
from jaxdiff.training.ema import Decay
from jaxdiff.training.optim import AdamW, Constant, Optim

CIFAR10 = Data("tfds:cifar10", size=32, flip=True, labels=False)
"""Unconditional, mirrored at random: all of the papers but VDM."""

DDPM_PERIOD = 10000 ** (64 / 63)
"""DDPM's code spaces 64 frequencies so that the last one, not the one after it, has the period 10000 (over 2 pi)."""


def _ddpmpp(**changes: object) -> UNet:
    """DDPM++ of arXiv:2011.13456, App. H: biggan blocks that change the size, four a level, skips by sqrt(1/2)."""
    common = dict(
        channels=128,
        channel_mults=(1, 2, 2, 2),
        blocks_per_level=4,
        attention_resolutions=(16,),
        decoder_attention=False,
        resample_blocks=True,
        resample_projection=True,
        skip_scale=math.sqrt(0.5),
        max_period=DDPM_PERIOD,
        norm_eps=1e-6,
        dropout=0.1,
    )
    return UNet(**{**common, **changes})


def cifar10_ddpm() -> Config:
    """CIFAR-10 by DDPM (arXiv:2006.11239): discrete chain, noise prediction, ancestral sampling."""
    chain = paths.DiscreteVP(1000, betas.LinearBetas(1e-4, 0.02))  # Sec. 4: T = 1000, linear betas
    return Config(
        data=CIFAR10,  # App. B: random horizontal flips
        network=UNet(  # App. B: 35.7 M parameters
            channels=128,
            channel_mults=(1, 2, 2, 2),
            blocks_per_level=2,
            attention_resolutions=(16,),
            dropout=0.1,
            max_period=DDPM_PERIOD,
            norm_eps=1e-6,
        ),
        objective=Denoising(
            path=chain,
            prediction=predictions.Eps(PathTime(chain, offset=-1.0)),  # Alg. 1, steps counted from 0
            times=times.UniformSteps(1000),  # Alg. 1
        ),
        optim=Optim(learning_rate=2e-4, rule=AdamW(), warmup=5000, clip=1.0),  # App. B; warm-up, clip: its code
        ema=(Decay(0.9999),),  # App. B
        solver=DDIM(eta=1.0),  # Alg. 2, the smaller variance
        grid=grids.Trailing(1000),
        sampling=Sampling(steps=1000),
        steps=800_000,  # App. B
        batch_size=128,  # App. B
        log_every=100,
        save_every=5000,
        preview_every=50_000,
        validate_every=10_000,
    )


def cifar10_iddpm() -> Config:
    """CIFAR-10 by iDDPM (arXiv:2102.09672): cosine chain of 4000 steps, learned variance, hybrid objective."""
    chain = paths.DiscreteVP(4000, betas.CosineBetas())  # Sec. 3.2; T = 4000: Sec. 3.3
    return Config(
        data=CIFAR10,
        network=UNet(  # App. A
            channels=128,
            channel_mults=(1, 2, 2, 2),
            blocks_per_level=3,
            attention_resolutions=(16, 8),
            heads=4,
            scale_shift=True,
            dropout=0.3,  # Table 2: 0.3 on CIFAR-10
            learned_variance=True,
            init_gain=1 / 3,  # its code: PyTorch's default law
        ),
        objective=Hybrid(
            path=chain,
            # The network counts in steps of 1000: the code rescales t by 1000/T.
            prediction=predictions.Eps(PathTime(chain, scale=0.25, offset=-0.25)),
            times=times.UniformSteps(4000),
            vlb_scale=0.001,  # Eq. 16
        ),
        optim=Optim(learning_rate=1e-4, rule=AdamW()),  # App. A
        ema=(Decay(0.9999),),  # App. A
        solver=DDIM(eta=1.0),
        grid=grids.Trailing(4000),
        sampling=Sampling(steps=4000),
        steps=500_000,  # App. A
        batch_size=128,  # App. A
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )


def cifar10_vp() -> Config:
    """CIFAR-10 by the variance-preserving score SDE (arXiv:2011.13456): DDPM++, continuous times."""
    path = paths.LinearVP(0.1, 20.0)  # App. C
    return Config(
        data=CIFAR10,
        network=_ddpmpp(),
        objective=Denoising(
            path=path,
            prediction=predictions.Eps(PathTime(path, scale=999.0)),  # Eq. 7 with the weight sigma^2
            times=times.Uniform(start=1e-5),  # App. C: t from 1e-5
        ),
        optim=Optim(learning_rate=2e-4, rule=AdamW(), warmup=5000, clip=1.0),  # App. H
        ema=(Decay(0.9999),),  # App. H: 0.9999 for VP
        solver=EulerMaruyama(),  # Sec. 4.1; the paper's best also correct, which a solver to come does
        grid=grids.UniformT(),
        sampling=Sampling(steps=1000, threshold="none"),
        steps=1_300_000,  # its published configuration
        batch_size=128,  # App. H
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )


def cifar10_ve() -> Config:
    """CIFAR-10 by the variance-exploding score SDE (arXiv:2011.13456): NCSN++, Fourier embedding, FIR resampling."""
    path = paths.GeometricVE(0.02, 100.0)  # App. C: 0.01 to 50 for images in [0, 1]; these span [-1, 1]
    return Config(
        data=CIFAR10,
        network=_ddpmpp(
            resample_taps=(1, 3, 3, 1), residual_input=True, fourier_scale=16.0, embedding_channels=256
        ),  # App. H: NCSN++
        objective=Denoising(
            path=path,
            prediction=predictions.Eps(LogRatio(1.0, offset=-math.log(2))),  # the log of sigma in the paper's units
            times=times.Uniform(start=1e-5),
        ),
        optim=Optim(learning_rate=2e-4, rule=AdamW(), warmup=5000, clip=1.0),  # App. H
        ema=(Decay(0.999),),  # App. H: 0.999 for VE
        solver=EulerMaruyama(),
        grid=grids.UniformT(),
        sampling=Sampling(steps=1000, threshold="none"),
        steps=1_300_000,  # its published configuration
        batch_size=128,
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )


def cifar10_vdm() -> Config:
    """CIFAR-10 by VDM (arXiv:2107.00630): the continuous-time bound, with learned ends of the schedule."""
    gamma_min, gamma_max = -13.3, 5.0  # App. B: -logSNR at the two ends, before training
    span = gamma_max - gamma_min
    return Config(
        data=Data("tfds:cifar10", size=32, labels=False),  # Table 1: no augmentation
        network=UNet(  # App. B: 32 levels without down-sampling, Fourier features, no attention but the middle's
            channels=128,
            channel_mults=(1,),
            blocks_per_level=32,
            attention_resolutions=(),
            fourier_features=(6, 7),
            add_input=True,
            dropout=0.1,
            norm_eps=1e-6,
        ),
        objective=VDM(
            path=LearnedSchedule(gamma_min, gamma_max, interior=False),
            # The network is told (gamma - gamma_min) / span, times 1000 for its sinusoids; gamma = 2 log(sigma/alpha).
            prediction=predictions.Eps(LogRatio(2000 / span, offset=-1000 * gamma_min / span)),
            times=times.Stratified(times.Uniform()),  # App. I.1
        ),
        optim=Optim(learning_rate=2e-4, rule=AdamW(b2=0.99, weight_decay=0.01), warmup=100),  # App. B, and its code
        ema=(Decay(0.9999),),  # App. B
        solver=DDIM(eta=1.0),  # Eq. 33-34: ancestral
        grid=grids.UniformT(),
        sampling=Sampling(steps=1000, threshold="none"),
        steps=10_000_000,  # App. B
        batch_size=128,
        log_every=100,
        save_every=10_000,
        validate_every=10_000,
    )


def cifar10_edm() -> Config:
    """CIFAR-10 by EDM (arXiv:2206.00364): preconditioning, log-normal noise levels, Heun with 18 steps."""
    images = 200_000_000  # Table 7: duration, in images
    batch = 512  # Table 7
    return Config(
        data=Data("tfds:cifar10", size=32, labels=False, augment=0.12),  # Table 7; App. F.2 mirrors too
        network=_ddpmpp(channel_mults=(2, 2, 2), dropout=0.13, augment_dim=9),  # Table 7: DDPM++, 55.7 M parameters
        objective=Denoising(
            path=paths.Sigma(80.0),  # Table 1
            prediction=predictions.EDM(0.5),  # Table 1: sigma_data = 0.5; c_noise = log(sigma) / 4
            times=times.LogNormal(-1.2, 1.2),  # Table 1
        ),
        optim=Optim(  # Table 7: Adam, 1e-3, ramp-up over 10 M images
            learning_rate=1e-3, rule=AdamW(), warmup=10_000_000 // batch
        ),
        ema=(Decay(0.5 ** (batch / 500_000)),),  # Table 7: half-life of 0.5 M images
        solver=Heun(),  # Alg. 1
        grid=grids.Karras(0.002, 80.0, 7.0),  # Eq. 5
        sampling=Sampling(steps=18, threshold="none"),  # Table 2: NFE 35
        steps=images // batch,
        batch_size=batch,
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )


def cifar10_flow() -> Config:
    """CIFAR-10 by rectified flow (arXiv:2209.03003): straight paths, uniform times, Euler or Heun."""
    path = paths.Linear()  # Eq. 1
    return Config(
        data=CIFAR10,
        network=_ddpmpp(dropout=0.15),  # App. D.2: DDPM++, drop-out 0.15
        objective=Denoising(
            path=path,
            prediction=predictions.Flow(PathTime(path, scale=999.0)),
            times=times.Uniform(),  # Eq. 1
        ),
        optim=Optim(learning_rate=2e-4, rule=AdamW(), warmup=5000, clip=1.0, decay=Constant()),  # App. D.2
        ema=(Decay(0.999999),),  # App. D.2
        solver=DDIM(),  # Euler
        grid=grids.UniformT(),
        sampling=Sampling(steps=100, threshold="none"),
        steps=1_300_000,  # its published configuration
        batch_size=128,
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )
