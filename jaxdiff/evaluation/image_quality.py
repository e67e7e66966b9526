"""Metrics of pairs: an image and its original, an image and its caption.

    PSNR = 10 log10(range^2 / mean (x - y)^2)        in decibel
    SSIM = mean of  (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2))

with means, variances and the covariance under a Gaussian window of 11 x 11 pixels, standard deviation 1.5, at each
place where the window lies inside the image; C1 = (0.01 range)^2, C2 = (0.03 range)^2; channels alike.

Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE TIP 13(4), 2004 (SSIM); arXiv:2104.08718
(CLIP score).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.evaluation.kernel import unit
from jaxdiff.evaluation.moments import check_dimensions

Image = Float[Array, "b h w c"]
WINDOW = 11


def psnr(x: Image, y: Image, data_range: float = 1.0) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio of each pair, in decibel; inf for equal images. `data_range` is largest - smallest."""
    error = jnp.mean(jnp.square(x - y), axis=(1, 2, 3))
    return 20 * jnp.log10(data_range) - 10 * jnp.log10(error)


def ssim(x: Image, y: Image, data_range: float = 1.0) -> Float[Array, "b"]:
    """Structural similarity of each pair, in [-1, 1], of intensities from 0 (black) to `data_range` (white).

    It compares means by their ratio, so images in [-1, 1] must be brought to [0, 1] first.

    Raises: ValueError if a side is below 11 pixels.
    """
    if min(x.shape[1:3]) < WINDOW:
        raise ValueError(f"images of {x.shape[2]}x{x.shape[1]} have no SSIM: at least {WINDOW}x{WINDOW} pixels")
    offsets = np.arange(WINDOW) - WINDOW // 2
    weight = np.exp(-0.5 * (offsets / 1.5) ** 2)
    weight /= weight.sum()

    def blurred(v: Image) -> Float[Array, "b h-10 w-10 c"]:
        # Sums of slices, and no convolution: that may be rounded to few bits on accelerators.
        for axis in (1, 2):
            size = v.shape[axis] - WINDOW + 1
            parts = [float(w) * jax.lax.slice_in_dim(v, i, i + size, axis=axis) for i, w in enumerate(weight)]
            v = functools.reduce(jnp.add, parts)
        return v

    # Variances do not see an offset, but their rounding does.
    offset = jnp.mean(x, axis=(1, 2), keepdims=True)
    x, y = x - offset, y - offset
    mx, my = blurred(x), blurred(y)
    vx, vy, cov = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    mx, my = mx + offset, my + offset
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return jnp.mean(value, axis=(1, 2, 3))


def clip_score(images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n e"]) -> float:
    """100 times the mean cosine of an image's and its caption's embedding, negative cosines counting as 0; in [0, 100].

    The paper's figure is 2.5 times the mean, so a fortieth of this. Raises: ValueError if an embedding is 0.
    """
    check_dimensions(images, texts)
    cosine = np.sum(unit(images) * unit(texts), axis=1)
    return 100 * float(np.mean(np.maximum(cosine, 0.0)))
