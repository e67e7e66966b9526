"""Checkpoints of a run, which Orbax writes in the background; a run resumes from them bit for bit.

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
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental.multihost_utils import sync_global_devices
from jaxtyping import PyTree

from jaxdiff.core.types import Params
from jaxdiff.training import ema
from jaxdiff.training.restore import (
    LENGTH,
    DamagedError,
    folder_of,
    one_line,
    read_item,
    read_record,
    read_step_config,
    steps,
)
from jaxdiff.training.workdir import Json, write_fingerprints

State = TypeVar("State", bound=tuple)
"""A NamedTuple of pytrees of arrays, among its fields `params` and `ema` (a tuple of averages)."""

_log = logging.getLogger(__name__)


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
            _save(self.averages, step, {f"{LENGTH}{a.sigma_rel!r}": tree for a, tree in pairs}, None)

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
        folder = folder_of(self.workdir, step)
        record, items = read_record(folder), _items(abstract)
        _check_arrays(folder, record["arrays"], {name: _describe(tree) for name, tree in items.items()})
        read = {name: read_item(folder / name, tree) for name, tree in items.items()}
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
        manager.reload()  # it no longer counts those that the failed one was to replace
        what = f"cannot write a checkpoint to {manager.directory} ({one_line(error)})"
        raise OSError(f"{what}; the ones before it are intact") from error


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
