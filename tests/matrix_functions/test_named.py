"""Laws of log-determinants and their gradients, norms, ranks, and of f(A) itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import twins_functions as naive
from conftest import Library, library, matrix

import tracekit as tk
from tracekit import functions
from tracekit.probes.source import Source
from tracekit.testing import adjoint_test, known_spectrum

mpl.use("Agg")
N = 20
Named = Callable[..., tk.Estimate]


def definite(kind: str, n: int = N) -> np.ndarray:
    return matrix(kind, n) + 0.1 * np.eye(n)


def entropy_rank(A: np.ndarray) -> float:
    s = np.linalg.svd(A, compute_uv=False)
    p = s[s > 1e-14 * s.max()] / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def schatten(A: np.ndarray, p: float) -> float:
    return float(np.sum(np.linalg.svd(A, compute_uv=False) ** p) ** (1 / p))


OF_DEFINITE: dict[str, tuple[Named, Callable[[np.ndarray], float]]] = {
    "logdet": (tk.logdet, lambda A: np.linalg.slogdet(A)[1]),
    "trace_inverse": (tk.trace_inverse, lambda A: np.trace(np.linalg.inv(A)).real),
    "effective_dimension": (
        lambda A, m, **o: tk.effective_dimension(A, 0.5, m, **o),
        lambda A: np.trace(A @ np.linalg.inv(A + 0.5 * np.eye(len(A)))).real,
    ),
    "estrada_index": (tk.estrada_index, lambda A: np.sum(np.exp(np.linalg.eigvalsh(A)))),
}
OF_ANY: dict[str, tuple[Named, Callable[[np.ndarray], float]]] = {
    "nuclear_norm": (tk.nuclear_norm, lambda A: schatten(A, 1)),
    "schatten_norm": (
        lambda A, m, **o: tk.schatten_norm(A, 3.0, m, **o),
        lambda A: schatten(A, 3),
    ),
    "entropy_rank": (tk.entropy_rank, entropy_rank),
}
ALL = OF_DEFINITE | OF_ANY


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_exact_with_n_products(but_jax: Library, name, kind):
    estimator, twin = ALL[name]
    A = definite(kind)
    for operator in (but_jax.array(A), tk.gram(but_jax.array(np.linalg.cholesky(A)))):
        estimate = estimator(operator, N)
        assert np.isclose(float(estimate), twin(A), rtol=1e4 * but_jax.eps)
        assert (estimate.num_matvecs, float(estimate.standard_error)) == (N, 0.0)
        assert estimate.value.dtype == but_jax.real
        assert but_jax.at_home(estimate.value)
        assert estimate.method == name


@pytest.mark.parametrize("name", OF_ANY)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (15, 15)])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_singular_values_of_any_matrix(name, shape, kind):
    estimator, twin = OF_ANY[name]
    A = matrix(kind, 20)[: shape[0], : shape[1]]
    estimate = estimator(A, 30)
    assert np.isclose(estimate.value, twin(A), rtol=1e-11)
    assert estimate.num_matvecs == min(shape)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("path", ["matrix", "factor", "hermitian", "no adjoint"])
def test_intervals_hold_and_counts_are_honest(name, path):
    estimator, twin = ALL[name]
    A = known_spectrum(np.linspace(1.0, 4.0, 100))
    exact, hits = twin(A), 0
    options = {"hermitian": True} if path == "hermitian" and name in OF_ANY else {}
    operators: dict[str, Callable[[], Any]] = {
        "matrix": lambda: A,
        "hermitian": lambda: A,
        "factor": lambda: tk.gram(np.linalg.cholesky(A)),
        "no adjoint": lambda: tk.LinearOperator(A.shape, lambda X: A @ X),
    }
    for seed in range(20):
        operator, counter = tk.counted(operators[path]())
        estimate = estimator(operator, 90, rng=seed, **options)
        assert counter.total == estimate.num_matvecs <= 90
        low, high = estimate.confidence_interval()
        hits += low <= exact <= high
        assert abs(estimate.value - exact) < 0.2 * exact
    assert hits >= 16


def test_indefinite_matrices_by_the_moduli_of_their_eigenvalues():
    A = matrix("hermitian", 30)
    operator = tk.LinearOperator(A.shape, lambda X: A @ X, dtype=A.dtype)  # has no adjoint
    for given, options in ((A, {"hermitian": True}), (operator, {})):
        assert np.isclose(tk.nuclear_norm(given, 30, **options).value, schatten(A, 1))
        assert np.isclose(tk.entropy_rank(given, 30, **options).value, entropy_rank(A))


@pytest.mark.parametrize("p", [0, -1, np.inf, np.nan, "nuc"])
def test_powers_of_norms_have_to_be_positive(p):
    with pytest.raises(ValueError, match="positive number"):
        tk.schatten_norm(np.eye(3), p, 3)


@pytest.mark.parametrize("name", OF_ANY)
@pytest.mark.parametrize("m", [9, 30, 100])
def test_the_zero_matrix_has_zero_norms_and_rank_without_error(name, m):
    zero = np.zeros((50, 40), np.float32)
    square = np.zeros((50, 50), np.complex64)
    for operator, options in (
        (zero, {}), (tk.gram(zero), {}), (square, {"hermitian": True}), (square, {"deflate": 2}),
    ):  # fmt: skip
        if options.get("deflate") and m < 30:
            continue
        estimate = OF_ANY[name][0](operator, m, rng=0, **options)
        assert (float(estimate), float(estimate.standard_error)) == (0, 0)
        assert estimate.converged


@pytest.mark.parametrize("name", OF_ANY)
@pytest.mark.parametrize("path", ["matrix", "hermitian", "factor", "exact"])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_a_unit_is_taken_out_of_singular_values_first(name, path, scale):
    A = known_spectrum(np.arange(1, 81.0) ** -1)
    m = 80 if path == "exact" else 60
    options = {"hermitian": True} if path == "hermitian" else {}

    def run(c: float) -> tk.Estimate:
        B = (c * A).astype(np.float32)
        if path == "factor":  # of a Gram matrix in the unit c
            B = tk.gram((c**0.5 * np.linalg.cholesky(A)).astype(np.float32))
        return OF_ANY[name][0](B, m, rng=0, **options)

    unit = 1.0 if name == "entropy_rank" else scale
    scaled, plain = run(scale), run(1.0)
    assert scaled.value.dtype == np.float32
    assert np.isclose(float(scaled.value) / unit, plain.value, rtol=1e-3)
    assert np.isclose(float(scaled.standard_error) / unit, plain.standard_error, rtol=0.1)
    assert np.isclose(plain.value, OF_ANY[name][1](A), rtol=1e-4 if path == "exact" else 0.2)


def test_high_powers_of_small_singular_values_do_not_vanish():
    s = np.linspace(1e-7, 2e-7, 50)
    exact = 2e-7 * np.sum((s / 2e-7) ** 50) ** (1 / 50)
    assert np.isclose(tk.schatten_norm(np.diag(s), 50.0, 50).value, exact, rtol=1e-12)


def test_rectangles_without_adjoint_are_refused():
    with pytest.raises(TypeError, match="adjoint"):
        tk.nuclear_norm(tk.LinearOperator((4, 3), lambda X: np.ones((4, 3)) @ X), 9)


@pytest.mark.parametrize("name", ["logdet", "trace_inverse"])
def test_singular_and_indefinite_matrices_are_refused(name):
    w = np.repeat([0.0, 1.0], 30)
    for m in (40, 60):
        with pytest.raises(ValueError, match="singular"):
            ALL[name][0](known_spectrum(w), m, rng=0)
        with pytest.raises(ValueError, match="0 or more"):
            ALL[name][0](known_spectrum(w - 0.5), m, rng=0)


def test_compiled():
    jax, A = library("jax-jit"), definite("psd", 30)
    estimate = jax.call(
        lambda A, rng: tk.entropy_rank(A, 28, rng=rng, depth=2), jax.array(A), jax.rng(0)
    )
    low, high = estimate.confidence_interval(0.9999)
    assert low <= entropy_rank(A) <= high


# --- gradients ------------------------------------------------------------------------------------

FEW = np.repeat([0.5, 1.0, 3.0], 20)  # three steps solve exactly
BASE, DIRECTION = known_spectrum(FEW), known_spectrum(np.linspace(0.0, 1.0, 60), rng=5)


def expected_slopes(count: int, seed: int) -> np.ndarray:
    Omega = Source(seed, tk.as_operator(BASE)).signs((60, count))
    return naive.slope_of_logdet(BASE, DIRECTION, Omega)


def value_and_slope(lib: Library, run: Callable[[Any], Any]) -> tuple[float, float]:
    """Of a function of one number at zero, by the library's own differentiation."""
    if lib.family == "torch":
        import torch

        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        value = run(t)
        value.backward()
        return float(value.detach()), float(t.grad)
    import jax

    def of(t: Any) -> Any:
        return run(t)

    f = jax.value_and_grad(of)
    value, slope = (jax.jit(f) if lib.jit else f)(lib.xp.asarray(0.0))
    return float(value), float(slope)


