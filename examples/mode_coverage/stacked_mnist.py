"""Stacked-MNIST: three random digits as the channels of one image make 1,000 modes. Which does each method cover?

    python -m examples.mode_coverage.stacked_mnist --workdir runs/modes --data mnist.npz

`--data` holds train_images [60000, 28, 28], train_labels, test_images and test_labels, uint8. The digits are halved to
14x14 by averaging, so that small networks draw them legibly in minutes of a CPU core. A digit classifier,
trained on the train split, says which mode a sample belongs to. Any image belongs to one, so the share of samples of
which the classifier is sure (all three digits above 0.9) stands beside, and the measures of those samples alone.
Sources: arXiv:1611.02163, 1705.07761, 1712.04086 (task, measures).
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, PyTree

from examples.mode_coverage import classifier, diffusion, gan
from examples.mode_coverage.race import Measures, Plan, Player, compare, or_none, perfect
from jaxdiff.core import grids, paths, predictions, times
from jaxdiff.evaluation.modes import modes
from jaxdiff.networks.unet import UNet
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.sampling import threshold
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.training.optim import Optim

SHAPE = (14, 14, 3)
SURE = 0.9
PLAN = Plan(Path("runs/modes"), every=125, batch=64, gan_batch=32, small=300)


def halved(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 2h, 2w] -> [n, h, w], each pixel the mean of four."""
    n, h, w = images.shape
    return np.round(images.reshape(n, h // 2, 2, w // 2, 2).mean(axis=(2, 4))).astype(np.uint8)


def digits(data: Path) -> dict[str, np.ndarray]:
    """The arrays of the file, its images halved."""
    with np.load(data) as file:
        return {name: halved(array) if name.endswith("images") else array for name, array in file.items()}


def stack(images: np.ndarray) -> Callable[[Array, int], Array]:
    """(key, b) -> b images [b, 14, 14, 3] in [-1, 1], each channel a random digit."""
    pictures = jnp.asarray(images)

    def examples(key: Array, b: int) -> Array:
        rows = jax.random.randint(key, (b, 3), 0, len(images))
        return jnp.moveaxis(pictures[rows], 1, -1) / 127.5 - 1

    return examples


def scorer(params: PyTree) -> Callable[[np.ndarray], Measures]:
    """Images -> modes covered of 1,000 and the reverse KL in nats, of all samples and of the sure ones; their share."""

    def score(x: np.ndarray) -> Measures:
        read, certainty = classifier.classify(params, np.moveaxis(x, -1, 1).reshape(-1, 14, 14))
        mode = read.reshape(-1, 3) @ np.array([100, 10, 1])
        sure = certainty.reshape(-1, 3).min(axis=1) > SURE
        every, legible = modes(mode, 1000), modes(np.where(sure, mode, -1), 1000)
        return {
            "modes": every.covered,
            "kl": every.reverse_kl,
            "sure": legible.in_mode,
            "modes_sure": legible.covered,
            "kl_sure": or_none(legible.reverse_kl),
        }

    return score


def players(plan: Plan) -> tuple[Player, Player]:
    """Diffusion and GAN, of as many parameters at a width of 128."""
    network = UNet(
        patch=2,
        channels=3 * plan.hidden // 8,
        channel_mults=(1,),
        blocks_per_level=1,
        attention_resolutions=(7,),
        head_channels=3 * plan.hidden // 16,
        scale_shift=True,
    )
    recipe = diffusion.Recipe(
        objective=Denoising(
            path=paths.Linear(),
            prediction=predictions.EDM(sigma_data=0.9, time=predictions.Angle()),
            times=times.Stratified(times.LogNormal(0.0, 1.0)),
        ),
        optim=Optim(learning_rate=2e-3, warmup=50, clip=1.0),
        batch=plan.batch,
        solver=DDIM(eta=1.0),
        grid=grids.UniformT(),
        num_steps=24,
        transform=threshold.static(),
    )
    adversarial = gan.Recipe(latent=128, batch=plan.gan_batch, rate_g=1e-3, rate_d=1e-3, b1=0.0, ema=0.999)
    return diffusion.diffusion(network, recipe, SHAPE), adversary(plan.hidden, adversarial)


def adversary(hidden: int, recipe: gan.Recipe) -> Player:
    """The GAN of that width, trained by the recipe."""
    return gan.gan(gan.ImageGenerator(hidden), gan.ImageCritic(hidden), recipe, SHAPE)


def judge(workdir: Path, data: dict[str, np.ndarray], steps: int) -> tuple[PyTree, float]:
    """The classifier's parameters, trained once in a folder, and its accuracy on the test split."""
    file = workdir / "classifier.state"
    params = classifier.init()
    if file.exists():
        params = flax.serialization.from_bytes(params, file.read_bytes())
    else:
        params = classifier.train(params, data["train_images"], data["train_labels"], steps)
        workdir.mkdir(parents=True, exist_ok=True)
        file.write_bytes(flax.serialization.to_bytes(params))
    read, _ = classifier.classify(params, data["test_images"] / np.float32(127.5) - 1)
    return params, float((read == data["test_labels"]).mean())


def main(plan: Plan, data: Path = Path("../shared/data/mnist_63k.npz"), classifier_steps: int = 1200) -> None:
    """Runs the comparison on the digits of the file `data`."""
    arrays = digits(data)
    params, accuracy = judge(plan.workdir, arrays, classifier_steps)
    examples, score = stack(arrays["train_images"]), scorer(params)
    samples = plan.samples or plan.small
    real = np.concatenate([examples(jax.random.key(i), 1000) for i in range(math.ceil(samples / 1000))])
    about = {
        "classifier_accuracy": accuracy,
        "classifier_test_images": len(arrays["test_labels"]),
        "perfect": perfect(1000, samples),
        "perfect_small": perfect(1000, plan.small),
        "real": score(real[:samples]),
    }
    compare("stacked_mnist", plan, players(plan), examples, score, about)


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line says."""

    plan: Annotated[Plan, tyro.conf.arg(name="")] = Plan(
        Path("runs/modes"), every=125, batch=64, gan_batch=32, small=300
    )
    """How much is trained and measured."""
    data: Path = Path("../shared/data/mnist_63k.npz")
    """The digits."""


if __name__ == "__main__":
    command = tyro.cli(Command, description=__doc__)
    main(command.plan, command.data)
