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

from .._arrays import (
    Array,
    Product,
    abs2,
    adjoint,
    colnorm2,
    conj,
    constant,
    device_of,
    eps_of,
    eye_like,
    is_complex,
    is_differentiated,
    magnitude,
    namespace,
    positive,
    real,
    require_hermitian,
)
from .._estimates import require_finite
from .._operators import LinearOperator, gram

REMEDY = "pass gram(A) for functions of the squared singular values"
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

    @property
    def depth(self) -> int:
        """Steps taken: products of A with each column."""
        return len(self.diagonal)

    @property
    def block(self) -> int:
        """Columns in a block."""
        return int(self.rest.shape[-1])


def begin(A: LinearOperator, X: Array, block: int = 1) -> Krylov:
    """Krylov spaces of the columns of X, `block` of them in each, before the first product."""
    xp, rest = namespace(X), _groups(X, block)
    return Krylov(A, rest, xp.zeros_like(real(rest[:, 0, :1])))


def advance(K: Krylov, depth: int) -> Krylov:
    """The spaces after so many steps; themselves where they are as deep."""
    while K.depth < depth:
        K = _step(K)
    return K


def _step(K: Krylov) -> Krylov:
    """A product of A with every column (Golub-Kahan: one of each kind, the first one)."""
    A, L, W, P = K.operator, K.operator.factor, K.rest, K.right
    if L is not None and P is not None:
        W = _product(L, P) - _times(_newest(K), K.diagonal[-1])
    Q, B, alive = _next_block(W, K)
    if L is None:
        Y = _product(A, Q)
        D = adjoint(Q) @ Y
        if K.depth == 1:
            _require_hermitian(K, B, adjoint(_newest(K)) @ Y, D)
        D = (D + adjoint(D)) / 2
        K = replace(K, rest=Y - _times(Q, D))
    else:
        Y = _product(L.H, Q)
        P, D, _ = _orthonormal(Y if P is None else Y - _times(P, adjoint(B)), _floor(K.size))
        D = adjoint(D)
        K = replace(K, right=P)
    xp, panels = namespace(Q), K.panels
    if panels and panels[-1].shape[-1] < PANEL * K.block:
        panels, Q = panels[:-1], xp.concat([panels[-1], Q], axis=-1)
    return replace(
        K,
        panels=(*panels, Q),
        diagonal=(*K.diagonal, D),
        below=(*K.below, B),
        alive=(*K.alive, alive),
        size=_size(K, Y),
    )


def select(K: Krylov, groups: slice) -> Krylov:
    """The spaces of some of the groups."""
    return _each(lambda x: x[0][groups, ...], [K])


def shortened(K: Krylov, depth: int) -> Krylov:
    """The spaces as they were after so many steps, to be read from, not to be advanced."""
    if K.depth == depth:
        return K
    panels: tuple[Array, ...] = ()
    if K.panels:
        basis = namespace(K.rest).concat(list(K.panels), axis=-1)
        panels = (basis[..., : depth * K.block],)
    cut = {name: getattr(K, name)[:depth] for name in ("diagonal", "below", "alive")}
    return replace(K, panels=panels, **cut)


def without_basis(K: Krylov) -> Krylov:
    """What A is on the spaces, without their bases: small, to be read from, not to be advanced."""
    return replace(K, rest=K.rest[:, :1, :], panels=(), right=None)


def constant_space(K: Krylov) -> Krylov:
    """The spaces without derivatives, nor those of further steps."""
    return replace(_each(lambda x: constant(x[0]), [K]), operator=constant_operator(K.operator))


def constant_operator(A: LinearOperator) -> LinearOperator:
    """The operator without derivatives."""
    if A.factor is not None:
        return gram(constant_operator(A.factor))

    def without(product: Product) -> Product:
        return lambda X: constant(product(X))

    adjoint = None if A.rmatmat is None else without(A.rmatmat)
    made: LinearOperator = A._like(A.shape, without(A.matmat), adjoint)
    return made


def joined(spaces: list[Krylov]) -> Krylov:
    """Spaces of the same depth as one stack."""
    concat = namespace(spaces[0].rest).concat
    if len({tuple(Q.shape[-1] for Q in K.panels) for K in spaces}) > 1:
        spaces = [replace(K, panels=(concat(list(K.panels), axis=-1),)) for K in spaces]
    return _each(lambda x: namespace(*x).concat(list(x), axis=0), spaces)


def cost(A: LinearOperator, depth: int) -> int:
    """Products that `depth` steps cost for each column, in the unit of `num_matvecs`."""
    return depth if A.factor is None else 2 * depth - 1


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
    rho = _norms(coupling @ U[:, -b:, :])
    return nodes, adjoint(K.below[0]) @ U[:, :b, :], rho


