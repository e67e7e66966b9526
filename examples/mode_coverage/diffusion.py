"""The diffusion side: any network, any of jaxdiff's objectives and solvers, as one side of the comparison."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from examples.mode_coverage.race import Player, State
from jaxdiff.core.grids import AnyGrid
from jaxdiff.core.types import Cond, Level, Params, Transform
from jaxdiff.networks.apply import apply_fn, init_params
from jaxdiff.objectives.base import Batch
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.sampling.sample import denoiser, image_keys, initial, sample
from jaxdiff.sampling.solver import Solver
from jaxdiff.training.ema import Decay
from jaxdiff.training.optim import Optim, optimizer
from jaxdiff.training.step import averaged, init_state, make_step


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is trained and sampled."""

    objective: Denoising
    """Path, prediction, time law, weight."""
    optim: Optim
    """Rule and learning rate."""
    batch: int
    """Examples in a step."""
    solver: Solver
    """The sampler's."""
    grid: AnyGrid
    """The sampler's noise levels."""
    num_steps: int
    """The sampler's steps."""
    transform: Transform = lambda denoise: denoise
    """What is done to the denoiser in sampling, such as keeping its images in [-1, 1]."""


class PointDenoiser(nn.Module):
    """Points [b, 1, 1, 2] and a noise level: a multilayer perceptron."""

    hidden: int
    layers: int = 3

    @nn.compact
    def __call__(
        self, x: Float[Array, "b 1 1 2"], noise: Float[Array, "b"], cond: Cond, train: bool = False
    ) -> Float[Array, "b 1 1 2"]:
        h = jnp.concatenate([x.reshape(x.shape[0], -1), noise[:, None]], axis=-1)
        for _ in range(self.layers):
            h = nn.silu(nn.Dense(self.hidden)(h))
        return nn.Dense(2)(h)[:, None, None, :]


def diffusion(network: nn.Module, recipe: Recipe, shape: tuple[int, int, int]) -> Player:
    """The network with its recipe. `shape` is that of an example, (h, w, c)."""
    objective, averages = recipe.objective, (Decay(0.999),)
    apply = apply_fn(network, objective.prediction)
    rule = optimizer(recipe.optim, 0)  # at a constant rate, so that a run can be prolonged

    # One compilation serves every seed: it travels with the batch, and not as the step's own, which is not traced.
    def loss(
        params: Params,
        key: Key[Array, ""],
        raw: Mapping[str, Array],
        row: Int[Array, "b"],
        total: int,
        step: Int[Array, ""],
    ) -> tuple:
        del step
        key = jax.random.fold_in(key, raw["seed"])
        return objective(apply, params, key, Batch(raw["image"], {}, row, total))

    train_step = make_step(loss, rule, averages, seed=0)

    def init(seed: int) -> State:
        return init_state(init_params(network, jax.random.key(seed), shape, {}), rule, averages)

    def draw(state: State, seed: int, indices: Int[Array, "n"]) -> Array:
        keys, levels = image_keys(seed, indices), recipe.grid(objective.path, recipe.num_steps)
        x = initial(keys, shape, Level(levels.alpha[0], levels.sigma[0]))
        params = averaged(state)
        denoise = recipe.transform(denoiser(apply, params, objective.prediction, {}))
        return sample(keys, x, levels, denoise, recipe.solver)

    def step(state: State, real: Array, seed: int) -> tuple[State, Mapping[str, Array]]:
        return train_step(state, {"image": real, "seed": jnp.asarray(seed)})

    return Player("diffusion", recipe.batch, init, step, draw, {"network": lambda state: state.params})
