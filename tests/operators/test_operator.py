"""Operators: what is read as one, how they compose, and what their products cost."""

from __future__ import annotations

import operator
import tracemalloc
from dataclasses import FrozenInstanceError
from pathlib import Path
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
    if eager.family == "jax" and not cplx:
        pytest.skip("each operation is compiled for each dtype")
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


# Operators and containers of other packages ----------------------------------------------------


class Foreign:
    """The face of operators of linear_operator, CoLA and curvlinops: shape, dtype, device and @."""

    def __init__(self, M: Any, adjoint: str = "", **told: Any) -> None:
        self.M, self.shape = M, tuple(M.shape)
        for name, value in ({"dtype": M.dtype, "device": M.device} | told).items():
            setattr(self, name, value)
        if adjoint == "T":
            self.T = Foreign(M.T, **told)
        elif adjoint == "adjoint":
            self.adjoint = lambda: Foreign(M.conj().T, **told)
        elif adjoint:
            setattr(self, adjoint, Foreign(M.conj().T, **told))

    def __matmul__(self, X: Any) -> Any:
        return self.M @ X


@fields
@pytest.mark.parametrize("adjoint", ["H", "mH", "adjoint", "T", ""])
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_the_library_of_a_foreign_operator_is_told_by_its_dtype_or_device(
    library: str, adjoint: str, cplx: bool
) -> None:
    lib = next(installed(library))  # dtypes of JAX are NumPy's, so that its device tells
    M = dense(N, P, cplx=cplx)
    A = tk.as_operator(Foreign(lib.array(M), adjoint))
    assert A.xp is lib.xp
    assert_is(A, M, lib, adjoint=bool(adjoint))


def test_a_device_of_pytorch_is_enough() -> None:
    torch = pytest.importorskip("torch")
    A = tk.as_operator(Foreign(torch.ones((3, 3), dtype=torch.float32), dtype=None))
    assert float(tk.hutchinson(A, 3, rng=0)) == 3.0


def test_adjoints_of_foreign_operators_are_heeded_only_where_they_fit() -> None:
    M = dense(N, P)

    class Odd:
        shape, T, H = (N, P), 300.0, np.eye(3)

        def __matmul__(self, X: np.ndarray) -> np.ndarray:
            return M @ X

        def adjoint(self, X: np.ndarray) -> np.ndarray:  # a product, not an operator
            return M.T @ X

    assert_is(tk.as_operator(Odd()), M, adjoint=False)
    assert tk.as_operator(Odd()).rmatmat is None


def test_operators_of_gpytorch_cola_and_curvlinops() -> None:
    """With the real packages, where they are installed."""
    torch, lib = pytest.importorskip("torch"), next(installed("torch"))
    M, seen = dense(N, N), 0
    try:
        from linear_operator import to_linear_operator
    except ImportError:
        pass
    else:
        assert_is(tk.as_operator(to_linear_operator(torch.tensor(M))), M, lib)
        seen += 1
    try:
        import cola
    except ImportError:
        pass
    else:
        for held in (lib, next(installed("jax"))):
            assert_is(tk.as_operator(cola.ops.Dense(held.array(M))), M, held)
        seen += 1
    if not seen:
        pytest.skip("none of them is installed")


def test_lineax() -> None:
    lx = pytest.importorskip("lineax")
    import jax

    lib = next(installed("jax"))
    M, S = dense(N, P, cplx=True), matrix("complex psd", N)
    assert_is(tk.as_operator(lx.MatrixLinearOperator(lib.array(M))), M, lib)
    semidefinite = lx.MatrixLinearOperator(lib.array(S), lx.positive_semidefinite_tag)
    adjoint = tk.as_operator(semidefinite).H @ lib.array(np.eye(N) + 0j)
    np.testing.assert_allclose(lib.numpy(adjoint), S, atol=1e-12)

    def split(x: Any) -> Any:
        return {"first": x["x"][:2], "double": 2 * x["x"]}

    tree = {"x": jax.ShapeDtypeStruct((3,), lib.real)}
    between_trees = tk.as_operator(lx.FunctionLinearOperator(split, tree))
    stacked = np.concatenate([2 * np.eye(3), np.eye(3)[:2]])
    for A, exact in ((between_trees, stacked), (between_trees.H, stacked.T)):
        np.testing.assert_array_equal(lib.numpy(A @ lib.array(np.eye(A.shape[1]))), exact)


def of_package(package: str, **members: Any) -> Any:
    """An object of a class of another package, with the shape of a matrix."""
    return type("Held", (), {"__module__": f"{package}.core", "shape": (N, N)} | members)()


def test_containers_of_other_packages_are_opened() -> None:
    M = dense(N, N)
    S = SimpleNamespace(to_scipy_sparse=lambda: sp.coo_array(M))
    for thing in (
        of_package("pandas", to_numpy=lambda self: M),
        of_package("xarray", data=M),
        of_package("sparse", asformat=lambda self, name: S),
        of_package("pandas", matmat=lambda self, X: M @ X, rmatmat=lambda self, X: M.T @ X),
    ):
        assert_is(tk.as_operator(thing), M)
    with pytest.raises(TypeError, match=r"dtype object holds no numbers; pass .*astype"):
        tk.as_operator(of_package("pandas", to_numpy=lambda self: M.astype(object)))


