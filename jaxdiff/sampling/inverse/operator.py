"""Measurements of a picture, y = A(x) + noise n with n ~ N(0, I), as values.

A linear operator holds what methods ask of it:

    forward     A x
    adjoint     A^T y                        <A x, y> = <x, A^T y>
    pinv        A^+ y                        the pseudo-inverse, or a regularised solution in its place
    solve       (A A^T + lam I)^-1 y
    spectral    f(sqrt(A^T A)) x             every right singular vector's part of x times f(its singular value)

`spectral` is how methods that treat singular values one by one (DDRM, DDNM with noise) see the decomposition without
ever holding its vectors; directions that are not measured have the singular value 0. All take a leading axis b and
treat each example by itself; all numbers are real (a complex measurement has a last axis of length 2).

Inside, pictures lie in [-1, 1]. Measurements in files are of intensities from 0 (black) to 1 (white): for a linear
operator y = 2 y_file - A 1 (`Linear.offset` is A 1), and noise doubles.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Image = Float[Array, "b h w c"]
Measured = Float[Array, "b ..."]
Shape = tuple[int, int, int]
"""(height, width, channels) of one picture."""

Factor = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""The factor of a singular value s >= 0, elementwise."""

Arrays = Mapping[str, np.ndarray]
"""What an operator is given besides its numbers: "mask", "sensitivities"."""

ITERATIONS = 100
"""Most steps of conjugate gradients."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A linear operator on pictures of one shape."""

    shape: Shape
    """(h, w, c) of a picture."""
    measured: tuple[int, ...]
    """Shape of its measurement."""
    forward: Callable[[Image], Measured]
    adjoint: Callable[[Measured], Image]
    pinv: Callable[[Measured], Image]
    solve: Callable[[Measured, Float[Array, ""]], Measured]
    spectral: Callable[[Factor, Image], Image] | None = None
    """None where the singular values are not known."""
    seen: np.ndarray | None = None
    """1 where y is measured and 0 where it is always 0, to broadcast against one measurement; None: all of it is."""

    @property
    def offset(self) -> Float[Array, "..."]:
        """A 1: twice a file's measurement less this is the measurement of a picture in [-1, 1]."""
        return self.forward(jnp.ones((1, *self.shape), jnp.float32))[0]


@dataclasses.dataclass(frozen=True, eq=False)
class NonLinear:
    """Any other operator; `forward` is differentiable."""

    shape: Shape
    measured: tuple[int, ...]
    forward: Callable[[Image], Measured]
    offset: Float[Array, "..."]
    """Twice a file's measurement less this is y."""
    pinv: Callable[[Measured], Image] | None = None
    """A picture whose measurement is the same, or nearly; None where there is none at hand."""
    seen: np.ndarray | None = None


Operator = Linear | NonLinear


@runtime_checkable
class Spec(Protocol):
    """An operator's numbers, for pictures of any shape: what the command line names."""

    def on(self, shape: Shape, arrays: Arrays) -> Operator:
        """The operator on pictures of this shape. Raises: ValueError, one line that names --operator."""
        ...


def seen_of(operator: Operator) -> np.ndarray:
    """1 at the entries of a measurement that are measured, 0 at those that are always 0."""
    return np.broadcast_to(1.0 if operator.seen is None else operator.seen, operator.measured)


