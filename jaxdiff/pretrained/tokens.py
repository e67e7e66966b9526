"""Texts as rows of numbers, all of one length, by the tokenizers library.

A text that is too long keeps its first tokens and its very last, which is the token of its end.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32

from jaxdiff.pretrained.pickles import refusing


class Tokens(NamedTuple):
    """Texts as tokens."""

    ids: Int32[np.ndarray, "b n"]
    mask: Bool[np.ndarray, "b n"]
    """True for a token, False for what fills a row up."""
    cut: tuple[str, ...]
    """Of each text the end that did not fit, "" where there is none."""


Tokenize: TypeAlias = Callable[[Sequence[str]], Tokens]


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of the library's class."""

    def encode_batch(self, input: Sequence[str], /) -> list: ...
    def no_truncation(self) -> None: ...
    def no_padding(self) -> None: ...


def from_json(path: Path):
    """The library's tokenizer of a tokenizer.json. Raises FileNotFoundError, and ValueError of one line."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError("prompts need the package tokenizers: pip install tokenizers (--text)") from error

    text = path.read_text(encoding="utf-8")
    with refusing(path):
        return Tokenizer.from_str(text)


def rows_by(tokenizer: Tokenizer, length: int, fill: int) -> Tokenize:
    """A function from texts to tokens ``[b, length]``, shorter ones filled up with `fill`."""
    tokenizer.no_truncation()  # a file may say otherwise
    tokenizer.no_padding()

    def tokenize(texts: Sequence[str]) -> Tokens:
        ids = np.full((len(texts), length), fill, np.int32)
        mask, cut = np.zeros((len(texts), length), bool), []
        for row, (text, encoding) in enumerate(zip(texts, tokenizer.encode_batch(list(texts)), strict=True)):
            found, rest = encoding.ids, ""
            if len(found) > length:
                rest = text[encoding.offsets[length - 1][0] :].strip()
                found = [*found[: length - 1], found[-1]]
            ids[row, : len(found)], mask[row, : len(found)] = found, True
            cut.append(rest)
        return Tokens(ids, mask, tuple(cut))

    return tokenize
