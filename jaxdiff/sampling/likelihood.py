"""Likelihood under the probability-flow ODE, in nats and in bits per dimension.

In the angle phi = atan2(sigma, alpha) and z = x / hypot(alpha, sigma) = cos(phi) x0 + sin(phi) eps every path is the
same ODE, finite at both ends:

    dz/dphi = cos(phi) eps(z, phi) - sin(phi) x0(z, phi) = f(z, phi)
    log p(z at phi_0) = log p(z at phi_1) + integral from phi_0 to phi_1 of div f dphi

y = z / cos(phi) = x0 + r eps, r = tan(phi), is the image with noise of standard deviation r in the image's own units:
log p(y) = log p(z) + d log cos(phi). A grid of angles starts at the path's clean end, where r is tiny, and ends at its
noisiest level, whose prior is the sampler's: N(0, sigma**2) of x, exact at alpha = 0.

    keys = image_keys(seed, jnp.arange(64))
    found = likelihood(keys, x0, angles(path, 64), on_path(path)(denoise))     # found.bits

8-bit images are given noise first (`Uniform`, or the path's own `Gaussian`), and P(x0) = E[p(y) w] is bounded by the
draws: log P(x0) >= E[log mean_k p(y_k) w_k], tighter with more of them.

Source: arXiv:2011.13456, Eq. 39 and App. D.2; arXiv:1509.00519, Eq. 8 (importance-weighted bound).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core.bits import BIN, per_dim, value_nll
from jaxdiff.core.types import Denoise, Path
from jaxdiff.sampling.adaptive import at_angle, probability_flow, solve_each
from jaxdiff.sampling.divergence import Divergence, Hutchinson

Image = Float[Array, "b h w c"]
Keys = Key[Array, "b"]
Angle = Float[Array, "*b"]


class Flow(NamedTuple):
    """An image on its way, and the divergence it has gathered, per dimension."""

    z: Image
    volume: Float[Array, "b"]


FlowField = Callable[[Angle, Flow], Flow]
"""``(phi, state) -> d state / d phi``, at one angle for all or one per image."""


@runtime_checkable
class Integrator(Protocol):
    """Carries a state from the first angle to the last; also the calls of the field, image by image."""

    def __call__(self, field: FlowField, state: Flow, angles: Float[Array, "n"]) -> tuple[Flow, Int[Array, "b"]]: ...


def _runge_kutta(
    nodes: tuple[float, ...],
    weights: tuple[float, ...],
    field: FlowField,
    state: Flow,
    angles: Float[Array, "n"],
) -> tuple[Flow, Int[Array, "b"]]:
    """An explicit rule each of whose stages starts from the one before; one field is compiled for all stages."""

    def step(state: Flow, here: Angle, there: Angle) -> Flow:
        h = there - here

        def stage(carry: tuple[Flow, Flow], rule: tuple[Angle, Angle]) -> tuple[tuple[Flow, Flow], None]:
            (slope, total), (node, weight) = carry, rule
            slope = field(here + node * h, jax.tree.map(lambda y, k: y + node * h * k, state, slope))
            return (slope, jax.tree.map(lambda y, k: y + weight * h * k, total, slope)), None

        start = (jax.tree.map(jnp.zeros_like, state), state)
        return jax.lax.scan(stage, start, (jnp.array(nodes), jnp.array(weights)))[0][1]

    def one(state: Flow, ends: tuple[Angle, Angle]) -> tuple[Flow, None]:
        # Equal neighbours, as at the end of a grid that was padded, cost nothing.
        return jax.lax.cond(ends[0] != ends[1], lambda: step(state, *ends), lambda: state), None

    state, _ = jax.lax.scan(one, state, (angles[:-1], angles[1:]))
    nfe = len(nodes) * jnp.sum(angles[:-1] != angles[1:])
    return state, jnp.full(state.volume.shape, nfe)


@dataclasses.dataclass(frozen=True)
class RK2:
    """Heun's rule on the grid: two calls a step, order 2."""

    def __call__(self, field: FlowField, state: Flow, angles: Float[Array, "n"]) -> tuple[Flow, Int[Array, "b"]]:
        return _runge_kutta((0.0, 1.0), (1 / 2, 1 / 2), field, state, angles)


