"""A picture as a condition: its channels beside those of the noisy one (SR3, InstructPix2Pix).

The leaf "image" [b, h, w, c] in [-1, 1] is as large as x; absent, it is 0 everywhere.
Source: arXiv:2104.07636, Sec. 2.2; arXiv:2211.09800, Sec. 3.2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.core.types import Cond


def with_image(x: Float[Array, "b h w c"], cond: Cond, channels: int) -> Float[Array, "b h w c2"]:
    """`x` and then the `channels` of the picture; `x` itself where there are to be none.

    Raises ValueError for a picture of another shape.
    """
    if not channels:
        return x
    shape = (*x.shape[:3], channels)
    image = cond.get("image", jnp.zeros(shape, x.dtype))
    if image.shape != shape:
        raise ValueError(f"a picture {image.shape} is not allowed beside x: {shape} (--network.image-channels)")
    return jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
