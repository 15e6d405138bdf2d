"""Matrices in PyTorch, for all of its libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract import Counted, Counter

MODES = ("PyTorch",)


def operator(matrix: np.ndarray, counter: Counter | None) -> Any:
    """Return the matrix as a tensor, or as an operator that counts."""
    import torch

    torch.set_num_threads(1)
    A = torch.as_tensor(matrix)
    return A if counter is None else Counted(A, counter)


def bare(matrix: np.ndarray, m: int, mode: str) -> Callable[[], Any]:
    """Return the product with a block of m columns."""
    A = operator(matrix, None)
    X = operator(np.random.default_rng(0).standard_normal((len(matrix), m)), None)
    return lambda: A @ X
