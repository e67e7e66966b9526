"""Sampling: a network becomes a `Denoise`, and one scan carries noise down a grid of levels.

    keys = image_keys(seed, jnp.arange(64))
    levels = grid(path, num_steps)
    x = initial(keys, (32, 32, 3), Level(levels.alpha[0], levels.sigma[0]))
    x0 = sample(keys, x, levels, denoiser(apply, params, prediction, cond), DDIM())

Randomness is counted: image i has the key fold_in(seed, i) and its noise number k is drawn from
fold_in(that key, k), k = 0 being the initial noise and k = 1 ... num_steps the solver's steps. So image i
is the same at any batch size and device count. Seed, indices, levels, cond and params may all be traced.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdiff.core import gaussian
from jaxdiff.core.types import ApplyFn, Cond, Denoise, Estimate, Level, Params, Path, Prediction, Transform
from jaxdiff.sampling.solver import Solver, State

Image = Float[Array, "b h w c"]
Keys = Key[Array, "b"]


def per_image(level: Level, b: int) -> Level:
    """The level (one for all, or one per image) as Level[b], which is what networks are given."""
    return Level(jnp.broadcast_to(level.alpha, (b,)), jnp.broadcast_to(level.sigma, (b,)))


def denoiser(apply: ApplyFn, params: Params, prediction: Prediction, cond: Cond) -> Denoise:
    """The network as a `Denoise`: its output, solved for (x0, eps), and v if it has twice the channels of x.

    `cond` has a leading axis b.
    """

    def denoise(x: Image, cur: Level, nxt: Level) -> Estimate:
        b, c = x.shape[0], x.shape[-1]
        out = apply(params, x, per_image(cur, b), per_image(nxt, b), cond)
        estimate = gaussian.estimate(prediction, cur, x, out[..., :c])
        return estimate._replace(v=out[..., c:]) if out.shape[-1] > c else estimate

    return denoise


def on_path(path: Path) -> Transform:
    """Lets solvers ask at any level, on the path or off it: x0 and eps depend on x / alpha and sigma / alpha alone.

    x is rescaled to the path's own level of that sigma / alpha, which is where the network was trained; beyond the
    path's ends it is asked at the end.
    """

    def at(level: Level) -> Level:
        here = path(path.invert(level.sigma / level.alpha))
        return jax.tree.map(lambda a, b: jnp.where(level.sigma > 0, a, b), here, level)

    def transform(denoise: Denoise) -> Denoise:
        def moved(x: Image, cur: Level, nxt: Level) -> Estimate:
            here = at(cur)
            scale = jnp.hypot(here.alpha, here.sigma) / jnp.hypot(cur.alpha, cur.sigma)
            return denoise(gaussian.expand(scale, x) * x, here, at(nxt))

        return moved

    return transform


def fold(keys: Keys, number: Int[Array, ""] | int) -> Keys:
    """Each image's key folded with a number."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def image_keys(seed: Int[Array, ""] | int, indices: Int[Array, "b"]) -> Keys:
    """fold_in(key(seed), i) for every image number i >= 0 of a run."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)


def normal(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal noise of `shape` for each image, each from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def normal_like(keys: Keys, x: Image) -> Image:
    """Standard normal noise of the shape of x, image by image."""
    return normal(keys, x.shape[1:])


def initial(keys: Keys, shape: tuple[int, int, int], level: Level) -> Image:
    """Where sampling starts: sigma * normal of `shape` (h, w, c) per image; `level` is the grid's first.

    The mean alpha * E[x0] is left out, so `level` should be all noise or nearly so.
    """
    noise = normal(fold(keys, 0), shape)
    return gaussian.expand(level.sigma, noise) * noise


def _scan(
    keys: Keys, x: Image, levels: Level, denoise: Denoise, solver: Solver, keep: bool
) -> tuple[Image, PyTree[Array]]:
    def step(carry, inputs):
        (x, state), (number, cur, nxt) = carry, inputs

        def taken() -> tuple[Image, State]:
            return solver.step(fold(keys, number), x, state, cur, nxt, denoise)

        # From clean to clean, as at the end of a padded grid, there is nothing to do.
        x, state = jax.lax.cond((cur.sigma > 0) | (nxt.sigma > 0), taken, lambda: (x, state))
        return (x, state), x if keep else None

    cur, nxt = Level(levels.alpha[:-1], levels.sigma[:-1]), Level(levels.alpha[1:], levels.sigma[1:])
    numbers = jnp.arange(1, levels.alpha.shape[0])
    (x, _), xs = jax.lax.scan(step, (x, solver.init(x, levels)), (numbers, cur, nxt))
    return x, xs


def sample(keys: Keys, x: Image, levels: Level, denoise: Denoise, solver: Solver) -> Image:
    """x at the last level: scans `solver` over the pairs of neighbours in `levels`, Level[num_steps + 1].

    `x` is at levels[0] (`initial`, or a noised image). Steps from clean to clean (`grids.pad`) do nothing, so one
    compilation serves every number of steps up to the padded one. Falling levels ending at sigma = 0 make an image;
    rising ones with `DDIM()` find the noise of an image (start them above sigma = 0, where networks are
    not defined).
    """
    return _scan(keys, x, levels, denoise, solver, keep=False)[0]


def trajectory(
    keys: Keys, x: Image, levels: Level, denoise: Denoise, solver: Solver
) -> Float[Array, "num_steps b h w c"]:
    """x at levels[1], ..., levels[num_steps]: what `sample` passes through; the last is what it returns.

    Costs the memory of num_steps batches. The states are as noisy and as large as their levels say.
    """
    return _scan(keys, x, levels, denoise, solver, keep=True)[1]