def inverse(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 / x, and 0 where x is 0."""
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)


def from_svd(
    shape: Shape,
    measured: tuple[int, ...],
    values: Float[np.ndarray, "..."],
    into_v: Callable[[Image], Array],
    from_v: Callable[[Array], Image],
    into_u: Callable[[Measured], Array],
    from_u: Callable[[Array], Measured],
    onto: bool = True,
    complete: bool = True,
    cut: float = 1e-4,
    seen: np.ndarray | None = None,
) -> Linear:
    """The operator A = U diag(values) V^T, given V^T x, V z, U^T y and U z; z has a leading axis b and the shape of
    `values` or one that it broadcasts to, and may be complex.

    `values` are 0 where there is nothing to measure, and into_u may hold anything there. `onto`: every y is U z of some
    z; `complete`: every x is V z of some z, and what is not has the singular value 0. Singular values up to `cut` times
    the largest count as 0 in `pinv` and `spectral`, whose factors may grow as their inverse.
    """
    s = jnp.asarray(values, jnp.float32)
    kept = jnp.where(s > cut * float(np.max(values)), s, 0.0)

    def solve(y: Measured, lam: Float[Array, ""]) -> Measured:
        found = from_u(into_u(y) * inverse(jnp.square(s) + lam))
        return found if onto else found + inverse(lam) * (y - from_u(into_u(y) * (s > 0)))

    def spectral(f: Factor, x: Image) -> Image:
        if complete:
            return from_v(f(kept) * into_v(x))
        none = f(jnp.zeros(()))
        return none * x + from_v((f(kept) - none) * into_v(x))

    return Linear(
        shape,
        measured,
        forward=lambda x: from_u(s * into_v(x)),
        adjoint=lambda y: from_v(s * into_u(y)),
        pinv=lambda y: from_v(inverse(kept) * into_u(y)),
        solve=solve,
        spectral=spectral,
        seen=seen,
    )


def from_frame(
    shape: Shape,
    measured: tuple[int, ...],
    forward: Callable[[Image], Measured],
    adjoint: Callable[[Measured], Image],
    square: float,
) -> Linear:
    """An operator with A A^T = square I: one singular value, and 0 for what is not measured."""
    s = jnp.sqrt(jnp.float32(square))

    def spectral(f: Factor, x: Image) -> Image:
        none = f(jnp.zeros(()))
        return none * x + (f(s) - none) / square * adjoint(forward(x))

    return Linear(
        shape,
        measured,
        forward,
        adjoint,
        pinv=lambda y: adjoint(y) / square,
        solve=lambda y, lam: y / (square + lam),
        spectral=spectral,
    )


def from_forward(
    shape: Shape,
    measured: tuple[int, ...],
    forward: Callable[[Image], Measured],
    pinv: Callable[[Measured], Image] | None = None,
    floor: float = 1e-4,
    seen: np.ndarray | None = None,
) -> Linear:
    """An operator of which only the measurement is known: its adjoint by transposition, `solve` by conjugate gradients.

    Without a `pinv` that is A^T (A A^T + floor I)^-1 y.
    """

    def adjoint(y: Measured) -> Image:
        (x,) = jax.linear_transpose(forward, jax.ShapeDtypeStruct((y.shape[0], *shape), jnp.float32))(y)
        return x

    def solve(y: Measured, lam: Float[Array, ""]) -> Measured:
        return conjugate_gradients(lambda v: forward(adjoint(v)) + lam * v, y)

    least = jnp.float32(floor)
    return Linear(shape, measured, forward, adjoint, pinv or (lambda y: adjoint(solve(y, least))), solve, None, seen)


def from_matrix(shape: Shape, measured: tuple[int, ...], matrix: Float[np.ndarray, "m n"], cut: float = 1e-4) -> Linear:
    """The same matrix on the pixels of every channel, n = h w; the measurement's last axis are the channels.

    Decomposes the matrix once: for a few thousand rows and columns at most.
    """
    h, w, c = shape
    m, n = matrix.shape
    u, values, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    u, v = (jnp.asarray(a, jnp.float32) for a in (u, vt.T))
    return from_svd(
        shape,
        measured,
        values[:, None],
        into_v=lambda x: _product(v.T, x.reshape(x.shape[0], n, c)),
        from_v=lambda z: _product(v, z).reshape(-1, h, w, c),
        into_u=lambda y: _product(u.T, y.reshape(y.shape[0], m, c)),
        from_u=lambda z: _product(u, z).reshape(-1, *measured),
        onto=m <= n,
        complete=n <= m,
        cut=cut,
    )


def _product(matrix: Float[Array, "i j"], x: Float[Array, "b j c"]) -> Float[Array, "b i c"]:
    return jnp.einsum("ij,bjc->bic", matrix, x, precision=jax.lax.Precision.HIGHEST)


def divided(operator: Linear, std: Float[Array, "..."]) -> Linear:
    """The operator whose measurement is divided by `std` > 0, entry by entry: noise of that deviation becomes white."""

    def pinv(y: Measured) -> Image:
        return operator.pinv(y * std)

    return from_forward(
        operator.shape, operator.measured, lambda x: operator.forward(x) / std, pinv, seen=operator.seen
    )


def conjugate_gradients(
    apply: Callable[[Measured], Measured], y: Measured, tolerance: float = 1e-6, most: int = ITERATIONS
) -> Measured:
    """z with apply(z) = y, for a symmetric and positive semidefinite `apply`, each example by itself.

    Stops at |apply(z) - y| <= tolerance |y| for all, or after `most` steps. Source: Hestenes and Stiefel, 1952.
    """

    def dot(a: Measured, b: Measured) -> Float[Array, "b ..."]:
        return jnp.sum(a * b, axis=tuple(range(1, y.ndim)), keepdims=True)

    goal = tolerance**2 * dot(y, y)

    def unfinished(carry: tuple) -> Array:
        number, _, _, _, square = carry
        return (number < most) & jnp.any(square > goal)

    def step(carry: tuple) -> tuple:
        number, z, rest, way, square = carry
        ahead = apply(way)
        length = jnp.where(square > goal, square * inverse(dot(way, ahead)), 0.0)
        z, rest = z + length * way, rest - length * ahead
        new = dot(rest, rest)
        return number + 1, z, rest, rest + new * inverse(square) * way, new

    start = (jnp.int32(0), jnp.zeros_like(y), y, y, dot(y, y))
    return jax.lax.while_loop(unfinished, step, start)[1]


def matrix_of(operator: Linear) -> Float[np.ndarray, "m n"]:
    """The operator as a matrix on flattened pictures and measurements, for small ones."""
    n = int(np.prod(operator.shape))
    basis = jnp.eye(n, dtype=jnp.float32).reshape(n, *operator.shape)
    return np.asarray(jax.jit(operator.forward)(basis), np.float64).reshape(n, -1).T


def through(operator: Operator, decode: Callable[[Image], Image], shape: Shape) -> NonLinear:
    """The operator on the pictures that latents of this shape decode to."""
    return NonLinear(
        shape, operator.measured, lambda z: operator.forward(decode(z)), operator.offset, seen=operator.seen
    )


def check_square(shape: Shape, name: str) -> int:
    """The side of square pictures. Raises: ValueError for others."""
    h, w, _ = shape
    if h != w:
        raise ValueError(f"{name} is not allowed for pictures of {w}x{h}: they must be square (--operator)")
    return h
