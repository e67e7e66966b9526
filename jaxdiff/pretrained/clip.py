"""CLIP's published weights, in transformers' naming and in OpenAI's (and OpenCLIP's).

A file may hold both towers or one: transformers' `CLIPTextModel`, which is what the text-to-image models ship,
has the names of the text tower in `CLIPModel`, without the projection, and in newer files without "text_model".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxdiff.core.types import Params
from jaxdiff.networks import clip
from jaxdiff.networks.clip import CLIP, TextTower, VisionTower
from jaxdiff.networks.feature_net import FeatureNet, Features, resized
from jaxdiff.networks.pillow_resize import PILLOW_BICUBIC
from jaxdiff.pretrained import both_ways
from jaxdiff.pretrained.both_ways import Pairs, rules
from jaxdiff.pretrained.clip_text import read_tokenizer
from jaxdiff.pretrained.vit import Rules, join, rename, stacked_layout
from jaxdiff.pretrained.weights import fill, read_weights, sha256

NETWORKS: Mapping[str, CLIP] = {
    "clip-b32": clip.CLIP_B32,
    "clip-b16": clip.CLIP_B16,
    "clip-l14": clip.CLIP_L14,
    "clip-l14-336": clip.CLIP_L14_336,
}
"""By the names of `features.py`; CMMD is defined with "clip-l14-336"."""

FILES = "model.safetensors of transformers' CLIPModel"

PAIRS: Pairs = (
    ("vision_model.embeddings.class_embedding", "vision.cls"),
    ("vision_model.embeddings.patch_embedding.", "vision.patches."),
    ("vision_model.embeddings.position_embedding.weight", "vision.positions"),
    ("vision_model.pre_layrnorm.", "vision.norm_in."),
    ("vision_model.post_layernorm.", "vision.norm_out."),
    ("vision_model.encoder.layers.", "vision.blocks."),
    ("visual_projection.", "vision.projection."),
    ("text_model.embeddings.token_embedding.", "text.tokens."),
    ("text_model.embeddings.position_embedding.weight", "text.positions"),
    ("text_model.final_layer_norm.", "text.norm_out."),
    ("text_model.encoder.layers.", "text.blocks."),
    ("text_projection.", "text.projection."),
    (".layer_norm1.", ".norm_0."),
    (".layer_norm2.", ".norm_1."),
    (".self_attn.q_proj.", ".q."),
    (".self_attn.k_proj.", ".k."),
    (".self_attn.v_proj.", ".v."),
    (".self_attn.out_proj.", ".out."),
    (".mlp.fc1.", ".mlp_0."),
    (".mlp.fc2.", ".mlp_1."),
)
"""transformers' names, and ours."""

NUMBERS = ((r"^(vision|text)_model\.embeddings\.position_ids$", ""),)
"""0, 1, 2, ... in older files."""

