"""Reading checkpoints: what a sampler needs, without the network, the optimiser or the devices that wrote them.

`checkpoint.py` says what lies where in a run's folder.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array, PyTree

from jaxdiff.core.types import Params
from jaxdiff.training import ema
from jaxdiff.training.workdir import FINGERPRINTS, Json, find_damage

LENGTH = "sigma_rel_"
"""What the name of a snapshot's item begins with."""


class DamagedError(ValueError):
    """A checkpoint that cannot be read."""


def steps(workdir: epath.PathLike) -> tuple[int, ...]:
    """The steps of the complete checkpoints below `workdir`, rising."""
    return steps_below(epath.Path(workdir) / "checkpoints")


def read_step_config(workdir: epath.PathLike, step: int) -> Json:
    """The config of the run that wrote checkpoint `step`. Raises: as `Checkpoints.restore`."""
    return read_record(folder_of(epath.Path(workdir).absolute(), step))["config"]


def read_params(workdir: epath.PathLike, step: int, average: int | None = None) -> Params:
    """The parameters of checkpoint `step`, or their average number `average`, on the first local device.

    Needs no knowledge of the network, the optimiser or the devices of the run that wrote them.

    Raises: as `Checkpoints.restore`, and ValueError without such an average.
    """
    folder = folder_of(epath.Path(workdir).absolute(), step)
    count = sum(name.startswith("ema_") for name in read_record(folder)["arrays"])
    if average is not None and not 0 <= average < count:
        raise ValueError(f"average {average} must be in [0, {count}) in {folder} (--ema)")
    return read_item(folder / ("params" if average is None else f"ema_{average}"))


def snapshots(workdir: epath.PathLike) -> tuple[ema.Snapshot, ...]:
    """The (step, sigma_rel) of the snapshots of `ema.Power` averages below `workdir`, rising."""
    root = epath.Path(workdir) / "ema"
    found = [(step, p.name) for step in steps_below(root) for p in (root / str(step)).iterdir()]
    return tuple(sorted((s, float(n.removeprefix(LENGTH))) for s, n in found if n.startswith(LENGTH)))


def read_posthoc(workdir: epath.PathLike, step: int, sigma_rel: float) -> tuple[Params, float]:
    """The `ema.Power` average of any length at `step`, made of the snapshots up to there, and its relative error.

    The error is `ema.posthoc_error`: about 0.01 or less where the snapshots are close enough for this length.

    Raises: ValueError without a snapshot at `step`, DamagedError where one cannot be read.
    """
    root = epath.Path(workdir).absolute() / "ema"
    known = [s for s in snapshots(workdir) if 1 <= s[0] <= step]
    if not known or known[-1][0] != step:
        raise ValueError(f"{root} has no snapshot of step {step}, but {_listed(steps_below(root))} (--step, --ema)")
    target = (step, sigma_rel)
    weights = ema.posthoc_weights(known, target)
    trees = (read_item(root / str(s) / f"{LENGTH}{length!r}") for s, length in known)
    return ema.combine(weights, trees), ema.posthoc_error(known, target, weights)


def steps_below(folder: epath.Path) -> tuple[int, ...]:
    """The steps of the complete checkpoints in a folder of them, rising."""
    if not folder.exists():
        return ()
    return tuple(sorted(m.step for m in ocp.path.step.standard_name_format().find_all(folder)))


def folder_of(workdir: epath.Path, step: int) -> epath.Path:
    """Where checkpoint `step` lies. Raises: FileNotFoundError, naming those that there are."""
    folder = workdir / "checkpoints" / str(step)
    if not folder.exists():
        raise FileNotFoundError(f"{workdir} has no checkpoint of step {step}, but {_listed(steps(workdir))} (--step)")
    return folder


def _listed(found: Collection[int]) -> str:
    return f"of {', '.join(map(str, found))}" if found else "none at all"


def read_record(folder: epath.Path) -> Json:
    """What a checkpoint says of itself: the config, the position in the data, the arrays."""
    with (
        _reading(folder / "record"),
        contextlib.closing(ocp.Checkpointer(ocp.JsonCheckpointHandler())) as reader,
    ):
        return reader.restore(folder / "record")


def read_item(folder: epath.Path, abstract: PyTree | None = None) -> PyTree:
    """The item as `abstract` says, or as nested dicts and lists on the first local device."""
    with _reading(folder), contextlib.closing(ocp.StandardCheckpointer()) as reader:
        if abstract is None:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            stored: Any = reader.handler.metadata(folder)
            abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), stored.tree)
        return reader.restore(folder, abstract)


@contextlib.contextmanager
def _reading(folder: epath.Path) -> Iterator[None]:
    """Damage becomes one line; what else goes wrong (no memory for the arrays, say) is not taken for damage."""
    damage = find_damage(folder)
    if damage:
        raise DamagedError(f"{folder} is damaged: {damage}")
    try:
        yield
    except Exception as error:
        if (folder.parent / FINGERPRINTS).exists():
            raise
        raise DamagedError(f"{folder} is damaged or incomplete ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """An error in one line: the system's words where there are some in a long message."""
    text = f"{error}"
    words = (os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES))
    found = next((w for w in words if w in text), None) if len(text) > 120 else None
    return found or f"{type(error).__name__}: {text}".splitlines()[0][:300]


def fingerprint(params: PyTree[Array]) -> str:
    """The SHA-256 of all arrays, in the order of their names."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()
