"""Estimators of Hazelden (2025), arXiv:2511.10796: Algorithms 1 and 2, Proposition 1.

They live here and not in the package because better ones cost the same: `tracekit.one_sided` has
about half the variance of Algorithm 2 or less, the estimators of `tracekit.one_sided_summary` have
a small part of that of Proposition 1, and `tracekit.xnystrace` needs a fraction of the products of
Algorithm 1. What the paper's own code does differently from its text is said where it matters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import tracekit as tk

Array = Any


def signs(L: tk.LinearOperator, rng: np.random.Generator, n: int, k: int) -> Array:
    """Random signs (n, k) in the operator's library."""
    return L.xp.asarray(2.0 * rng.integers(0, 2, (n, k), dtype=np.int8) - 1.0, dtype=L.dtype)


def allocation(m: int) -> tuple[int, int]:
    """Columns of the sketch and of the rest that the paper's code gives to Algorithm 1.

    It calls m the number of products. Two for each column of the sketch and one for each of the
    rest are about 3 m / 4: 45 for m = 60.
    """
    q = m // 6
    return q + (m - q) % 2, (m - q) // 2


def allowed(num_products: int) -> int:
    """The largest m of Algorithm 1 that spends no more products than this."""
    return max(m for m in range(8, 2 * num_products + 8) if _spent(m) <= num_products)


def _spent(m: int) -> int:
    sketch, rest = allocation(m)
    return 2 * sketch + rest


def hutchpp(A: tk.LinearOperator, m: int, rng: np.random.Generator) -> float:
    """Algorithm 1, with the allocation of the paper's code: the trace of A, known by its products.

    A product with ``J J^T`` is one forward-mode and one reverse-mode call, also where only the
    quadratic form is wanted.
    """
    n, (k, s) = A.shape[0], allocation(m)
    S, T = signs(A, rng, n, k), signs(A, rng, n, s)
    Q, _ = A.xp.linalg.qr(A.matmat(S))
    T = T - Q @ (Q.T @ T)
    return float(A.xp.sum(Q * A.matmat(Q)) + A.xp.sum(T * A.matmat(T)) / s)


def hutchpp_norm(A: tk.LinearOperator, m: int, rng: np.random.Generator) -> float:
    """The Frobenius norm, by Algorithm 1 on A A^T: a product costs two with A."""
    return math.sqrt(hutchpp(_product(A, A), m, rng))


def hutchpp_alignment(
    A: tk.LinearOperator, B: tk.LinearOperator, m: int, rng: np.random.Generator
) -> float:
    """The cosine of A and B by three runs of Algorithm 1, each on a product of two operators."""
    dot, first, second = (hutchpp(_product(X, Y), m, rng) for X, Y in ((A, B), (A, A), (B, B)))
    return dot / math.sqrt(first * second)


def hutchpp_effective_rank(A: tk.LinearOperator, m: int, rng: np.random.Generator) -> float:
    """The effective rank of A, by two runs of Algorithm 1: on A and on its square."""
    return hutchpp(A, m, rng) ** 2 / hutchpp(_product(A, A), m, rng)


def _product(A: tk.LinearOperator, B: tk.LinearOperator) -> tk.LinearOperator:
    """A B, its quadratic form by the product alone."""
    return tk.LinearOperator(
        A.shape, lambda X: A.matmat(B.matmat(X)), dtype=A.dtype, xp=A.xp, device=A.device
    )


def split_trace(
    L: tk.LinearOperator, m: int, rng: np.random.Generator, share: float = 0.5
) -> float:
    """Algorithm 2: the trace of L L^H from m products with L^H, a share of them on a basis.

    The paper's code takes a sixth. The basis is that of random signs, orthonormalised; what lies
    outside of it is estimated by sign probes, projected. The orthonormalisation is not optional:
    without it the mean is not the trace.
    """
    n, k = L.shape[0], max(1, math.floor(share * m))
    Q, _ = L.xp.linalg.qr(signs(L, rng, n, k))
    T = signs(L, rng, n, m - k)
    T = T - Q @ (Q.T @ T)
    on_basis, outside = (L.xp.sum(L.H.matmat(X) ** 2) for X in (Q, T))
    return float(on_basis + outside / (m - k))


def unorthogonalised_trace(L: tk.LinearOperator, m: int, rng: np.random.Generator) -> float:
    """Algorithm 2 with its orthonormalisation left out, as the paper allows: not the trace."""
    n, k = L.shape[0], m // 2
    S, T = signs(L, rng, n, k), signs(L, rng, n, m - k)
    T = T - S @ (S.T @ T)
    on_basis, outside = (L.xp.sum(L.H.matmat(X) ** 2) for X in (S, T))
    return float(on_basis + outside / (m - k))


def paired_moments(
    L1: tk.LinearOperator, L2: tk.LinearOperator, m: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    r"""Proposition 1: inner product and squared norms of two Grams, by independent pairs.

    m products with both adjoints together. Of a pair of independent probes u and v,
    :math:`\langle L_1^H u, L_1^H v \rangle \langle L_2^H u, L_2^H v \rangle` has the mean
    :math:`\mathrm{tr}(L_1 L_1^H L_2 L_2^H)`: the statement in the paper has the factors of its
    second half in the wrong order, :math:`J_4 J_3^T` for :math:`J_3 J_4^T`.
    """
    n, pairs, xp = L1.shape[0], m // 4, L1.xp
    U, V = signs(L1, rng, n, pairs), signs(L1, rng, n, pairs)
    first, second = (xp.sum(L.H.matmat(U) * L.H.matmat(V), axis=0) for L in (L1, L2))
    means = (xp.mean(x * y) for x, y in ((first, second), (first, first), (second, second)))
    dot, norm1, norm2 = map(float, means)
    return dot, norm1, norm2


def paired_effective_rank(L: tk.LinearOperator, m: int, rng: np.random.Generator) -> float:
    """The effective rank of L L^H by the same pairs; the paper does not square the numerator."""
    n, pairs, xp = L.shape[0], m // 2, L.xp
    JU, JV = (L.H.matmat(signs(L, rng, n, pairs)) for _ in range(2))
    trace = float(xp.sum(JU * JU) + xp.sum(JV * JV)) / (2 * pairs)
    return trace**2 / float(xp.mean(xp.sum(JU * JV, axis=0) ** 2))
