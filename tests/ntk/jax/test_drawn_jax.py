"""Exact numbers and operators of JAX functions drawn at random, held to plain gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from drawn_jax import Drawn  # noqa: E402

import tracekit_ntk as tkn  # noqa: E402

DRAWS = 40


def products(f: Any, params: Any, x: Any) -> Any:
    """The kernel by products with the operator."""
    n = int(np.prod(jax.eval_shape(f, params, x).shape))
    K = tkn.ntk(lambda p: f(p, x), params)
    return K @ jnp.eye(n, dtype=K.dtype)


NUMBERS = {
    "trace": tkn.ntk_trace,
    "diagonal": lambda *given: jnp.ravel(tkn.ntk_diagonal(*given)),
    "norm": tkn.ntk_norm,
    "kernel": lambda *given: tkn.kernel_matrix(tkn.kernel(*given)),
    "products": products,
}


def numbers(names: Iterable[str], *given: Any) -> dict[str, Any]:
    return {name: NUMBERS[name](*given) for name in names}


def wanted(J: np.ndarray) -> dict[str, Any]:
    K = J @ J.conj().T
    return {
        "trace": np.trace(K).real, "diagonal": np.diag(K).real, "norm": np.linalg.norm(K),
        "kernel": K, "products": K,
    }  # fmt: skip


def differences(found: dict[str, Any], J: np.ndarray) -> list[float]:
    """Relative to the largest entry."""
    right = wanted(J)
    return [
        float(np.max(np.abs(np.asarray(a) - right[name])) / max(np.max(np.abs(right[name])), 1e-30))
        for name, a in found.items()
    ]


def verdict(seed: int, *, most: int = 4) -> str:
    """What is found for a drawn function, anew whenever what it closes over has changed.

    Eagerly twice, products and one number in turn, since each operation is then compiled by
    itself; and in one program of all numbers.
    """
    drawn = Drawn(seed, most)
    some = (list(NUMBERS)[seed % 4], "products")

    def eager(p: Any, x: Any) -> dict[str, Any]:
        return numbers(some, drawn.f, p, x)

    compiled = jax.jit(lambda p, x: numbers(NUMBERS, drawn.f, p, x))
    for run in (eager, eager, compiled):
        try:
            found = run(drawn.params, drawn.x)
        except (ValueError, NotImplementedError) as error:
            return f"refused: {error}"
        worst = max(differences(found, drawn.jacobian()))
        if not worst < 1e-9:
            return f"wrong by {worst:.1e}{' compiled' * (run is compiled)}: {drawn.names}"
        drawn.change()
    return "right"


@pytest.mark.filterwarnings("ignore:the output of f does not depend")
@pytest.mark.parametrize("first", range(0, DRAWS, 10))
def test_drawn_functions(first: int) -> None:
    found = {seed: verdict(seed, most=1) for seed in range(first, first + 10)}
    refused = [seed for seed, what in found.items() if what.startswith("refused")]
    assert {seed: what for seed, what in found.items() if what.startswith("wrong")} == {}
    assert len(refused) <= 1
