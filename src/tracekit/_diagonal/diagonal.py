"""Diagonals, and their sums over tensor axes: exact and by random probes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from .._arrays import Array, Probes, Rng, abs2, conj, is_complex, weights
from .._controls import read_control
from .._estimates import Estimate, checked_budget, exact, finalize, former_name, with_origin
from .._operators import (
    LinearOperator,
    all_columns_cost,
    coordinates,
    exact_diagonal_cost,
    in_blocks,
    known_cost,
    matvecs_per_column,
    read_axes,
    square,
    total,
    width,
)
from .._runs import Callback, Run, resumable
from ..probes import distributions
from .columns import begun, in_draws, is_exact, means, outer_products
from .controlled import controlled_diagonal


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def diagonal(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    control: Any = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    entrywise: bool = False,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The diagonal of an operator, exactly or by random probes.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int, optional
        Products m to spend; with a tolerance, a callback or a checkpoint, at the most. If not
        given, and none of these is, or where m suffices for it, the diagonal is exact. For
        ``A = L L^H``, made by `gram`: columns through L below 32; from there on ``m // 3`` through
        L.H and as many through L for the leading part, the others through L for the rest.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`; for ``A = L L^H`` of the length of L's rows.
    control : operator or (operator, value), optional
        An approximation P of A whose diagonal is known: by the operator itself (``exact``, or the
        entries of a matrix) or as the value, an array (n,) or an `Estimate`. The same probes go
        through it (Notes).
    rtol, atol : float, optional
        As for `hutchinson`, of the Frobenius norms of error and value: the root of their sum of
        squares over entries.
    entrywise : bool, optional
        The tolerance is on the largest error of an entry instead, against the largest entry.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.
    chunk_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given. The probes do not depend on it.

    Returns
    -------
    Estimate
        Unbiased, with a value and a standard error of shape (n,), in A's library, dtype and device.
        The standard error is entry by entry, 0 where the diagonal is exact; nonnegative where
        ``A = L L^H``, as is the diagonal.

    Raises
    ------
    ValueError, TypeError
        If A is not square, the budget is no positive int, or A returns something unusable;
        NotFiniteError if that is NaN or infinity. What ends a run has its `estimate`, as for
        `hutchinson`.

    Notes
    -----
    Exactly: n products, or the P columns of L if P < n, or none where it is known in closed
    form. At random: :math:`\sum_k \bar\omega_k \circ A \omega_k / \sum_k |\omega_k|^2`
    entry by entry, whose variance is that of the off-diagonal entries of a row,
    :math:`\sum_{j \ne i} |a_{ij}|^2 / m` for phases and nonsymmetric or complex A. For
    ``A = L L^H``: the mean of :math:`|L p_k|^2`, of relative standard error at most
    :math:`\sqrt{2/m}` in every entry; and, with V an orthonormal basis of the range of
    :math:`L^H \Omega`, the row norms of L V plus the mean of :math:`|L (I - V V^H) p_k|^2`.
    Memory is one block of probes and one of products, and m / 3 columns of L.H with the latter;
    where its leading part grows, to a tolerance, also the m / 3 probes of the rest and their
    products, up to 512 MB: beyond, the leading part stays as it is.
    `xdiag`, and `xnysdiag` where A is positive semidefinite, make better use of the same products
    where the spectrum decays.

    With a `control` the products are those of :math:`A - c P`, one coefficient c for all entries,
    fitted for each of eight folds of the probes to all others: unbiased whatever P is, and 0 where
    that does not promise to save a tenth of the variance. Of ``A = L L^H`` the products with A
    itself are taken then, two for each probe. Products with P are taken to be cheap: they are not
    counted. Memory for 48 more numbers a row.

    References
    ----------
    Bekas, Kokiopoulou, Saad (2007), Appl. Numer. Math. 57, doi:10.1016/j.apnum.2007.01.003.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag([1.0, 2.0, 3.0]) + 0.1
    >>> bool(np.allclose(tk.diagonal(A).value, [1.1, 2.1, 3.1]))
    True
    >>> estimate = tk.diagonal(A, 2, rng=0)
    >>> bool(np.all(np.abs(estimate.value - [1.1, 2.1, 3.1]) < 0.3))
    True
    """
    A = square(A, "diagonal")
    m = None if num_matvecs is None else checked_budget(num_matvecs)
    A = in_blocks(A, width(A, chunk_size))
    if is_exact(m, exact_diagonal_cost(A), rng, rtol, atol, callback, checkpoint):
        return known_diagonal(A, "diagonal")
    run = begun(A, m, rng, rtol, atol, callback, checkpoint, entrywise=entrywise)
    known = None if control is None else read_control(control, A, "diagonal")
    if known is not None and run.budget >= matvecs_per_column(A):
        run.refuse_looks("a control of a diagonal")
        found = controlled_diagonal(run, A, probes, known)
        return finalize(found, A, "diagonal")
    columns = int(min(run.budget, exact_diagonal_cost(A))) // matvecs_per_column(A)
    if (plan := distributions.plan(probes, run.source, A.shape[0], columns)) is not None:
        run.refuse_looks("a diagonal by probes in whole draws")
        return finalize(in_draws(A, int(run.budget), run.source, plan), A, "diagonal")
    return probed_diagonal(run, probes)


