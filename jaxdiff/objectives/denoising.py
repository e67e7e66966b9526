"""Denoising score matching for any path x prediction x time law x weight.

L = E_{t, eps} [ w(t) * mean((out - (a x0 + b eps))**2) ],      x = alpha x0 + sigma eps
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.cond import drop
from jaxdiff.core.gaussian import diffuse, target
from jaxdiff.core.paths import FixedPath
from jaxdiff.core.predictions import AnyPrediction
from jaxdiff.core.times import AnyTimeLaw
from jaxdiff.core.types import ApplyFn, Params, Path
from jaxdiff.core.weights import AnyWeight, One, convert
from jaxdiff.objectives.base import Batch, Metrics, image_mean, network_key, noise_like, row_keys, times_of
from jaxdiff.objectives.uncertainty import log_uncertainty


@dataclasses.dataclass(frozen=True)
class Denoising:
    """Squared error of the network's output. Source: arXiv:2011.13456, Eq. 7; arXiv:2206.00364, Eq. 2."""

    path: FixedPath
    """The noise schedule."""
    prediction: AnyPrediction
    """What the network predicts."""
    times: AnyTimeLaw
    """The law of the training times."""
    weight: AnyWeight = One()
    """The factor on the squared error."""
    weight_of: AnyPrediction | None = None
    """The prediction whose error the weight speaks of; None: the network's own output."""
    drop: float = 0.0
    """Probability that an example's condition is replaced by the absent one (for guidance)."""
    uncertainty: int = 0
    """Fourier features of a learned uncertainty by which errors are weighted (arXiv:2312.02696: 128); 0: none."""
    drop_apart: float = 0.0
    """Of networks that are shown a picture and told of more: the probability that the picture alone is left out, and
    that all else is (for two guidance scales)."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop = {self.drop} must lie in [0, 1) (--drop)")
        if self.uncertainty < 0:
            raise ValueError(f"uncertainty = {self.uncertainty} is not allowed: at least 0 (--uncertainty)")
        if not (self.drop_apart >= 0 and self.drop + 2 * self.drop_apart <= 1):
            raise ValueError(f"drop_apart = {self.drop_apart} must lie in [0, (1 - drop) / 2] (--drop-apart)")

    def _errors(
        self,
        apply: ApplyFn,
        params: Params,
        key: Key[Array, ""],
        batch: Batch,
        t: Float[Array, "b"],
        train: bool,
    ) -> Float[Array, "b"]:
        key_noise, key_drop, key_net = jax.random.split(key, 3)
        level = self.path(t)
        eps = noise_like(key_noise, batch)
        cond = drop(row_keys(key_drop, batch.row), batch.cond, self.drop, self.drop_apart) if train else batch.cond
        x = diffuse(level, batch.x0, eps)
        out = apply(params, x, level, level, cond, network_key(key_net, batch) if train else None)
        weight = self.weight
        if self.weight_of is not None:
            weight = convert(weight, of=self.weight_of, to=self.prediction)
        return weight(level) * image_mean(jnp.square(out - target(self.prediction, level, batch.x0, eps)))

    def __call__(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        key_time, key_rest = jax.random.split(key)
        t = times_of(self.times, key_time, batch, self.path)
        errors = self._errors(apply, params, key_rest, batch, t, train=True)
        if not self.uncertainty:
            return jnp.mean(errors), {}
        u = log_uncertainty(params["uncertainty"], self.path(t))
        return jnp.mean(jnp.exp(-u) * errors + u), {"error": jnp.mean(errors)}

    def losses(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch, t: Float[Array, "b"]
    ) -> Float[Array, "b"]:
        return self._errors(apply, params, key, batch, t, train=False)

    def path_of(self, params: Params) -> Path:
        return self.path
