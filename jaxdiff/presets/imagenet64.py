"""ImageNet at 64x64, class-conditional, by ADM, by EDM with ADM's network, and by EDM2."""

from jaxdiff.config import Config, Sampling
from jaxdiff.core import betas, grids, paths, predictions, times
from jaxdiff.core.predictions import PathTime
from jaxdiff.data import Data
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.heun import Heun
from jaxdiff.training.ema import Decay, Power
from jaxdiff.training.optim import AdamW, InverseSqrt, Optim


def _adm(learned_variance: bool, dtype: str) -> UNet:
    """ADM's network for 64x64. Source: arXiv:2105.05233, Table 11 (295.9 M parameters with learned variance)."""
    return UNet(
        channels=192,
        channel_mults=(1, 2, 3, 4),
        blocks_per_level=3,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        scale_shift=True,
        resample_blocks=True,
        dropout=0.1,
        init_gain=1 / 3,  # its code: PyTorch's default law
        num_classes=1000,
        learned_variance=learned_variance,
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
    )


def imagenet64_adm() -> Config:
    """ImageNet-64 by ADM (arXiv:2105.05233): cosine chain, learned variance, class-conditional."""
    chain = paths.DiscreteVP(1000, betas.CosineBetas())  # Table 11: 1000 steps, cosine
    return Config(
        data=Data("tfds:imagenet_resized/64x64", size=64, flip=True),
        network=_adm(learned_variance=True, dtype="bfloat16"),
        objective=Hybrid(
            path=chain,
            prediction=predictions.Eps(PathTime(chain, offset=-1.0)),
            times=times.UniformSteps(1000),
            vlb_scale=0.001,
        ),
        optim=Optim(learning_rate=3e-4, rule=AdamW(), warmup=0),  # Table 11
        ema=(Decay(0.9999),),  # App. I
        solver=DDIM(eta=1.0),
        grid=grids.Trailing(1000),
        sampling=Sampling(steps=250),  # Sec. 4: 250 steps
        steps=540_000,  # Table 11
        batch_size=2048,  # Table 11
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )


def imagenet64_edm() -> Config:
    """ImageNet-64 by EDM (arXiv:2206.00364): ADM's network, preconditioned; stochastic Heun."""
    batch = 4096  # Table 7
    return Config(
        data=Data("tfds:imagenet_resized/64x64", size=64, flip=True),
        network=_adm(learned_variance=False, dtype="bfloat16"),  # Table 7: ADM, mixed precision
        objective=Denoising(
            path=paths.Sigma(80.0),
            prediction=predictions.EDM(0.5),
            times=times.LogNormal(-1.2, 1.2),
        ),
        optim=Optim(learning_rate=1e-4, rule=AdamW(), warmup=10_000_000 // batch),  # Table 7
        ema=(Decay(0.5 ** (batch / 50_000_000)),),  # Table 7: half-life of 50 M images
        solver=Heun(churn=40.0, churn_min=0.05, churn_max=50.0, noise=1.003),  # Table 5
        grid=grids.Karras(0.002, 80.0, 7.0),
        sampling=Sampling(steps=256, threshold="none"),  # Fig. 4c: NFE 511
        steps=2_500_000_000 // batch,  # Table 7
        batch_size=batch,
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )


def imagenet64_edm2_s() -> Config:
    """ImageNet-64 by EDM2-S (arXiv:2312.02696): magnitudes preserved, weights on spheres, learned uncertainty.

    The numbers are those of the published program's preset edm2-img64-s.
    """
    batch = 2048
    return Config(
        data=Data("tfds:imagenet_resized/64x64", size=64),  # its code: not mirrored
        network=EDM2(channels=192, num_classes=1000, dropout=0.0, dtype="bfloat16"),
        objective=Denoising(
            path=paths.Sigma(80.0),
            prediction=predictions.EDM(0.5),
            times=times.LogNormal(-0.8, 1.6),
            uncertainty=128,  # its code
        ),
        optim=Optim(
            learning_rate=1e-2,
            rule=AdamW(b1=0.9, b2=0.99),
            decay=InverseSqrt(35_000),  # batches
            warmup=10_000_000 // batch,  # 10 M images
        ),
        ema=(Power(0.05), Power(0.10)),  # Sec. 3.2: of which other lengths are made after training
        solver=Heun(),  # deterministic
        grid=grids.Karras(0.002, 80.0, 7.0),
        sampling=Sampling(steps=32, threshold="none"),  # NFE 63
        steps=2**30 // batch,  # 1024 Mi images
        batch_size=batch,
        log_every=100,
        save_every=5000,
        validate_every=10_000,
    )
