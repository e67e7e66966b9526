"""What published text-to-image pipelines make of a prompt: which encoders read it, and what of these a network is told.

| pipeline | tokens of the network | pooled | empty prompt |
|---|---|---|---|
| StableDiffusion | CLIP's last layer, normalised | | "" |
| StableDiffusionXL | the last layer but one of two CLIPs, side by side | of the second, projected | nothing, or "" |
| StableDiffusion3 | the same, then T5's, or zeros without a T5 | of both, projected | "" |
| Flux | T5's | CLIP's, not projected | "" |
| PixArtAlpha, PixArtSigma | T5's, and which of them there are | | "" |

The encoders lie in a folder as the pipeline's own: tokenizer and text_encoder, tokenizer_2 and text_encoder_2 and so
on, and the model_index.json that names their classes. Sources: arXiv:2112.10752, Sec. 3.3; arXiv:2307.01952, Sec. 2.1;
arXiv:2403.03206, Sec. 4; arXiv:2310.00426, Sec. 2.3.
"""

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxdiff.networks.clip import TextFeatures
from jaxdiff.pretrained import clip_text, t5
from jaxdiff.pretrained.clip import load_text
from jaxdiff.pretrained.fields import Json
from jaxdiff.pretrained.folders import TRANSFORMERS, read_json, weights_file, weights_files, weights_in
from jaxdiff.pretrained.pickles import refusing
from jaxdiff.pretrained.tokens import Tokenize, Tokens
from jaxdiff.pretrained.weights import sha256

INDEX = "model_index.json"

PARTS = ("tokenizer", "text_encoder")
"""What the names of the text's parts begin with."""

log = logging.getLogger(__name__)

Feature: TypeAlias = Callable[[TextFeatures], Float[np.ndarray, "b ..."]]
Leaves: TypeAlias = dict[str, np.ndarray]

LAST, PENULTIMATE, POOLED, EMBEDDING = (attrgetter(name) for name in TextFeatures._fields)


class Clip(NamedTuple):
    """What of a CLIP's features is told."""

    place: str
    """What the names of its folders end with."""
    tokens: Feature | None
    pooled: Feature | None


class LongText(NamedTuple):
    """What of a T5's features is told."""

    place: str
    """What the names of its folders end with."""
    length: int
    """Tokens of every text."""
    masked: bool = False
    """Whether encoder and network are told which tokens fill a text up."""
    needed: bool = True
    """False: zeros in its place where the folder has none."""


class Recipe(NamedTuple):
    """What a pipeline makes of a prompt."""

    clips: tuple[Clip, ...] = ()
    """Side by side, along the channels."""
    t5: LongText | None = None
    """After them, along the tokens."""
    prepared: Callable[[str], str] = str
    """What is done to a text before it is read."""
    nothing: bool = False
    """Whether no prompt is no text, in place of "", unless the pipeline's index says otherwise."""

    @property
    def length(self) -> int:
        """The most tokens of a text."""
        return self.t5.length if self.t5 else CLIP_LENGTH


def small(text: str) -> str:
    """In small letters, without space around it."""
    return text.lower().strip()


CLIP_LENGTH = 77
"""Most tokens of a text in all published CLIPs."""

RECIPES: Mapping[str, Recipe] = {
    "StableDiffusionPipeline": Recipe((Clip("", LAST, None),)),
    "StableDiffusionXLPipeline": Recipe(
        (Clip("", PENULTIMATE, None), Clip("_2", PENULTIMATE, EMBEDDING)), nothing=True
    ),
    "StableDiffusion3Pipeline": Recipe(
        (Clip("", PENULTIMATE, EMBEDDING), Clip("_2", PENULTIMATE, EMBEDDING)), LongText("_3", 256, needed=False)
    ),
    "FluxPipeline": Recipe((Clip("", None, POOLED),), LongText("_2", 512)),
    "PixArtAlphaPipeline": Recipe(t5=LongText("", 120, masked=True), prepared=small),
    "PixArtSigmaPipeline": Recipe(t5=LongText("", 300, masked=True), prepared=small),
}
"""By diffusers' name of the class."""


class Encoder(NamedTuple):
    """An encoder, whose weights are read with the first text."""

    name: str
    width: int
    """Channels of a token."""
    tokenize: Tokenize
    features: Callable[[Tokens], TextFeatures | Float[np.ndarray, "b n d"]]