@dataclasses.dataclass(frozen=True)
class RK4:
    """The classical Runge-Kutta rule on the grid: four calls a step, order 4."""

    def __call__(self, field: FlowField, state: Flow, angles: Float[Array, "n"]) -> tuple[Flow, Int[Array, "b"]]:
        return _runge_kutta((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6), field, state, angles)


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Adaptive Dormand-Prince between the first angle and the last, with steps of each image's own.

    The likelihood is NaN where max_steps do not suffice. Not differentiable.
    """

    rtol: float = 1e-5
    """Relative tolerance (score SDE: 1e-5)."""
    atol: float = 1e-5
    """Absolute tolerance, of z and of the divergence per dimension."""
    max_steps: int = 4096
    """Most steps, taken or refused."""

    def __call__(self, field: FlowField, state: Flow, angles: Float[Array, "n"]) -> tuple[Flow, Int[Array, "b"]]:
        # The divergence, spread over an image, weighs as much as z in the error of a step.
        def spread(state: Flow) -> tuple[Image, Image]:
            return state.z, jnp.broadcast_to(state.volume[:, None, None, None], state.z.shape)

        def gather(state: tuple[Image, Image]) -> Flow:
            return Flow(state[0], state[1][:, 0, 0, 0])

        y, nfe, there = solve_each(
            lambda phi, state: spread(field(phi, gather(state))),
            spread(state),
            angles[0],
            angles[-1],
            self.rtol,
            self.atol,
            self.max_steps,
        )
        found = gather(y)
        return Flow(found.z, jnp.where(there, found.volume, jnp.nan)), nfe


def angles(path: Path, num_steps: int, clean: float = 1e-3, noisy: float = math.inf) -> Float[Array, "n"]:
    """num_steps + 1 angles from the path's clean end to its noisiest level, in constant ratio.

    sigma/alpha is kept between `clean`, above 0 where networks are not defined, and `noisy`, below infinity for a
    prediction that cannot be solved at alpha = 0.

    Raises: ValueError.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps} is not allowed: at least 1 (--steps)")
    if not 0 < clean < noisy:
        raise ValueError(f"clean = {clean} must lie between 0 and noisy = {noisy} (--clean)")
    alpha, sigma = path(jnp.array([0.0, path.t_max]))
    first, last = jnp.clip(jnp.arctan2(sigma, alpha), math.atan(clean), math.atan(noisy))
    inside = first * (last / first) ** (jnp.arange(1, num_steps) / num_steps)
    return jnp.concatenate([first[None], inside, last[None]])


class Density(NamedTuple):
    """What the ODE says of images."""

    log_prob: Float[Array, "b"]
    """log p(y), nats."""
    latent: Image
    """z at the last angle: the noise that the ODE makes the image of."""
    nfe: Int[Array, "b"]
    """Calls of `denoise`; with each go the divergence's directional derivatives."""


def log_density(
    keys: Keys,
    y: Image,
    angles: Float[Array, "n"],
    denoise: Denoise,
    divergence: Divergence = Hutchinson(),
    integrate: Integrator = RK4(),
) -> Density:
    """log p(y) of images with noise of tan(angles[0]), under the ODE of `denoise`, which is asked at cos and sin.

    Wrap a network that is bound to its path in `on_path`. Keys are the probes', one per image. A fixed grid may repeat
    its last angle: one compilation serves every number of steps up to a maximum.
    """
    d = math.prod(y.shape[1:])
    probes = divergence.probes(keys, y)

    velocity = probability_flow(denoise)

    def field(phi: Angle, state: Flow) -> Flow:
        each = jnp.broadcast_to(phi, y.shape[:1])
        out, trace = divergence(lambda z: velocity(each, z), state.z, probes)
        return Flow(out, trace / d)

    first, last = at_angle(angles[0]), at_angle(angles[-1])
    state, nfe = integrate(field, Flow(first.alpha * y, jnp.zeros(y.shape[0])), angles)
    square = jnp.mean(jnp.square(state.z / last.sigma), axis=(1, 2, 3))
    prior = -0.5 * (square + math.log(2 * math.pi)) - jnp.log(last.sigma)
    return Density(d * (prior + state.volume + jnp.log(first.alpha)), state.z, nfe)


