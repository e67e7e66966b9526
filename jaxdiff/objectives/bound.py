"""The variational bound on -log P(x0) of any denoiser of 8-bit images, however trained, in bits per dimension.

    L = KL(q(x_1 | x0) || N(0, sigma**2)) + diffusion + decoder

The prior is the one that samplers start from. In discrete time, on levels x_1 (noisiest) ... x_n and clean, the
diffusion is the sum of KL(q(x_s | x_t, x0) || p(x_s | x_t)) between normals, and the decoder a normal's mass in the
bin of x0. In continuous time, with gamma = -logSNR,

    diffusion = 1/2 integral of E ||eps - eps_hat||**2 dgamma

between the ends, whatever the path does between them, and the decoder is p(x0 | x_n) ~ N(x_n; alpha x0, sigma**2) over
the 256 values. The expectations are taken with one draw of noise per image and term.

Source: arXiv:2006.11239, Eq. 5; arXiv:2107.00630, Eq. 11-17.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.core.bits import per_dim, value_nll
from jaxdiff.core.gaussian import diffuse, expand, logsnr
from jaxdiff.core.paths import logsnr_rate
from jaxdiff.core.types import Denoise, Estimate, Level, Path
from jaxdiff.objectives.base import image_mean

Image = Float[Array, "b h w c"]
Keys = Key[Array, "b"]


class Bound(NamedTuple):
    """The terms of the bound, bits per dimension, image by image."""

    prior: Float[Array, "b"]
    """KL of the noisiest level to the prior."""
    diffusion: Float[Array, "b n"]
    """The terms between, the noisiest first."""
    decoder: Float[Array, "b"]
    """-log p(x0 | the cleanest level)."""
    logsnr: Float[Array, "n"]
    """Where each diffusion term belongs: the logSNR of its noisier level, or of its middle."""

    @property
    def bits(self) -> Float[Array, "b"]:
        """The bound."""
        return self.prior + jnp.sum(self.diffusion, axis=1) + self.decoder


def by_logsnr(bound: Bound, edges: Float[Array, "m"]) -> Float[Array, "b bins"]:
    """The diffusion terms summed in the bins between rising `edges` of logSNR; the outer bins take what lies beyond."""
    number = jnp.clip(jnp.searchsorted(edges, bound.logsnr, side="right") - 1, 0, edges.shape[0] - 2)
    return jax.vmap(lambda terms: jnp.zeros(edges.shape[0] - 1).at[number].add(terms))(bound.diffusion)


def posterior_mean(cur: Level, nxt: Level, x0: Image, eps: Image) -> Image:
    """Mean of q(x_nxt | x_cur, x0), x_cur = alpha x0 + sigma eps. Source: arXiv:2006.11239, Eq. 7."""
    scale = jnp.square(nxt.sigma) * cur.alpha / (nxt.alpha * cur.sigma)
    return expand(nxt.alpha, x0) * x0 + expand(scale, x0) * eps


def normal_kl(mean1: Image, log_var1: Image, mean2: Image, log_var2: Image) -> Image:
    """KL(N(mean1, var1) || N(mean2, var2)), elementwise, in nats."""
    ratio = jnp.exp(log_var1 - log_var2)
    return 0.5 * (log_var2 - log_var1 + ratio + jnp.square(mean1 - mean2) * jnp.exp(-log_var2) - 1)


def discretized_nll(x0: Image, mean: Image, log_var: Image) -> Image:
    """-log of the mass that N(mean, var) gives to the 8-bit bin of x0 in [-1, 1], elementwise, in nats.

    The outer bins reach to infinity. Source: arXiv:2006.11239, Eq. 13.
    """
    inverse_std = jnp.exp(-0.5 * log_var)
    upper = jnp.where(x0 > 0.999, jnp.inf, (x0 - mean + 1 / 255) * inverse_std)
    lower = jnp.where(x0 < -0.999, -jnp.inf, (x0 - mean - 1 / 255) * inverse_std)
    # The mass of a far bin is taken on the side of the tail where it does not round to zero.
    flip = lower > 0
    high, low = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    log_high, log_low = jax.scipy.special.log_ndtr(high), jax.scipy.special.log_ndtr(low)
    return -(log_high + jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-7))))


def _prior(level: Level, x0: Image) -> Float[Array, "b"]:
    """KL(N(alpha x0, sigma**2) || N(0, sigma**2)), bits per dimension."""
    return image_mean(jnp.square(level.alpha / level.sigma * x0)) / (2 * math.log(2))


def _noise(keys: Keys, number: Int[Array, ""] | int, x0: Image) -> Image:
    shape = x0.shape[1:]
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32))(keys)


# In discrete time.

Variance = Callable[[Float[Array, ""], Float[Array, ""], Estimate], Float[Array, "..."]]
"""``(log beta_tilde, log beta, estimate) -> log variance`` of p(x_s | x_t)."""


def small(log_tilde: Float[Array, ""], log_beta: Float[Array, ""], believed: Estimate) -> Float[Array, "..."]:
    """The posterior's own variance, beta_tilde: right where the data is a point."""
    return log_tilde


