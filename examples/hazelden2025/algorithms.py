"""One-sided estimators of Hazelden (2025), arXiv:2511.10796: Algorithm 2 and Proposition 1.

They live here and not in the package because better ones cost the same: `tracekit.one_sided` has
about half the variance of Algorithm 2 or less, and the estimators of `tracekit.one_sided_summary`
have a small part of that of Proposition 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import tracekit as tk

Array = np.ndarray[Any, Any]


def split_trace(
    L: tk.LinearOperator, m: int, rng: np.random.Generator, share: float = 0.5
) -> float:
    """Algorithm 2: the trace of L L^H from m products with L^H, a share of them on a basis.

    The basis is a random orthonormal one; what lies outside of it is estimated by sign probes,
    projected. The orthonormalisation is not optional: without it the mean is not the trace.
    """
    n, k = L.shape[0], max(1, math.floor(share * m))
    Q = np.linalg.qr(rng.standard_normal((n, k)))[0]
    V = rng.choice([-1.0, 1.0], (n, m - k))
    V = V - Q @ (Q.T @ V)
    on_basis = np.sum(L.H.matmat(Q) ** 2)
    return float(on_basis + np.sum(L.H.matmat(V) ** 2) / (m - k))


def paired_moments(
    L1: tk.LinearOperator, L2: tk.LinearOperator, m: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    r"""Proposition 1: inner product and squared norms of two Grams, by independent pairs.

    m products with both adjoints together. Of a pair of independent probes u and v,
    :math:`\langle L_1^H u, L_1^H v \rangle \langle L_2^H u, L_2^H v \rangle` has the mean
    :math:`\mathrm{tr}(L_1 L_1^H L_2 L_2^H)`: the statement in the paper has the factors of its
    second half in the wrong order, :math:`J_4 J_3^T` for :math:`J_3 J_4^T`.
    """
    n, pairs = L1.shape[0], m // 4
    U, V = rng.choice([-1.0, 1.0], (2, n, pairs))
    first, second = (np.sum(L.H.matmat(U) * L.H.matmat(V), axis=0) for L in (L1, L2))
    means = np.mean(first * second), np.mean(first * first), np.mean(second * second)
    return float(means[0]), float(means[1]), float(means[2])


def paired_effective_rank(L: tk.LinearOperator, m: int, rng: np.random.Generator) -> float:
    """The effective rank of L L^H by the same pairs; the paper does not square the numerator."""
    n, pairs = L.shape[0], m // 2
    U, V = rng.choice([-1.0, 1.0], (2, n, pairs))
    JU, JV = L.H.matmat(U), L.H.matmat(V)
    trace = (np.sum(JU * JU) + np.sum(JV * JV)) / (2 * pairs)
    return float(trace**2 / np.mean(np.sum(JU * JV, axis=0) ** 2))
