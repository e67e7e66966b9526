"""What a run reads its captions and prompts with, as its config names it.

words              pieces of words, which the network's own text encoder learns to read
minilm[=FILE]      MiniLM-L6-v2, frozen
published=FOLDER   what a published pipeline reads its prompts with, frozen: see pretrained/prompts.py
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from jaxdiff.config import Config
from jaxdiff.core.types import Cond
from jaxdiff.data import Source
from jaxdiff.data.captions import Encode, caption, captioned, wordings
from jaxdiff.data.sources import has_features
from jaxdiff.data.word_pieces import WordPieces, learn
from jaxdiff.networks.flux import Flux
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.pixart import PixArt
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained.minilm import open_minilm
from jaxdiff.pretrained.prompts import open_prompts

EXAMPLES = 64
"""Captions that a run keeps to show itself by."""

TEXTS_AT_ONCE = 256
"""Texts that a frozen encoder reads at once."""

KEPT = 16
"""Texts whose features are kept, and that are read at once: those of T5-XXL are 8 MB each."""

Leaves = Mapping[str, Shaped[np.ndarray, "b ..."]]
"""Conditions of texts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Texts to the conditions of a network."""

    encode: Encode
    sha256: str
    """Of all that the conditions depend on besides the text."""
    ids: Callable[[Sequence[str]], Int[np.ndarray, "b n"]]
    """The tokens of texts, -1 where there is none."""
    empty: str | None = None
    """What guidance leads away from where nothing is said: this text; None: no text."""
    beside: Mapping[str, Shaped[np.ndarray, "..."]] = dataclasses.field(default_factory=dict)
    """Conditions that are the same for every text, and for none."""

    def conditions(self, texts: Sequence[str]) -> Leaves:
        """The leaves for these texts, each different one read once."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        rows = [place[text] for text in texts]
        return {name: leaf[rows] for name, leaf in self.encode(list(place)).items()} | self._beside(len(texts))

    def away(self, text: str | None, count: int) -> Leaves:
        """The leaves that guidance of `count` images leads away from; those that are left out are absent ones."""
        text = self.empty if text is None else text
        return self._beside(count) if text is None else self.conditions([text] * count)

    def _beside(self, count: int) -> dict[str, np.ndarray]:
        return {name: np.repeat(leaf[None], count, axis=0) for name, leaf in self.beside.items()}


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

        def encode(texts: Sequence[str]) -> Leaves:
            tokens, mask, pooled = encoder.encode(texts)
            return {"text_tokens": tokens, "text_mask": mask, "text_pooled": pooled}

        return Reader(in_parts(encode, TEXTS_AT_ONCE), encoder.sha256, encoder.ids)
    if kind == "published" and file:
        network = config.network
        assert isinstance(network, UNet | PixArt | MMDiT | Flux)
        prompts = open_prompts(Path(file), network.text_width, config.text_length, config.text_parts)
        beside = told_beside(config)
        said = {name: leaf.tolist() for name, leaf in beside.items()}
        digest = hashlib.sha256(f"{prompts.sha256} {said}".encode()).hexdigest()
        return Reader(kept(in_parts(prompts.encode, KEPT), KEPT), digest, prompts.ids, prompts.empty, beside)
    names = "words, minilm, minilm=FILE or published=FOLDER"
    raise ValueError(f"text {config.text!r} is not allowed: {names} (--text)")


def told_beside(config: Config) -> dict[str, np.ndarray]:
    """What published networks are told besides texts: the size of the picture, whole, and a distilled guidance."""
    network, leaves = config.network, {}
    sized = isinstance(network, UNet) and network.size_features
    if sized or (isinstance(network, PixArt) and network.size_condition):
        side = config.data.size * (config.latents.factor if config.latents else 1)
        leaves["size"] = np.array([side, side, 0, 0, side, side], np.float32)
    if isinstance(network, Flux) and network.guidance:
        leaves["guidance_scale"] = np.array(config.sampling.distilled_scale, np.float32)
    return leaves


def in_parts(encode: Encode, most: int) -> Encode:
    """The same function, which reads at most so many texts at once."""

    def encoded(texts: Sequence[str]) -> Leaves:
        parts = []
        for first in range(0, len(texts), most):
            some = list(texts[first : first + most])
            # The last part is filled up where there are several, so that one compilation serves all.
            filled = some + [""] * (most - len(some) if first else 0)
            parts.append({name: leaf[: len(some)] for name, leaf in encode(filled).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return encoded


def kept(encode: Encode, most: int) -> Encode:
    """The same function, which keeps what it says of the last `most` texts."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def encoded(texts: Sequence[str]) -> Leaves:
        new = [text for text in dict.fromkeys(texts) if text not in found]
        leaves = encode(new) if new else {}
        for row, text in enumerate(new):
            found[text] = {name: leaf[row].copy() for name, leaf in leaves.items()}
        rows = [found[text] for text in texts]
        for text in texts:  # the last are those that were asked for last
            found[text] = found.pop(text)
        for text in list(found)[:-most]:
            del found[text]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    return encoded


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
    return captioned(source, reader.conditions, config.data.keywords)


def examples(source: Source) -> tuple[str, ...]:
    """Captions from all over the source."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(EXAMPLES, len(source))).round().astype(int))
    return tuple(caption(source, int(i))[0] for i in chosen)


def told(config: Config, cond: Cond) -> Cond:
    """The leaves of `cond` that the run's network is told of."""
    label, text, image = config.network.num_classes > 0, config.data.text, config.image_channels > 0

    def is_told(name: str) -> bool:
        return label if name == "label" else image if name == "image" else text

    return {name: leaf for name, leaf in cond.items() if is_told(name)}


def is_conditional(config: Config) -> bool:
    """Whether the network is told of classes or texts, or shown a picture."""
    return config.network.num_classes > 0 or config.data.text or config.image_channels > 0
