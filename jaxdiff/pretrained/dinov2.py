"""DINOv2's published weights: the original files (`dinov2_vitl14_pretrain.pth`) and those of transformers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from jaxdiff.core.types import Params
from jaxdiff.networks import dinov2
from jaxdiff.networks.dinov2 import DINOv2
from jaxdiff.networks.feature_net import FeatureNet, Features, resized
from jaxdiff.networks.pillow_resize import PILLOW_BICUBIC
from jaxdiff.pretrained.vit import Rules, join, rename, stacked_layout
from jaxdiff.pretrained.weights import fill, read_weights, sha256

NETWORKS: Mapping[str, DINOv2] = {
    "dinov2-s14": dinov2.DINOV2_S14,
    "dinov2-b14": dinov2.DINOV2_B14,
    "dinov2-l14": dinov2.DINOV2_L14,
    "dinov2-g14": dinov2.DINOV2_G14,
}
"""By the names of `features.py`; FD-DINOv2 is defined with "dinov2-l14"."""

FILES = "dinov2_vit?14_pretrain.pth, or transformers' model.safetensors"

SIZE = 224
"""Pixels a side, as FD-DINOv2 has it (arXiv:2306.04675), although the positions are those of 518."""

BLOCKS: Rules = (
    (r"\.norm1\.", ".norm_0."),
    (r"\.norm2\.", ".norm_1."),
    (r"\.mlp\.(fc1|w12|weights_in)\.", ".mlp_0."),
    (r"\.mlp\.(fc2|w3|weights_out)\.", ".mlp_1."),
)

ORIGINAL: Rules = (
    ("^cls_token$", "cls"),
    ("^pos_embed$", "positions"),
    ("^register_tokens$", "registers"),
    ("^mask_token$", ""),  # only for training the backbone
    (r"^patch_embed\.proj\.", "patches."),
    (r"^(blocks\.\d+)\.attn\.qkv\.", r"\1.qkv."),
    (r"^(blocks\.\d+)\.attn\.proj\.", r"\1.out."),
    (r"^(blocks\.\d+)\.ls1\.gamma$", r"\1.scale_0"),
    (r"^(blocks\.\d+)\.ls2\.gamma$", r"\1.scale_1"),
)

TRANSFORMERS: Rules = (
    (r"^dinov2\.", ""),  # where the backbone is a part of another model
    (r"^embeddings\.cls_token$", "cls"),
    (r"^embeddings\.position_embeddings$", "positions"),
    (r"^embeddings\.register_tokens$", "registers"),
    (r"^embeddings\.mask_token$", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patches."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", r".\1."),
    (r"\.attention\.output\.dense\.", ".out."),
    (r"\.layer_scale1\.lambda1$", ".scale_0"),
    (r"\.layer_scale2\.lambda1$", ".scale_1"),
)


def load_dinov2(tensors: Mapping[str, np.ndarray], network: DINOv2) -> Params:
    """The parameters of `network` from the tensors of a file in either naming.

    Raises ValueError where they are not exactly those of this network.
    """
    flat = join(rename(tensors, ORIGINAL + TRANSFORMERS + BLOCKS))
    for name in ("cls", "positions", "registers"):
        if name in flat and flat[name].ndim == 3:
            flat[name] = flat[name][0]
    image = jax.ShapeDtypeStruct((1, network.patch, network.patch, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    return fill(flat, shapes, layout=stacked_layout)


def open_dinov2(spec: str, path: Path) -> FeatureNet:
    """The backbone of `NETWORKS`, its features the normalised class token. Raises ValueError for another file."""
    network = NETWORKS[spec]
    params = load_dinov2(read_weights(path), network)
    return FeatureNet(spec, sha256(path), PILLOW_BICUBIC.name, SIZE, network.width, params, forward(network))


def forward(network: DINOv2) -> Callable[[Params, UInt8[Array, "b h w c"]], Features]:
    """The function from (params, images) to "features" [b, width]."""

    def apply(params: Params, images: UInt8[Array, "b h w c"]) -> Features:
        pixels = resized(images, PILLOW_BICUBIC, SIZE) / 255
        normal = (pixels - jnp.asarray(dinov2.MEAN)) / jnp.asarray(dinov2.STD)
        return {"features": cast(dinov2.Features, network.apply({"params": params}, normal)).cls}

    return apply
