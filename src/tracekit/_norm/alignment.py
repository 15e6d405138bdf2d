"""Inner product and alignment of two operators, from common probes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Rng,
    abs2,
    coldot,
    is_array,
    is_complex,
    is_traced,
    magnitude,
    namespace,
    norm2,
    plain,
    real,
    to_number,
)
from .._arrays import inner as inner_products
from .._estimates import Estimate, exact, require_finite, standard_error, with_origin
from .._operators import LinearOperator, exact_norm_cost, square
from .._runs import Callback, Run, resumable
from .known import Way, known_matrix, known_way, knows, moments_way
from .pairs import Pairs, pairs_run, spend_on_pairs
from .spectral_summary import Sketching, exact_norm, norm_sketching


@with_origin
@resumable(2)
def inner(
    A: Any,
    B: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The inner product :math:`\langle A, B \rangle = \mathrm{tr}(A^H B)`.

    Parameters
    ----------
    A, B : LinearOperator or anything that `as_operator` reads
        Of the same shape, library and device.
    num_matvecs : int, optional
        Products m with both together; with a tolerance, at the most, and none is needed. Square
        operators: ``m // 4`` probes, of which each operator gets two products; rectangular ones,
        and budgets below 12: ``m // 2`` independent probes.
        If both were made by `gram`: ``m // 4`` probes, one column through each L and ``L^H``.
        Exact from as many products on as both have columns (of ``L L^H``: as both L or both
        ``L^H``), or from fewer where both know all their entries.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`; the sketch is kept and added to. Of operators that are nearly
        orthogonal `rtol` alone asks much: pass `atol` as well.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.

    Returns
    -------
    Estimate
        Unbiased; in the dtype of both. The standard error is 1.4 times the leave-one-out spread:
        calibrated by experiment.

    Raises
    ------
    ValueError, TypeError
        If shapes or libraries differ, or a product is unusable.

    Notes
    -----
    Exact on a range that both share, or (`gram`) on both Nystrom approximations; what is left is
    estimated by the same probes.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 201.0) ** -2)
    >>> estimate = tk.inner(A, 3 * A, 80, rng=0)
    >>> bool(abs(estimate.value - 3 * np.sum(A * A)) < 1e-3)
    True
    """
    run = pairs_run(A, B, num_matvecs, rng, rtol, atol, callback, checkpoint)
    found: Estimate = spend_on_pairs(run, _inner_of)
    return found


