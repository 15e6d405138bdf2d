"""Cheap approximations: variances with them, relative to those without, and a kernel of digits.

Variances are those of the samples of sign vectors, over many calls, of the same probes with and
without, deep enough that quadrature is no part of them; section by section:

  Laplacian    30 x 30 points + 0.05, with IC(0), and with a cycle of two grids;
  kernel       Gaussian, 600 points on a line + 0.01, with 15 columns of a partial Cholesky factor;
  step before  exponential kernel of 500 points in a cube + 0.05, at lengths that are 2 % apart;
  whatever P   traces of random symmetric matrices with controls that know nothing of them, or the
               opposite: mean squared errors of 24 products, relative to those without a control;
  digits       the Gaussian kernel of scikit-learn's digits, as wide as the median distance, + 0.01,
               with 100 columns of a partial Cholesky factor: root mean square errors of the
               log-determinant from 300 products, with plain probes, with sketches that the function
               chooses by itself, and with the preconditioner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

import tracekit

from ..problems import covariance
from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Real = NDArray[np.float64]

LAPLACIAN, KERNEL, GRIDS, STEP = 0.12, 0.0083, 0.046, 1e-5  # measured by prototypes
SLACK, WORST, GAIN = 1.2, 1.1, 5.0
RUNS, DIGIT_RUNS, TRIALS = seeds(30), seeds(20), 50 * seeds(20)


def laplacian(side: int = 30) -> Any:
    line = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    eye = sp.eye_array(side)
    return sp.csc_array(sp.kron(line, eye) + sp.kron(eye, line) + 0.05 * sp.eye_array(side**2))


def two_grids(L: Any) -> tracekit.Preconditioner:
    """Return damped Jacobi, a correction on smoothed aggregates of 3 x 3 points, damped Jacobi."""
    n, d = L.shape[0], L.diagonal()[:, None]
    i, j = np.indices((30, 30)).reshape(2, -1) // 3
    Z = sp.csc_array((np.ones(n), (np.arange(n), 10 * i + j)))
    Z = sp.csc_array(Z - sp.diags_array(0.6 / d[:, 0]) @ (L @ Z))
    coarse = np.linalg.inv((Z.T @ L @ Z).toarray())

    def cycle(B: Real) -> Real:
        X = 0.6 * B / d
        X = X + Z @ (coarse @ (Z.T @ (B - L @ X)))
        return X + 0.6 * (B - L @ X) / d

    M = tracekit.LinearOperator((n, n), cycle, cycle)
    return tracekit.Preconditioner(M, trace_inverse=tracekit.exact_trace(M).value)


def kernel() -> Real:
    x = np.sort(np.random.default_rng(0).random(600))
    return np.exp(-0.5 * ((x[:, None] - x) / 0.1) ** 2) + 0.01 * np.eye(600)


def steps() -> tuple[Real, Real]:
    x = np.random.default_rng(0).random((500, 3))

    def exponential(x: Real) -> Real:
        r = np.sqrt(np.sum((x[:, None] - x) ** 2, axis=-1))
        return np.exp(-2 * r) + 0.05 * np.eye(len(x))

    return exponential(x), exponential(1.02 * x)


def variance(function: Any, A: Any, depth: int, **options: Any) -> float:
    """Return that of the samples of sign vectors, which are not deflated, over all runs."""
    n, found = A.shape[0], []
    for seed in range(RUNS):
        made = function(A, n - 1, rng=seed, depth=depth, deflate=0, **options)
        found.append(np.asarray(made.samples))
    return float(np.mean([np.var(x, ddof=1) for x in found]))


def ratio(function: Any, A: Any, P: Any, depth: int, plain: int) -> float:
    """Return the variance with P over that without, at depths that suffice for each."""
    with_it = variance(function, A, depth, preconditioner=P)
    return with_it / variance(function, A, plain)


def of_controls(A: Any, P: tracekit.Preconditioner, depth: int) -> float:
    """Return the same of the trace of the inverse, its samples with a fitted coefficient alone."""
    from tracekit._controls import fitted

    n, M, inverse = A.shape[0], P.inverse, np.linalg.inv(A.toarray() if sp.issparse(A) else A)
    left, plain = [], []
    for seed in range(RUNS):
        X = np.random.default_rng(seed).choice([-1.0, 1.0], (n, max(n // depth, 40)))
        y, p = np.sum(X * (inverse @ X), axis=0), np.sum(X * M.matmat(X), axis=0)
        left.append(np.var(y - fitted(y, p) * (p - float(P.trace_inverse)), ddof=1))
        plain.append(np.var(y, ddof=1))
    return float(np.mean(left) / np.mean(plain))


def variances() -> Iterator[Row]:
    L = laplacian()
    found = ratio(tracekit.logdet, L, tracekit.incomplete_cholesky(L), 12, 30)
    yield figure("log-determinant of the Laplacian, IC(0)", found, most=SLACK * LAPLACIAN)
    K = kernel()
    F = tracekit.pivoted_cholesky(K, 15, shift=0.01)
    P = tracekit.low_rank_plus_diagonal(F, 0.01)
    found = ratio(tracekit.logdet, K, P, 12, 30)
    yield figure("log-determinant of the kernel, 15 pivots", found, most=SLACK * KERNEL)
    found = of_controls(L, two_grids(L), 20)
    yield figure("trace of the inverse of the Laplacian, two grids", found, most=SLACK * GRIDS)
    A, before = steps()
    inverse = np.linalg.inv(before)
    P = tracekit.Preconditioner(inverse, trace_inverse=float(np.trace(inverse)))
    found = of_controls(A, P, 12)
    yield figure("trace of the inverse of a kernel, the step before", found, most=SLACK * STEP)


def whatever() -> Iterator[Row]:
    """Judge controls that are worth nothing."""
    n, rng = 40, np.random.default_rng(0)

    def symmetric() -> Real:
        B = rng.standard_normal((n, n))
        return B + B.T

    A = symmetric()
    corner = np.zeros((n, n))
    corner[:3, :3] = 1
    others = {
        "another matrix": symmetric(),
        "ones": np.ones((n, n)),
        "a corner of ones": corner,
        "a diagonal": np.diag(np.arange(n)),
        "a tenth of A, and another": 0.33 * A + symmetric(),
    }
    operator = tracekit.LinearOperator((n, n), lambda X: A @ X)
    plain = [float(tracekit.hutchinson(operator, 24, rng=s)) for s in range(TRIALS)]
    for name, P in others.items():
        with_it = [
            float(tracekit.hutchinson(operator, 24, rng=s, control=P)) for s in range(TRIALS)
        ]
        error = np.mean((np.array(with_it) - np.trace(A)) ** 2)
        label = f"trace, control {name}: squared error"
        yield figure(label, error / np.mean((np.array(plain) - np.trace(A)) ** 2), most=WORST)


def digits() -> Iterator[Row]:
    """Judge a preconditioner of a kernel whose eigenvalues fall slowly."""
    K, truth = covariance("rbf")
    F = tracekit.pivoted_cholesky(K, 100, shift=0.01)
    P = tracekit.low_rank_plus_diagonal(F, 0.01)
    ways = {
        "plain probes": {"deflate": 0},
        "as it is": {},
        "preconditioned": {"preconditioner": P},
        "preconditioned, shift=1": {"preconditioner": P, "shift": 1.0},
    }
    errors = {}
    for name, options in ways.items():
        found = [tracekit.logdet(K, 300, rng=s, **options) for s in range(DIGIT_RUNS)]
        errors[name] = float(np.sqrt(np.mean((np.array([float(x) for x in found]) - truth) ** 2)))
        yield figure(f"digits, 300 products, {name}: error", errors[name])
    best = errors["preconditioned, shift=1"]
    yield figure(
        "digits: plain probes over preconditioned", errors["plain probes"] / best, least=GAIN
    )
    yield figure("digits: as it is over preconditioned", errors["as it is"] / best)


def tables() -> Iterator[Table]:
    """Variances, useless controls, and the kernel of the digits."""
    yield Table(f"Variances relative to none, {RUNS} runs", FIGURES, variances())
    yield Table(f"Whatever the control, {TRIALS} runs", FIGURES, whatever())
    yield Table(f"A kernel of digits, {DIGIT_RUNS} runs", FIGURES, digits())
