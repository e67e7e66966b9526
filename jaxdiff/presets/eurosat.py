"""EuroSAT: Sentinel-2 pictures of ten kinds of land (arXiv:1709.00029)."""

import dataclasses

from jaxdiff.config import Config, Sampling
from jaxdiff.core import predictions, times
from jaxdiff.data import Data
from jaxdiff.networks.unet import UNet
from jaxdiff.presets.emoji import OBJECTIVE
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.training import ema, optim


def eurosat() -> Config:
    """EuroSAT at 64x64 by class: minutes on a GPU."""
    return Config(
        data=Data("tfds:eurosat/rgb", size=64, flip=True, holdout=0.1),
        network=UNet(
            patch=2,
            channels=64,
            channel_mults=(1, 2, 2, 2),
            blocks_per_level=2,
            attention_resolutions=(8,),
            head_channels=32,
            scale_shift=True,
            num_classes=10,
        ),
        objective=dataclasses.replace(
            OBJECTIVE,
            prediction=predictions.EDM(sigma_data=0.4, time=predictions.Angle()),
            times=times.Stratified(times.LogNormal(-1.2, 1.2)),  # contrast is low, so low noise decides
            drop=0.1,
        ),
        optim=optim.Optim(learning_rate=5e-4, warmup=200, decay=optim.CosineDecay(), clip=1.0),
        ema=(ema.Decay(0.9995),),
        solver=DDIM(eta=1.0),
        sampling=Sampling(steps=50),
        steps=20000,
        batch_size=64,
        save_every=1000,
        preview_every=5000,
        validate_every=5000,
    )
