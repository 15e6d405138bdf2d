"""What equal samples, long sums, work buffers and wrong adjoints are not allowed to hide."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import Library
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from scipy.sparse.linalg import aslinearoperator

import tracekit as tk
from tracekit import _arrays
from tracekit.testing import linearity_test

PAIR = np.eye(60)
PAIR[0, 1] = PAIR[1, 0] = 50.0
GRAPH = np.zeros((60, 60))
GRAPH[0, 1:4] = GRAPH[1:4, 0] = 1.0
CYCLE = np.zeros((60, 60))
CYCLE[np.ix_([0, 1], [2, 3])] = CYCLE[np.ix_([2, 3], [0, 1])] = 1.0
SWAPS = np.kron(np.eye(30), [[0.0, 1.0], [1.0, 0.0]])
INTEGERS = {"ones": np.ones((60, 60)), "pair": PAIR, "graph": GRAPH, "cycle": CYCLE, "swaps": SWAPS}


# Equal samples --------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 4, 7, 12])
@pytest.mark.parametrize("estimator", [tk.hutchinson, tk.hutchpp, tk.nahutchpp])
@pytest.mark.parametrize("name", INTEGERS)
def test_samples_that_tie_by_chance_are_not_exact(name: str, estimator: Any, m: int) -> None:
    A = INTEGERS[name]
    wrong = 0
    for seed in range(100):
        estimate = estimator(A, m, rng=seed)
        off = abs(float(estimate) - np.trace(A)) > 1e-9
        wrong += off and float(estimate.standard_error) < 1e-9
    assert wrong <= 3


@pytest.mark.parametrize("form", ["counted", "gram", "one_sided"])
def test_of_forms_that_tell_nothing_more(form: str) -> None:
    L = np.eye(60)
    L[0, 1:3] = 1.0  # |l . x|^2 is 1 with probability 3/4, 9 else
    for m in (2, 4, 8, 14):
        wrong = 0
        for seed in range(100):
            if form == "one_sided":
                estimate = tk.one_sided(L.T, m, rng=seed, probes=tk.probes.rademacher)
            else:
                A = tk.gram(L.T) if form == "gram" else tk.counted(tk.as_operator(L.T @ L))[0]
                estimate = tk.hutchinson(A, m, rng=seed)
            off = abs(float(estimate) - np.sum(L * L)) > 1e-9
            wrong += off and float(estimate.standard_error) < 1e-9
        assert wrong <= 3


def test_entries_that_tie_by_chance_are_not_exact() -> None:
    for m in (2, 3, 6):
        for estimate, truth in (
            (tk.diagonal(SWAPS, m, rng=m), np.zeros(60)),
            (tk.diagonal(tk.gram(np.eye(60) + SWAPS), m, rng=m), np.full(60, 2.0)),
            (tk.block_traces(SWAPS, (15, 4), 1, m, rng=m), np.zeros(15)),
            (tk.partial_trace(SWAPS, (4, 15), 1, m, rng=m), np.zeros((4, 4))),
        ):
            off = np.abs(estimate.value - truth) > 1e-9
            assert not np.any(off & (estimate.standard_error < 1e-9))


def test_what_is_diagonal_is_exact_from_seven_signs_on(lib: Library) -> None:
    A = lib.array(np.diag(np.arange(1.0, 21.0)))
    for m, error in ((6, math.inf), (7, 0.0)):
        estimate = lib.estimate(tk.hutchinson, A, m)
        assert float(estimate.value) == 210.0
        assert float(estimate.standard_error) == error


def test_phases_do_not_tie_by_chance() -> None:
    estimate = tk.hutchinson(np.diag(np.arange(9) + 1j), 2, rng=0)
    assert float(estimate.standard_error) < 1e-12
    assert float(tk.hutchinson(PAIR + 0j, 2, rng=0).standard_error) > 1e-3


def test_all_of_a_population_is_exact() -> None:
    K = np.kron(np.eye(10), np.ones((3, 3)))
    law = tk.probes.tiled(tk.probes.orthogonal, 10)
    assert float(tk.hutchinson(K, 3, rng=0, probes=law).standard_error) == 0


# Long sums in single precision ----------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("k", [1, 3])
def test_long_sums_keep_single_precision(k: int, order: Any) -> None:
    n = 3 * 10**6 + 7
    X = np.full((n, k), 0.4, dtype=np.float32, order=order)
    square = float(X[0, 0]) ** 2 * n
    for found in (
        _arrays.colnorm2(X),
        _arrays.coldot(X, X),
        _arrays.inner(X, X),
        _arrays.norm2(X) / k,
    ):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.asarray(found, np.float64), square, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_long_traces_keep_single_precision(chunk_size: int | None) -> None:
    n = 10**6
    A = sp.diags_array(np.full(n, 0.4, dtype=np.float32)).tocsr()
    truth = float(np.float32(0.4)) * n
    estimate = tk.hutchinson(A, 3, rng=0, chunk_size=chunk_size)
    assert float(estimate.value) == pytest.approx(truth, rel=1e-6)
    blocks = tk.block_traces(A, (2, n // 2), 1, 3, rng=0, chunk_size=chunk_size)
    np.testing.assert_allclose(blocks.value, truth / 2, rtol=1e-6)


def test_sums_are_those_of_any_library(lib: Library) -> None:
    X = np.random.default_rng(0).standard_normal((1000, 3))
    found = lib.numpy(lib.call(_arrays.colsum, lib.array(X)))
    np.testing.assert_allclose(found, X.sum(axis=0), atol=1e3 * lib.eps)


def test_a_spike_that_a_sketch_knows_does_not_vouch_for_the_bulk() -> None:
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 40)))[0]
    held = 0
    for seed in range(20):
        A = (Q * np.r_[1e6, np.ones(39)]) @ Q.T
        op = tk.LinearOperator(A.shape, lambda X, A=A: A @ X, lambda X, A=A: A.T @ X)
        low, high = tk.trace(op, num_matvecs=20, rng=seed).confidence_interval()
        held += bool(low <= 1e6 + 39 <= high)
    assert held >= 16


def test_probes_that_all_miss_a_rank_of_one_are_no_wrong_adjoint() -> None:
    A = np.ones((40, 40))
    op = tk.LinearOperator(A.shape, lambda X: A @ X, lambda X: A.T @ X)
    found = [tk.nahutchpp(op, 8, rng=seed) for seed in range(600)]  # one in 50 misses it all
    error = np.array([float(x.standard_error) for x in found])
    off = np.array([abs(float(x) - 40) for x in found])
    assert np.mean(off <= 1e-9 + 13 * error) > 0.9
    assert not np.any((error == 0) & (off > 1e-6))
    assert np.any(off > 1)


def test_an_entry_of_many_that_is_equal_by_chance_is_not_exact() -> None:
    A = np.kron(np.eye(100), np.ones((2, 2)))
    op = tk.LinearOperator(A.shape, lambda X: A @ X)
    unknown = 0
    for seed in range(5):
        x = tk.diagonal(op, 8, rng=seed)
        unknown += int(np.sum(np.isinf(x.standard_error)))
        assert not np.any((x.standard_error == 0) & (np.abs(x.value - 1) > 1e-9))
    assert unknown > 0
    assert np.all(tk.diagonal(tk.LinearOperator((200, 200), lambda X: 3 * X), 8, rng=0)
                  .standard_error == 0)  # fmt: skip


# Work buffers ---------------------------------------------------------------------------------


def _whole(A: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    kept: dict[int, np.ndarray] = {}

    def product(X: np.ndarray) -> np.ndarray:
        buffer = kept.setdefault(X.shape[1], np.empty(X.shape))
        return np.matmul(A, X, out=buffer)

    return product


def _part(A: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    buffer = np.empty((A.shape[0], A.shape[0]))

    def product(X: np.ndarray) -> np.ndarray:
        buffer[: X.shape[1]] = (A @ X).T
        return buffer[: X.shape[1]].T

    return product


@pytest.mark.parametrize("buffered", [_whole, _part])
def test_products_in_a_work_buffer(buffered: Any) -> None:
    A = np.diag(np.arange(1.0, 61.0) ** -1) + 0.01
    product = buffered(A)
    op = tk.LinearOperator(A.shape, product, product)
    for estimator in (tk.hutchpp, tk.nahutchpp, tk.xtrace, tk.xnystrace, tk.xdiag,
                      tk.frobenius_norm, tk.diagonal):  # fmt: skip
        found, expected = estimator(op, 24, rng=0), estimator(A, 24, rng=0)
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-9)
    found, expected = (tk.xtrace(B, 58, rng=0, rtol=1e-9) for B in (op, A))
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("made", ["matvec", "subclass", "own", "scaled", "product", "adjoint"])
def test_single_products_in_a_work_buffer(made: str) -> None:
    A = np.diag(np.arange(1.0, 31.0) ** -1) + 0.01 * np.arange(30.0)
    kept, gone = np.empty(30), np.empty(30)

    def matvec(x: np.ndarray) -> np.ndarray:
        return np.matmul(A, x.ravel(), out=kept)

    def rmatvec(x: np.ndarray) -> np.ndarray:
        return np.matmul(A.T, x.ravel(), out=gone)

    class Subclass(ScipyOperator):  # type: ignore[misc]
        _matvec, _rmatvec = staticmethod(matvec), staticmethod(rmatvec)

    plain = ScipyOperator(A.shape, matvec=matvec, rmatvec=rmatvec, dtype=float)
    B, M = {
        "matvec": (plain, A),
        "subclass": (Subclass(float, A.shape), A),
        "own": (SimpleNamespace(shape=A.shape, matvec=matvec, rmatvec=rmatvec), A),
        "scaled": (2 * plain, 2 * A),
        "product": (aslinearoperator(A) @ plain, A @ A),
        "adjoint": (plain.H, A.T),
    }[made]
    X = np.random.default_rng(0).standard_normal((30, 4))
    np.testing.assert_allclose(tk.as_operator(B).matmat(X), M @ X, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(tk.as_operator(B).H.matmat(X), M.T @ X, rtol=1e-9, atol=1e-12)


def test_block_products_of_scipy_operators_stay_whole() -> None:
    widths = []

    def matmat(X: np.ndarray) -> np.ndarray:
        widths.append(X.shape[1])
        return 2 * X

    plain = ScipyOperator((9, 9), matvec=matmat, matmat=matmat, rmatmat=matmat, dtype=float)
    for B in (plain, 2 * plain, plain.H, plain @ plain):
        tk.as_operator(B).matmat(np.eye(9))
    assert set(widths) == {9}


def test_torch_products_in_a_work_buffer() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    A = torch.diag(torch.arange(1.0, 61.0, dtype=torch.float64) ** -1) + 0.01
    kept: dict[int, Any] = {}

    def product(X: Any) -> Any:
        return torch.matmul(A, X, out=kept.setdefault(X.shape[1], torch.empty_like(X)))

    op = tk.LinearOperator((60, 60), product, xp=torch, dtype=torch.float64)
    found, expected = (float(tk.nahutchpp(B, 24, rng=0)) for B in (op, A))
    assert found == pytest.approx(expected, rel=1e-9)


# Operators that are not linear, or not what they say ------------------------------------------


@pytest.mark.parametrize("estimator", [tk.xdiag, tk.nahutchpp])
def test_adjoints_of_something_else_are_refused(estimator: Any) -> None:
    A = np.diag(np.arange(1.0, 61.0) ** -1)
    affine = tk.LinearOperator((60, 60), lambda X: A @ X + 1.0, lambda X: A @ X)
    with pytest.raises(ValueError, match="not linear"):
        estimator(affine, 24, rng=0)
    real = tk.LinearOperator(
        (60, 60), lambda X: A @ X.real + 0j, lambda X: A @ X.real + 0j, dtype=complex
    )
    with pytest.raises(ValueError, match="not linear"):
        estimator(real, 24, rng=0)


def test_linearity() -> None:
    A = np.diag(np.arange(1.0, 21.0))
    assert linearity_test(A) < 1e-14
    assert linearity_test(A + 1j) < 1e-14
    for wrong in (lambda X: A @ X.real + 0j, lambda X: A @ X + 1, lambda X: A @ np.conj(X)):
        with pytest.raises(AssertionError, match="not linear"):
            linearity_test(tk.LinearOperator((20, 20), wrong, dtype=complex))


def test_inexact_products_are_named() -> None:
    A = np.diag(np.arange(1.0, 61.0) ** -1)
    noise = np.random.default_rng(0)
    inexact = tk.LinearOperator(
        (60, 60), lambda X: A @ X + 1e-4 * noise.standard_normal(X.shape) * np.abs(A @ X)
    )
    with pytest.raises(ValueError, match="inexact products, such as an iterative solver's"):
        tk.xnystrace(inexact, 20, rng=0)
