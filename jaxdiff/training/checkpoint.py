"""Checkpoints of a run, which Orbax writes in the background, read back bit for bit.

    workdir/
      config.json               {"jaxdiff": version, "config": the config that the run was last started with}
      checkpoints/<step>/       has this name only once it is complete
        params/  ema_<i>/       the parameters, and each of their averages: sampling reads only the one it needs
        rest/                   the other fields of the state (optimiser, step)
        record/                 JSON: the config, the position in the data, the shape and type of every array
        files.json              size and CRC-32 of every file, by which damage is found
      ema/<step>/
        sigma_rel_<length>/     snapshots of `ema.Power` averages, for other lengths after training
      damaged/<step>/           checkpoints that could not be read, moved out of the way

Anything else in the folder (logs, sample grids) is written by others and left alone.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental.multihost_utils import sync_global_devices
from jaxtyping import PyTree

from jaxdiff.core.types import Params
from jaxdiff.training import ema
from jaxdiff.training.workdir import FINGERPRINTS, Json, find_damage, write_fingerprints

State = TypeVar("State", bound=tuple)
"""A NamedTuple of pytrees of arrays, among its fields `params` and `ema` (a tuple of averages)."""

_log = logging.getLogger(__name__)
_LENGTH = "sigma_rel_"


class DamagedError(ValueError):
    """A checkpoint that cannot be read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoints:
    """The checkpoints of a run in training. `open_checkpoints` makes it; `close` it in the end.

    Writing goes on in the background: what went wrong there is raised by the next `save`, `wait` or `close`.
    """

    workdir: epath.Path
    states: ocp.CheckpointManager
    averages: ocp.CheckpointManager

    def save(self, step: int, state: tuple, data_state: Json, config: Json) -> None:
        """Starts writing the state after `step` steps; returns when the arrays may be overwritten or donated.

        `data_state` (of process 0) and `config` are JSON. A step that is already written is left as it is.

        Raises: OSError, in one line, where this or the last checkpoint cannot be written.
        """
        items = _items(state)
        record = {"config": config, "data": data_state, "arrays": {k: _describe(v) for k, v in items.items()}}
        _save(self.states, step, items, record)

    def snapshot(self, step: int, averages: ema.Averages, trees: tuple[Params, ...]) -> None:
        """Starts writing the `ema.Power` averages among `averages` after `step` steps, for `read_posthoc`.

        Raises: OSError as `save` does.
        """
        pairs = [(a, tree) for a, tree in zip(averages, trees, strict=True) if isinstance(a, ema.Power)]
        if pairs:
            _save(self.averages, step, {f"{_LENGTH}{a.sigma_rel!r}": tree for a, tree in pairs}, None)

    def wait(self) -> None:
        """Returns when all that was saved is on disk. Raises: OSError as `save` does."""
        for manager in (self.states, self.averages):
            with _writing(manager):
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads that write. Raises: OSError as `save` does."""
        with contextlib.ExitStack() as stack:
            for manager in (self.states, self.averages):
                stack.enter_context(_writing(manager))
                stack.callback(manager.close)

    def steps(self) -> tuple[int, ...]:
        """The steps of the complete checkpoints, rising."""
        return steps(self.workdir)

    def latest(self) -> int | None:
        """The last complete checkpoint."""
        return max(self.steps(), default=None)

    def config(self, step: int) -> Json:
        """The config of the run that wrote the checkpoint. Raises: as `restore`."""
        return read_step_config(self.workdir, step)

    def restore(self, step: int, abstract: State) -> tuple[State, Json]:
        """The state and the position in the data at `step`, bit for bit.

        `abstract` is a state of `jax.ShapeDtypeStruct`, whose shardings say where the arrays go: they need not
        be the shardings of the run that wrote them.

        Raises: FileNotFoundError without such a checkpoint; ValueError where it holds other arrays than
        `abstract`; its subclass DamagedError where it cannot be read.
        """
        folder = _folder(self.workdir, step)
        record, items = _record(folder), _items(abstract)
        _check_arrays(folder, record["arrays"], {name: _describe(tree) for name, tree in items.items()})
        read = {name: _read(folder / name, tree) for name, tree in items.items()}
        averages = tuple(tree for name, tree in read.items() if name.startswith("ema_"))
        make: Any = type(abstract)
        return make(params=read["params"], ema=averages, **read["rest"]), record["data"]

    def restore_latest(self, abstract: State) -> tuple[int, State, Json] | None:
        """(step, state, data_state) of the last checkpoint that can be read; None where there is none yet.

        A damaged one is moved to `damaged/`, with a warning, and the one before it is tried.

        Raises: ValueError where the checkpoint holds other arrays than `abstract`, or where all are damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                state, data_state = self.restore(step, abstract)
            except DamagedError as error:
                damaged.append((step, error))
                continue
            for other, error in damaged:
                _log.warning("%s; it is now %s, going on from step %d", error, self._set_aside(other), step)
            return step, state, data_state
        if damaged:
            raise ValueError(f"{damaged[0][1]}, and no checkpoint before it can be read: use another --workdir")
        return None

    def _set_aside(self, step: int) -> epath.Path:
        folder = self.workdir / "damaged"
        target = next(p for i in range(1000) if not (p := folder / (f"{step}.{i}" if i else f"{step}")).exists())
        sync_global_devices("all processes have read the checkpoints")
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            (self.states.directory / str(step)).rename(target)
        sync_global_devices("damaged checkpoint is out of the way")
        self.states.reload()
        return target


