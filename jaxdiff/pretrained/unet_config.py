"""The config.json of diffusers' U-Nets, read and written: ours that is the same network.

A field that asks for something which our network has not is refused by its name, and so is an attribute of ours that
diffusers' networks have not. What a file leaves out is diffusers' default.
"""

from typing import Literal

from jaxdiff.networks.text_condition import SIZES
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained.unet_defaults import CONDITION, DEFAULTS, ONLY, PLAIN, SILENT, Json

AS_HERE = (
    "patch",
    "residual_input",
    "resample_taps",
    "resample_projection",
    "skip_scale",
    "embedding_channels",
    "embedding_mult",
    "fourier_scale",
    "label_before_mlp",
    "augment_dim",
    "fourier_features",
    "add_input",
    "decoder_attention",
)
"""Attributes that must be as they are by default: diffusers' networks have nothing else."""


def unet_config(json: Json, dtype: Literal["float32", "bfloat16"] = "float32") -> UNet:
    """The network of a config.json. Raises ValueError that names a field which it cannot honour."""
    name = str(json.get("_class_name", CONDITION if "cross_attention_dim" in json else PLAIN))
    if name not in DEFAULTS:
        raise _refused("_class_name", name, f"{PLAIN} or {CONDITION}")
    fields = {**DEFAULTS[name], **{key: value for key, value in json.items() if key in DEFAULTS[name]}}
    for key in json.keys() - fields.keys() - set(SILENT):
        if not key.startswith("_"):
            _one_of(json, key, *ONLY.get(key, (None,)))

    widths = _whole(fields, "block_out_channels")
    if any(width % widths[0] for width in widths):
        raise _refused("block_out_channels", widths, "multiples of the first")
    kinds, with_resnets = _levels(fields)
    (inputs,), (outputs,) = _whole(fields, "in_channels"), _whole(fields, "out_channels")
    if outputs not in (inputs, 2 * inputs):
        raise _refused("out_channels", outputs, f"in_channels, {inputs}, or twice as many")
    half = widths[0] // 2
    network = UNet(
        channels=widths[0],
        channel_mults=tuple(width // widths[0] for width in widths),
        blocks_per_level=_whole(fields, "layers_per_block")[0],
        attention_resolutions=(),
        attention_levels=tuple(level for level, kind in enumerate(kinds) if kind == "Attn"),
        dropout=float(str(fields["dropout"])),
        scale_shift=_one_of(fields, "resnet_time_scale_shift", "default", "scale_shift") == "scale_shift",
        resample_blocks=with_resnets,
        symmetric_padding=_one_of(fields, "downsample_padding", 0, 1) == 1,
        max_period=10000.0 ** (half / (half - float(_one_of(fields, "freq_shift", 0, 1) == 1))),
        cosine_first=_one_of(fields, "flip_sin_to_cos", False, True) is True,
        num_classes=0 if fields["num_class_embeds"] is None else _whole(fields, "num_class_embeds")[0],
        learned_variance=outputs == 2 * inputs,
        norm_eps=float(str(fields["norm_eps"])),
        norm_groups=_whole(fields, "norm_num_groups")[0],
        init_gain=1 / 3,
        dtype=dtype,
    )
    return _plain(network, fields) if name == PLAIN else _conditional(network, fields, widths, kinds)


def unet_json(network: UNet, channels: int, size: int, null_label: bool = False) -> dict[str, object]:
    """The config.json with which diffusers makes this network, for images or latents of `channels` and `size` pixels.

    With `null_label` the class after the last one means that there is none, as it does here.
    Raises ValueError that names an attribute which diffusers' networks have not.
    """
    texts = bool(network.text_width)
    _needs(network, UNet(), *AS_HERE)
    levels = range(len(network.channel_mults))
    depths = network.transformer_depths or (0,) * len(levels)
    half = network.channels // 2
    periods = {10000.0 ** (half / (half - shift)): int(shift) for shift in (0.0, 1.0)}
    if network.max_period not in periods:
        raise _unlike("max_period", network.max_period, f"one of {sorted(periods)}")
    widths = [network.channels * mult for mult in network.channel_mults]
    if not network.norm_groups and any(width % 32 or width < 128 for width in widths):
        raise _unlike("norm_groups", 0, "one number for all widths")

    attending = {level for level in levels if size // 2**level in network.attention_resolutions}
    attending |= set(network.attention_levels)
    kinds = ["CrossAttn" if depths[level] else "Attn" if level in attending else "" for level in levels]
    if texts != ("CrossAttn" in kinds) or (texts and "Attn" in kinds):
        raise _unlike(
            "transformer_depths", network.transformer_depths, "with texts the only attention, without them none"
        )
    plain = "Resnet{}sampleBlock2D" if network.resample_blocks else "{}Block2D"
    down, up = ([f"{k}{way}Block2D" if k else plain.format(way) for k in kinds] for way in ("Down", "Up"))
    fields: dict[str, object] = {
        "_class_name": CONDITION if texts else PLAIN,
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels * (2 if network.learned_variance else 1),
        "freq_shift": periods[network.max_period],
        "flip_sin_to_cos": network.cosine_first,
        "down_block_types": down,
        "up_block_types": up[::-1],
        "block_out_channels": widths,
        "layers_per_block": network.blocks_per_level,
        "downsample_padding": int(network.symmetric_padding),
        "dropout": network.dropout,
        "norm_num_groups": network.norm_groups or 32,
        "norm_eps": network.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "num_class_embeds": network.num_classes + null_label if network.num_classes else None,
    }
    return fields | (_texts(network, widths, depths) if texts else _no_texts(network, widths, kinds))


def _plain(network: UNet, fields: Json) -> UNet:
    _one_of(fields, "mid_block_type", "UNetMidBlock2D")
    shifted = (network.norm_groups,) if network.scale_shift else (network.norm_groups, None)
    _one_of(fields, "attn_norm_num_groups", *shifted)  # else its norm is left out
    head_channels = 0 if fields["attention_head_dim"] is None else _whole(fields, "attention_head_dim")[0]
    attention = _one_of(fields, "add_attention", True, False) is True
    return network.clone(middle_attention=attention, head_channels=head_channels)


def _no_texts(network: UNet, widths: list[int], kinds: list[str]) -> dict[str, object]:
    _needs(network, UNet(), "text_pooled", "size_features", "middle_transformer")
    attending = {width for width, kind in zip(widths, kinds, strict=True) if kind}
    attending |= {widths[-1]} if network.middle_attention else set()
    channels = network.head_channels or None
    if not channels and network.heads > 1:
        if len(attending) != 1:
            raise _unlike("heads", network.heads, "1, or --network.head-channels in its place")
        channels = attending.pop() // network.heads
    way = "resnet" if network.resample_blocks else "conv"
    return {
        "downsample_type": way,
        "upsample_type": way,
        "attention_head_dim": channels,
        "attn_norm_num_groups": (network.norm_groups or 32) if network.scale_shift else None,
        "add_attention": network.middle_attention,
    }


def _conditional(network: UNet, fields: Json, widths: tuple[int, ...], kinds: tuple[str, ...]) -> UNet:
    _one_of(fields, "mid_block_type", "UNetMidBlock2DCrossAttn")
    if "Attn" in kinds:
        raise _refused("down_block_types", fields["down_block_types"], "blocks with CrossAttn or without attention")
    # What is called a dimension is a number of heads, and one for each level where their channels are the same.
    heads = _whole(fields, "attention_head_dim")
    each = {width // number for width, number in zip(widths, heads, strict=True)} if len(heads) > 1 else {0}
    if len(each) > 1:
        raise _refused("attention_head_dim", heads, "one number, or as many channels to a head at every level")
    depths = _whole(fields, "transformer_layers_per_block")
    depths = depths * len(widths) if len(depths) == 1 else depths
    pooled, waves = 0, 0
    projected = fields["projection_class_embeddings_input_dim"]
    if _one_of(fields, "addition_embed_type", None, "text_time"):
        _one_of(fields, "freq_shift", 0)
        waves = _whole(fields, "addition_time_embed_dim")[0]
        pooled = _whole(fields, "projection_class_embeddings_input_dim")[0] - SIZES * waves
    if _one_of(fields, "class_embed_type", None, "projection"):
        if waves or network.num_classes:
            raise _refused("class_embed_type", "projection", "null beside classes or sizes")
        pooled, projected = _whole(fields, "projection_class_embeddings_input_dim")[0], None
    if pooled < 0 or (projected is not None and not waves):
        raise _refused("projection_class_embeddings_input_dim", projected, "the channels of a text and of six sizes")
    return network.clone(
        heads=heads[0] if len(heads) == 1 else 1,
        head_channels=each.pop(),
        transformer_depths=tuple(n if kind else 0 for n, kind in zip(depths, kinds, strict=True)),
        middle_transformer=depths[-1],
        linear_projection=_one_of(fields, "use_linear_projection", False, True) is True,
        text_width=_whole(fields, "cross_attention_dim")[0],
        text_null=False,
        text_pooled=pooled,
        size_features=waves,
    )


def _texts(network: UNet, widths: list[int], depths: tuple[int, ...]) -> dict[str, object]:
    _needs(network, UNet(text_null=False), "text_null")
    if not network.middle_transformer or depths[-1] not in (0, network.middle_transformer):
        raise _unlike("middle_transformer", network.middle_transformer, f"the last level's depth, {depths[-1] or 1}")
    head_channels = network.head_channels
    fields: dict[str, object] = {
        "cross_attention_dim": network.text_width,
        "attention_head_dim": [width // head_channels for width in widths] if head_channels else network.heads,
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), network.middle_transformer],
        "use_linear_projection": network.linear_projection,
    }
    if network.size_features:
        _needs(network, UNet(), "max_period")
        fields["addition_embed_type"] = "text_time"
        fields["addition_time_embed_dim"] = network.size_features
    elif network.text_pooled:
        _needs(network, UNet(), "num_classes")
        fields["class_embed_type"] = "projection"
    if network.text_pooled or network.size_features:
        fields["projection_class_embeddings_input_dim"] = network.text_pooled + SIZES * network.size_features
    return fields


def _levels(fields: Json) -> tuple[tuple[str, ...], bool]:
    """(what stands behind each level's residual blocks: "", "Attn" or "CrossAttn"; whether such blocks resample)."""
    down, up = (_names(fields, f"{way}_block_types") for way in ("down", "up"))
    resnets = [fields.get(f"{way}sample_type", "conv") == "resnet" for way in ("down", "up")]
    kinds, ways = [], set()
    for types, word, resnet in ((down, "Down", resnets[0]), (up[::-1], "Up", resnets[1])):
        allowed = {f"{kind}{word}Block2D": (kind, resnet and kind == "Attn") for kind in ("", "Attn", "CrossAttn")}
        allowed[f"Resnet{word}sampleBlock2D"] = ("", True)
        for name in types:
            if name not in allowed:
                raise _refused(f"{word.lower()}_block_types", name, ", ".join(allowed))
        kinds.append(tuple(allowed[name][0] for name in types))
        ways |= {allowed[name][1] for name in types[:-1]}  # the last level's size stays
    if kinds[0] != kinds[1]:
        raise _refused("up_block_types", up, "those of down_block_types the other way round")
    if len(ways) > 1:
        raise _refused("downsample_type", fields.get("downsample_type"), "one that all levels have in common")
    return kinds[0], ways == {True}


def _names(fields: Json, field: str) -> list[str]:
    value = fields[field]
    if not isinstance(value, list | tuple):
        raise _refused(field, value, "a list of names")
    return [str(name) for name in value]


def _whole(fields: Json, field: str) -> tuple[int, ...]:
    """The field's number, or its numbers: one for all levels where these are the same."""
    value = fields[field]
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    whole = tuple(number for number in numbers if isinstance(number, int) and number > 0)
    if not whole or len(whole) != len(numbers):
        raise _refused(field, value, "positive integers")
    if field in ("layers_per_block", "cross_attention_dim") and len(set(whole)) > 1:
        raise _refused(field, value, "the same number for all levels")
    return whole


def _one_of(fields: Json, field: str, *allowed: object) -> object:
    value = fields[field]
    if value not in allowed:
        raise _refused(field, value, " or ".join(repr(one) for one in allowed))
    return value


def _needs(network: UNet, like: UNet, *attributes: str) -> None:
    for name in attributes:
        if getattr(network, name) != getattr(like, name):
            raise _unlike(name, getattr(network, name), str(getattr(like, name)))


def _unlike(attribute: str, value: object, allowed: str) -> ValueError:
    flag = attribute.replace("_", "-")
    return ValueError(f"{attribute} = {value} is not allowed in diffusers' U-Nets: {allowed} (--network.{flag})")


def _refused(field: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"the U-Net's config.json: {field} = {value!r} is not allowed: {allowed}")
