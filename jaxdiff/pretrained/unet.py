"""The weights of diffusers' U-Nets as parameters of ours, and back: Stable Diffusion 1 and 2, SDXL, DDPM, LDM.

The network comes from `unet_config.py`, the names of the tensors are in `unet_names.py`. A table of labels has one row
more here, the last, for "no label": zeros where the file has none, and left out again where it is zero.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import exchange
from jaxdiff.pretrained.exchange import Origins
from jaxdiff.pretrained.unet_config import unet_config, unet_json
from jaxdiff.pretrained.unet_names import diffusers_names, original_names

__all__ = ["dump", "dump_original", "load", "load_original", "unet_config", "unet_json", "unet_shapes"]

IN_SINGLE_FILE = "model.diffusion_model."
"""Before the names of the U-Net's tensors in a single file of Stable Diffusion, beside the encoder's and decoder's."""

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention, in files from before 2023."""

OLD_NAME = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")

LABELS = "class_embedding.weight"


def load(arrays: Mapping[str, np.ndarray], network: UNet) -> Params:
    """The parameters of the network from the tensors of its file, each read once.

    Raises ValueError that names every tensor which is missing, left over or misshapen.
    """
    if any(OLD_NAME.fullmatch(name) for name in arrays):
        arrays = {_new_name(name): array for name, array in arrays.items()}
    return load_named(arrays, network, diffusers_names(network), LABELS, "conv_in.weight")


def dump(params: Params, network: UNet) -> dict[str, np.ndarray]:
    """The tensors of the file from which diffusers takes these parameters: the inverse of `load`.

    Raises ValueError for a part that its networks have not.
    """
    return dump_named(params, diffusers_names(network), LABELS)


def load_original(arrays: Mapping[str, np.ndarray], network: UNet) -> Params:
    """As `load`, from a single file of Stable Diffusion, whose other parts are left alone.

    Raises ValueError as `load`, and where the file holds no U-Net.
    """
    ours = {name: array for name, array in arrays.items() if name.startswith(IN_SINGLE_FILE)}
    plain = {name.removeprefix(IN_SINGLE_FILE): array for name, array in ours.items()}
    return load_named(plain, network, original_names(network), "label_emb.weight", "input_blocks.0.0.weight")


def dump_original(params: Params, network: UNet) -> dict[str, np.ndarray]:
    """The U-Net's tensors in a single file: the inverse of `load_original`."""
    arrays = dump_named(params, original_names(network), "label_emb.weight")
    return {IN_SINGLE_FILE + name: array for name, array in arrays.items()}


def load_named(arrays: Mapping[str, np.ndarray], network: UNet, origins: Origins, labels: str, first: str) -> Params:
    """The parameters from tensors of these `origins`; `labels` and `first` name the table and the first kernel."""
    if first not in arrays:
        raise ValueError(f"weights of another network: {first} is missing")
    if labels in arrays and len(arrays[labels]) == network.num_classes:
        table = np.asarray(arrays[labels], np.float32)
        arrays = {**arrays, labels: np.concatenate([table, np.zeros_like(table[:1])])}
    return exchange.load(arrays, unet_shapes(network, arrays[first].shape[1]), origins)


def dump_named(params: Params, origins: Origins, labels: str) -> dict[str, np.ndarray]:
    """The inverse of `load_named`."""
    arrays = exchange.dump(params, origins)
    if labels in arrays and not arrays[labels][-1].any():
        arrays[labels] = arrays[labels][:-1]
    return arrays


def unet_shapes(network: UNet, channels: int) -> Mapping[str, object]:
    """The shapes of the network's parameters for images of so many channels, by `jax.eval_shape`."""
    side = network.patch * 2 ** (len(network.channel_mults) - 1)
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    noise = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image, noise, {})["params"]


def _new_name(name: str) -> str:
    if match := OLD_NAME.fullmatch(name):
        module, part, kind = match.groups()
        return f"{module}.{OLD_NAMES[part]}.{kind}"
    return name
