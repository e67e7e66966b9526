"""Tokenizers of transformers over a few letters and words, for tests of parity."""

import json
from pathlib import Path

import transformers

EXTRA = 3
"""Gaps that T5's small tokenizer has."""


def clip_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(the vocabulary, the merges) of CLIP's kind of tokenizer: bytes, of which "!" is number 0, and four merges."""
    alphabet = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789!,.'"))
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    return {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}, merges


def clip_tokenizer(pad="<|endoftext|>"):
    vocab, merges = clip_words()
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def as_published(folder: Path) -> None:
    """The tokenizer in `folder` as it was published before there was a tokenizer.json."""
    vocab, merges = clip_words()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said = {name: said[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length")}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"tokenizer_class": "CLIPTokenizer"}))


def t5_words() -> list[tuple[str, float]]:
    """The pieces of T5's kind of tokenizer, with their scores."""
    pieces = ["▁cat", "▁dog", "▁a", *"▁abcdefghijklmnopqrstuvwxyz!,.'"]
    scored = [(piece, -1.0 - 0.1 * i) for i, piece in enumerate(pieces)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored]


def t5_tokenizer():
    vocab = [*t5_words(), *((f"<extra_id_{i}>", 0.0) for i in range(EXTRA - 1, -1, -1))]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=EXTRA)
