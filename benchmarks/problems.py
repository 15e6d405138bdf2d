"""Matrices, graphs, Jacobians and a training run of known answers, which the benchmarks share.

All are in float64 and always the same. What asv runs on is in `asv/_problems.py`: asv loads that
folder as a package of its own, which reaches nothing beside it.
"""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Real = NDArray[np.float64]
    Network = Callable[[NDArray[Any]], NDArray[Any]]
    Product = Callable[[Real], Real]

SPECTRA: dict[str, Callable[[Real], Real]] = {  # eigenvalues of positive definite matrices
    "i^-2": lambda i: i**-2.0,
    "i^-0.5": lambda i: i**-0.5,
    "1+U(0,1)": lambda i: 1 + np.random.default_rng(0).random(i.size),
    "0.7^i": lambda i: 0.7**i,
}

# --- dense matrices -------------------------------------------------------------------------------


def spectrum(name: str, n: int) -> Real:
    """Return n eigenvalues, by the name of their law."""
    return SPECTRA[name](np.arange(1.0, n + 1))


def orthonormal(n: int, k: int, rng: np.random.Generator) -> tuple[Real, Real]:
    """Return k orthonormal columns, and the signs that make them Haar distributed."""
    Q, R = np.linalg.qr(rng.standard_normal((n, k)))
    return Q, np.sign(np.diagonal(R))


@cache
def haar(n: int) -> Real:
    """Return one n by n orthogonal matrix, drawn from the Haar law and kept."""
    Q, signs = orthonormal(n, n, np.random.default_rng(1))
    return Q * signs


@cache
def factor(name: str, n: int) -> tuple[Real, float]:
    """Return L, where the dense matrix is ``L @ L.T``, and the trace of that matrix."""
    d = spectrum(name, n)
    return haar(n) * np.sqrt(d), math.fsum(d)


@cache
def dense(name: str, n: int) -> tuple[Real, float]:
    """Return a dense symmetric matrix in a random eigenbasis, and its trace.

    The basis matters: random signs are exact on a diagonal matrix.
    """
    L, trace = factor(name, n)
    return symmetric(L @ L.T), trace


def symmetric(A: NDArray[Any]) -> NDArray[Any]:
    """Return the Hermitian part."""
    return (A + A.conj().T) / 2


@cache
def covariance(name: str) -> tuple[Real, float]:
    """Return a positive definite matrix of statistics, and the logarithm of its determinant.

    "rbf": digits, by a Gaussian kernel as wide as the median distance, and noise; "Matern": 2000
    points in a square, smoothness 3/2, and noise; "flat": eigenvalues uniform between 1 and 2.
    """
    if name == "flat":
        Q = haar(2000)
        A = (Q * spectrum("1+U(0,1)", 2000)) @ Q.T
    elif name == "rbf":
        A = gaussian_kernel(digits())
    else:
        r = np.sqrt(3 * squared_distances(np.random.default_rng(0).random((2000, 2)))) / 0.3
        A = (1 + r) * np.exp(-r) + 1e-2 * np.eye(2000)
    A = symmetric(A)
    return A, float(np.linalg.slogdet(A)[1])


def gaussian_kernel(X: Real) -> Real:
    """Return the Gaussian kernel of rows, as wide as their median distance, and noise of 1e-2."""
    D2 = squared_distances(X)
    return symmetric(np.exp(-D2 / (2 * np.median(D2))) + 1e-2 * np.eye(len(X)))


def squared_distances(X: Real) -> Real:
    square = np.sum(X * X, axis=1)
    return np.maximum(square[:, None] + square - 2 * X @ X.T, 0.0)


def digits() -> Real:
    """Return the 1797 handwritten digits of scikit-learn, one a row."""
    from sklearn.datasets import load_digits

    return load_digits().data


# --- matrices known by their products -------------------------------------------------------------


def triangles() -> tuple[Product, int, float]:
    """Return the product by A^3, its size and its trace, of the digits' 10-neighbour graph.

    A is the 0-1 adjacency of the digits, each joined to its ten nearest others; the trace of A^3 is
    six times the number of triangles. A^3 is indefinite.
    """
    from sklearn.neighbors import kneighbors_graph

    directed = kneighbors_graph(digits(), 10, include_self=False)
    A = directed.maximum(directed.T).tocsr()
    return lambda X: A @ (A @ (A @ X)), A.shape[0], float(((A @ A).multiply(A)).sum())


