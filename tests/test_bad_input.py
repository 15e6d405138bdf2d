"""Bad input gets one clear ValueError or TypeError: never a wrong number, NaN, or another error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import Library, installed, matrix

import tracekit as tk
from tracekit import probes

N = 12
STOCHASTIC = (tk.hutchinson, tk.hutchpp, tk.xtrace, tk.xnystrace)
estimators = pytest.mark.parametrize("estimator", STOCHASTIC, ids=lambda f: f.__name__)
TRACES: tuple[Callable[..., Any], ...] = (
    tk.exact_trace,
    *(partial(f, num_matvecs=8, rng=0) for f in STOCHASTIC),
)
traces = pytest.mark.parametrize(
    "trace", TRACES, ids=["exact_trace", *(f.__name__ for f in STOCHASTIC)]
)
EYE = np.eye(N)


def refused(match: str, f: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The message of the error, which is one sentence that names what was given."""
    with pytest.raises((TypeError, ValueError), match=match) as caught:
        f(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert 25 < len(message) < 400, message
    assert len(message.split()) > 5, message
    return message


# Budgets and options --------------------------------------------------------------------------


@estimators
@pytest.mark.parametrize(
    "budget",
    [0, -1, -100, 2.5, 8.0, "8", None, True, [8], np.nan, np.inf, np.float64(8), 1j],
    ids=repr,
)
def test_budgets(estimator: Any, budget: Any) -> None:
    refused("`num_matvecs` must be a positive integer, got ", estimator, EYE, budget)


@estimators
def test_budgets_of_numpy_are_budgets(estimator: Any) -> None:
    assert float(estimator(matrix("psd", N), np.int64(8), rng=0)) == float(
        estimator(matrix("psd", N), 8, rng=0)
    )


@traces
@pytest.mark.parametrize("size", [0, -1, 1.5, "4"], ids=repr)
def test_block_sizes(trace: Any, size: Any) -> None:
    refused("`chunk_size` must be a positive integer", trace, matrix("psd", N), chunk_size=size)


@pytest.mark.parametrize(
    "estimator", [tk.hutchinson, tk.xtrace, tk.xnystrace], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("option", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-3, np.nan, np.inf, "1e-3"], ids=repr)
def test_tolerances(estimator: Any, option: str, value: Any) -> None:
    refused(
        f"`{option}` must be a number of 0 or more",
        estimator,
        matrix("psd", N),
        8,
        **{option: value},
    )


@estimators
@pytest.mark.parametrize("rng", ["0", 1.5, -1, True, [0], object()], ids=lambda x: type(x).__name__)
def test_generators(estimator: Any, rng: Any) -> None:
    refused("rng", estimator, matrix("psd", N), 8, rng=rng)


@estimators
def test_probes(estimator: Any) -> None:
    A = matrix("psd", N)
    for law in (
        lambda source, n, m: np.ones((m, n)),
        lambda source, n, m: np.ones(n),
        lambda source, n, m: np.ones((n, m + 1)),
        lambda source, n, m: None,
        lambda source, n, m: [[1.0]],
    ):
        refused("probes", estimator, A, 8, probes=law)
    for law in ("rademacher", None, np.ones((N, 8))):
        refused("probes", estimator, A, 8, probes=law)


def test_tolerances_and_probes_of_another_kind_are_keyword_only() -> None:
    for estimator in STOCHASTIC:
        with pytest.raises(TypeError):
            estimator(EYE, 8, 0)


# What is no operator --------------------------------------------------------------------------


@traces
@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 9), (9, 1)], ids=str)
def test_not_square(lib: Library, trace: Any, shape: tuple[int, int]) -> None:
    message = refused("square", trace, lib.array(np.ones(shape)))
    assert str(shape) in message


@traces
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)], ids=str)
def test_not_two_dimensional(lib: Library, trace: Any, shape: tuple[int, ...]) -> None:
    assert str(shape) in refused("shape", trace, lib.array(np.ones(shape)))


