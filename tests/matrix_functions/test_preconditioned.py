"""Preconditioned log-determinants and traces of inverses, and what makes preconditioners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import library

import tracekit as tk


def laplacian(side: int = 16, shift: float = 0.05) -> sp.csc_array:
    line = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
    eye = sp.eye_array(side)
    return sp.csc_array(sp.kron(line, eye) + sp.kron(eye, line) + shift * sp.eye_array(side**2))


def kernel(n: int = 300, width: float = 0.1, noise: float = 0.01) -> np.ndarray:
    x = np.sort(np.random.default_rng(0).random(n))
    return np.exp(-0.5 * ((x[:, None] - x) / width) ** 2) + noise * np.eye(n)


def complex_definite(n: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    B = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
    return B @ B.conj().T / n + np.diag(np.linspace(0.2, 3, n))


def without_root(P: tk.Preconditioner) -> tk.Preconditioner:
    M = P.inverse
    return tk.Preconditioner(
        tk.LinearOperator(M.shape, M.matmat, dtype=M.dtype), P.logdet, P.trace_inverse
    )


def of_matrix(P: np.ndarray, *, root: bool = True) -> tk.Preconditioner:
    F = np.linalg.inv(np.linalg.cholesky(P)).conj().T
    inverse: Any = tk.gram(F) if root else np.linalg.inv(P)
    return tk.Preconditioner(inverse, np.linalg.slogdet(P)[1], np.trace(np.linalg.inv(P)).real)


def logdet(A: np.ndarray) -> float:
    return float(np.linalg.slogdet(A)[1])


def trace_inverse(A: np.ndarray) -> float:
    return float(np.trace(np.linalg.inv(A)).real)


TRUTHS: dict[Callable[..., tk.Estimate], Callable[..., float]] = {
    tk.logdet: logdet,
    tk.trace_inverse: trace_inverse,
}
both = pytest.mark.parametrize("function", TRUTHS, ids=lambda f: f.__name__)
roots = pytest.mark.parametrize("root", [True, False], ids=["root", "no root"])


# --- what makes preconditioners -------------------------------------------------------------------


def textbook_ic0(A: np.ndarray) -> np.ndarray:
    L, pattern = np.tril(A), np.tril(A) != 0
    for k in range(A.shape[0]):
        L[k, k] = np.sqrt(L[k, k])
        rows = k + 1 + np.nonzero(pattern[k + 1 :, k])[0]
        L[rows, k] /= L[k, k]
        for j in rows:
            below = rows[(rows >= j) & pattern[rows, j]]
            L[below, j] -= L[below, k] * L[j, k].conj()
    return L


@pytest.mark.parametrize("kind", ["real", "complex", "float32"])
def test_incomplete_cholesky_is_the_textbook_one(kind: str) -> None:
    A = laplacian(8)
    if kind == "complex":
        upper = sp.triu(A, 1)
        A = sp.csc_array(A + 0.3j * (upper - upper.T))
    A = A.astype("float32") if kind == "float32" else A
    L, P = textbook_ic0(A.toarray()), tk.incomplete_cholesky(A)
    rough = 1e-4 if kind == "float32" else 1e-10
    inverse = np.linalg.inv(L @ L.conj().T)
    assert P.inverse @ np.eye(64, dtype=A.dtype) == pytest.approx(inverse, rel=rough, abs=rough)
    assert P.logdet == pytest.approx(2 * np.log(np.abs(np.diag(L))).sum(), rel=rough)
    assert float(P.inverse.exact["trace"]()) == pytest.approx(np.trace(inverse).real, rel=rough)
    assert (P.inverse @ np.eye(64, dtype=A.dtype)).dtype == A.dtype


def test_incomplete_cholesky_of_what_has_none_is_definite_all_the_same() -> None:
    A = np.array([[3.0, -2, 0, 2], [-2, 3, -2, 0], [0, -2, 3, -2], [2, 0, -2, 3]])  # Kershaw
    assert np.linalg.eigvalsh(A).min() > 0
    P = tk.incomplete_cholesky(sp.csc_array(A))
    M = P.inverse @ np.eye(4)
    assert np.linalg.eigvalsh(M).min() > 0
    assert P.logdet == pytest.approx(-logdet(M))


@pytest.mark.parametrize("diagonal", [0.1, np.linspace(0.1, 2, 40)], ids=["number", "array"])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("r", [1, 3, 60])
def test_low_rank_plus_diagonal(diagonal: Any, complex_: bool, r: int) -> None:
    rng = np.random.default_rng(0)
    F = rng.standard_normal((40, r)) + 1j * complex_ * rng.standard_normal((40, r))
    F = F if complex_ else F.real
    D = F @ F.conj().T + diagonal * np.eye(40)
    P = tk.low_rank_plus_diagonal(F, diagonal)
    I = np.eye(40, dtype=F.dtype)  # noqa: E741
    assert P.inverse @ I == pytest.approx(np.linalg.inv(D), abs=1e-9)
    root = P.inverse.factor @ I
    assert root @ root.conj().T == pytest.approx(np.linalg.inv(D), abs=1e-9)
    adjoint = P.inverse.factor.H @ I
    assert adjoint == pytest.approx(root.conj().T, abs=1e-9)
    assert float(P.logdet) == pytest.approx(logdet(D))
    assert float(P.trace_inverse) == pytest.approx(trace_inverse(D))


def test_pivoted_cholesky_takes_the_largest_pivots() -> None:
    K = kernel(60)
    F = tk.pivoted_cholesky(K, 60, shift=0.01)
    left, picked = K - 0.01 * np.eye(60), []
    for column in F.T:
        pivot = int(np.argmax(np.diag(left)))
        picked.append(pivot)
        assert column == pytest.approx(left[:, pivot] / left[pivot, pivot] ** 0.5, abs=1e-6)
        left = left - np.outer(column, column)
    assert len(set(picked)) == F.shape[1] < 60  # it ends where nothing is left
    assert np.abs(left).max() < 1e-10


def test_pivoted_cholesky_costs_as_many_columns() -> None:
    K = kernel(60)
    operator, counter = tk.counted(
        tk.LinearOperator(K.shape, lambda X: K @ X, exact={"diagonal": lambda: np.diag(K)})
    )
    assert tk.pivoted_cholesky(operator, 7, shift=0.01).shape == (60, 7)
    assert counter.total == 7


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: tk.incomplete_cholesky(np.eye(3)), "sparse matrix of SciPy"),
        (lambda: tk.incomplete_cholesky(sp.csc_array(np.ones((3, 2)))), "square matrix"),
        (lambda: tk.incomplete_cholesky(sp.csc_array(-np.eye(3))), "positive diagonal"),
        (lambda: tk.low_rank_plus_diagonal([1.0], 1.0), "shape \\(n, r\\)"),
        (lambda: tk.low_rank_plus_diagonal(np.ones((3, 1)), np.ones(2)), "one number for each"),
        (lambda: tk.low_rank_plus_diagonal(np.ones((3, 1)), 0.0), "must be positive"),
        (lambda: tk.pivoted_cholesky(np.eye(3), 0), "rank"),
        (lambda: tk.pivoted_cholesky(np.eye(3), 2, shift=1.0), "smaller `shift`"),
        (
            lambda: tk.pivoted_cholesky(tk.LinearOperator((3, 3), lambda X: X), 2),
            "diagonal of A is not known",
        ),
    ],
)
def test_what_makes_no_preconditioner_is_refused(make: Callable[[], Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        make()


@pytest.mark.parametrize("name", ["torch", "jax", "strict:CPU_DEVICE"])
def test_low_rank_in_other_libraries(name: str) -> None:
    lib = library(name)
    scale = np.linspace(1, 2, 60)  # no two pivots are equal
    K = scale[:, None] * kernel(60) * scale
    A = lib.array(K)
    operator = tk.LinearOperator(
        K.shape, lambda X: A @ X, dtype=A.dtype, xp=tk.as_operator(A).xp, device=lib_device(A),
        exact={"diagonal": lambda: lib.array(np.diag(K).copy())},
    )  # fmt: skip
    F = tk.pivoted_cholesky(operator, 5, shift=0.01)
    assert lib.at_home(F)
    P = tk.low_rank_plus_diagonal(F, 0.01)
    wanted = tk.low_rank_plus_diagonal(tk.pivoted_cholesky(K, 5, shift=0.01), 0.01)
    assert float(P.logdet) == pytest.approx(float(wanted.logdet), rel=1e-4)
    for function in TRUTHS if name != "jax" else ():  # which compiles every step, and is below
        found = function(A, 30, rng=0, depth=5, preconditioner=P)
        assert lib.at_home(found.value)
        same = function(K, 30, rng=0, depth=5, preconditioner=wanted)
        assert float(found.value) == pytest.approx(float(same), rel=1e-2)


def lib_device(A: Any) -> Any:
    return tk.as_operator(A).device


# --- estimates ------------------------------------------------------------------------------------


@both
@roots
def test_intervals_hold_what_is_claimed_is_spent(function: Any, root: bool) -> None:
    A = laplacian()
    P = tk.incomplete_cholesky(A)
    P = tk.Preconditioner(P.inverse, P.logdet, P.inverse.exact["trace"]())
    P = P if root else without_root(P)
    truth, held, finite = TRUTHS[function](A.toarray()), 0, 0
    for seed in range(12):
        operator, counter = tk.counted(tk.LinearOperator(A.shape, lambda X: A @ X))
        found = function(operator, 120, rng=seed, preconditioner=P)
        assert found.num_matvecs == counter.total <= 120
        low, high = found.confidence_interval(0.99)
        held += bool(low <= truth <= high)
        finite += bool(high - low < 0.1 * truth)
    assert held >= 11
    assert finite == 12


@both
@roots
def test_complex_operators(function: Any, root: bool) -> None:
    A = complex_definite()
    P = of_matrix(0.5 * A + np.diag(np.linspace(0.2, 1, 200)), root=root)
    for seed in range(3):
        found = function(A, 90, rng=seed, preconditioner=P)
        low, high = found.confidence_interval(0.999)
        assert low < TRUTHS[function](A) < high


@both
def test_the_operator_itself_gives_the_value(function: Any) -> None:
    A = complex_definite()
    for P in (A, of_matrix(A), of_matrix(A, root=False)):
        found = function(A, 60, rng=0, preconditioner=P)
        assert float(found) == pytest.approx(TRUTHS[function](A), rel=1e-9)


@both
@roots
@pytest.mark.parametrize("m", [1, 2, 3, 5, 11, 299, 300])
def test_small_budgets_and_the_exact_answer(function: Any, root: bool, m: int) -> None:
    A = kernel()
    P = of_matrix(A + 0.2 * np.eye(300), root=root)
    operator, counter = tk.counted(A)
    found = function(operator, m, rng=0, preconditioner=P)
    assert found.num_matvecs == counter.total <= m
    if m == 300:
        assert float(found) == pytest.approx(TRUTHS[function](A), rel=1e-8)
        assert float(found.standard_error) == 0
    else:
        off = abs(float(found) - TRUTHS[function](A))
        assert off < 6 * float(found.standard_error)


@both
@roots
def test_factors_are_counted_in_their_columns(function: Any, root: bool) -> None:
    A = laplacian(12).toarray()
    P = tk.incomplete_cholesky(laplacian(12))
    P = tk.Preconditioner(P.inverse, P.logdet, P.inverse.exact["trace"]())
    operator, counter = tk.counted(tk.gram(np.linalg.cholesky(A)))
    found = function(operator, 101, rng=0, preconditioner=P if root else without_root(P))
    assert found.num_matvecs == counter.total <= 101
    low, high = found.confidence_interval(0.999)
    assert low < TRUTHS[function](A) < high


@both
def test_n_of_one_and_two(function: Any) -> None:
    for n in (1, 2):
        A = np.diag(np.arange(2.0, 2 + n))
        for m in (1, 2):
            found = function(A, m, rng=0, preconditioner=np.eye(n))
            off = abs(float(found) - TRUTHS[function](A))
            assert off <= 1e-12 or np.isinf(float(found.standard_error))


def test_the_first_probes_meet_their_own_folds_alone() -> None:
    """Samples of the trace of the inverse have the right mean over many seeds."""
    A = laplacian(10)
    P = tk.incomplete_cholesky(A)
    truth = trace_inverse(A.toarray())
    values = [
        float(tk.trace_inverse(A, 90, rng=seed, depth=9, preconditioner=P)) for seed in range(80)
    ]
    z = (np.mean(values) - truth) / np.std(values) * len(values) ** 0.5
    assert abs(z) < 3.5


def test_a_preconditioner_of_the_identity_changes_nothing() -> None:
    A = laplacian().toarray()
    one = tk.Preconditioner(np.eye(256), 0.0, 256.0)
    plain = tk.trace_inverse(A, 150, rng=0)
    found = tk.trace_inverse(A, 150, rng=0, preconditioner=one)
    assert float(found) == pytest.approx(float(plain), rel=1e-6)
    plain = tk.logdet(A, 90, rng=0)
    root = tk.Preconditioner(tk.gram(np.eye(256)), 0.0)
    assert float(tk.logdet(A, 90, rng=0, preconditioner=root)) == pytest.approx(float(plain))


@pytest.mark.parametrize("kind", ["nystrom", "ones", "random", "huge"])
def test_a_bad_control_does_no_harm_to_the_trace_of_an_inverse(kind: str) -> None:
    A, rng = kernel(150, 0.05, 0.1), np.random.default_rng(0)
    B = rng.standard_normal((150, 150))
    P = {
        "nystrom": A + 3 * np.outer(A[0], A[0]),
        "ones": np.ones((150, 150)) + 0.1 * np.eye(150),
        "random": B @ B.T / 150 + np.eye(150),
        "huge": 1e8 * np.eye(150) + np.ones((150, 150)),
    }[kind]
    truth, off, plain = trace_inverse(A), [], []
    samples = lambda found: np.asarray(found.samples) - truth  # noqa: E731
    for seed in range(6):
        options = {"rng": seed, "depth": 20}
        off.append(samples(tk.trace_inverse(A, 149, preconditioner=of_matrix(P), **options)))
        plain.append(samples(tk.trace_inverse(A, 149, deflate=0, **options)))
    assert np.mean(np.square(off)) < 1.1 * np.mean(np.square(plain))


def test_a_shift_is_of_the_preconditioned_operator() -> None:
    A = kernel(400, 0.01)
    P = tk.low_rank_plus_diagonal(tk.pivoted_cholesky(A, 20, shift=0.01), 0.01)
    found = tk.logdet(A, 120, rng=0, preconditioner=P, shift=1.0)
    assert abs(float(found) - logdet(A)) < 3 * float(found.standard_error)


def gradient_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[Any, float]]:
    A, dA = kernel(40, 0.3, 0.1), np.diag(np.linspace(0, 1, 40))
    root = np.linalg.inv(np.linalg.cholesky(A + 0.05 * np.eye(40))).T
    solved = np.linalg.solve(A, dA)
    slopes = {
        tk.logdet: np.trace(solved),
        tk.trace_inverse: -np.trace(np.linalg.solve(A, solved.T)),
    }
    return A, dA, root, slopes


@pytest.mark.parametrize("function", TRUTHS)
def test_gradients(function: Any) -> None:
    torch = library("torch")
    A, dA, root, slopes = gradient_problem()
    P = np.linalg.inv(root @ root.T)
    held = tk.Preconditioner(tk.gram(torch.array(root)), logdet(P), trace_inverse(P))
    leaf = torch.array(A).requires_grad_()
    function(leaf, 36, rng=0, depth=5, preconditioner=held).value.backward()
    assert np.sum(torch.numpy(leaf.grad) * dA) == pytest.approx(slopes[function], rel=0.2)


@pytest.mark.parametrize("function", TRUTHS)
def test_compiled_with_gradients(function: Any) -> None:
    jax, lib = pytest.importorskip("jax"), library("jax")
    A, dA, root, slopes = gradient_problem()
    P = np.linalg.inv(root @ root.T)

    def value(X: Any, F: Any) -> Any:
        held = tk.Preconditioner(tk.gram(F), logdet(P), trace_inverse(P))
        return function(X, 36, rng=0, depth=3, preconditioner=held).value

    compiled = jax.jit(jax.value_and_grad(value))
    found, slope = compiled(lib.array(A), lib.array(root))
    assert float(found) == pytest.approx(TRUTHS[function](A), rel=0.2)
    assert np.sum(lib.numpy(slope) * dA) == pytest.approx(slopes[function], rel=0.3)


def test_multigrid_of_pyamg() -> None:
    pyamg = pytest.importorskip("pyamg", reason="PyAMG is not installed")
    A = sp.csr_array(laplacian(24))
    M = tk.as_operator(pyamg.smoothed_aggregation_solver(A).aspreconditioner(cycle="V"))
    P = tk.Preconditioner(M, trace_inverse=tk.hutchinson(M, 2000, rng=1))
    found = tk.trace_inverse(A, 150, rng=0, preconditioner=P)
    low, high = found.confidence_interval(0.999)
    assert low < trace_inverse(A.toarray()) < high


# --- bad input ------------------------------------------------------------------------------------

A0 = kernel(100)


def inner_solver(X: np.ndarray) -> np.ndarray:
    from scipy.sparse.linalg import cg

    return np.stack([cg(A0, x, rtol=1e-3)[0] for x in X.T], axis=1)


@both
@pytest.mark.parametrize(
    ("P", "told"),
    [
        (tk.Preconditioner(tk.LinearOperator((100, 100), inner_solver), 0.0, 1.0), "linear"),
        (tk.Preconditioner(-np.eye(100), 0.0, 1.0), "not positive definite"),
        (tk.Preconditioner(np.eye(100) + np.triu(np.ones((100, 100))), 0.0, 1.0), "not Hermitian"),
        (tk.Preconditioner(np.eye(99), 0.0, 1.0), "of the shape"),
        (tk.Preconditioner(1j * np.eye(100), 0.0, 1.0), "must be real"),
        (np.eye(99), "of the shape"),
        (np.diag(np.linspace(-0.01, 1, 100)), "not positive definite"),
        (tk.gram(np.ones((100, 3))), "not positive definite"),
        ("P", "no shape"),
        (tk.Preconditioner(tk.gram(np.eye(100))), "not known"),
    ],
)
def test_what_is_no_preconditioner_is_refused(function: Any, P: Any, told: str) -> None:
    if told == "not known" and function is tk.trace_inverse:
        P = tk.Preconditioner(tk.LinearOperator((100, 100), lambda X: X), 0.0)
    with pytest.raises((ValueError, TypeError), match=told):
        function(A0, 50, rng=0, preconditioner=P)


def test_a_slightly_indefinite_preconditioner_is_found_on_the_way() -> None:
    M = np.diag(np.append(np.linspace(1, 2, 99), -0.5))
    A = kernel(100, 0.001, 1.0)
    with pytest.raises(ValueError, match="not positive definite"):
        tk.trace_inverse(A + 50 * np.diag(np.eye(100)[99]), 90, rng=0,
                         preconditioner=tk.Preconditioner(M, 0.0, 1.0))  # fmt: skip


def test_options_that_do_not_go_together_are_refused() -> None:
    rootless = tk.Preconditioner(np.eye(100), 0.0, 100.0)
    for call in (
        lambda: tk.logdet(A0, 50, hermitian=False, preconditioner=rootless),
        lambda: tk.logdet(A0, 50, deflate=3, preconditioner=rootless),
        lambda: tk.logdet(A0, 50, shift=0.1, preconditioner=rootless),
        lambda: tk.trace_inverse(A0, 50, deflate=3, preconditioner=rootless),
        lambda: tk.trace_inverse(A0, 50, bounds=(0.01, 90.0), preconditioner=rootless),
    ):
        with pytest.raises(ValueError, match="leave"):
            call()


def test_non_hermitian_operators_are_refused() -> None:
    A = np.eye(100) + np.triu(np.ones((100, 100))) * 0.1
    for P in (np.eye(100), tk.Preconditioner(np.eye(100), 0.0, 100.0)):
        for function in TRUTHS:
            with pytest.raises(ValueError, match="ermitian"):
                function(A, 50, rng=0, preconditioner=P)
