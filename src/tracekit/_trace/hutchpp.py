"""Hutch++ and its variant of one pass, NA-Hutch++."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._arrays import (
    Array,
    Probes,
    Rng,
    beside,
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
    exact_trace_cost,
    forms_of,
    has_plain_form,
    in_blocks,
    matvecs_per_column,
    quadratic_forms,
    square,
)
from .._runs import Callback, Run, resumable
from .._sketches import orthonormal_extension
from ..probes import distributions
from .hutchinson import girard_hutchinson, weighted_forms
from .sums import exact_trace_of


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def hutchpp(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    probes: Probes = distributions.rademacher,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """Hutch++ estimate of the trace: exact on a sketched range, Girard-Hutchinson on the rest.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, symmetric or not.
    num_matvecs : int, optional
        Products m to spend: ``m // 3`` to sketch the range, as many for the trace on it, the
        others for the rest. For ``A = L L^H``, made by `gram`: ``m // 4`` columns, of which the
        sketch costs two products each. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    probes : callable, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
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
    run = Run.of(
        square(A), num_matvecs, rng, rtol, atol, callback, checkpoint, chunk_size=chunk_size
    )
    A, cost = in_blocks(run.A, columns_at_once(run.A)), exact_trace_cost(run.A)
    if run.is_short(1, cost, 3 if A.factor is None else 4):
        return with_method(girard_hutchinson(run, probes), "hutchpp")

    def extend(before: Rounds | None, m: int) -> Rounds:
        return further_round(A, before, m, partial(run.draw, probes))

    ties = distributions.few_valued(probes, complex_=is_complex(A))

    def read(state: Rounds) -> Estimate:
        rounds = [_of_round(A, x, state.spent, ties) for x in state.rounds]
        return finalize(_pooled(rounds, [x.columns for x in state.rounds]), A)

    found: Estimate = run.spend(extend, read, cost=cost, exact=partial(exact_trace_of, A))
    return found


