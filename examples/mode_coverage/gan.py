"""A plain DCGAN-style baseline: two networks, the non-saturating loss, Adam for each.

    L_D = softplus(-D(x)) + softplus(D(G(z)))          L_G = softplus(-D(G(z))),   z ~ N(0, I)

D(x) is a logit. Options, all off by default: the hinge loss, L_D = relu(1 - D(x)) + relu(1 + D(G(z))) with
L_G = -D(G(z)); a penalty r1/2 E |grad D(x)|^2 on real examples; samples from a running average of the generator, as
diffusion's are from one of its network. Nothing else: no packing, no minibatch statistics. Sources: arXiv:1406.2661
(the loss), 1511.06434 (DCGAN), 1705.02894 (hinge), 1801.04406 (R1), 1806.04498 (averages).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from examples.mode_coverage.race import Player


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the two networks are trained."""

    latent: int
    """Numbers in z."""
    batch: int
    """Real examples in a step, and fakes in each of its two halves."""
    rate_g: float = 2e-4
    """Adam's rate for G."""
    rate_d: float = 2e-4
    """Adam's rate for D."""
    b1: float = 0.5
    """Adam's decay of the first moment, for both."""
    real: float = 1.0
    """The label of real examples: 0.9 is one-sided smoothing (of the non-saturating loss)."""
    r1: float = 0.0
    """Weight of the gradient penalty on real examples; 0: none."""
    hinge: bool = False
    """The hinge loss in place of the non-saturating one."""
    ema: float = 0.0
    """Decay of the average of the generator that is sampled; 0: the generator itself is."""


class Side(NamedTuple):
    """One of the two networks in training."""

    params: PyTree[Array]
    stats: PyTree[Array]
    opt: optax.OptState


class State(NamedTuple):
    """All that training changes."""

    step: Int[Array, ""]
    g: Side
    d: Side
    average: PyTree[Array] = None
    """The average of the generator's parameters and of its norms' statistics, where there is one."""


class PointGenerator(nn.Module):
    """z -> points [b, 1, 1, 2]: a multilayer perceptron."""

    hidden: int
    layers: int = 3

    @nn.compact
    def __call__(self, z: Float[Array, "b n"], train: bool = False) -> Float[Array, "b 1 1 2"]:
        for _ in range(self.layers):
            z = nn.relu(nn.Dense(self.hidden)(z))
        return nn.Dense(2)(z)[:, None, None, :]


class PointCritic(nn.Module):
    """Points -> logits, likewise."""

    hidden: int
    layers: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "b 1 1 2"], train: bool = False) -> Float[Array, "b"]:
        h = x.reshape(x.shape[0], -1)
        for _ in range(self.layers):
            h = nn.leaky_relu(nn.Dense(self.hidden)(h), 0.2)
        return nn.Dense(1)(h)[:, 0]


class Double(nn.Module):
    """A 4x4 transposed convolution of stride 2: [b, h, w, c] -> [b, 2h, 2w, features].

    Written as what it is, a matrix from 2x2 pixels to the 2x2 between them: ten times faster on a CPU.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        b, h, w, _ = x.shape
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = jnp.concatenate([x[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)], axis=-1)
        x = nn.Dense(4 * self.features, kernel_init=nn.initializers.normal(0.02))(x)
        x = x.reshape(b, h + 1, w + 1, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, 2 * h + 2, 2 * w + 2, self.features)[:, 1:-1, 1:-1]


class ImageGenerator(nn.Module):
    """z -> images [b, 14, 14, 3] in (-1, 1): dense, 7x7, 14x14, with batch norm and ReLU."""

    hidden: int = 128
    channels: int = 64

    @nn.compact
    def __call__(self, z: Float[Array, "b n"], train: bool = False) -> Float[Array, "b 14 14 3"]:
        def norm(h: Array) -> Array:
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h))

        h = norm(nn.Dense(self.hidden)(z))
        h = norm(nn.Dense(7 * 7 * self.channels)(h).reshape(-1, 7, 7, self.channels))
        h = norm(nn.Conv(3 * self.channels // 4, (3, 3))(h))
        return jnp.tanh(Double(3)(h))


class ImageCritic(nn.Module):
    """Images [b, 14, 14, 3] -> logits: a strided convolution to 7x7, another, a hidden layer, with batch norm."""

    hidden: int = 128
    channels: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b 14 14 3"], train: bool = False) -> Float[Array, "b"]:
        def norm(h: Array) -> Array:
            return nn.leaky_relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(h), 0.2)

        h = nn.leaky_relu(nn.Conv(3 * self.channels // 4, (4, 4), (2, 2))(x), 0.2)
        h = norm(nn.Conv(self.channels, (3, 3))(h))
        h = norm(nn.Dense(self.hidden)(h.reshape(h.shape[0], -1)))
        return nn.Dense(1)(h)[:, 0]


def _logits(model: nn.Module, params: PyTree, stats: PyTree, x: Array) -> tuple[Array, PyTree]:
    """The network's output in training, and the statistics that its norms keep."""
    out, changed = model.apply({"params": params, **stats}, x, train=True, mutable=["batch_stats"])
    return out, changed