def large(log_tilde: Float[Array, ""], log_beta: Float[Array, ""], believed: Estimate) -> Float[Array, "..."]:
    """The forward step's variance, beta: right where the data is N(0, I)."""
    return log_beta


def learned(log_tilde: Float[Array, ""], log_beta: Float[Array, ""], believed: Estimate) -> Float[Array, "..."]:
    """u log(beta) + (1 - u) log(beta_tilde), u = (v + 1) / 2. Source: arXiv:2102.09672, Eq. 15.

    Raises: ValueError if the network has no v.
    """
    if believed.v is None:
        raise ValueError("the network has learned no variance: train with --network.learned-variance, or take small")
    u = 0.5 * (believed.v + 1)
    return u * log_beta + (1 - u) * log_tilde


def log_variances_of(levels: Level) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """log(beta_tilde) and log(beta) of each step of falling levels.

    beta = sigma_t**2 - (alpha_t sigma_s / alpha_s)**2 and beta_tilde = beta (sigma_s / sigma_t)**2, which is 0 in the
    last step, to sigma = 0, where the step before has lent its own (arXiv:2102.09672, Sec. 3.1).
    """
    alpha, sigma = levels
    # sigma_t**2 (1 - q**2), q = alpha_t sigma_s / (alpha_s sigma_t), loses the fewest digits where steps are short.
    q = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    log_rest = jnp.log1p(-jnp.square(q))
    log_beta = 2 * jnp.log(sigma[:-1]) + log_rest
    log_tilde = 2 * jnp.log(sigma[1:-1]) + log_rest[:-1]
    return jnp.append(log_tilde, log_tilde[-1:] if log_tilde.size else log_beta), log_beta


def discrete_bound(keys: Keys, x0: Image, levels: Level, denoise: Denoise, variance: Variance = small) -> Bound:
    """The bound of the ancestral sampler on these levels, Level[n + 1], of which the last is clean; x0 in [-1, 1].

    n calls of `denoise`. The clean step's variance is what `variance` makes of the one before (beta_tilde) and its own
    beta. Image i's noise is drawn from its key.
    """
    n = levels.alpha.shape[0] - 1
    log_tilde, log_beta = log_variances_of(levels)

    def believe(number: Int[Array, ""] | int, cur: Level, nxt: Level) -> tuple[Image, Estimate]:
        eps = _noise(keys, number, x0)
        return eps, denoise(diffuse(cur, x0, eps), cur, nxt)

    def term(step: tuple[Int[Array, ""], Level, Level, Array, Array]) -> Float[Array, "b"]:
        number, cur, nxt, tilde, beta = step
        eps, believed = believe(number, cur, nxt)
        mean, guess = posterior_mean(cur, nxt, x0, eps), posterior_mean(cur, nxt, believed.x0, believed.eps)
        log_var = variance(tilde, beta, believed) + jnp.zeros_like(x0)
        return image_mean(normal_kl(mean, tilde + jnp.zeros_like(x0), guess, log_var)) / math.log(2)

    def at(i: slice | int) -> Level:
        return jax.tree.map(lambda a: a[i], levels)

    steps = (jnp.arange(n - 1), at(slice(0, n - 1)), at(slice(1, n)), log_tilde[:-1], log_beta[:-1])
    diffusion = jax.lax.map(term, steps)
    _, believed = believe(n - 1, at(n - 1), at(n))
    log_var = variance(log_tilde[-1], log_beta[-1], believed) + jnp.zeros_like(x0)
    decoder = image_mean(discretized_nll(x0, believed.x0, log_var)) / math.log(2)
    return Bound(_prior(at(0), x0), diffusion.T, decoder, logsnr(at(slice(0, n - 1))))


