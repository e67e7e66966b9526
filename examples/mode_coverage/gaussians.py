"""A 5x5 grid of Gaussians in two dimensions: which of the 25 modes does each method cover?

    python -m examples.mode_coverage.gaussians --workdir runs/modes

Centres at {-4, -2, 0, 2, 4}^2, standard deviation 0.05; both methods see the points divided by 4. A sample within three
standard deviations of a centre is of high quality; a mode is covered if it has one, and the reverse KL to the uniform
law is that of the samples of high quality. Sources: arXiv:1705.07761, 1712.04086 (task, measures).
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from examples.mode_coverage import diffusion, gan
from examples.mode_coverage.race import Measures, Plan, Player, compare, or_none, perfect
from jaxdiff.core import grids, paths, predictions, times
from jaxdiff.evaluation.modes import modes, nearest
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.sampling.heun import Heun
from jaxdiff.training.optim import Optim

SCALE, STD = 4.0, 0.05
SHAPE = (1, 1, 2)
PLAN = Plan(Path("runs/modes"), every=1000, batch=512, gan_batch=128)


def centres() -> np.ndarray:
    """[25, 2]."""
    side = np.arange(-4.0, 5.0, 2.0)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def examples(key: Array, b: int) -> Array:
    """b points of the grid, scaled."""
    key_mode, key_noise = jax.random.split(key)
    mean = jnp.asarray(centres(), jnp.float32)[jax.random.randint(key_mode, (b,), 0, 25)]
    return ((mean + STD * jax.random.normal(key_noise, (b, 2))) / SCALE)[:, None, None, :]


def score(x: np.ndarray) -> Measures:
    """Modes covered of 25, the reverse KL in nats of the samples of high quality, their share."""
    covered, kl, share = modes(nearest(SCALE * x.reshape(-1, 2), centres(), 3 * STD), 25)
    return {"modes": covered, "kl": or_none(kl), "high_quality": share}


def players(plan: Plan) -> tuple[Player, Player]:
    """Diffusion and GAN, of as many parameters."""
    recipe = diffusion.Recipe(
        objective=Denoising(
            path=paths.Sigma(20.0),
            prediction=predictions.EDM(sigma_data=0.7),
            times=times.Stratified(times.LogNormal(-2.5, 1.5)),
        ),
        optim=Optim(learning_rate=1e-3, warmup=100, clip=1.0),
        batch=plan.batch,
        solver=Heun(),
        grid=grids.Karras(0.002, 20.0),
        num_steps=24,
    )
    adversarial = gan.Recipe(latent=2, batch=plan.gan_batch, rate_g=1e-3, rate_d=1e-3)
    generator, critic = gan.PointGenerator(plan.hidden), gan.PointCritic(plan.hidden)
    return (
        diffusion.diffusion(diffusion.PointDenoiser(plan.hidden), recipe, SHAPE),
        gan.gan(generator, critic, adversarial, SHAPE),
    )


def main(plan: Plan) -> None:
    """Runs the comparison."""
    reference = perfect(25, plan.samples or plan.small) | {"high_quality": 1 - math.exp(-4.5)}
    compare(
        "gaussians",
        plan,
        players(plan),
        examples,
        score,
        {"perfect": reference, "perfect_small": perfect(25, plan.small)},
    )


if __name__ == "__main__":
    main(tyro.cli(Plan, default=PLAN, description=__doc__))
