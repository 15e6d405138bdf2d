"""Matrices of known trace that the benchmark scripts share."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

SPECTRA = ("i^-2", "i^-0.5", "1+U(0,1)", "0.7^i")


def spectrum(name: str, n: int) -> NDArray[np.float64]:
    """Eigenvalues of a positive definite matrix, by the name of their law."""
    i = np.arange(1, n + 1, dtype=np.float64)
    laws: dict[str, Callable[[], NDArray[np.float64]]] = {
        "i^-2": lambda: i**-2,
        "i^-0.5": lambda: i**-0.5,
        "1+U(0,1)": lambda: 1 + np.random.default_rng(0).random(n),
        "0.7^i": lambda: 0.7**i,
    }
    return laws[name]()


@cache
def haar(n: int) -> NDArray[np.float64]:
    """One n by n orthogonal matrix, drawn from the Haar law and kept."""
    Q, R = np.linalg.qr(np.random.default_rng(1).standard_normal((n, n)))
    return Q * np.sign(np.diagonal(R))


@cache
def dense(name: str, n: int) -> tuple[NDArray[np.float64], float]:
    """Return a dense symmetric matrix in a random eigenbasis, and its trace.

    The basis matters: random signs are exact on a diagonal matrix.
    """
    L, trace = factor(name, n)
    A = L @ L.T
    return (A + A.T) / 2, trace


@cache
def factor(name: str, n: int) -> tuple[NDArray[np.float64], float]:
    """Return L, where the dense matrix is ``L @ L.T``, and the trace of that matrix."""
    d = spectrum(name, n)
    return haar(n) * np.sqrt(d), math.fsum(d)


def triangles() -> tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], int, float]:
    """Return the product by A^3, its size and its trace, of the digits' 10-neighbour graph.

    A is the 0-1 adjacency of scikit-learn's 1797 handwritten digits, each joined to its ten
    nearest others; the trace of A^3 is six times the number of triangles. A^3 is indefinite.
    """
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    directed = kneighbors_graph(load_digits().data, 10, include_self=False)
    A = directed.maximum(directed.T).tocsr()
    return lambda X: A @ (A @ (A @ X)), A.shape[0], float(((A @ A).multiply(A)).sum())


def in_two_processes(work: Callable[..., Any], *columns: Iterable[Any]) -> Iterator[Any]:
    """Map `work` over the columns on at most two processes; yield each result when it is there."""
    with ProcessPoolExecutor(2) as pool:
        yield from pool.map(work, *columns)
