"""Operators: what is read as one, how they compose, and what their products cost."""

from __future__ import annotations

import operator
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from conftest import Library, installed, matrix

import tracekit as tk
from tracekit.testing import adjoint_test

N, P, K = 9, 5, 4
fields = pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])


def dense(m: int, n: int, *, cplx: bool = False, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, m, n])
    A = rng.standard_normal((m, n))
    return A + 1j * rng.standard_normal((m, n)) if cplx else A


def assert_is(
    A: tk.LinearOperator, M: np.ndarray, lib: Library | None = None, *, adjoint: bool = True
) -> None:
    """All products of an operator are those of the matrix M."""
    lib = lib or next(installed("numpy"))
    assert tuple(A.shape) == M.shape
    tol = 200 * lib.eps * max(1.0, np.abs(M).max())
    cplx = lib.xp.isdtype(A.dtype, "complex floating")
    X, Y = dense(M.shape[1], K, cplx=cplx, seed=1), dense(M.shape[0], K, cplx=cplx, seed=2)
    got = A.matmat(lib.array(X))
    assert lib.at_home(got)
    np.testing.assert_allclose(lib.numpy(got), M @ X, atol=tol)
    np.testing.assert_allclose(lib.numpy(A @ lib.array(X)), M @ X, atol=tol)
    np.testing.assert_allclose(lib.numpy(A.matvec(lib.array(X[:, 0]))), M @ X[:, 0], atol=tol)
    np.testing.assert_allclose(lib.numpy(A @ lib.array(X[:, 0])), M @ X[:, 0], atol=tol)
    if M.shape[0] == M.shape[1]:
        forms = np.sum(X.conj() * (M @ X), axis=0)
        np.testing.assert_allclose(lib.numpy(A.quad(lib.array(X))), forms, atol=10 * tol)
    if adjoint:
        assert A.H.H is A
        assert tuple(A.H.shape) == M.shape[::-1]
        np.testing.assert_allclose(lib.numpy(A.H.matmat(lib.array(Y))), M.conj().T @ Y, atol=tol)
        np.testing.assert_allclose(lib.numpy(A.rmatmat(lib.array(Y))), M.conj().T @ Y, atol=tol)
        np.testing.assert_allclose(
            lib.numpy(A.rmatvec(lib.array(Y[:, 0]))), M.conj().T @ Y[:, 0], atol=tol
        )
        if M.shape[0] == M.shape[1]:
            forms = np.sum(X.conj() * (M.conj().T @ X), axis=0)
            np.testing.assert_allclose(lib.numpy(A.H.quad(lib.array(X))), forms, atol=10 * tol)


# What is read as an operator ------------------------------------------------------------------


@fields
@pytest.mark.parametrize("shape", [(N, N), (N, P)], ids=["square", "tall"])
def test_arrays_of_every_library(eager: Library, shape: tuple[int, int], cplx: bool) -> None:
    M = dense(*shape, cplx=cplx)
    A = tk.as_operator(eager.array(M))
    assert_is(A, M, eager)
    assert A.dtype == (eager.complex if cplx else eager.real)
    assert adjoint_test(A) < 100 * eager.eps


def test_operators_are_read_as_they_are() -> None:
    A = tk.as_operator(np.eye(3))
    assert tk.as_operator(A) is A


@fields
@pytest.mark.parametrize(
    "form",
    [
        "csr_array",
        "csc_array",
        "coo_array",
        "csr_matrix",
        "csc_matrix",
        "dia_matrix",
        "bsr_array",
        "lil_array",
        "dok_matrix",
    ],
)
def test_scipy_sparse(form: str, cplx: bool) -> None:
    M = dense(N, N, cplx=cplx)
    M[np.abs(M) < 0.7] = 0
    A = tk.as_operator(getattr(sp, form)(M))
    assert_is(A, M)
    assert float(abs(tk.exact_trace(A).value - np.trace(M))) < 1e-13


class Subclass(spla.LinearOperator):
    """Only a column at a time, as many of SciPy's subclasses."""

    def __init__(self, M: np.ndarray) -> None:
        super().__init__(M.dtype, M.shape)
        self.M = M

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self.M @ x

    def _rmatvec(self, x: np.ndarray) -> np.ndarray:
        return self.M.conj().T @ x


