"""Published VQModel, as diffusers saves it: its folder as a codec."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import jax
import numpy as np

from jaxdiff.core.codec import Codec, Images, Latents, Opened, normalised
from jaxdiff.core.types import Params
from jaxdiff.networks.vq import VQModel
from jaxdiff.pretrained import autoencoder, exchange
from jaxdiff.pretrained.autoencoder_config import CONFIG, scaling_of, vq_config
from jaxdiff.pretrained.exchange import Origin, Shape
from jaxdiff.pretrained.folders import weights_file
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.weights import Where, read_weights, sha256

CODEBOOK = "quantize.embedding.weight"


def load(arrays: Mapping[str, np.ndarray], network: VQModel) -> Params:
    """Parameters from the tensors of a file. Raises ValueError where they are not exactly this network's."""
    names = autoencoder.diffusers_names(arrays, len(network.widths))
    return exchange.load(names, autoencoder.shapes_of(network), origins)


def dump(params: Params) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file: what `load` was given, bit for bit."""
    return exchange.dump(params, origins)


def origins(path: Where, shape: Shape) -> Origin:
    """The tensor of a parameter by diffusers' name."""
    return Origin((CODEBOOK,)) if path == ("codebook",) else autoencoder.origins(path, shape)


def open_vq(text: str) -> Opened:
    """The codec of diffusers' folder of a VQModel, or of the whole model.

    Its latents are those before the codebook, scaled as the config says. Raises ValueError or FileNotFoundError, one
    line that names the flag.
    """
    folder = Path(text)
    folder = folder / "vqvae" if (folder / "vqvae" / CONFIG).is_file() else folder
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG} of a VQModel (--codec vq=FOLDER)")
    with refusing(folder / CONFIG):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        network, scaling = vq_config(config), scaling_of(config)
    file = weights_file(folder)
    arrays = read_weights(file)
    with refusing(file):
        params = load(arrays, network)
    codec = normalised(codec_of(network, params), *scaling)
    return Opened(codec, "vq", (sha256(file),), network.factor, network.embedding)


def codec_of(network: VQModel, params: Params) -> Codec:
    """The network, compiled, as a codec."""

    @jax.jit
    def encode(params: Params, x: Images) -> Latents:
        return cast(Latents, network.apply({"params": params}, x, method="encode"))

    @jax.jit
    def decode(params: Params, z: Latents) -> Images:
        return cast(Images, network.apply({"params": params}, z, method="decode"))

    return Codec(lambda x: encode(params, x), lambda z: decode(params, z))
