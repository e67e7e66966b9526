"""CLIP's published weights, in transformers' naming and in OpenAI's (and OpenCLIP's), and its tokenizer.

A file may hold both towers or one: transformers' `CLIPTextModel`, which is what the text-to-image models ship,
has the names of the text tower in `CLIPModel`, without the projection, and in newer files without "text_model".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxdiff.core.types import Params
from jaxdiff.networks import clip
from jaxdiff.networks.clip import CLIP, TextTower, VisionTower
from jaxdiff.networks.feature_net import FeatureNet, Features, resized
from jaxdiff.networks.pillow_resize import PILLOW_BICUBIC
from jaxdiff.networks.vit import Activation, gelu, quick_gelu
from jaxdiff.pretrained.fields import Json, whole
from jaxdiff.pretrained.folders import read_json
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.tokens import Tokenize, from_json, rows_by
from jaxdiff.pretrained.vit import Rules, join, rename, stacked_layout
from jaxdiff.pretrained.weights import fill, read_weights, sha256

Ids: TypeAlias = Int[np.ndarray, "b n"]
"""Tokens of texts."""

START, END = "<|startoftext|>", "<|endoftext|>"

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP takes for a word: an English ending, letters, one digit, or other signs."""

NO_END = 2
"""The end of a text in config.json files that were written before transformers looked at it."""

ACTIVATIONS: Mapping[str, Activation] = {"quick_gelu": quick_gelu, "gelu": gelu}

ONLY: Mapping[str, tuple[object, ...]] = {
    "hidden_act": tuple(ACTIVATIONS),
    "layer_norm_eps": (clip.NORM_EPS,),
    "use_attention_mask": (False,),
}
"""What fields of a text tower's config.json may say."""

NETWORKS: Mapping[str, CLIP] = {
    "clip-b32": clip.CLIP_B32,
    "clip-b16": clip.CLIP_B16,
    "clip-l14": clip.CLIP_L14,
    "clip-l14-336": clip.CLIP_L14_336,
}
"""By the names of `features.py`; CMMD is defined with "clip-l14-336"."""

FILES = "model.safetensors of transformers' CLIPModel"

TRANSFORMERS: Rules = (
    (r"^(vision|text)_model\.embeddings\.position_ids$", ""),  # 0, 1, 2, ... in older files
    (r"^vision_model\.embeddings\.class_embedding$", "vision.cls"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "vision.patches."),
    (r"^text_model\.embeddings\.token_embedding\.", "text.tokens."),
    (r"^(vision|text)_model\.embeddings\.position_embedding\.weight$", r"\1.positions"),
    (r"^vision_model\.pre_layrnorm\.", "vision.norm_in."),
    (r"^vision_model\.post_layernorm\.", "vision.norm_out."),
    (r"^text_model\.final_layer_norm\.", "text.norm_out."),
    (r"^visual_projection\.weight$", "vision.projection.weight"),
    (r"^text_projection\.weight$", "text.projection.weight"),
    (r"^(vision|text)_model\.encoder\.layers\.(\d+)\.", r"\1.blocks.\2."),
    (r"\.layer_norm1\.", ".norm_0."),
    (r"\.layer_norm2\.", ".norm_1."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".\1."),
    (r"\.self_attn\.out_proj\.", ".out."),
    (r"\.mlp\.fc1\.", ".mlp_0."),
    (r"\.mlp\.fc2\.", ".mlp_1."),
)

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


