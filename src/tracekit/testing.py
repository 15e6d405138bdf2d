r"""Checks for operators and estimators of your own: adjoints, bias, matrices of known spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ._arrays import (
    Array,
    ArraySpace,
    DType,
    Rng,
    abs2,
    adjoint,
    coldot,
    colnorm2,
    device_of,
    eps_of,
    floating,
    is_array,
    is_complex,
    matrix_trace,
    namespace,
    norm2,
    unit_columns,
)
from ._operators import as_operator
from .probes import Source, distributions

__all__ = [
    "adjoint_test",
    "benchmark_spectra",
    "known_spectrum",
    "linearity_test",
    "unbiasedness_test",
]


def adjoint_test(A: Any, *, rng: Rng = 0, num_probes: int = 4, rtol: float | None = None) -> float:
    r"""
    Check that an operator's two products belong to each other.

    The dot test: :math:`\langle y, A x\rangle = \langle A^H y, x\rangle` for random `x` and `y`.

    Parameters
    ----------
    A : (m, n) operator
        Anything that `as_operator` reads and that has a product with its adjoint.
    rng : int or generator, optional
        What `x` and `y` are drawn from.
    num_probes : int, optional
        How many pairs `x`, `y` are tried, in one block.
    rtol : float, optional
        Largest mismatch allowed; the square root of the dtype's rounding unit if None.

    Returns
    -------
    float
        The largest mismatch :math:`|\langle y, Ax\rangle - \langle A^H y, x\rangle|` over the
        pairs, relative to the larger of :math:`\|y\|\,\|Ax\|` and :math:`\|A^H y\|\,\|x\|`.

    Raises
    ------
    AssertionError
        If the mismatch is above `rtol`, or is not a number.
    TypeError
        If the operator has no product with its adjoint.

    Notes
    -----
    Costs `num_probes` products with A and as many with its adjoint.

    References
    ----------
    J. F. Claerbout, Earth Soundings Analysis: Processing Versus Inversion, 1992, section 5.2
    (the dot-product test).

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit import LinearOperator
    >>> from tracekit.testing import adjoint_test
    >>> M = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> right = LinearOperator((2, 2), lambda X: M @ X, lambda X: M.T @ X, dtype=M.dtype)
    >>> adjoint_test(right) < 1e-14
    True
    >>> wrong = LinearOperator((2, 2), lambda X: M @ X, lambda X: M @ X, dtype=M.dtype)
    >>> adjoint_test(wrong)
    Traceback (most recent call last):
        ...
    AssertionError: <y, A x> and <A^H y, x> differ by 0...
    """
    A = as_operator(A)
    source = Source(rng, A)
    X = distributions.normal(source, A.shape[1], num_probes)
    Y = distributions.normal(source, A.shape[0], num_probes)
    AX, AhY = A.matmat(X), A.H.matmat(Y)
    gap = abs2(coldot(Y, AX) - coldot(AhY, X))
    size = _larger(colnorm2(Y) * colnorm2(AX), colnorm2(AhY) * colnorm2(X))
    worst = math.sqrt(max(_ratio(float(g), float(s)) for g, s in zip(gap, size, strict=True)))
    allowed = math.sqrt(eps_of(X)) if rtol is None else rtol
    if not worst <= allowed:
        raise AssertionError(
            f"<y, A x> and <A^H y, x> differ by {worst:.2g} relative to their size, more than "
            f"rtol={allowed:.2g}: the products matmat and rmatmat of this {A.shape[0]} by "
            f"{A.shape[1]} operator are not adjoints of each other"
        )
    return worst


def linearity_test(A: Any, *, rng: Rng = 0, rtol: float | None = None) -> float:
    r"""
    Check that an operator is linear, over the complex numbers where it is complex.

    Parameters
    ----------
    A : (m, n) operator
        Anything that `as_operator` reads.
    rng : int or generator, optional
        What the vectors are drawn from.
    rtol : float, optional
        Largest mismatch allowed; the square root of the dtype's rounding unit if None.

    Returns
    -------
    float
        The norm of :math:`A(x + c y) - A x - c A y`, relative to those of :math:`A x` and
        :math:`A y`, for random x and y; c is -2 or, where A is complex, the imaginary unit.

    Raises
    ------
    AssertionError
        If the mismatch is above `rtol`, or is not a number.

    Notes
    -----
    Costs three products. Independent probes cannot show it: an estimator refuses an operator that
    is not linear only where it spends products with the adjoint, or needs A to be Hermitian.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit import LinearOperator
    >>> from tracekit.testing import linearity_test
    >>> linearity_test(np.eye(3)) < 1e-15
    True
    >>> linearity_test(LinearOperator((3, 3), lambda X: X + 1))
    Traceback (most recent call last):
        ...
    AssertionError: A(x + c y) and A x + c A y differ by 1...
    """
    A = as_operator(A)
    pair = distributions.normal(Source(rng, A), A.shape[1], 2)
    x, y, c = pair[:, :1], pair[:, 1:], 1j if is_complex(A) else -2.0
    Ax, Ay, both = A.matmat(x), A.matmat(y), A.matmat(x + y * c)
    gap, sizes = norm2(both - Ax - Ay * c), norm2(Ax) + norm2(Ay)
    worst = math.sqrt(_ratio(float(gap), float(sizes)))
    allowed = math.sqrt(eps_of(x)) if rtol is None else rtol
    if not worst <= allowed:
        raise AssertionError(
            f"A(x + c y) and A x + c A y differ by {worst:.2g} relative to their size, more than "
            f"rtol={allowed:.2g}: this {A.shape[0]} by {A.shape[1]} operator is not linear"
        )
    return worst


def unbiasedness_test(
    estimator: Callable[..., Any],
    A: Any,
    *,
    exact: Any = None,
    seeds: Iterable[Rng] = range(200),
    max_z: float = 5.0,
) -> float:
    r"""
    Check that the mean of many runs of an estimator is the trace, to within its own spread.

    Parameters
    ----------
    estimator : callable
        Called as ``estimator(A, rng=seed)``; gives a number, or a record with a `value`.
        Bind the budget first: ``functools.partial(tracekit.xtrace, num_matvecs=10)``.
    A : (n, n) operator
        Anything that `as_operator` reads.
    exact : scalar, optional
        What the mean is compared with; the trace, from n products, if None.
    seeds : iterable, optional
        One seed, generator or key for each run. The default makes the test repeat exactly.
    max_z : float, optional
        Largest z-score allowed.

    Returns
    -------
    float
        The z-score: the distance of the mean from `exact` in standard errors of the mean.

    Raises
    ------
    AssertionError
        If the z-score is above `max_z`, or is not a number.

    Notes
    -----
    An unbiased estimator passes with probability 1 - 6e-7 at ``max_z=5``. A bias is found once
    it exceeds about `max_z` standard deviations over the square root of the number of runs.
    Differences at the level of rounding count as none, so that an exact estimator passes.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> import tracekit
    >>> from tracekit.testing import unbiasedness_test
    >>> A = np.diag(1.0 / np.arange(1, 21)) + np.triu(np.ones((20, 20)), 1)
    >>> unbiasedness_test(partial(tracekit.xtrace, num_matvecs=8), A) < 5
    True
    """
    values = np.asarray([_scalar(estimator(A, rng=seed)) for seed in seeds])
    if values.size < 2:
        raise ValueError(f"{values.size} seeds have no spread; pass two or more, seeds=range(200)")
    truth, size = _dense_trace(A) if exact is None else (_scalar(exact), abs(_scalar(exact)))
    mean = complex(values.mean())
    spread = math.sqrt(float(np.mean(np.abs(values - mean) ** 2)) / (values.size - 1))
    rounding = 100 * float(np.finfo(values.dtype).eps) * max(size, float(np.abs(values).max()))
    z = _ratio(abs(mean - truth), math.hypot(spread, rounding))
    if not z <= max_z:
        raise AssertionError(
            f"the mean of {values.size} runs is {_show(mean)}, which is {z:.3g} standard errors "
            f"from {_show(truth)} (max_z={max_z:g}): the estimator is biased"
        )
    return z


def known_spectrum(eigenvalues: Array, *, rng: Rng = 0, dtype: DType | None = None) -> Array:
    r"""
    Make a dense matrix of prescribed eigenvalues, with eigenvectors drawn uniformly.

    Parameters
    ----------
    eigenvalues : (n,) array, or sequence of numbers
        The eigenvalues :math:`\lambda`, whose sum is the trace. The matrix is of their library and
        on their device; NumPy's for a sequence of numbers.
    rng : int or generator, optional
        What the eigenvectors are drawn from.
    dtype : dtype, optional
        Of the matrix; that of `eigenvalues` if None. Real: the matrix is symmetric. Complex: it is
        Hermitian, or normal if the eigenvalues themselves are complex.

    Returns
    -------
    (n, n) array
        :math:`Q \operatorname{diag}(\lambda) Q^H` with Q uniform (Haar) on the orthogonal group, on
        the unitary group if complex.

    Raises
    ------
    ValueError
        If `eigenvalues` are not one vector, or are complex where `dtype` is real.

    Notes
    -----
    Costs a QR factorisation and a product of n by n matrices, :math:`O(n^3)`.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit.testing import known_spectrum
    >>> A = known_spectrum([3.0, 2.0, 1.0])
    >>> np.linalg.eigvalsh(A).round(12)
    array([1., 2., 3.])
    """
    if not is_array(eigenvalues):
        eigenvalues = np.asarray(eigenvalues)
    if eigenvalues.ndim != 1:
        raise ValueError(
            f"eigenvalues of shape {tuple(eigenvalues.shape)} are not one vector; pass shape (n,)"
        )
    xp, device = namespace(eigenvalues), device_of(eigenvalues)
    place = ArraySpace(floating(dtype or eigenvalues.dtype, xp, device), xp, device)
    if is_complex(eigenvalues) and not is_complex(place):
        raise ValueError(
            f"no symmetric matrix of dtype {place.dtype} has complex eigenvalues; "
            "pass a complex dtype"
        )
    n = eigenvalues.shape[0]
    if isinstance(
        rng, int
    ):  # a stream of its own: probes of the same seed must not be eigenvectors
        rng = np.random.SeedSequence(rng, spawn_key=(n,))
    Q = distributions.orthogonal(Source(rng, place), n, n) / math.sqrt(n)
    A = (Q * xp.astype(eigenvalues, place.dtype)[None, :]) @ adjoint(Q)
    return A if is_complex(eigenvalues) else (A + adjoint(A)) / 2


def benchmark_spectra(n: int, *, rng: Rng = 0) -> dict[str, Array]:
    r"""
    Give the eigenvalues that the accuracy of trace estimators is measured on.

    Parameters
    ----------
    n : int
        How many eigenvalues.
    rng : int or numpy Generator, optional
        What the flat spectrum is drawn from.

    Returns
    -------
    dict of (n,) float64 NumPy arrays
        By name, for i = 1, ..., n: ``"i^-2"`` (fast algebraic decay), ``"i^-0.5"`` (slow),
        ``"1+U"`` (flat: 1 plus uniform on [0, 1]) and ``"0.7^i"`` (exponential).

    References
    ----------
    E. N. Epperly, J. A. Tropp, R. J. Webber, XTrace: making the most of every sample in stochastic
    trace estimation, arXiv:2301.07825.

    Examples
    --------
    >>> from tracekit.testing import benchmark_spectra
    >>> {name: round(float(lam.sum()), 3) for name, lam in benchmark_spectra(3).items()}
    {'i^-2': 1.361, 'i^-0.5': 2.284, '1+U': 3.948, '0.7^i': 1.533}
    """
    i = np.arange(1, n + 1, dtype=np.float64)
    return {
        "i^-2": i**-2.0,
        "i^-0.5": i**-0.5,
        "1+U": 1.0 + np.random.default_rng(rng).random(n),
        "0.7^i": 0.7**i,
    }


def _dense_trace(A: Any) -> tuple[complex, float]:
    """The trace, and a bound on the sum of all singular values, from n products."""
    A = as_operator(A)
    columns = A.matmat(unit_columns(A, A.shape[1], A.shape[1]))
    norm = float(namespace(columns).sum(abs2(columns))) ** 0.5
    return _scalar(matrix_trace(columns)), norm * math.sqrt(A.shape[1])


def _scalar(estimate: Any) -> complex:
    """A record's value, or a number, on the host: real where it has no imaginary part to keep."""
    value = getattr(estimate, "value", estimate)
    number = complex(value)
    return number if number.imag else number.real


def _larger(a: Array, b: Array) -> Array:
    return namespace(a).where(a > b, a, b)


def _ratio(gap: float, size: float) -> float:
    return 0.0 if gap == 0.0 else math.inf if size == 0.0 else gap / size


def _show(number: complex) -> str:
    return f"{number:.6g}" if number.imag else f"{number.real:.6g}"
