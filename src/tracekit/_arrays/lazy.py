"""Tall arrays in chunks of rows that dask holds, and matrices of its chunks as operators."""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import array_api_compat
import numpy as np

from .libraries import Array, Device, DType, Namespace, Product, floating, np_compat, plain
from .row_functions import row_namespace
from .rows import Rows


@dataclass(frozen=True)
class LazyRows(Rows):
    """Chunks of rows: each array is computed once, when it is made, where its chunks are."""

    chunks: tuple[int, ...] = ()

    def kept(self, local: Any, axis: int) -> Any:
        """The array in these chunks, computed."""
        da, chunks = sys.modules["dask.array"], self._chunks(local.ndim, axis)
        lazy: Any = local if array_api_compat.is_dask_array(local) else da.from_array(local)
        return lazy.rechunk(chunks).persist()

    def total(self, x: Any) -> Array:
        """A small array, computed."""
        return np.asarray(x)

    def stacked(self, x: Any) -> list[Array]:
        """The same as a list of one."""
        return [np.asarray(x)]

    def spread(self, local: Any, axis: int) -> Array:
        """All rows on the host, where they are few."""
        return np.asarray(local)

    def small(self, x: Any) -> Array:
        """What a product gives that has no long axis, computed."""
        return np.asarray(x)

    def gathered(self, local: Any) -> np.ndarray:
        """All rows on the host."""
        return np.asarray(local)

    def qr(self, Y: Any) -> tuple[Any, Array]:
        """``Q R = Y`` by reflections of the chunks and of their triangles."""
        dask = sys.modules["dask"]
        factor, multiply = dask.delayed(np.linalg.qr, nout=2), dask.delayed(np.matmul)
        pairs = dask.persist(*[factor(part) for part in self._parts(Y, -2)])
        triangles = dask.compute(*[R for _, R in pairs])
        U, R = np.linalg.qr(np.concatenate(triangles, axis=-2))
        ends = np.cumsum([0, *(T.shape[-2] for T in triangles)])
        parts = [
            multiply(Q, U[..., start:stop, :])
            for (Q, _), start, stop in zip(pairs, ends, ends[1:], strict=False)
        ]
        return self.joined(parts, (*Y.shape[:-2], self.n, R.shape[-1]), -2, Y.dtype), R

    def rows(self, n: int) -> Any:
        """The numbers of n rows as a column."""
        da = sys.modules["dask.array"]
        if n != self.n:
            return np.arange(n)[:, None]
        return self.whole(da.arange(n, chunks=(self.chunks,))[:, None])

    def assemble(self, shape: tuple[int, int], part: Callable[[range], Array]) -> Any:
        """What `part` draws, chunk by chunk, where the workers are."""
        if shape[0] != self.n:
            return part(range(shape[0]))
        draw = sys.modules["dask"].delayed(part, pure=True)
        ends = itertools.accumulate(self.chunks)
        made = [draw(range(end - k, end)) for k, end in zip(self.chunks, ends, strict=True)]
        return self.joined(made, shape, -2, part(range(0)).dtype)

    def joined(self, parts: list[Any], shape: tuple[int, ...], axis: int, dtype: DType) -> Any:
        """One array of chunks that are made by themselves."""
        da = sys.modules["dask.array"]
        sizes = [
            tuple(k if i == len(shape) + axis else size for i, size in enumerate(shape))
            for k in self.chunks
        ]
        chunks = [
            da.from_delayed(part, size, dtype=dtype)
            for part, size in zip(parts, sizes, strict=True)
        ]
        return da.concatenate(chunks, axis=axis)

    def _parts(self, Y: Any, axis: int) -> list[Any]:
        return list(Y.rechunk(self._chunks(Y.ndim, axis)).to_delayed().reshape(-1))

    def _chunks(self, ndim: int, axis: int) -> tuple[Any, ...]:
        return tuple(self.chunks if i == ndim + axis else -1 for i in range(ndim))


def lazy_rows(
    chunks: tuple[int, ...], shape: tuple[int, int], xp: Namespace, device: Device
) -> LazyRows:
    """A layout by chunks of rows for the long axis, or both axes, of an operator."""
    n = max(shape)
    if any(math.isnan(size) for size in chunks) or sum(chunks) != n:
        raise ValueError(
            f"`layout` has chunks of {sum(chunks)} rows, and the operator has {n}; pass sizes that "
            "add up to it"
        )
    return LazyRows(n, 0, n, 0, 1, _itself, row_namespace(plain(xp)), device, chunks=tuple(chunks))


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
    layout = A.chunks[0] if A.shape[0] >= A.shape[1] else A.chunks[1]
    return {
        "matmat": matmat, "rmatmat": rmatmat, "dtype": dtype, "exact": exact, "layout": layout,
    }  # fmt: skip


def _products(A: Any, dtype: DType) -> tuple[Product, Product]:
    """The products with a dask array and its adjoint: one call of its scheduler for each block.

    A chunk is multiplied where it is, dense or sparse, by the rows of the vectors that it meets.
    """
    dask, da = sys.modules["dask"], sys.modules["dask.array"]

    def product(X: Any, *, adjoint: bool) -> Any:
        chunks = A.to_delayed()
        sizes, made = A.chunks[::-1]
        if adjoint:
            chunks, sizes, made = chunks.T, made, sizes
        X = da.asarray(X).rechunk((sizes, -1))
        multiply, k = dask.delayed(_adjoint_times if adjoint else _times), X.shape[1]
        parts, kind = X.to_delayed()[:, 0], np.result_type(dtype, X.dtype)
        rows = [
            dask.delayed(_total)([multiply(c, x, dtype) for c, x in zip(row, parts, strict=True)])
            for row in chunks
        ]
        return da.concatenate(
            [da.from_delayed(y, (size, k), dtype=kind) for y, size in zip(rows, made, strict=True)]
        )

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


def _itself(x: Array) -> Array:
    return x


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