def forms(nodes: Array, M: Array, values: Array) -> Array:
    """``x^H f(A) x`` of every probe, from the values of f (or of several) at the nodes."""
    xp = namespace(nodes)
    values = values[..., None, :]
    M = xp.reshape(M, (*[1] * (values.ndim - M.ndim), *M.shape))
    x = xp.sum(abs2(M) * values, axis=-1)
    return xp.reshape(x, (*x.shape[:-2], -1))


def shares(K: Krylov) -> tuple[Array, Array]:
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
    return _columns(total)


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
    return nodes, namespace(U).concat(list(K.panels), axis=-1) @ U


def compression(K: Krylov) -> Array:
    """T, which is ``Q^H A Q`` (k, b d, b d); a vanished column has a value within the spectrum."""
    C, upper = _entries(K, K.depth)
    return C @ adjoint(C) if upper is None else C + upper


def _require_hermitian(K: Krylov, B: Array, above: Array, D: Array) -> None:
    """Refuse an operator whose compression to the first two blocks is not Hermitian."""
    concat = namespace(D).concat
    rows = concat([K.diagonal[0], above], axis=-1), concat([B, D], axis=-1)
    require_hermitian(concat(list(rows), axis=-2), REMEDY)


def _sum_of(K: Krylov) -> Array:
    """A number that has derivatives where any of T does."""
    return sum(namespace(D).sum(D) for D in (*K.diagonal, *K.below))


def _still(K: Krylov, depth: int) -> tuple[Array, Array, Array]:
    """Eigenvalues and eigenvectors of T without derivatives, and T with them."""
    C, upper = _entries(K, depth)
    T = C @ adjoint(C) if upper is None else C + upper
    return *_eigen(constant_space(K), depth), T


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
    return xp.where(close, near, slope * D)


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


def _next_block(W: Array, K: Krylov) -> tuple[Array, Array, Array]:
    """``W = (earlier blocks) + Q B``, by Gram-Schmidt with normalisation, twice."""
    size = K.size if K.depth else namespace(W).max(_norms(W), axis=-1)[:, None]
    Q, B, _ = _orthonormal(_outside(W, K.panels), _floor(size))
    Q, again, alive = _orthonormal(_outside(Q, K.panels), 0.5)
    return Q, again @ B, alive


def _outside(W: Array, panels: tuple[Array, ...]) -> Array:
    for Q in panels:
        W = W - Q @ (adjoint(Q) @ W)
    return W


def _orthonormal(W: Array, floor: Array | float) -> tuple[Array, Array, Array]:
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
    Q, R = xp.linalg.qr(W)
    U, s, V = xp.linalg.svd(R)
    alive = xp.where(s * unit > floor, xp.ones_like(s), xp.zeros_like(s))
    keep = xp.astype(alive, W.dtype, copy=False)
    return (Q @ U) * keep[:, None, :], (s * unit)[..., None] * (V * keep[..., None]), keep


def _size(K: Krylov, Y: Array) -> Array:
    """The norm of A as far as it has been seen, `Y` included."""
    xp = namespace(Y)
    return xp.maximum(K.size, xp.max(_norms(Y), axis=-1)[:, None])


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
    )


def _floor(size: Array) -> Array:
    """Below which a column is rounding."""
    return 10 * eps_of(size) * size


def _norms(Y: Array) -> Array:
    unit = magnitude(Y)
    return namespace(Y).sqrt(colnorm2(Y / unit)) * unit


def _newest(K: Krylov) -> Array:
    return K.panels[-1][:, :, -K.block :]


def _product(A: LinearOperator, Q: Array) -> Array:
    """A product with the blocks of all groups at once."""
    Y = A.matmat(_columns(Q))
    require_finite(Y)
    return _groups(Y, Q.shape[2])


def _groups(X: Array, block: int) -> Array:
    """Columns (n, k b) as a stack (k, n, b), laid out so: what follows reads it many times."""
    n, total = X.shape
    xp, k = namespace(X), total // block
    stack = xp.permute_dims(xp.reshape(X, (n, k, block)), (1, 0, 2))
    return xp.reshape(xp.reshape(stack, (-1,)), (k, n, block))


def _times(Q: Array, D: Array) -> Array:
    """``Q @ D``, by single numbers where D holds no more."""
    return Q * D if D.shape[-2:] == (1, 1) else Q @ D


def _columns(Q: Array) -> Array:
    k, n, b = Q.shape
    xp = namespace(Q)
    return xp.reshape(xp.permute_dims(Q, (1, 0, 2)), (n, k * b))
