"""What a solver is: a pair of pure functions, like an optax optimiser; `sample` scans it over levels."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, PyTree

from jaxdiff.core.types import Denoise, Level

Image = Float[Array, "b h w c"]

State = PyTree[Array]
"""What a solver remembers between steps (fixed shapes): `None` if nothing."""


@runtime_checkable
class Solver(Protocol):
    """Moves x from one level to the next by calls of `denoise`."""

    def init(self, x: Image, levels: Level) -> State:
        """The state before the first step. `levels` are all that will be visited, Level[num_steps + 1]."""
        ...

    def step(
        self, keys: Key[Array, "b"], x: Image, state: State, cur: Level, nxt: Level, denoise: Denoise
    ) -> tuple[Image, State]:
        """x at `nxt`, given x at `cur` (scalar levels). `keys` are this step's own, one per image."""
        ...

    def nfe(self, num_steps: int) -> int:
        """Calls of `denoise` in `num_steps` steps, the last of which ends at sigma = 0."""
        ...


def decay(cur: Level, nxt: Level) -> Float[Array, "*b"]:
    """r' / r with r = sigma / alpha at `cur` and r' at `nxt`: exactly 0 from alpha = 0 and to sigma = 0."""
    return (nxt.sigma * cur.alpha) / (nxt.alpha * cur.sigma)
