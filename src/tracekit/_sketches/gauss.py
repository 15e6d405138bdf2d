"""Gauss rules of Krylov spaces: their nodes, their forms, and f(A) on the probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._arrays import (
    Array,
    abs2,
    adjoint,
    conj,
    constant,
    device_of,
    eps_of,
    eye_like,
    is_complex,
    is_differentiated,
    namespace,
    once_differentiable,
    real,
)
from . import lanczos
from .lanczos import Krylov


def rule(K: Krylov, depth: int | None = None) -> tuple[Array, Array]:
    r"""Nodes (k, b d), and vectors M (k, b, b d) with :math:`X^H f(A) X = M f(nodes) M^H`."""
    nodes, U = _eigen(K, K.depth if depth is None else depth)
    return nodes, adjoint(K.below[0]) @ U[:, : K.block, :]


def residuals(K: Krylov, depth: int) -> tuple[Array, Array, Array]:
    """Nodes and vectors of a rule, and the residuals (k, b d) of its Ritz pairs.

    Takes a step more than the rule has.
    """
    b = K.block
    nodes, U = _eigen(K, depth)
    coupling = K.below[depth]
    if K.operator.factor is not None:
        coupling = coupling @ adjoint(K.diagonal[depth - 1])
    rho = lanczos.norms(coupling @ U[:, -b:, :])
    return nodes, adjoint(K.below[0]) @ U[:, :b, :], rho


def forms(nodes: Array, M: Array, values: Array) -> Array:
    """``x^H f(A) x`` of every probe, from the values of f (or of several) at the nodes."""
    xp = namespace(nodes)
    values = values[..., None, :]
    M = xp.reshape(M, (*[1] * (values.ndim - M.ndim), *M.shape))
    x = xp.sum(abs2(M) * values, axis=-1)
    return xp.reshape(x, (*x.shape[:-2], -1))


def shares(K: Any) -> tuple[Array, Array]:
    """Nodes (k, b d), and the parts of each group's squared length that they stand for."""
    nodes, M = rule(K)
    return nodes, namespace(M).sum(abs2(M), axis=-2)


def samples(K: Krylov, depth: int, f: Callable[[Array], Array]) -> Array:
    """``x^H f(A) x`` of every probe by a rule of so many steps, with first derivatives.

    Those of eigenvectors do not exist where a Krylov space ends and eigenvalues of T are equal;
    those of f(T) do.
    """
    if not is_differentiated(_sum_of(K)):
        nodes, M = rule(K, depth)
        return forms(nodes, M, f(nodes))
    nodes, U, T = _still(K, depth)
    M = adjoint(K.below[0]) @ U[:, : K.block, :]
    change = M @ _change(nodes, U, T, f)
    moved = namespace(M).sum(real(change * conj(M)), axis=-1)
    return forms(nodes, M, f(nodes)) + namespace(M).reshape(moved, (*moved.shape[:-2], -1))


def applied(K: Krylov, f: Callable[[Array], Array]) -> Array:
    """``f(A) X``, shape (n, k b), in the Krylov space."""
    C = coordinates(K, K.depth, f)
    total, start = None, 0
    for Q in K.panels:
        part = Q @ C[:, start : start + Q.shape[-1], :]
        total = part if total is None else total + part
        start += Q.shape[-1]
    return lanczos.columns(total)


def applied_twice(K: Krylov, X: Array, f: Callable[[Array], Array]) -> Array:
    """The same of a space without a basis, which comes once more from the X that it started from.

    Costs the products of all steps again.
    """
    C, b = coordinates(K, K.depth, f), K.block
    again = lanczos.begin(K.operator, X, b, reorthogonalise=False)
    total = None
    for step in range(K.depth):
        again = again.advance(step + 1)
        part = again.panels[-1] @ C[:, step * b : (step + 1) * b, :]
        total = part if total is None else total + part
    return lanczos.columns(total)


def coordinates(K: Krylov, depth: int, f: Callable[[Array], Array]) -> Array:
    """``f(A) X`` by a rule of so many steps, in the basis: shape (k, b d, b)."""
    if not is_differentiated(_sum_of(K)):
        nodes, U = _eigen(K, depth)
        return (U * f(nodes)[:, None, :]) @ (adjoint(U[:, : K.block, :]) @ K.below[0])
    nodes, U, T = _still(K, depth)
    start = adjoint(U[:, : K.block, :]) @ K.below[0]
    return (U * f(nodes)[:, None, :]) @ start + U @ (_change(nodes, U, T, f) @ start)


