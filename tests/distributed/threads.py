"""Processes as threads: each runs the same program, and their sums meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tracekit as tk

Allsum = Callable[[Any], Any]


def together(cuts: Sequence[int], program: Callable[[tk.RowLayout], Any]) -> list[Any]:
    """What the program gives, or raises, in each of the processes that hold rows between cuts."""
    size = len(cuts) - 1
    told: list[Any] = [None] * size
    found: list[Any] = [None] * size
    meeting = threading.Barrier(size, timeout=60)

    def allsum(rank: int) -> Allsum:
        def add(x: Any) -> Any:
            told[rank] = x
            meeting.wait()
            total = sum(told[1:], told[0])
            meeting.wait()
            return total

        return add

    def run(rank: int) -> None:
        layout = tk.RowLayout(slice(cuts[rank], cuts[rank + 1]), allsum(rank), rank, size)
        try:
            found[rank] = program(layout)
        except BaseException as error:  # handed to the test
            found[rank] = error
            if isinstance(error, AssertionError):
                meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def divided(A: np.ndarray, layout: tk.RowLayout) -> tk.LinearOperator:
    """A matrix of which each process holds rows; its products gather the vectors of all."""
    mine, (m, n) = layout.rows, A.shape
    rows, columns = A[mine], np.ascontiguousarray(A[:, mine].conj().T)

    def gathered(X: np.ndarray, size: int) -> np.ndarray:
        whole = np.zeros((size, X.shape[1]), X.dtype)
        whole[mine] = X
        return np.asarray(layout.allsum(whole))

    if m == n:
        return tk.LinearOperator(
            A.shape, lambda X: rows @ gathered(X, n), lambda X: columns @ gathered(X, m),
            dtype=A.dtype, layout=layout,
        )  # fmt: skip
    return tk.LinearOperator(  # of few columns, whose vectors are whole
        A.shape, lambda X: rows @ X, lambda X: np.asarray(layout.allsum(rows.conj().T @ X)),
        dtype=A.dtype, layout=layout,
    )  # fmt: skip


def whole(found: Sequence[Any]) -> np.ndarray:
    """One array of what all processes give."""
    for error in found:
        if isinstance(error, BaseException):
            raise error
    first = found[0]
    if isinstance(first, tk.RowArray):
        return np.concatenate([part.local for part in found], axis=first.axis)
    for other in found[1:]:
        np.testing.assert_array_equal(other, first)
    return np.asarray(first)
