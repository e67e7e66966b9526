"""Small runs on real images for two CPU cores: the embedded emoji, and Fashion-MNIST."""

import dataclasses

from jaxdiff.config import Config, Sampling
from jaxdiff.core import grids, paths, predictions, times
from jaxdiff.data import Data
from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.schedule import LearnedSchedule
from jaxdiff.networks.text_transformer import TextTransformer
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.autoencoder import Adversary, Autoencoding
from jaxdiff.objectives.classification import Classification
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.vdm import VDM
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.heun import Heun
from jaxdiff.training import ema, optim

OBJECTIVE = Denoising(
    path=paths.Linear(),
    # EDM's output rather than the velocity: at high noise it need not copy the noise through a narrow network.
    prediction=predictions.EDM(sigma_data=0.8, time=predictions.Angle()),
    times=times.Stratified(times.LogNormal(0.0, 1.0)),
)
"""Rectified flow with logit-normal times, preconditioned; 0.8 is near the root mean square of all three sets."""


def smileys() -> Config:
    """The quick start: 169 faces, hearts and cats at 32x32, minutes on two CPU cores."""
    return Config(
        data=Data("emoji:smileys-emotion", size=32),
        network=UNet(
            patch=2,
            channels=48,
            channel_mults=(1, 2, 2),
            blocks_per_level=1,
            attention_resolutions=(8,),
            head_channels=32,
            scale_shift=True,
        ),
        objective=OBJECTIVE,
        optim=optim.Optim(learning_rate=2e-3, warmup=50, decay=optim.CosineDecay(), clip=1.0),
        ema=(ema.Decay(0.999),),
        solver=DDIM(eta=1.0),  # fresh noise corrects what a small network gets wrong on the way
        sampling=Sampling(steps=50),
        steps=1200,
        batch_size=32,
        log_every=20,
        save_every=600,
        preview_every=600,
    )


def emoji() -> Config:
    """All 1,897 emoji at 32x32 by category, with guidance: about an hour on two CPU cores."""
    return Config(
        data=Data("emoji", size=32),
        network=UNet(
            patch=2,
            channels=64,
            channel_mults=(1, 2, 2),
            blocks_per_level=1,
            attention_resolutions=(8,),
            head_channels=32,
            scale_shift=True,
            num_classes=10,
        ),
        objective=dataclasses.replace(OBJECTIVE, drop=0.1),
        optim=optim.Optim(learning_rate=1e-3, warmup=100, decay=optim.CosineDecay(), clip=1.0),
        ema=(ema.Decay(0.9995),),
        solver=DDIM(eta=1.0),  # fresh noise corrects what a small network gets wrong on the way
        sampling=Sampling(steps=50, cfg_scale=1.5),
        steps=4200,
        batch_size=32,
        save_every=500,
        preview_every=2100,
    )


def emoji_text() -> Config:
    """The emoji at 32x32 from their captions, read by a text encoder that learns with the network: hours on a CPU."""
    config = emoji()
    return dataclasses.replace(
        config,
        data=Data("emoji", size=32, labels=False, text=True, keywords=True),
        network=UNet(
            patch=2,
            channels=48,
            channel_mults=(1, 2, 2),
            blocks_per_level=1,
            attention_resolutions=(),
            transformer_depths=(0, 1, 0),
            middle_transformer=1,
            head_channels=32,
            scale_shift=True,
            text_width=96,
            text_pooled=96,
            text_encoder=TextTransformer(vocabulary=1024, length=24, width=96, depth=2),
        ),
        text="words",
        optim=optim.Optim(learning_rate=1e-3, warmup=200, decay=optim.CosineDecay(), clip=1.0),
        sampling=Sampling(steps=50, cfg_scale=3.0),
        steps=12000,
        save_every=500,
        preview_every=5000,
    )


def emoji_text_minilm() -> Config:
    """`emoji_text` with its captions read by MiniLM-L6-v2, frozen, in place of an encoder that learns."""
    config = emoji_text()
    network = dataclasses.replace(config.network, text_encoder=None, text_width=384, text_pooled=384)
    return dataclasses.replace(config, network=network, text="minilm", text_length=24)


def emoji64_vae() -> Config:
    """An autoencoder of the 64x64 emoji, latents 16x16x4: half an hour on two CPU cores."""
    return Config(
        data=Data("emoji64.zip", size=64, labels=False),
        network=AutoencoderKL(latents=4, widths=(16, 32, 64), blocks_per_level=1, groups=8),
        objective=Autoencoding(lpips="lpips-alexnet", adversary=Adversary(start=1500, channels=32, layers=2)),
        optim=optim.Optim(learning_rate=1e-3, warmup=100, decay=optim.CosineDecay(), clip=1.0),
        ema=(ema.Decay(0.995),),
        steps=4000,
        batch_size=16,
        save_every=500,
        preview_every=1000,
        validate_every=1000,
    )


def emoji_text_latent() -> Config:
    """`emoji_text` at 64x64, in the latents 16x16x4 of a run of `emoji64_vae`: hours on two CPU cores."""
    config = emoji_text()
    return dataclasses.replace(
        config,
        data=Data("records:emoji64_latents", size=16, channels=4, labels=False, text=True, keywords=True),
        network=dataclasses.replace(config.network, patch=1),  # 16x16 within, as there
        objective=dataclasses.replace(
            config.objective, prediction=predictions.EDM(sigma_data=1.0, time=predictions.Angle())
        ),
        sampling=dataclasses.replace(config.sampling, threshold="none"),
        preview_every=0,  # needs --codec
    )