def moved(lib: Library, t: Any, *, factored: bool) -> Any:
    """A(t) with A(0) = BASE and A'(0) = DIRECTION."""
    A = lib.array(BASE) + t * lib.array(DIRECTION)
    if not factored:
        return A
    root = naive.matrix_function(BASE, np.sqrt)
    # (R + t B)(R + t B)^T has the derivative R B + B R = D, solved in the eigenvectors of R
    w, V = np.linalg.eigh(root)
    inner = V.T @ DIRECTION @ V / (w[:, None] + w)
    return tk.gram(lib.array(root) + t * lib.array(V @ inner @ V.T))


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("name", ["torch", "jax-jit"])
def test_gradient_of_logdet_is_the_mean_of_solves(name, factored):
    lib, depth = library(name), 3
    spent = []

    def run(t):
        A = moved(lib, t, factored=factored)
        A = A if factored else tk.as_operator(A)
        estimate = tk.logdet(A, 49, rng=7, depth=depth, deflate=0)
        spent.append(estimate.num_matvecs)
        return estimate.value

    value, slope = value_and_slope(lib, run)
    count = 49 // (7 if factored else 4)  # a product more for each probe, two with a factor
    assert spent[-1] == count * (7 if factored else 4)
    assert np.isclose(slope, expected_slopes(count, 7).mean(), rtol=1e-9)
    Omega = Source(7, tk.as_operator(BASE)).signs((60, count))
    assert np.isclose(value, naive.forms(BASE, Omega, np.log, depth).mean(), rtol=1e-9)


