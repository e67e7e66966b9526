"""Checkpoints as what a sampler reads: of a run the parameters or an average of them, or a model."""

import dataclasses

from etils import epath

from jaxdiff.adapters import combine, is_adapted
from jaxdiff.config import Config, from_json
from jaxdiff.core.types import Params
from jaxdiff.models import Checkpoint, find_model, read_model, shipped_models
from jaxdiff.training.ema import Decay, Power
from jaxdiff.training.restore import fingerprint, read_params, read_posthoc, read_step_config, steps
from jaxdiff.training.workdir import Json, read_config


def read_checkpoint(
    workdir: epath.PathLike, step: int | None, ema: str | None, base: epath.PathLike | None = None
) -> Checkpoint:
    """The checkpoint of a run, with the parameters or an average of them; or a model, by its folder or its name.

    What a run has trained on top of other parameters comes together with these, which are read where they were, or
    from `base`.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    if (model := find_model(workdir)) is not None:
        if step is not None or ema is not None:
            raise ValueError(f"{workdir} is a model, which has no other steps or averages (--step, --ema)")
        return read_model(model)
    if not epath.Path(workdir).exists():
        names = ", ".join(shipped_models())
        raise FileNotFoundError(f"there is no folder {workdir}: name a run's, a model's, or what ships here: {names}")
    config, record, params = read_part(workdir, step, ema)
    if is_adapted(config):
        below = read_start(dataclasses.replace(config, start=str(base or config.start)), "--base")
        params = combine(config, below.params, params)
    names, captions = (tuple(record.get(key, ())) for key in ("label_names", "captions"))
    return Checkpoint(config, names, record["step"], params, record.get("tokenizer", ""), captions)


def read_part(workdir: epath.PathLike, step: int | None, ema: str | None) -> tuple[Config, Json, Params]:
    """(config, record with the step, parameters or an average of them) as a checkpoint of a run holds them.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    read_config(workdir)  # refuses a folder that is no run
    stored = steps(workdir)
    if not stored:
        raise ValueError(f"{workdir} has no complete checkpoint yet: let train.py reach --save-every steps")
    step = stored[-1] if step is None else step
    record = read_step_config(workdir, step)
    config = from_json(record["config"])
    assert isinstance(config, Config)
    return config, {**record, "step": step}, read_ema(workdir, step, config, ema)


def read_start(config: Config, flag: str = "--start") -> Checkpoint:
    """What a run starts from: the first average of `config.start`, at the step that is noted or the last.

    Raises: ValueError or FileNotFoundError where it is gone, or is not what it was when the run began.
    """
    step = config.start_step if find_model(config.start) is None and config.start_step >= 0 else None
    try:
        found = read_checkpoint(config.start, step, None)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"what this run starts from cannot be read: {error} ({flag})") from error
    if config.start_sha256 not in ("", fingerprint(found.params)):
        raise ValueError(f"{config.start} is not what this run was started from: its parameters differ ({flag})")
    return found


def read_ema(workdir: epath.PathLike, step: int, config: Config, length: str | None) -> Params:
    """The parameters that `--ema` asks for. Raises: ValueError, naming what is allowed."""
    averages = config.ema
    if length == "none" or (length is None and not averages):
        return read_params(workdir, step)
    if length is None:
        return read_params(workdir, step, 0)
    tracked = [str(a.decay if isinstance(a, Decay) else a.sigma_rel) for a in averages]
    if length in tracked:
        return read_params(workdir, step, tracked.index(length))
    powers = [a for a in averages if isinstance(a, Power)]
    if powers and length.replace(".", "", 1).isdigit() and 0 < float(length) < 12**-0.5:
        return read_posthoc(workdir, step, float(length))[0]
    more = ", or any length in (0, 0.2887)" if powers else ""
    raise ValueError(f"ema {length!r} is not allowed: none, {', '.join(tracked)}{more} (--ema)")
