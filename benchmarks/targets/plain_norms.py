"""What one would write down first for norms, effective ranks, alignments and partial traces.

A method takes an operator, or two, the calls that it may spend, and a seed.

  pairs      Proposition 1 of Hazelden (2025), arXiv:2511.10796, in its corrected form: means of
             <J1^T u, J1^T v> <J2^T u, J2^T v> over independent u and v, estimates tr(A1 A2);
  Hutch++    on A^2, and on A1 A2 (arXiv:2010.09649), a new sketch for each number;
  sketch     |A Omega|^2 / m, and <A1 Omega, A2 Omega> / m, random signs Omega;
  outer      for partial traces: means of J p p^T J^T, each traced;
  basis x z  for partial traces: A on all coordinates of the kept axis, signs on the other
             (arXiv:2310.12364).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit
from tracekit import LinearOperator

from ..problems import DIMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Real = NDArray[np.float64]

APART = 51  # seeds of a second and a third sketch are those of no first one


def signs(A: LinearOperator, m: int, rng: np.random.Generator) -> Real:
    return rng.choice([-1.0, 1.0], (A.shape[0], m))


def price(A: LinearOperator) -> int:
    """Return the calls that a product with A costs."""
    return 1 if A.factor is None else 2


def forms(A: LinearOperator, U: Real, V: Real) -> Real:
    """Return u^T A v for all columns; two calls each through J^T, one through A."""
    if A.factor is None:
        return np.sum(U * (A @ V), axis=0)
    return np.sum((A.factor.H @ U) * (A.factor.H @ V), axis=0)


def cosine(X: Real, Y: Real) -> float:
    return float(np.vdot(X, Y)) / float(np.linalg.norm(X) * np.linalg.norm(Y))


def pairs_norm(A: LinearOperator, calls: int, seed: int) -> float:
    rng, m = np.random.default_rng(seed), calls // price(A)
    return math.sqrt(np.mean(forms(A, signs(A, m, rng), signs(A, m, rng)) ** 2))


def pairs_rank(A: LinearOperator, calls: int, seed: int) -> float:
    rng, m = np.random.default_rng(seed), calls // 2
    U, V = (A.factor.H @ signs(A, m, rng) for _ in range(2))
    return np.mean([U * U, V * V]) ** 2 * len(U) ** 2 / np.mean(np.sum(U * V, axis=0) ** 2)


def pairs_cosine(A: LinearOperator, B: LinearOperator, calls: int, seed: int) -> float:
    rng, m = np.random.default_rng(seed), calls // 4
    U, V = signs(A, m, rng), signs(A, m, rng)
    a, b = forms(A, U, V), forms(B, U, V)
    return np.mean(a * b) / math.sqrt(np.mean(a * a) * np.mean(b * b))


def squared_norm(A: LinearOperator, calls: int, seed: int) -> float:
    """Return the trace of A^2 by Hutch++."""
    return float(tracekit.hutchpp(tracekit.gram(A), calls // price(A), rng=seed))


def hutchpp_norm(A: LinearOperator, calls: int, seed: int) -> float:
    return math.sqrt(squared_norm(A, calls, seed))


def hutchpp_rank(A: LinearOperator, calls: int, seed: int) -> float:
    trace = float(tracekit.hutchpp(A, calls // 2, rng=APART + seed))
    return trace**2 / squared_norm(A, calls // 2, seed)


def hutchpp_cosine(A: LinearOperator, B: LinearOperator, calls: int, seed: int) -> float:
    product = LinearOperator(A.shape, lambda X: A @ (B @ X))
    inner = float(tracekit.hutchpp(product, calls // 12, rng=2 * APART + seed))
    norms = squared_norm(A, calls // 3, seed) * squared_norm(B, calls // 3, APART + seed)
    return inner / math.sqrt(norms)


def sketch_norm(A: LinearOperator, calls: int, seed: int) -> float:
    m = calls // price(A)
    Y = A @ signs(A, m, np.random.default_rng(seed))
    return float(np.linalg.norm(Y)) / math.sqrt(m)


def sketch_rank(A: LinearOperator, calls: int, seed: int) -> float:
    m = calls // price(A)
    Omega = signs(A, m, np.random.default_rng(seed))
    Y = A @ Omega
    return float(np.vdot(Omega, Y) / np.linalg.norm(Y)) ** 2 / m


def sketch_cosine(A: LinearOperator, B: LinearOperator, calls: int, seed: int) -> float:
    Omega = signs(A, calls // 4, np.random.default_rng(seed))
    return cosine(A @ Omega, B @ Omega)


def outer(axis: int) -> Callable[..., Real]:
    """Return the mean of the partial traces of J p p^T J^T, p of N(0, I)."""

    def method(A: LinearOperator, calls: int, seed: int) -> Real:
        p = np.random.default_rng(seed).standard_normal((A.factor.shape[1], calls))
        X = np.moveaxis((A.factor @ p).reshape(*DIMS["mlpimg"], calls), axis, 1)
        X = X.reshape(X.shape[0], -1)
        return X @ X.T / calls

    return method


def basis_times_signs(axis: int) -> Callable[..., Real]:
    """Return the mean of (I x z)^T A (I x z), z of signs on the traced axis."""
    kept, traced = DIMS["mlpimg"][1 - axis], DIMS["mlpimg"][axis]

    def method(A: LinearOperator, calls: int, seed: int) -> Real:
        rng, total, m = np.random.default_rng(seed), np.zeros((kept, kept)), calls // (2 * kept)
        for _ in range(m):
            z, eye = rng.choice([-1.0, 1.0], (traced, 1)), np.eye(kept)
            lift = np.kron(z, eye) if axis == 0 else np.kron(eye, z)
            total += lift.T @ (A @ lift)
        return total / m

    return method


METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "norm": {"pairs": pairs_norm, "Hutch++": hutchpp_norm, "sketch": sketch_norm},
    "effective rank": {"pairs": pairs_rank, "Hutch++": hutchpp_rank, "sketch": sketch_rank},
    "alignment": {"pairs": pairs_cosine, "Hutch++": hutchpp_cosine, "sketch": sketch_cosine},
    "outputs kept": {"outer": outer(0), "basis x z": basis_times_signs(0)},
    "samples kept": {"outer": outer(1), "basis x z": basis_times_signs(1)},
}
