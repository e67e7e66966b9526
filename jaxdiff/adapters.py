"""Training on top of other parameters: what stays as it is, what is trained, and the two together.

    all parameters          trained                                   (--start alone, or nothing)
    low-rank changes        W + scale down up, W as it is             (--lora.rank)
    one new word            its vector in the table of words          (--word.text)

The trained part is what the optimiser, the averages and the checkpoints of a run hold; the whole is what networks see.
LoRA files, which others have trained, are merged into whole parameters.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxdiff.config import Config
from jaxdiff.core.types import Params
from jaxdiff.networks import lora as low_rank
from jaxdiff.networks import new_word
from jaxdiff.networks.unet import UNet
from jaxdiff.pretrained import lora as files


def is_adapted(config: Config) -> bool:
    """Whether the run trains something that is added to parameters which stay as they are."""
    return config.lora.rank > 0 or bool(config.word.text)


def check_start(config: Config) -> None:
    """Refuses changes of nothing. Raises: ValueError."""
    if is_adapted(config) and not config.start:
        flag = "--lora.rank" if config.lora.rank else "--word.text"
        raise ValueError(f"{flag} needs the run or the model whose parameters stay as they are (--start)")
    if config.word.text and config.text != "words":
        raise ValueError(
            f"a new word is not allowed with text {config.text!r}: only an encoder of the network's own (--text words)"
        )


def initial(config: Config, whole: Mapping[str, Any], key: Key[Array, ""]) -> Params:
    """The trained part at first, for whole parameters of these shapes; a new word's is zero."""
    if config.lora.rank:
        return low_rank.initial(key, whole, config.lora.rank, config.lora.chosen)
    return new_word.trained(jnp.zeros(whole["network"]["text_encoder"]["tokens"]["embedding"].shape[1]))


def combine(config: Config, frozen: Params | None, part: Params) -> Params:
    """The run's whole parameters, from what stays as it is and the trained part."""
    if not is_adapted(config):
        return part
    if config.lora.rank:
        return low_rank.merge(frozen, part, config.lora.scale)
    return new_word.with_word(frozen, part, config.word.token)


def with_token(config: Config, token: int) -> Config:
    """The config of a run with a new word of this number, whose text encoder has room for it."""
    network = config.network
    assert isinstance(network, UNet) and network.text_encoder is not None
    vocabulary = max(network.text_encoder.vocabulary, token + 1)
    encoder = dataclasses.replace(network.text_encoder, vocabulary=vocabulary)
    word = dataclasses.replace(config.word, token=token)
    return dataclasses.replace(config, network=dataclasses.replace(network, text_encoder=encoder), word=word)


def check_alike(config: Config, params: Params, shapes: Mapping[str, object]) -> None:
    """Refuses to start from the parameters of another network. Raises: ValueError, naming the first that differs."""

    def described(tree: object) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    theirs, ours = described(params), described(shapes)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            there, here = (list(shapes.get(name, ())) for shapes in (theirs, ours))
            raise ValueError(
                f"{config.start} is of another network: {name} = {there}, and {here} here "
                "(--start; train.py DIR takes the network of DIR)"
            )


def read_loras(specs: Sequence[str]) -> list[tuple[str, dict[str, dict[str, files.Change]], float]]:
    """(file, its changes, weight) of each FILE or FILE:WEIGHT. Raises: ValueError or FileNotFoundError."""
    found = []
    for spec in specs:
        name, _, weight = spec.rpartition(":")
        try:
            number = float(weight) if name else 1.0
        except ValueError:  # a colon that belongs to the name
            name, number = spec, 1.0
        name = name or spec
        found.append((name, files.read(Path(name)), number))
    return found


def with_loras(config: Config, params: Params, specs: Sequence[str]) -> Params:
    """The run's parameters with the changes of these LoRA files. Raises: ValueError or FileNotFoundError."""
    for name, parts, weight in read_loras(specs):
        if other := sorted(parts.keys() - {files.NETWORK}):
            raise ValueError(f"{name} changes {other[0]} too, which is no part of this run (--lora)")
        try:
            network = files.merged(params["network"], config.network, [(parts[files.NETWORK], weight)])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        params = {**params, "network": network}
    return params


def dump_adapter(config: Config, part: Params) -> dict[str, np.ndarray]:
    """What a run has trained as the arrays of the file that diffusers reads: a LoRA, or learned embeddings.

    Raises: ValueError where the run has trained all parameters.
    """
    if config.lora.rank:
        return files.dump(part["network"], config.network, config.lora.scale)
    if config.word.text:
        return {config.word.text: np.asarray(new_word.vector_of(part))[None]}
    raise ValueError("this run has trained all of its parameters: there is no LoRA to write (--lora.rank)")
