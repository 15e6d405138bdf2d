"""The rows of the table of capabilities that a law is held by, and operators to hold it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from capabilities import CASES, Case, N
from conftest import Library, installed, matrix

import tracekit as tk

SEED = 3


def law(name: str, *, blocks: bool = False) -> Any:
    """Over every case that does not lack the law."""
    held = [case for case in CASES if name not in case.lacks and (case.blocks or not blocks)]
    return pytest.mark.parametrize("case", held, ids=lambda case: case.name)


def positive(kind: str = "psd") -> np.ndarray:
    """A well-conditioned positive definite matrix, or one that is not Hermitian."""
    return matrix(kind, N) + 0.5 * np.eye(N)


def libraries() -> list[Library]:
    """One of each array library; compiled code stands for JAX."""
    return list(installed("numpy-readonly", "strict:device1", "torch", "cupy"))


def run(case: Case, A: Any, *, budget: int | None = None, rng: Any = SEED, **more: Any) -> Any:
    """What a case finds."""
    return case.run(*case.operands(A), case.budget if budget is None else budget, rng=rng, **more)


def numbers(case: Case, found: Any, A: np.ndarray) -> np.ndarray:
    """What is read of it, on the host."""
    return np.asarray(case.read(found, A))


def black_box(A: np.ndarray) -> tk.LinearOperator:
    """An operator that is known by its products."""
    return tk.LinearOperator(
        A.shape, lambda X: A @ X, lambda X: A.conj().T @ X, dtype=A.dtype, xp=None
    )
