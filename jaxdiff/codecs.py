"""Codecs by the text of `--codec`, NAME=WHERE: the published ones, and autoencoders that were trained here.

taesd=FILE,FILE ...      the TAESD family: encoder, decoder, or both in either order
kl=FOLDER                AutoencoderKL in diffusers' layout, with its config.json
vq=FOLDER                VQModel in the same layout
sd=FILE, sdxl, sd3, flux the same without a config
run=DIR                  what train.py made in DIR: the first average of its last checkpoint; or a model made of it
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from etils import epath

from jaxdiff.config import Config, from_json
from jaxdiff.core.codec import Opened
from jaxdiff.models import find_model, read_model
from jaxdiff.networks.autoencoder import AutoencoderKL
from jaxdiff.pretrained.autoencoder import PUBLISHED, codec_of, open_autoencoder, open_published
from jaxdiff.pretrained.taesd import MEMBERS, open_taesd
from jaxdiff.pretrained.vq import open_vq
from jaxdiff.training.restore import fingerprint, read_params, read_step_config, steps


def open_codec(spec: str) -> Opened:
    """The codec that `spec` names. Raises ValueError or FileNotFoundError, one line that names the flag."""
    openers: Mapping[str, Callable[[str], Opened]] = {
        **{name: partial(open_taesd, name) for name in MEMBERS},
        **{name: partial(open_published, name) for name in PUBLISHED},
        "kl": open_autoencoder,
        "vq": open_vq,
        "run": open_run,
    }
    name, _, where = spec.partition("=")
    if name not in openers or not where:
        raise ValueError(
            f"codec {spec!r} is not allowed: NAME=FILE, or FOLDER for kl, vq, run; NAME: {', '.join(openers)} (--codec)"
        )
    return openers[name](where)


def open_run(text: str) -> Opened:
    """The autoencoder that a run trained, of the run or of a model made of it.

    Raises FileNotFoundError without one, ValueError for another kind of run.
    """
    folder = epath.Path(text)
    stored = steps(folder) if folder.is_dir() else ()
    if stored:
        config = from_json(read_step_config(folder, stored[-1])["config"])
    elif (model := find_model(folder)) is not None:
        config = read_model(model).config
    else:
        raise FileNotFoundError(f"{folder} has no complete checkpoint of a run (--codec run=DIR)")
    if not (isinstance(config, Config) and isinstance(config.network, AutoencoderKL)):
        raise ValueError(f"the run in {folder} trained no autoencoder: name one of a preset *_vae (--codec run=DIR)")
    found = read_params(folder, stored[-1], 0 if config.ema else None) if stored else read_model(folder).params
    # Bound to no device, so that inputs may be on any.
    params = jax.tree.map(jnp.asarray, jax.device_get(found["network"]))
    network = config.network
    return Opened(codec_of(network, params), "run", (fingerprint(params),), network.factor, network.latents)