@former_name("block_size", "chunk_size")
@with_origin
@resumable()
def nahutchpp(
    A: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """NA-Hutch++ estimate of the trace: all products at once, none depends on another.

    A reference: where A is positive semidefinite `xnystrace` needs one pass too and is more
    accurate; otherwise use this only if the products cannot be made in two rounds.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n. If A is not Hermitian, a quarter of the products are with its
        adjoint, where it has one.
    num_matvecs : int, optional
        Products m to spend: ``m // 4`` and ``m // 2`` for the two sides of a low-rank
        approximation, the others for the rest. From n on the trace is exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
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
    run = Run.of(
        square(A), num_matvecs, rng, rtol, atol, callback, checkpoint, chunk_size=chunk_size
    )
    A, cost = in_blocks(run.A, columns_at_once(run.A)), exact_trace_cost(run.A)
    each, signs = matvecs_per_column(A), distributions.rademacher
    if run.is_short(each, cost, 8):
        return with_method(girard_hutchinson(run, signs), "nahutchpp")

    def extend(before: TwoSides | None, m: int) -> TwoSides:
        return two_sides(A, before, m, partial(run.draw, signs))

    def read(state: TwoSides) -> Estimate:
        low_rank, rest = state.parts(A)
        estimate = mean(low_rank + rest[0, :], state.spent, "nahutchpp")
        if distributions.few_valued(signs, complex_=is_complex(A)):
            estimate = beyond_chance(estimate, weighted_forms(rest))
        return finalize(estimate, A)

    found: Estimate = run.spend(extend, read, cost=cost, exact=partial(exact_trace_of, A))
    return found


class Round(NamedTuple):
    """Forms of probes beside a range of so many columns, the trace on that, and its surplus."""

    on_range: Array
    forms: Array
    columns: int
    surplus: int


class Rounds(NamedTuple):
    """A sketched range that grows, and what each round of probes found beside it."""

    Q: Array
    on_range: Array
    rounds: list[Round]
    spent: int


def further_round(
    A: LinearOperator, before: Rounds | None, m: int, draw: Callable[[int], Array]
) -> Rounds:
    """The range and the probes beside it, for m products more: as if all were spent at once."""
    each, known, tested = (2 if A.factor is None else 3), 0, 0
    if before is not None:
        m, known = m + before.spent, int(before.Q.shape[1])
        tested = sum(int(x.forms.shape[1]) for x in before.rounds)
    k = min(m // (each + 1), (m - tested) // each)
    s = m - each * k - tested
    S, T = (draw(count) for count in (k - known, s))
    Q, on_range, surplus = None, None, 0
    if before is not None:
        Q, on_range = before.Q, before.on_range
    if k > known:
        Y = A.matmat(S)
        new, R, _ = orthonormal_extension(Y / magnitude(Y), S, Q)
        more, surplus = A.xp.sum(A.quad(new)), _surplus(R)  # type: ignore[misc]
        on_range = more if on_range is None else on_range + more
        Q = new if Q is None else A.xp.concat([Q, new], axis=1)
    rounds = [] if before is None else list(before.rounds)
    if s > 0:
        T = T - Q @ inner(Q, T)
        rounds.append(Round(on_range, _forms_beside(A, Q, T), k, surplus))
    return Rounds(Q, on_range, rounds, m)


def _times(A: LinearOperator, X: Array) -> Array:
    """The product, of no column too."""
    return A.matmat(X) if X.shape[1] else X


def _of_round(A: LinearOperator, x: Round, spent: int, ties: bool) -> Estimate:
    """The estimate by the probes of one round."""
    estimate = mean(x.on_range + x.forms[0, :], spent, "hutchpp")
    if not ties:
        return estimate
    weighted = weighted_forms(x.forms)
    vanishing = x.forms[0, :] if A.factor is not None else weighted
    return beyond_chance(estimate, weighted, rest=vanishing, surplus=x.surplus)


def _pooled(rounds: list[Estimate], columns: list[int]) -> Estimate:
    """The mean over rounds, whose variances fall about as the columns of their ranges rise.

    Weights are known beforehand: those of estimated variances would bias the mean. A round too
    small to know its error has the largest of the others'.
    """
    if len(rounds) == 1:
        return rounds[0]
    xp, every = namespace(rounds[0].value), [e.samples for e in rounds]
    weights = [k * x.shape[0] for k, x in zip(columns, every, strict=True)]  # type: ignore[union-attr]
    errors = xp.stack([e.standard_error for e in rounds])
    known = xp.isfinite(errors)
    largest = xp.max(xp.where(known, errors, xp.zeros_like(errors)))
    errors = xp.where(known, errors, xp.where(xp.any(known), largest, errors))
    share = beside(errors, np.asarray(weights) / sum(weights), errors.dtype)
    values = xp.stack([e.value for e in rounds])
    return replace(
        rounds[-1],
        value=xp.sum(values * xp.astype(share, values.dtype)),
        standard_error=xp.sqrt(xp.sum((errors * share) ** 2)),
        samples=xp.concat(every),
        dof=sum(e.dof for e in rounds),
        skewness=None,
    )


class TwoSides(NamedTuple):
    """Probes of both sides with their products, and probes of the rest with their forms."""

    S: Array
    R: Array
    T: Array
    Z: Array
    W: Array
    forms: Array
    spent: int

    def parts(self, A: LinearOperator) -> tuple[Array, Array]:
        """The trace of the low-rank approximation, and the forms of the rest."""
        S, R, T, forms = self.S, self.R, self.T, self.forms
        scale = magnitude(self.Z)
        Z, W = self.Z / scale, self.W / scale
        corner, whole = inner(S, Z), A.xp.sqrt(norm2(S)) * A.xp.sqrt(norm2(Z))
        if A.rmatmat is not None:
            check_adjoint(inner(W, R), corner, whole)
        is_rounding = A.xp.abs(corner) <= 10 * eps_of(corner) * whole  # which must not be inverted
        core = A.xp.linalg.pinv(A.xp.where(is_rounding, A.xp.zeros_like(corner), corner))
        near = Z @ (core @ inner(W, T)) * scale
        rest = forms - forms_of(T, near)[: forms.shape[0], :]
        return matrix_trace(core @ inner(W, Z)) * scale, rest


def two_sides(
    A: LinearOperator, before: TwoSides | None, m: int, draw: Callable[[int], Array]
) -> TwoSides:
    """Both sides and the rest, for m products more: as if all were spent at once."""
    each, held = matvecs_per_column(A), (0, 0, 0)
    if before is not None:
        m, held = m + before.spent, tuple(int(x.shape[1]) for x in before[:3])  # type: ignore[assignment]
    b = min(m // each // 4, (m - held[2]) // (3 * each))
    sizes = b, 2 * b, m - each * 3 * b
    S, R, T = (draw(k - known) for k, known in zip(sizes, held, strict=True))
    Z, W = _times(A, R), _times(A.H if A.rmatmat is not None else A, S)
    require_finite(Z, "trace", columns=Z)
    if before is None:
        return TwoSides(S, R, T, Z, W, quadratic_forms(A)(T), m)
    forms = quadratic_forms(A)(T) if T.shape[1] else before.forms[:, :0]
    arrays = S, R, T, Z, W, forms
    both = zip(before[:6], arrays, strict=True)
    S, R, T, Z, W, forms = (A.xp.concat([x, y], axis=1) for x, y in both)
    return TwoSides(S, R, T, Z, W, forms, m)


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
