"""Hutch++ and its variant of one pass, NA-Hutch++."""

from __future__ import annotations

from typing import Any

from .._arrays import (
    Array,
    Probes,
    Rng,
    check_adjoint,
    eps_of,
    inner,
    is_complex,
    is_traced,
    magnitude,
    matrix_diagonal,
    matrix_trace,
    namespace,
    norm2,
    to_number,
)
from .._estimates import (
    Estimate,
    beyond_chance,
    finalize,
    former_name,
    mean,
    require_finite,
    with_method,
    with_origin,
)
from .._operators import (
    LinearOperator,
    columns_at_once,
    forms_of,
    has_plain_form,
    in_blocks,
    matvecs_per_column,
    quadratic_forms,
)
from .._sketches import orthonormal_extension
from ..probes import distributions
from .hutchinson import girard_hutchinson, weighted_forms
from .spending import Run, exact_trace_of


@former_name("block_size", "chunk_size")
@with_origin
def hutchpp(
    A: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    chunk_size: int | None = None,
) -> Estimate:
    """Hutch++ estimate of the trace: exact on a sketched range, Girard-Hutchinson on the rest.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int
        Products m to spend: ``m // 3`` to sketch the range, as many for the trace on it, the
        others for the rest. For ``A = L L^H``, made by `gram`: ``m // 4`` columns, of which the
        sketch costs two products each. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`.
    chunk_size : int, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        Unbiased, in A's library, dtype and device as for `hutchinson`; its standard error is that
        of the rest, given the sketch, and infinite where few signs find nothing beside it (one in
        50 times at most would that be chance with 6 of them and redundant columns together).

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`.

    Notes
    -----
    Costs O(n m^2) operations besides the products, and memory for 2 m / 3 columns. `xtrace` makes
    better use of the same products.

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), SOSA, arXiv:2010.09649, doi:10.1137/1.9781611976496.16.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.outer(np.arange(50.0), np.arange(50.0))
    >>> estimate = tk.hutchpp(A, 12, rng=0)
    >>> bool(abs(estimate.value - np.trace(A)) < 1e-9 * np.trace(A))  # of rank one: exact
    True
    """
    run = Run.of(A, num_matvecs, rng, chunk_size=chunk_size)
    A, m = in_blocks(run.A, columns_at_once(run.A)), run.budget
    if run.affords_exact:
        return exact_trace_of(A)
    k = m // (3 if A.factor is None else 4)
    s = m - (2 if A.factor is None else 3) * k
    if k == 0:
        return with_method(girard_hutchinson(run, probes), "hutchpp")
    S, T = (run.draw(probes, count) for count in (k, s))
    Y = A.matmat(S)
    Q, R, _ = orthonormal_extension(Y / magnitude(Y), S)
    T = T - Q @ inner(Q, T)
    rest = _forms_beside(A, Q, T)
    estimate = mean(A.xp.sum(A.quad(Q)) + rest[0, :], m, "hutchpp")
    if distributions.few_valued(probes, complex_=is_complex(A)):
        weighted = weighted_forms(rest)
        vanishing = rest[0, :] if A.factor is not None else weighted
        estimate = beyond_chance(estimate, weighted, rest=vanishing, surplus=_surplus(R))
    return finalize(estimate, A)


@former_name("block_size", "chunk_size")
@with_origin
def nahutchpp(
    A: Any, num_matvecs: int, *, rng: Rng = None, chunk_size: int | None = None
) -> Estimate:
    """NA-Hutch++ estimate of the trace: all products at once, none depends on another.

    A reference: where A is positive semidefinite `xnystrace` needs one pass too and is more
    accurate; otherwise use this only if the products cannot be made in two rounds.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n. If A is not Hermitian, a quarter of the products are with its
        adjoint, where it has one.
    num_matvecs : int
        Products m to spend: ``m // 4`` and ``m // 2`` for the two sides of a low-rank
        approximation, the others for the rest. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    chunk_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given.

    Returns
    -------
    Estimate
        Unbiased; its standard error is that of the rest, given the approximation.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`.

    Notes
    -----
    Costs O(n m^2) operations besides the products, and memory for 2 m columns.

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), SOSA, arXiv:2010.09649, Algorithm 2.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.outer(np.arange(50.0), np.arange(50.0))
    >>> estimate = tk.nahutchpp(A, 12, rng=0)
    >>> bool(abs(estimate.value - np.trace(A)) < 1e-9 * np.trace(A))
    True
    """
    run = Run.of(A, num_matvecs, rng, chunk_size=chunk_size)
    A, m = in_blocks(run.A, columns_at_once(run.A)), run.budget
    units = m // matvecs_per_column(A)
    if run.affords_exact:
        return exact_trace_of(A)
    if units < 8:
        return with_method(girard_hutchinson(run, distributions.rademacher), "nahutchpp")
    b = units // 4
    s = m - matvecs_per_column(A) * 3 * b
    S, R, T = (run.draw(distributions.rademacher, k) for k in (b, 2 * b, s))
    Z, W = A.matmat(R), (A.H if A.rmatmat is not None else A).matmat(S)
    require_finite(inner(S, Z), "trace", columns=Z)  # which must not be inverted
    scale = magnitude(Z)
    Z, W = Z / scale, W / scale
    corner, whole = inner(S, Z), A.xp.sqrt(norm2(S)) * A.xp.sqrt(norm2(Z))
    if A.rmatmat is not None:
        check_adjoint(inner(W, R), corner, whole)
    is_rounding = A.xp.abs(corner) <= 10 * eps_of(corner) * whole  # which must not be inverted
    core = A.xp.linalg.pinv(A.xp.where(is_rounding, A.xp.zeros_like(corner), corner))
    low_rank = matrix_trace(core @ inner(W, Z)) * scale
    near = Z @ (core @ inner(W, T)) * scale
    forms = quadratic_forms(A)(T)
    rest = forms - forms_of(T, near)[: forms.shape[0], :]
    estimate = mean(low_rank + rest[0, :], m, "nahutchpp")
    if distributions.few_valued(distributions.rademacher, complex_=is_complex(A)):
        estimate = beyond_chance(estimate, weighted_forms(rest))
    return finalize(estimate, A)


def _forms_beside(A: LinearOperator, Q: Array, T: Array) -> Array:
    """As `quadratic_forms`, of A beside the range of Q, in which no column of T has a part."""
    if A.factor is not None or not has_plain_form(A):
        return quadratic_forms(A)(T)
    Y = A.matmat(T)
    return forms_of(T, Y - Q @ inner(Q, Y))


def _surplus(R: Array) -> int:
    """How many columns of a sketch added nothing to its range; 0 where values are not known."""
    pivots = namespace(R).abs(matrix_diagonal(R))
    gone = pivots <= eps_of(R) ** 0.5 * magnitude(R)
    few = namespace(R).sum(namespace(R).astype(gone, pivots.dtype))
    return 0 if is_traced(few) else round(to_number(few).real)