def probed_diagonal(run: Run, probes: Probes, method: str = "diagonal") -> Estimate:
    """The diagonal by products of probes, for a call that is checked."""
    A, cost = run.A, exact_diagonal_cost(run.A)
    if A.factor is not None:
        extend, read = outer_products(run, A, abs2, probes, method, cost)
    else:

        def sample(Omega: Array) -> tuple[Array, Array]:
            return A.matmat(Omega), Omega

        tie = 0.5 if distributions.few_valued(probes, complex_=is_complex(A)) else None
        extend, read = means(run, probes, sample, method, cost, tie=tie)
    found: Estimate = run.spend(
        extend,
        lambda state: finalize(read(state), A, "diagonal"),
        cost=cost,
        exact=partial(known_diagonal, A, method),
    )
    return found


def known_diagonal(A: LinearOperator, method: str) -> Estimate:
    """The exact diagonal as an estimate."""
    return finalize(exact(*exact_diagonal(A), method), A, "diagonal")


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def block_traces(
    A: Any,
    dims: Any,
    axis: Any,
    num_probes: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    rtol: float = 0.0,
    atol: float = 0.0,
    entrywise: bool = False,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The traces over some axes of every diagonal block of the others.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    dims : tuple of int or None
        As for `partial_trace`.
    axis : int or tuple of int
        What to trace over. The other axes are kept, of K entries together, as batch axes are whose
        samples' own traces are wanted.
    num_probes : int, optional
        Exact if not given, as for `diagonal`, or where that is no more expensive. Otherwise the
        products to spend, one a probe; for ``A = L L^H``, made by `gram`, the total of columns as
        for `diagonal`.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`, of length n; for ``A = L L^H`` of the length of L's rows.
    rtol, atol : float, optional
        As for `diagonal`.
    entrywise : bool, optional
        As for `diagonal`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`.
    chunk_size : int, optional
        Columns in a block; chosen to fit 128 MB if not given. The probes do not depend on it.

    Returns
    -------
    Estimate
        Unbiased, with a value and a standard error of shape (K,), in A's library, dtype and device:
        the diagonal of the partial trace.

    Raises
    ------
    ValueError, TypeError
        As for `partial_trace`.

    Notes
    -----
    :math:`\sum_t A_{(k,t),(k,t)}` for every k. Exactly: n products, or the P columns of L if
    P < n, or none where the diagonal is known in closed form. At random: the sums over t of
    :math:`\bar\omega \circ A \omega`, or of :math:`|L p|^2`, deflated from 32 columns on as
    `diagonal` is. One product gives a sample of all K of them, with noise from all other blocks.

    References
    ----------
    Bekas, Kokiopoulou, Saad (2007), Appl. Numer. Math. 57, doi:10.1016/j.apnum.2007.01.003.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(6.0))
    >>> tk.block_traces(A, (2, 3), 1).value.tolist()
    [3.0, 12.0]
    """
    A = square(A, "diagonal")
    axes = read_axes(A, dims, axis)
    m = None if num_probes is None else checked_budget(num_probes, "num_probes")
    A, cost = in_blocks(A, width(A, chunk_size)), exact_diagonal_cost(A)

    def whole() -> Estimate:
        entries, spent = exact_diagonal(A)
        value = axes.summed(entries[:, None])[:, 0]
        return finalize(exact(value, spent, "block_traces"), A, "diagonal")

    if is_exact(m, cost, rng, rtol, atol, callback, checkpoint):
        return whole()
    run = begun(A, m, rng, rtol, atol, callback, checkpoint, entrywise=entrywise)
    few = distributions.few_valued(probes, complex_=is_complex(A))

    def norms(X: Array) -> Array:
        return axes.summed(abs2(X))

    def sample(Omega: Array) -> tuple[Array]:
        parts = conj(Omega) * A.matmat(Omega)
        sums = axes.summed(parts)
        if few:
            sums = A.xp.stack([sums, axes.summed(parts * weights(parts)[:, None])])
        return (sums,)

    if A.factor is not None:
        extend, read = outer_products(run, A, norms, probes, "block_traces", cost)
    else:
        tie = 0.75 if few else None
        extend, read = means(run, probes, sample, "block_traces", cost, tie=tie, weighted=few)
    found: Estimate = run.spend(
        extend, lambda state: finalize(read(state), A, "diagonal"), cost=cost, exact=whole
    )
    return found


def exact_diagonal(A: LinearOperator) -> tuple[Array, int]:
    """The diagonal, and what it cost."""
    if A.exact and "diagonal" in A.exact:
        return A.exact["diagonal"](), known_cost(A, "diagonal")
    cost = all_columns_cost(A)
    if A.factor is not None and cost < A.shape[0]:
        parts = (abs2(A.factor.matmat(E)) for E in coordinates(A, cost))
        return total(A.xp.sum(part, axis=-1) for part in parts), cost
    return A.xp.concat([A.quad(E) for E in coordinates(A, cost)]), cost  # type: ignore[misc]
