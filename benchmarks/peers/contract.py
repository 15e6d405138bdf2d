"""What an adapter says of its library, and how columns through an operator are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

PSD_ONLY = frozenset({"XNysTrace", "XNysDiag"})  # asked of positive semidefinite problems alone


class Peer(NamedTuple):
    """A library: where it is found, what its arrays are, and what it has that tracekit has not."""

    name: str
    distribution: str
    version: str
    homepage: str
    arrays: str
    beyond: str


class Answer(NamedTuple):
    """A value, and the half-width of its nominal 95 % interval if the library tells one."""

    value: Any
    half_width: float | None = None


Run = Callable[[int], Answer]  # of a seed
Maker = Callable[[Any, int], Run]  # of an operator and a budget of products


class Counter:
    """Columns that have gone through an operator or its adjoint."""

    def __init__(self) -> None:
        self.products = 0

    def add(self, shape: Any, columns: int = 1) -> None:
        """Count a vector, or the columns (`columns` = 1) or rows (0) of a block."""
        self.products += 1 if len(shape) < 2 else int(shape[columns])


class Counted:
    """A square matrix, of NumPy or PyTorch, known by its products, which it counts."""

    __array_ufunc__ = None  # so that `block @ counted` comes here
    ndim = 2

    def __init__(self, matrix: Any, counter: Counter) -> None:
        self.matrix, self.counter = matrix, counter
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self.device = getattr(matrix, "device", None)

    def __matmul__(self, block: Any) -> Any:
        self.counter.add(block.shape)
        return self.matrix @ block

    def __rmatmul__(self, block: Any) -> Any:
        self.counter.add(block.shape, columns=0)
        return block @ self.matrix

    matvec = matmat = dot = __matmul__

    @property
    def T(self) -> Counted:
        """The transpose, which counts on the same counter."""
        return Counted(self.matrix.T, self.counter)

    @property
    def H(self) -> Counted:
        """The adjoint, which counts on the same counter."""
        return Counted(self.matrix.conj().T, self.counter)

    def adjoint(self) -> Counted:
        """Return the adjoint, as a method."""
        return self.H
