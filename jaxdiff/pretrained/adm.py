"""The original files of improved-diffusion and guided-diffusion (ADM): U-Nets, and classifiers of noisy images.

The shapes of the tensors tell the network but for its heads, and neither the order of attention's outputs nor the noise
schedule: these come from a table of the published files, by the network's shape, or from the user (`Ways`).
Sources: arXiv:2102.09672, App. A; arXiv:2105.05233, App. I, and the published flags of the two programs.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxdiff.core.betas import CosineBetas, LinearBetas
from jaxdiff.core.paths import DiscreteVP
from jaxdiff.core.predictions import Eps, PathTime
from jaxdiff.core.types import Params
from jaxdiff.networks.apply import init_params
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import exchange
from jaxdiff.pretrained.exchange import Origin, Origins, Shape
from jaxdiff.pretrained.unet import dump_named, load_named
from jaxdiff.pretrained.unet_names import original_names
from jaxdiff.pretrained.weights import Where, torch_name

FIRST, LABELS, POOL = "input_blocks.0.0.weight", "label_emb.weight", "out.2."


class Ways(NamedTuple):
    """What a file does not tell of its network."""

    heads: int = 1
    """Attention heads; not used where `head_channels` is set."""
    head_channels: int = 0
    """Channels of an attention head; 0 to set `heads` instead."""
    heads_first: bool = True
    """Attention's outputs are sorted by head first; False: `use_new_attention_order`."""
    cosine: bool = False
    """The cosine schedule and not DDPM's linear one."""
    steps: int = 1000
    """Steps of the chain."""
    rescaled: bool = False
    """The network is told the time in thousandths of the chain, not in steps."""
    size: int = 64
    """Side of the images."""


class _Shape(NamedTuple):
    channels: int
    mults: tuple[int, ...]
    blocks: int
    resample_blocks: bool


PUBLISHED: Mapping[_Shape, Ways] = {
    # improved-diffusion
    _Shape(128, (1, 2, 2, 2), 3, False): Ways(4, cosine=True, steps=4000, rescaled=True, size=32),
    _Shape(128, (1, 2, 3, 4), 3, False): Ways(4, cosine=True, steps=4000, rescaled=True, size=64),
    _Shape(192, (1, 2, 3, 4), 3, False): Ways(4, cosine=True, steps=4000, size=64),
    _Shape(128, (1, 1, 2, 2, 4, 4), 2, False): Ways(1, size=256),
    # guided-diffusion
    _Shape(192, (1, 2, 3, 4), 3, True): Ways(head_channels=64, heads_first=False, cosine=True, size=64),
    _Shape(256, (1, 1, 2, 3, 4), 2, True): Ways(4, size=128),
    _Shape(256, (1, 1, 2, 2, 4, 4), 2, True): Ways(head_channels=64, size=256),
    _Shape(128, (1, 2, 2, 4, 4, 8, 8), 2, True): Ways(head_channels=64, size=512),
    # its classifiers
    _Shape(128, (1, 2, 3, 4), 4, True): Ways(head_channels=64, cosine=True, size=64),
    _Shape(128, (1, 1, 2, 3, 4), 2, True): Ways(head_channels=64, size=128),
    _Shape(128, (1, 1, 2, 2, 4, 4), 2, True): Ways(head_channels=64, size=256),
    _Shape(64, (1, 2, 2, 4, 4, 8, 8), 2, True): Ways(head_channels=64, size=512),
}
"""The published files by the shape of their network."""


