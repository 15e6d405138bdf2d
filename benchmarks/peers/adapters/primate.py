"""scikit-primate: implicit traces and functions of symmetric operators, in NumPy and C++."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from ..contract import Answer, Counted, Counter, Peer, Run
from ._numpy_products import MODES, bare  # noqa: F401

PEER = Peer(
    "scikit-primate",
    "scikit-primate",
    "0.5.6",
    "https://github.com/peekxc/primate",
    "NumPy",
    "stopping rules that are combined with `and` and `or`; the knee of a sequence; Lanczos in C++; "
    "Toeplitz operators",
)
DEPTHS = (10, 20, 40)
METHODS = {
    "trace": ("Hutchinson", "Hutch++", "XTrace"),
    "diagonal": ("Hutchinson", "XDiag"),
    "logdet": tuple(f"SLQ, depth {depth}" for depth in DEPTHS),
}


class _Enough(Exception):
    """Ends an estimator whose budget is spent: xtrace heeds no other limit than n columns."""


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed."""
    A = matrix if counter is None else Counted(matrix, counter)
    if quantity == "logdet":
        return _logdet(matrix, m, int(method.split()[-1]), counter)
    return lambda seed: _run(quantity, method, A, m, seed)


def _run(quantity: str, method: str, A: Any, m: int, seed: int) -> Answer:
    from primate import diagonal, trace

    if quantity == "diagonal":
        if method == "XDiag":
            return Answer(diagonal.xdiag(A, m - m % 2, seed=seed))
        return Answer(np.asarray(diagonal.diag(A, converge="count", count=m, seed=seed)))
    if method == "Hutchinson":
        found = trace.hutch(A, batch=m, converge="count", count=m, seed=seed, full=True)
        return _answer(*found)
    if method == "Hutch++":  # k becomes k + k % 3
        k = max(k for k in range(m // 3 + 1) if k + k % 3 <= m // 3)
        return Answer(np.asarray(trace.hutchpp(A, m=k, seed=seed)))
    kept = []

    def stop(result: Any) -> None:
        kept.append(_answer(result.estimate, result))
        raise _Enough

    with contextlib.suppress(_Enough):
        trace.xtrace(A, batch=m // 2, seed=seed, callback=stop)
    return kept[0]


def _answer(value: Any, result: Any) -> Answer:
    from primate.estimators import ConfidenceCriterion

    margin, _ = ConfidenceCriterion(0.95)._error(result.estimator)
    return Answer(np.asarray(value), float(np.squeeze(margin)))


def _logdet(matrix: np.ndarray, m: int, depth: int, counter: Counter | None) -> Run:
    from primate.operators import matrix_function
    from primate.trace import hutch

    probes, A = m // depth, matrix
    if counter is not None:
        from scipy.sparse.linalg import LinearOperator

        def product(v: np.ndarray) -> np.ndarray:
            counter.add(())
            return matrix @ v

        A = LinearOperator(matrix.shape, matvec=product, dtype=matrix.dtype)
    M = matrix_function(A, fun=np.log, deg=depth)

    def run(seed: int) -> Answer:
        return _answer(
            *hutch(M, seed=seed, converge="count", count=probes, batch=probes, full=True)
        )

    return run


def tolerance(matrix: np.ndarray, rtol: float, counter: Counter, psd: bool) -> dict[str, Run]:
    """Return what stops by itself."""
    from primate.trace import hutch

    def by(rule: str) -> Run:
        A = Counted(matrix, counter)
        options = {"confidence": {"rtol": rtol, "atol": 0.0}, "tolerance": {"rtol": rtol}}[rule]

        def run(seed: int) -> Answer:
            found = hutch(A, batch=32, converge=rule, seed=seed, full=True, **options)
            return Answer(np.asarray(found[0]))

        return run

    return {"hutch, confidence": by("confidence"), "hutch, tolerance": by("tolerance")}
