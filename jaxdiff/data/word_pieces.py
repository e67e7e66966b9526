"""A tokenizer learned from captions, for text encoders that are trained here: byte-pair encoding of lower-cased text.

    text    NFKC, lower case, spaces joined -> words, each with the space before it -> bytes
    pieces  the 256 bytes, and then, again and again, the pair of neighbours that occurs most often in a word

Every text has pieces, since every byte is one: nothing is unknown. There are no marks of start and end.
Source: arXiv:1508.07909, Sec. 3.2.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

BYTES = 256
"""Pieces that every vocabulary has."""

ABSENT = -1
"""Where a text has no token."""


@dataclasses.dataclass(frozen=True)
class WordPieces:
    """Texts to int32 tokens ``[b, length]``, `ABSENT` after the end; longer texts are cut. It may be pickled.

    A text of no words is absent everywhere, which is the absent condition. Raises ValueError for a `length` below 1
    and a `json` that is no tokenizer's.
    """

    json: str
    """The text of a tokenizer.json: what `learn` returns."""
    length: int
    """Tokens of every text."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"text length {self.length} is not allowed: 1 or more (--text-length)")
        _parsed(self.json)

    @property
    def vocab(self) -> int:
        """The number of pieces; tokens are 0 to ``vocab - 1``."""
        return _parsed(self.json).size

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "b n"]:
        tokens = np.full((len(texts), self.length), ABSENT, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            pieces = self.pieces(text)[: self.length]
            row[: len(pieces)] = pieces
        return tokens

    def pieces(self, text: str) -> list[int]:
        """All tokens of a text, however many."""
        return _parsed(self.json).encode(_valid(text)) if text.strip() else []

    def text(self, tokens: Int[np.ndarray, "n"]) -> str:
        """What the tokens say, `ABSENT` ones left out; a character of which bytes are missing becomes U+FFFD."""
        return _parsed(self.json).decode([int(token) for token in tokens if token != ABSENT]).strip()


class Parsed(NamedTuple):
    """A tokenizer, ready."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    size: int


def learn(captions: Iterable[str], vocab: int) -> str:
    """The tokenizer.json of the at most `vocab` most useful pieces of these captions.

    It depends on the captions alone, and not on their order. Pairs that occur once are not joined, so that few
    captions make fewer pieces. Raises ValueError for a `vocab` below 256, and without the package tokenizers.
    """
    if vocab < BYTES:
        raise ValueError(f"vocabulary of {vocab} is not allowed: {BYTES} or more, one for each byte (--vocab)")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.normalizer = library.normalizers.Sequence(
        [
            library.normalizers.NFKC(),
            library.normalizers.Lowercase(),
            library.normalizers.Replace(library.Regex(r"\s+"), " "),
            library.normalizers.Strip(),
        ]
    )
    # With the space before it a word is the same at the start of a text and inside.
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((_valid(caption) for caption in captions), trainer)
    return tokenizer.to_str()


def with_word(json: str, word: str) -> tuple[str, int]:
    """(the tokenizer.json with one more piece, a whole word that is found as it is written; its token).

    Raises ValueError where the tokenizer has this piece already.
    """
    tokenizer = _library().Tokenizer.from_str(json)
    if tokenizer.token_to_id(word) is not None:
        raise ValueError(f"word {word!r} is not allowed: the tokenizer has such a piece already (--word.text)")
    token = tokenizer.get_vocab_size()
    # Found before all else is done to a text, so that its letters keep their case.
    tokenizer.add_tokens([_library().AddedToken(word, normalized=False)])
    return tokenizer.to_str(), token


@functools.lru_cache(maxsize=8)
def _parsed(json: str) -> Parsed:
    library = _library()
    try:
        tokenizer = library.Tokenizer.from_str(json)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"no tokenizer.json: {' '.join(str(error).split())[:200]}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # One text at a time: the library's threads for batches do not survive the fork of a data worker.
    return Parsed(lambda text: tokenizer.encode(text).ids, tokenizer.decode, tokenizer.get_vocab_size())


def _library() -> ModuleType:
    """The package tokenizers."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("captions need the package tokenizers: pip install tokenizers (--text)") from error
    return tokenizers


def _valid(text: str) -> str:
    """The text without lone surrogates, which broken UTF-8 in names and flags leaves and UTF-8 cannot say."""
    return text.encode("utf-8", "replace").decode("utf-8")
