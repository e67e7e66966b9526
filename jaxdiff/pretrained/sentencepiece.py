"""Unigram models of SentencePiece, such as T5's spiece.model, as tokenizers of the tokenizers library.

The file is a protocol buffer, of which three messages are read here; their numbers are those of sentencepiece's own
definition:

    model         1 piece, again and again      2 trainer      3 normalizer
    piece         1 text      2 score      3 kind
    trainer       3 kind of model
    normalizer    2 table of characters
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from jaxdiff.pretrained.pickles import refusing

UNIGRAM = 1
"""The kind of model that is read."""

UNKNOWN, CONTROL = 2, 3
"""Kinds of pieces."""

SPACE = "▁"
"""What stands for the space before a word."""


def read(path: Path, end: str = "</s>", extra: int = 100):
    """The library's tokenizer of a file: pieces of words, then `end`.

    After the pieces of the file come `extra` more, <extra_id_99> ... <extra_id_0>, which T5 fills gaps with.
    Raises FileNotFoundError, and ValueError of one line for another kind of model, or a damaged file.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    data = path.read_bytes()
    with refusing(path):
        pieces, special, table, kind = [], [], b"", UNIGRAM
        unknown = 0
        for number, value in _fields(data):
            if number == 1:
                piece = {1: b"", 2: struct.pack("<f", 0.0), 3: 1} | dict(_fields(_bytes(value)))
                text = _bytes(piece[1]).decode("utf-8")
                if piece[3] == UNKNOWN:
                    unknown = len(pieces)
                if piece[3] in (UNKNOWN, CONTROL):
                    special.append(text)
                pieces.append((text, struct.unpack("<f", _bytes(piece[2]))[0]))
            elif number == 2:
                kind = dict(_fields(_bytes(value))).get(3, UNIGRAM)
            elif number == 3:
                table = _bytes(dict(_fields(_bytes(value))).get(2, b""))
        if kind != UNIGRAM or not pieces:
            raise ValueError("is no unigram model of SentencePiece")
        gaps = [f"<extra_id_{i}>" for i in range(extra - 1, -1, -1)]
        tokenizer = Tokenizer(models.Unigram([*pieces, *((gap, 0.0) for gap in gaps)], unknown, False))
        if table:
            tokenizer.normalizer = normalizers.Precompiled(table)
        words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, "always")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
        tokenizer.add_special_tokens([*special, *gaps])
        number = tokenizer.token_to_id(end)
        if number is None:
            raise ValueError(f"has no piece {end}")
        ends = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
        tokenizer.post_processor = ends
    return tokenizer


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message by their numbers: whole numbers as they are, all else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = {1: 8, 5: 4}[wire]
        else:
            raise ValueError("is no protocol buffer")
        if at + size > len(data):
            raise ValueError("is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number whose bytes of seven bits begin at `at`, the lowest first; where it ends)."""
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
    raise ValueError("is cut off")


def _bytes(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("is no model of SentencePiece")
    return value