@traces
def test_empty(trace: Any) -> None:
    for shape in ((0, 0), (0, 3), (3, 0)):
        refused(r"empty|square|shape", trace, np.ones(shape))


@traces
@pytest.mark.parametrize(
    "thing",
    [
        "matrix.mtx",
        b"bytes",
        None,
        3.0,
        3,
        object(),
        [[1.0, 2.0], [3.0, 4.0]],
        {"shape": (2, 2)},
        len,
        np.linalg,
        SimpleNamespace(shape=(3, 3)),
        SimpleNamespace(shape=(3,), matmat=len),
        SimpleNamespace(shape=None, matmat=len),
        SimpleNamespace(shape=(3, 3), matmat=5),
        SimpleNamespace(shape="ab", matmat=len),
        np.ndarray,
        SimpleNamespace(shape=(2.5, 2.5), matmat=len),
        SimpleNamespace(shape=(-1, -1), matmat=len),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_things_that_are_no_operators(trace: Any, thing: Any) -> None:
    refused(r"\w", trace, thing)


@traces
def test_arrays_that_hold_no_numbers(trace: Any) -> None:
    for entries in (
        np.full((3, 3), "a"),
        np.full((3, 3), None),
        np.zeros((3, 3), dtype="datetime64[s]"),
        np.zeros((3, 3), dtype=[("x", float)]),
    ):
        assert str(entries.dtype)[:3] in refused("dtype", trace, entries)


@traces
def test_matrices_of_numpy_and_masked_arrays_are_right_or_refused(trace: Any) -> None:
    A = matrix("psd", N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        old = np.asmatrix(A)
    assert float(trace(old).value) == pytest.approx(float(trace(A).value), rel=1e-12)
    masked = np.ma.masked_array(A, mask=np.eye(N, dtype=bool))
    refused("mask", trace, masked)


def test_constructor() -> None:
    product = EYE.__matmul__
    for shape in (3, (3,), (3, 3, 3), (3, -1), (3, 2.5), None, "ab", (0, 3)):
        refused("shape", tk.LinearOperator, shape, product)
    for matmat in (None, 5, "matmat", EYE):
        refused("matmat", tk.LinearOperator, (N, N), matmat)
    refused("rmatmat", tk.LinearOperator, (N, N), product, 5)
    refused("dims", tk.LinearOperator, (N, N), product, dims=(5, 2))
    refused("dtype", tk.LinearOperator, (N, N), product, dtype="float63")


# Operators that do something else than they say -----------------------------------------------


def liar(product: Callable[[Any], Any], **declared: Any) -> tk.LinearOperator:
    return tk.LinearOperator((N, N), product, **declared)


@traces
@pytest.mark.parametrize(
    ("product", "named"),
    [
        (lambda X: X[:-1], rf"\({N - 1}, "),
        (lambda X: X.reshape(1, -1), "shape"),
        (lambda X: X[:, 0], "shape"),
        (lambda X: X[:, :, None], "shape"),
        (lambda X: np.sum(X), "shape|returned"),
        (lambda X: None, "None"),
        (lambda X: X.tolist(), "list"),
        (lambda X: 1.0, "float"),
        (lambda X: sp.csr_array(X), "csr_array"),
    ],
    ids=["short", "a row", "one column", "3-d", "number", "None", "list", "float", "sparse"],
)
def test_products_of_the_wrong_shape(trace: Any, product: Any, named: str) -> None:
    refused(named, trace, liar(product))


@traces
def test_products_of_the_wrong_dtype(trace: Any) -> None:
    for lib in installed("numpy", "strict:CPU_DEVICE", "torch", "jax"):
        xp = lib.xp
        declare = partial(liar, xp=xp)
        refused(
            "float32", trace, declare(lambda X, xp=xp: xp.astype(X, xp.float32), dtype=xp.float64)
        )
        refused(
            "float64", trace, declare(lambda X, xp=xp: xp.astype(X, xp.float64), dtype=xp.float32)
        )
        refused(
            "complex",
            trace,
            declare(lambda X, xp=xp: xp.astype(X, xp.complex128), dtype=xp.float64),
        )
        refused("int", trace, declare(lambda X, xp=xp: xp.astype(X, xp.int64), dtype=xp.float64))


@traces
def test_products_of_another_library(trace: Any) -> None:
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    refused("torch", trace, liar(lambda X: torch.asarray(np.array(X))))
    refused("jax", trace, liar(lambda X: jnp.asarray(X)))
    refused("numpy", trace, liar(lambda X: X.numpy(), dtype=torch.float64, xp=torch))
    # SciPy's sparse matrices turn foreign arrays into NumPy's without a word
    S = sp.csr_array(EYE)
    refused("numpy|torch", trace, liar(lambda X: S @ X, dtype=torch.float64, xp=torch))
    refused("numpy|jax", trace, liar(lambda X: S @ X, dtype=jnp.float64, xp=jnp))


class Lazy:
    """The face of an array of dask, in a class of the same name."""

    ndim, dtype, device = 2, np.dtype(float), "cpu"

    def __init__(self, held: np.ndarray) -> None:
        self.held, self.shape = held, held.shape

    def __array_namespace__(self, **_: Any) -> Any:
        raise AssertionError("it is refused before")

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self.held

    def __matmul__(self, X: Any) -> Lazy:
        return Lazy(self.held @ np.asarray(X))


Lazy.__name__, Lazy.__module__ = "Array", "dask.array.core"


@traces
def test_arrays_of_dask(trace: Any) -> None:
    da = pytest.importorskip("dask.array")
    A = da.from_array(matrix("psd", N), chunks=(10, 10))
    for thing in (liar(lambda X: A @ X), liar(lambda X: da.from_array(EYE @ X))):
        refused(r"returned an array of dask.*xp=", trace, thing)


def test_products_of_lazy_arrays_are_computed_once_each() -> None:
    """Those of an operator that is declared to be of dask."""
    A, calls = matrix("psd", N), []

    def product(X: Lazy) -> Lazy:
        assert isinstance(X, Lazy), "what dask.array.asarray gives"
        calls.append(X.shape[1])
        return Lazy(A @ X.held)

    namespace: Any = ModuleType("dask.array")
    namespace.asarray = Lazy
    lazy = tk.LinearOperator((N, N), product, product, xp=namespace)
    for trace in TRACES:
        calls.clear()
        estimate = trace(lazy)
        assert float(estimate) == float(
            trace(tk.LinearOperator((N, N), A.__matmul__, A.__matmul__))
        )
        assert sum(calls) == estimate.num_matvecs
    try:
        import dask.array as da
    except ImportError:
        return
    real = tk.LinearOperator((N, N), lambda X: da.from_array(A, chunks=(10, 10)) @ X, xp=da)
    assert float(tk.exact_trace(real)) == pytest.approx(np.trace(A))


@traces
def test_tensors_in_parts(mesh: Any, trace: Any) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed.tensor import Replicate, distribute_tensor

    def product(X: Any) -> Any:
        return distribute_tensor(X, mesh, [Replicate()])

    refused(
        r"returned a DTensor.*layout=.*full_tensor\(\)",
        trace,
        liar(product, dtype=torch.float64, xp=torch),
    )


@traces
def test_products_on_another_device(trace: Any) -> None:
    strict = pytest.importorskip("array_api_strict")
    one, two = strict.Device("CPU_DEVICE"), strict.Device("device1")
    refused(
        "device",
        trace,
        liar(lambda X: X.to_device(two), dtype=strict.float64, xp=strict, device=one),
    )


@traces
def test_products_that_are_not_finite(eager: Library, trace: Any) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        A = matrix("psd", N)
        A[2, 2] = bad
        with np.errstate(invalid="ignore"):
            refused("NaN|finite|inf", trace, eager.array(A))
        A[2, 2] = 1.0
        A[3, 7] = A[7, 3] = bad
        if trace is not tk.exact_trace:  # its diagonal is finite, and its trace known
            with np.errstate(invalid="ignore"):
                refused("NaN|finite|inf", trace, eager.array(A))


@traces
def test_products_that_overflow(trace: Any) -> None:
    A = np.full((N, N), 1e308)
    with np.errstate(over="ignore", invalid="ignore"):
        refused("NaN|finite|inf", trace, A)


def test_the_error_of_a_product_that_is_not_finite_is_one_of_its_own() -> None:
    A = np.full((N, N), np.nan)
    with pytest.raises(tk.NotFiniteError) as caught:
        tk.hutchinson(A, 8, rng=0)
    assert isinstance(caught.value, ValueError)
    assert caught.value.estimate is None


@traces
def test_products_that_write_into_their_argument(trace: Any) -> None:
    def double(X: np.ndarray) -> np.ndarray:
        X *= 2
        return X

    def zero(X: np.ndarray) -> np.ndarray:
        X[0] = 0
        return X

    def into(X: np.ndarray) -> np.ndarray:
        return np.multiply(X, 2, out=X)

    for product in (double, zero, into):
        message = refused("copy", trace, liar(product))
        assert "wrote" in message or "read-only" in message


@traces
def test_errors_of_the_callers_own_product_come_through(trace: Any) -> None:
    class Mine(Exception):
        """Not ours to touch."""

    def product(X: np.ndarray) -> np.ndarray:
        raise Mine("the network is down")

    with pytest.raises(Mine, match="the network is down"):
        trace(liar(product))
    with pytest.raises(ValueError, match="my own sentence"):
        trace(liar(lambda X: (_ for _ in ()).throw(ValueError("my own sentence"))))


def test_products_with_the_wrong_argument() -> None:
    A = tk.as_operator(matrix("real", N))
    for f in (A.matmat, A.rmatmat, A.quad):
        refused(rf"\({N}, ", f, np.ones((N + 1, 2)))
        refused("shape", f, np.ones((N, 2, 2)))
    for x in (np.ones(N + 1), np.ones((N + 1, 2)), np.ones((1, N)), np.ones((N, 1, 1))):
        refused("shape", lambda x=x: A @ x)
    for f in (A.matmat, A.rmatmat, A.quad, A.matvec, A.rmatvec):
        for x in ("x", None, 3.0, [[1.0]] * N):
            refused(r"\w", f, x)


def test_arguments_of_another_library() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones((N, 2), dtype=torch.float64)
    A = tk.as_operator(matrix("real", N))
    refused("torch", A.matmat, x)
    refused("torch", lambda: A @ x)
    B = tk.as_operator(torch.eye(N, dtype=torch.float64))
    refused("numpy", B.matmat, np.ones((N, 2)))
    refused("numpy", lambda: B @ np.ones((N, 2)))


# XNysTrace on what is not positive semidefinite -----------------------------------------------


@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_xnystrace_on_the_wrong_operator(but_jax: Library, kind: str) -> None:
    A, B = matrix(kind, 30), matrix("complex" if kind == "complex psd" else "real", 30)
    for budget in (5, 20):
        for seed in range(2):
            run = partial(tk.xnystrace, num_matvecs=budget, rng=seed)
            refused("semidefinite", run, but_jax.array(-A))
            refused("semidefinite", run, but_jax.array(A - np.eye(30)))
            refused("Hermitian", run, but_jax.array(B @ B))
            refused("Hermitian", run, but_jax.array(np.triu(np.ones((30, 30)))))
            refused(
                "Hermitian|semidefinite",
                run,
                but_jax.array(np.tril(np.ones((30, 30)), -1) - np.triu(np.ones((30, 30)), 1)),
            )


@pytest.mark.parametrize("scale", [1e-160, 1e-18, 1e150])
def test_xnystrace_sees_indefiniteness_at_every_scale(scale: float) -> None:
    refused("semidefinite", tk.xnystrace, -scale * matrix("psd", 30), 8, rng=0)
    refused("Hermitian", tk.xnystrace, scale * matrix("real", 30), 8, rng=0)


@pytest.mark.parametrize(
    "law", [probes.rademacher, probes.sphere, probes.orthogonal], ids=lambda f: f.__name__
)
def test_xnystrace_takes_every_semidefinite_operator(but_jax: Library, law: Any) -> None:
    """Rank-deficient, tiny, integer, singular to the last bit: never refused."""
    v = np.arange(30.0)
    graph = sp.diags_array(
        [np.full(29, -1.0), np.r_[1.0, np.full(28, 2.0), 1.0], np.full(29, -1.0)],
        offsets=[-1, 0, 1],
    )
    for A in (
        np.outer(v, v),
        np.ones((30, 30)),
        np.zeros((30, 30)),
        np.eye(30),
        graph.toarray(),
        np.diag(v < 1).astype(float),
        np.diag(10.0 ** -np.arange(30.0)),
        matrix("psd", 30),
    ):
        for budget in (4, 25):
            for seed in range(8 if but_jax.name == "numpy" else 2):
                estimate = tk.xnystrace(but_jax.array(A), budget, rng=seed, probes=law)
                assert np.isfinite(float(estimate.value))


# Compositions ---------------------------------------------------------------------------------


def test_shapes_that_do_not_go_together() -> None:
    A, L = tk.as_operator(EYE), tk.as_operator(np.ones((5, 3)))
    assert "(5, 3)" in refused("shape", lambda: A @ L)
    refused("shape", lambda: A + L)
    refused("shape", lambda: L - A)
    refused("shape", lambda: L @ L)
    refused("columns", tk.vstack, [EYE, np.ones((2, 3))])
    refused("block", tk.vstack, [])
    refused("block", tk.block_diagonal, [])
    refused(r"\w", tk.vstack, [EYE, "x"])
    refused(r"\w", tk.gram, "x")
    refused(r"\w", tk.counted, None)


def test_libraries_and_devices_that_do_not_go_together() -> None:
    torch = pytest.importorskip("torch")
    A, B = tk.as_operator(EYE), tk.as_operator(torch.eye(N, dtype=torch.float64))
    for combine in (
        lambda: A @ B,
        lambda: A + B,
        lambda: B - A,
        lambda: tk.vstack([A, B]),
        lambda: tk.block_diagonal([A, B]),
    ):
        refused("torch", combine)
    strict = pytest.importorskip("array_api_strict")
    one, two = (
        tk.as_operator(strict.asarray(EYE, device=strict.Device(d)))
        for d in ("CPU_DEVICE", "device1")
    )
    refused("device", lambda: one + two)


def test_adjoints_that_nobody_gave() -> None:
    A = tk.LinearOperator((N, N), EYE.__matmul__)
    for use in (
        lambda: A.H,
        lambda: tk.gram(A),
        lambda: A.rmatvec(np.ones(N)),
        lambda: (A + A).H,
        lambda: (A @ A).H,
    ):
        refused("rmatmat", use)


def test_complex_multiples_of_real_operators() -> None:
    refused("complex", lambda: 1j * tk.as_operator(EYE))


def test_exact_values_are_checked_too() -> None:
    A = liar(EYE.__matmul__, exact={"trace": lambda: np.asarray(np.nan)})
    refused("NaN|finite", tk.exact_trace, A)


def test_former_names_of_arguments_are_taken() -> None:
    A = matrix("psd", N)
    now, before = tk.xtrace(A, 12, rng=0, chunk_size=3), tk.xtrace(A, 12, rng=0, block_size=3)
    assert float(now) == float(before)
    L = tk.LinearOperator(A.shape, lambda X: A @ X)
    now = tk.trace(L, rtol=0.0, num_matvecs=10, rng=0)
    assert float(tk.trace(L, rtol=0.0, max_matvecs=10, rng=0)) == float(now)
    with pytest.raises(TypeError, match="former name of `chunk_size`"):
        tk.exact_trace(A, chunk_size=2, block_size=2)
