"""A trained run, ready to sample: its parameters and the compiled sampler, under the settings of sampling."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int, Shaped, UInt8

from jaxdiff.adapters import with_loras
from jaxdiff.checkpoints import read_checkpoint
from jaxdiff.config import Config, from_json, to_json
from jaxdiff.core.grids import pad
from jaxdiff.core.types import Level, Params
from jaxdiff.fitted_grids import read_fitted_grid
from jaxdiff.names import GRIDS
from jaxdiff.networks.axes import parameter_axes
from jaxdiff.sampler import (
    Guides,
    Sampler,
    Scales,
    Weights,
    check_sampling,
    finish_of,
    is_guided,
    labels_for,
    levels_of,
    sampler,
    scales_of,
)
from jaxdiff.settings import Settings, find_label, parts_of, prompts_of, with_settings
from jaxdiff.texts import Reader, is_conditional, open_reader
from jaxdiff.training import hosts
from jaxdiff.training.restore import fingerprint
from jaxdiff.training.sharding import make_mesh, partition, replicated, shard_batch, share, to_host

Leaves = Mapping[str, Shaped[np.ndarray | jax.Array, "b ..."]]
"""Conditions of images."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """Parameters and a sampler of one checkpoint under given settings."""

    config: Config
    """The run's config with the settings in it."""
    settings: Settings
    step: int
    """Of the checkpoint."""
    label: int | None
    """Class of all images; None: the classes in turn."""
    label_names: tuple[str, ...]
    reader: Reader | None
    """Of prompts; None where the network is told of none."""
    prompts: tuple[str, ...]
    """Of the images in turn."""
    parts: tuple[tuple[str, float], ...]
    """What else all images show, each with its weight."""
    guides: Guides
    weights: Weights
    weights_sha256: str
    """Of all parameters, averages taken: whatever is kept of a run's samples belongs to these."""
    levels: Level
    run: Sampler
    finish: Callable[[Shaped[np.ndarray, "*n b h w c"]], UInt8[np.ndarray, "*n b H W C"]]
    """From what `run` returns to images."""

    @property
    def params(self) -> Params:
        """The parameters of the run's own network."""
        return self.weights.main

    @property
    def nfe(self) -> int | None:
        """Network calls an image, None where they differ by image (guidance asks about two rows in one call)."""
        return self.config.solver.nfe(self.levels)

    @property
    def batch_size(self) -> int:
        """Images made at once: the setting, as a multiple of the devices that share them."""
        parts = share(self.mesh)
        return -(-self.settings.batch_size // parts) * parts

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return make_mesh(self.settings.mesh)

    def images(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """The images of these numbers; `b` is a multiple of the devices."""
        cond, negative = (shard_batch(self.mesh, leaves) for leaves in self.conditions(indices))
        index = shard_batch(self.mesh, {"index": indices})["index"]
        seed = jnp.int32(self.settings.seed)
        with jax.set_mesh(self.mesh):
            given = (self.weights, seed, index, self.levels, cond, self.scales, negative, self.also(len(indices)))
            found = to_host(self.run(*given))
        return self.finish(found)

    def conditions(self, indices: Int[np.ndarray, "b"]) -> tuple[Leaves, Leaves]:
        """(what the images of these numbers shall be, what guidance leads away from in place of nothing)."""
        cond = dict(labels_for(self.config, indices, self.label, self.guides))
        if self.reader is None:
            return cond, {}
        texts = self.reader.conditions([self.prompts[int(i) % len(self.prompts)] for i in indices])
        guided = is_guided(self.config)
        away = self.reader.away(self.settings.negative_prompt, len(indices)) if guided else {}
        return {**cond, **texts}, away

    def also(self, count: int) -> list[tuple[dict[str, jax.Array], jax.Array]]:
        """What else `count` images shall be, with the weights."""
        found = []
        for text, weight in self.parts:
            if self.reader is not None:
                labels = labels_for(self.config, np.zeros(count, np.int32), -1, self.guides)
                leaves = {**labels, **self.reader.conditions([text] * count)}
            else:
                leaves = {"label": np.full(count, find_label(text, self.label_names, "--and"), np.int32)}
            found.append((shard_batch(self.mesh, leaves), jnp.float32(weight)))
        return found

    @property
    def scales(self) -> Scales:
        """The strengths of guidance."""
        return scales_of(self.config, self.settings.classifier_scale)

    def description(self) -> dict[str, object]:
        """All that the images depend on besides their numbers, for records."""
        ema, config, settings = self.settings.ema, self.config, self.settings
        classifier = settings.classifier
        guides = {
            "guide": None if settings.guide is None else [str(settings.guide), settings.guide_step, settings.guide_ema],
            "classifier": None if classifier is None else [str(classifier), settings.classifier_scale],
        }
        return {
            "checkpoint_step": self.step,
            "weights_sha256": self.weights_sha256,
            "seed": self.settings.seed,
            "label": self.label,
            "ema": ema if ema is not None else (to_json(config.ema[0]) if config.ema else "none"),
            "solver": to_json(config.solver),
            "grid": to_json(config.grid),
            "sampling": to_json(config.sampling),
            "nfe": self.nfe,
            **({"codec": config.codec} if config.codec else {}),
            **({"lora": list(settings.lora)} if settings.lora else {}),
            **({"tile": settings.tile} if settings.tile else {}),
            **({"and": list(settings.also)} if settings.also else {}),
            **self._words(),
            **{name: value for name, value in guides.items() if value is not None},
        }

    def _words(self) -> dict[str, object]:
        if self.reader is None:
            return {}
        said = self.settings.prompt or hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()
        return {"prompt": said, "negative_prompt": self.settings.negative_prompt, "reader_sha256": self.reader.sha256}


def open_trained(workdir: epath.PathLike, settings: Settings, most_steps: int = 0) -> Trained:
    """The run in `workdir` under these settings.

    Grids are padded to the length of `most_steps` steps, so that one compilation serves a sweep over numbers of steps.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    own = read_checkpoint(workdir, settings.step, settings.ema, settings.base)
    config = with_settings(own.config, settings)
    own = own._replace(params=with_loras(config, own.params, settings.lora))
    if settings.grid == "optimised":
        config = dataclasses.replace(config, grid=read_fitted_grid(workdir, config.sampling.steps))
    weaker = settings.guide and read_checkpoint(settings.guide, settings.guide_step, settings.guide_ema)
    classifier = settings.classifier and read_checkpoint(settings.classifier, None, None)
    guides = Guides(weaker.config if weaker else None, classifier.config if classifier else None)
    check_sampling(config, guides)
    names = own.label_names or (classifier.label_names if classifier else ())
    label = None if settings.label is None else find_label(settings.label, names)
    reader = open_reader(config, own.tokenizer) if config.data.text else None
    prompts = prompts_of(settings, own.captions, reader)
    parts = parts_of(settings)
    if parts and (weaker or not is_conditional(config)):
        raise ValueError(f"{parts[0][0]!r} is not allowed: this network is told nothing, or guided by another (--and)")
    path = config.objective.path_of(own.params)
    levels = levels_of(config, path)
    ends_clean = float(levels.sigma[-1]) == 0  # a padded grid always does
    if most_steps > config.sampling.steps and settings.grid != "optimised" and ends_clean:
        longest = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=most_steps))
        levels = pad(levels, levels_of(longest, path).alpha.shape[0] - 1)
    weights = Weights(own.params, weaker.params if weaker else None, classifier.params if classifier else None)
    sha256 = fingerprint(weights)
    mesh = make_mesh(settings.mesh)
    weights = hosts.place(weights, partition(weights, mesh, parameter_axes))
    levels = hosts.place(levels, replicated(mesh))
    run = shared_sampler(config, guides)
    finish = finish_of(config, settings.tile)
    return Trained(
        config,
        settings,
        own.step,
        label,
        names,
        reader,
        prompts,
        tuple(parts),
        guides,
        weights,
        sha256,
        levels,
        run,
        finish,
    )


def with_prompt(trained: Trained, prompt: str) -> Trained:
    """The same with another prompt for all images. Raises: ValueError where the network is told of none."""
    settings = dataclasses.replace(trained.settings, prompt=prompt)
    return dataclasses.replace(trained, settings=settings, prompts=prompts_of(settings, (), trained.reader))


def shared_sampler(config: Config, guides: Guides) -> Sampler:
    """The sampler of this config; configs that differ only in what is traced (levels, scales) share a compilation."""
    traced = {
        "steps": 1,
        "cfg_scale": 2.0 if is_guided(config) else 1.0,
        "pag_scale": 1.0 if config.sampling.pag_scale else 0.0,
        "distilled_scale": 1.0,
    }
    sampling = dataclasses.replace(config.sampling, **traced)
    alike = dataclasses.replace(config, sampling=sampling, grid=GRIDS["uniform"], codec="")
    return _sampler(*(json.dumps(to_json(c)) for c in (alike, *guides)))


@functools.lru_cache(maxsize=16)
def _sampler(config: str, weaker: str, classifier: str) -> Sampler:
    own, *others = (from_json(json.loads(text)) for text in (config, weaker, classifier))
    assert isinstance(own, Config)
    return sampler(own, Guides(*others))  # pyright: ignore[reportArgumentType]
