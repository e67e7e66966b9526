"""Classification of noisy images: what classifier guidance follows.

L = E_{t, eps} [ -log p(label | x, level) ],      x = alpha x0 + sigma eps,   p = softmax(network's output)
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxdiff.core.gaussian import diffuse
from jaxdiff.core.paths import FixedPath
from jaxdiff.core.predictions import AnyPrediction
from jaxdiff.core.times import AnyTimeLaw
from jaxdiff.core.types import ApplyFn, Params, Path
from jaxdiff.objectives.base import Batch, Metrics, network_key, noise_like, times_of


@dataclasses.dataclass(frozen=True)
class Classification:
    """Cross-entropy of the label of a noisy image; the network returns logits, [b, k], and is told no condition.

    Raises ValueError where a batch has no labels. Source: arXiv:2105.05233, Sec. 4.
    """

    path: FixedPath
    """The noise schedule."""
    prediction: AnyPrediction
    """How image and level are fed to the network, as to a denoiser; its row is not used."""
    times: AnyTimeLaw
    """The law of the training times."""

    def _logits(
        self,
        apply: ApplyFn,
        params: Params,
        key: Key[Array, ""],
        batch: Batch,
        t: Float[Array, "b"],
        train: bool,
    ) -> Float[Array, "b k"]:
        if "label" not in batch.cond:
            raise ValueError("a classifier cannot be trained on images without labels (--data.source, --data.labels)")
        key_noise, key_net = jax.random.split(key)
        level = self.path(t)
        x = diffuse(level, batch.x0, noise_like(key_noise, batch))
        return apply(params, x, level, level, {}, network_key(key_net, batch) if train else None)

    def __call__(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        key_time, key_rest = jax.random.split(key)
        t = times_of(self.times, key_time, batch, self.path)
        logits = self._logits(apply, params, key_rest, batch, t, train=True)
        return jnp.mean(cross_entropy(logits, batch)), {"accuracy": jnp.mean(correct(logits, batch))}

    def losses(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch, t: Float[Array, "b"]
    ) -> Float[Array, "b"]:
        return cross_entropy(self._logits(apply, params, key, batch, t, train=False), batch)

    def hits(
        self, apply: ApplyFn, params: Params, key: Key[Array, ""], batch: Batch, t: Float[Array, "b"]
    ) -> Float[Array, "b"]:
        """1 where the most likely class is the label, else 0, at given times: the mean is the accuracy."""
        return correct(self._logits(apply, params, key, batch, t, train=False), batch)

    def path_of(self, params: Params) -> Path:
        return self.path


def cross_entropy(logits: Float[Array, "b k"], batch: Batch) -> Float[Array, "b"]:
    """-log softmax(logits)[label]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.cond["label"][:, None], axis=1)[:, 0]


def correct(logits: Float[Array, "b k"], batch: Batch) -> Float[Array, "b"]:
    """1 where the largest logit is the label's, else 0."""
    return (jnp.argmax(logits, axis=1) == batch.cond["label"]).astype(jnp.float32)
