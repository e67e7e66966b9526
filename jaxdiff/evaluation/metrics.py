"""The metrics by name: what each looks at, and how it is measured with its interval.

| metric | of | better |
|---|---|---|
| fid, sfid | Fréchet distance of pooled and of spatial features of the Inception network of 2015 | - |
| is | Inception score, by the same network; its std is over ten splits | + |
| fd | Fréchet distance on any feature network | - |
| kid | kernel distance on any feature network, unbiased, of the whole sets (the usual figure averages subsets) | - |
| precision, recall, density, coverage | balls around features of any network | + |
| cmmd | CLIP ViT-L/14 at 336 pixels | - |
| clip-score | cosine of CLIP's image and text embeddings, times 100 | + |
| psnr, ssim, lpips | pairs of images, sample i and reference i | +, +, - |
| lpips-diversity | pairs of samples of one class | + |
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdiff.evaluation import image_quality
from jaxdiff.evaluation.bootstrap import Interval, frechet_interval, interval, interval_of
from jaxdiff.evaluation.frechet import frechet
from jaxdiff.evaluation.inception_score import inception_score
from jaxdiff.evaluation.kernel import cmmd_of, kid_of
from jaxdiff.evaluation.manifold import coverage_of, density_of, precision_of, recall_of
from jaxdiff.evaluation.moments import Gaussian, gaussian, moments


class Reference(NamedTuple):
    """What a metric compares with: features, or their Gaussian alone where only statistics were kept."""

    features: np.ndarray | None
    gaussian: Gaussian | None = None


class Bootstrap(NamedTuple):
    """How intervals are made: `count` random halves, none if 0, from a seed."""

    count: int
    seed: int = 0


Measure = Callable[[np.ndarray, Reference, Bootstrap], Interval]
"""(of the samples, of the reference, how) -> the figure and its interval."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a metric looks at, and how."""

    measure: Measure
    output: str = "features"
    """Which output of the network: features, spatial, logits; "images" are the images themselves."""
    network: str | None = None
    """The network that defines it (a name of `pretrained.features.open_features`); None: any."""
    reference: bool = True
    """Whether it compares with a reference."""
    texts: bool = False
    """Whether it compares with the captions."""
    better: str = "lower"
    """Which figures are better."""


def plain(value: float) -> Interval:
    """A figure without an interval."""
    return Interval(value, float("nan"), float("nan"), float("nan"), float("nan"))


def _features(reference: Reference) -> np.ndarray:
    if reference.features is None:
        raise ValueError("this metric needs the reference's images, not only their statistics (--reference)")
    return reference.features


def _frechet(generated: np.ndarray, reference: Reference, how: Bootstrap) -> Interval:
    known = reference.gaussian or gaussian(moments(_features(reference)))
    if not how.count:
        return plain(frechet(gaussian(moments(generated)), known))
    return frechet_interval(generated, known, count=how.count, seed=how.seed)


Subsets = Callable[[np.ndarray, np.ndarray, Bool[np.ndarray, "k n"]], Float[np.ndarray, "k"]]
"""(samples, reference, masks) -> a figure for each subset of the samples, in one pass over the pairs."""


def _subsets(metric: Subsets) -> Measure:
    def measure(generated: np.ndarray, reference: Reference, how: Bootstrap) -> Interval:
        real, n = _features(reference), len(generated)
        if not how.count:
            return plain(float(metric(generated, real, np.ones((1, n), bool))[0]))
        return interval_of(lambda masks: metric(generated, real, masks), n, count=how.count, seed=how.seed)

    return measure


def _inception_score(generated: np.ndarray, reference: Reference, how: Bootstrap) -> Interval:
    score = inception_score(generated)
    return plain(score.mean)._replace(std=score.std)


def _mean(values: Float[np.ndarray, "n"], how: Bootstrap) -> Interval:
    if not how.count:
        return plain(float(np.mean(values, dtype=np.float64)))
    return interval(
        lambda rows: float(np.mean(values[rows], dtype=np.float64)), len(values), count=how.count, seed=how.seed
    )


def _pairs(quality: Callable[[Array, Array], Array]) -> Measure:
    def measure(generated: np.ndarray, reference: Reference, how: Bootstrap) -> Interval:
        real = _features(reference)
        if real.shape != generated.shape:
            raise ValueError(
                f"{len(generated)} images {generated.shape[1:]} and {len(real)} images {real.shape[1:]} are no pairs: "
                "as many are needed, of one size (--reference, --num)"
            )
        blocks = (slice(i, i + 64) for i in range(0, len(real), 64))
        return _mean(np.concatenate([np.asarray(quality(_unit(generated[b]), _unit(real[b]))) for b in blocks]), how)

    return measure


def _unit(images: np.ndarray) -> Float[Array, "n h w c"]:
    return jnp.asarray(images, jnp.float32) / 255


def _given(generated: np.ndarray, reference: Reference, how: Bootstrap) -> Interval:
    """The mean of figures that were made image by image."""
    return _mean(generated, how)


METRICS: Mapping[str, Metric] = {
    "fid": Metric(_frechet, network="inception"),
    "sfid": Metric(_frechet, "spatial", network="inception"),
    "is": Metric(_inception_score, "logits", network="inception", reference=False, better="higher"),
    "fd": Metric(_frechet),
    "kid": Metric(_subsets(kid_of)),
    "precision": Metric(_subsets(precision_of), better="higher"),
    "recall": Metric(_subsets(recall_of), better="higher"),
    "density": Metric(_subsets(density_of), better="higher"),
    "coverage": Metric(_subsets(coverage_of), better="higher"),
    "cmmd": Metric(_subsets(cmmd_of), network="clip-l14-336"),
    "clip-score": Metric(_given, network="clip-l14", reference=False, texts=True, better="higher"),
    "psnr": Metric(_pairs(image_quality.psnr), "images", better="higher"),
    "ssim": Metric(_pairs(image_quality.ssim), "images", better="higher"),
    "lpips": Metric(_given, "lpips", network="lpips-alexnet"),
    "lpips-diversity": Metric(_given, "lpips-diversity", network="lpips-alexnet", reference=False, better="higher"),
}
"""What `--metrics` names."""
