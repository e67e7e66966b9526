"""VDM's continuous-time bound on -log p(x), with a learned noise schedule, in bits per dimension.

With gamma = -logSNR and z_t = alpha_t x + sigma_t eps:

    L = KL(q(z_1 | x) || N(0, I)) - log p(x | z_0) + (1/2) E_{t, eps}[ gamma'(t) ||eps - eps_hat||^2 ]

The schedule's parameters are params["schedule"]; the network's are the `ApplyFn`'s affair. The bound depends on the
schedule's ends alone; what lies between them is trained to lower the variance of the estimate.

Source: arXiv:2107.00630, Eq. 17, App. H.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxdiff.core.bits import value_nll
from jaxdiff.core.cond import drop
from jaxdiff.core.gaussian import diffuse, estimate, logsnr
from jaxdiff.core.predictions import AnyPrediction
from jaxdiff.core.times import AnyTimeLaw
from jaxdiff.core.types import ApplyFn, Level, Params, Path
from jaxdiff.objectives.base import Batch, Metrics, image_mean, network_key, noise_like, row_keys, times_of

ENDS = ("gamma_min", "gamma_span")
"""The parameters of the schedule that the bound itself trains."""


@runtime_checkable
class Schedule(Protocol):
    """A learned path, t in [0, 1]: a Flax module (`networks.schedule.LearnedSchedule`)."""

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Initial parameters."""
        ...

    def at(self, params: Params) -> Path:
        """The path that these parameters make."""
        ...


def _select_grad(schedule: PyTree, ends: bool) -> PyTree:
    """The schedule's parameters, with a gradient either to the ends only or to all but the ends."""
    return {k: v if (k in ENDS) == ends else jax.lax.stop_gradient(v) for k, v in schedule.items()}


def _scale_grad(x: PyTree, scale: Float[Array, "b"]) -> PyTree:
    """x, whose gradient is multiplied by `scale`."""

    def one(a: Float[Array, "b"]) -> Float[Array, "b"]:
        still = jax.lax.stop_gradient(a)
        return still + scale * (a - still)

    return jax.tree.map(one, x)


@dataclasses.dataclass(frozen=True)
class VDM:
    """The bound, in bits per dimension of 8-bit images."""

    path: Schedule
    """The learned schedule (its flags set its initial ends)."""
    prediction: AnyPrediction
    """What the network predicts; Eps in the paper."""
    times: AnyTimeLaw
    """Stratified uniform times in the paper."""
    interior: bool = False
    """Train the schedule's interior for low variance, at the price of a second forward pass."""
    drop: float = 0.0
    """Probability that an example's condition is replaced by the absent one (for guidance)."""

    def _level(self, params: Params, t: Float[Array, "b"]) -> tuple[Level, Float[Array, "b"]]:
        """The level at t and gamma'(t)."""

        def gamma(t: Float[Array, "b"]) -> tuple[Float[Array, "b"], Level]:
            level = self.path.at(params)(t)
            return -logsnr(level), level

        _, rate, level = jax.jvp(gamma, (t,), (jnp.ones_like(t),), has_aux=True)
        return level, rate

    def _ends(self, schedule: Params, key: Key[Array, ""], batch: Batch) -> Float[Array, "b"]:
        """Prior KL and reconstruction, nats per dimension."""
        first, last = map(self.path.at(schedule), jnp.array([0.0, 1.0]))
        var = jnp.square(last.sigma)
        prior = 0.5 * (var + jnp.square(last.alpha * batch.x0) - jnp.log(var) - 1)
        nll = value_nll(batch.x0, noise_like(key, batch), first.sigma / first.alpha)
        return image_mean(prior) + image_mean(nll)

    def _diffusion(
        self,
        apply: Callable[..., Float[Array, "b h w c"]],
        params: Params,
        key: Key[Array, ""],
        batch: Batch,
        point: tuple[Level, Float[Array, "b"]],
    ) -> Float[Array, "b"]:
        level, rate = point
        eps = noise_like(key, batch)
        x = diffuse(level, batch.x0, eps)
        believed = estimate(self.prediction, level, x, apply(params, x, level, level))
        return 0.5 * rate * image_mean(jnp.square(eps - believed.eps))

    def _errors(
        self,
        apply: ApplyFn,
        params: Params,
        key: Key[Array, ""],
        batch: Batch,
        t: Float[Array, "b"],
        train: bool,
    ) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """(the two ends, the diffusion loss), bits per dimension."""
        key_noise, key_first, key_drop, key_net = jax.random.split(key, 4)
        cond = drop(row_keys(key_drop, batch.row), batch.cond, self.drop) if train else batch.cond

        def net(params: Params, x: Float[Array, "b h w c"], cur: Level, nxt: Level) -> Float[Array, "b h w c"]:
            return apply(params, x, cur, nxt, cond, network_key(key_net, batch) if train else None)

        schedule = params["schedule"]
        point = self._level(_select_grad(schedule, ends=True) if self.interior else schedule, t)
        if self.interior and train:
            # d/d eta E[l^2] = E[2 l dl/d eta]: the interior's gradient is scaled by 2 l of each example.
            plain = jax.lax.stop_gradient((params, point))
            scale = 2 * self._diffusion(net, plain[0], key_noise, batch, plain[1])
            inner = self._level(_select_grad(schedule, ends=False), t)
            still = jax.lax.stop_gradient(inner)
            moved = jax.tree.map(lambda a, b: a - b, _scale_grad(inner, scale), still)
            point = jax.tree.map(jnp.add, point, moved)
        diffusion = self._diffusion(net, params, key_noise, batch, point)
        bits = 1 / jnp.log(2.0)
        return self._ends(schedule, key_first, batch) * bits, diffusion * bits

    def __call__(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        key_time, key_rest = jax.random.split(key)
        t = times_of(self.times, key_time, batch, self.path_of(params))
        ends, diffusion = self._errors(apply, params, key_rest, batch, t, train=True)
        metrics = {"ends_bits": jnp.mean(ends), "diffusion_bits": jnp.mean(diffusion)}
        return jnp.mean(ends + diffusion), metrics

    def losses(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch, t: Float[Array, "b"]
    ) -> Float[Array, "b"]:
        ends, diffusion = self._errors(apply, params, key, batch, t, train=False)
        return ends + diffusion

    def path_of(self, params: Params) -> Path:
        return self.path.at(params["schedule"])
