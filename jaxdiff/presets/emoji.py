"""Small runs on real images for two CPU cores: the embedded emoji, and Fashion-MNIST."""

from jaxdiff.config import Config, Sampling
from jaxdiff.core import grids, paths, predictions, times
from jaxdiff.data import Data
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.training import ema, optim


def smileys() -> Config:
    """The quick start: 169 faces, hearts and cats at 32x32, minutes on two CPU cores."""
    return Config(
        data=Data("emoji:smileys-emotion", size=32, flip=False),
        network=UNet(
            patch=2,
            channels=64,
            channel_mults=(1, 2),
            blocks_per_level=2,
            attention_resolutions=(8,),
            head_channels=32,
            scale_shift=True,
        ),
        objective=Denoising(
            path=paths.Linear(), prediction=predictions.Flow(), times=times.Stratified(times.LogNormal(0.0, 1.0))
        ),
        optim=optim.Optim(learning_rate=2e-3, warmup=50, decay=optim.CosineDecay(), clip=1.0),
        ema=(ema.Decay(0.999),),
        solver=DDIM(),
        grid=grids.UniformT(),
        sampling=Sampling(steps=50),
        steps=1000,
        batch_size=64,
        save_every=250,
        preview_every=500,
    )


def emoji() -> Config:
    """All 1,897 emoji at 32x32 by category, with guidance: an hour or two on two CPU cores."""
    return smileys()


def fashion_mnist() -> Config:
    """Fashion-MNIST at 28x28 by class: an hour on two CPU cores."""
    return smileys()