OPENAI: Rules = (
    ("^(input_resolution|context_length|vocab_size)$", ""),  # numbers, stored beside the weights
    (r"^visual\.class_embedding$", "vision.cls"),
    (r"^visual\.positional_embedding$", "vision.positions"),
    (r"^visual\.conv1\.", "vision.patches."),
    (r"^visual\.ln_pre\.", "vision.norm_in."),
    (r"^visual\.ln_post\.", "vision.norm_out."),
    (r"^visual\.proj$", "vision.projection.matrix"),
    (r"^token_embedding\.", "text.tokens."),
    (r"^positional_embedding$", "text.positions"),
    (r"^ln_final\.", "text.norm_out."),
    (r"^text_projection$", "text.projection.matrix"),
    (r"^visual\.transformer\.resblocks\.", "vision.blocks."),
    (r"^transformer\.resblocks\.", "text.blocks."),
    (r"\.ln_1\.", ".norm_0."),
    (r"\.ln_2\.", ".norm_1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".qkv.\1"),
    (r"\.attn\.out_proj\.", ".out."),
    (r"\.mlp\.c_fc\.", ".mlp_0."),
    (r"\.mlp\.c_proj\.", ".mlp_1."),
)


def load_clip(tensors: Mapping[str, np.ndarray], network: CLIP) -> Params:
    """The parameters of both towers from the tensors of a file in either naming.

    Raises ValueError where they are not exactly those of this network.
    """
    image = jax.ShapeDtypeStruct((1, network.vision.size, network.vision.size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, network.text.length), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image, tokens)["params"]
    return fill(_flat(tensors), shapes, layout=stacked_layout)


def load_vision(tensors: Mapping[str, np.ndarray], tower: VisionTower) -> Params:
    """The parameters of the vision tower alone, from a file of it or of both towers. Raises as `load_clip`."""
    image = jax.ShapeDtypeStruct((1, tower.size, tower.size, 3), jnp.float32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
    return fill(_of_one("vision", tensors), shapes, layout=stacked_layout)


def load_text(tensors: Mapping[str, np.ndarray], tower: TextTower) -> Params:
    """The parameters of the text tower alone, from a file of it or of both towers. Raises as `load_clip`."""
    tokens = jax.ShapeDtypeStruct((1, tower.length), jnp.int32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), tokens)["params"]
    return fill(_of_one("text", tensors), shapes, layout=stacked_layout)


def dump(params: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The tensors of transformers' file of these towers, "vision" or "text" or both: what was loaded, bit for bit."""
    return both_ways.dump(params, PAIRS)


def open_clip(spec: str, path: Path) -> FeatureNet:
    """The vision tower of `NETWORKS`, its features the projected embeddings, not of unit length.

    Raises ValueError for a file of another network.
    """
    tower = NETWORKS[spec].vision
    params = load_vision(read_weights(path), tower)
    return FeatureNet(spec, sha256(path), PILLOW_BICUBIC.name, tower.size, tower.embedding, params, forward(tower))


def forward(tower: VisionTower) -> Callable[[Params, UInt8[Array, "b h w c"]], Features]:
    """The function from (params, images) to "features" [b, embedding]."""

    def apply(params: Params, images: UInt8[Array, "b h w c"]) -> Features:
        pixels = resized(images, PILLOW_BICUBIC, tower.size) / 255
        normal = (pixels - jnp.asarray(clip.MEAN)) / jnp.asarray(clip.STD)
        return {"features": cast(clip.VisionFeatures, tower.apply({"params": params}, normal)).embedding}

    return apply


def open_clip_text(spec: str, path: Path, tokenizer: Path) -> Callable[[Sequence[str]], Float[np.ndarray, "b e"]]:
    """The text tower of `NETWORKS`: a function from texts to their projected embeddings, not of unit length.

    `path` is the file that `open_clip` takes, `tokenizer` the model's tokenizer.json. Raises as these two do.
    """
    tower = NETWORKS[spec].text
    tokenize, params = read_tokenizer(tokenizer, tower.length), load_text(read_weights(path), tower)
    apply = jax.jit(tower.apply)

    def embed(texts: Sequence[str]) -> Float[np.ndarray, "b e"]:
        return np.asarray(cast(clip.TextFeatures, apply({"params": params}, tokenize(texts))).embedding)

    return embed


def _flat(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    flat = join(rename(tensors, NUMBERS + rules(PAIRS) + OPENAI))
    for tower in ("vision", "text"):
        if f"{tower}.projection.matrix" in flat:  # OpenAI multiplies from the right
            flat[f"{tower}.projection.weight"] = flat.pop(f"{tower}.projection.matrix").T
    return flat


def _of_one(tower: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one tower, by their names in it, and all that belong to neither."""
    if "embeddings.position_embedding.weight" in tensors:
        tensors = {f"{tower}_model.{name}": tensor for name, tensor in tensors.items()}
    other = {"vision": "text.", "text": "vision."}[tower]
    return {
        name.removeprefix(f"{tower}."): tensor
        for name, tensor in _flat(tensors).items()
        if not name.startswith(other) and name != "logit_scale"
    }
