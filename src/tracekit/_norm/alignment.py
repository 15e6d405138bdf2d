"""Inner product and alignment of two operators, from common probes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from .._arrays import (
    Array,
    Rng,
    abs2,
    coldot,
    colnorm2,
    conj,
    is_array,
    is_complex,
    is_traced,
    magnitude,
    namespace,
    norm2,
    plain,
    positive,
    real,
    to_number,
)
from .._arrays import inner as inner_products
from .._estimates import (
    Estimate,
    checked_budget,
    exact,
    few,
    require_finite,
    standard_error,
    with_origin,
)
from .._operators import (
    LinearOperator,
    as_operator,
    common_dtype,
    dense,
    each_column,
    exact_norm_cost,
    known_cost,
    matvecs_per_column,
    square,
)
from .._sketches import factor_sketch, moments, orthonormal_extension
from ..probes import Source, distributions
from .known import Way, cheapest, known_matrix, known_way, knows
from .moment_samples import INFLATION
from .spectral_summary import frobenius_norm


@with_origin
def inner(A: Any, B: Any, num_matvecs: int, *, rng: Rng = None) -> Estimate:
    r"""The inner product :math:`\langle A, B \rangle = \mathrm{tr}(A^H B)`.

    Parameters
    ----------
    A, B : LinearOperator or anything that `as_operator` reads
        Of the same shape, library and device.
    num_matvecs : int
        Products m with both together. Square operators: ``m // 4`` probes, of which each operator
        gets two products; rectangular ones, and budgets below 12: ``m // 2`` independent probes.
        If both were made by `gram`: ``m // 4`` probes, one column through each L and ``L^H``.
        Exact from as many products on as both have columns (of ``L L^H``: as both L or both
        ``L^H``), or from fewer where both know all their entries.
    rng : None, int, or generator, optional
        As for `hutchinson`.

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
    got = _pairs(A, B, num_matvecs, rng)
    xp, unit = namespace(got.cross), got.scales[0] * got.scales[1]
    value = xp.astype(xp.mean(got.cross) * unit, got.dtype, copy=False)
    require_finite(value, "inner product")
    if got.inflation == 0:
        return exact(value, got.spent, "inner", reason=got.reason)
    error = standard_error(got.cross) * got.inflation * unit
    samples, told = got.cross * unit, got.reason
    return Estimate(value, error, got.spent, "inner", samples, dof=_dof(got), reason=told)


@with_origin
def alignment(A: Any, B: Any, num_matvecs: int, *, rng: Rng = None) -> Estimate:
    r"""The cosine :math:`\langle A, B \rangle / (\|A\|_F \|B\|_F)` of the angle between operators.

    Parameters
    ----------
    A, B : LinearOperator or anything that `as_operator` reads
        As for `inner`. For the centred alignment (CKA) pass ``centered(A), centered(B)``.
    num_matvecs : int
        As for `inner`: the same products give all three numbers.
    rng : None, int, or generator, optional
        As for `hutchinson`.

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
    got = _pairs(A, B, num_matvecs, rng)
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


@with_origin
def target_alignment(K: Any, y: Array, num_matvecs: int, *, rng: Rng = None) -> Estimate:
    r"""Alignment of a kernel with its targets, :math:`y^H K y / (\|K\|_F \|y\|^2)`.

    Parameters
    ----------
    K : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    y : array of shape (n,) or (n, k)
        Targets, in the library of K; of several columns the kernel is ``y y^H``.
    num_matvecs : int
        Products m, at least k + 1 (k + 2 if K was made by `gram`): k for the numerator, which is
        exact, the others for `frobenius_norm`. Where K knows all its entries, these suffice.
    rng : None, int, or generator, optional
        As for `hutchinson`.

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
    K, m = square(K, "target alignment"), checked_budget(num_matvecs)
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
    y = y if K.layout is None else K.layout.place(y)
    k, least = y.shape[1], 1 if K.factor is None else 2
    if knows(K, "matrix"):
        whole = known_way(partial(known_matrix, K), (K, "matrix"))
        if whole.cost <= min(m, exact_norm_cost(K) + k):
            return _target_of_matrix(whole, y)
    if m < k + least:
        raise ValueError(
            f"num_matvecs={m} is too few for {k} targets and the norm; pass at least {k + least}"
        )
    y = y / magnitude(y)
    norm = frobenius_norm(K, m - k, rng=rng)
    value = _target_cosine(K.xp.sum(K.quad(y)), norm.value, y)
    error = K.xp.abs(value) * (norm.standard_error / norm.value)
    spent = norm.num_matvecs + k
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