class Prompts(NamedTuple):
    """A pipeline's reader of prompts."""

    encode: Callable[[Sequence[str]], Leaves]
    """texts -> text_tokens [b, n, d], and text_pooled [b, e] and text_mask [b, n] where the network is told them."""
    sha256: str
    """Of all that these depend on besides the text."""
    ids: Callable[[Sequence[str]], Int[np.ndarray, "b n"]]
    """The tokens of texts as the first encoder of text_tokens has them, -1 where there is none."""
    empty: str | None
    """What guidance leads away from unless it is told otherwise: this text, or None for none."""


def files_of(folder: Path) -> dict[str, Path]:
    """All that the reader of a pipeline's folder needs, by the places there: of several kinds of weights, one.

    Raises FileNotFoundError where an encoder has no weights.
    """
    found: dict[str, Path] = {}
    for part in sorted(folder.iterdir()):
        if not part.is_dir() or not part.name.startswith(PARTS):
            continue
        if part.name.startswith(PARTS[0]):
            files = [p for p in part.rglob("*") if p.is_file()]
        else:
            weights = {weights_file(part, TRANSFORMERS), *weights_files(part, TRANSFORMERS)}
            files = [part / "config.json", *weights]
        found |= {str(p.relative_to(folder)): p for p in sorted(files)}
    return found | {INDEX: folder / INDEX} if found else found


def lacking(folder: Path) -> list[str]:
    """The encoders and tokenizers that the pipeline in `folder` needs for prompts and has not."""
    index = read_json(folder / INDEX)
    recipe = RECIPES.get(str(index.get("_class_name")), Recipe())
    needed = [clip.place for clip in recipe.clips]
    needed += [recipe.t5.place] if recipe.t5 and recipe.t5.needed else []
    absent = [f"{PARTS[1]}{place}" for place in needed if not _has(folder, index, place)]
    return absent + [f"{PARTS[0]}{place}" for place in needed if not (folder / f"{PARTS[0]}{place}").is_dir()]


def open_prompts(folder: Path, width: int, length: int, parts: int = 1) -> Prompts:
    """The reader of the pipeline in `folder`, for a network that takes tokens of `width` channels.

    `length`: tokens that a T5 reads, as in its recipe unless another is wished for. `parts`: how many times a CLIP
    reads its own number of tokens of a prompt, one after the other; its pooled features are those of the first part.
    Raises FileNotFoundError or ValueError, one line that names what is missing or not supported.
    """
    index = read_json(folder / INDEX)
    recipe = RECIPES[str(index["_class_name"])]
    clips, long = open_encoders(folder, index, width, length, parts)
    said = index.get("force_zeros_for_empty_prompt", recipe.nothing)
    digests = [f"{place} {sha256(path)}" for place, path in sorted(files_of(folder).items())]
    digest = hashlib.sha256("\n".join([*digests, f"{width} {length} {parts}"]).encode()).hexdigest()

    def encode(texts: Sequence[str]) -> Leaves:
        return _encode(recipe, clips, long, [recipe.prepared(text) for text in texts], width, length)

    sided = [encoder for encoder, clip in zip(clips, recipe.clips, strict=True) if clip.tokens]
    first = sided[0] if sided or long is None else long

    def ids(texts: Sequence[str]) -> Int[np.ndarray, "b n"]:
        tokens = first.tokenize([recipe.prepared(text) for text in texts])
        return np.where(tokens.mask, tokens.ids, -1)

    return Prompts(encode, digest, ids, None if said else "")


def open_encoders(
    folder: Path, index: Json, width: int, length: int, parts: int = 1
) -> tuple[tuple[Encoder, ...], Encoder | None]:
    """The CLIPs and the T5 of a pipeline, without their weights. Raises as `open_prompts`."""
    recipe = RECIPES[str(index["_class_name"])]
    if parts > 1 and not any(clip.tokens for clip in recipe.clips):
        raise ValueError(f"text_parts = {parts} is not allowed: no CLIP gives this network tokens (--text-parts)")
    clips = tuple(_clip(folder, index, clip.place, parts) for clip in recipe.clips)
    long = None
    if recipe.t5 and (recipe.t5.needed or _is_whole(folder, index, recipe.t5.place)):
        long = _t5(folder, index, recipe.t5, length)
    beside = sum(encoder.width for encoder, clip in zip(clips, recipe.clips, strict=True) if clip.tokens)
    if (long and long.width != width) or beside > width or (not recipe.t5 and beside != width):
        given = beside if long is None else long.width
        raise ValueError(f"{folder}: the text encoders give tokens of {given} channels, and the network takes {width}")
    return clips, long


