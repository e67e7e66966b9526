"""What a run starts from: another run or a model, whose parameters are trained further or stay below what is new."""

import dataclasses
import json
from typing import NamedTuple

import jax
from etils import epath

from jaxdiff.adapters import check_alike, check_start, is_adapted, with_token
from jaxdiff.build import init_run
from jaxdiff.checkpoints import read_start
from jaxdiff.config import Config, from_json
from jaxdiff.core.types import Params
from jaxdiff.data.word_pieces import WordPieces, with_word
from jaxdiff.models import CONFIG, find_model, in_place
from jaxdiff.networks.lora import LoRA
from jaxdiff.networks.new_word import NewWord, first_vector
from jaxdiff.texts import vocabulary_of
from jaxdiff.training.restore import fingerprint
from jaxdiff.training.workdir import read_config


class Start(NamedTuple):
    """The parameters below a run, in tuples of one, which are empty where there is nothing to say."""

    part: tuple[Params, ...] = ()
    """What is trained, at first; (): drawn by the run's seed."""
    frozen: tuple[Params, ...] = ()
    """What stays as it is."""
    tokenizer: str = ""
    """The tokenizer.json that goes with them."""


def further(name: str) -> Config:
    """The config that trains a run or a model further: its own, with `start`. Raises: as `read_config`."""
    model = find_model(name)
    record = read_config(name) if model is None else json.loads((model / CONFIG).read_text())
    config = from_json(record["config"])
    assert isinstance(config, Config)
    config = config if model is None else in_place(config, model)
    anew = {"start": name, "start_step": -1, "start_sha256": "", "lora": LoRA(), "word": NewWord()}
    return dataclasses.replace(config, **anew, preview_every=0)


def open_start(config: Config, workdir: epath.PathLike) -> tuple[Config, Start]:
    """(the config with what it says of its start filled in, the start of the run in `workdir`).

    Raises: ValueError or FileNotFoundError where the start is gone, has changed, or is of another network.
    """
    check_start(config)
    if not config.start:
        return config, Start()
    if (epath.Path(workdir) / "config.json").exists():  # the run goes on: its start is the one that it had
        stored = read_config(workdir)["config"]
        config = dataclasses.replace(config, start_step=stored.get("start_step", -1))
    below = read_start(config)
    config = dataclasses.replace(config, start_step=below.step, start_sha256=fingerprint(below.params))
    check_alike(config, below.params, jax.eval_shape(lambda: init_run(config, jax.random.key(0))))
    codecs = [latents and latents.codec for latents in (below.config.latents, config.latents)]
    if codecs[0] != codecs[1]:
        said = " and ".join(codec or "pixels" for codec in codecs)
        raise ValueError(f"{config.start} and the data are of different kinds: {said} (--start, --data.source)")
    if config.word.text:
        tokenizer, token = with_word(below.tokenizer, config.word.text)
        pieces = WordPieces(below.tokenizer, vocabulary_of(config)[1]).pieces(config.word.like)
        return with_token(config, token), Start((first_vector(below.params, pieces),), (below.params,), tokenizer)
    if is_adapted(config):
        return config, Start((), (below.params,), below.tokenizer)
    return config, Start((below.params,), (), below.tokenizer)
