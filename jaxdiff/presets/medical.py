"""Medical images for two CPU cores: chest X-rays at 28x28 (PneumoniaMNIST), slices of brains at 64x64."""

import dataclasses

from jaxdiff.config import Config, Sampling
from jaxdiff.core import predictions
from jaxdiff.data import Data
from jaxdiff.networks.unet import UNet
from jaxdiff.presets.emoji import OBJECTIVE
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.training import ema, optim

RMS = 0.37
"""Root mean square of the training pixels in [-1, 1]: 0.366 of all, 0.380 of the normal ones."""


def pneumonia_mnist() -> Config:
    """PneumoniaMNIST at 28x28 by class."""
    return Config(
        # Never mirrored: the heart is on the left.
        data=Data("medmnist:pneumoniamnist", size=28, channels=1),
        network=UNet(
            patch=2,
            channels=48,
            channel_mults=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(7,),
            head_channels=32,
            dropout=0.1,  # few pictures: each is seen some 20 times
            scale_shift=True,
            num_classes=2,
        ),
        objective=dataclasses.replace(
            OBJECTIVE, prediction=predictions.EDM(sigma_data=RMS, time=predictions.Angle()), drop=0.1
        ),
        optim=optim.Optim(learning_rate=1e-3, warmup=100, decay=optim.CosineDecay(), clip=1.0),
        ema=(ema.Decay(0.999), ema.Power(0.05), ema.Power(0.10)),
        solver=DDIM(eta=1.0),  # fresh noise corrects what a small network gets wrong on the way
        sampling=Sampling(steps=50),
        steps=1600,
        batch_size=64,
        save_every=400,
        preview_every=800,
        validate_every=400,
    )


def pneumonia_mnist_normal() -> Config:
    """The normal chest X-rays of PneumoniaMNIST alone, for anomaly detection."""
    config = pneumonia_mnist()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, labels=False, classes=("normal",)),
        network=dataclasses.replace(config.network, num_classes=0),
        objective=dataclasses.replace(config.objective, drop=0.0),
        steps=1200,
    )


def brain_slices() -> Config:
    """Axial slices of brains at 64x64, of few volumes, made many by augmentation: half an hour on two CPU cores."""
    config = pneumonia_mnist()
    return dataclasses.replace(
        config,
        data=Data("nifti:ch2bet.nii.gz", size=64, channels=1, labels=False, augment=0.3),
        network=dataclasses.replace(
            config.network,
            channel_mults=(1, 2, 2),
            attention_resolutions=(8,),
            dropout=0.0,
            num_classes=0,
            augment_dim=9,
        ),
        objective=dataclasses.replace(OBJECTIVE, prediction=predictions.EDM(sigma_data=0.9, time=predictions.Angle())),
        ema=(ema.Decay(0.999),),
        steps=1600,
        batch_size=32,
        save_every=400,
        preview_every=800,
        validate_every=0,
    )
