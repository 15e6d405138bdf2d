"""A basis that the caller gives for part of an operator's space."""

from __future__ import annotations

from typing import Any

from .._arrays import Array, is_array, is_complex, namespace
from .linear_operator import LinearOperator


def checked_basis(A: LinearOperator, basis: Any, num_matvecs: int, left: int) -> Array:
    """The basis, if its columns fit the operator's rows and leave so many of the products."""
    n, shape = A.shape[0], tuple(getattr(basis, "shape", ()))
    if not is_array(basis) or namespace(basis) is not A.xp:
        raise TypeError(
            f"basis is {type(basis).__name__}, not an array of {A.xp.__name__}; convert it"
        )
    most = min(num_matvecs, n) - left
    if len(shape) != 2 or shape[0] != n or not 0 < shape[1] <= most:
        raise ValueError(
            f"basis of shape {shape} does not suit dimension {n} and {num_matvecs} products; pass "
            f"orthonormal columns (n, k) with k of at most {most}"
        )
    if is_complex(basis) and not is_complex(A):
        raise TypeError("a complex basis does not suit a real operator; pass a real one")
    return basis