def make_step(generator: nn.Module, critic: nn.Module, recipe: Recipe) -> Callable[[State, Array, int], tuple]:
    """(state, real examples, seed) -> (state, metrics): one update of D, then one of G with fresh z."""
    rule_g, rule_d = (optax.adam(rate, b1=recipe.b1, b2=0.999) for rate in (recipe.rate_g, recipe.rate_d))

    def d_loss(params: PyTree, stats: PyTree, real: Array, fake: Array) -> tuple[Array, PyTree]:
        on_real, stats = _logits(critic, params, stats, real)
        on_fake, stats = _logits(critic, params, stats, fake)
        if recipe.hinge:
            loss = nn.relu(1 - on_real) + nn.relu(1 + on_fake)
        else:  # the cross entropy with the label `real`
            loss = recipe.real * nn.softplus(-on_real) + (1 - recipe.real) * nn.softplus(on_real) + nn.softplus(on_fake)
        if recipe.r1:
            slope = jax.grad(lambda x: jnp.sum(_logits(critic, params, stats, x)[0]))(real)
            loss = loss + 0.5 * recipe.r1 * jnp.sum(jnp.square(slope), axis=(1, 2, 3))
        return jnp.mean(loss), stats

    def g_loss(params: PyTree, stats: PyTree, d: Side, z: Array) -> tuple[Array, PyTree]:
        fake, stats = _logits(generator, params, stats, z)
        logits = _logits(critic, d.params, d.stats, fake)[0]
        return jnp.mean(-logits if recipe.hinge else nn.softplus(-logits)), stats

    def updated(rule: optax.GradientTransformation, side: Side, grads: PyTree, stats: PyTree) -> Side:
        updates, opt = rule.update(grads, side.opt, side.params)
        return Side(optax.apply_updates(side.params, updates), stats, opt)

    def step(state: State, real: Array, seed: int) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        first, second = (jax.random.normal(k, (real.shape[0], recipe.latent)) for k in jax.random.split(key))
        _, g, d, average = state
        fake, stats_g = _logits(generator, g.params, g.stats, first)
        (loss_d, stats_d), grads = jax.value_and_grad(d_loss, has_aux=True)(d.params, d.stats, real, fake)
        d = updated(rule_d, d, grads, stats_d)
        (loss_g, stats_g), grads = jax.value_and_grad(g_loss, has_aux=True)(g.params, stats_g, d, second)
        g = updated(rule_g, g, grads, stats_g)
        # While few steps are behind, the average is of all of them.
        share = jnp.maximum(1 - recipe.ema, 1 / (state.step + 1))
        average = jax.tree.map(lambda a, new: a + share * (new - a), average, (g.params, g.stats)) if average else None
        return State(state.step + 1, g, d, average), {"d": loss_d, "g": loss_g}

    return step


def gan(generator: nn.Module, critic: nn.Module, recipe: Recipe, shape: tuple[int, int, int]) -> Player:
    """The pair as one side of the comparison. `shape` is that of an example, (h, w, c)."""

    def side(model: nn.Module, key: Key[Array, ""], x: Array, rate: float) -> Side:
        variables: Any = model.init(key, x, train=True)
        stats = {k: v for k, v in variables.items() if k != "params"}
        return Side(variables["params"], stats, optax.adam(rate, b1=recipe.b1).init(variables["params"]))

    def init(seed: int) -> State:
        key_g, key_d = jax.random.split(jax.random.key(seed))
        g = side(generator, key_g, jnp.zeros((2, recipe.latent)), recipe.rate_g)
        average = (g.params, g.stats) if recipe.ema else None
        return State(jnp.int32(0), g, side(critic, key_d, jnp.zeros((2, *shape)), recipe.rate_d), average)

    def sample(state: State, seed: int, indices: Int[Array, "n"]) -> Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
        z = jax.vmap(lambda key: jax.random.normal(key, (recipe.latent,)))(keys)
        params, stats = state.average if recipe.ema else (state.g.params, state.g.stats)
        return generator.apply({"params": params, **stats}, z)  # pyright: ignore[reportReturnType]

    parts = {"generator": lambda s: s.g.params, "discriminator": lambda s: s.d.params}
    return Player("gan", recipe.batch, init, make_step(generator, critic, recipe), sample, parts)
