"""Bicubic resizing of 8-bit pictures as Pillow does it, which DINOv2's and CLIP's users do before the network.

The kernel is that of `resize.BICUBIC`, but each of the two passes, first along the rows, ends in whole numbers
of 0 to 255 (halves up). The code of FD-DINOv2 (arXiv:2306.04675) and of CMMD (arXiv:2401.09603) has it so.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.networks.frozen import EXACT
from jaxdiff.networks.resize import Resize
from jaxdiff.networks.vit import cubic_weights


def pillow_bicubic(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """Whole numbers of 0 to 255, for such an input. (Newer releases of Pillow begin with the columns of pictures
    that are much taller than wide, which moves a quarter of their pixels by one or more.)"""
    by_col = jnp.asarray(cubic_weights(x.shape[2], size, antialias=True), x.dtype)
    x = _whole(jnp.einsum("jw,bhwc->bhjc", by_col, x, precision=EXACT))
    by_row = jnp.asarray(cubic_weights(x.shape[1], size, antialias=True), x.dtype)
    return _whole(jnp.einsum("ih,bhjc->bijc", by_row, x, precision=EXACT))


PILLOW_BICUBIC = Resize("pillow-bicubic", pillow_bicubic)


def _whole(x: Array) -> Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)