def ritz(K: Krylov) -> tuple[Array, Array]:
    """Ritz values (k, b d) and their vectors (k, n, b d)."""
    nodes, U = _eigen(K, K.depth)
    return nodes, namespace(K.panels[0]).concat(list(K.panels), axis=-1) @ U


def compression(K: Krylov) -> Array:
    """T, which is ``Q^H A Q`` (k, b d, b d); a vanished column has a value within the spectrum."""
    C, upper = _entries(K, K.depth)
    return C @ adjoint(C) if upper is None else C + upper


def _sum_of(K: Krylov) -> Array:
    """A number that has derivatives where any of T does."""
    return sum(namespace(D).sum(D) for D in (*K.diagonal, *K.below))


def _still(K: Krylov, depth: int) -> tuple[Array, Array, Array]:
    """Eigenvalues and eigenvectors of T without derivatives, and T with them."""
    C, upper = _entries(K, depth)
    T = C @ adjoint(C) if upper is None else C + upper
    return *_eigen(K.constant(), depth), T


def _change(nodes: Array, U: Array, T: Array, f: Callable[[Array], Array]) -> Array:
    """Zero, with the derivatives of ``U^H f(T) U``, those of T times divided differences of f.

    Where two nodes are close, f is taken at their middle moved by the change: exact for equal ones.
    """
    xp = namespace(nodes)
    D = adjoint(U) @ (T - constant(T)) @ U
    a, b = nodes[:, :, None], nodes[:, None, :]
    apart, middle = xp.abs(a - b), (a + b) / 2
    size = xp.max(xp.abs(nodes), axis=-1)[:, None, None]
    eps = eps_of(nodes)
    close = (apart <= eps ** (1 / 3) * xp.abs(middle)) | (apart <= 1e3 * eps * size)
    middle = xp.where(close, middle, a + 0 * b)
    flat = (nodes.shape[0], -1)

    def moved(by: Array) -> Array:
        y = f(xp.reshape(middle + xp.where(close, by, xp.zeros_like(by)), flat))
        return xp.reshape(y - constant(y), (*y.shape[:-1], *D.shape[1:]))

    y = constant(f(nodes))
    slope = (y[..., :, None] - y[..., None, :]) / xp.where(close, xp.ones_like(apart), a - b)
    near = moved(real(D))
    if is_complex(D):
        near = near + 1j * moved(xp.imag(D))
    return once_differentiable(xp.where(close, near, slope * D))


def _eigen(K: Krylov, depth: int) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of T."""
    C, upper = _entries(K, depth)
    xp = namespace(C)
    if upper is not None:
        nodes, U = xp.linalg.eigh(C + upper)
        return nodes, U
    U, s, _ = xp.linalg.svd(C)
    return s * s, U


def _entries(K: Krylov, depth: int) -> tuple[Array, Array | None]:
    """T as a part and what is above its diagonal; with a factor the root of T, and None.

    Columns that have vanished get a value within the spectrum; they have no part in anything.
    """
    xp, b = namespace(K.rest), K.block
    k, size = K.rest.shape[0], b * depth
    first = real(xp.linalg.trace(K.diagonal[0])) / b
    if K.operator.factor is not None:  # of either sign, or complex: any singular value will do
        first = xp.sqrt(xp.sum(abs2(K.diagonal[0]), axis=(-2, -1)) / b)
    ended = 1 - xp.stack(K.alive[:depth], axis=1)
    dead = ended[..., None] * eye_like(K.rest, b)[None, None, ...]
    D = xp.stack(K.diagonal[:depth], axis=1) + dead * first[:, None, None, None]
    below = xp.stack([xp.zeros_like(K.below[0]), *K.below[1:depth]], axis=1)

    def spread(blocks: Array, offset: int) -> Array:
        where = xp.eye(depth, k=offset, dtype=blocks.dtype, device=device_of(blocks))
        wide = blocks[:, :, :, None, :] * where[None, :, None, :, None]
        return xp.reshape(wide, (k, size, size))

    C = spread(D, 0) + spread(below, -1)
    return C, None if K.operator.factor is not None else adjoint(spread(below, -1))