@pytest.mark.parametrize("package", ["pandas", "xarray", "sparse"])
def test_containers_of_the_packages_themselves(package: str) -> None:
    library, M = pytest.importorskip(package), dense(N, N)
    make = {
        "pandas": lambda: library.DataFrame(M, columns=[f"c{i}" for i in range(N)]),
        "xarray": lambda: library.DataArray(M, dims=("a", "b")),
        "sparse": lambda: library.DOK.from_numpy(M),
    }
    assert_is(tk.as_operator(make[package]()), M)
    if package == "sparse":
        for kind in (library.COO, library.GCXS):
            assert_is(tk.as_operator(kind.from_numpy(M)), M)


# Long doubles, integers, arrays on disk, real results ------------------------------------------


@fields
def test_long_double_works_as_double(cplx: bool) -> None:
    M = dense(N, N, cplx=cplx)
    long = M.astype(np.clongdouble if cplx else np.longdouble)
    for thing in (
        long,
        sp.csr_array(long),
        spla.aslinearoperator(long),
        tk.LinearOperator(
            (N, N), lambda X: long @ X, lambda X: long.conj().T @ X, dtype=long.dtype
        ),
        tk.LinearOperator((N, N), lambda X: long @ X, lambda X: long.conj().T @ X, dtype=M.dtype),
    ):
        A = tk.as_operator(thing)
        assert A.dtype == M.dtype
        assert_is(A, M)
        assert tk.exact_trace(A).value.dtype == M.dtype


def test_long_doubles_are_no_single_precision() -> None:
    A = tk.LinearOperator((3, 3), lambda X: X.astype(np.longdouble), dtype="float32")
    with pytest.raises(TypeError, match=r"returned dtype float(128|96|64)"):
        A.matmat(np.ones((3, 1), dtype="float32"))


def test_real_results_of_a_complex_operator_are_taken(eager: Library) -> None:
    M = eager.array(dense(N, N))

    def product(X: Any) -> Any:
        return M @ eager.xp.real(X)  # right for the columns that are asked for below

    A = tk.LinearOperator((N, N), product, dtype=eager.complex, xp=eager.xp, device=eager.device)
    X = eager.array(dense(N, K) + 0j)
    assert A.matmat(X).dtype == eager.complex
    np.testing.assert_allclose(
        eager.numpy(A.matmat(X)), dense(N, N) @ dense(N, K), atol=100 * eager.eps
    )


def test_real_transforms_of_pylops() -> None:
    """Real vectors on one side, or on both: the numbers of their complex matrix."""
    pylops = pytest.importorskip("pylops")
    F = pylops.signalprocessing.FFT(N, real=True, dtype="float64")
    M = np.column_stack([F @ e for e in np.eye(N)])
    assert_is(tk.as_operator(F), M)
    assert_is(tk.as_operator(F.H), M.conj().T)
    assert_is(tk.as_operator(F.H @ F), (M.conj().T @ M).real + 0j)
    energy = np.sum(np.abs(M) ** 2)
    for K in (tk.gram(F.H), tk.gram(F)):
        assert complex(tk.exact_trace(K)) == pytest.approx(energy)
    for kind in (pylops.Conj, pylops.Real, pylops.Imag):
        with pytest.raises(TypeError, match=r"linear over the real numbers alone .*; wrap"):
            tk.as_operator(kind(N, dtype="complex128"))


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        *(("numpy", each) for each in ("int8", "uint64", "bool", "float16", ">f8", "longdouble")),
        *(("torch", each) for each in ("int8", "float16")),
    ],
)
def test_blocks_of_rows_make_the_whole_product(library: str, dtype: str) -> None:
    """Of a matrix that takes several blocks, the last one shorter, and of one with long rows."""
    lib, rng = next(installed(library)), np.random.default_rng(0)
    for shape in ((700, 500), (3, 200_000)):
        M = rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)
        for order in "CF" if library == "numpy" else "C":
            held = np.asarray(M, order=order) if library == "numpy" else lib.array(M, dtype)
            A = tk.as_operator(held)
            for product, exact in ((A.matmat, M.astype(float)), (A.rmatmat, M.T.astype(float))):
                X = np.ones((exact.shape[1], 2))
                X[::2, 1] = -3
                got = lib.numpy(product(lib.xp.astype(lib.array(X), A.dtype)))
                np.testing.assert_allclose(got, exact @ X, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float64", "int16", "float16", "complex128"])
def test_matrices_on_disk_are_not_copied_to_memory(tmp_path: Path, dtype: str) -> None:
    n = 1500
    np.save(
        tmp_path / "A.npy", (np.random.default_rng(0).standard_normal((n, n)) * 9).astype(dtype)
    )
    M = np.load(tmp_path / "A.npy", mmap_mode="r")
    X = np.ones((n, 2), dtype={"complex128": complex, "float16": np.float32}.get(dtype, float))
    for name in ("matmat", "rmatmat"):
        assert allocated(lambda: getattr(tk.as_operator(M), name)(X)) < 0.4 * M.nbytes  # noqa: B023


@fields
def test_adjoints_of_sparse_matrices_are_not_copied(cplx: bool) -> None:
    S = sp.random_array((50_000, 50_000), density=2e-4, rng=np.random.default_rng(0), format="csr")
    S = S.astype(complex) if cplx else S
    A, X = tk.as_operator(S), np.ones((50_000, 1), dtype=S.dtype)
    assert allocated(lambda: A.rmatmat(X)) < 0.5 * (S.data.nbytes + S.indices.nbytes)


def allocated(run: Any) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
    for scaled in (c * A, A * c, A / (1 / c)):
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
    if eager.family == "jax" and not cplx:
        pytest.skip("each operation is compiled for each dtype")
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


def test_what_is_known_in_closed_form_has_its_cost() -> None:
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