class Blocks(Subclass):
    """A subclass that counts how it is called: blocks have to arrive as blocks."""

    calls = 0

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.M @ X


@fields
@pytest.mark.parametrize(
    "make", [spla.aslinearoperator, Subclass, Blocks], ids=lambda f: f.__name__
)
def test_scipy_operators(make: Any, cplx: bool) -> None:
    for shape in ((N, N), (N, P)):
        M = dense(*shape, cplx=cplx)
        assert_is(tk.as_operator(make(M)), M)


def test_scipy_blocks_stay_blocks() -> None:
    M = Blocks(dense(N, N))
    tk.as_operator(M).matmat(dense(N, K))
    assert M.calls == 1


def test_scipy_operator_without_an_adjoint() -> None:
    M = dense(N, N)
    A = tk.as_operator(spla.LinearOperator((N, N), matvec=lambda x: M @ x, dtype=float))
    assert_is(A, M, adjoint=False)
    with pytest.raises(TypeError, match=r"rmatvec|adjoint"):
        A.H.matmat(dense(N, K))


@fields
def test_pylops(cplx: bool) -> None:
    pylops = pytest.importorskip("pylops")
    M = dense(N, P, cplx=cplx)
    assert_is(tk.as_operator(pylops.MatrixMult(M, dtype=M.dtype)), M)
    first = pylops.FirstDerivative(N, dtype="float64")
    assert_is(tk.as_operator(first), first.todense())
    assert_is(tk.as_operator(first.H @ first), first.todense().T @ first.todense())


def test_objects_with_a_shape_and_some_product() -> None:
    M, products = dense(N, N), SimpleNamespace

    class Times:
        shape = (N, N)

        def __matmul__(self, X: np.ndarray) -> np.ndarray:
            return M @ X

    class Everything(Times):
        dtype = np.dtype(float)

        def matmat(self, X: np.ndarray) -> np.ndarray:
            return M @ X

        def rmatmat(self, X: np.ndarray) -> np.ndarray:
            return M.T @ X

        def __matmul__(self, X: np.ndarray) -> np.ndarray:
            raise AssertionError("matmat comes before @")

    def one(x: np.ndarray) -> np.ndarray:
        assert x.shape == (N,), "matvec takes one vector"
        return M @ x

    assert_is(tk.as_operator(Times()), M, adjoint=False)
    assert_is(tk.as_operator(products(shape=(N, N), matvec=one)), M, adjoint=False)
    assert_is(tk.as_operator(products(shape=(N, N), matmat=lambda X: M @ X)), M, adjoint=False)
    assert_is(tk.as_operator(products(shape=(N, N), matvec=one, rmatvec=lambda x: M.T @ x)), M)
    assert_is(tk.as_operator(Everything()), M)


def test_objects_in_another_library(eager: Library) -> None:
    M = eager.array(dense(N, N))
    thing = SimpleNamespace(
        shape=(N, N), matmat=lambda X: M @ X, rmatmat=lambda X: M.T @ X, dtype=M.dtype
    )
    A = tk.as_operator(thing, xp=eager.xp, device=eager.device)
    assert_is(A, eager.numpy(M), eager)
    x = float(tk.hutchinson(A, 3, rng=0))
    assert x == pytest.approx(float(tk.hutchinson(M, 3, rng=0)), rel=100 * eager.eps)


def test_callables_through_the_constructor(eager: Library) -> None:
    M = eager.array(dense(N, P))
    Mh = eager.array(dense(N, P).T)
    A = tk.LinearOperator(
        (N, P), lambda X: M @ X, lambda X: Mh @ X, dtype=M.dtype, xp=eager.xp, device=eager.device
    )
    assert_is(A, eager.numpy(M), eager)


def test_raw_namespaces_are_understood() -> None:
    """Not only those that array_api_compat has wrapped."""
    torch = pytest.importorskip("torch")
    M = torch.ones((3, 3), dtype=torch.float64)
    A = tk.LinearOperator((3, 3), lambda X: M @ X, dtype=torch.float64, xp=torch)
    assert float(tk.exact_trace(A)) == 3.0
    B = tk.LinearOperator(
        (3, 3), lambda X: np.ones((3, 3), dtype="float32") @ X, dtype="float32", xp=np
    )
    assert tk.exact_trace(B).value.dtype == np.float32


