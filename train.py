"""Train a diffusion model: python train.py PRESET --workdir DIR [--steps N] [--batch-size B] [any field].

The same command starts a run and resumes it, bit for bit, wherever it stopped. In place of a preset, the folder of a
run or a model trains that one further, with its config: all of it, or a LoRA on top (--lora.rank 8).
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from etils import epath

from jaxdiff import adapters, autoencoders, build, cli, texts
from jaxdiff.config import Config, to_json
from jaxdiff.data import Source, batches, header_of, open_source, open_validation, validation_batches
from jaxdiff.models import find_model
from jaxdiff.networks.axes import parameter_axes
from jaxdiff.objectives.vdm import VDM
from jaxdiff.presets import PRESETS, preset
from jaxdiff.previews import first_images
from jaxdiff.starts import further, open_start
from jaxdiff.training import hosts
from jaxdiff.training.checkpoint import open_checkpoints
from jaxdiff.training.cpu import use_cpu
from jaxdiff.training.engine import DEVICES, jit_engine, pmap_engine
from jaxdiff.training.interrupt import Interrupt
from jaxdiff.training.monitor import Monitor
from jaxdiff.training.sharding import make_mesh, partition, rows_here, shard_batch
from jaxdiff.training.state import Purpose, key_for
from jaxdiff.training.step import averaged
from jaxdiff.training.validate import continuous_bits, make_validate
from jaxdiff.training.workdir import prepare_workdir

MAY_CHANGE = {
    *("config.steps", "config.log_every", "config.save_every", "config.keep", "config.keep_every"),
    *("config.preview_every", "config.validate_every", "config.solver", "config.grid", "config.sampling"),
    *("config.codec", "config.start"),
    *("config.data.workers", "config.mesh", "config.engine"),
}
"""Fields that a resumed run may have otherwise than the run that it resumes."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the command line says."""

    workdir: epath.Path
    """Folder of the run, gs://... too: checkpoints, logs, sample grids. What was interrupted in it is resumed."""
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
    name = args[0]
    config = preset(name) if name in PRESETS or not is_folder(name) else further(name)
    summary = (PRESETS[name].__doc__ or "").splitlines()[0] if name in PRESETS else f"Train {name} further."
    default = Run(workdir=tyro.MISSING, config=config)
    return cli.parse(Run, f"train.py {name}", args[1:], default, summary, preemptible=True)


def is_folder(name: str) -> bool:
    """Whether a run or a model is meant, and no preset."""
    return find_model(name) is not None or epath.Path(name).exists()


def flag_of(name: str) -> str:
    """The flag that sets a field of the record."""
    return "--" + name.removeprefix("config.").removeprefix("objective.").replace("_", "-")


def is_due(step: int, every: int) -> bool:
    """Whether something that is done every `every` steps, 0 for never, is due now."""
    return every > 0 and step % every == 0