def test_gradient_through_the_preconditioner_and_at_automatic_depth():
    torch = pytest.importorskip("torch")
    w = 30 * 0.7 ** np.arange(200) + 0.5
    A0, D = known_spectrum(w), known_spectrum(np.linspace(0.0, 1.0, 200), rng=5)
    exact = np.trace(np.linalg.solve(A0, D))
    slopes = []
    for seed in range(12):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        A, counter = tk.counted(torch.asarray(A0) + t * torch.asarray(D))
        estimate = tk.logdet(A, 180, rng=seed, deflate=40)
        assert counter.total == estimate.num_matvecs <= 180
        estimate.value.backward()
        slopes.append(float(t.grad))
        plain = tk.logdet(A0, 180, rng=seed, deflate=40, depth=3)
        assert abs(float(estimate) - float(plain)) < 5
    error = np.std(slopes, ddof=1) / 12**0.5
    assert abs(np.mean(slopes) - exact) < 4 * error < 0.05 * exact


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_gradient_of_the_exact_value(name):
    lib = library(name)
    _, slope = value_and_slope(lib, lambda t: tk.logdet(moved(lib, t, factored=False), 60).value)
    assert np.isclose(slope, np.trace(np.linalg.solve(BASE, DIRECTION)), rtol=1e-10)


def covariance(torch: Any, length: Any, noise: Any, n: int = 150) -> Any:
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    kernel = torch.exp(-((x[:, None] - x) ** 2) / (2 * length**2))
    return kernel + noise * torch.eye(n, dtype=x.dtype)


@pytest.mark.parametrize("m", [60, 110])
def test_the_depth_settles_the_solves_of_the_gradient(m):
    torch = pytest.importorskip("torch")
    parameters = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.04, 0.1)]
    exact = torch.autograd.grad(torch.logdet(covariance(torch, *parameters)), parameters)
    found = []
    for seed in range(20):
        estimate = tk.logdet(covariance(torch, *parameters), m, rng=seed)
        found.append(torch.stack(torch.autograd.grad(estimate.value, parameters)))
        assert estimate.kept.solves < 0.1
        assert estimate.converged
    slopes = torch.stack(found)
    error = torch.std(slopes, 0) / 20**0.5
    off = torch.abs(torch.mean(slopes, 0) - torch.stack(exact))
    assert bool(torch.all(off < 4 * error + 0.01 * torch.abs(torch.stack(exact))))