def emoji_sr() -> Config:
    """The emoji from 16x16 to 32x32: super-resolution, which is shown the small picture."""
    config = smileys()
    return dataclasses.replace(
        config,
        data=Data("emoji", size=32, labels=False, low=16, low_noise=0.1, holdout=0.05),
        network=dataclasses.replace(config.network, image_channels=3),
        steps=1500,
        save_every=500,
        preview_every=1500,
        validate_every=1500,
    )


def emoji_edit() -> Config:
    """An emoji's skin tone changed by instruction, at 32x32: a network that is shown a picture and told what to do."""
    config = emoji_text()
    return dataclasses.replace(
        config,
        data=Data("emoji_pairs.zip", size=32, labels=False, text=True, pairs=True),
        network=dataclasses.replace(config.network, image_channels=3),
        # Each left out alone, or both, for two scales of guidance (arXiv:2211.09800, Sec. 3.2.1).
        objective=dataclasses.replace(config.objective, drop=0.05, drop_apart=0.05),
        sampling=dataclasses.replace(config.sampling, cfg_scale=2.0),
        steps=6000,
        validate_every=6000,
    )


def emoji_vdm() -> Config:
    """The emoji at 16x16 by VDM, ending in bits per dimension of those held out: minutes on two CPU cores."""
    gamma_min, gamma_max = -13.3, 5.0  # -logSNR at the two ends, before training: those of CIFAR-10
    span = gamma_max - gamma_min
    return Config(
        data=Data("emoji", size=16, labels=False, holdout=0.1),
        network=UNet(
            patch=2,
            channels=48,
            channel_mults=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(4,),
            head_channels=32,
            scale_shift=True,
            fourier_features=(6, 7),  # which of the 256 values is nearest: what little noise leaves to be seen
            add_input=True,
        ),
        objective=VDM(
            path=LearnedSchedule(gamma_min, gamma_max, interior=False),
            prediction=predictions.Eps(predictions.LogRatio(2000 / span, offset=-1000 * gamma_min / span)),
            times=times.Stratified(times.Uniform()),
        ),
        optim=optim.Optim(
            learning_rate=2e-3, rule=optim.AdamW(b2=0.99), warmup=100, decay=optim.CosineDecay(), clip=1.0
        ),
        ema=(ema.Decay(0.998),),
        solver=DDIM(eta=1.0),
        sampling=Sampling(steps=100),
        steps=2000,
        batch_size=32,
        save_every=500,
        validate_every=2000,
    )


def emoji_edm2() -> Config:
    """The emoji at 16x16 by category with EDM2's network, spheres and uncertainty."""
    return Config(
        data=Data("emoji", size=16),
        network=EDM2(
            channels=32,
            channel_mults=(1, 2),
            blocks_per_level=1,
            attention_levels=(1,),
            head_channels=32,
            num_classes=10,
        ),
        objective=Denoising(
            path=paths.Sigma(80.0),
            prediction=predictions.EDM(sigma_data=0.8),
            times=times.Stratified(times.LogNormal(-0.8, 1.6)),
            uncertainty=128,
        ),
        optim=optim.Optim(learning_rate=1e-2, rule=optim.AdamW(b2=0.99), warmup=100, decay=optim.InverseSqrt(500)),
        ema=(ema.Power(0.10), ema.Power(0.05)),
        solver=Heun(),
        grid=grids.Karras(0.002, 80.0, 7.0),
        sampling=Sampling(steps=18),
        steps=3000,
        batch_size=32,
        save_every=500,
        preview_every=1500,
        validate_every=3000,
    )


def fashion_mnist() -> Config:
    """Fashion-MNIST at 28x28 by class: half an hour on two CPU cores."""
    return Config(
        data=Data("fashion_mnist", size=28, channels=1),
        network=UNet(
            patch=2,
            channels=48,
            channel_mults=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(7,),
            head_channels=32,
            scale_shift=True,
            num_classes=10,
        ),
        objective=dataclasses.replace(OBJECTIVE, drop=0.1),
        optim=optim.Optim(learning_rate=1e-3, warmup=100, decay=optim.CosineDecay(), clip=1.0),
        # Two power-function averages, of which any other length can be made: sample.py --ema 0.07.
        ema=(ema.Decay(0.999), ema.Power(0.05), ema.Power(0.10)),
        solver=DDIM(eta=1.0),  # fresh noise corrects what a small network gets wrong on the way
        sampling=Sampling(steps=50),
        steps=1400,
        batch_size=64,
        save_every=500,
        preview_every=700,
        validate_every=1400,
    )


def fashion_mnist_classifier() -> Config:
    """The classes of noisy Fashion-MNIST, for classifier guidance: ten minutes on one CPU core."""
    return Config(
        data=Data("fashion_mnist", size=28, channels=1),
        network=Classifier(
            encoder=UNet(
                patch=2,
                channels=32,
                channel_mults=(1, 2),
                blocks_per_level=1,
                attention_resolutions=(7,),
                head_channels=32,
                dropout=0.1,
                scale_shift=True,
            ),
            num_classes=10,
            pool_head_channels=32,
        ),
        # Fed as `fashion_mnist` is, and asked at every level that its sampler may visit.
        objective=Classification(OBJECTIVE.path, OBJECTIVE.prediction, times.Stratified(times.Uniform())),
        optim=optim.Optim(learning_rate=2e-3, warmup=50, decay=optim.CosineDecay(), clip=1.0),
        ema=(ema.Decay(0.995),),
        steps=1200,
        batch_size=64,
        save_every=600,
        validate_every=1200,
    )