def train(config: Config, workdir: epath.Path) -> None:
    """Trains until `config.steps`, or until a signal; everything that is needed to go on is in `workdir`."""
    source, header = open_source(config.data), header_of(config.data)
    config = dataclasses.replace(config, latents=header.latents if header else None)
    config, below = open_start(config, workdir)
    build.check_data(config, source.label_names)
    record = {"config": to_json(config), "label_names": list(source.label_names)}
    reader, captions = None, ()
    if config.data.text:
        tokenizer, captions = below.tokenizer or texts.learn_tokenizer(config, source), texts.examples(source)
        record |= {"tokenizer": tokenizer, "captions": list(captions)}
        reader = texts.open_reader(config, tokenizer)
        source = texts.with_captions(config, source, reader)
    prepare_workdir(workdir, record, MAY_CHANGE, flag_of, build.up_to_date)
    hosts.meet("workdir is prepared")
    build.check_devices(config, jax.device_count())
    mesh, first = make_mesh(config.mesh), hosts.is_first()

    # The state: new, or the last checkpoint's.
    init, abstract = build.state_fn(config, mesh)
    checkpoints = open_checkpoints(workdir, config.keep, config.keep_every or None)
    restored = checkpoints.restore_latest(abstract)
    # A hundred small random draws that run once: on a CPU, optimising them would take longest.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    part = hosts.place(below.part, (places.params,) * len(below.part))
    state = restored[1] if restored else jax.jit(init, out_shardings=places, compiler_options=options)(*part)
    rows = rows_here(mesh, config.batch_size)
    data = batches(config.data, source, config.batch_size, config.seed, rows)
    if restored:
        data.set_state(restored[2])
    start = int(state.step)

    # What runs on the devices. What stays as it is lies there once, spread as if it were trained.
    frozen = hosts.place(below.frozen, partition(below.frozen, mesh, parameter_axes))
    if config.engine == "pmap":
        engine = pmap_engine(mesh, build.step_fn(config, DEVICES), frozen)
    else:
        engine = jit_engine(mesh, build.step_fn(config), abstract, config.batch_size, frozen)
    whole = functools.partial(adapters.combine, config, *(frozen or (None,)))
    validate = make_validate(build.losses_fn(config))
    bounded = isinstance(config.objective, VDM)  # its loss is a bound on the bits per dimension
    rebuilds = autoencoders.is_autoencoder(config)
    held_out = open_validation(config.data) if config.validate_every or bounded else None
    held_out = held_out and texts.with_captions(config, held_out, reader)
    preview = None
    if config.preview_every and rebuilds:
        preview = autoencoders.preview(config, held_out or source)
    elif config.preview_every:
        preview = first_images(config, mesh, reader, captions, held_out or source)
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    if first:
        print(
            f"{len(source)} images of {source.name}; {parameters / 1e6:.2f} M {'trained ' * bool(frozen)}parameters; "
            f"{mesh.size} device(s){f' ({shape})' if shape else ''}; "
            f"steps {start} to {config.steps} in {workdir}"
        )

    monitor = Monitor(workdir, start, config.steps, config.batch_size, config.log_every, quiet=not first)
    summary, stopped = "", None

    def pages(held_out: Source):
        for page in validation_batches(config.data, held_out, config.batch_size, rows):
            yield shard_batch(mesh, page, config.batch_size)

    with Interrupt() as interrupt:
        try:
            state = engine.spread(state)
            for step in range(start + 1, config.steps + 1):
                state, metrics = engine.step(state, next(data))
                monitor.push(step, metrics)
                final = step == config.steps
                validates = final or is_due(step, config.validate_every)
                previews = final or is_due(step, config.preview_every)
                stopped = interrupt.reached(step)
                saves = final or stopped is not None or is_due(step, config.save_every)
                if not (validates or previews or saves):
                    continue
                monitor.check()  # a state that is not finite is never shown or saved
                now = engine.whole(state)

                key = key_for(config.seed, 0, Purpose.VALIDATE)
                if held_out is not None and validates and rebuilds:
                    decibels = float(validate(whole(averaged(now)), key, jnp.zeros(1), pages(held_out))[0])
                    monitor.psnr(step, decibels, len(held_out))
                    summary = f"PSNR {decibels:.2f} dB on {len(held_out)} validation images"
                elif held_out is not None and validates:
                    times, logsnrs = build.validation_times(config, whole(now.params))
                    monitor.validation(step, logsnrs, validate(whole(averaged(now)), key, times, pages(held_out)))
                    if bounded and final:
                        bits = continuous_bits(validate, whole(averaged(now)), key, functools.partial(pages, held_out))
                        monitor.bits_per_dim(step, bits, len(held_out))
                        summary = f"bits/dim {bits:.3f} (continuous bound) on {len(held_out)} validation images"

                if preview is not None and previews:
                    monitor.preview(step, preview(whole(averaged(now))))

                if saves:
                    checkpoints.save(step, now, data.get_state(), record)
                    checkpoints.snapshot(step, config.ema, now.ema)
                if stopped is not None:
                    break
        finally:
            monitor.close()
            data.close()
            checkpoints.close()
    if summary and first:
        print(summary)
    if stopped is not None:
        cli.fail(f"stopped by {stopped.name} at step {step}, saved: the same command goes on", 128 + stopped)


def main(args: Sequence[str]) -> None:
    with cli.user_errors():
        run = read_command(args)
        use_cpu(run.config.batch_size // hosts.count())
        train(run.config, run.workdir)


if __name__ == "__main__":
    main(sys.argv[1:])