def test_the_gradient_carries_its_own_error():
    torch = pytest.importorskip("torch")
    parameters = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.04, 0.1)]
    A = covariance(torch, *parameters)
    deep, shallow = (tk.logdet(A, 140, rng=0, depth=d, deflate=0) for d in (27, 4))
    assert deep.converged
    assert deep.kept.solves < 0.02
    assert not shallow.converged
    assert "gradient" in shallow.reason
    assert shallow.kept.solves > 0.1
    (slope,) = torch.autograd.grad(deep.value, parameters[1:], retain_graph=True)
    each = [torch.autograd.grad(y, parameters[1:], retain_graph=True)[0] for y in deep.samples]
    assert np.isclose(float(torch.mean(torch.stack(each))), float(slope), rtol=1e-10)
    spread = float(torch.std(torch.stack(each))) / len(each) ** 0.5
    exact = float(torch.trace(torch.linalg.inv(A.detach())))
    assert abs(float(slope) - exact) < 4 * spread < 0.2 * exact
    assert tk.logdet(A.detach(), 140, rng=0).kept.solves is None


def test_no_product_is_spent_on_a_gradient_that_nobody_wants():
    torch = pytest.importorskip("torch")
    for A in (BASE, torch.asarray(BASE)):
        c, counter = tk.counted(A)
        assert tk.logdet(c, 49, rng=0, depth=3).num_matvecs == counter.total == 48


def test_a_budget_that_the_gradient_does_not_fit_in_is_refused():
    torch = pytest.importorskip("torch")
    t = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="gradient"):
        tk.logdet(t * torch.asarray(BASE), 3, rng=0, depth=3)


# --- f(A) as an operator --------------------------------------------------------------------------


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_function_operator_is_the_matrix_function(kind, factored):
    A = definite(kind)
    F = tk.function_operator(tk.gram(np.linalg.cholesky(A)) if factored else A, functions.log, N)
    exact = naive.matrix_function(A, np.log)
    X = np.eye(N, dtype=A.dtype)
    assert np.allclose(F @ X, exact, atol=1e-9)
    assert np.allclose(F.quad(X), np.diag(exact), atol=1e-9)
    assert np.allclose(F.H @ X, exact, atol=1e-9)
    assert np.isclose(tk.exact_trace(F).value, np.trace(exact))
    assert np.allclose(tk.diagonal(F).value, np.diag(exact))
    adjoint_test(F, rng=0)


def test_function_operator_in_every_library(lib: Library):
    A = definite("complex psd", 8)
    X = np.random.default_rng(0).standard_normal((8, 2)) + 0j

    def run(A, X):
        F = tk.function_operator(A, functions.exp, 2)
        return F @ X, F.quad(X)

    found = [lib.numpy(x) for x in lib.call(run, lib.array(A), lib.array(X))]
    Q = [naive.krylov_basis(A, x[:, None], 2) for x in X.T]
    expected = np.stack(
        [
            q @ naive.matrix_function(q.conj().T @ A @ q, np.exp) @ q.conj().T @ x
            for q, x in zip(Q, X.T, strict=True)
        ],
        axis=1,
    )
    assert np.allclose(found[0], expected, rtol=1e4 * lib.eps)
    assert np.allclose(found[1], np.einsum("ij,ij->j", X.conj(), expected), rtol=1e4 * lib.eps)


def test_function_operator_costs_what_it_says_and_keeps_dims():
    for factored, each in ((False, 3), (True, 5)):
        A = definite("psd")
        c, counter = tk.counted(tk.with_dims(tk.gram(A) if factored else A, (4, 5)))
        F = tk.function_operator(c, functions.exp, 3)
        F @ np.ones((N, 2))
        assert counter.total == 2 * each
        assert F.dims == (4, 5)


def test_function_operator_of_zero_columns_real_columns_and_complex_functions():
    A = definite("complex psd")
    F = tk.function_operator(A, lambda x: 1 / (x + 1j), N)
    exact = naive.matrix_function(A, lambda x: 1 / (x + 1j))
    assert np.allclose(F @ np.eye(N), exact, atol=1e-10)
    assert np.allclose(F.H @ np.eye(N), exact.conj().T, atol=1e-10)
    assert np.all(F @ np.zeros((N, 2)) == 0)
    with pytest.raises(ValueError, match="depth"):
        tk.function_operator(A, functions.exp, 0)


def test_subgraph_centralities_of_a_path():
    A = np.eye(30, k=1) + np.eye(30, k=-1)
    centrality = tk.diagonal(tk.function_operator(A, functions.exp, 12))
    assert np.allclose(centrality.value, np.diag(naive.matrix_function(A, np.exp)), atol=1e-10)
