"""DiT's published weights: diffusers' `DiTTransformer2DModel`, and the original files of DiT and SiT.

DiT (`DiT-XL-2-256x256.pt`) predicts the noise, and a variance in the second half of the channels, at the discrete times
0 .. 999 of DDPM's linear betas. diffusers computes two things otherwise than the original network (`dit_config`): the
sinusoids of the time, and the epsilon of a norm. It also saves the embedders of time and label once for each block.

SiT (`SiT-XL-2-256.pt`) has the same network and names, but its time runs from noise, 0, to data, 1, and it predicts
``x0 - eps`` on the straight path. As `load_sit` gives it, the last layer negated and without the second half of the
channels, which SiT computes and drops, that is ``Flow(PathTime(Linear(), scale=-1.0, offset=1.0))`` on `Linear()`.
"""

from collections.abc import Mapping

import numpy as np

from jaxdiff.core.types import Params
from jaxdiff.networks.dit import DiT, sincos_positions
from jaxdiff.pretrained import rows as tables
from jaxdiff.pretrained.fields import Json, check, doubled, real, whole
from jaxdiff.pretrained.rows import AS_IT_IS, COSINE_FIRST, Row, channels_of, patches, shapes_of

BLOCK = "transformer_blocks.{}."
READ = (
    "attention_head_dim",
    "in_channels",
    "norm_eps",
    "norm_num_groups",  # of another kind of input
    "num_attention_heads",
    "num_embeds_ada_norm",
    "num_layers",
    "out_channels",
    "patch_size",
    "sample_size",
)
ONLY = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_type": ("default",),
    "caption_channels": (None,),
    "cross_attention_dim": (None,),
    "double_self_attention": (False,),
    "dropout": (0,),
    "norm_elementwise_affine": (False,),
    "norm_type": ("ada_norm_zero",),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "upcast_attention": (False,),
    "use_linear_projection": (False,),
}

DIFFUSERS_PERIOD = 10000.0 ** (128 / 127)
"""Longest period of its sinusoids of the time: the last of the 128 is 10000, where the original goes on to the next."""

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Of the published sizes S, B, L and XL by their width: an original file does not say."""

PREFIXES = ("ema.", "module.")
"""Before the names in an original file of a whole training; the average is what is sampled with."""

CHECKPOINT = ("model.", "opt.", "args.")
"""What else lies in such a file."""


def dit_config(json: Json) -> DiT:
    """diffusers' network of a published config.json. Raises ValueError that names a field which it cannot honour."""
    check(json, READ, ONLY)
    heads = whole(json, "num_attention_heads", 16)
    return DiT(
        patch=whole(json, "patch_size", 2),
        width=heads * whole(json, "attention_head_dim", 72),
        depth=whole(json, "num_layers", 28),
        heads=heads,
        num_classes=whole(json, "num_embeds_ada_norm", 1000),
        learned_variance=doubled(json, whole(json, "in_channels", 4)),
        max_period=DIFFUSERS_PERIOD,
        mlp_norm_eps=real(json, "norm_eps", 1e-5),
    )


def config_json(network: DiT, channels: int, size: int = 32) -> dict[str, object]:
    """The config.json with which diffusers reads what `dump` gives: the inverse of `dit_config`.

    `channels` are those of the latents, and `size` their height and width. A network whose `max_period` is not
    diffusers' is told slightly different sinusoids there.
    """
    return {
        "_class_name": "DiTTransformer2DModel",
        "attention_head_dim": network.width // network.heads,
        "in_channels": channels,
        "norm_eps": network.mlp_norm_eps,
        "num_attention_heads": network.heads,
        "num_embeds_ada_norm": network.num_classes,
        "num_layers": network.depth,
        "out_channels": channels * (2 if network.learned_variance else 1),
        "patch_size": network.patch,
        "sample_size": size,
    }


