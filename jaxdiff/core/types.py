"""The concepts of the library, and there are no others.

Every Gaussian diffusion is ``x = alpha * x0 + sigma * eps`` with ``eps ~ N(0, I)``. Time ``t`` exists only
at the edges (drawing a training time, laying a grid, feeding a network); between them travels a `Level`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, PyTree

Params = PyTree[Array]
"""The arrays that an optimiser changes."""

Cond = Mapping[str, Array]
"""Conditions of each example (leading axis ``b``). Absent: -1 in integer leaves, 0 in float leaves."""


class Level(NamedTuple):
    """A noise level, one per example (shape ``[b]``) or one for all (shape ``[]``); alpha, sigma >= 0."""

    alpha: Float[Array, "*b"]
    sigma: Float[Array, "*b"]


class Estimate(NamedTuple):
    """What a denoiser believes at one noisy ``x``: ``x = alpha * x0 + sigma * eps``.

    ``v`` in [-1, 1] is a learned variance's place between the two that are possible, None where there is none.
    """

    x0: Float[Array, "b h w c"]
    eps: Float[Array, "b h w c"]
    v: Float[Array, "b h w c"] | None = None


@runtime_checkable
class Path(Protocol):
    """A noise schedule. ``t = 0`` is clean, ``t = t_max`` is noise, and the SNR falls strictly in t."""

    @property
    def t_max(self) -> float: ...

    def __call__(self, t: Float[Array, "*b"]) -> Level: ...

    def invert(self, ratio: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """The time at which ``sigma / alpha = ratio`` (``inf`` where alpha = 0)."""
        ...


@runtime_checkable
class Prediction(Protocol):
    """What a network's output means, ``out = a * x0 + b * eps``, and how the network is fed."""

    def row(self, level: Level) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]: ...

    def c_in(self, level: Level) -> Float[Array, "*b"]:
        """The factor on the network's image input."""
        ...

    def c_noise(self, level: Level) -> Float[Array, "*b"]:
        """The network's time input."""
        ...


@runtime_checkable
class ApplyFn(Protocol):
    """The only contact with a network. ``key`` is given in training only (it switches dropout on)."""

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b h w c"],
        cur: Level,
        nxt: Level,
        cond: Cond,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w c_out"]: ...


Denoise = Callable[[Float[Array, "b h w c"], Level, Level], Estimate]
"""``(x, cur, nxt) -> Estimate``: the belief at ``x``, which is at ``cur``; ``nxt`` is where the step goes.

Solvers may ask at any level, on the network's path or off it: see `sampling.sample.on_path`."""

Transform = Callable[[Denoise], Denoise]
"""Guidance, thresholding, inpainting ...: they compose."""

TimeLaw = Callable[[Key[Array, ""], int, Path], Float[Array, "n"]]
"""``(key, n, path) -> t``: the law of the training times."""

Weight = Callable[[Level], Float[Array, "*b"]]
"""The factor on a squared error at a level."""

Grid = Callable[[Path, int], Level]
"""``(path, num_steps) -> Level[num_steps + 1]``: the levels that a sampler visits, the last one clean."""
