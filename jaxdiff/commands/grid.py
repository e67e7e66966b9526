"""Fit the noise levels of few-step sampling to a trained run: jaxdiff grid DIR [--steps 4 6 8 10] ...

A fine trajectory of a few images is followed once; from it come the levels for every number of steps, written to
DIR/grids/STEPS.json. sample.py and jaxdiff evaluate take them with --grid optimised.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath

from jaxdiff import build, cli
from jaxdiff.commands.evaluate import write_json
from jaxdiff.config import to_json
from jaxdiff.core.grids import Table
from jaxdiff.core.levels import from_ratios, ratios_at
from jaxdiff.core.types import Level
from jaxdiff.fitted_grids import fitted_grid
from jaxdiff.sampler import THRESHOLDS
from jaxdiff.sampling import optimise
from jaxdiff.sampling.sample import denoiser, image_keys, initial, on_path
from jaxdiff.settings import Settings
from jaxdiff.trained import open_trained
from jaxdiff.training import hosts
from jaxdiff.training.sharding import to_host


@dataclasses.dataclass(frozen=True)
class Command:
    """Fit the noise levels of few-step sampling to a trained run."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run's folder, train.py's --workdir."""
    steps: tuple[int, ...] = (4, 6, 8, 10, 15, 20)
    """Numbers of steps to fit levels for."""
    fine: int = 80
    """Levels to choose from, evenly spaced in log SNR."""
    num: int = 16
    """Images whose trajectories are followed."""
    sigma_min: float = 0.01
    """The least sigma/alpha to choose from."""
    sigma_max: float = 200.0
    """The greatest sigma/alpha, where sampling starts, or the path's end if that is less."""
    seed: int = 0
    """Seed of the images."""
    ema: str | None = None
    """Which average of the parameters, as in sample.py."""
    step: int | None = None
    """Step of the checkpoint (by default the last)."""

    def __post_init__(self) -> None:
        bad = [n for n in self.steps if not 1 <= n <= self.fine]
        if bad or not self.steps:
            raise ValueError(f"steps = {self.steps} are not allowed: 1 to {self.fine}, the fine levels (--steps)")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min} must lie between 0 and {self.sigma_max} (--sigma-min)")
        if self.num < 1:
            raise ValueError(f"num = {self.num} is not allowed: at least 1 (--num)")


def fit(command: Command) -> None:
    """Follows the trajectories, chooses the levels, writes them."""
    settings = Settings(seed=command.seed, cfg_scale=1.0, ema=command.ema, step=command.step)
    trained = open_trained(command.dir, settings)
    config = trained.config
    path = config.objective.path_of(trained.params)
    most, least = ratios_at(path, [path.t_max, 0.0])
    ratios = np.geomspace(min(most, command.sigma_max), max(least, command.sigma_min), command.fine)
    levels = from_ratios(path, jnp.asarray(ratios, jnp.float32))
    indices = np.arange(command.num, dtype=np.int32)

    @jax.jit
    def costs(params, levels: Level, indices, cond):
        denoise = denoiser(build.apply_run(config), params, config.objective.prediction, cond)
        denoise = on_path(config.objective.path_of(params))(THRESHOLDS[config.sampling.threshold](denoise))
        keys = image_keys(command.seed, indices)
        x = initial(keys, build.image_shape(config), jax.tree.map(lambda a: a[0], levels))
        return optimise.costs(keys, x, levels, denoise)

    cond, _ = trained.conditions(indices)
    with jax.set_mesh(trained.mesh):
        cost = to_host(costs(trained.params, levels, jnp.asarray(indices), cond)).astype(np.float64)
    if not hosts.is_first():
        return
    print("| steps | cost | cost of even log SNR | sigma/alpha |\n| --- | --- | --- | --- |")
    for steps in sorted(set(command.steps)):
        way = optimise.cheapest(cost, steps)
        evenly = np.linspace(0, command.fine, steps, endpoint=False).round().astype(int)
        even = optimise.cost_of(cost, evenly)
        table = Table(tuple(float(f"{ratios[i]:.6g}") for i in way.places))
        record = {
            "grid": to_json(table),
            "cost": way.cost,
            "cost_of_even_logsnr": even,
            "made_by": {"checkpoint_step": trained.step, **dataclasses.asdict(command), "dir": str(command.dir)},
        }
        write_json(fitted_grid(command.dir, steps), record)
        print(f"| {steps} | {way.cost:.4g} | {even:.4g} | {', '.join(f'{r:.3g}' for r in table.ratios)} |")


def main(args: Sequence[str]) -> None:
    """The command."""
    with cli.user_errors():
        fit(cli.parse(Command, "jaxdiff grid", args, description=__doc__ or ""))