def recognised(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors have the names of an original file of DiT or SiT."""
    return "y_embedder.embedding_table.weight" in _plain(arrays)


def original_config(arrays: Mapping[str, np.ndarray]) -> DiT:
    """The network of an original file of DiT or SiT in one of the published sizes, from the shapes of its arrays.

    Raises ValueError for a file of another kind or another width.
    """
    arrays = _plain(arrays)
    names = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"weights of another network: {missing[0]} is missing")
    kernel, table, last = (arrays[name] for name in names)
    if kernel.ndim != 4 or kernel.shape[0] not in HEADS:
        raise ValueError(f"{names[0]} is {list(kernel.shape)}: allowed are the widths {', '.join(map(str, HEADS))}")
    width, inputs, patch, _ = kernel.shape
    return DiT(
        patch=patch,
        width=width,
        depth=len({name.split(".")[1] for name in arrays if name.startswith("blocks.")}),
        heads=HEADS[width],
        num_classes=table.shape[0] - 1,
        learned_variance=last.shape[0] == 2 * inputs * patch**2,
    )


def original_size(arrays: Mapping[str, np.ndarray], network: DiT) -> tuple[int, int]:
    """Side and channels of the latents of an original file, whose fixed positions tell the side; 32 without them."""
    arrays = _plain(arrays)
    table, channels = arrays.get("pos_embed"), arrays["x_embedder.proj.weight"].shape[1]
    side = 32 if table is None else network.patch * round(np.sqrt(table.size // network.width))
    return side, channels


def load(arrays: Mapping[str, np.ndarray], network: DiT) -> Params:
    """Parameters from the tensors of diffusers' file or of an original one, which are told apart by their names.

    Raises ValueError where they are not exactly this network's, or the embedders of two blocks differ.
    """
    arrays = _plain(arrays)
    original = "x_embedder.proj.weight" in arrays
    if original:
        arrays = _without_positions(arrays, network)
    channels = channels_of(arrays, "x_embedder.proj.weight" if original else "pos_embed.proj.weight")
    table = original_rows(network) if original else rows(network)
    return tables.load(arrays, shapes_of(network, channels, network.patch), table)


def load_sit(arrays: Mapping[str, np.ndarray], network: DiT) -> Params:
    """Parameters of an original file of SiT for a network without learned variance, which predicts ``eps - x0``.

    Raises ValueError as `load`.
    """
    arrays, kind = _plain(arrays), "final_layer.linear."
    outputs = channels_of(arrays, "x_embedder.proj.weight")

    def velocity(array: np.ndarray) -> np.ndarray:
        every = array.reshape(network.patch**2, -1, *array.shape[1:])
        return -every[:, :outputs].reshape(-1, *array.shape[1:])

    last = {name: velocity(array) for name, array in arrays.items() if name.startswith(kind) and array.ndim in (1, 2)}
    return load({**arrays, **last}, network)


def dump(params: Params, network: DiT) -> dict[str, np.ndarray]:
    """The tensors of diffusers' file: what `load` was given, bit for bit, the embedders once for each block again.

    Raises ValueError for a network that diffusers does not know: rotary positions, normalised queries, no classes.
    """
    if network.positions != "sincos" or network.qk_norm or not network.num_classes or network.mlp_ratio != 4:
        raise ValueError("diffusers has DiT with sincos positions, classes and an mlp_ratio of 4, without qk_norm only")
    return tables.dump(params, rows(network))


def rows(network: DiT) -> tuple[Row, ...]:
    """What diffusers calls the layers of this network."""
    each, embedder = range(network.depth), f"{BLOCK}norm1.emb."
    layers = {
        "modulation": ("norm1.linear",),
        "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "out": ("attn1.to_out.0",),
        "mlp_0": ("ff.net.0.proj",),
        "mlp_1": ("ff.net.2",),
    }
    return (
        Row("patches", ("pos_embed.proj",), layout=patches(network.patch)),
        Row("noise_0", (embedder + "timestep_embedder.linear_1",), each, COSINE_FIRST, copies=True),
        Row("noise_1", (embedder + "timestep_embedder.linear_2",), each, copies=True),
        Row("label", (embedder + "class_embedder.embedding_table",), each, AS_IT_IS, copies=True),
        *(Row(f"blocks.{ours}", tuple(BLOCK + name for name in names), each) for ours, names in layers.items()),
        Row("modulation_out", ("proj_out_1",)),
        Row("out", ("proj_out_2",)),
    )


def original_rows(network: DiT) -> tuple[Row, ...]:
    """What the original programs call the layers of this network."""
    layers = {
        "modulation": "adaLN_modulation.1",
        "qkv": "attn.qkv",
        "out": "attn.proj",
        "mlp_0": "mlp.fc1",
        "mlp_1": "mlp.fc2",
    }
    return (
        Row("patches", ("x_embedder.proj",), layout=patches(network.patch)),
        Row("noise_0", ("t_embedder.mlp.0",), layout=COSINE_FIRST),
        Row("noise_1", ("t_embedder.mlp.2",)),
        Row("label", ("y_embedder.embedding_table",), layout=AS_IT_IS),
        *(Row(f"blocks.{ours}", (f"blocks.{{}}.{name}",), range(network.depth)) for ours, name in layers.items()),
        Row("modulation_out", ("final_layer.adaLN_modulation.1",)),
        Row("out", ("final_layer.linear",)),
    )


def _plain(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the network alone, by their names in it."""
    found = {name: array for name, array in arrays.items() if not name.startswith(CHECKPOINT)}
    for prefix in PREFIXES:
        found = {name.removeprefix(prefix): array for name, array in found.items()}
    return found


def _without_positions(arrays: Mapping[str, np.ndarray], network: DiT) -> dict[str, np.ndarray]:
    """The arrays but the fixed positions, which are computed here. Raises ValueError where they are others."""
    rest = dict(arrays)
    table = rest.pop("pos_embed", None)
    if table is not None:
        side = round(np.sqrt(table.size // network.width))
        ours = sincos_positions(side, side, network.width)
        if table.shape != (1, *ours.shape) or not np.allclose(table[0], ours, atol=1e-3):
            raise ValueError(f"pos_embed of shape {list(table.shape)}: not the fixed positions of a square image")
    return rest
