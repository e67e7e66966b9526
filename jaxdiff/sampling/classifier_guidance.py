"""Classifier guidance: Bayes' rule with a classifier of noisy images.

    score(x | y) = score(x) + grad_x log p(y | x, level),      score = -eps / sigma
    eps' = eps - scale * sigma * grad_x log p(y | x, level)
    x0'  = x0 + scale * sigma**2 / alpha * grad_x log p(y | x, level)

so that x = alpha x0' + sigma eps' still holds. At scale 1, with both exact, this is the conditional denoiser; at
others the data's density is multiplied, level by level, by p(y | x)**scale.

Source: arXiv:2011.13456, Eq. 14 (score); arXiv:2105.05233, Alg. 2 (eps, and the scale).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.core import gaussian
from jaxdiff.core.types import ApplyFn, Denoise, Estimate, Level, Params, Path, Prediction, Transform
from jaxdiff.sampling.guidance import Scale
from jaxdiff.sampling.sample import per_image

Image = Float[Array, "b h w c"]

LogProbs = Callable[[Image, Level], Float[Array, "b k"]]
"""``(x, level) -> log p(class | x)``; a common term in all the classes does no harm if it does not depend on x."""


def log_probs(apply: ApplyFn, params: Params, prediction: Prediction, path: Path) -> LogProbs:
    """A trained classifier as `LogProbs` at any level: x is rescaled to the level of `path` with that sigma / alpha.

    `apply` returns logits; `prediction` and `path` are those of its training.
    """

    def at(x: Image, level: Level) -> Float[Array, "b k"]:
        here = path(path.invert(level.sigma / level.alpha))
        scale = jnp.hypot(here.alpha, here.sigma) / jnp.hypot(level.alpha, level.sigma)
        here = per_image(here, x.shape[0])
        return jax.nn.log_softmax(apply(params, gaussian.expand(scale, x) * x, here, here, {}))

    return at


def classifier_guided(log_probs: LogProbs, label: Int[Array, "b"], scale: Scale) -> Transform:
    """Pushes towards images that the classifier takes for `label`; one gradient of the classifier a call.

    `scale`: 0 is no guidance, 1 is Bayes' rule (ADM used 1 to 10); may be traced. A label below 0 is absent: no push.
    At alpha = 0, where x says nothing of the class, there is none either. Near there an inexact classifier's push on
    x0 is multiplied by sigma**2 / alpha: threshold after it.
    """

    def transform(denoise: Denoise) -> Denoise:
        def guided(x: Image, cur: Level, nxt: Level) -> Estimate:
            def chosen(x: Image) -> Float[Array, ""]:
                of_label = jnp.take_along_axis(log_probs(x, cur), jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
                return jnp.sum(jnp.where(label < 0, 0.0, of_label))

            gradient = gaussian.expand(jnp.asarray(scale), x) * jax.grad(chosen)(x)
            return gaussian.pushed(cur, denoise(x, cur, nxt), gradient)

        return guided

    return transform
