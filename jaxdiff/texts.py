"""What a run reads its captions and prompts with, as its config names it.

words              pieces of words, which the network's own text encoder learns to read
minilm[=FILE]      MiniLM-L6-v2, frozen
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from jaxdiff.config import Config
from jaxdiff.core.types import Cond
from jaxdiff.data import Source
from jaxdiff.data.captions import Encode, caption, captioned, wordings
from jaxdiff.data.sources import has_features
from jaxdiff.data.word_pieces import WordPieces, learn
from jaxdiff.pretrained.minilm import open_minilm

EXAMPLES = 64
"""Captions that a run keeps to show itself by."""

TEXTS_AT_ONCE = 256
"""Texts that a frozen encoder reads at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Texts to the conditions of a network."""

    encode: Encode
    sha256: str
    """Of all that the conditions depend on besides the text."""
    ids: Callable[[Sequence[str]], Int[np.ndarray, "b n"]]
    """The tokens of texts, -1 where there is none."""

    def conditions(self, texts: Sequence[str]) -> dict[str, Shaped[np.ndarray, "b ..."]]:
        """The leaves for these texts, each different one read once."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        rows = [place[text] for text in texts]
        return {name: leaf[rows] for name, leaf in self.encode(list(place)).items()}


def learn_tokenizer(config: Config, source: Source) -> str:
    """The tokenizer.json that a run learns from the captions it trains on; "" where it learns none."""
    if config.text != "words":
        return ""
    texts = [wordings(*caption(source, i), config.data.keywords) for i in range(len(source))]
    return learn((text for words in texts for text in words), vocabulary_of(config)[0])


def open_reader(config: Config, tokenizer: str) -> Reader | None:
    """The run's reader of texts, None where it reads none; `tokenizer` as `learn_tokenizer` made it.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    kind, _, file = config.text.partition("=")
    if not config.text:
        return None
    if config.text == "words":
        pieces = WordPieces(tokenizer, vocabulary_of(config)[1])
        digest = hashlib.sha256(f"{pieces.length} {tokenizer}".encode()).hexdigest()
        return Reader(lambda texts: {"text_ids": pieces(texts)}, digest, pieces)
    if kind == "minilm":
        encoder = open_minilm(config.text_length, Path(file) if file else None)

        def encode(texts: Sequence[str]) -> dict[str, np.ndarray]:
            parts = []
            for first in range(0, len(texts), TEXTS_AT_ONCE):
                some = list(texts[first : first + TEXTS_AT_ONCE])
                # The last part is filled up where there are several, so that one compilation serves all.
                filled = some + [""] * (TEXTS_AT_ONCE - len(some) if first else 0)
                parts.append([leaf[: len(some)] for leaf in encoder.encode(filled)])
            tokens, mask, pooled = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
            return {"text_tokens": tokens, "text_mask": mask, "text_pooled": pooled}

        return Reader(encode, encoder.sha256, encoder.ids)
    raise ValueError(f"text {config.text!r} is not allowed: words, minilm or minilm=FILE (--text)")


def vocabulary_of(config: Config) -> tuple[int, int]:
    """(size of the vocabulary, most tokens of a text) of the network's own text encoder. Raises: ValueError."""
    encoder = getattr(config.network, "text_encoder", None)
    if encoder is None:
        raise ValueError("text words is not allowed: this network has no text encoder of its own (--text)")
    return encoder.vocabulary, encoder.length


def with_captions(config: Config, source: Source, reader: Reader | None) -> Source:
    """The source with what the run's reader says of its captions, or as it is where the network is told nothing.

    Raises: ValueError.
    """
    if not config.data.text or has_features(source):
        return source
    if reader is None:
        raise ValueError(f"--data.text needs what reads captions (--text minilm), or a precomputed set: {source.name}")
    return captioned(source, reader.encode, config.data.keywords)


def examples(source: Source) -> tuple[str, ...]:
    """Captions from all over the source."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(EXAMPLES, len(source))).round().astype(int))
    return tuple(caption(source, int(i))[0] for i in chosen)


def told(config: Config, cond: Cond) -> Cond:
    """The leaves of `cond` that the run's network is told of."""
    label, text, image = config.network.num_classes > 0, config.data.text, config.image_channels > 0

    def is_told(name: str) -> bool:
        return text if name.startswith("text_") else image if name == "image" else label

    return {name: leaf for name, leaf in cond.items() if is_told(name)}


def is_conditional(config: Config) -> bool:
    """Whether the network is told of classes or texts, or shown a picture."""
    return config.network.num_classes > 0 or config.data.text or config.image_channels > 0
