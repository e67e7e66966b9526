"""Train a diffusion model: python train.py PRESET --workdir DIR [--steps N] [--batch-size B] [any field].

The same command starts a run and resumes it, bit for bit, wherever it stopped.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxdiff import build, cli, sampler
from jaxdiff.config import Config, to_json
from jaxdiff.data import batches, open_source, open_validation, validation_batches
from jaxdiff.objectives.vdm import VDM
from jaxdiff.presets import PRESETS, preset
from jaxdiff.training.checkpoint import open_checkpoints
from jaxdiff.training.interrupt import Interrupt
from jaxdiff.training.monitor import Monitor
from jaxdiff.training.optim import optimizer
from jaxdiff.training.state import Purpose, data_mesh, key_for, replicated, shard_batch, use_every_core
from jaxdiff.training.step import averaged, init_state, make_step
from jaxdiff.training.validate import continuous_bits, make_validate
from jaxdiff.training.workdir import prepare_workdir

MAY_CHANGE = {
    *("config.steps", "config.log_every", "config.save_every", "config.keep", "config.keep_every"),
    *("config.preview_every", "config.validate_every", "config.solver", "config.grid", "config.sampling"),
    "config.data.workers",
}
"""Fields that a resumed run may have otherwise than the run that it resumes."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the command line says."""

    workdir: Path
    """Folder of the run: checkpoints, logs, sample grids. A run that was interrupted in it is resumed."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    """What is trained."""


def read_command(args: Sequence[str]) -> Run:
    """The run that the command line asks for; prints help or one line of error, and ends, where it asks for none."""
    if not args or args[0] in ("-h", "--help"):
        print(f"{__doc__}\npresets:")
        for name, make in PRESETS.items():
            print(f"  {name:20} {(make.__doc__ or '').splitlines()[0]}")
        print("\npython train.py PRESET --help lists the fields of a preset, with their values.")
        raise SystemExit(0 if args else 2)
    config = preset(args[0])
    summary = (PRESETS[args[0]].__doc__ or "").splitlines()[0]
    default = Run(workdir=tyro.MISSING, config=config)
    return cli.parse(Run, f"train.py {args[0]}", args[1:], default, summary)


def flag_of(name: str) -> str:
    """The flag that sets a field of the record."""
    return "--" + name.removeprefix("config.").removeprefix("objective.").replace("_", "-")


def train(config: Config, workdir: Path) -> None:
    """Trains until `config.steps`, or until a signal; everything that is needed to go on is in `workdir`."""
    source = open_source(config.data)
    build.check_data(config, source.label_names)
    record = {"config": to_json(config), "label_names": list(source.label_names)}
    prepare_workdir(workdir, record, MAY_CHANGE, flag_of)
    mesh, first = data_mesh(), jax.process_index() == 0
    build.check_devices(config, mesh.size)

    # The state: new, or the last checkpoint's.
    rule = optimizer(config.optim, config.steps)

    def init():
        return init_state(build.init_run(config, key_for(config.seed, 0, Purpose.INIT)), rule, config.ema)

    place = replicated(mesh)
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), jax.eval_shape(init))
    checkpoints = open_checkpoints(workdir, config.keep, config.keep_every or None)
    restored = checkpoints.restore_latest(abstract)
    # A hundred small random draws that run once: on a CPU, optimising them would take longest.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    state = restored[1] if restored else jax.jit(init, out_shardings=place, compiler_options=options)()
    data = batches(config.data, source, config.batch_size, config.seed, jax.process_index(), jax.process_count())
    if restored:
        data.set_state(restored[2])
    start = int(state.step)

    # What runs on the devices.
    step_fn = make_step(build.loss_fn(config), rule, config.ema, config.seed, config.optim.accumulate)
    step_fn = jax.jit(step_fn, donate_argnums=0)
    validate = make_validate(build.losses_fn(config))
    bounded = isinstance(config.objective, VDM)  # its loss is a bound on the bits per dimension
    held_out = open_validation(config.data) if config.validate_every or bounded else None
    preview = sampler.preview(config) if config.preview_every else None
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    if first:
        print(
            f"{len(source)} images of {source.name}; {parameters / 1e6:.2f} M parameters; "
            f"{mesh.size} device(s); steps {start} to {config.steps} in {workdir}"
        )

    monitor = Monitor(workdir, start, config.steps, config.batch_size, config.log_every, quiet=not first)
    summary = ""
    with Interrupt() as interrupt:
        try:
            for step in range(start + 1, config.steps + 1):
                state, metrics = step_fn(state, shard_batch(mesh, next(data)))
                monitor.push(step, metrics)
                last = step == config.steps or interrupt.signal is not None

                due = config.validate_every and step % config.validate_every == 0
                if held_out is not None and (due or step == config.steps):
                    monitor.check()
                    times, logsnrs = build.validation_times(config, state.params)
                    key = key_for(config.seed, 0, Purpose.VALIDATE)
                    pages = functools.partial(validation_batches, config.data, held_out, config.batch_size)
                    monitor.validation(step, logsnrs, validate(averaged(state), key, times, pages()))
                    if bounded and step == config.steps:
                        bits = continuous_bits(validate, averaged(state), key, pages)
                        monitor.bits_per_dim(step, bits, len(held_out))
                        summary = f"bits/dim {bits:.3f} (continuous bound) on {len(held_out)} validation images"

                if preview and (step % config.preview_every == 0 or step == config.steps):
                    monitor.check()
                    monitor.preview(step, preview(averaged(state)))

                if last or step % config.save_every == 0:
                    monitor.check()  # a state that is not finite is never saved
                    checkpoints.save(step, state, data.get_state(), record)
                    checkpoints.snapshot(step, config.ema, state.ema)
                if interrupt.signal is not None:
                    break
        finally:
            monitor.close()
            data.close()
            checkpoints.close()
    if summary and first:
        print(summary)
    if interrupt.signal is not None:
        cli.fail(
            f"stopped by {interrupt.signal.name} at step {step}, saved: the same command goes on",
            128 + interrupt.signal,
        )


def main(args: Sequence[str]) -> None:
    with cli.user_errors():
        run = read_command(args)
        use_every_core(run.config.batch_size)
        train(run.config, run.workdir)


if __name__ == "__main__":
    main(sys.argv[1:])
