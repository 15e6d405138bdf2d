r"""Preconditioners: an operator for :math:`P^{-1}`, and what is known of P."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .._arrays import (
    Array,
    abs2,
    adjoint,
    cholesky,
    eps_of,
    eye_like,
    householder_qr,
    inner,
    is_traced,
    magnitude,
    matrix_diagonal,
    real,
    real_dtype,
    require_hermitian,
    to_number,
    whole,
)
from .._estimates import Estimate
from .._operators import LinearOperator, as_operator, dense, gram, itemsize
from ..probes import Source, distributions
from .control import beside_operand, beside_operator, matched, require_linear

GIGABYTE = 2**30
NAME = "preconditioner"
REMEDY = "pass an approximation that is Hermitian and positive definite"


@dataclass(frozen=True)
class Preconditioner:
    r"""A positive definite approximation P of an operator, known by its inverse.

    Parameters
    ----------
    inverse : LinearOperator or anything that `as_operator` reads
        :math:`P^{-1}`, as SciPy's solvers take it: Hermitian positive definite, linear. Made by
        ``gram(F)`` where a root is at hand, :math:`F = L^{-H}` for :math:`P = L L^H`:
        ``X -> L^-H X`` with the adjoint ``X -> L^-1 X``.
    logdet : float or 0-d array, optional
        :math:`\log \det P`, for `tracekit.logdet`.
    trace_inverse : float, 0-d array or Estimate, optional
        :math:`\mathrm{tr}\, P^{-1}`, for `tracekit.trace_inverse`; that of ``inverse.exact`` if not
        given.

    Raises
    ------
    TypeError, ValueError
        If `inverse` is nothing that `as_operator` reads.

    Notes
    -----
    One cycle of multigrid with a symmetric smoother is one, an inner solver with a tolerance is
    not: that is not linear. The products are taken to be cheap, and not counted. Ready ones are
    made by `incomplete_cholesky` and `low_rank_plus_diagonal`.

    References
    ----------
    Wenger, Pleiss, Hennig, Cunningham, Gardner (2022), arXiv:2107.00243.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> d = np.arange(1.0, 301)
    >>> root = tk.LinearOperator((300, 300), lambda X: X / np.sqrt(d)[:, None],
    ...     lambda X: X / np.sqrt(d)[:, None])
    >>> P = tk.Preconditioner(tk.gram(root), np.sum(np.log(d)), np.sum(1 / d))
    >>> A = np.diag(d) + 0.1 * np.ones((300, 300))
    >>> estimate = tk.logdet(A, 100, rng=0, preconditioner=P)
    >>> bool(abs(estimate.value - np.linalg.slogdet(A)[1]) < 1)
    True
    """

    inverse: Any
    logdet: Any = field(default=None)
    trace_inverse: Any = field(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inverse", as_operator(self.inverse))


Preconditioner.__module__ = "tracekit"


def read_preconditioner(P: Any, A: LinearOperator) -> Preconditioner:
    """What the caller gave, if it is one for A: a record, or P itself, whose entries are taken."""
    given = P if isinstance(P, Preconditioner) else of_entries(beside_operator(P, A, NAME))
    M = beside_operator(given.inverse, A, NAME)
    require_linear(M, NAME)
    require_definite(M)
    return replace(given, inverse=as_precise(M, A))


def as_precise(M: LinearOperator, A: LinearOperator) -> LinearOperator:
    """The inverse in A's dtype, with its root, if it has one."""
    if M.dtype == A.dtype:
        return M
    if M.factor is None or M.factor.shape[1] != M.shape[0]:
        return matched(M, A)
    root = matched(M.factor, A)
    return replace(gram(root), exact=M.exact)


def require_definite(M: LinearOperator) -> None:
    """Refuse an inverse that two random vectors show not to be Hermitian positive definite."""
    X = distributions.normal(Source(1, M), M.shape[0], 2)
    H = inner(X, M.matmat(X))
    if is_traced(H):
        return
    size = to_number(magnitude(H)).real
    least = to_number(M.xp.min(real(matrix_diagonal(H)))).real
    skew = to_number(M.xp.max(M.xp.abs(H - adjoint(H)))).real
    if not least > 0 or skew > eps_of(H) ** 0.5 * size:
        what = "positive definite" if not least > 0 else "Hermitian"
        raise ValueError(f"`{NAME}` is not {what}: x^H P^-1 y shows it; {REMEDY}")


def of_entries(P: LinearOperator) -> Preconditioner:
    """By all entries of P, for n products with it, or with its factor."""
    n, L = P.shape[0], P.factor
    if n * n * itemsize(P) > GIGABYTE:
        raise ValueError(
            f"`{NAME}` of dimension {n} is not factored here, as its entries do not fit in a "
            "gigabyte; pass a tracekit.Preconditioner, which knows how to solve"
        )
    if L is not None and L.shape[1] >= n:
        C: Array | None = adjoint(householder_qr(adjoint(whole(dense(L))))[1])
    else:
        D = whole(dense(P))
        require_hermitian(D, REMEDY)
        C = cholesky((D + adjoint(D)) / 2)
    if C is None or not (is_traced(C) or bool(P.xp.all(matrix_diagonal(C) != 0))):
        raise ValueError(f"`{NAME}` is not positive definite; {REMEDY}")
    sizes = P.xp.abs(matrix_diagonal(C))
    root = P.xp.linalg.solve(C, eye_like(C, n))

    def matmat(X: Array) -> Array:
        return adjoint(root) @ X

    def rmatmat(X: Array) -> Array:
        return root @ X

    inverse = gram(P._like(P.shape, matmat, rmatmat))
    return Preconditioner(inverse, 2 * P.xp.sum(P.xp.log(sizes)), P.xp.sum(abs2(root)))


def known_value(value: Any, A: LinearOperator, what: str) -> Array:
    """A real number that is known of P, beside A."""
    if value is None:
        raise ValueError(
            f"{what} of `{NAME}` is not known; pass tracekit.Preconditioner(inverse, ...) with it"
        )
    value = real(beside_operand(value, A))
    return A.xp.astype(value, real_dtype(A.dtype, A.xp), copy=False)


def trace_of_inverse(P: Preconditioner, A: LinearOperator) -> tuple[Array, Array | float]:
    """The trace of the inverse, and its standard error."""
    value, error = P.trace_inverse, 0.0
    known = P.inverse.exact or {}
    for name in ("trace", "entries"):
        if value is None and name in known:
            value = known[name]()
    if isinstance(value, Estimate):
        value, error = value.value, value.standard_error
    return known_value(value, A, "the trace of the inverse"), error
