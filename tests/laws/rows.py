"""The rows of the table of capabilities that a law is held by, and operators to hold it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from capabilities import CASES, Case
from conftest import Library, installed
from test_capabilities import SEED, positive  # noqa: F401

import tracekit as tk


def law(name: str, *, blocks: bool = False) -> Any:
    """Over every case that does not lack the law."""
    held = [case for case in CASES if name not in case.lacks and (case.blocks or not blocks)]
    return pytest.mark.parametrize("case", held, ids=lambda case: case.name)


def forms() -> Any:
    """Of an operator as it is given, and of L L^H by its factor, where the law is of both."""
    return pytest.mark.parametrize("make", [tk.as_operator, tk.gram], ids=["plain", "factor"])


def libraries() -> list[Library]:
    """One of each array library but JAX, which has the cases in `test_capabilities`."""
    return list(installed("numpy-readonly", "strict:device1", "torch", "cupy"))


def operands(case: Case, A: Any, make: Any = tk.as_operator) -> tuple[Any, ...]:
    """What the case is called with; what is no matrix is handed on."""
    if make is tk.gram and "factor" in case.lacks:
        pytest.skip(f"{case.name} {case.lacks['factor']}")
    if make is tk.as_operator:
        return case.operands(A)
    return tuple(make(X) if X.ndim == 2 else X for X in case.operands(A))


def run(case: Case, A: Any, make: Any = tk.as_operator, *, rng: Any = SEED, **more: Any) -> Any:
    """What a case finds."""
    return case.run(*operands(case, A, make), more.pop("budget", case.budget), rng=rng, **more)


def numbers(case: Case, found: Any, A: np.ndarray) -> np.ndarray:
    """What is read of it, on the host."""
    return np.asarray(case.read(found, A))
