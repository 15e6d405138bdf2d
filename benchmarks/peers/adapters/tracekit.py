"""tracekit, on the arrays of NumPy, PyTorch and JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract import Answer, Counter, Peer, Run

PEER = Peer("tracekit", "tracekit-linalg", "", "", "NumPy, PyTorch, JAX, CuPy", "")
MODES = ("NumPy", "PyTorch", "JAX", "JAX, jitted")
METHODS = {
    "trace": {
        "Hutchinson": "hutchinson",
        "Hutch++": "hutchpp",
        "NA-Hutch++": "nahutchpp",
        "XTrace": "xtrace",
        "XNysTrace": "xnystrace",
    },
    "diagonal": {"Hutchinson": "diagonal", "XDiag": "xdiag", "XNysDiag": "xnysdiag"},
    "norm": {"frobenius_norm": "frobenius_norm"},
    "logdet": {"logdet": "logdet"},
}


def array(matrix: np.ndarray, mode: str) -> Any:
    """Return the matrix in the library of a mode."""
    if mode == "NumPy":
        return matrix
    if mode == "PyTorch":
        import torch

        torch.set_num_threads(1)
        return torch.as_tensor(matrix)
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax.numpy.asarray(matrix)


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed."""
    import tracekit as tk

    function, A = getattr(tk, METHODS[quantity][method]), array(matrix, mode)
    if counter is not None:
        counted, inner = tk.counted(A)

        def counting(seed: int) -> Answer:
            answer = _answer(function(counted, m, rng=seed))
            counter.products = inner.total
            return answer

        return counting
    if mode == "JAX, jitted":
        import jax

        compiled = jax.jit(lambda A, key: function(A, m, rng=key))
        return lambda seed: _answer(compiled(A, jax.random.key(seed)))
    return lambda seed: _answer(function(A, m, rng=seed))


def _answer(estimate: Any) -> Answer:
    value = np.asarray(estimate.value)
    if value.ndim:
        return Answer(value)
    low, high = estimate.confidence_interval(0.95)
    return Answer(value, (float(high) - float(low)) / 2)


def bare(matrix: np.ndarray, m: int, mode: str) -> Callable[[], Any]:
    """Return the product with a block of m columns."""
    A = array(matrix, mode)
    X = array(np.random.default_rng(0).standard_normal((len(matrix), m)), mode)
    if mode.startswith("JAX"):
        import jax

        product = jax.jit(lambda A, X: A @ X)
        return lambda: product(A, X).block_until_ready()
    return lambda: A @ X


def tolerance(matrix: np.ndarray, rtol: float, counter: Counter, psd: bool) -> dict[str, Run]:
    """Return what stops by itself."""
    import tracekit as tk

    def run(seed: int) -> Answer:
        # known by its products alone: the entries of a matrix would be read
        products = (lambda X: matrix @ X), (lambda X: matrix.T @ X)
        A, inner = tk.counted(tk.LinearOperator(matrix.shape, *products, dtype=matrix.dtype))
        answer = _answer(tk.trace(A, rtol=rtol, rng=seed, psd=psd or None))
        counter.products = inner.total
        return answer

    return {"trace": run}


def kernels(
    weights: list[np.ndarray], X: np.ndarray
) -> dict[str, tuple[Callable[[], Any], Callable[[Any], np.ndarray]]]:
    """Return the exact kernel of a ReLU network by each framework, and how to make it a matrix."""
    return {"PyTorch": _torch_kernel(weights, X), "JAX, jitted": _jax_kernel(weights, X)}


def _network(relu: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def f(params: dict[str, Any], x: Any) -> Any:
        for k, W in enumerate(params.values()):
            x = (relu(x) if k else x) @ W
        return x

    return f


def _torch_kernel(weights: list[np.ndarray], X: np.ndarray) -> Any:
    import torch

    import tracekit_ntk as tkn

    torch.set_num_threads(1)
    params = {f"w{k:02}": torch.as_tensor(W) for k, W in enumerate(weights)}
    f, x = _network(torch.relu), torch.as_tensor(X)
    return (lambda: tkn.kernel(f, params, x)), tkn.kernel_matrix


def _jax_kernel(weights: list[np.ndarray], X: np.ndarray) -> Any:
    import jax

    import tracekit_ntk as tkn

    params = {f"w{k:02}": jax.numpy.asarray(W) for k, W in enumerate(weights)}
    f, x = _network(jax.nn.relu), jax.numpy.asarray(X)
    made = jax.jit(lambda p, x: tkn.kernel(f, p, x))
    return (lambda: made(params, x).block_until_ready()), tkn.kernel_matrix
