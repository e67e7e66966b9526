"""Plan a run before paying for it: jaxdiff plan PRESET --topology v5e:16x16 [--batch-size B] [any field].

Compiles the real training step and the real sampler for that slice on this CPU (libtpu, the extra `tpu`), and says
whether they fit, what they need, what bounds them, and, where they do not fit, what would. Nothing is allocated, and no
TPU is asked.

jaxdiff plan --table PRESET ... --rows DIR makes a table of presets and slices; rows that DIR has are not made again.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro

from jaxdiff import cli
from jaxdiff.commands.plan_remedies import first_that_fits, remedies
from jaxdiff.commands.plan_step import open_slice, plan_sampling, plan_training, sampling_batch
from jaxdiff.config import Config
from jaxdiff.planning.chips import Slice, parse_slice
from jaxdiff.planning.report import Program, describe
from jaxdiff.planning.search import largest
from jaxdiff.presets import PRESETS, preset

MOST = 2**20
"""No larger batch is tried."""


def check_efficiency(value: float) -> None:
    """Raises: ValueError outside (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"efficiency = {value} is not allowed: above 0, at most 1 (--efficiency)")


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line says."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """What is trained."""
    topology: str = ""
    """The slice: v5e:16x16, or by its name: v5e-256, v5p-128 (which counts TensorCores, two a chip), v6e-256, v4-8."""
    efficiency: float = 0.4
    """Fraction of the roofline that a run is assumed to reach, for the estimated time."""
    search_batch: bool = False
    """Search for the largest batch that fits, by up to some twenty compilations."""
    sampling_batch: int = 0
    """Images that are sampled together; 0: 64, or as many as the mesh needs."""
    json: Path | None = None
    """File for all figures."""

    def __post_init__(self) -> None:
        check_efficiency(self.efficiency)
        if self.sampling_batch < 0:
            raise ValueError(f"sampling_batch = {self.sampling_batch} is not allowed: at least 0 (--sampling-batch)")


class Plan(NamedTuple):
    """What was found."""

    name: str
    config: Config
    slice: Slice
    images: int
    """Of the preset as published: its steps times its batch."""
    efficiency: float
    training: Program
    remedy: str
    """Flags with which the step fits where it does not as asked; "" where it does, or nothing helps."""
    remedied: tuple[Config, Program] | None
    sampling: Program | None
    sampled: int
    """Images that are sampled together."""

    @property
    def runnable(self) -> tuple[Config, Program]:
        """The run that fits, if any does: as asked, or with the remedy."""
        return self.remedied or (self.config, self.training)

    @property
    def days(self) -> float | None:
        """The estimated time of the published number of images; None where nothing fits."""
        config, program = self.runnable
        if program.roofline is None:
            return None
        return self.images / config.batch_size * program.roofline.seconds / self.efficiency / 86_400

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        config, program = self.runnable
        return {
            "preset": self.name,
            "slice": self.slice.name,
            "chips": self.slice.chips,
            "batch_size": config.batch_size,
            "mesh": dict(zip(("data", "fsdp", "sequence", "tensor"), config.mesh.sizes(self.slice.chips), strict=True)),
            "accumulate": config.optim.accumulate,
            "as_asked": self.training.to_json(),
            "remedy": self.remedy,
            "training": program.to_json(),
            "sampling": None if self.sampling is None else self.sampling.to_json(),
            "sampling_batch": self.sampled,
            "sampling_steps": self.config.sampling.steps,
            "images": self.images,
            "efficiency": self.efficiency,
            "days": self.days,
        }


def make_plan(
    name: str,
    config: Config,
    slice_: Slice,
    devices: list[Any],
    efficiency: float,
    images: int = 0,
    samples: bool = True,
) -> Plan:
    """Compiles the step, a remedy where it does not fit, and the sampler (of the remedied run) of `images` pictures.

    Without `samples` no sampler.
    """
    published = preset(name)
    training = plan_training(config, slice_, devices)
    remedy, remedied = "", None
    if not training.fits:
        tries = remedies(config, len(devices))
        found = first_that_fits(tries, lambda changed: plan_training(changed, slice_, devices))
        if found:
            remedy, remedied = found[0].flags, (found[0].config, found[1])
    run = remedied[0] if remedied else config
    count = sampling_batch(run, images, len(devices))
    sampling = plan_sampling(run, count, slice_, devices) if samples else None
    total = published.steps * published.batch_size
    return Plan(name, config, slice_, total, efficiency, training, remedy, remedied, sampling, count)


def show(plan: Plan) -> list[str]:
    """The plan in lines."""
    config, slice_ = plan.config, plan.slice
    lines = [f"{plan.name} on {slice_.name} ({slice_.chips} chips)", "", f"training, batch {config.batch_size}:"]
    lines += [f"  {line}" for line in describe(plan.training, slice_)]
    if plan.remedied:
        lines += ["", f"training with {plan.remedy}:"]
        lines += [f"  {line}" for line in describe(plan.remedied[1], slice_)]
    elif not plan.training.fits:
        lines.append(
            "  nothing that was tried makes it fit: a larger slice or a smaller batch would (--topology, --batch-size)"
        )
    if plan.days is not None:
        lines.append(
            f"  {plan.images / 1e6:.4g} M images, as published: {plan.days:.3g} days, assuming "
            f"{plan.efficiency:.2g} of the roofline (--efficiency)"
        )
    if plan.sampling is not None:
        lines += ["", f"sampling, {plan.sampled} images in {config.sampling.steps} steps:"]
        lines += [f"  {line}" for line in describe(plan.sampling, slice_)]
    return lines


def search(config: Config, slice_: Slice, devices: list[Any]) -> int:
    """The largest batch whose step fits; 0 where none does."""
    data, fsdp, _, _ = config.mesh.sizes(len(devices))
    unit = data * fsdp * config.optim.accumulate

    def fits(batch_size: int) -> bool:
        program = plan_training(dataclasses.replace(config, batch_size=batch_size), slice_, devices)
        print(f"batch {batch_size}: {'fits' if program.fits else 'does not fit'}", flush=True)
        return program.fits

    return largest(fits, unit, config.batch_size, MOST)


def write(path: Path, record: dict[str, object]) -> None:
    """Writes a record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def run(name: str, command: Command) -> None:
    """Plans, prints, writes."""
    slice_ = parse_slice(command.topology)
    devices = open_slice(slice_)
    plan = make_plan(name, command.config, slice_, devices, command.efficiency, command.sampling_batch)
    print("\n".join(show(plan)), flush=True)
    record = plan.to_json()
    if command.search_batch:
        best = search(plan.runnable[0], slice_, devices)
        print(f"largest batch that fits{f' with {plan.remedy}' if plan.remedy else ''}: {best}")
        record["largest_batch"] = best
    if command.json is not None:
        write(command.json, record)


def main(args: Sequence[str]) -> None:
    """The command."""
    from jaxdiff.commands import plan_table

    with cli.user_errors():
        jax.config.update("jax_platforms", "cpu")  # the chips are only compiled for
        if "--table" in args:
            plan_table.main(args)
            return
        if not args or args[0].startswith("-"):
            print(f"{__doc__}\npresets: {', '.join(PRESETS)}")
            raise SystemExit(0 if args and args[0] in ("-h", "--help") else 2)
        default = Command(preset(args[0]))
        run(args[0], cli.parse(Command, f"jaxdiff plan {args[0]}", args[1:], default, __doc__ or ""))
