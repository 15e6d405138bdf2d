"""Partial traces over tensor axes: exact, by random probes, deflated, and as operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Probes,
    Rng,
    Rows,
    adjoint,
    eps_of,
    eye_like,
    inner,
    is_complex,
    skew,
    weights,
)
from .._estimates import (
    Estimate,
    Running,
    add,
    checked_budget,
    exact,
    finalize,
    fitted,
    former_name,
    with_origin,
)
from .._operators import (
    Axes,
    LinearOperator,
    all_columns_cost,
    coordinates,
    in_blocks,
    read_axes,
    split,
    square,
    total,
    width,
)
from .._runs import Callback, Run, resumable
from .._sketches import AdjointSketch, adjoint_sketch
from ..probes import Source, distributions
from .columns import Steps, begun, drawn, is_exact, outer_products

ENTRIES = 2**23  # of all samples of one block: 64 MB of doubles


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def partial_trace(
    A: Any,
    dims: Any,
    axis: Any,
    num_probes: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    rank: int | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    entrywise: bool = False,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The partial trace of an operator on tensors: a dense matrix on the axes that are kept.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    dims : tuple of int or None
        Tensor shape of the domain, in C order: the sizes multiply to n. None takes ``A.dims``.
    axis : int or tuple of int
        What to trace over, of T entries together; negative ones count from the end. The other axes
        are kept, in C order, of K entries together. With no axis the result is A itself, with all
        axes its trace.
    num_probes : int, optional
        Exact if not given, as for `diagonal`, or where that is no more expensive. Otherwise the
        probes on the traced axes, K products each. For ``A = L L^H``, made by `gram`: the total of
        columns through L and L.H.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`, of length T; for ``A = L L^H`` of the length of L's rows.
    rank : int, optional
        Columns b of a low-rank part whose partial trace is taken exactly, so that the probes
        estimate the rest alone: 2 b products more. By default 0; for ``A = L L^H`` a third of
        `num_probes` from 32 columns on, where the 2 b columns are part of `num_probes`.
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
        Unbiased entry by entry, with a value and a standard error of shape (K, K), in A's library,
        dtype and device. Exactly Hermitian where A is Hermitian; for ``A = L L^H`` also positive
        semidefinite.

    Raises
    ------
    ValueError, TypeError
        If A is not square, dims or axis do not suit it, a number is no positive int, or A returns
        something unusable (NotFiniteError for NaN or infinity); if a rank is given and A has no
        product with its adjoint and is not Hermitian.

    Notes
    -----
    Entry by entry :math:`M_{kl} = \sum_t A_{(k,t),(l,t)}`: a sum, never a mean. Its trace is that
    of A.

    * Exactly: n products, blocks of coordinate vectors; for ``A = L L^H`` one-sided, n columns
      through L.H, or the P columns of L if P < n.
    * At random: the mean of :math:`(I \otimes z)^H A (I \otimes z)`; exact with T orthogonal z.
      Products: K a probe.
    * With a rank, Q an orthonormal basis of the range of :math:`A \Omega`: exactly that of
      :math:`Q Q^H A`, and A without it at random; of :math:`P A + A P - P A P`, P the projector
      :math:`Q Q^H`, if the sketch shows that A is Hermitian. Under `jax.jit` that is not known:
      the first form is used if A has a product with its adjoint.
    * For ``A = L L^H``: the mean of :math:`X_p X_p^H`, with X_p = L p as a K by T matrix: one
      column each. With a rank, V an orthonormal basis of the range of :math:`L^H \Omega`: the sum
      over the columns of L V, and the mean over :math:`L (I - V V^H) p`.

    Memory: a block of columns with its products, a few K by K arrays, and the low-rank part; for
    ``A = L L^H`` to a tolerance as for `diagonal`. Where
    K by K is too much, use `partial_trace_operator`.

    References
    ----------
    Chen, Chen, Li, Nzeuton, Pan, Wang (2024), SIAM J. Sci. Comput. 46, arXiv:2310.12364.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.kron(np.array([[1.0, 2.0], [3.0, 4.0]]), np.eye(5))
    >>> tk.partial_trace(A, (2, 5), 1).value.tolist()
    [[5.0, 10.0], [15.0, 20.0]]
    >>> estimate = tk.partial_trace(A, (2, 5), 1, 3, rng=0)
    >>> bool(np.allclose(estimate.value, [[5, 10], [15, 20]]))  # diagonal in what is traced
    True
    """
    A = square(A, "partial trace")
    axes = read_axes(A, dims, axis)
    if isinstance(A.layout, Rows) and not axes.has_pairs_apart(A.layout):
        A = replace(A, factor=None)  # pairs of rows would lie in two processes
    m = None if num_probes is None else checked_budget(num_probes, "num_probes")
    b, A = _checked_rank(A, rank, m), in_blocks(A, width(A, chunk_size))
    each, cost = 1 if A.factor is not None else axes.kept, all_columns_cost(A)
    aside = 2 * min(b or 0, A.shape[0] if A.factor is None else A.factor.shape[1])
    most = None if m is None else each * m + (aside if A.factor is None else 0)  # products

    def whole(before: int = 0) -> Estimate:
        value = _exact_factored(A, axes) if A.factor is not None else _exact(A, axes)
        return _finished(exact(value, cost + before, "partial_trace"), A)

    if aside >= cost or is_exact(most, cost, rng, rtol, atol, callback, checkpoint):
        return whole()
    run = begun(A, most, rng, rtol, atol, callback, checkpoint, entrywise=entrywise)
    run.budget -= aside
    if A.factor is not None:
        blocked = in_blocks(A, max(1, min(width(A), ENTRIES // axes.kept**2)))
        steps = outer_products(run, blocked, axes.outer, probes, "partial_trace", cost, b)
    else:
        steps = _lifted(run, axes, probes, b or 0)
    extend, read = steps
    found: Estimate = run.spend(
        extend,
        lambda state: _finished(read(state), A),
        each,
        cost=cost,
        exact=lambda: whole(aside if run.begun else 0),
    )
    return found


@former_name("block_size", "chunk_size")
def partial_trace_operator(
    A: Any,
    dims: Any,
    axis: Any,
    num_probes: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    chunk_size: int | None = None,
) -> LinearOperator:
    r"""The partial trace as an operator on the kept axes, where a dense array would be too large.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    dims : tuple of int or None
        As for `partial_trace`.
    axis : int or tuple of int
        As for `partial_trace`.
    num_probes : int, optional
        Probes m on the traced axes, drawn once; all T coordinate vectors if not given or from T on.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`, of length T.
    chunk_size : int, optional
        Columns in a block of products with A; chosen to fit 128 MB if not given.

    Returns
    -------
    LinearOperator
        Of dimension K, with ``dims`` the kept sizes: the mean of
        :math:`(I \otimes z)^H A (I \otimes z)` over the probes; its expectation is the partial
        trace. In A's library, dtype and device; with the adjoint where A has one.

    Raises
    ------
    ValueError, TypeError
        As for `partial_trace`.

    Notes
    -----
    A product costs m products with A (T if exact), a quadratic form m of A's. Memory: the probes,
    and a block of columns.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.kron(np.diag([1.0, 2.0]), np.ones((5, 5)))
    >>> M = tk.partial_trace_operator(A, (2, 5), 1)
    >>> (M @ np.ones(2)).tolist()
    [5.0, 10.0]
    """
    A = square(A, "partial trace")
    axes = read_axes(A, dims, axis)
    m = None if num_probes is None else checked_budget(num_probes, "num_probes")
    K, T, size = axes.kept, axes.traced, width(A, chunk_size)
    Omega = None
    if m is not None and m < T:
        Omega = distributions.draw(probes, Source(rng, A), T, m) * m**-0.5

    def pairs(X: Array) -> Iterator[tuple[Array, Array]]:
        """Some columns of X with some probes, few enough to be lifted together."""
        for part in split(X, size):
            step = max(1, size // part.shape[1])
            many = coordinates(A, T, step) if Omega is None else split(Omega, step)
            yield part, many

    def over_probes(form: Callable[[Array, Array], Array], X: Array) -> Array:
        parts = [total(A.xp.sum(form(E, Z), axis=-1) for Z in many) for E, many in pairs(X)]
        return A.xp.concat(parts, axis=-1)

    def product(of: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return partial(over_probes, lambda E, Z: axes.drop(of(axes.lift(E, Z, A.layout)), Z))

    def form(E: Array, Z: Array) -> Array:
        return A.xp.reshape(A.quad(axes.lift(E, Z, A.layout)), (E.shape[1], Z.shape[1]))

    rmatmat = None if A.rmatmat is None else product(A.rmatmat)
    quad = partial(over_probes, form)
    kept: LinearOperator = A._like((K, K), product(A.matmat), rmatmat, quad, dims=axes.kept_dims)
    return kept


def _checked_rank(A: LinearOperator, rank: Any, m: int | None) -> int | None:
    if rank is None:
        return None if A.factor is not None else 0
    b = 0 if isinstance(rank, int) and rank == 0 else checked_budget(rank, "rank")
    if A.factor is not None and m is not None and 2 * b >= m:
        raise ValueError(
            f"rank={rank} takes {2 * b} of num_probes={m} columns and leaves none for the rest; "
            "pass a rank below half of num_probes"
        )
    return b


def _forms(
    A: LinearOperator,
    product: Callable[[Array], Array],
    axes: Axes,
    Z: Array,
    *,
    weighted: bool = False,
) -> Array:
    """``(I x z_j)^H A (I x z_j)`` for every probe: (kept, kept, m); two of them if weighted."""
    left = [Z, Z * weights(Z)[:, None]] if weighted else [Z]
    parts = []
    for E in coordinates(A, axes.kept, max(1, width(A) // Z.shape[1])):
        Y = product(axes.lift(E, Z, A.layout))
        parts.append(A.xp.stack([axes.drop(Y, side) for side in left]))
    forms = A.xp.concat(parts, axis=2)
    return forms if weighted else forms[0, ...]


def _exact(A: LinearOperator, axes: Axes) -> Array:
    probes = coordinates(A, axes.traced, max(1, width(A) // axes.kept))
    return total(A.xp.sum(_forms(A, A.matmat, axes, Z), axis=-1) for Z in probes)


def _exact_factored(A: LinearOperator, axes: Axes) -> Array:
    """From all columns of L, or of L^H if those are fewer."""
    L, K = A.factor, axes.kept
    assert L is not None
    if L.shape[1] < L.shape[0]:
        columns = (L.matmat(E) for E in coordinates(A, L.shape[1]))
        return total(axes.cross(F, F) for F in columns)

    def gram(Z: Array) -> Array:
        lifted = axes.lift(eye_like(Z, K), Z, A.layout)
        G = A.xp.reshape(L.H.matmat(lifted), (-1, K, Z.shape[1]))
        G = A.xp.reshape(A.xp.permute_dims(G, (0, 2, 1)), (-1, K))
        return inner(G, G)

    return total(gram(Z) for Z in coordinates(A, axes.traced, max(1, width(A) // K)))


class Lifted(NamedTuple):
    """What probes on the traced axes gave, and the sketch that they were deflated by."""

    running: Running
    sketch: AdjointSketch | None


def _lifted(run: Run, axes: Axes, probes: Probes, b: int) -> Steps:
    """Forms of probes on the traced axes, beside b columns that are taken out."""
    A, T, K = run.A, run.A.shape[0] // axes.kept, axes.kept
    few = not b and distributions.few_valued(probes, complex_=is_complex(A))
    parts = drawn(run, probes, T, run.budget / K, max(1, width(A) // K))

    def extend(before: Lifted | None, k: int) -> Lifted:
        running, sketch = before or (None, None)
        if b and before is None:
            sketch = adjoint_sketch(A, distributions.normal(run.source, A.shape[0], b))
        product = A.matmat if sketch is None else _deflated(A, axes, sketch)[1]
        for Z in parts(k):
            running = add(running, _forms(A, product, axes, Z, weighted=few))
        assert running is not None
        return Lifted(running, sketch)

    def read(state: Lifted) -> Estimate:
        m = state.running.count
        return fitted(
            state.running,
            K * m + 2 * b,
            "partial_trace",
            known=None if state.sketch is None else _deflated(A, axes, state.sketch)[0],
            correction=distributions.finite_population(probes, m, T),
            tie=0.75 if few else None,
            weighted=few,
        )

    return extend, read


def _deflated(
    A: LinearOperator, axes: Axes, sketch: AdjointSketch
) -> tuple[Array, Callable[[Array], Array]]:
    """The partial trace of a low-rank part of A, and the product with A without it."""
    Q, Z = sketch.Q, sketch.Z * sketch.scale
    if not sketch.hermitian:
        return axes.cross(Q, Z), lambda X: A.matmat(X) - Q @ inner(Z, X)
    half = axes.cross(Q, Z - Q @ (inner(Q, Z) / 2))

    def without(X: Array) -> Array:
        return X - Q @ inner(Q, X)

    return half + adjoint(half), lambda X: without(A.matmat(without(X)))


def _finished(estimate: Estimate, A: LinearOperator) -> Estimate:
    """The estimate; what is Hermitian up to rounding, is made so to the last bit."""
    xp, M, skewness = A.xp, estimate.value, estimate.skewness
    rounding = 8 * A.shape[0] ** 0.5 * eps_of(M)
    hermitian = (skew(M) <= rounding) | (A.factor is not None)

    def even(X: Array) -> Array:
        return xp.where(hermitian, (X + adjoint(X)) / 2, X)

    estimate = replace(
        estimate,
        value=even(M),
        standard_error=even(estimate.standard_error),
        skewness=None if skewness is None else even(skewness),
    )
    return finalize(estimate, A, "partial trace")