def open_checkpoints(workdir: epath.PathLike, keep: int = 3, keep_every: int | None = None) -> Checkpoints:
    """The checkpoints below `workdir`, of which the last `keep` and every `keep_every`-th step stay on disk.

    What a killed run left half written is removed: one training run at a time may open a folder.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep} must be at least 1 (--keep)")
    # Orbax logs what it does and what fails; failures are raised to the caller, in one line.
    logging.getLogger("absl").addFilter(_not_from_orbax)
    root = epath.Path(workdir).absolute()
    return Checkpoints(root, _manager(root / "checkpoints", keep, keep_every), _manager(root / "ema", None, None))


def _manager(folder: epath.Path, keep: int | None, keep_every: int | None) -> ocp.CheckpointManager:
    policy: Any = ocp.checkpoint_managers.LatestN(keep)
    if keep_every:
        every = ocp.checkpoint_managers.EveryNSteps(keep_every)
        policy = ocp.checkpoint_managers.AnyPreservationPolicy([policy, every])
    finish = functools.partial(_write_fingerprints, folder)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=finish),
    )
    return ocp.CheckpointManager(folder, options=options)


def steps(workdir: epath.PathLike) -> tuple[int, ...]:
    """The steps of the complete checkpoints below `workdir`, rising."""
    return _steps(epath.Path(workdir) / "checkpoints")


def read_step_config(workdir: epath.PathLike, step: int) -> Json:
    """The config of the run that wrote checkpoint `step`. Raises: as `Checkpoints.restore`."""
    return _record(_folder(epath.Path(workdir).absolute(), step))["config"]


def read_params(workdir: epath.PathLike, step: int, average: int | None = None) -> Params:
    """The parameters of checkpoint `step`, or their average number `average`, on the first local device.

    Needs no knowledge of the network, the optimiser or the devices of the run that wrote them.

    Raises: as `Checkpoints.restore`, and ValueError without such an average.
    """
    folder = _folder(epath.Path(workdir).absolute(), step)
    count = sum(name.startswith("ema_") for name in _record(folder)["arrays"])
    if average is not None and not 0 <= average < count:
        raise ValueError(f"average {average} must be in [0, {count}) in {folder} (--ema)")
    return _read(folder / ("params" if average is None else f"ema_{average}"))


def snapshots(workdir: epath.PathLike) -> tuple[ema.Snapshot, ...]:
    """The (step, sigma_rel) of the snapshots of `ema.Power` averages below `workdir`, rising."""
    root = epath.Path(workdir) / "ema"
    found = [(step, p.name) for step in _steps(root) for p in (root / str(step)).iterdir()]
    return tuple(sorted((s, float(n.removeprefix(_LENGTH))) for s, n in found if n.startswith(_LENGTH)))


def read_posthoc(workdir: epath.PathLike, step: int, sigma_rel: float) -> tuple[Params, float]:
    """The `ema.Power` average of any length at `step`, made of the snapshots up to there, and its relative error.

    The error is `ema.posthoc_error`: about 0.01 or less where the snapshots are close enough for this length.

    Raises: ValueError without a snapshot at `step`, DamagedError where one cannot be read.
    """
    root = epath.Path(workdir).absolute() / "ema"
    known = [s for s in snapshots(workdir) if 1 <= s[0] <= step]
    if not known or known[-1][0] != step:
        raise ValueError(f"{root} has no snapshot of step {step}, but {_listed(_steps(root))} (--step, --ema)")
    target = (step, sigma_rel)
    weights = ema.posthoc_weights(known, target)
    trees = (_read(root / str(s) / f"{_LENGTH}{length!r}") for s, length in known)
    return ema.combine(weights, trees), ema.posthoc_error(known, target, weights)


def _items(state: Any) -> dict[str, PyTree]:
    """What is written apart: the parameters, each average, and the rest of the state."""
    fields = state._asdict()
    params, averages = fields.pop("params"), fields.pop("ema")
    return {"params": params, **{f"ema_{i}": tree for i, tree in enumerate(averages)}, "rest": fields}


def _describe(tree: PyTree) -> dict[str, str]:
    """ "float32[3, 3]" by the path of each array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _check_arrays(folder: epath.Path, stored: Json, wanted: Json) -> None:
    flat = [{f"{k}/{path}": v for k, leaves in x.items() for path, v in leaves.items()} for x in (stored, wanted)]
    both = {name: tuple(f.get(name, "none") for f in flat) for name in sorted(flat[0].keys() | flat[1].keys())}
    differ = [f"{name} = {old}, this run has {new}" for name, (old, new) in both.items() if old != new]
    if differ:
        more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ValueError(f"{folder} holds {'; '.join(differ[:3])}{more}: use its config, or another --workdir")


