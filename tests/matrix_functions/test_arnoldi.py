"""Laws of tr f(A) of operators that are not Hermitian: Arnoldi, honest errors, exact ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import twins_functions as naive
from conftest import Library, matrix

import tracekit as tk
from tracekit import functions
from tracekit._sketches import arnoldi, hessenberg

N = 100
TINY = 5
Matrix = np.ndarray


def shift(n: int) -> Matrix:
    """Ones above the diagonal: one Jordan block of eigenvalue 0."""
    return np.diag(np.ones(n - 1), 1)


def cube(x: Any) -> Any:
    return x * x * x + 2 * x - 1


def cosh(x: Any) -> Any:
    """As the user of any library may write it."""
    return (functions.exp(x) + functions.exp(-x)) / 2


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Matrix], Matrix]]] = {
    "exp": (functions.exp, scipy.linalg.expm),
    "cosh": (cosh, scipy.linalg.coshm),
    "exp(c x)": (lambda x: functions.exp(-0.5 * x), lambda H: scipy.linalg.expm(-0.5 * H)),
    "polynomial": (cube, lambda H: H @ H @ H + 2 * H - np.eye(len(H))),
}
named = pytest.mark.parametrize("name", FUNCTIONS)


def tiny() -> dict[str, Matrix]:
    rng = np.random.default_rng(2)
    X = rng.standard_normal((TINY, TINY))
    return {
        "general": X,
        "complex": X + 1j * rng.standard_normal((TINY, TINY)),
        "zero": np.zeros((TINY, TINY)),
        "identity": 2 * np.eye(TINY),
        "nilpotent": shift(TINY),
        "Jordan block": 0.95 * np.eye(TINY) + shift(TINY),
        "idempotent": np.outer(X[0], X[1]) / (X[0] @ X[1]),
        "cycle": np.roll(np.eye(TINY), 1, axis=0),
        "skew": X - X.T,
    }


def problems() -> dict[str, Matrix]:
    rng = np.random.default_rng(7)
    X = rng.standard_normal((N, N)) / N**0.5
    first = np.r_[1.0, -1.0, np.zeros(N - 2)]
    wind = 2 * np.eye(N) - 1.4 * shift(N).T - 0.6 * shift(N)
    return {
        "Ginibre": X,
        "Jordan block": 0.95 * np.eye(N) + shift(N),
        "Grcar": scipy.linalg.toeplitz(first, np.r_[np.ones(4), np.zeros(N - 4)]),
        "convection-diffusion": -wind,
        "directed graph": (rng.random((N, N)) < 3 / N) * 1.0,
    }


signs = np.array(list(itertools.product([-1.0, 1.0], repeat=TINY))).T


# --- the rule -------------------------------------------------------------------------------------


@named
@pytest.mark.parametrize("kind", tiny())
def test_the_mean_over_all_sign_vectors_is_the_trace(kind, name):
    A, (f, twin) = tiny()[kind], FUNCTIONS[name]
    K = arnoldi.begin(tk.as_operator(A), signs.astype(A.dtype)).advance(TINY)
    found, exact = hessenberg.forms(f, K, TINY), np.trace(twin(A))
    assert abs(np.mean(found.values) - exact) <= 1e-12 * np.mean(found.sizes) + np.mean(
        found.rounding
    )
    assert np.max(found.rounding) <= 1e-5 * np.max(found.sizes)
    assert np.iscomplexobj(found.values) == (kind == "complex")


@named
@pytest.mark.parametrize("kind", ["general", "complex", "idempotent", "nilpotent", "identity"])
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_forms_are_those_of_the_textbook(kind, name, depth):
    A, (f, twin) = tiny()[kind], FUNCTIONS[name]
    X = np.random.default_rng(0).standard_normal((TINY, 6)).astype(A.dtype)
    K = arnoldi.begin(tk.as_operator(A), X).advance(4)
    found = hessenberg.forms(f, K, depth)
    exact = naive.arnoldi_forms(A, X, twin, depth)
    assert np.all(abs(found.values - exact) <= 1e-12 * found.sizes + found.rounding)


def test_a_space_that_ends_is_left_alone():
    A = tiny()["idempotent"]
    K = arnoldi.begin(tk.as_operator(A), signs).advance(4)
    assert np.all(np.stack(K.alive)[:2] == 1)
    assert np.all(np.stack(K.alive)[2:] == 0)
    assert all(np.all(x == 0) for x in K.columns[2:])


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_bases_are_orthonormal_and_spaces_can_be_cut_and_joined(kind):
    A = matrix(kind, 40)
    X = np.random.default_rng(0).standard_normal((40, 3)).astype(A.dtype)
    K = arnoldi.begin(tk.as_operator(A), X).advance(12)
    Q = np.concatenate(K.panels, axis=-1)
    H = arnoldi.hessenberg(K, 12)
    for q, h in zip(Q, H, strict=True):
        assert np.allclose(q.conj().T @ q, np.eye(12), atol=1e-13)
        assert np.allclose(q.conj().T @ A @ q, h, atol=1e-13)
    parts = [K.select(slice(0, 1)), K.select(slice(1, 3))]
    again = arnoldi.Arnoldi.joined([x.advance(14) for x in parts])
    assert np.allclose(arnoldi.hessenberg(again, 12), H, atol=1e-14)
    assert np.array_equal(arnoldi.hessenberg(K.shortened(5), 5), H[:, :5, :5])


@named
def test_samples_are_those_of_the_textbook_in_every_library(eager: Library, name):
    f, twin = FUNCTIONS[name]
    A = matrix("real", 24)
    found = tk.trace_function(eager.array(A), f, 20, rng=3, depth=5, hermitian=False)
    assert eager.at_home(found.value)
    assert found.value.dtype == eager.real
    assert found.num_matvecs == 20
    X = np.asarray(tk.probes.rademacher(tk.probes.source.Source(3, tk.as_operator(A)), 24, 4))
    exact = naive.arnoldi_forms(A, X, twin, 5)
    assert np.allclose(eager.numpy(found.samples), exact, rtol=1e3 * eager.eps)


def test_complex_operators_and_functions_have_complex_traces(but_jax: Library):
    A = matrix("complex", 24)
    found = tk.trace_function(but_jax.array(A), functions.exp, 20, rng=0, depth=5, hermitian=False)
    assert found.value.dtype == but_jax.complex
    turned = tk.trace_function(
        but_jax.array(A.real), lambda x: functions.exp(1j * x), 24, hermitian=False
    )
    exact = np.trace(scipy.linalg.expm(1j * A.real))
    assert abs(complex(turned.value) - exact) < 1e3 * but_jax.eps * 24


# --- honesty --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", problems())
def test_intervals_hold_the_trace_and_counts_are_honest(kind):
    exact, held = np.trace(scipy.linalg.expm(problems()[kind])), []
    for seed in range(60):
        A, counter = tk.counted(problems()[kind])
        found = tk.trace_function(A, functions.exp, 90, rng=seed, hermitian=False)
        assert counter.total == found.num_matvecs <= 90
        assert found.converged
        low, high = found.confidence_interval()
        held.append(bool(low <= exact <= high))
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("name", ["exp", "cosh"])
@pytest.mark.parametrize("depth", [8, 15, None])
def test_a_depth_below_the_norm_is_not_settled(name, depth):
    f = FUNCTIONS[name][0]
    for A in (40 * np.roll(np.eye(N), 1, axis=0), 40 * shift(N)):
        found = tk.trace_function(A, f, 60, rng=0, depth=depth, hermitian=False)
        assert not found.converged
        assert "not settled" in found.reason
        assert found.standard_error >= 0.3 * abs(found.value - N)


@pytest.mark.parametrize("f", [np.abs, lambda x: np.sqrt(x * x), lambda x: 1 / x])
def test_functions_that_are_not_analytic_are_not_settled(f):
    found = tk.trace_function(problems()["Ginibre"], f, 90, rng=0, hermitian=False)
    assert not found.converged


def test_a_large_multiple_of_the_identity_takes_no_steps():
    A = problems()["Ginibre"] + 60 * np.eye(N)
    found = tk.trace_function(A, functions.exp, 90, rng=0, hermitian=False)
    exact = np.trace(scipy.linalg.expm(A))
    assert found.converged
    assert abs(found.value - exact) < 4 * found.standard_error < 0.3 * exact


@named
@pytest.mark.parametrize("kind", ["zero", "identity"])
def test_zero_and_the_identity_have_no_error(kind, name):
    f, twin = FUNCTIONS[name]
    A = np.eye(N) if kind == "identity" else np.zeros((N, N))
    found = tk.trace_function(A, f, 60, rng=0, hermitian=False)
    assert found.converged
    assert np.isclose(found.value, np.trace(twin(A)), rtol=1e-12)
    assert found.standard_error <= 1e-12 * N


# --- all columns ----------------------------------------------------------------------------------


@named
@pytest.mark.parametrize("kind", ["Ginibre", "Jordan block", "directed graph", "complex"])
def test_all_columns_give_it_exactly(kind, name):
    f, twin = FUNCTIONS[name]
    dense = matrix("complex", N) if kind == "complex" else problems()[kind]
    A, counter = tk.counted(dense)
    found = tk.trace_function(A, f, N + 5, hermitian=False)
    assert np.isclose(found.value, np.trace(twin(dense)), rtol=1e-9)
    assert found.standard_error == 0
    assert counter.total == found.num_matvecs == N


def test_eigenvalues_that_rounding_hides_are_told():
    X = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    A = X @ (0.95 * np.eye(N) + 30 * shift(N)) @ X.T
    found = tk.trace_function(A, lambda x: np.exp(2 * x), N, hermitian=False)
    assert not found.converged
    assert found.standard_error == np.inf
    assert "ill-conditioned" in found.reason


# --- what it does not go together with ------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"bounds": (0.1, 2.0)},
        {"quadrature": tk.quadrature.chebyshev()},
        {"quadrature": tk.quadrature.lanczos()},
        {"deflate": 4},
        {"shift": 0.1},
        {"block": 2},
    ],
)
def test_options_of_hermitian_operators_are_refused(options):
    with pytest.raises(ValueError, match="hermitian=False"):
        tk.trace_function(np.eye(N), functions.exp, 50, hermitian=False, **options)


def test_functions_of_semidefinite_operators_are_refused():
    for f in (functions.log, functions.inv, functions.sqrt, functions.power(0.5)):
        with pytest.raises(ValueError, match="analytic everywhere"):
            tk.trace_function(np.eye(N), f, 50, hermitian=False)


def test_a_general_operator_is_told_of_it():
    with pytest.raises(ValueError, match="hermitian=False to trace_function"):
        tk.trace_function(problems()["Ginibre"], functions.exp, 50)


def test_gram_operators_stay_hermitian():
    L = tk.gram(matrix("real", 30))
    same = [
        tk.trace_function(L, functions.exp, 30, rng=0, hermitian=hermitian)
        for hermitian in (True, False)
    ]
    assert same[0].value == same[1].value
    assert same[0].num_matvecs == same[1].num_matvecs


@pytest.mark.parametrize("budget", [30, N])
def test_derivatives_are_refused(budget):
    torch = pytest.importorskip("torch")
    A = torch.asarray(problems()["Ginibre"])
    c = torch.ones((), dtype=A.dtype, requires_grad=True)
    for dense, f in ((A * c, functions.exp), (A, lambda x: torch.exp(c * x))):
        with pytest.raises(TypeError, match="no derivatives"):
            tk.trace_function(dense, f, budget, rng=0, hermitian=False)


@pytest.mark.parametrize("budget", [30, N])
def test_compiled_code_is_refused(budget):
    jax = pytest.importorskip("jax")

    def run(A: Any) -> Any:
        return tk.trace_function(A, functions.exp, budget, rng=0, hermitian=False).value

    with pytest.raises(TypeError, match="outside of jax"):
        jax.jit(run)(jax.numpy.asarray(problems()["Ginibre"]))
