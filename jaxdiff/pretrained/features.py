"""Feature networks by name: the one place where a word becomes a network."""

from pathlib import Path

from jaxdiff.networks.feature_net import FeatureNet
from jaxdiff.networks.resize import BICUBIC, TF1_BILINEAR
from jaxdiff.pretrained import clip, dinov2
from jaxdiff.pretrained.efficientnet_lite import open_efficientnet_lite0
from jaxdiff.pretrained.inception import FILE, open_inception

SPECS = ("efficientnet-lite0", "inception", "inception-clean", *dinov2.NETWORKS, *clip.NETWORKS)
"""All names. "inception-clean" is "inception" after antialiased bicubic resizing, as clean-fid does."""

DEFAULT = "efficientnet-lite0"


def open_features(spec: str, weights: Path | None) -> FeatureNet:
    """The network called `spec`, with the file `weights`, or where it is None those of an installed package.

    Raises ValueError for another name or a file that does not fit, FileNotFoundError where weights are wanting.
    """
    match spec:
        case "efficientnet-lite0":
            return open_efficientnet_lite0(weights)
        case "inception":
            return open_inception(_given(spec, weights, FILE), TF1_BILINEAR)
        case "inception-clean":
            return open_inception(_given(spec, weights, FILE), BICUBIC)
    if spec in dinov2.NETWORKS:
        return dinov2.open_dinov2(spec, _given(spec, weights, dinov2.FILES))
    if spec in clip.NETWORKS:
        return clip.open_clip(spec, _given(spec, weights, clip.FILES))
    raise ValueError(f"{spec!r} is not a feature network: allowed are {', '.join(SPECS)} (--features)")


def _given(spec: str, weights: Path | None, file: str) -> Path:
    if weights is None:
        raise FileNotFoundError(f"{spec} has no weights here: download {file} and name it (--weights {spec}=PATH)")
    return weights