def _encode(
    recipe: Recipe,
    clips: tuple[Encoder, ...],
    long: Encoder | None,
    texts: list[str],
    width: int,
    length: int,
) -> Leaves:
    side, pooled, rows, cuts = [], [], [], []
    for encoder, clip in zip(clips, recipe.clips, strict=True):
        tokens = encoder.tokenize(texts)
        cuts += [(encoder.name, tokens.ids.shape[1], rest) for rest in tokens.cut if rest]
        features = cast(TextFeatures, encoder.features(tokens))
        side += [clip.tokens(features)] if clip.tokens else []
        pooled += [clip.pooled(features)] if clip.pooled else []
    if side:
        beside = np.concatenate(side, axis=-1)
        rows.append(np.pad(beside, ((0, 0), (0, 0), (0, width - beside.shape[-1]))))
    leaves = {"text_pooled": np.concatenate(pooled, axis=-1)} if pooled else {}
    if long is not None:
        tokens = long.tokenize(texts)
        cuts += [(long.name, length, rest) for rest in tokens.cut if rest]
        rows.append(cast(np.ndarray, long.features(tokens)))
        if recipe.t5 and recipe.t5.masked:
            leaves["text_mask"] = tokens.mask.astype(np.float32)
    elif recipe.t5:
        rows.append(np.zeros((len(texts), length, width), np.float32))
    for name, most, rest in dict.fromkeys(cuts):
        log.warning("%s reads the first %d tokens of a prompt, and this is cut: %r", name, most, rest)
    return leaves | {"text_tokens": np.concatenate(rows, axis=1)}


CLIPS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
"""transformers' classes of CLIP's text towers, and whether they project."""

T5S = ("T5EncoderModel",)
"""And of T5's encoders."""


def _has(folder: Path, index: Json, place: str) -> bool:
    part = f"{PARTS[1]}{place}"
    named = index.get(part)
    return isinstance(named, list) and None not in named and (folder / part / "config.json").is_file()


def _is_whole(folder: Path, index: Json, place: str) -> bool:
    """Whether an encoder and its tokenizer are there; a single file brings the one alone."""
    return _has(folder, index, place) and (folder / f"{PARTS[0]}{place}").is_dir()


def _kind(folder: Path, index: Json, place: str, allowed: Sequence[str]) -> str:
    """transformers' class of an encoder."""
    part = f"{PARTS[1]}{place}"
    named = index.get(part)
    kind = str(named[-1]) if isinstance(named, list) and named else "nothing"
    if kind not in allowed:
        raise ValueError(f"{folder}: {kind} as {part} is not supported: {' or '.join(allowed)}")
    return kind


def _clip(folder: Path, index: Json, place: str, parts: int) -> Encoder:
    projected = CLIPS[_kind(folder, index, place, tuple(CLIPS))]
    part = folder / f"{PARTS[1]}{place}"
    with refusing(part):
        tower = clip_text.text_config(read_json(part / "config.json"), projected)
    apply = jax.jit(tower.apply)

    @functools.cache
    def params():
        tensors = weights_in(part, TRANSFORMERS)
        with refusing(part):
            return load_text(tensors, tower)

    def features(tokens: Tokens) -> TextFeatures:
        b = len(tokens.ids)
        found = apply({"params": params()}, tokens.ids.reshape(b * parts, -1))
        apart = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(b, parts, *leaf.shape[1:]), found)
        rows = {name: getattr(apart, name).reshape(b, -1, tower.width) for name in ("last", "penultimate")}
        return TextFeatures(pooled=apart.pooled[:, 0], embedding=apart.embedding[:, 0], **rows)

    tokenize = clip_text.open_tokenizer(folder / f"{PARTS[0]}{place}", tower.length, parts)
    return Encoder("CLIP", tower.width, tokenize, features)


def _t5(folder: Path, index: Json, long: LongText, length: int) -> Encoder:
    _kind(folder, index, long.place, T5S)
    part = folder / f"{PARTS[1]}{long.place}"
    with refusing(part):
        network = t5.t5_config(read_json(part / "config.json"))
    apply = jax.jit(network.apply)

    @functools.cache
    def params():
        tensors = weights_in(part, TRANSFORMERS)
        with refusing(part):
            return t5.load(tensors, network)

    def features(tokens: Tokens) -> np.ndarray:
        return np.asarray(apply({"params": params()}, tokens.ids, tokens.mask if long.masked else None))

    return Encoder("T5", network.width, t5.open_tokenizer(folder / f"{PARTS[0]}{long.place}", length), features)
