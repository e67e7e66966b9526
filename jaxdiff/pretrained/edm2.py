"""The original files of EDM2 (arXiv:2312.02696): the averaged network of `edm2-img512-s-*.pkl` and its like.

The learned uncertainty of the loss, which lies beside the U-Net, is left out: only training reads it.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np

from jaxdiff.core.paths import Sigma
from jaxdiff.core.predictions import EDM
from jaxdiff.networks.apply import init_params
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.pretrained import exchange
from jaxdiff.pretrained.edm import by_kind, real, side, whole, wholes
from jaxdiff.pretrained.exchange import Origin, Origins, Shape
from jaxdiff.pretrained.original import Original
from jaxdiff.pretrained.persistent import Module
from jaxdiff.pretrained.unet_names import BLOCK
from jaxdiff.pretrained.weights import Where, torch_name

INSIDE: Mapping[str, str] = {
    "conv_0": "conv_res0",
    "conv_1": "conv_res1",
    "skip": "conv_skip",
    "embedding": "emb_linear",
    "embedding_gain": "emb_gain",
    "qkv": "attn_qkv",
    "out": "attn_proj",
}
"""Inside a block, where the name is another."""

FIXED = ("emb_fourier.freqs", "emb_fourier.phases")
"""Constants of the network, in radians."""


def open_edm2(outer: Module) -> Original:
    """The network of the file's averaged module. Raises ValueError for another class, and tensors that do not fit."""
    inner = outer.part("unet")
    network = edm2_config(inner)
    size, channels = whole(inner, "img_resolution"), whole(inner, "img_channels")
    # A gain is one number there, and a vector of one here.
    arrays = {name: np.atleast_1d(array) for name, array in inner.arrays().items() if name not in FIXED}
    params = exchange.load(arrays, edm2_shapes(network, channels), edm2_names(network, size))
    return Original(network, params, Sigma(80.0), EDM(real(outer, "sigma_data", 0.5)), size, channels)


def edm2_config(inner: Module) -> EDM2:
    """The network of its module's recorded arguments. Raises ValueError that names a field it cannot honour."""
    if inner.kind != "UNet":
        raise ValueError(f"{inner.kind[:60]} is not supported: allowed is EDM2's UNet")
    size, base = whole(inner, "img_resolution"), whole(inner, "model_channels", 192)
    mults = wholes(inner, "channel_mult", (1, 2, 3, 4))
    sides = wholes(inner, "attn_resolutions", (16, 8))
    arrays = inner.arrays()
    if missing := [name for name in (*FIXED, "emb_noise.weight") if name not in arrays]:
        raise ValueError(f"weights of another network: {missing[0]} is missing")
    frequencies, phases = (tuple(float(v) / (2 * math.pi) for v in arrays[name]) for name in FIXED)
    width, features = arrays["emb_noise.weight"].shape
    return EDM2(
        channels=base,
        channel_mults=mults,
        blocks_per_level=whole(inner, "num_blocks", 3),
        attention_levels=tuple(level for level in range(len(mults)) if size >> level in sides),
        head_channels=whole(inner, "channels_per_head", 64),
        noise_features=features,
        embedding_width=width,
        frequencies=frequencies,
        phases=phases,
        num_classes=whole(inner, "label_dim", 0),
        label_balance=real(inner, "label_balance", 0.5),
        concat_balance=real(inner, "concat_balance", 0.5),
        residual_balance=real(inner, "res_balance", 0.3),
        attention_balance=real(inner, "attn_balance", 0.3),
        clip=real(inner, "clip_act", 256.0),
        dropout=real(inner, "dropout", 0.0),
    )


def edm2_shapes(network: EDM2, channels: int) -> Mapping[str, object]:
    """The shapes of the network's parameters, by `jax.eval_shape`."""
    size = 2 ** (len(network.channel_mults) - 1)
    return jax.eval_shape(lambda key: init_params(network, key, (size, size, channels), {}), jax.random.key(0))


def edm2_names(network: EDM2, size: int) -> Origins:
    """The origins of the parameters, for images of this size."""
    last = f"dec.{side(size, len(network.channel_mults) - 1)}_in"
    tops = {
        "conv_in": f"enc.{side(size, 0)}_conv",
        "conv_out": "out_conv",
        "out_gain": "out_gain",
        "noise": "emb_noise",
        "label": "emb_label",
        "middle_0": f"{last}0",
        "middle_1": f"{last}1",
    }

    def module(top: str) -> str:
        match = BLOCK.fullmatch(top)
        if match is None:
            return tops[top]
        half, level, which, _ = match.groups()
        there = int(level) + {"down": 1, "up": -1}.get(which, 0)
        return f"{half[:3]}.{side(size, there)}_{which if which in ('down', 'up') else f'block{which}'}"

    def origin(path: Where, shape: Shape) -> Origin:
        inside = [INSIDE[part] for part in path[1:] if part in INSIDE]
        name = ".".join([module(path[0]), *inside, *([torch_name(path[-1:])] if path[-1] == "kernel" else [])])
        heads = shape[-1] // 3 // network.head_channels
        return Origin((name,), order=by_kind(heads, network.head_channels) if "qkv" in path else None)

    return origin
