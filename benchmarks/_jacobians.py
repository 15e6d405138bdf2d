"""Jacobians J of small networks, and dense J of a prescribed spectrum of J J^T, by name.

`jacobian(name)` is of shape (n, P), in float64, always the same, and exact to rounding: derivatives
of networks are taken by complex steps. `DIMS` gives the tensor shape of a network's n outputs:
(samples, classes), for "rnn" (samples, time, hidden units).
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Real = NDArray[np.float64]
    Network = Callable[[NDArray[Any]], NDArray[Any]]

DIMS: dict[str, tuple[int, ...]] = {
    "mlp": (40, 10),
    "mlpdeep": (24, 20),
    "mlpimg": (60, 10),
    "rnn": (8, 8, 12),
}
SPECTRA: dict[str, Callable[[Real], Real]] = {
    "i^-2": lambda i: i**-2.0,
    "i^-0.5": lambda i: i**-0.5,
    "flat": lambda i: np.linspace(1, 3, i.size),
    "0.7^i": lambda i: 0.7 ** (i - 1),
    "step": lambda i: np.where(i <= 50, 1.0, 1e-3),
}
NAMES = (*DIMS, *SPECTRA)
STEP = 1e-30


class Layers(NamedTuple):
    """Width and number of the dense layers of a network, and how many numbers it puts out."""

    width: int
    depth: int
    outputs: int

    def shapes(self, inputs: int) -> list[tuple[int, int]]:
        """Of the weights, in order."""
        sizes = [inputs, *[self.width] * (self.depth - 1), self.outputs]
        return list(pairwise(sizes))


LAYERS = {"mlp": Layers(24, 3, 10), "mlpdeep": Layers(20, 8, 20), "mlpimg": Layers(24, 3, 10)}


@cache
def jacobian(name: str, drift: float = 0.0) -> Real:
    """Return the Jacobian called `name`; a network's at parameters moved by `drift` N(0, 1)."""
    if name in SPECTRA:
        return prescribed(name)
    f, theta = recurrent() if name == "rnn" else perceptron(name)
    moved = theta + drift * np.random.default_rng(1).standard_normal(theta.size)
    return derivative(f, moved)


def prescribed(name: str, n: int = 512, P: int = 700) -> Real:
    """Return J of a named spectrum of J J^T, between random orthonormal bases."""
    rng = np.random.default_rng(0)
    left, signs = orthonormal(n, n, rng)
    right, _ = orthonormal(P, n, rng)
    eigenvalues = SPECTRA[name](np.arange(1.0, n + 1))
    return (left * signs * np.sqrt(eigenvalues)) @ right.T


def orthonormal(n: int, k: int, rng: np.random.Generator) -> tuple[Real, Real]:
    """Return k orthonormal columns, and the signs that make them Haar distributed."""
    Q, R = np.linalg.qr(rng.standard_normal((n, k)))
    return Q, np.sign(np.diagonal(R))


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
    rng, layers = np.random.default_rng(0), LAYERS[name]
    samples = DIMS[name][0]
    inputs = {"mlp": 16, "mlpdeep": 24}
    X = images(samples, rng) if name == "mlpimg" else rng.standard_normal((samples, inputs[name]))
    shapes = layers.shapes(X.shape[1])
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
