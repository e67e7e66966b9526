"""What an original file of a published network gives: the network, its parameters, and how it is fed and read."""

from typing import NamedTuple

from jaxdiff.core.paths import FixedPath
from jaxdiff.core.predictions import AnyPrediction
from jaxdiff.core.types import Params
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.unet import UNet


class Original(NamedTuple):
    """A published network as it was trained."""

    network: UNet | DiT | Classifier | EDM2
    params: Params
    path: FixedPath
    """The noise schedule of its training."""
    prediction: AnyPrediction
    """What it predicts; of a classifier: how it is fed."""
    size: int
    """Side of its images, or of its latents."""
    channels: int
    """Channels of its images, or of its latents."""
