"""A user's program, fully typed: what mypy and pyright must understand of an installed tracekit."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import tracekit as tk
import tracekit_ntk as tkn


def blur(X: NDArray[np.float64]) -> NDArray[np.float64]:
    return (X + np.roll(X, 1, axis=0) + np.roll(X, -1, axis=0)) / 3


def estimates() -> dict[str, tk.Estimate]:
    A = tk.LinearOperator((100, 100), blur, blur, dtype=np.dtype(np.float64), xp=np)
    assert_type(A.shape, tuple[int, int])
    assert_type(A.H, tk.LinearOperator)
    assert_type(tk.gram(A), tk.LinearOperator)
    counted, counter = tk.counted(A)
    assert_type(counted, tk.LinearOperator)
    estimate = tk.xtrace(counted, 30, rng=0)
    assert_type(estimate, tk.Estimate)
    assert_type(estimate.num_matvecs, int)
    assert_type(estimate.method, str)
    assert_type(float(estimate), float)
    low, high = estimate.confidence_interval(0.9)
    assert low <= estimate.value <= high
    assert counter.matvecs == estimate.num_matvecs
    return {
        "trace": tk.trace(A, rtol=0.1, rng=np.random.default_rng(0)),
        "norm": tk.spectral_summary(A, 30, rng=0).frobenius_norm,
        "diagonal": tk.diagonal(A, 30, rng=0, probes=tk.probes.rademacher),
        "logdet": tk.logdet(np.eye(100), 30, rng=0),
        "partial": tk.partial_trace(A, (4, 25), 1, 2, rng=0),
    }


def jacobian(J: NDArray[np.float64]) -> tk.LinearOperator:
    def pushforward(T: Any) -> Any:
        return J @ T

    def pullback(U: Any) -> Any:
        return J.T @ U

    return tkn.jacobian_from_pair(pushforward, pullback, (5, 8), dtype=J.dtype, xp=np)


def mistakes() -> None:
    """What a checker is to find: each line is refused, or the comment on it is."""
    tk.xtrace(np.eye(3), 3, num_probes=2)  # type: ignore[call-arg]
    tk.xtrace(np.eye(3), "many")  # type: ignore[arg-type]
    tk.Estimate.quartiles  # type: ignore[attr-defined]  # noqa: B018


if __name__ == "__main__":
    for name, estimate in estimates().items():
        print(name, estimate.num_matvecs)
    print(tk.exact_trace(jacobian(np.ones((5, 8))) @ jacobian(np.ones((5, 8))).H))
