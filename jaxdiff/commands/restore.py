"""Restore a picture from a measurement of it: jaxdiff restore DIR --operator OP --measurement FILE --out OUT ...

Many pictures that agree with the measurement are drawn; their mean, deviation and intervals are written beside them.
--simulate IMAGE measures a clean picture in place of --measurement, and compares the results with it.
"""

import dataclasses
import io
import time
from collections.abc import Mapping, Sequence
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath
from jaxtyping import Array, Float, UInt8

from jaxdiff import cli
from jaxdiff.commands.perceptual import distances
from jaxdiff.config import to_json
from jaxdiff.evaluation.image_quality import WINDOW, psnr, ssim
from jaxdiff.measurements import (
    Taken,
    as_uint8,
    check_noise,
    described,
    first_look,
    read_arrays,
    read_measurement,
    read_picture,
    simulated,
    taken,
)
from jaxdiff.names import OPERATORS, POSTERIORS, value_of
from jaxdiff.outputs import prepare_out, write_images
from jaxdiff.pretrained.lpips import Distance, find_lpips
from jaxdiff.restoration import Facts, Restoration, nominal, open_run, picture_shape, restoration, statistics
from jaxdiff.sampling.inverse.operator import Spec
from jaxdiff.settings import Settings
from jaxdiff.training import hosts
from jaxdiff.training.contact_sheet import contact_sheet
from jaxdiff.training.cpu import use_cpu

Picture = Float[np.ndarray, "h w c"]
Pictures = Float[np.ndarray, "n h w c"]


