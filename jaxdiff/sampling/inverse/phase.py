"""Phase retrieval: the moduli of the Fourier transform of a picture, whose phases are lost.

    y = |F P (x + 1)|,      P: zeros around the picture, F the orthonormal transform, channel by channel

That is twice the modulus of intensities from 0 to 1. A picture, its mirror image through the middle and every shift of
it within the zeros have the same moduli. Source: arXiv:2209.14687, App. D.2 (with oversampling of 2).
"""

import dataclasses

import jax.numpy as jnp

from jaxdiff.sampling.inverse.operator import Arrays, Image, Measured, NonLinear, Shape

TINY = 1e-12
"""Keeps the gradient of a modulus finite at 0."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """Moduli of Fourier coefficients."""

    oversample: float = 2.0
    """Sides of the padded picture over those of the picture, at least 1; below 2 the phases are not determined."""

    def __post_init__(self) -> None:
        if not self.oversample >= 1:
            raise ValueError(f"oversample = {self.oversample} is not allowed: at least 1 (--operator phase)")

    def on(self, shape: Shape, arrays: Arrays) -> NonLinear:
        h, w, c = shape
        high, wide = (round(self.oversample * n) for n in (h, w))

        def forward(x: Image) -> Measured:
            z = jnp.fft.fft2(x + 1, s=(high, wide), axes=(1, 2), norm="ortho")
            return jnp.sqrt(jnp.square(z.real) + jnp.square(z.imag) + TINY)

        return NonLinear(shape, (high, wide, c), forward, jnp.zeros(()))