# In continuous time.

Points = Callable[[Path, Float[Array, ""], Float[Array, ""], Float[Array, "*b"]], tuple[Level, Float[Array, "*b"]]]
"""``(path, clean ratio, noisy ratio, u) -> (level, -dlogSNR/du)``, u from 0 (noisy) to 1 (clean)."""


def even_logsnr(
    path: Path, clean: Float[Array, ""], noisy: Float[Array, ""], u: Float[Array, "*b"]
) -> tuple[Level, Float[Array, "*b"]]:
    """logSNR linear in u."""
    span = 2 * jnp.log(noisy / clean)
    return path(path.invert(noisy * jnp.exp(-0.5 * span * u))), jnp.full(u.shape, span)


def even_time(
    path: Path, clean: Float[Array, ""], noisy: Float[Array, ""], u: Float[Array, "*b"]
) -> tuple[Level, Float[Array, "*b"]]:
    """The path's own time linear in u, as in training: the variance is what the path makes it."""
    first, last = path.invert(noisy), path.invert(clean)
    level = path(first + u * (last - first))
    return level, (first - last) * logsnr_rate(path, level)


def continuous_bound(
    keys: Keys,
    x0: Image,
    path: Path,
    denoise: Denoise,
    terms: int = 64,
    points: Points = even_logsnr,
    clean: float = 1e-3,
    noisy: float = 1e3,
) -> Bound:
    """The bound in continuous time, unbiased: each image has one random level in each of `terms` equal parts.

    The ends are the path's, or sigma/alpha = `clean` and `noisy` where it goes further; any ends give a bound. `clean`
    far below a bin (2/255) suits models that were trained on 8-bit values, a bin or two those that take the data to
    be smooth. Image i's noise is drawn from its key.

    Raises: ValueError.
    """
    if terms < 1:
        raise ValueError(f"terms = {terms} is not allowed: at least 1 (--terms)")
    if not 0 < clean < noisy:
        raise ValueError(f"clean = {clean} must lie between 0 and noisy = {noisy} (--clean)")
    ends = path(jnp.array([path.t_max, 0.0]))
    ratio = jnp.clip(ends.sigma / ends.alpha, clean, noisy)
    offset = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, terms + 1)))(keys)

    def term(number: Int[Array, ""]) -> Float[Array, "b"]:
        level, rate = points(path, ratio[1], ratio[0], (number + offset) / terms)
        eps = _noise(keys, number, x0)
        believed = denoise(diffuse(level, x0, eps), level, level)
        return rate / terms * image_mean(jnp.square(eps - believed.eps))

    diffusion = jax.lax.map(term, jnp.arange(terms)) / (2 * math.log(2))
    middles, _ = points(path, ratio[1], ratio[0], (jnp.arange(terms) + 0.5) / terms)
    noisiest = Level(1 / jnp.hypot(1.0, ratio[0]), ratio[0] / jnp.hypot(1.0, ratio[0]))
    nll = value_nll(x0, _noise(keys, terms, x0), ratio[1])
    return Bound(_prior(noisiest, x0), diffusion.T, per_dim(jnp.sum(nll, axis=(1, 2, 3)), x0), logsnr(middles))
