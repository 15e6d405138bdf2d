"""Norm and effective rank, with the trace, out of one sketch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from . import _leave_one_out, _moments, _xp
from . import probes as _probes
from ._adapt import as_operator
from ._budget import checked_budget
from ._estimate import Estimate, exact, require_finite, standard_error
from ._face import dense, each_column, price, square
from ._operator import LinearOperator
from ._random import Source
from ._sketch import orthonormal_extension
from ._typing import Array, Rng
from .zonal import SpectralSummary, one_sided_norm, one_sided_summary

# Leave-one-out samples share their sketch, so that their spread is too small. Where there is no
# jackknife: by these factors, calibrated on decaying, flat and network spectra.
INFLATION = 1.4  # of traces, ratios and inner products
NORM_INFLATION = 2.0  # of squared norms


def spectral_summary(A: Any, num_matvecs: int, *, rng: Rng = None) -> SpectralSummary:
    r"""Trace, Frobenius norm and effective rank of an operator from the same products.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; real or complex, Hermitian or not.
    num_matvecs : int
        Products m to spend. For ``A = L L^H``, made by `gram`, columns through L or ``L^H``:
        ``m // 3`` probes; for other Hermitian operators (which the first products show)
        ``m // 2`` probes with a second Krylov block each; for any other ``m // 2`` probes.
        Products that do not fill a probe are left unspent. Exact from n products on (from as many
        as the lesser dimension of L).
    rng : None, int, or generator, optional
        As for `hutchinson`.

    Returns
    -------
    SpectralSummary
        A record of three `Estimate`: ``trace``, ``frobenius_norm``, ``effective_rank``. The trace
        and the squared norm are unbiased; the norm, its root, and the effective rank, a ratio
        with a bias-corrected numerator, are so up to the square of their relative errors.
        Standard errors are the geometric mean of leave-one-out spread and jackknife; where A is
        not Hermitian that of the norm is twice the spread, that of the rank 1.4 times (delta
        method): calibrated by experiment.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`; and if A is zero, whose effective rank is 0 / 0.

    Notes
    -----
    The effective rank is the participation ratio :math:`|\mathrm{tr} A|^2 / \|A\|_F^2`, between 0
    and n; n for the identity. Below 3 probes, independent probes are used (for ``A = L L^H``
    `one_sided_summary`). Memory for about 4 b columns, b probes; O(n b^2 + b^3) operations besides
    the products.

    References
    ----------
    Epperly, Tropp, Webber (2024), arXiv:2301.07825; Hallman (2025), arXiv:2512.02316.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 501.0) ** -2)
    >>> summary = tk.spectral_summary(A, 60, rng=0)
    >>> bool(abs(summary.frobenius_norm.value - np.linalg.norm(A)) < 1e-4)
    True
    >>> round(float(summary.effective_rank), 1)
    2.5
    """
    A, m = square(A, "effective rank"), checked_budget(num_matvecs)
    if m >= _exact_cost(A):
        return _exact_summary(A)
    if A.factor is not None and m < 9:
        return one_sided_summary(A.factor, m, rng=rng)
    return _summary(_samples(A, m, rng), A)


def frobenius_norm(A: Any, num_matvecs: int, *, rng: Rng = None) -> Estimate:
    r"""The Frobenius norm :math:`\|A\|_F`.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Of any shape; real or complex.
    num_matvecs : int
        Products m with A and its adjoint. Square operators: as for `spectral_summary`, except that
        one that is not Hermitian but has an adjoint product gets ``m // 2`` products each way;
        so do rectangular ones. Without an adjoint product these are tested with m independent
        probes. Exact from as many products on as A has columns, or rows if these are fewer and
        there is an adjoint product (for ``A = L L^H``: the lesser dimension of L).
    rng : None, int, or generator, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        Real. Its square is unbiased; the standard error as for `spectral_summary`.

    Raises
    ------
    ValueError, TypeError
        As for `hutchinson`, but for the shape.

    Notes
    -----
    Where only products with ``L^H`` can be had, the norm of ``L L^H`` comes from
    `one_sided_summary`, and that of L from `one_sided`.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 501.0) ** -2)
    >>> estimate = tk.frobenius_norm(A, 60, rng=0)
    >>> bool(abs(estimate.value - np.linalg.norm(A)) < 1e-4)
    True
    """
    A, m = as_operator(A), checked_budget(num_matvecs)
    if m >= _exact_cost(A):
        return _exact_norm(A)
    if A.factor is not None and m < 9:
        return one_sided_norm(A.factor, m, rng)
    if A.shape[0] == A.shape[1]:
        got = _samples(A, m, rng, norm_only=True)
    else:
        got = _rectangular_samples(A, m, rng)
    return _norm(got)


def effective_rank(A: Any, num_matvecs: int, *, rng: Rng = None) -> Estimate:
    r"""The effective rank :math:`|\mathrm{tr} A|^2 / \|A\|_F^2`, also called participation ratio.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n.
    num_matvecs : int
        As for `spectral_summary`, which also returns the other two.
    rng : None, int, or generator, optional
        As for `hutchinson`.

    Returns
    -------
    Estimate
        Real, between 0 and n up to its error; the numerator is corrected for the variance of the
        trace, which would bias it upwards.

    Raises
    ------
    ValueError, TypeError
        As for `spectral_summary`.

    References
    ----------
    Hazelden (2025), arXiv:2511.10796. The effective rank of Roy and Vetterli (2007) is another.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.repeat([1.0, 0.0], [5, 95]))
    >>> round(float(tk.effective_rank(A, 30, rng=0)), 6)
    5.0
    """
    return spectral_summary(A, num_matvecs, rng=rng).effective_rank


class _Moments(NamedTuple):
    """Samples of the trace and of the squared norm, in units of `scale` and its square."""

    traces: Array | None
    squares: Array
    scale: Array
    spent: int
    shared: bool  # whether the samples share a sketch
    left_out: tuple[Array | None, Array | None] = (None, None)  # jackknife replicates of both

    def error(self, samples: Array, left_out: Array | None, factor: float) -> Array:
        """Of the mean of samples: jackknife and spread, or the spread times a factor."""
        spread = standard_error(samples)
        if left_out is not None:
            return _leave_one_out.combined_error(samples, left_out, spread)
        return spread * factor if self.shared else spread


def _samples(A: LinearOperator, m: int, rng: Rng, *, norm_only: bool = False) -> _Moments:
    """Leave-one-out samples by the sketch that suits a square operator."""
    n, source = A.shape[0], Source(rng, A)
    if A.factor is not None:
        return _factored_krylov(A.factor, _probes.sphere(source, n, m // 3))
    b = m // 2
    if b < 3:
        return _independent(A, _probes.sphere(source, n, m))
    Omega = _probes.sphere(source, n, b)
    Q0, R0 = _xp.orthonormalise(Omega)
    Z0 = A.matmat(Q0)
    require_finite(Z0)
    scale = _xp.magnitude(Z0)
    Z0 = Z0 / scale
    H0 = _xp.adjoint(Q0) @ Z0
    if _is_hermitian(H0):
        Q1, C = _second_block(Omega, Q0, R0, Z0)
        Z1 = A.matmat(Q1) / scale
        return _krylov(H0, _xp.adjoint(Q0) @ Z1, _xp.adjoint(Q1) @ Z1, C, scale, 2 * b, n)
    Y = Z0 @ R0
    Q, R, _ = orthonormal_extension(Y, Omega)
    if norm_only and A.rmatmat is not None:
        return _two_sided(A, Omega, Q, R, scale, 2 * b)
    Z = A.matmat(Q) / scale
    traces, left_out = _leave_one_out.xtrace(Omega, Q, R, Z, resphere=True)
    squares = _moments.shared(Omega, Q, R, (Y, Z), (Y, Z))
    return _Moments(traces, _xp.real(squares), scale, 2 * b, True, (left_out, None))


def _rectangular_samples(A: LinearOperator, m: int, rng: Rng) -> _Moments:
    n, source, b = A.shape[1], Source(rng, A), m // 2
    if A.rmatmat is None or b < 3:
        return _independent(A, _probes.sphere(source, n, m))
    Omega = _probes.sphere(source, n, b)
    Y = A.matmat(Omega)
    require_finite(Y)
    scale = _xp.magnitude(Y)
    Q, R = _xp.orthonormalise(Y / scale)
    return _two_sided(A, Omega, Q, R, scale, 2 * b)


def _independent(A: LinearOperator, Omega: Array) -> _Moments:
    Y = A.matmat(Omega)
    require_finite(Y)
    scale = _xp.magnitude(Y)
    traces = _xp.coldot(Omega, Y / scale) if A.shape[0] == A.shape[1] else None
    return _Moments(traces, _xp.colnorm2(Y / scale), scale, Omega.shape[1] * price(A), False)


def _two_sided(
    A: LinearOperator, Omega: Array, Q: Array, R: Array, scale: Array, spent: int
) -> _Moments:
    """The trace of A^H A: its Nystrom approximation is ``(A^H Q) (A^H Q)^H``."""
    F = A.rmatmat(Q) / scale  # type: ignore[misc]
    inverse = A.xp.linalg.inv(_xp.adjoint(Omega) @ Omega)
    dual = _xp.triangular_dual(R)
    squares, left_out = _leave_one_out.nystrom(_xp.adjoint(F) @ F, dual, A.shape[1], inverse)
    return _Moments(None, squares, scale, spent, True, (None, left_out))


def _factored_krylov(L: LinearOperator, Omega: Array) -> _Moments:
    """A block-Krylov sketch of L L^H: 2 b columns through L^H and b through L."""
    Lh, (n, b) = L.H.matmat, Omega.shape
    Q0, R0 = _xp.orthonormalise(Omega)
    G0 = Lh(Q0)
    require_finite(G0)
    scale = _xp.magnitude(G0)
    Z0 = L.matmat(G0 / scale) / scale
    Q1, C = _second_block(Omega, Q0, R0, Z0)
    G1 = Lh(Q1) / scale
    corner, side = _xp.adjoint(Q0) @ Z0, _xp.adjoint(Z0) @ Q1
    return _krylov(corner, side, _xp.adjoint(G1) @ G1, C, scale * scale, 3 * b, n)


def _second_block(Omega: Array, Q0: Array, R0: Array, Z0: Array) -> tuple[Array, Array]:
    """A basis of A Omega beyond Omega, and the coordinates of both blocks in both bases.

    Where A Omega adds fewer directions than columns, each probe brings one of its own (itself,
    rolled): so leaving out a probe leaves out all that depends on it.
    """
    xp = _xp.namespace(Omega)
    own = xp.roll(Omega, 1, axis=0)
    Q1, R1, upper = orthonormal_extension(Z0 @ R0, own, Q0, jitter=_xp.eps(Z0) ** 0.5)
    low = R1 * 0.0
    return Q1, xp.concat([xp.concat([R0, upper], axis=1), xp.concat([low, R1], axis=1)], axis=0)


def _krylov(
    H00: Array, H01: Array, H11: Array, C: Array, scale: Array, spent: int, n: int
) -> _Moments:
    concat = _xp.namespace(H00).concat
    H = concat([concat([H00, H01], axis=1), concat([_xp.adjoint(H01), H11], axis=1)], axis=0)
    H = (H + _xp.adjoint(H)) / 2
    W = C[:, : H00.shape[0]]
    traces, squares = _moments.krylov(H, W, C, n)
    left_out = _moments.krylov_left_out(H, W, C, n) if W.shape[1] > 3 else (None, None)
    return _Moments(traces, squares, scale, spent, True, left_out)


def _is_hermitian(H: Array) -> bool:
    """Whether ``Q^H A Q`` shows that A is Hermitian, to half the digits; unknown under jit."""
    if _xp.is_traced(H):
        return False
    xp = _xp.namespace(H)
    skew, size = (xp.sum(_xp.abs2(X)) for X in (H - _xp.adjoint(H), H))
    return bool(skew <= _xp.eps(H) * size)


def _summary(got: _Moments, A: LinearOperator) -> SpectralSummary:
    assert got.traces is not None
    xp, traces, squares = A.xp, got.traces, got.squares
    t, f = xp.mean(traces), xp.mean(squares)
    error = got.error(traces, got.left_out[0], INFLATION)
    f = _nonzero(f, "the effective rank")
    numerator = _xp.abs2(t) - xp.where(xp.isfinite(error), error * error, xp.zeros_like(error))
    tilt = 2 * _xp.real(_xp.conj(t) * (traces - t)) / f - numerator * (squares - f) / (f * f)
    t_out, f_out = got.left_out
    ratios = None if t_out is None or f_out is None else _xp.abs2(t_out) / f_out
    dof, spent, method = squares.shape[0] - 1, got.spent, "spectral_summary"
    value = xp.astype(t * got.scale, A.dtype, copy=False)
    rank = Estimate(numerator / f, got.error(tilt, ratios, INFLATION), spent, method, dof=dof)
    trace = Estimate(value, error * got.scale, spent, method, samples=traces * got.scale, dof=dof)
    return SpectralSummary(_finite(trace), replace(_norm(got), method=method), _finite(rank))


def _norm(got: _Moments) -> Estimate:
    """The root of the mean square; the error by the delta method."""
    squares = got.squares
    xp, square = _xp.namespace(squares), _xp.namespace(squares).mean(squares)
    error = got.error(squares, got.left_out[1], NORM_INFLATION)
    root = xp.sqrt(xp.where(square < 0, xp.zeros_like(square), square))
    safe = xp.where(root > 0, root, xp.ones_like(root))
    dof = squares.shape[0] - 1
    return _finite(
        Estimate(
            root * got.scale, error / (2 * safe) * got.scale, got.spent, "frobenius_norm", dof=dof
        )
    )


def _finite(estimate: Estimate) -> Estimate:
    require_finite(estimate.value)
    return estimate


def _nonzero(f: Array, what: str) -> Array:
    if not _xp.is_traced(f) and _xp.number(f) == 0:
        raise ValueError(f"the operator is zero, so {what} is 0 / 0; pass another operator")
    return f


def _exact_cost(A: LinearOperator) -> int:
    if A.factor is not None:
        return min(A.factor.shape)
    return min(A.shape) if A.rmatmat is not None else A.shape[1]


def _exact_moments(A: LinearOperator) -> tuple[Array, Array, Array]:
    """Trace and squared norm in units of a scale and its square, and the scale."""
    xp, L = A.xp, A.factor
    if L is not None:  # both from the Gram matrix of all columns of L or L^H
        G = dense(L.H if L.shape[0] <= L.shape[1] else L)
        require_finite(G)
        scale = _xp.magnitude(G)
        K = _xp.adjoint(G / scale) @ (G / scale)
        return _xp.real(_xp.trace(K)), xp.sum(_xp.abs2(K)), scale * scale
    B = A if A.shape[1] <= A.shape[0] or A.rmatmat is None else A.H
    parts = []
    for E, Y in each_column(B):
        require_finite(Y)
        scale = _xp.magnitude(Y)
        rows = E[: min(Y.shape[0], E.shape[0]), :]
        t = xp.sum(_xp.coldot(rows, Y[: rows.shape[0], :] / scale))
        parts.append((t, xp.sum(_xp.abs2(Y / scale)), scale))
    largest = xp.max(xp.stack([scale for _, _, scale in parts]))
    shares = [scale / largest for _, _, scale in parts]
    t = sum(t * share for (t, _, _), share in zip(parts, shares, strict=True))
    f = sum(f * share * share for (_, f, _), share in zip(parts, shares, strict=True))
    return t, f, largest


def _exact_norm(A: LinearOperator) -> Estimate:
    _, f, scale = _exact_moments(A)
    return exact(A.xp.sqrt(f) * scale, _exact_cost(A), "frobenius_norm")


def _exact_summary(A: LinearOperator) -> SpectralSummary:
    t, f, scale = _exact_moments(A)
    f = _nonzero(f, "the effective rank")
    spent, method = _exact_cost(A), "spectral_summary"
    value = A.xp.astype(t * scale, A.dtype, copy=False)
    return SpectralSummary(
        exact(value, spent, method),
        exact(A.xp.sqrt(f) * scale, spent, method),
        exact(_xp.abs2(t) / f, spent, method),
    )
