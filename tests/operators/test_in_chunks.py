"""Dask arrays as operators: every scheduler, sparse chunks, and products that run once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from capabilities import CASES, Case
from conftest import matrix
from scipy import sparse

import tracekit as tk

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask.array is not installed")

N = 24
CHUNKS = ((7, 7, 10), (12, 12))
ADJOINTS = {"psd": "psd", "complex": "complex psd", "non-Hermitian": "real"}


def in_chunks(A: np.ndarray, chunks: Any = CHUNKS) -> Any:
    return da.from_array(A, chunks=chunks)


def positive(kind: str = "psd") -> np.ndarray:
    return matrix(kind, N) + 0.5 * np.eye(N)


@pytest.fixture(params=["synchronous", "threads", "distributed"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param != "distributed":
        with dask.config.set(scheduler=request.param, num_workers=2):
            yield request.param
        return
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        yield request.param


def test_every_scheduler_gives_the_products(scheduler: str) -> None:
    for kind in ("real", "complex psd"):
        A = matrix(kind, N) + 1j * (kind != "real") * matrix("real", N)
        lazy, X = tk.as_operator(in_chunks(A)), np.ones((N, 3), A.dtype) * [1, 2, 3]
        np.testing.assert_allclose(lazy.matmat(X), A @ X, rtol=1e-12)
        np.testing.assert_allclose(lazy.H.matmat(X), A.conj().T @ X, rtol=1e-12)
    estimate = tk.xnystrace(in_chunks(positive()), 8, rng=0)
    assert float(estimate) == pytest.approx(float(tk.xnystrace(positive(), 8, rng=0)), rel=1e-10)


of_chunks = [case for case in CASES if "dask" not in case.lacks]


@pytest.mark.parametrize("case", of_chunks, ids=lambda case: case.name)
def test_every_function_gives_what_numpy_does(case: Case) -> None:
    A = positive()
    X = in_chunks(A)
    operands = [X if np.ndim(x) == 2 else x for x in case.operands(A)]
    if len(operands) == 2 and operands[1] is X:
        operands[1] = in_chunks(A * A)
    with dask.config.set(scheduler="synchronous"):
        found = case.run(*operands, case.budget, rng=3)
    expected = case.read(case.run(*case.operands(A), case.budget, rng=3), A)
    np.testing.assert_allclose(case.read(found, A), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.coo_array, sparse.csc_matrix])
@pytest.mark.parametrize("kind", ["real", "complex psd"])
def test_chunks_may_be_sparse(form: Any, kind: str) -> None:
    A = np.where(np.abs(matrix(kind, N)) > 0.3, matrix(kind, N), 0)
    lazy = tk.as_operator(in_chunks(A).map_blocks(form, dtype=A.dtype))
    X = np.arange(2.0 * N).reshape(N, 2).astype(A.dtype)
    np.testing.assert_allclose(lazy.matmat(X), A @ X, rtol=1e-12)
    np.testing.assert_allclose(lazy.rmatmat(X), A.conj().T @ X, rtol=1e-12)
    assert complex(tk.trace(lazy).value) == pytest.approx(np.trace(A), rel=1e-12)
    assert complex(tk.exact_trace(lazy).value) == pytest.approx(np.trace(A), rel=1e-12)


def test_chunks_are_made_once_for_each_block_of_columns() -> None:
    A, made = positive(), []

    def count(chunk: np.ndarray) -> np.ndarray:
        made.append(chunk.shape)
        return chunk

    with dask.config.set(scheduler="synchronous"):
        lazy = in_chunks(A).map_blocks(count, dtype=A.dtype, meta=np.empty((0, 0)))
        made.clear()
        operator = tk.as_operator(lazy)
        assert made == []  # reading costs nothing
        tk.xtrace(operator, 12, rng=0)  # two blocks of products
    assert len(made) == 2 * 6


@pytest.mark.parametrize("chunks", [(N, N), (1, N), (5, 5), ((20, 4), (3, 21))])
def test_chunks_may_be_of_any_sizes(chunks: Any) -> None:
    A = matrix("real", N)
    lazy = in_chunks(A, chunks)
    with dask.config.set(scheduler="synchronous"):
        assert float(tk.exact_trace(lazy)) == pytest.approx(np.trace(A), rel=1e-12)
        assert float(tk.trace(lazy)) == pytest.approx(np.trace(A), rel=1e-12)
        X = np.ones((N, 2))
        np.testing.assert_allclose(tk.as_operator(lazy[:10]).rmatmat(X[:10]), A[:10].T @ X[:10])


def test_dtypes_are_those_of_the_core() -> None:
    A = np.arange(float(N * N)).reshape(N, N)
    for given, taken in (("int32", "float64"), ("float16", "float32"), ("float32", "float32")):
        lazy = tk.as_operator(in_chunks(A.astype(given)))
        assert lazy.dtype == np.dtype(taken)
        assert lazy.matmat(np.ones((N, 1), taken)).dtype == np.dtype(taken)


def test_tall_arrays_stay_in_chunks() -> None:
    """Test vectors are drawn chunk by chunk, and products and diagonals are of dask."""
    seen: list[tuple[int, ...]] = []

    def product(X: Any) -> Any:
        seen.extend(part.shape for part in X.blocks)
        return 2 * X

    chunks = (10, 3, 11)
    A = tk.LinearOperator((N, N), product, product, xp=da, layout=chunks)
    with dask.config.set(scheduler="synchronous"):
        assert float(tk.hutchinson(A, 9, rng=0)) == 2 * N
        assert {rows for rows, _ in seen} == set(chunks)
        found = tk.diagonal(A, 3, rng=0).value
        assert isinstance(found, tk.RowArray)
        assert found.local.chunks == (chunks,)
        np.testing.assert_allclose(np.asarray(found), 2)
        np.testing.assert_array_equal(
            np.asarray(tk.probes.rademacher(tk.probes.Source(0, A), N, 4)),
            tk.probes.rademacher(tk.probes.Source(0, tk.as_operator(np.eye(N))), N, 4),
        )


def test_chunks_have_to_add_up() -> None:
    with pytest.raises(ValueError, match="chunks of 20 rows, and the operator has 24"):
        tk.LinearOperator((N, N), lambda X: X, xp=da, layout=(10, 10))


def test_chunks_of_unknown_sizes_are_refused() -> None:
    A = in_chunks(np.eye(N))
    unknown = A[A[:, 0] >= 0]
    with pytest.raises(ValueError, match=r"unknown sizes; call its compute_chunk_sizes\(\) first"):
        tk.as_operator(unknown)
    assert float(tk.exact_trace(unknown.compute_chunk_sizes())) == N
    with pytest.raises(ValueError, match="two dimensions"):
        tk.as_operator(A[:, 0])