@with_origin
@resumable(2)
def alignment(
    A: Any,
    B: Any,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""The cosine :math:`\langle A, B \rangle / (\|A\|_F \|B\|_F)` of the angle between operators.

    Parameters
    ----------
    A, B : LinearOperator or anything that `as_operator` reads
        As for `inner`. For the centred alignment (CKA) pass ``centered(A), centered(B)``.
    num_matvecs : int, optional
        As for `inner`: the same products give all three numbers.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`; the sketch is kept and added to. Of a number between 0 and 1 `atol`
        says more than `rtol`, which asks much of a small one.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.

    Returns
    -------
    Estimate
        Between 0 and 1 for positive semidefinite operators, up to its error; 1 for an operator with
        itself. Its bias is of the order of the squared relative errors, which shared probes
        make small; the standard error is by the delta method.

    Raises
    ------
    ValueError, TypeError
        As for `inner`, and if an operator is zero.

    Notes
    -----
    Where only products with the adjoints of factors can be had, see `one_sided_alignment`.

    References
    ----------
    Cortes, Mohri, Rostamizadeh (2012), JMLR 13, for kernels; Hazelden (2025), arXiv:2511.10796.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 201.0) ** -2)
    >>> round(float(tk.alignment(A, 3 * A, 80, rng=0)), 6)
    1.0
    """
    run = pairs_run(A, B, num_matvecs, rng, rtol, atol, callback, checkpoint)
    found: Estimate = spend_on_pairs(run, _cosine_of)
    return found


@with_origin
@resumable()
def target_alignment(
    K: Any,
    y: Array,
    num_matvecs: int | None = None,
    *,
    rng: Rng = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | Path | None = None,
) -> Estimate:
    r"""Alignment of a kernel with its targets, :math:`y^H K y / (\|K\|_F \|y\|^2)`.

    Parameters
    ----------
    K : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    y : array of shape (n,) or (n, k)
        Targets, in the library of K; of several columns the kernel is ``y y^H``.
    num_matvecs : int, optional
        Products m, with a tolerance at the most, and none is needed: at least k + 1 (k + 2 if K was
        made by `gram`), k for the numerator, which is exact, the others for `frobenius_norm`. Where
        K knows all its entries, these suffice.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    rtol, atol : float, optional
        As for `hutchinson`; the sketch is kept and added to. Of a number between 0 and 1 `atol`
        says more than `rtol`, which asks much of a small one.
    callback : callable, optional
        As for `hutchinson`.
    checkpoint : path, optional
        As for `hutchinson`; it holds the sketch.

    Returns
    -------
    Estimate
        Of relative error as small as that of the norm.

    Raises
    ------
    ValueError, TypeError
        If sizes do not fit, the budget is too small, or K or y is zero.

    Notes
    -----
    For the centred alignment pass ``centered(K)``, and y less its mean.

    References
    ----------
    Cristianini, Shawe-Taylor, Elisseeff, Kandola (2001), NIPS 14.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> y = np.arange(1.0, 101.0)
    >>> round(float(tk.target_alignment(np.outer(y, y), y, 20, rng=0)), 6)
    1.0
    """
    K = square(K, "target alignment")
    y = _targets(K, y)
    run = Run.of(K, num_matvecs, rng, rtol, atol, callback, checkpoint)
    norm, k, least = moments_way(K, norm_only=True), y.shape[1], 1 if K.factor is None else 2
    whole = known_way(partial(known_matrix, K), (K, "matrix")) if knows(K, "matrix") else None
    short = run.budget < k + least
    at_once = not run.begun and (short or not run.looks)
    if whole is not None and at_once and whole.cost <= min(run.budget, exact_norm_cost(K) + k):
        return _target_of_matrix(whole, y)
    if short:
        raise ValueError(
            f"num_matvecs={num_matvecs} is too few for {k} targets and the norm; pass at least "
            f"{k + least}"
        )
    y = y / magnitude(y)
    run.budget -= k
    extend, read_norm, each, cost = _beside_targets(run, y, norm.cost)

    def read(state: Beside) -> Estimate:
        return _target_of_norm(state.product, norm.missed(read_norm(state.norm)), y)

    def exactly() -> Estimate:
        if whole is not None and not run.begun and whole.cost <= norm.cost + k:
            return _target_of_matrix(whole, y)
        product = run.state.product if run.begun else K.xp.sum(K.quad(y))
        return _target_of_norm(product, exact_norm(K, norm), y)

    found: Estimate = run.spend(extend, read, each, cost=cost, exact=exactly)
    return found


class Beside(NamedTuple):
    """``y^H K y``, and the sketch that the norm of K is read of."""

    product: Array
    norm: Any


def _beside_targets(run: Run, y: Array, cost: int) -> Sketching:
    """As `norm_sketching`, with the exact product beside the sketch."""
    own = replace(run, state=run.state.norm) if run.begun else run
    of_norm = norm_sketching(own, cost)
    run.budget, run.block = own.budget, own.block

    def extend(state: Beside | None, k: int) -> Beside:
        if state is None:
            product = run.A.xp.sum(run.A.quad(y))  # type: ignore[misc]
            return Beside(product, of_norm.extend(None, k))
        return Beside(state.product, of_norm.extend(state.norm, k))

    return of_norm._replace(extend=extend)


def _targets(K: LinearOperator, y: Any) -> Array:
    """The targets as columns in the dtype of the kernel, if they fit it."""
    n = K.shape[0]
    elsewhere = is_array(y) and plain(namespace(y)) is not plain(K.xp)
    if elsewhere or (is_array(y) and is_complex(y) and not is_complex(K)):
        raise TypeError(
            f"targets of {namespace(y).__name__} and dtype {y.dtype} do not fit a kernel of "
            f"{K.xp.__name__} and dtype {K.dtype}; convert them first"
        )
    if not is_array(y) or y.ndim not in (1, 2) or y.shape[0] != n:
        shape = tuple(getattr(y, "shape", ()))
        raise ValueError(
            f"targets of shape {shape} do not fit dimension {n}; pass ({n},) or ({n}, k)"
        )
    y = K.xp.astype(y[:, None] if y.ndim == 1 else y, K.dtype, copy=False)
    return y if K.layout is None else K.layout.place(y)


def _target_of_norm(product: Array, norm: Estimate, y: Array) -> Estimate:
    value = _target_cosine(product, norm.value, y)
    error = namespace(value).abs(value) * (norm.standard_error / norm.value)
    spent = norm.num_matvecs + y.shape[1]
    return replace(
        norm, value=value, standard_error=error, num_matvecs=spent, method="target_alignment",
        samples=None,
    )  # fmt: skip


def _target_cosine(product: Array, norm: Array, y: Array) -> Array:
    """``y^H K y`` over the norms of K and of ``y y^H``."""
    xp = namespace(y)
    size = norm * xp.sqrt(xp.sum(abs2(inner_products(y, y))))
    if not is_traced(size) and to_number(size).real == 0:
        raise ValueError("the kernel or the target is zero, so the alignment is 0 / 0")
    value = real(product) / size
    require_finite(value, "alignment")
    return value


def _target_of_matrix(way: Way, y: Array) -> Estimate:
    K = way.run()
    K, y = K / magnitude(K), y / magnitude(y)
    xp = namespace(K)
    value = _target_cosine(xp.sum(coldot(y, xp.matmul(K, y))), xp.sqrt(norm2(K)), y)
    return exact(value, way.cost, "target_alignment", reason=way.reason)


def _inner_of(got: Pairs) -> Estimate:
    xp, unit = namespace(got.cross), got.scales[0] * got.scales[1]
    value = xp.astype(xp.mean(got.cross) * unit, got.dtype, copy=False)
    require_finite(value, "inner product")
    if got.inflation == 0:
        return exact(value, got.spent, "inner", reason=got.reason)
    error = standard_error(got.cross) * got.inflation * unit
    samples, told = got.cross * unit, got.reason
    return Estimate(value, error, got.spent, "inner", samples, dof=_dof(got), reason=told)


def _cosine_of(got: Pairs) -> Estimate:
    xp = namespace(got.cross)
    x, a, b = xp.mean(got.cross), xp.mean(got.first), xp.mean(got.second)
    for norm in (a, b):
        if not is_traced(norm) and to_number(norm).real == 0:
            raise ValueError("an operator is zero, so the alignment is 0 / 0; pass another one")
    size = xp.sqrt(a) * xp.sqrt(b)
    value = xp.astype(x / size, got.dtype, copy=False)
    require_finite(value, "alignment")
    if got.inflation == 0:
        return exact(value, got.spent, "alignment", reason=got.reason)
    linearised = (got.cross - x) / size
    linearised = linearised - x / size * ((got.first - a) / a + (got.second - b) / b) / 2
    error = standard_error(linearised) * got.inflation
    return Estimate(value, error, got.spent, "alignment", dof=_dof(got), reason=got.reason)


def _dof(got: Pairs) -> int:
    return int(got.cross.shape[0]) - 1
