"""Exact numbers and operators of JAX functions drawn at random, held to plain gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from drawn_jax import Drawn  # noqa: E402

import tracekit_ntk as tkn  # noqa: E402

DRAWS = 40


def numbers(f: Any, params: Any, x: Any) -> list[Any]:
    """Trace, diagonal, norm and kernel, and the kernel by products with the operator."""
    n = int(np.prod(jax.eval_shape(f, params, x).shape))
    K = tkn.ntk(lambda p: f(p, x), params)
    return [
        tkn.ntk_trace(f, params, x), jnp.ravel(tkn.ntk_diagonal(f, params, x)),
        tkn.ntk_norm(f, params, x), tkn.kernel_matrix(tkn.kernel(f, params, x)),
        K @ jnp.eye(n, dtype=K.dtype),
    ]  # fmt: skip


def wanted(J: np.ndarray) -> list[Any]:
    K = J @ J.conj().T
    return [np.trace(K).real, np.diag(K).real, np.linalg.norm(K), K, K]


def differences(found: list[Any], J: np.ndarray) -> list[float]:
    """Relative to the largest entry."""
    return [
        float(np.max(np.abs(np.asarray(a) - b)) / max(np.max(np.abs(b)), 1e-30))
        for a, b in zip(found, wanted(J), strict=True)
    ]


def verdict(seed: int, *, most: int = 4) -> str:
    """What is found for a drawn function, anew whenever what it closes over has changed.

    Eagerly twice, and in one program of all numbers.
    """
    drawn = Drawn(seed, most)

    def eager(p: Any, x: Any) -> list[Any]:
        return numbers(drawn.f, p, x)

    compiled = jax.jit(eager)
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
