"""What the benchmarks run on: operators of every library, estimators by name, small networks."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit as tk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._backends import NumPy

    Array = Any

RANK, KEPT = 3, 4  # of the operator's random part; entries of a side of the partial trace


def partial_trace(A: Any, m: int, *, rng: Any) -> tk.Estimate:
    """All but a factor of dimension `KEPT` traced; a probe is `KEPT` columns."""
    return tk.partial_trace(A, (tk.as_operator(A).shape[0] // KEPT, KEPT), 0, m // KEPT, rng=rng)


def target_alignment(A: Any, m: int, *, rng: Any) -> tk.Estimate:
    """The alignment with targets of which all are one."""
    A = tk.as_operator(A)
    y = A.xp.ones(A.shape[0], dtype=A.dtype, device=A.device)
    return tk.target_alignment(A, y, m, rng=rng)


TRACES: dict[str, Callable[..., tk.Estimate]] = {
    "hutchinson": tk.hutchinson,
    "hutchpp": tk.hutchpp,
    "nahutchpp": tk.nahutchpp,
    "xtrace": tk.xtrace,
    "xnystrace": tk.xnystrace,
    "one_sided": tk.one_sided,
}
QUANTITIES: dict[str, Callable[..., tk.Estimate]] = {
    "diagonal": tk.diagonal,
    "xdiag": tk.xdiag,
    "xnysdiag": tk.xnysdiag,
    "partial_trace": partial_trace,
    "frobenius_norm": tk.frobenius_norm,
    "effective_rank": tk.effective_rank,
    "target_alignment": target_alignment,
    "logdet": tk.logdet,
}
ESTIMATORS = TRACES | QUANTITIES


def numbers(lib: NumPy, n: int) -> tuple[Array, Array]:
    """Return d and U of the operator ``diag(d) + U U^T``, positive definite."""
    rng = np.random.default_rng(0)
    d, U = 1 + rng.random((n, 1)), rng.standard_normal((n, RANK))
    return lib.asarray(d), lib.asarray(U / 3)


def operator(lib: NumPy, d: Array, U: Array) -> tk.LinearOperator:
    """Return ``diag(d) + U U^T``, known by its products alone: they cost next to nothing."""

    def product(X: Array) -> Array:
        return d * X + U @ (U.T @ X)

    n = d.shape[0]
    return tk.LinearOperator((n, n), product, product, dtype=d.dtype, xp=lib.xp, device=lib.device)


def dense(n: int) -> np.ndarray:
    """Make a dense positive definite matrix, of eigenvalues between 1 and 2, in O(n^2)."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((n, 1))
    d, v = 1 + rng.random(n), v / np.linalg.norm(v)
    half = np.diag(d) - 2 * v * (d * v[:, 0])  # of a reflection on both sides
    return half - 2 * (half @ v) @ v.T


def perceptron(
    lib: NumPy, sizes: Sequence[int], samples: int
) -> tuple[Callable[[Any, Array], Array], list[Array], Array]:
    """Make a ReLU network without biases in single precision: function, parameters, inputs."""
    draw = np.random.default_rng(0).standard_normal
    params = [draw((a, b), np.float32) * np.float32((2 / a) ** 0.5) for a, b in pairwise(sizes)]
    x = draw((samples, sizes[0]), np.float32)

    def f(params: Any, x: Array) -> Array:
        for layer, W in enumerate(params, start=1):
            x = x @ W
            x = x * (x > 0) if layer < len(params) else x
        return x

    return f, [lib.asarray(W) for W in params], lib.asarray(x)


def recurrence(
    lib: NumPy, sizes: tuple[int, int, int], steps: int, samples: int
) -> tuple[Callable[[Any, Array], Array], list[Array], Array]:
    """Make a tanh recurrence, whose weights are read once a step: function, parameters, inputs."""
    draw, (inputs, width, outputs) = np.random.default_rng(0).standard_normal, sizes
    shapes = ((inputs, width), (width, width), (width, outputs))
    params = [draw(shape, np.float32) * np.float32(shape[0] ** -0.5) for shape in shapes]
    x = draw((samples, steps, inputs), np.float32)

    def f(params: Any, x: Array) -> Array:
        enter, recur, leave = params
        h = lib.xp.tanh(x[:, 0] @ enter)
        for t in range(1, steps):
            h = lib.xp.tanh(h @ recur + x[:, t] @ enter)
        return h @ leave

    return f, [lib.asarray(W) for W in params], lib.asarray(x)