@dataclasses.dataclass(frozen=True)
class Command:
    """Restore a picture from a measurement of it."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run's folder, train.py's --workdir, or a model."""
    out: epath.Path
    """Folder for restored.png, grid.png, the images, mean.png, std.png, posterior.npz and info.json."""
    operator: str
    """What was measured, by name or with fields: "downsample(factor=4)"."""
    measurement: epath.Path | None = None
    """The measurement: a picture, or an .npy or .npz of k-space, a sinogram ..."""
    simulate: epath.Path | None = None
    """A clean picture that is measured in place of --measurement, and compared with."""
    noise: float = 0.0
    """Standard deviation of the measurement's noise, in its own units, where black is 0 and white is 1."""
    method: str = "pigdm"
    """How the denoiser is made to draw from the posterior, by name or with fields: "dps(scale=0.5)"."""
    num: int = 16
    """Pictures to draw."""
    mask: epath.Path | None = None
    """Of the operator mask: a picture that is white where the picture is to be made anew."""
    arrays: epath.Path | None = None
    """An .npz of what else the operator is: kspace_mask, sensitivities."""
    credible: float = 0.9
    """Probability of the intervals."""
    lpips: str = ""
    """With --simulate, also measure LPIPS: lpips-alexnet, lpips-vgg16, or a file of weights."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()

    def __post_init__(self) -> None:
        if not 1 <= self.num < 2**31:
            raise ValueError(f"num = {self.num} is not allowed: 1 to {2**31 - 1} (--num)")
        if (self.measurement is None) == (self.simulate is None):
            raise ValueError("one of a measurement and a picture to be measured is needed (--measurement, --simulate)")
        if not 0 < self.credible < 1:
            raise ValueError(f"credible = {self.credible} is not allowed: between 0 and 1 (--credible)")
        if self.lpips and self.simulate is None:
            raise ValueError("LPIPS needs a clean picture to compare with (--lpips, --simulate)")
        if self.mask is not None and not self.operator.startswith("mask"):
            raise ValueError(f"a mask is not allowed with the operator {self.operator}: it is for mask (--mask)")


def restore(command: Command) -> None:
    """Reads and checks everything, restores, writes everything."""
    spec = value_of(command.operator, OPERATORS, "--operator")
    method = value_of(command.method, POSTERIORS, "--method")
    check_noise(spec, command.noise)
    distance = find_lpips(command.lpips) if command.lpips else None
    trained = open_run(command.dir, command.settings)
    shape = picture_shape(trained.config)
    arrays = read_arrays(command.mask, command.arrays)
    operator = spec.on(shape, arrays)
    truth = None
    if command.measurement is not None:
        values = read_measurement(command.measurement, operator)
    else:
        assert command.simulate is not None
        truth = read_picture(command.simulate, shape, "--simulate")
        values = simulated(spec, operator, truth, command.noise, command.settings.seed)
    given = taken(spec, operator, values, command.noise)
    job = restoration(trained, given.operator, method, given.noise)
    out = prepare_out(command.out)
    started = time.monotonic()
    images, facts = job.draws(command.num, given.y, given.noise)
    seconds = time.monotonic() - started
    if not hosts.is_first():
        return
    found = statistics(images, command.credible)
    info = {
        "workdir": str(command.dir),
        "num": command.num,
        "batch_size": job.batch_size,
        **trained.description(),
        **described_problem(command, spec, given, job, arrays),
        **evidence(facts),
        "seconds": round(seconds, 3),
        "std_white": float(found["std"].max()),
    }
    if truth is not None:
        info |= compared(truth, images, found, distance)
    write(out, command.credible, given, values, images, found, truth, info)
    summary = "".join(f", {name} {info[name]:.4g}" for name in ("psnr", "ssim", "lpips", "coverage") if name in info)
    print(f"{command.num} pictures in {out} ({seconds:.1f} s, {job.nfe} network calls each{summary})")


def described_problem(
    command: Command, spec: Spec, given: Taken, job: Restoration, arrays: dict[str, np.ndarray]
) -> dict[str, object]:
    """What was measured, and how it is restored."""
    return {
        "operator": to_json(spec),
        "arrays": described(arrays),
        "measurement": str(command.measurement or command.simulate),
        "simulated": command.measurement is None,
        "noise": given.noise / 2,
        "method": to_json(job.method),
        "nfe": job.nfe,
        "told": job.told,
        "credible": command.credible,
        "nominal": nominal(command.num, command.credible),
    }


def evidence(facts: list[Facts]) -> dict[str, object]:
    """Of populations of particles: log p(y) in the units of a measurement in [-1, 1], and the least effective size."""
    if not facts:
        return {}
    numbers = np.concatenate([np.asarray(f.log_evidence, np.float64) for f in facts])
    least = float(min(np.min(f.effective) for f in facts))
    return {"log_evidence": numbers.tolist(), "least_effective_size": least}


def compared(
    truth: Picture, images: Pictures, found: Mapping[str, Picture], distance: Distance | None
) -> dict[str, float]:
    """How far the mean (and, as `_of_draws`, single draws) are from the truth, and how often the intervals hold it."""
    mean, shown = np.clip(found["mean"], 0, 1)[None], np.clip(images, 0, 1)
    many = np.broadcast_to(truth, shown.shape)
    figures = {
        "psnr": float(psnr(*single(mean, truth[None]))[0]),
        "psnr_of_draws": float(np.mean(psnr(*single(shown, many)))),
        "coverage": float(np.mean((found["low"] <= truth) & (truth <= found["high"]))),
    }
    if min(truth.shape[:2]) >= WINDOW:
        figures["ssim"] = float(ssim(*single(mean, truth[None]))[0])
        figures["ssim_of_draws"] = float(np.mean(ssim(*single(shown, many))))
    if distance is not None:
        figures["lpips"] = float(distances(distance, rgb(mean), rgb(truth[None]))[0])
        figures["lpips_of_draws"] = float(np.mean(distances(distance, rgb(shown), rgb(many))))
    return figures


def single(one: Pictures, other: Pictures) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
    """In float32, as JAX counts."""
    return jnp.asarray(one, jnp.float32), jnp.asarray(other, jnp.float32)


def rgb(pictures: Pictures) -> UInt8[np.ndarray, "n h w 3"]:
    """uint8 with three channels."""
    found = as_uint8(pictures)
    return found if found.shape[-1] == 3 else np.repeat(found[..., :1], 3, axis=-1)


def write(
    out: epath.Path,
    credible: float,
    given: Taken,
    values: Float[np.ndarray, "..."],
    images: Pictures,
    found: Mapping[str, Picture],
    truth: Picture | None,
    info: dict[str, object],
) -> None:
    """Everything, info.json last."""
    arrays = {name: value.astype(np.float32) for name, value in found.items()}
    save_npz(out / "posterior.npz", arrays | {"credible": np.array(credible, np.float32)})
    if truth is not None:
        save_npz(out / "measurement.npz", {"measurement": values.astype(np.float32)})
    std = as_uint8(found["std"] / max(float(found["std"].max()), 1e-12))
    mean = as_uint8(found["mean"])
    panels = [first_look(given.operator, given.y), mean, std] + ([] if truth is None else [as_uint8(truth)])
    sheets = {"mean.png": mean, "std.png": std, "restored.png": contact_sheet(np.stack(panels), columns=len(panels))}
    write_images(out, as_uint8(images), info, sheets=sheets)


def save_npz(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays, under their name only when they are whole."""
    held = io.BytesIO()
    np.savez_compressed(held, **arrays)  # pyright: ignore[reportArgumentType]
    part = path.with_suffix(".part")
    part.write_bytes(held.getvalue())
    part.replace(path)


def main(args: Sequence[str]) -> None:
    """The command."""
    with cli.user_errors():
        named = {"Operators": OPERATORS, "Methods": POSTERIORS}
        words = "\n".join(f"{kind}: {', '.join(table)}." for kind, table in named.items())
        command = cli.parse(Command, "jaxdiff restore", args, description=f"{__doc__}\n{words}")
        use_cpu(command.settings.batch_size // hosts.count())
        restore(command)
