"""Tries one recipe of the GAN on Stacked-MNIST, on a seed that the comparison does not use.

    python -m examples.mode_coverage.tune 5e-4 --workdir runs/modes --rate-g 5e-4 --rate-d 5e-4

With `--looks 10` it gets the operations that a run of the comparison gets, with 3 three tenths of them, and is measured
as those are. One training gives two figures, with and without the average of the generator. WORKDIR/tuning/NAME.json is
the record; `figure` collects them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from examples.mode_coverage import gan, race, stacked_mnist

SEED = 100


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line says."""

    name: Annotated[str, tyro.conf.Positional]
    """The recipe's name."""
    workdir: Path = Path("runs/modes")
    """Folder of the comparison."""
    data: Path = Path("../shared/data/mnist_63k.npz")
    """The digits."""
    looks: int = 3
    """Tenths of the length of a run of the comparison."""
    recipe: Annotated[gan.Recipe, tyro.conf.arg(name="")] = gan.Recipe(latent=128, batch=32, ema=0.999)
    """What is tried."""


def main(command: Command) -> None:
    """Trains and measures, and prints the record."""
    folder, recipe = command.workdir / "tuning", command.recipe
    plan = dataclasses.replace(stacked_mnist.PLAN, workdir=folder, gan_batch=recipe.batch, looks=command.looks)
    arrays = stacked_mnist.digits(command.data)
    params, _ = stacked_mnist.judge(command.workdir, arrays, 1200)
    examples, score = stacked_mnist.stack(arrays["train_images"]), stacked_mnist.scorer(params)
    flops = plan.every * race.step_flops(stacked_mnist.players(plan)[0], examples)

    machine, without = (
        race.machine(stacked_mnist.adversary(plan.hidden, r), examples, flops)
        for r in (recipe, dataclasses.replace(recipe, ema=0.0))
    )
    file = folder / f"{command.name}.json"
    for number in range(1, plan.looks + 1):
        race.look(machine, file, SEED, number, plan, score)
    state, record = race.load(machine, file, SEED)
    record |= {"recipe": dataclasses.asdict(recipe), "samples": 2500}
    for name, player, its in (("average", machine, state), ("last", without, state._replace(average=None))):
        made = race.generate(player, its, SEED, 2500)
        np.save(folder / f"{command.name}_{name}.npy", made[: race.PICTURE].astype(np.float16))
        record[name] = score(made)
        print(command.name, name, json.dumps(record[name]), flush=True)
    file.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Command, description=__doc__))