def _steps(folder: epath.Path) -> tuple[int, ...]:
    if not folder.exists():
        return ()
    return tuple(sorted(m.step for m in ocp.path.step.standard_name_format().find_all(folder)))


def _folder(workdir: epath.Path, step: int) -> epath.Path:
    folder = workdir / "checkpoints" / str(step)
    if not folder.exists():
        raise FileNotFoundError(f"{workdir} has no checkpoint of step {step}, but {_listed(steps(workdir))} (--step)")
    return folder


def _listed(found: Collection[int]) -> str:
    return f"of {', '.join(map(str, found))}" if found else "none at all"


def _record(folder: epath.Path) -> Json:
    with (
        _reading(folder / "record"),
        contextlib.closing(ocp.Checkpointer(ocp.JsonCheckpointHandler())) as reader,
    ):
        return reader.restore(folder / "record")


def _read(folder: epath.Path, abstract: PyTree | None = None) -> PyTree:
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
        raise DamagedError(f"{folder} is damaged or incomplete ({_reason(error)})") from error


def _write_fingerprints(root: epath.Path) -> None:
    """Orbax calls this when all files of a checkpoint are written, before the folder gets its final name."""
    for folder in root.iterdir():
        if folder.is_dir() and not folder.name.isdigit():
            write_fingerprints(folder)


def _save(manager: ocp.CheckpointManager, step: int, items: dict[str, PyTree], record: Json | None) -> None:
    args: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    if record is not None:
        args["record"] = ocp.args.JsonSave(record)
    with _writing(manager):
        manager.wait_until_finished()
        if step not in manager.all_steps():
            _check_space(manager.directory, sum(x.nbytes for x in jax.tree.leaves(items)))
            manager.save(step, args=ocp.args.Composite(**args), force=True)


def _check_space(folder: epath.Path, size: int) -> None:
    """A disk that is sure to run full is better noticed before than amid writing, by many threads at once."""
    with contextlib.suppress(FileNotFoundError):  # an object store is no disk
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size:,} bytes to write, {free:,} free")


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Whatever goes wrong in writing, now or since the last call, becomes one line."""
    try:
        yield
    except Exception as error:
        manager.reload()  # it counts the checkpoint that failed
        what = f"cannot write a checkpoint to {manager.directory} ({_reason(error)})"
        raise OSError(f"{what}; the ones before it are intact") from error


def _reason(error: BaseException) -> str:
    """One line: the system's words where there are some in a long message."""
    text = f"{error}"
    words = (os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES))
    found = next((w for w in words if w in text), None) if len(text) > 120 else None
    return found or f"{type(error).__name__}: {text}".splitlines()[0][:300]


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
