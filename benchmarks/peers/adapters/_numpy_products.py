"""Matrices in NumPy, for all of its libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MODES = ("NumPy",)


def bare(matrix: np.ndarray, m: int, mode: str) -> Callable[[], Any]:
    """Return the product with a block of m columns."""
    X = np.random.default_rng(0).standard_normal((len(matrix), m))
    return lambda: matrix @ X