def recognised(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors have the names of these programs' networks, and no transformers."""
    return FIRST in arrays and "out.0.weight" in arrays and not any("transformer_blocks" in name for name in arrays)


def published_ways(network: UNet | Classifier) -> Ways:
    """What the published files of this shape of network do. Raises ValueError where there is none."""
    unet = network.encoder if isinstance(network, Classifier) else network
    shape = _Shape(unet.channels, unet.channel_mults, unet.blocks_per_level, unet.resample_blocks)
    if shape not in PUBLISHED:
        raise ValueError(
            f"no published network has {shape.channels} channels times {shape.mults} and {shape.blocks} blocks a level:"
            " say what the file does not tell, such as --head-channels 64 or --heads 4"
        )
    return PUBLISHED[shape]


def adm_config(arrays: Mapping[str, np.ndarray], ways: Ways | None = None) -> UNet | Classifier:
    """The network of such a file, from the shapes of its tensors; `ways` None: those of the published file.

    Raises ValueError for an upsampler, or where the tensors do not tell one network.
    """
    unet = _unet(arrays)
    network = unet
    if "out.2.positional_embedding" in arrays:
        network = Classifier(unet, num_classes=len(arrays["out.2.c_proj.weight"]), pool_head_channels=64)
    elif "out.3.weight" in arrays:
        network = Classifier(unet, num_classes=len(arrays["out.3.weight"]), pool_head_channels=0)
    ways = ways or published_ways(network)
    unet = unet.clone(heads=ways.heads, head_channels=ways.head_channels)
    return network.clone(encoder=unet) if isinstance(network, Classifier) else unet


def chain_of(ways: Ways) -> tuple[DiscreteVP, Eps]:
    """The noise schedule, and the prediction, whose network counts the steps from 0."""
    chain = DiscreteVP(ways.steps, CosineBetas() if ways.cosine else LinearBetas())
    scale = 1000 / ways.steps if ways.rescaled else 1.0
    return chain, Eps(PathTime(chain, scale=scale, offset=-scale))


def load(arrays: Mapping[str, np.ndarray], network: UNet | Classifier, heads_first: bool = True) -> Params:
    """The parameters of the network.

    Raises ValueError that names every tensor which is missing, left over or misshapen.
    """
    if isinstance(network, UNet):
        return load_named(arrays, network, original_names(network, heads_first), LABELS, FIRST)
    apart = dict(arrays)
    side = 1
    if network.pool_head_channels:
        for kind in ("weight", "bias"):
            if (whole := apart.pop(f"{POOL}qkv_proj.{kind}", None)) is not None:
                apart[f"{POOL}q.{kind}"], apart[f"{POOL}kv.{kind}"] = np.split(whole, [len(whole) // 3])
        if (table := apart.get(f"{POOL}positional_embedding")) is not None:
            apart[f"{POOL}positional_embedding"] = table.T
            side = math.isqrt(max(len(table.T) - 1, 1))
    shapes = classifier_shapes(network, arrays[FIRST].shape[1], side)
    return exchange.load(apart, shapes, _classifier_names(network, heads_first))


def dump(params: Params, network: UNet | Classifier, heads_first: bool = True) -> dict[str, np.ndarray]:
    """The tensors of the file: the inverse of `load`."""
    if isinstance(network, UNet):
        return dump_named(params, original_names(network, heads_first), LABELS)
    arrays = exchange.dump(params, _classifier_names(network, heads_first))
    if network.pool_head_channels:
        for kind in ("weight", "bias"):
            parts = [arrays.pop(f"{POOL}{part}.{kind}") for part in ("q", "kv")]
            arrays[f"{POOL}qkv_proj.{kind}"] = np.concatenate(parts)
        arrays[f"{POOL}positional_embedding"] = arrays[f"{POOL}positional_embedding"].T
    return arrays


def classifier_shapes(network: Classifier, channels: int, side: int) -> Mapping[str, object]:
    """The shapes of its parameters for images whose last feature maps have this side, by `jax.eval_shape`."""
    size = side * 2 ** (len(network.encoder.channel_mults) - 1)
    return jax.eval_shape(lambda key: init_params(network, key, (size, size, channels), {}), jax.random.key(0))


def _classifier_names(network: Classifier, heads_first: bool) -> Origins:
    encoder = original_names(network.encoder, heads_first)

    def origin(path: Where, shape: Shape) -> Origin:
        if path[0] == "encoder":
            return encoder(path[1:], shape)
        if path == ("pool", "positions"):
            return Origin((f"{POOL}positional_embedding",))
        if path[0] == "pool":
            module = POOL + ("c_proj" if path[1] == "out" else path[1])
            return Origin((f"{module}.{torch_name(path[2:])}",), ones=1)
        return Origin((f"out.{0 if path[0] == 'norm_out' else 3}.{torch_name(path[1:])}",), ones=2)

    return origin


def _unet(arrays: Mapping[str, np.ndarray]) -> UNet:
    """The U-Net, or the encoder of a classifier, without its heads."""
    for name in (FIRST, "time_embed.0.weight"):
        if name not in arrays or arrays[name].ndim < 2:
            raise ValueError(f"weights of another network: {name} is missing, or is no layer")
    channels, inputs, *_ = arrays[FIRST].shape
    widths, blocks, levels, plain = _levels(arrays)
    if any(width % channels for width in widths):
        raise ValueError(f"levels of {widths} channels are not multiples of the first convolution's {channels}")
    outputs = len(arrays["out.2.weight"]) if "out.2.weight" in arrays else inputs
    if inputs == 6 or outputs not in (inputs, 2 * inputs):
        raise ValueError(f"{inputs} input and {outputs} output channels: an upsampler, which is not supported")
    embedding, features = arrays["time_embed.0.weight"].shape
    modulation, first = (arrays.get(f"input_blocks.1.0.{name}.weight") for name in ("emb_layers.1", "in_layers.2"))
    if embedding % channels or modulation is None or first is None:
        raise ValueError("weights of another network: its first block is missing, or its embedding is no multiple")
    return UNet(
        channels=channels,
        channel_mults=tuple(width // channels for width in widths),
        blocks_per_level=blocks,
        attention_resolutions=(),
        attention_levels=levels,
        scale_shift=len(modulation) == 2 * len(first),
        resample_blocks=not plain,
        symmetric_padding=True,
        embedding_channels=features,
        embedding_mult=embedding // channels,
        cosine_first=True,
        num_classes=len(arrays[LABELS]) if LABELS in arrays else 0,
        learned_variance=outputs == 2 * inputs,
        norm_groups=32,
        init_gain=1 / 3,
    )


class _Block(NamedTuple):
    width: int
    attends: bool
    plain: bool


def _levels(arrays: Mapping[str, np.ndarray]) -> tuple[list[int], int, tuple[int, ...], bool]:
    """Widths of the levels, blocks a level, levels with attention, whether plain convolutions halve the size.

    A residual block that halves the size looks like any other, so every division of the row of blocks into levels is
    tried: within a level all blocks agree, and the last before the next one has its width and no attention.
    """
    row = []
    while (number := len(row) + 1) and any(name.startswith(f"input_blocks.{number}.") for name in arrays):
        plain = f"input_blocks.{number}.0.op.weight"
        kernel = arrays.get(plain, arrays.get(f"input_blocks.{number}.0.in_layers.2.weight"))
        if kernel is None:
            raise ValueError(f"weights of another network: input_blocks.{number} is no residual block")
        row.append(_Block(len(kernel), f"input_blocks.{number}.1.norm.weight" in arrays, plain in arrays))
    fitting = [per for per in range(2, len(row) + 2) if (len(row) + 1) % per == 0 and _fits(arrays, row, per)]
    if len(fitting) != 1:
        raise ValueError(f"its {len(row)} encoder blocks fall into levels in {len(fitting)} ways: not supported")
    per = fitting[0]
    first = row[::per]
    attention = tuple(level for level, block in enumerate(first) if block.attends)
    return [block.width for block in first], per - 1, attention, any(block.plain for block in row)


def _fits(arrays: Mapping[str, np.ndarray], row: list[_Block], per: int) -> bool:
    levels = [row[start : start + per] for start in range(0, len(row), per)]
    downs, above = [level[-1] for level in levels[:-1]], [level[0] for level in levels[:-1]]
    same = all(block == level[0] for level in levels for block in level[: per - 1])
    shrinking = all(a.width == b.width and not b.attends for a, b in zip(above, downs, strict=True))
    plain = {down.plain for down in downs}
    decoder = [name for name in arrays if name.startswith("output_blocks.")]
    growing = True
    if decoder and downs:
        last = f"output_blocks.{per - 1}.{1 + levels[-1][0].attends}."
        growing = any(name.startswith(last) for name in decoder)
    return same and shrinking and growing and len(plain) <= 1 and not any(level[0].plain for level in levels)


def size_of(arrays: Mapping[str, np.ndarray], network: UNet | Classifier, ways: Ways) -> int:
    """Side of the images: a classifier's positions tell it, else `ways`."""
    if isinstance(network, Classifier) and network.pool_head_channels:
        places = arrays["out.2.positional_embedding"].shape[-1] - 1
        return math.isqrt(places) * 2 ** (len(network.encoder.channel_mults) - 1)
    return ways.size
