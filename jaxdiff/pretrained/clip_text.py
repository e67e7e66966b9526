"""CLIP's text towers as transformers' folders hold them: the tower of a config.json, and the tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from jaxdiff.networks import clip
from jaxdiff.networks.clip import TextTower
from jaxdiff.networks.vit import Activation, gelu, quick_gelu
from jaxdiff.pretrained.fields import Json, whole
from jaxdiff.pretrained.folders import read_json
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.tokens import Tokenize, Tokens, from_json, rows_by

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
    end = _checked_end(tokenizer, path)
    tokenize = rows_by(tokenizer, length, end if pad is None else pad)
    return lambda texts: tokenize(texts).ids


def open_tokenizer(folder: Path, length: int, parts: int = 1) -> Tokenize:
    """The tokenizer in a folder of transformers', a tokenizer.json or a vocab.json with its merges.txt.

    As there, shorter texts are filled up with the folder's own pad token, which means itself where it stands in a text.
    A text becomes `parts` rows of `length` tokens, one after the other, each with a start and an end of its own.
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
    _checked_end(tokenizer, file)
    return _in_parts(rows_by(tokenizer, parts * (length - 2) + 2, fill), length, parts, fill)


def _in_parts(tokenize: Tokenize, length: int, parts: int, fill: int) -> Tokenize:
    """Of what `tokenize` says the tokens between start and end, cut into parts of `length`, ends included."""

    def tokenized(texts: Sequence[str]) -> Tokens:
        whole = tokenize(texts)
        ids = np.full((len(texts), parts, length), fill, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, count in enumerate(whole.mask.sum(1)):
            start, *words, end = whole.ids[row, :count]
            for part in range(parts):
                found = [start, *words[part * (length - 2) : (part + 1) * (length - 2)], end]
                ids[row, part, : len(found)], mask[row, part, : len(found)] = found, True
        return Tokens(ids.reshape(len(texts), -1), mask.reshape(len(texts), -1), whole.cut)

    return tokenized


def _checked_end(tokenizer, file: Path) -> int:
    """The token of a text's end. Raises ValueError where texts have no start and no end."""
    empty = tokenizer.encode("").ids
    start, end = (tokenizer.token_to_id(word) for word in (START, END))
    if start is None or end is None or empty[:1] != [start] or empty[1:2] != [end]:
        raise ValueError(f"{file}: an empty text has the tokens {empty}, not start and end: use CLIP's tokenizer.json")
    return end


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
        tokenizer.normalizer = small
        words = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
        both = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.pre_tokenizer = both
        start, end = (tokenizer.token_to_id(word) for word in (START, END))
        if start is None or end is None:
            raise ValueError(f"has no {START} or no {END}")
        ends = processors.RobertaProcessing((END, end), (START, start), trim_offsets=False, add_prefix_space=False)
        tokenizer.post_processor = ends
        tokenizer.add_special_tokens([START, END])
    return tokenizer
