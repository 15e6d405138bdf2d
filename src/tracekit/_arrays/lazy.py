"""A matrix in chunks that dask holds, as products with vectors of NumPy."""

from __future__ import annotations

import math
import operator
import sys
from functools import reduce
from typing import Any

import numpy as np

from .libraries import Array, DType, Product, floating, np_compat


def in_chunks(A: Any) -> dict[str, Any]:
    """Products, dtype and trace of a dask array of two dimensions, in any chunks."""
    if any(math.isnan(size) for sizes in A.chunks for size in sizes):
        raise ValueError(
            f"a dask array of shape {tuple(A.shape)} has chunks of unknown sizes; call its "
            "compute_chunk_sizes() first"
        )
    dtype = floating(A.dtype, np_compat)
    matmat, rmatmat = _products(A, dtype)
    exact = {"entries": lambda: _trace_of(A, dtype)} if A.shape[0] == A.shape[1] else None
    return {"matmat": matmat, "rmatmat": rmatmat, "dtype": dtype, "exact": exact}


def _products(A: Any, dtype: DType) -> tuple[Product, Product]:
    """The products with a dask array and its adjoint: one call of its scheduler for each block.

    A chunk is multiplied where it is, dense or sparse, by the rows of the vectors that it meets.
    """
    dask = sys.modules["dask"]

    def product(X: Array, *, adjoint: bool) -> np.ndarray:
        chunks = A.to_delayed()
        chunks, sizes = (chunks.T, A.chunks[0]) if adjoint else (chunks, A.chunks[1])
        ends = np.cumsum(sizes)
        parts = [  # each goes to the workers once
            dask.delayed(np.ascontiguousarray(X[end - k : end]), traverse=False)
            for k, end in zip(sizes, ends, strict=True)
        ]
        multiply = dask.delayed(_adjoint_times if adjoint else _times)
        rows = [
            dask.delayed(_total)([multiply(c, x, dtype) for c, x in zip(row, parts, strict=True)])
            for row in chunks
        ]
        return np.concatenate(dask.compute(*rows), axis=0)

    return lambda X: product(X, adjoint=False), lambda X: product(X, adjoint=True)


def _trace_of(A: Any, dtype: DType) -> Any:
    """The sum of the entries on the diagonal, of the chunks that it goes through."""
    dask, chunks = sys.modules["dask"], A.to_delayed()
    first, second = (np.cumsum([0, *sizes]) for sizes in A.chunks)
    parts = [
        dask.delayed(_trace)(chunks[i, j], int(first[i] - second[j]), dtype)
        for i, j in np.ndindex(*chunks.shape)
        if first[i] < second[j + 1] and second[j] < first[i + 1]
    ]
    return np.asarray(sum(dask.compute(*parts)), dtype=dtype)


def _times(chunk: Any, X: np.ndarray, dtype: DType) -> Any:
    return _in(chunk, dtype) @ X


def _adjoint_times(chunk: Any, X: np.ndarray, dtype: DType) -> Any:
    return (_in(chunk, dtype).T @ X.conj()).conj()


def _trace(chunk: Any, offset: int, dtype: DType) -> Any:
    return chunk.diagonal(offset).sum(dtype=dtype)


def _in(chunk: Any, dtype: DType) -> Any:
    return chunk if chunk.dtype == dtype else chunk.astype(dtype)


def _total(parts: list[Any]) -> Any:
    return reduce(operator.add, parts)
