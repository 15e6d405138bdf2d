"""Second derivatives of functions of matrices are refused: they would be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracekit as tk

N = 60
X = np.random.default_rng(0).standard_normal((N, 3))
SQUARED = np.sum((X[:, None] - X) ** 2, axis=-1)
CALLS: dict[str, Any] = {
    "logdet": lambda A: tk.logdet(A, 30, rng=0, depth=6),
    "sqrt": lambda A: tk.trace_function(A, tk.functions.sqrt, 30, rng=0, depth=6),
    "run": lambda A: tk.spectral_run(A, 30, rng=0, depth=6).logdet(),
    "norm": lambda A: tk.nuclear_norm(A, 30, rng=0, depth=5),
}


@pytest.mark.parametrize("name", CALLS)
def test_pytorch_refuses_graphs_of_gradients(name: str) -> None:
    torch = pytest.importorskip("torch")
    l = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)  # noqa: E741

    def value() -> Any:
        A = torch.exp(-torch.asarray(SQUARED) / (2 * l * l)) + 0.1 * torch.eye(N)
        return CALLS[name](A).value

    (first,) = torch.autograd.grad(value(), l)
    assert torch.isfinite(first)
    with pytest.raises(NotImplementedError, match=r"first derivatives only.*create_graph"):
        torch.autograd.grad(value(), l, create_graph=True)


def of_one_number(call: Any) -> Any:
    """What a function finds, as a function in JAX of the width of a kernel."""
    jnp = pytest.importorskip("jax").numpy

    def value(l: Any) -> Any:  # noqa: E741
        A = jnp.exp(-jnp.asarray(SQUARED) / (2 * l * l)) + 0.1 * jnp.eye(N)
        return call(A).value

    return value


@pytest.mark.parametrize("name", CALLS)
def test_jax_refuses_gradients_of_gradients(name: str) -> None:
    value, jax = of_one_number(CALLS[name]), pytest.importorskip("jax")
    assert np.isfinite(jax.jit(jax.grad(value))(1.5))
    for second in (jax.grad(jax.grad(value)), jax.hessian(value)):
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            jax.jit(second)(1.5)


def test_jax_refuses_them_where_nothing_is_compiled() -> None:
    """One operation at a time, of which there are few."""
    value = of_one_number(lambda A: tk.logdet(A, 8, rng=0, depth=2, deflate=0))
    jax = pytest.importorskip("jax")
    assert np.isfinite(jax.grad(value)(1.5))
    for second in (jax.grad(jax.grad(value)), jax.hessian(value)):
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            second(1.5)
