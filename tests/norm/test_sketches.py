"""Laws of sketches that grow: what is read of them is what the whole budget at once gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import twins_moments as naive
from conftest import by_products, installed, matrix

import tracekit as tk
from tracekit._norm import sketches as grown
from tracekit._sketches import moments

N = 40
STEPS = ((3, 4), (8, 1, 2), (5, 5, 1))
steps = pytest.mark.parametrize("widths", STEPS, ids=repr)


def probes(n: int, b: int, *, cplx: bool, seed: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, b)) + (1j * rng.standard_normal((n, b)) if cplx else 0)
    return X * np.sqrt(n / np.sum(np.abs(X) ** 2, axis=0))


def both_ways(M: np.ndarray) -> tk.LinearOperator:
    return tk.LinearOperator(M.shape, lambda X: M @ X, lambda X: M.conj().T @ X, dtype=M.dtype)


def taken(A: Any, begin: Any, Omega: Any, widths: tuple[int, ...]) -> Any:
    """A sketch of probes that come in blocks of these widths."""
    state, start = None, 0
    for k in widths:
        block = Omega[:, start : start + k]
        state = begin(block) if state is None else state.grown(A, block)
        start += k
    assert start == Omega.shape[1]
    return state


def rank_of(field: str, n: int, r: int) -> np.ndarray:
    L = probes(n, r, cplx=field == "complex", seed=9)
    return L @ L.conj().T / n


@steps
@pytest.mark.parametrize("kind", ["symmetric", "hermitian"])
def test_a_krylov_sketch_that_grew_is_its_twin(widths: tuple[int, ...], kind: str) -> None:
    M, cplx = matrix(kind, N), kind == "hermitian"
    Omega, A = probes(N, sum(widths), cplx=cplx), tk.as_operator(M)
    state = taken(A, lambda X: grown._of_any(A, X, False), Omega, widths)
    assert isinstance(state, grown.Krylov)
    np.testing.assert_allclose(state.Q.conj().T @ state.Q, np.eye(2 * sum(widths)), atol=1e-12)
    np.testing.assert_allclose(state.Z * state.scale, M @ state.Q, atol=1e-11)
    W, images = moments.halves(state.C, state.widths)
    np.testing.assert_allclose(state.Q @ W, Omega, atol=1e-11)
    size = np.max(np.abs(M @ Omega))
    np.testing.assert_allclose(state.Q @ images * state.scale, M @ Omega, atol=1e-7 * size)
    got = state.samples(A)
    traces, squares = naive.krylov(M, Omega)
    close(got.traces * got.scale, traces.real)
    close(got.squares * got.scale**2, squares)
    t_out, f_out = naive.krylov_left_out(M, Omega)
    close(got.left_out[0] * got.scale, t_out.real)
    close(got.left_out[1] * got.scale**2, f_out)
    assert got.spent == 2 * sum(widths)


@steps
@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_a_krylov_sketch_of_a_factor_is_its_twin(widths: tuple[int, ...], kind: str) -> None:
    M, cplx = matrix(kind, N), kind == "complex psd"
    Omega, A = probes(N, sum(widths), cplx=cplx), tk.gram(np.linalg.cholesky(M))
    assert A.factor is not None
    L, counter = tk.counted(A.factor)
    A = tk.gram(L)
    state = taken(A, lambda X: grown._factor_krylov(A.factor, X), Omega, widths)
    got = state.samples(A)
    assert got.spent == counter.total == 3 * sum(widths)
    traces, squares = naive.krylov(M, Omega)
    close(got.traces * got.scale, traces.real)
    close(got.squares * got.scale**2, squares)
    close(got.left_out[1] * got.scale**2, naive.krylov_left_out(M, Omega)[1])


@steps
@pytest.mark.parametrize("field", ["real", "complex"])
def test_sketches_of_any_operator_that_grew_are_their_twins(
    widths: tuple[int, ...], field: str
) -> None:
    M, Omega = matrix(field, N), probes(N, sum(widths), cplx=field == "complex")
    A = both_ways(M)
    state = taken(A, lambda X: grown._of_any(A, X, True), Omega, widths)
    assert isinstance(state, grown.TwoSided)
    got = state.samples(A)
    close(got.squares * got.scale**2, naive.two_sided(M, Omega))
    state = taken(A, lambda X: grown._of_any(A, X, False), Omega, widths)
    assert isinstance(state, grown.Range)
    got = state.samples(A)
    close(got.squares * got.scale**2, naive.shared(M, M, M @ Omega, Omega).real)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.ptp(np.abs(expected)) > 1e-3 * np.max(np.abs(expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7 * np.max(np.abs(expected)))


OPERATORS: dict[str, Any] = {
    "symmetric": lambda: matrix("symmetric", N),
    "hermitian": lambda: matrix("hermitian", N),
    "real": lambda: by_products(matrix("real", N)),
    "both ways": lambda: both_ways(matrix("complex", N)),
    "gram": lambda: tk.gram(np.linalg.cholesky(matrix("psd", N))),
    "rank 5": lambda: rank_of("real", N, 5),
    "complex rank 12": lambda: rank_of("complex", N, 12),
    "identity": lambda: np.eye(N),
    "zero": lambda: np.zeros((N, N)),
}


def summed(A: Any, m: int, **options: Any) -> Any:
    return tk.spectral_summary(A, m, **options)


def beside(function: Any) -> Any:
    """Of an operator and of another one that is no multiple of it."""
    other = matrix("symmetric", N, seed=4)
    return lambda A, m, **options: function(A, other, m, **options)


def aligned(A: Any, m: int, **options: Any) -> Any:
    return tk.target_alignment(A, np.arange(1.0, N + 1), m, **options)


def one_sided(A: Any, m: int, **options: Any) -> Any:
    return tk.one_sided_summary(tk.as_operator(A).factor, m, **options)


FUNCTIONS: dict[str, Any] = {
    "frobenius_norm": tk.frobenius_norm,
    "spectral_summary": summed,
    "effective_rank": tk.effective_rank,
    "target_alignment": aligned,
}


def numbers(found: Any) -> list[tuple[complex, float, int]]:
    every = [found] if isinstance(found, tk.Estimate) else found
    return [(complex(e.value), float(e.standard_error), e.num_matvecs) for e in every]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", OPERATORS)
def test_steps_give_what_the_budget_at_once_gives(name: str, kind: str) -> None:
    if kind == "zero" and name != "frobenius_norm":
        pytest.skip("0 / 0 is refused")
    function, A = FUNCTIONS[name], OPERATORS[kind]()
    whole = numbers(function(A, 39, rng=1))
    stepwise = numbers(function(A, 39, rng=1, callback=lambda _: None))
    size = max(abs(x) for x, _, _ in whole)
    for (x, error, spent), (y, other, told) in zip(stepwise, whole, strict=True):
        assert spent == told <= 39
        assert abs(x - y) <= 1e-6 * max(size, 1e-300)
        assert abs(error - other) <= 1e-4 * other + 1e-7 * size


@pytest.mark.parametrize("function", [tk.inner, tk.alignment])
@pytest.mark.parametrize("kind", ["symmetric", "both ways", "gram", "rank 5"])
def test_steps_of_pairs(function: Any, kind: str) -> None:
    """A shared range weighs both by their first block, so that it is another one."""
    A = OPERATORS[kind]()
    B = tk.gram(matrix("real", N)) if kind == "gram" else matrix("symmetric", N, seed=4)
    whole = function(A, B, 76, rng=1)
    stepwise = function(A, B, 76, rng=1, callback=lambda _: None)
    assert stepwise.num_matvecs == whole.num_matvecs
    error = float(whole.standard_error)
    rel = 1e-6 if kind == "gram" else 0.3
    assert float(stepwise.standard_error) == pytest.approx(error, rel=rel, abs=1e-12)
    assert abs(complex(stepwise.value) - complex(whole.value)) <= rel * 3 * error + 1e-9


@pytest.mark.parametrize("shape", [(30, 60), (60, 30)])
@pytest.mark.parametrize("adjoint", [True, False])
def test_steps_of_rectangles(shape: tuple[int, int], adjoint: bool) -> None:
    M = np.random.default_rng(0).standard_normal(shape)
    A = both_ways(M) if adjoint else by_products(M)
    whole = tk.frobenius_norm(A, 28, rng=1)
    stepwise = tk.frobenius_norm(A, 28, rng=1, callback=lambda _: None)
    assert stepwise.num_matvecs == whole.num_matvecs
    assert float(stepwise) == pytest.approx(float(whole), rel=1e-10)
    assert float(stepwise.standard_error) == pytest.approx(float(whole.standard_error), rel=1e-7)


def test_steps_of_one_sided_products() -> None:
    L, other = np.random.default_rng(0).standard_normal((2, 30, 50))
    whole = numbers(tk.one_sided_summary(L, 20, rng=1))
    steps_of = numbers(tk.one_sided_summary(L, 20, rng=1, callback=lambda _: None))
    np.testing.assert_allclose(steps_of, whole, rtol=1e-9)
    cosine = tk.one_sided_alignment(L, other, 40, rng=1)
    grown_to = tk.one_sided_alignment(L, other, 40, rng=1, callback=lambda _: None)
    assert float(grown_to) == pytest.approx(float(cosine), rel=1e-9)
    assert tk.one_sided_summary(L, rtol=1e-12, rng=1).trace.num_matvecs == 30
    exact = tk.one_sided_alignment(L, other, rtol=1e-12, rng=1)
    assert (exact.num_matvecs, float(exact.standard_error), exact.converged) == (60, 0.0, True)


def test_one_seed_one_run_in_every_library() -> None:
    for lib in installed("torch"):
        A = matrix("hermitian", N)
        here = tk.frobenius_norm(lib.array(A), 39, rng=1, rtol=1e-12)
        there = tk.frobenius_norm(A, 39, rng=1, rtol=1e-12)
        assert lib.at_home(here.value)
        assert float(here) == pytest.approx(float(there), rel=1e5 * lib.eps)


@pytest.mark.parametrize("kind", ["symmetric", "real", "gram"])
def test_single_precision_stays(kind: str) -> None:
    M = matrix("psd" if kind == "gram" else kind, N).astype(np.float32)
    A = tk.gram(np.linalg.cholesky(M)) if kind == "gram" else M
    found = tk.frobenius_norm(A, 39, rng=1, rtol=1e-9)
    assert found.value.dtype == np.float32
    size = float(np.linalg.norm(M))
    assert abs(float(found) - size) < 5 * float(found.standard_error) + 1e-3 * size