class _Pairs(NamedTuple):
    """Samples of <A, B>, |A|^2 and |B|^2 by the same probes, in units of the scales."""

    cross: Array
    first: Array
    second: Array
    scales: tuple[Array, Array]
    spent: int
    inflation: float  # of the spread
    dtype: Any
    reason: str = ""


def _pairs(A: Any, B: Any, num_matvecs: Any, rng: Rng) -> _Pairs:
    A, B, m = as_operator(A), as_operator(B), checked_budget(num_matvecs)
    if A.shape != B.shape:
        raise ValueError(f"operators of shapes {A.shape} and {B.shape} have no inner product")
    dtype = common_dtype(A, B)
    each = matvecs_per_column(A) + matvecs_per_column(B)
    if m < each:
        raise ValueError(f"num_matvecs={m} is too few for one probe of both; pass at least {each}")
    way = _exact_way(A, B, dtype)
    if m >= way.cost:
        found: _Pairs = way.run()
        return found._replace(reason=way.reason)
    told = f"exact from {way.cost} products on" if way.reason else ""
    return _sampled_pairs(A, B, m, rng, dtype)._replace(reason=told)


def _exact_way(A: LinearOperator, B: LinearOperator, dtype: Any) -> Way:
    """By all entries where both know theirs, by all columns of both factors, or of both."""
    ways = []
    if knows(A, "matrix") and knows(B, "matrix"):
        ways.append(known_way(partial(_matrix_pairs, A, B, dtype), (A, "matrix"), (B, "matrix")))
    if A.factor is not None and B.factor is not None:
        L1, L2 = A.factor, B.factor
        spent = min(2 * L1.shape[0], L1.shape[1] + L2.shape[1])
        ways.append(Way(spent, partial(_exact_factor_pairs, L1, L2, dtype)))
    spent = A.shape[1] * (matvecs_per_column(A) + matvecs_per_column(B))
    return cheapest([*ways, Way(spent, partial(_exact_pairs, A, B, dtype))])


