"""What published files call the parameters of the U-Net: diffusers' names, and those of the original programs.

    ours                                   diffusers                                original
    encoder_0_1/conv_0/kernel              down_blocks.0.resnets.1.conv1.weight     input_blocks.2.0.in_layers.2.weight
    encoder_0_1_attention/norm/scale       down_blocks.0.attentions.1.group_norm.   input_blocks.2.1.norm.weight
    encoder_0_down/conv/kernel             down_blocks.0.downsamplers.0.conv.       input_blocks.3.0.op.weight
    decoder_0_2/skip/kernel                up_blocks.1.resnets.2.conv_shortcut.     output_blocks.5.0.skip_connection.

for two levels of two blocks each. The original programs (improved-diffusion, guided-diffusion, latent-diffusion and
what came of it) number all blocks in a row. Inside a transformer's blocks the names are the same in both.
"""

import re
from collections.abc import Mapping

from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained.exchange import Origin, Origins, Shape
from jaxdiff.pretrained.weights import Where, torch_name

BLOCK = re.compile(r"(encoder|decoder)_(\d+)_(\d+|down|up)(_attention)?")

IN_TRANSFORMER: Mapping[str, str] = {
    "norm_self": "norm1",
    "self_attention": "attn1",
    "norm_cross": "norm2",
    "cross_attention": "attn2",
    "norm_mlp": "norm3",
    "mlp_0": "ff.net.0.proj",
    "mlp_1": "ff.net.2",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "out": "to_out.0",
}
"""Inside the blocks of a transformer."""

DIFFUSERS: Mapping[str, str] = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "embedding": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "skip": "conv_shortcut",
    "norm": "group_norm",
    "out": "to_out.0",
    "norm_in": "norm",
    "dense_0": "linear_1",
    "dense_1": "linear_2",
}
"""Inside a module, where the name is another."""

DIFFUSERS_MODULES: Mapping[str, str] = {
    "embedding": "time_embedding",
    "pooled": "add_embedding",
    "conv_in": "conv_in",
    "middle_0": "mid_block.resnets.0",
    "middle_attention": "mid_block.attentions.0",
    "middle_1": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}

ORIGINAL: Mapping[str, str] = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "skip": "skip_connection",
    "out": "proj_out",
    "norm_in": "norm",
    "dense_0": "0",
    "dense_1": "2",
}

ORIGINAL_MODULES: Mapping[str, str] = {
    "embedding": "time_embed",
    "pooled": "label_emb.0",
    "conv_in": "input_blocks.0.0",
    "middle_0": "middle_block.0",
    "middle_attention": "middle_block.1",
    "middle_1": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def diffusers_names(network: UNet) -> Origins:
    """The origins of the parameters in a file of diffusers' `UNet2DModel` or `UNet2DConditionModel`.

    They raise ValueError for a parameter that those networks have not.
    """
    levels = len(network.channel_mults)

    def module(top: str) -> str:
        match = BLOCK.fullmatch(top)
        if top == "pooled" and not network.size_features:
            return "class_embedding"
        if match is None:
            return _known(DIFFUSERS_MODULES, top)
        side, level, which, attention = match.groups()
        block = f"down_blocks.{level}" if side == "encoder" else f"up_blocks.{levels - 1 - int(level)}"
        if which in ("down", "up"):
            return f"{block}.{which}samplers.0"
        return f"{block}.{'attentions' if attention else 'resnets'}.{which}"

    def origin(path: Where, shape: Shape) -> Origin:
        if path[1] == "label":
            return Origin(("class_embedding.weight",))
        if path[1] == "qkv":
            return Origin(tuple(f"{module(path[0])}.to_{part}.{torch_name(path[2:])}" for part in "qkv"))
        return _named(module(path[0]), path, shape, DIFFUSERS)

    return origin


def original_names(network: UNet, heads_first: bool = False) -> Origins:
    """The origins of the parameters in a file of the original programs.

    `heads_first`: the outputs of attention's first layer are sorted by head, then into queries, keys and values, as in
    improved-diffusion and in guided-diffusion without its `use_new_attention_order`; else the other way round.
    Raises ValueError for a network whose `attention_resolutions` leave open which levels have attention.
    """
    if network.attention_resolutions:
        raise ValueError(
            f"attention_resolutions = {network.attention_resolutions} leaves open which levels have attention: name "
            "the levels (--network.attention-levels)"
        )
    levels, per_level = len(network.channel_mults), network.blocks_per_level + 1

    def attends(level: int) -> bool:
        return level in network.attention_levels or any(network.transformer_depths[level : level + 1])

    def module(top: str) -> str:
        match = BLOCK.fullmatch(top)
        if match is None:
            return _known(ORIGINAL_MODULES, top)
        side, level, which, attention = match.groups()
        level = int(level)
        if side == "encoder":
            number = 1 + level * per_level + (network.blocks_per_level if which == "down" else int(which))
            return f"input_blocks.{number}.{1 if attention else 0}"
        last = which == "up"  # it stands behind the level's last block and that one's attention
        number = (levels - 1 - level) * per_level + (network.blocks_per_level if last else int(which))
        place = 1 + attends(level) if last else 1 if attention else 0
        return f"output_blocks.{number}.{place}"

    def origin(path: Where, shape: Shape) -> Origin:
        if path[1] == "label":
            return Origin(("label_emb.weight",))
        if path[0].endswith("_down") and path[1] == "conv":
            return Origin((f"{module(path[0])}.op.{torch_name(path[2:])}",))
        found = _named(module(path[0]), path, shape, ORIGINAL)
        if path[1] == "qkv":
            heads = _heads(network, shape[-1] // 3)
            order = _by_kind(heads, shape[-1] // 3 // heads) if heads_first else None
            return found._replace(ones=1, order=order)
        single = path[0].endswith("_attention") and path[1:] == ("out", "kernel")
        return found._replace(ones=1) if single else found

    return origin


def _known(modules: Mapping[str, str], top: str) -> str:
    if top not in modules:
        raise ValueError(f"the U-Net's part {top!r} has no place in this format, whose networks have no such part")
    return modules[top]


def _named(module: str, path: Where, shape: Shape, names: Mapping[str, str]) -> Origin:
    """The origin by a table of names, with those of a transformer's blocks beneath "blocks"."""
    if "blocks" not in path:
        return Origin((".".join([module, *(names.get(part, part) for part in path[1:-1]), torch_name(path[-1:])]),))
    inside = ".".join([*(IN_TRANSFORMER[part] for part in path[2:-1]), torch_name(path[-1:])])
    return Origin(tuple(f"{module}.transformer_blocks.{i}.{inside}" for i in range(shape[0])), stacked=True)


def _heads(network: UNet, features: int) -> int:
    return features // network.head_channels if network.head_channels else network.heads


def _by_kind(heads: int, channels: int) -> tuple[int, ...]:
    """Of outputs sorted by head, kind and channel: their places when sorted by kind, head and channel."""
    return tuple(
        (head * 3 + kind) * channels + channel
        for kind in range(3)
        for head in range(heads)
        for channel in range(channels)
    )