def diagonal_plus_rank_three(n: int) -> tuple[Product, float]:
    """Return the product with ``diag(d) + U @ U.T``, which holds one block, and its trace."""
    d = 1 + np.arange(n, dtype=np.float64) / n
    U = np.random.default_rng(0).standard_normal((n, 3))
    U *= math.sqrt(0.1)

    def product(X: Real) -> Real:
        Y = U @ (U.T @ X)
        for j in range(X.shape[1]):  # a whole block d * X would be one more block in memory
            Y[:, j] += d * X[:, j]
        return Y

    return product, float(np.sum(d) + np.sum(U * U))


MESH = 320  # nodes on a side


def mesh() -> Any:
    """Return the adjacency of a square mesh."""
    from scipy import sparse

    path = sparse.diags_array([np.ones(MESH - 1)] * 2, offsets=[-1, 1])
    one = sparse.eye_array(MESH)
    return (sparse.kron(path, one) + sparse.kron(one, path)).tocsr()


def neighbours(n: int = 100_000) -> Any:
    """Return the adjacency of points in a square, each joined to its six nearest others."""
    from scipy import sparse
    from scipy.spatial import cKDTree

    points = np.random.default_rng(0).random((n, 2))
    near = cKDTree(points).query(points, 7)[1][:, 1:]
    entries = np.ones(6 * n), (np.repeat(np.arange(n), 6), near.ravel())
    W = sparse.coo_array(entries, (n, n)).tocsr()
    return W.maximum(W.T).tocsr()


def laplacian(W: Any) -> Any:
    """Return the Laplacian of a graph."""
    from scipy import sparse

    return (sparse.diags_array(W.sum(axis=1)) - W).tocsr()


# --- Jacobians ------------------------------------------------------------------------------------

DIMS: dict[str, tuple[int, ...]] = {  # tensor shapes of the outputs of networks
    "mlp": (40, 10),  # samples, classes
    "mlpimg": (60, 10),
    "rnn": (8, 8, 12),  # samples, time, hidden units
}
PRESCRIBED = ("i^-2", "i^-0.5")  # spectra of J J^T
STEP = 1e-30


@cache
def jacobian(name: str, drift: float = 0.0) -> Real:
    """Return the Jacobian called `name`; a network's at parameters moved by `drift` N(0, 1)."""
    if name in PRESCRIBED:
        return prescribed(name)
    f, theta = recurrent() if name == "rnn" else perceptron(name)
    moved = theta + drift * np.random.default_rng(1).standard_normal(theta.size)
    return derivative(f, moved)


def prescribed(name: str, n: int = 512, P: int = 700) -> Real:
    """Return J of a named spectrum of J J^T, between random orthonormal bases."""
    rng = np.random.default_rng(0)
    left, signs = orthonormal(n, n, rng)
    right, _ = orthonormal(P, n, rng)
    return (left * signs * np.sqrt(spectrum(name, n))) @ right.T


def derivative(f: Network, theta: Real) -> Real:
    """Return the Jacobian of f at theta, by complex steps: no digits are lost."""
    columns = []
    for p in range(theta.size):
        stepped = theta.astype(np.complex128)
        stepped[p] += 1j * STEP
        columns.append(f(stepped).imag / STEP)
    return np.stack(columns, axis=1)


def perceptron(name: str) -> tuple[Network, Real]:
    """Return a tanh network on its data, as a function of its parameters, and parameters."""
    rng, (samples, classes) = np.random.default_rng(0), DIMS[name]
    X = images(samples, rng) if name == "mlpimg" else rng.standard_normal((samples, 16))
    shapes = list(pairwise((X.shape[1], 24, 24, classes)))
    theta = rng.standard_normal(sum(a * c + c for a, c in shapes))
    return partial(outputs, shapes=shapes, X=X), theta


def outputs(theta: NDArray[Any], shapes: list[tuple[int, int]], X: Real) -> NDArray[Any]:
    """Run dense layers with tanh between them, of weights and biases that follow one another."""
    offset, h = 0, X
    for layer, (a, c) in enumerate(shapes, start=1):
        weight = theta[offset : offset + a * c].reshape(a, c)
        bias = theta[offset + a * c : offset + a * c + c]
        offset += a * c + c
        h = h @ weight / np.sqrt(a) + 0.1 * bias
        h = np.tanh(h) if layer < len(shapes) else h
    return h.reshape(-1)