@runtime_checkable
class Dequantise(Protocol):
    """``(keys, x0, ratio) -> (y, log w)`` with P(x0) = E[p(y) w] or more; p is the density at noise `ratio`."""

    def __call__(self, keys: Keys, x0: Image, ratio: Float[Array, ""]) -> tuple[Image, Float[Array, "b"]]: ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """y uniform in the bin of x0, w the bin's volume: -log2 w is log2(255/2) = 6.99 bits per dimension."""

    def __call__(self, keys: Keys, x0: Image, ratio: Float[Array, ""]) -> tuple[Image, Float[Array, "b"]]:
        u = jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], jnp.float32, -0.5, 0.5))(keys)
        return x0 + BIN * u, jnp.full(x0.shape[0], math.prod(x0.shape[1:]) * math.log(BIN))


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """y = x0 + ratio eps, as in training, and w = p(x0 | y) / q(y | x0): for models trained on the values themselves.

    Such a model's density is 256 spikes as wide as the smallest noise, not flat over the bins. With this and one draw
    the bound is VDM's, with the ODE's density in place of its diffusion loss.
    """

    def __call__(self, keys: Keys, x0: Image, ratio: Float[Array, ""]) -> tuple[Image, Float[Array, "b"]]:
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:], jnp.float32))(keys)
        log_q = -0.5 * jnp.square(eps) - 0.5 * math.log(2 * math.pi) - jnp.log(ratio)
        return x0 + ratio * eps, jnp.sum(-value_nll(x0, eps, ratio) - log_q, axis=(1, 2, 3))


class Likelihood(NamedTuple):
    """A bound on -log P of 8-bit images, image by image."""

    nats: Float[Array, "b"]
    """Per image."""
    bits: Float[Array, "b"]
    """Per dimension."""
    log_weights: Float[Array, "draws b"]
    """log p(y_k) w_k of every draw."""
    nfe: Int[Array, "b"]
    """Calls of `denoise` in all draws together."""


def importance_bound(log_weights: Float[Array, "draws b"], draws: int) -> Float[Array, "b"]:
    """log of the mean weight of `draws` draws, averaged over the disjoint groups of them: at most log P(x0), expected.

    Raises: ValueError where there are fewer draws than that.
    """
    groups = log_weights.shape[0] // draws if draws > 0 else 0
    if not groups:
        raise ValueError(f"draws = {draws} is not allowed: 1 to {log_weights.shape[0]} (--draws)")
    parts = log_weights[: groups * draws].reshape(groups, draws, -1)
    return jnp.mean(jax.nn.logsumexp(parts, axis=1) - math.log(draws), axis=0)


def likelihood(
    keys: Keys,
    x0: Image,
    angles: Float[Array, "n"],
    denoise: Denoise,
    dequantise: Dequantise = Uniform(),
    draws: int = 1,
    divergence: Divergence = Hutchinson(),
    integrate: Integrator = RK4(),
) -> Likelihood:
    """The importance-weighted bound on -log P(x0) by `draws` dequantisations; x0 holds u8 / 127.5 - 1.

    Image i's draws and probes come from its key. All its draws have the same probes, so that on a smooth field a
    Hutchinson estimate is off by the same in each. What is left of the difference passes for importance: where
    `log_weights` spread by much more than sqrt(d) nats, believe `draws = 1`, or take `Exact`.
    """
    ratio = jnp.tan(angles[0])

    def fold(number: Int[Array, ""] | int) -> Keys:
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

    def weigh(number: Int[Array, ""]) -> tuple[Float[Array, "b"], Int[Array, "b"]]:
        y, log_weight = dequantise(fold(number), x0, ratio)
        found = log_density(fold(0), y, angles, denoise, divergence, integrate)
        return found.log_prob + log_weight, found.nfe

    log_weights, nfe = jax.lax.map(weigh, jnp.arange(1, draws + 1))
    nats = -importance_bound(log_weights, draws)
    return Likelihood(nats, per_dim(nats, x0), log_weights, jnp.sum(nfe, axis=0))