def test_no_namespace_stands_for_numpy() -> None:
    A = tk.LinearOperator((3, 3), lambda X: 2 * X, xp=None)
    assert float(tk.exact_trace(A)) == 6.0


def test_third_party_types_are_registered() -> None:
    class Diagonal:
        def __init__(self, *entries: float) -> None:
            self.entries = np.array(entries)

    with pytest.raises(TypeError, match="Diagonal"):
        tk.as_operator(Diagonal(1.0))

    @tk.as_operator.register(Diagonal)
    def _(A: Diagonal, *, xp: Any = None, device: Any = None) -> tk.LinearOperator:
        d, n = A.entries[:, None], len(A.entries)
        return tk.LinearOperator((n, n), lambda X: d * X, lambda X: d * X)

    assert float(tk.exact_trace(Diagonal(1.0, 2.0, 4.0))) == 7.0
    assert float(tk.hutchinson(Diagonal(1.0, 2.0, 4.0), 2)) == 7.0


def test_half_precision_and_integers_are_read_in_a_dtype_to_compute_in(eager: Library) -> None:
    default = eager.xp.asarray(0.0, device=eager.device).dtype
    for name in ("int32", "int64", "uint8", "bool", "float16"):
        if not hasattr(eager.xp, name):
            continue
        A = tk.as_operator(eager.array(np.eye(3), name))
        assert A.dtype == (eager.xp.float32 if name == "float16" else default)
        assert float(tk.exact_trace(A)) == 3.0
    for form in (sp.csr_array, sp.csr_matrix):
        assert tk.as_operator(form(np.eye(3, dtype=np.int32))).dtype == np.float64
        assert float(tk.exact_trace(form(np.eye(3, dtype=bool)))) == 3.0


def test_integers_do_not_overflow() -> None:
    M = np.full((3, 3), 100, dtype=np.int8)
    np.testing.assert_array_equal(tk.as_operator(M) @ np.ones(3), [300.0] * 3)
    np.testing.assert_array_equal(tk.as_operator(sp.csr_array(M)) @ np.ones(3), [300.0] * 3)


# Composition ----------------------------------------------------------------------------------


@fields
def test_algebra_is_that_of_matrices(eager: Library, cplx: bool) -> None:
    MA, MB, ML = dense(N, N, cplx=cplx), dense(N, N, cplx=cplx, seed=3), dense(N, P, cplx=cplx)
    A, B, L = (tk.as_operator(eager.array(M)) for M in (MA, MB, ML))
    assert_is(A + B, MA + MB, eager)
    assert_is(A - B, MA - MB, eager)
    assert_is(A @ B, MA @ MB, eager)
    assert_is(A @ L, MA @ ML, eager)
    assert_is(A.H @ L, MA.conj().T @ ML, eager)
    assert_is(L.H @ A @ L, ML.conj().T @ MA @ ML, eager)
    assert_is((A @ B).H, (MA @ MB).conj().T, eager)
    assert_is(-A, -MA, eager)
    assert_is(2.5 * A, 2.5 * MA, eager)
    assert_is(A * 2.5, 2.5 * MA, eager)
    assert_is(3 * A, 3 * MA, eager)
    assert_is((2.0 * A - B) @ B.H + A, (2 * MA - MB) @ MB.conj().T + MA, eager)
    if cplx:
        assert_is((1 - 2j) * A, (1 - 2j) * MA, eager)
        assert_is(((1 - 2j) * A).H, ((1 - 2j) * MA).conj().T, eager)
        assert_is(tk.gram((1 - 2j) * L), 5 * ML @ ML.conj().T, eager)


@fields
def test_scalars_of_the_library(eager: Library, cplx: bool) -> None:
    M, c = dense(N, N, cplx=cplx), 1 - 2j if cplx else -1.5
    assert_is(tk.as_operator(eager.array(M)) * eager.array(c), c * M, eager)


@pytest.mark.parametrize(
    "c", [np.float64(2), np.int64(2), np.float32(2), 2, True + 1], ids=lambda c: type(c).__name__
)
def test_numpy_scalars_keep_the_dtype(c: Any) -> None:
    A = tk.as_operator(np.eye(3, dtype=np.float32))
    for scaled in (c * A, A * c):
        assert isinstance(scaled, tk.LinearOperator)
        assert float(tk.exact_trace(scaled)) == 6.0
        assert tk.exact_trace(scaled).value.dtype == np.float32


