r"""Krylov bases of many probes at once: Lanczos and Golub-Kahan, by single vectors or by blocks.

The probes come in k groups of b columns; each group X has a Krylov space of its own, whose
orthonormal basis :math:`Q = [Q_1, Q_2, \dots]` starts from :math:`X = Q_1 R`. After d steps
:math:`Q^H A Q = T` is block tridiagonal, of dimension b d, and :math:`X^H f(A) X` is
:math:`R^H [f(T)]_{11} R`: a Gauss rule, exact for polynomials of degree below 2 d. Where
:math:`A = L L^H`, T is never formed: Golub-Kahan gives the bidiagonal C in :math:`T = C C^H`, whose
small singular values keep their digits. Bases are orthogonalised twice against all earlier
blocks; a column that vanishes is set to zero, and later steps skip it.

Arrays are stacks: bases (k, n, c), small matrices (k, b, b).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .._arrays import (
    Array,
    Product,
    adjoint,
    beside,
    coldot,
    colnorm2,
    constant,
    eps_of,
    householder_qr,
    in_order,
    inner,
    magnitude,
    namespace,
    positive,
    real_dtype,
    require_hermitian,
)
from .._estimates import require_finite
from .._operators import LinearOperator, gram

REMEDY = (
    "pass hermitian=False to trace_function for an entire f, gram(A) for functions of the squared "
    "singular values, or logdet(A, m, hermitian=False)"
)
PANEL = 4  # blocks of the basis that are kept in one array: appending copies no more than these


@dataclass(frozen=True)
class Krylov:
    """The bases of k groups of b probes, and what A is on them.

    Memory: d blocks, as many columns as were multiplied.
    """

    operator: LinearOperator
    rest: Array  # what the next block of the basis is made of
    size: Array  # (k, 1): norm of A, as far as it has been seen
    panels: tuple[Array, ...] = ()
    diagonal: tuple[Array, ...] = ()  # of T, or of C
    below: tuple[Array, ...] = ()  # the block below the diagonal of the one before; first: R
    alive: tuple[Array, ...] = ()  # (k, b): 0 where a column has vanished
    right: Array | None = None  # Golub-Kahan's newest block on the other side
    reorthogonalise: bool = True  # else the newest block alone is kept

    @property
    def depth(self) -> int:
        """Steps taken: products of A with each column."""
        return len(self.diagonal)

    @property
    def block(self) -> int:
        """Columns in a block."""
        return int(self.rest.shape[-1])

    @property
    def seen(self) -> Array:
        """What shows whether values are known, and differentiated."""
        return self.diagonal[0]

    @property
    def groups(self) -> int:
        """Spaces."""
        return int(self.rest.shape[0])

    def cost(self, depth: int) -> int:
        """Products that so many steps cost for each column."""
        return cost(self.operator, depth)

    def held(self, depth: int) -> int:
        """Columns that each column keeps in memory at a depth."""
        return depth if self.reorthogonalise else 4

    def advance(self, depth: int) -> Krylov:
        """The spaces after so many steps; themselves where they are as deep."""
        found = self
        while found.depth < depth:
            found = _step(found)
        return found

    def select(self, groups: slice) -> Krylov:
        """The spaces of some of the groups."""
        return _each(lambda x: x[0][groups, ...], [self])

    def shortened(self, depth: int) -> Krylov:
        """The spaces as they were after so many steps, to be read from, not to be advanced."""
        if self.depth == depth:
            return self
        panels: tuple[Array, ...] = ()
        if self.panels and self.reorthogonalise:
            basis = namespace(self.rest).concat(list(self.panels), axis=-1)
            panels = (basis[..., : depth * self.block],)
        cut = {name: getattr(self, name)[:depth] for name in ("diagonal", "below", "alive")}
        return replace(self, panels=panels, **cut)

    def without_basis(self) -> Krylov:
        """What A is on the spaces, without their bases: small, to be read from, not advanced."""
        return replace(self, rest=without_rows(self.rest), panels=(), right=None)

    def constant(self) -> Krylov:
        """The spaces without derivatives, nor those of further steps."""
        still = _each(lambda x: constant(x[0]), [self])
        return replace(still, operator=constant_operator(self.operator))

    @staticmethod
    def joined(spaces: list[Krylov]) -> Krylov:
        """Spaces of the same depth as one stack."""
        concat = namespace(spaces[0].rest).concat
        if len({tuple(Q.shape[-1] for Q in K.panels) for K in spaces}) > 1:
            spaces = [replace(K, panels=(concat(list(K.panels), axis=-1),)) for K in spaces]
        return _each(lambda x: concat(list(x), axis=0), spaces)


def begin(A: LinearOperator, X: Array, block: int = 1, *, reorthogonalise: bool = True) -> Krylov:
    """Krylov spaces of the columns of X, `block` of them in each, before the first product."""
    rest = stacked(X, block)
    return Krylov(A, rest, unseen(rest), reorthogonalise=reorthogonalise)


def without_rows(rest: Array) -> Array:
    """One row of zeros in the place of all."""
    return beside(rest, np.zeros((*rest.shape[:-2], 1, rest.shape[-1])), rest.dtype)


def unseen(rest: Array) -> Array:
    """The norm of A, for each group, as far as it has been seen before the first product."""
    return beside(rest, np.zeros((rest.shape[0], 1)), real_dtype(rest.dtype, namespace(rest)))


def _step(K: Krylov) -> Krylov:
    """A product of A with every column (Golub-Kahan: one of each kind, the first one)."""
    A, L, W, P = K.operator, K.operator.factor, K.rest, K.right
    if L is not None and P is not None:
        W = product(L, P) - _times(_newest(K), K.diagonal[-1])
    Q, B, alive = _next_block(W, K)
    if L is None:
        Y = product(A, Q)
        D = coldot(Q, Y)[..., None] if K.block == 1 else inner(Q, Y)
        if K.depth == 1:
            require_hermitian_start(K, B, inner(_newest(K), Y), D)
        D = (D + adjoint(D)) / 2
        rest = Y - _times(Q, D)
        if not K.reorthogonalise and K.depth:
            rest = rest - _times(_newest(K), adjoint(B))
        K = replace(K, rest=rest)
    else:
        Y = product(L.H, Q)
        P, D, _ = orthonormal(Y if P is None else Y - _times(P, adjoint(B)), rounding(K.size))
        D = adjoint(D)
        K = replace(K, right=P)
    xp, panels = namespace(Q), K.panels
    if not K.reorthogonalise:
        panels = ()
    elif panels and panels[-1].shape[-1] < PANEL * K.block:
        panels, Q = panels[:-1], xp.concat([panels[-1], Q], axis=-1)
    return replace(
        K,
        panels=(*panels, Q),
        diagonal=(*K.diagonal, D),
        below=(*K.below, B),
        alive=(*K.alive, alive),
        size=_size(K, Y),
    )


def constant_operator(A: LinearOperator) -> LinearOperator:
    """The operator without derivatives."""
    if A.factor is not None:
        return gram(constant_operator(A.factor))

    def without(product: Product) -> Product:
        return lambda X: constant(product(X))

    adjoint = None if A.rmatmat is None else without(A.rmatmat)
    made: LinearOperator = A._like(A.shape, without(A.matmat), adjoint)
    return made


def cost(A: LinearOperator, depth: int) -> int:
    """Products that `depth` steps cost for each column, in the unit of `num_matvecs`."""
    return depth if A.factor is None else 2 * depth - 1


def require_hermitian_start(K: Krylov, B: Array, above: Array, D: Array) -> None:
    """Refuse an operator whose compression to the first two blocks is not Hermitian."""
    concat = namespace(D).concat
    rows = concat([K.diagonal[0], above], axis=-1), concat([B, D], axis=-1)
    require_hermitian(concat(list(rows), axis=-2), REMEDY)


def _next_block(W: Array, K: Krylov) -> tuple[Array, Array, Array]:
    """``W = (earlier blocks) + Q B``, by Gram-Schmidt with normalisation, twice."""
    size = K.size if K.depth else namespace(W).max(norms(W), axis=-1)[:, None]
    if not K.reorthogonalise:
        return orthonormal(W, rounding(size))
    Q, B, _ = orthonormal(outside(W, K.panels), rounding(size))
    Q, again, alive = orthonormal(outside(Q, K.panels), 0.5)
    return Q, again @ B, alive


def outside(W: Array, panels: tuple[Array, ...]) -> Array:
    for Q in panels:
        W = W - Q @ inner(Q, W)
    return W


def orthonormal(W: Array, floor: Array | float) -> tuple[Array, Array, Array]:
    """``W = Q B``; columns of Q that would come from less than `floor` are zero."""
    xp, unit = namespace(W), magnitude(W)
    W = W / unit
    if W.shape[-1] == 1:
        square = colnorm2(W)
        s = xp.sqrt(positive(square))  # at zero a root has no derivative
        s = xp.where(square > 0, s, xp.zeros_like(s))
        alive = xp.where(s * unit > floor, xp.ones_like(s), xp.zeros_like(s))
        Q = W * (alive / xp.where(alive > 0, s, xp.ones_like(s)))[:, None, :]
        B = (s * alive * unit)[..., None]
        return Q, xp.astype(B, W.dtype, copy=False), xp.astype(alive, W.dtype, copy=False)
    Q, R = householder_qr(W)
    U, s, V = xp.linalg.svd(R)
    alive = xp.where(s * unit > floor, xp.ones_like(s), xp.zeros_like(s))
    keep = xp.astype(alive, W.dtype, copy=False)
    return (Q @ U) * keep[:, None, :], (s * unit)[..., None] * (V * keep[..., None]), keep


def _size(K: Krylov, Y: Array) -> Array:
    """The norm of A as far as it has been seen, `Y` included."""
    xp = namespace(Y)
    return xp.maximum(K.size, xp.max(norms(Y), axis=-1)[:, None])


def rounding(size: Array) -> Array:
    """Below which a column is rounding."""
    return 10 * eps_of(size) * size


def norms(Y: Array) -> Array:
    unit = magnitude(Y)
    return namespace(Y).sqrt(colnorm2(Y / unit)) * unit


def _newest(K: Krylov) -> Array:
    return K.panels[-1][:, :, -K.block :]


def product(A: LinearOperator, Q: Array) -> Array:
    """A product with the blocks of all groups at once."""
    Y = A.matmat(columns(Q))
    require_finite(Y)
    return stacked(Y, Q.shape[2])


def stacked(X: Array, block: int) -> Array:
    """Columns (n, k b) as a stack (k, n, b), laid out so: what follows reads it many times."""
    n, total = X.shape
    xp, k = namespace(X), total // block
    stack = xp.permute_dims(xp.reshape(X, (n, k, block)), (1, 0, 2))
    return in_order(stack)


def _times(Q: Array, D: Array) -> Array:
    """``Q @ D``, by single numbers where D holds no more."""
    return Q * D if D.shape[-2:] == (1, 1) else Q @ D


def columns(Q: Array) -> Array:
    k, n, b = Q.shape
    xp = namespace(Q)
    return xp.reshape(xp.permute_dims(Q, (1, 0, 2)), (n, k * b))


def _each(f: Callable[[tuple[Array, ...]], Array], spaces: list[Krylov]) -> Krylov:
    """Spaces whose arrays are made of those of several."""

    def stacks(name: str) -> tuple[Array, ...]:
        return tuple(f(x) for x in zip(*(getattr(K, name) for K in spaces), strict=True))

    def stack(name: str) -> Array:
        return f(tuple(getattr(K, name) for K in spaces))

    return Krylov(
        spaces[0].operator,
        stack("rest"),
        stack("size"),
        stacks("panels"),
        stacks("diagonal"),
        stacks("below"),
        stacks("alive"),
        None if spaces[0].right is None else stack("right"),
        spaces[0].reorthogonalise,
    )
