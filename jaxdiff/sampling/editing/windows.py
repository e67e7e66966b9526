"""MultiDiffusion: a network for small pictures believes about a large one, in windows that overlap.

    x0(x) = sum_i w_i x0(x in window i) / sum_i w_i,       eps likewise

so that x = alpha x0 + sigma eps still holds, and one denoiser of the large picture results. On a torus windows run over
the edges to the other side: the picture tiles the plane without a seam.

Source: arXiv:2302.08113, Eq. 5.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.core.codec import tile_starts
from jaxdiff.core.types import Denoise, Estimate, Level

Image = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class Windows:
    """A transform: denoises pictures of any size of at least `side`, one call of the network for each window."""

    side: int
    """Side of the windows: what the network takes."""
    overlap: float = 0.5
    """Least share of a window's side that the next one shares, in [0, 1); the paper's is 7/8."""
    torus: bool = False
    """Whether the left edge is the right one's neighbour, and the upper the lower's."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap = {self.overlap} is not allowed: from 0 to below 1 (--overlap)")

    def places(self, size: int) -> Int[np.ndarray, "k side"]:
        """The pixels along an axis of `size` that each window sees. Raises: ValueError for a size below `side`."""
        if size < self.side:
            raise ValueError(f"pictures of {size} pixels a side are too small for windows of {self.side}")
        if self.torus:
            count = math.ceil(size / (self.side * (1 - self.overlap)))
            starts = [i * size // count for i in range(count)]
        else:
            shared = min(math.ceil(self.side * self.overlap), self.side - 1)
            starts = tile_starts(size, self.side, shared)
        return (np.array(starts)[:, None] + np.arange(self.side)) % size

    def count(self, height: int, width: int) -> int:
        """Network calls in place of one."""
        return len(self.places(height)) * len(self.places(width))

    def __call__(self, denoise: Denoise) -> Denoise:
        def believed(x: Image, cur: Level, nxt: Level) -> Estimate:
            rows, columns = self.places(x.shape[1]), self.places(x.shape[2])
            over = jnp.zeros((*x.shape[1:3], 1))

            # Window after window: one program and the memory of one serve any picture.
            def add(sums: tuple, place: tuple[Int[Array, "side"], Int[Array, "side"]]) -> tuple[tuple, None]:
                (total, over), (down, across) = sums, place
                down = down[:, None]
                part = denoise(x[:, down, across], cur, nxt)
                total = jax.tree.map(lambda t, p: t.at[:, down, across].add(p), total, part)
                return (total, over.at[down, across].add(1)), None

            shapes = jax.eval_shape(denoise, x[:, : self.side, : self.side], cur, nxt)
            nothing = jax.tree.map(lambda _: jnp.zeros_like(x), shapes)
            pairs = np.repeat(rows, len(columns), axis=0), np.tile(columns, (len(rows), 1))
            (total, over), _ = jax.lax.scan(add, (nothing, over), jax.tree.map(jnp.asarray, pairs))
            return jax.tree.map(lambda t: t / over, total)

        return believed