def _sampled_pairs(A: LinearOperator, B: LinearOperator, m: int, rng: Rng, dtype: Any) -> _Pairs:
    each = matvecs_per_column(A) + matvecs_per_column(B)
    source = Source(rng, A if A.dtype == dtype else B)
    b = m // 4
    if A.factor is not None and B.factor is not None:
        b = min(b, A.factor.shape[1], B.factor.shape[1])

    def draw(k: int) -> Array:
        return distributions.sphere(source, A.shape[1], k)

    if A.factor is not None and B.factor is not None and b >= 3:
        return _nystrom_pairs(A.factor, B.factor, draw(b), dtype)
    b = m // (2 * each)
    if A.shape[0] == A.shape[1] and b >= 3:
        return _shared_pairs(A, B, draw(b), each, dtype)
    Omega = draw(m // each)
    Y1, Y2, scales = _products(A, B, Omega)
    return _products_of(Y1, Y2, scales, Omega.shape[1] * each, dtype)


def _products(A: LinearOperator, B: LinearOperator, X: Array) -> tuple[Array, Array, Any]:
    return _scaled(A.matmat(X), B.matmat(X))


def _scaled(Y1: Array, Y2: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    for Y in (Y1, Y2):
        require_finite(Y, "alignment", columns=Y)
    scales = magnitude(Y1), magnitude(Y2)
    return Y1 / scales[0], Y2 / scales[1], scales


def _products_of(Y1: Array, Y2: Array, scales: Any, spent: int, dtype: Any) -> _Pairs:
    cross, first, second = coldot(Y1, Y2), colnorm2(Y1), colnorm2(Y2)
    return _Pairs(cross, first, second, scales, spent, few(cross.shape[0]), dtype)


def _shared_pairs(
    A: LinearOperator, B: LinearOperator, Omega: Array, each: int, dtype: Any
) -> _Pairs:
    """Both deflated by a range of the sum of both sketches, each over its largest entry.

    The range depends on these weights, so that they are no constants to differentiation.
    """
    Y1, Y2, scales = _products(A, B, Omega)
    xp = namespace(Y1)
    Y = sum(Z / positive(xp.max(xp.abs(Z))) for Z in (Y1, Y2))
    Q, R, _ = orthonormal_extension(Y, Omega)
    first, second = (Y1, A.matmat(Q) / scales[0]), (Y2, B.matmat(Q) / scales[1])
    cross, one, two = (
        moments.shared(Omega, Q, R, *pair)
        for pair in ((first, second), (first, first), (second, second))
    )
    spent = 2 * Omega.shape[1] * each
    return _Pairs(cross, real(one), real(two), scales, spent, INFLATION, dtype)


def _nystrom_pairs(L1: LinearOperator, L2: LinearOperator, Omega: Array, dtype: Any) -> _Pairs:
    """Both deflated by their own Nystrom approximations: b columns through each L and L^H."""
    sketches = factor_sketch(L1, Omega), factor_sketch(L2, Omega)
    cross, one, two = (
        moments.nystrom_pairs(Omega, (X.Z, X.R), (Y.Z, Y.R))
        for X, Y in (sketches, (sketches[0], sketches[0]), (sketches[1], sketches[1]))
    )
    scales = sketches[0].unit, sketches[1].unit
    return _Pairs(cross, one, two, scales, 4 * Omega.shape[1], INFLATION, dtype)


def _exact_factor_pairs(L1: LinearOperator, L2: LinearOperator, dtype: Any) -> _Pairs:
    """From Gram matrices of all columns of the adjoints, or of the factors if these are fewer."""
    tall = L1.shape[1] + L2.shape[1] < 2 * L1.shape[0]
    G1, G2 = (dense(L if tall else L.H) for L in (L1, L2))
    G1, G2, scales = _scaled(G1, G2)
    grams = [inner_products(X, Y) for X, Y in ((G1, G1), (G2, G2))]
    both = inner_products(G1, G2) if tall else grams[0]
    cross = real(conj(both) * (both if tall else grams[1]))
    total = L1.xp.sum
    spent = G1.shape[1] + G2.shape[1]
    first, second = (norm2(K)[None] for K in grams)
    units = scales[0] * scales[0], scales[1] * scales[1]
    return _Pairs(total(cross)[None], first, second, units, spent, 0.0, dtype)


def _matrix_pairs(A: LinearOperator, B: LinearOperator, dtype: Any) -> _Pairs:
    spent = known_cost(A, "matrix") + known_cost(B, "matrix")
    return _pairs_of_blocks([(known_matrix(A), known_matrix(B))], spent, dtype)


def _exact_pairs(A: LinearOperator, B: LinearOperator, dtype: Any) -> _Pairs:
    blocks = zip(each_column(A), each_column(B), strict=True)
    spent = A.shape[1] * (matvecs_per_column(A) + matvecs_per_column(B))
    return _pairs_of_blocks(((Y1, Y2) for (_, Y1), (_, Y2) in blocks), spent, dtype)


def _pairs_of_blocks(blocks: Iterable[tuple[Array, Array]], spent: int, dtype: Any) -> _Pairs:
    """Of blocks of columns of both, each in units of its own magnitudes."""
    sums: list[Any] = []
    units: list[Any] = []
    for Y1, Y2 in blocks:
        xp = namespace(Y1)
        Z1, Z2, scales = _scaled(Y1, Y2)
        sums.append([xp.sum(coldot(X, Y)) for X, Y in ((Z1, Z2), (Z1, Z1), (Z2, Z2))])
        units.append(scales)
    top1, top2 = (xp.max(xp.stack([pair[which] for pair in units])) for which in (0, 1))
    cross = sum(x * (u / top1) * (v / top2) for (x, _, _), (u, v) in zip(sums, units, strict=True))
    first = sum(a * (u / top1) ** 2 for (_, a, _), (u, _) in zip(sums, units, strict=True))
    second = sum(b * (v / top2) ** 2 for (_, _, b), (_, v) in zip(sums, units, strict=True))
    samples = cross[None], real(first)[None], real(second)[None]
    return _Pairs(*samples, (top1, top2), spent, 0.0, dtype)


def _dof(got: _Pairs) -> int:
    return int(got.cross.shape[0]) - 1