def text_config(json: Json, projected: bool) -> TextTower:
    """The tower of the config.json of a `CLIPTextModel`, or, `projected`, of a `CLIPTextModelWithProjection`.

    Raises ValueError that names a field which it cannot honour.
    """
    for name, allowed in ONLY.items():
        if name in json and json[name] not in allowed:
            raise ValueError(f"config.json: {name} = {json[name]!r} is not allowed: {' or '.join(map(repr, allowed))}")
    width = whole(json, "hidden_size", 512)
    end = json.get("eos_token_id", clip.EOS)
    if not isinstance(end, int):
        raise ValueError(f"config.json: eos_token_id = {end!r} is not allowed: one number")
    return TextTower(
        width=width,
        depth=whole(json, "num_hidden_layers", 12),
        heads=whole(json, "num_attention_heads", 8),
        vocab=whole(json, "vocab_size", 49408),
        length=whole(json, "max_position_embeddings", 77),
        hidden=whole(json, "intermediate_size", 2048),
        embedding=whole(json, "projection_dim", 512) if projected else 0,
        eos=None if end == NO_END else end,
        activation=ACTIVATIONS[str(json.get("hidden_act", "quick_gelu"))],
    )


def read_tokenizer(path: Path, length: int = 77, pad: int | None = None) -> Callable[[Sequence[str]], Ids]:
    """A function from texts to int32 tokens ``[b, length]``, by the model's `tokenizer.json`.

    Each text becomes start, its words, end; longer ones are cut before the end, shorter ones filled up with
    `pad`: None is the end again (Stable Diffusion 1), 0 what OpenAI's own tokenizer and SDXL's second use. No
    embedding depends on it, but hidden states do. Raises ValueError for a file that puts no start and end.
    """
    tokenizer = from_json(path)
    _check_ends(tokenizer, path)
    tokenize = rows_by(tokenizer, length, tokenizer.token_to_id(END) if pad is None else pad)
    return lambda texts: tokenize(texts).ids


def open_tokenizer(folder: Path, length: int) -> Tokenize:
    """The tokenizer in a folder of transformers', a tokenizer.json or a vocab.json with its merges.txt.

    As there, shorter texts are filled up with the folder's own pad token, which means itself where it stands in a text.
    Raises FileNotFoundError where there is none, ValueError for another kind.
    """
    said: dict[str, object] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        said |= read_json(folder / name) if (folder / name).is_file() else {}
    word = said.get("pad_token", END)
    pad = str(word["content"] if isinstance(word, dict) and "content" in word else word)
    file = folder / "tokenizer.json"
    if file.is_file():
        tokenizer = from_json(file)
    else:
        file = folder / "vocab.json"
        tokenizer = _byte_pairs(file, folder / "merges.txt")
    if (fill := tokenizer.token_to_id(pad)) is None:
        raise ValueError(f"{file} has no token {pad!r}, with which tokenizer_config.json fills up texts")
    tokenizer.add_special_tokens([pad])
    _check_ends(tokenizer, file)
    return rows_by(tokenizer, length, fill)


def _check_ends(tokenizer, file: Path) -> None:
    empty = tokenizer.encode("").ids
    start, end = (tokenizer.token_to_id(word) for word in (START, END))
    if start is None or end is None or empty[:1] != [start] or empty[1:2] != [end]:
        raise ValueError(f"{file}: an empty text has the tokens {empty}, not start and end: use CLIP's tokenizer.json")


def _byte_pairs(vocab: Path, merges: Path):
    """CLIP's tokenizer, which is in small letters: words, and pairs of their bytes that were merged."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    for file in (vocab, merges):
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}, and no tokenizer.json beside it")
    with refusing(vocab):
        ends = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "unk_token": END}
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges), **ends))
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        small = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
        tokenizer.normalizer = small  # pyright: ignore[reportAttributeAccessIssue]
        words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
        both = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.pre_tokenizer = both  # pyright: ignore[reportAttributeAccessIssue]
        start, end = ((word, tokenizer.token_to_id(word)) for word in (START, END))
        if start[1] is None or end[1] is None:
            raise ValueError(f"has no {START} or no {END}")
        around = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
        tokenizer.post_processor = around  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.add_special_tokens([START, END])
    return tokenizer


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
    flat = join(rename(tensors, TRANSFORMERS + OPENAI))
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