@fields
def test_gram(eager: Library, cplx: bool) -> None:
    M = dense(N, P, cplx=cplx)
    L = tk.as_operator(eager.array(M))
    for A, expected in (
        (tk.gram(L), M @ M.conj().T),
        (L @ L.H, M @ M.conj().T),
        (tk.gram(L.H), M.conj().T @ M),
        (L.H @ L, M.conj().T @ M),
        (tk.gram(eager.array(M)), M @ M.conj().T),
    ):
        assert_is(A, expected, eager)
        assert A.factor is not None
    assert tk.gram(L).factor is L
    assert tk.gram(L.H).factor is L.H


@fields
def test_stacks_and_block_diagonals(eager: Library, cplx: bool) -> None:
    M1, M2, M3 = dense(3, P, cplx=cplx), dense(1, P, cplx=cplx), dense(P, P, cplx=cplx)
    blocks = [eager.array(M) for M in (M1, M2, M3)]
    assert_is(tk.vstack(blocks), np.concatenate([M1, M2, M3]), eager)
    assert_is(
        tk.gram(tk.vstack(blocks)),
        np.concatenate([M1, M2, M3]) @ np.concatenate([M1, M2, M3]).conj().T,
        eager,
    )

    def diagonal(*blocks: np.ndarray) -> np.ndarray:
        from scipy.linalg import block_diag

        return block_diag(*blocks)

    assert_is(tk.block_diagonal(blocks), diagonal(M1, M2, M3), eager)
    squares = [eager.array(M3), eager.array(M1 @ M1.conj().T)]
    assert_is(tk.block_diagonal(squares), diagonal(M3, M1 @ M1.conj().T), eager)
    grams = tk.block_diagonal([tk.gram(b) for b in blocks])
    assert_is(grams, diagonal(*(M @ M.conj().T for M in (M1, M2, M3))), eager)
    assert grams.factor is not None


def test_mixed_precision_composes_upwards() -> None:
    single, double = np.eye(3, dtype=np.float32), 2 * np.eye(3)
    for A in (
        tk.as_operator(single) + tk.as_operator(double),
        tk.as_operator(double) + tk.as_operator(single),
    ):
        assert tk.exact_trace(A).value.dtype == np.float64
        assert float(tk.exact_trace(A)) == 9.0
    product = tk.as_operator(single) @ tk.as_operator(1j * double)
    assert complex(tk.exact_trace(product)) == 6j


# The quadratic form composes, and what it costs -----------------------------------------------


def test_quad_of_a_gram_operator_is_one_product() -> None:
    L, counter = tk.counted(dense(N, P))
    X = dense(N, K)
    tk.gram(L).quad(X)
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (0, K, 0)
    (L @ L.H).quad(X)
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (0, 2 * K, 0)
    (L.H @ L).quad(dense(P, K))
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (K, 2 * K, 0)


def test_quad_of_sums_and_multiples_stays_cheap() -> None:
    L, counter = tk.counted(dense(N, P))
    M, other = tk.counted(dense(N, P, seed=4))
    X = dense(N, K)
    A = 2.0 * tk.gram(L) - tk.gram(M)
    expected = 2 * np.sum((dense(N, P).T @ X) ** 2, axis=0) - np.sum(
        (dense(N, P, seed=4).T @ X) ** 2, axis=0
    )
    np.testing.assert_allclose(A.quad(X), expected, atol=1e-12)
    for spent in (counter, other):
        assert (spent.matvecs, spent.rmatvecs, spent.quads) == (0, K, 0)
    tk.block_diagonal([tk.gram(L), tk.gram(L)]).quad(np.concatenate([X, X]))
    assert (counter.matvecs, counter.rmatvecs) == (0, 3 * K)


def test_counted_counts_columns_where_they_are_spent() -> None:
    M = dense(N, N)
    A, counter = tk.counted(M)
    A.matmat(dense(N, 3))
    A.matvec(dense(N, 1)[:, 0])
    A @ dense(N, 2)
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (6, 0, 0)
    A.rmatmat(dense(N, 3))
    A.H.matmat(dense(N, 2))
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (6, 5, 0)
    A.quad(dense(N, 7))
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (6, 5, 7)
    (A + A).matmat(dense(N, 1))
    (A @ A).matmat(dense(N, 1))
    assert counter.matvecs == 10
    assert_is(tk.counted(M)[0], M)