def images(samples: int, rng: np.random.Generator, classes: int = 10) -> Real:
    """Return noisy 8 by 8 images of one bump each, in a place that depends on the class."""
    line = np.linspace(-1, 1, 8)
    x, y = np.meshgrid(line, line)
    places = rng.uniform(-0.6, 0.6, (classes, 2))
    rows = []
    for i in range(samples):
        a, b = places[i % classes] + 0.15 * rng.standard_normal(2)
        width = 0.35 + 0.1 * rng.random()
        bump = np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * width**2))
        rows.append(bump.ravel() + 0.05 * rng.standard_normal(64))
    return 2 * np.array(rows)


def recurrent(inputs: int = 5) -> tuple[Network, Real]:
    """Return the states of a tanh recurrence at all times, as a function of its parameters."""
    rng = np.random.default_rng(0)
    samples, steps, hidden = DIMS["rnn"]
    X = rng.standard_normal((steps, samples, inputs))
    theta = rng.standard_normal(hidden * hidden + inputs * hidden + hidden)

    def states(theta: NDArray[Any]) -> NDArray[Any]:
        recur = theta[: hidden * hidden].reshape(hidden, hidden) / np.sqrt(hidden)
        enter = theta[hidden * hidden : -hidden].reshape(inputs, hidden) / np.sqrt(inputs)
        h, seen = np.zeros((samples, hidden), dtype=theta.dtype), []
        for x in X:
            h = np.tanh(h @ recur + x @ enter + 0.1 * theta[-hidden:])
            seen.append(h)
        return np.stack(seen, axis=1).reshape(-1)

    return states, theta


# --- a training run -------------------------------------------------------------------------------

CHECKPOINTS, EVERY, RATE, BATCH = 61, 10, 0.3, 100
SAMPLES, CLASSES, WIDTH = 60, 10, 24


@cache
def training() -> list[Real]:
    """Return square factors of the kernels at all checkpoints of a network that learns digits."""
    from sklearn.datasets import load_digits

    X, labels = digits() / 16, load_digits().target
    Y = np.eye(CLASSES)[labels]
    seen = [np.flatnonzero(labels == c)[: SAMPLES // CLASSES] for c in range(CLASSES)]
    sample, rng = X[np.concatenate(seen)], np.random.default_rng(0)
    sizes = (X.shape[1], WIDTH, WIDTH, CLASSES)
    weights = [rng.standard_normal(shape) / shape[0] ** 0.5 for shape in pairwise(sizes)]
    found = []
    for step in range((CHECKPOINTS - 1) * EVERY + 1):
        if step % EVERY == 0:
            J = jacobian_of(weights, sample)
            found.append(np.linalg.qr(J.T, mode="r").T)  # the same kernel
        batch = rng.integers(0, len(X), BATCH)
        h = layers(weights, X[batch])
        p = np.exp(h[-1] - h[-1].max(axis=1, keepdims=True))
        G = (p / p.sum(axis=1, keepdims=True) - Y[batch]) / BATCH
        slopes = []
        for i in reversed(range(len(weights))):
            slopes.insert(0, h[i].T @ G)
            G = (G @ weights[i].T) * (1 - h[i] ** 2)
        weights = [W - RATE * slope for W, slope in zip(weights, slopes, strict=True)]
    return found


def layers(weights: list[Real], X: Real) -> list[Real]:
    """Return the inputs of all layers, and the outputs."""
    h = [X]
    for i, W in enumerate(weights, start=1):
        h.append(np.tanh(h[-1] @ W) if i < len(weights) else h[-1] @ W)
    return h


def jacobian_of(weights: list[Real], X: Real) -> Real:
    """Return the derivatives of all outputs by all weights."""
    h, parts = layers(weights, X), []
    G = np.broadcast_to(np.eye(CLASSES), (len(X), CLASSES, CLASSES))
    for i in reversed(range(len(weights))):
        parts.append(np.einsum("np,noq->nopq", h[i], G).reshape(len(X) * CLASSES, -1))
        G = (G @ weights[i].T) * (1 - h[i] ** 2)[:, None, :]
    return np.concatenate(parts, axis=1)
