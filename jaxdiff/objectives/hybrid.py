"""iDDPM's hybrid: the simple loss on eps plus a small multiple of the discrete bound, which trains the variance.

    L = L_simple + 0.001 L_vlb,   log variance = u log(beta) + (1 - u) log(beta_tilde),   u = (v + 1) / 2

The network outputs 2c channels, eps and v. The bound's mean sees no gradient. Steps are those of a `DiscreteVP`.
Source: arXiv:2102.09672, Eq. 15-16.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxdiff.core.cond import drop
from jaxdiff.core.gaussian import diffuse, estimate, expand, target
from jaxdiff.core.paths import DiscreteVP
from jaxdiff.core.predictions import AnyPrediction
from jaxdiff.core.times import UniformSteps
from jaxdiff.core.types import ApplyFn, Params, Path
from jaxdiff.objectives.base import Batch, Metrics, image_mean, network_key, noise_like, row_keys, times_of
from jaxdiff.objectives.bound import discretized_nll, normal_kl, posterior_mean


def log_variances(path: DiscreteVP, t: Float[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """log(beta_tilde) and log(beta) of steps t in {1 ... N}: the variances of the ancestral step to t - 1.

    beta_tilde is 0 at t = 1, where step 2's is used. Formed in float64.

    Source: arXiv:2006.11239, Eq. 7; arXiv:2102.09672, Sec. 3.1.
    """

    betas = path.betas(path.num_steps)
    log_sigma_sq = np.log(-np.expm1(np.cumsum(np.log1p(-betas))))
    log_tilde = np.log(betas[1:]) + log_sigma_sq[:-1] - log_sigma_sq[1:]
    tilde_table = np.append(log_tilde[:1], log_tilde).astype(np.float32)
    step = t.astype(jnp.int32) - 1
    return jnp.asarray(tilde_table)[step], jnp.asarray(np.log(betas).astype(np.float32))[step]


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """L_simple + vlb_scale * L_vlb, L_vlb in bits per dimension summed over the N steps."""

    path: DiscreteVP
    """The chain."""
    prediction: AnyPrediction
    """What the first c channels predict; Eps in the paper."""
    times: UniformSteps
    """Uniform over the chain's steps."""
    vlb_scale: float = 0.001
    """The paper's lambda."""
    drop: float = 0.0
    """Probability that an example's condition is replaced by the absent one (for guidance)."""

    def _errors(
        self,
        apply: ApplyFn,
        params: Params,
        key: Key[Array, ""],
        batch: Batch,
        t: Float[Array, "b"],
        train: bool,
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        key_noise, key_drop, key_net = jax.random.split(key, 3)
        cur, nxt = self.path(t), self.path(t - 1)
        eps = noise_like(key_noise, batch)
        cond = drop(row_keys(key_drop, batch.row), batch.cond, self.drop) if train else batch.cond
        x = diffuse(cur, batch.x0, eps)
        out, v = jnp.split(apply(params, x, cur, nxt, cond, network_key(key_net, batch) if train else None), 2, axis=-1)
        simple = image_mean(jnp.square(out - target(self.prediction, cur, batch.x0, eps)))

        log_tilde, log_beta = (expand(a, x) for a in log_variances(self.path, t))
        u = 0.5 * (v + 1)
        log_var = u * log_beta + (1 - u) * log_tilde
        believed = estimate(self.prediction, cur, x, jax.lax.stop_gradient(out))
        mean = posterior_mean(cur, nxt, believed.x0, believed.eps)
        kl = normal_kl(posterior_mean(cur, nxt, batch.x0, eps), log_tilde + 0 * mean, mean, log_var)
        bound = jnp.where(expand(t, x) < 1.5, discretized_nll(batch.x0, mean, log_var), kl)
        return simple, image_mean(bound) / jnp.log(2.0)

    def _total(self, simple: Float[Array, "b"], bound: Float[Array, "b"]) -> Float[Array, "b"]:
        return simple + self.vlb_scale * self.path.num_steps * bound

    def __call__(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        key_time, key_rest = jax.random.split(key)
        t = times_of(self.times, key_time, batch, self.path)
        simple, bound = self._errors(apply, params, key_rest, batch, t, train=True)
        metrics = {"simple": jnp.mean(simple), "vlb_bits": self.path.num_steps * jnp.mean(bound)}
        return jnp.mean(self._total(simple, bound)), metrics

    def losses(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch, t: Float[Array, "b"]
    ) -> Float[Array, "b"]:
        steps = jnp.clip(jnp.ceil(t), 1, self.path.num_steps)
        return self._total(*self._errors(apply, params, key, batch, steps, train=False))

    def path_of(self, params: Params) -> Path:
        return self.path