def test_counted_counts_in_the_factor() -> None:
    M = dense(N, P)
    A, counter = tk.counted(tk.gram(M))
    A.matmat(dense(N, K))
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (K, K, 0)
    A.quad(dense(N, K))
    assert (counter.matvecs, counter.rmatvecs, counter.quads) == (K, 2 * K, 0)
    assert A.factor is not None
    assert_is(A, M @ M.T)


# Operators are values -------------------------------------------------------------------------


def test_operators_are_frozen_and_say_what_they_are() -> None:
    A = tk.as_operator(np.eye(3))
    with pytest.raises(FrozenInstanceError):
        A.shape = (2, 2)  # type: ignore[misc]
    assert "3x3" in repr(A)
    assert "float64" in repr(A)
    assert not hasattr(A, "trace")
    assert len({A, A.H, A}) == 2


def test_numpy_arrays_leave_operators_alone() -> None:
    A = tk.as_operator(np.eye(3))
    for operation in (operator.add, operator.sub):
        with pytest.raises(TypeError):
            operation(A, np.eye(3))
        with pytest.raises(TypeError):
            operation(np.eye(3), A)
    with pytest.raises(TypeError):
        A * np.eye(3)
    with pytest.raises(TypeError):
        A * "2"


def test_products_get_views_that_cannot_be_written_and_arguments_stay_writable() -> None:
    seen = []

    def product(X: np.ndarray) -> np.ndarray:
        seen.append(X.flags.writeable)
        return X + 0.0

    A, X = tk.LinearOperator((3, 3), product, product), np.ones((3, 2))
    A.matmat(X)
    A.rmatmat(X)
    tk.hutchinson(A, 2, rng=0)
    assert not any(seen)
    assert X.flags.writeable


# SciPy's solvers ------------------------------------------------------------------------------


@fields
def test_scipy_solvers_take_operators(cplx: bool) -> None:
    M = matrix("complex psd" if cplx else "psd", 20)
    A = tk.as_operator(M)
    v0 = dense(20, 1)[:, 0]
    largest = spla.eigsh(A, k=3, v0=v0.astype(M.dtype), return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(largest), np.linalg.eigvalsh(M)[-3:], rtol=1e-10)
    b = dense(20, 1, cplx=cplx)[:, 0]
    shifted = A + tk.as_operator(np.eye(20, dtype=M.dtype))
    x, info = spla.cg(shifted, b, rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose((M + np.eye(20)) @ x, b, atol=1e-10)
    L = dense(20, 8, cplx=cplx)
    values = spla.svds(tk.as_operator(L), k=3, v0=dense(8, 1)[:, 0], return_singular_vectors=False)
    np.testing.assert_allclose(
        np.sort(values), np.linalg.svd(L, compute_uv=False)[2::-1], rtol=1e-10
    )
    gram = spla.eigsh(tk.gram(L), k=2, v0=v0.astype(M.dtype), return_eigenvectors=False)
    np.testing.assert_allclose(
        np.sort(gram), np.linalg.svd(L, compute_uv=False)[1::-1] ** 2, rtol=1e-10
    )


def test_scipy_wraps_operators_whole() -> None:
    M = dense(N, P)
    wrapped = spla.aslinearoperator(tk.as_operator(M))
    np.testing.assert_allclose(wrapped.matmat(dense(P, K)), M @ dense(P, K), atol=1e-14)
    np.testing.assert_allclose(
        wrapped.rmatvec(dense(N, 1)[:, 0]), M.T @ dense(N, 1)[:, 0], atol=1e-14
    )


def test_what_the_maker_knows_has_its_price() -> None:
    """A callable in `exact` that spends products says how many, and estimators heed it."""

    class Known:
        num_matvecs = 5

        def __call__(self) -> Any:
            return np.asarray(10.0)

    A = tk.LinearOperator((9, 9), lambda X: 2 * X, exact={"trace": Known()})
    counting, counter = tk.counted(A)
    few, enough = (tk.hutchinson(counting, m, rng=0) for m in (4, 5))
    assert (few.method, few.num_matvecs) == ("hutchinson", 4)
    assert (enough.method, enough.num_matvecs, float(enough)) == ("exact_trace", 5, 10.0)
    assert counter.total == 9
