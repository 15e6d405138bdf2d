"""Laws of tr f(A): Gauss rules, deflation without bias, honest errors and counts, libraries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import twins_functions as naive
from conftest import Library, library, matrix

import tracekit as tk
from tracekit import functions
from tracekit._matrix_functions.batch import evaluate
from tracekit._sketches import gauss, lanczos
from tracekit._sketches.deflation import deflated
from tracekit.probes.source import Source
from tracekit.testing import known_spectrum

N = 24
kinds = pytest.mark.parametrize("kind", ["psd", "complex psd"])
hermitian = pytest.mark.parametrize("kind", ["symmetric", "hermitian"])
NAMED: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "log": (functions.log, np.log),
    "inv": (functions.inv, np.reciprocal),
    "log1p": (functions.log1p, np.log1p),
    "sqrt": (functions.sqrt, np.sqrt),
    "exp": (functions.exp, np.exp),
    "entropy": (functions.entropy, lambda x: -x * np.log(x)),
    "power": (functions.power(1.5), lambda x: x**1.5),
    "ridge": (functions.ridge(0.3), lambda x: x / (x + 0.3)),
}
named = pytest.mark.parametrize("name", NAMED)


def definite(kind: str, n: int = N) -> np.ndarray:
    return matrix(kind, n) + 0.1 * np.eye(n)


def factor(A: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(A)


def signs(A: Any, m: int, rng: Any = 0) -> np.ndarray:
    """The probes that a seed or a key stands for."""
    A = tk.as_operator(A)
    return np.asarray(Source(rng, A).signs((A.shape[0], m)))


# --- the rule -------------------------------------------------------------------------------------


@named
@kinds
def test_the_named_functions_are_what_they_are_called(name, kind):
    f, twin = NAMED[name]
    A = definite(kind)
    for operator in (A, tk.gram(factor(A))):
        estimate = tk.trace_function(operator, f, N)
        assert np.isclose(estimate.value, naive.trace(A, twin), rtol=1e-12)
        assert estimate.standard_error == 0
        assert estimate.num_matvecs == N


@pytest.mark.parametrize(("kind", "block"), [("psd", 1), ("complex psd", 2)])
def test_samples_are_those_of_the_naive_twin_in_every_library(lib: Library, kind, block):
    A = definite(kind)

    def run(A, rng):
        return tk.trace_function(A, functions.sqrt, 14, rng=rng, depth=3, block=block, deflate=0)

    estimate = lib.call(run, lib.array(A), lib.rng(3))
    count = 4
    assert estimate.num_matvecs == 12
    assert lib.at_home(estimate.value)
    assert estimate.value.dtype == lib.real
    samples = lib.numpy(estimate.samples)
    assert samples.shape == (count,)
    Omega = signs(lib.array(A) if lib.jit else A, count, lib.rng(3))
    expected = naive.forms(A, Omega, np.sqrt, 3, block).real
    assert np.allclose(samples, expected, rtol=1e3 * lib.eps)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("factored", [False, True])
@kinds
def test_polynomials_below_twice_the_depth_are_integrated_exactly(kind, factored, block):
    A, depth = definite(kind, 60), 5
    c = np.random.default_rng(0).standard_normal(2 * depth)

    def p(x):
        return np.polynomial.polynomial.polyval(x, c)

    operator = tk.gram(factor(A)) if factored else A
    estimate = tk.trace_function(operator, p, 59, rng=1, depth=depth, block=block, deflate=0)
    X = signs(A, estimate.samples.shape[0], 1)
    exact = np.einsum("ij,ij->j", X.conj(), naive.matrix_function(A, p) @ X).real
    assert np.allclose(estimate.samples, exact, rtol=1e-10)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("factored", [False, True])
def test_few_distinct_eigenvalues_need_no_more_steps_and_break_down_quietly(factored, block):
    A = known_spectrum(np.repeat([0.5, 1.0, 4.0], 20))
    operator = tk.gram(factor(A)) if factored else A
    for depth in (3, 7) if block > 1 else (3, 7, 12):
        estimate = tk.trace_function(
            operator,
            functions.log,
            59,
            rng=0,
            depth=depth,
            block=block,
            deflate=0,
        )
        X = signs(A, estimate.samples.shape[0])
        exact = np.einsum("ij,ij->j", X, naive.matrix_function(A, np.log) @ X)
        assert np.allclose(estimate.samples, exact, rtol=1e-11)
        assert depth == 3 or estimate.kept.quadrature < 1e-11 * abs(exact).max()


@pytest.mark.parametrize("deflate", [0, 5])
def test_the_identity_is_known_after_a_step(deflate):
    estimate = tk.trace_function(3 * np.eye(50), functions.log, 30, rng=0, deflate=deflate)
    assert np.isclose(estimate.value, 50 * np.log(3), rtol=1e-13)
    assert estimate.standard_error <= 1e-12


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_the_smallest_dimensions_and_budgets(n, budget):
    A = np.diag(np.arange(1.0, n + 1))
    c, counter = tk.counted(A)
    estimate = tk.trace_function(c, functions.log, budget, rng=0)
    assert counter.total == estimate.num_matvecs <= budget
    if budget >= n:
        assert np.isclose(estimate.value, np.sum(np.log(np.diag(A))))
    elif budget == 1:
        assert estimate.standard_error == np.inf


def test_golub_kahan_keeps_the_digits_of_small_singular_values():
    s = np.array([1.0, 1e-3, 1e-6, 1e-9])
    U, V = (np.linalg.qr(np.random.default_rng(i).standard_normal((40, 4)))[0] for i in range(2))
    P, Q = np.eye(40) - U @ U.T, np.eye(40) - V @ V.T
    A = U * s @ V.T  # plus the identity between the complements
    u, _, v = np.linalg.svd(P @ Q)
    A = A + u[:, :36] @ v[:36]
    exact = 2 * np.sum(np.log(np.linalg.svd(A, compute_uv=False)))
    X = signs(A, 3)
    L = tk.gram(A)
    nodes, _ = gauss.rule(lanczos.begin(L, X).advance(5))
    least = np.sqrt(np.min(nodes, axis=-1))
    assert np.allclose(least, 1e-9, rtol=1e-4)
    assert np.isclose(tk.trace_function(L, functions.log, 40).value, exact, rtol=1e-6)


@hermitian
def test_bases_are_orthonormal_and_project_the_operator(kind):
    A = matrix(kind, 40)
    for block in (1, 4):
        K = lanczos.begin(tk.as_operator(A), signs(A, 4), block).advance(9)
        Q = np.concatenate(K.panels, axis=-1)
        assert np.allclose(Q.conj().mT @ Q, np.eye(9 * block), atol=1e-12)
        nodes, V = gauss.ritz(K)
        inside = V.conj().mT @ (A @ V)
        assert np.allclose(inside, nodes[:, None, :] * np.eye(9 * block), atol=1e-12)


def test_a_zero_and_a_repeated_probe_do_no_harm():
    A = definite("psd", 30)
    X = signs(A, 6)
    X = np.stack([X[:, 0], X[:, 0], 0 * X[:, 0], X[:, 1], X[:, 2], X[:, 3]], axis=1)
    nodes, M = gauss.rule(lanczos.begin(tk.as_operator(A), X, 3).advance(4))
    found = gauss.forms(nodes, M, np.log(nodes))
    assert np.allclose(found, naive.forms(A, X, np.log, 4, 3).real, rtol=1e-10, atol=1e-12)


# --- deflation ------------------------------------------------------------------------------------

DEFLATED = {
    "preconditioned log": ("log", False),
    "preconditioned inverse": ("inv", False),
    "Nystrom": ("sqrt", False),
    "Krylov": ("exp", False),
    "preconditioned log of a factor": ("log", True),
    "preconditioned inverse of a factor": ("inv", True),
    "Nystrom of a factor": ("ridge", True),
    "Krylov of a factor": ("exp", True),
}


@pytest.mark.parametrize("path", DEFLATED)
@pytest.mark.parametrize("columns", [1, 2])
def test_what_is_deflated_leaves_the_mean_over_all_signs_as_it_is(path, columns):
    name, factored = DEFLATED[path]
    f, twin = NAMED[name]
    A = definite("psd", 7)
    operator = tk.gram(factor(A)) if factored else tk.as_operator(A)
    X = np.array(list(itertools.product([-1.0, 1.0], repeat=7))).T
    cv, _ = deflated(operator, f, columns, Source(1, operator))
    K = lanczos.begin(cv.operator, cv.start(X)).advance(7)
    residuals = evaluate(f, cv, K, X, 7).residuals
    assert np.isclose(cv.exact_part + np.mean(residuals), naive.trace(A, twin), rtol=1e-11)


@pytest.mark.parametrize("path", DEFLATED)
@pytest.mark.parametrize("cplx", [False, True])
def test_what_the_sketch_has_whole_leaves_nothing_to_the_probes(path, cplx):
    name, factored = DEFLATED[path]
    f, twin = NAMED[name]
    A = definite("complex psd" if cplx else "psd", 60)
    w, V = np.linalg.eigh(A)
    w = np.r_[np.full(55, 1e-6), [2.0, 3.0, 5.0, 7.0, 9.0]]
    A = (V * w) @ V.conj().T
    estimate = tk.trace_function(
        tk.gram(factor(A)) if factored else A,
        f,
        59,
        rng=0,
        depth=3 if name in ("log", "inv") else 6,
        deflate=6,
    )
    assert np.isclose(estimate.value, np.sum(twin(w)), rtol=1e-4)
    assert estimate.kept.monte_carlo < 1e-4 * abs(estimate.value)


def test_a_sketch_of_noise_under_a_decaying_kernel_pays_and_is_chosen():
    w = np.exp(-0.2 * np.arange(300)) * 50 + 1e-2
    A = known_spectrum(w)
    exact = np.sum(np.log(w))
    plain, chosen = (
        [tk.trace_function(A, functions.log, 200, rng=s, deflate=d) for s in range(12)]
        for d in (0, None)
    )
    assert all("deflated" in e.reason for e in chosen)
    rms = [np.sqrt(np.mean([(e.value - exact) ** 2 for e in runs])) for runs in (plain, chosen)]
    assert rms[1] < rms[0] / 8


def test_a_sketch_of_a_flat_spectrum_does_not_pay_and_is_not_chosen():
    A = known_spectrum(np.linspace(1.0, 3.0, 300))
    assert "deflated" not in tk.trace_function(A, functions.log, 200, rng=0).reason


# --- errors ---------------------------------------------------------------------------------------

PROBLEMS: dict[str, tuple[np.ndarray, str]] = {
    "flat, log": (np.linspace(1.0, 3.0, 120), "log"),
    "ill-conditioned, inverse": (np.geomspace(1e-3, 1.0, 120), "inv"),
    "decaying, root": (np.arange(1, 121.0) ** -2, "sqrt"),
    "kernel with noise, log": (100 * np.arange(1, 121.0) ** -2 + 1e-2, "log"),
    "indefinite, exp": (np.linspace(-3.0, 3.0, 120), "exp"),
}


@cache
def many_runs(problem: str, factored: bool = False) -> tuple[float, list[tk.Estimate]]:
    w, name = PROBLEMS[problem]
    A: Any = known_spectrum(w)
    A = tk.gram(factor(A)) if factored else A
    f, twin = NAMED[name]
    return float(np.sum(twin(w))), [tk.trace_function(A, f, 100, rng=s) for s in range(60)]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_intervals_hold_the_value_as_often_as_they_say(problem):
    exact, runs = many_runs(problem)
    hits = [low <= exact <= high for low, high in (e.confidence_interval() for e in runs)]
    assert np.mean(hits) >= 0.88  # 0.95 less two and a half standard deviations of 60 runs


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_bias_beyond_the_error_of_the_quadrature(problem):
    exact, runs = many_runs(problem)
    values = np.array([e.value for e in runs])
    bias = abs(values.mean() - exact)
    quadrature = np.mean([e.kept.quadrature for e in runs])
    assert bias <= 4 * values.std() / len(runs) ** 0.5 + quadrature


def test_the_interval_knows_both_errors():
    w = np.geomspace(1e-4, 1.0, 200)
    A, exact = known_spectrum(w), np.sum(np.log(w))
    shallow = tk.trace_function(A, functions.log, 199, rng=0, depth=4, deflate=0)
    split = shallow.kept
    assert np.isclose(shallow.standard_error, np.hypot(split.monte_carlo, split.quadrature))
    truth = (
        naive.forms(A, signs(A, 49), np.log, 4).mean()
        - naive.forms(A, signs(A, 49), np.log, 60).mean()
    )
    assert 0.3 * abs(truth) < split.quadrature < 10 * abs(truth)
    low, high = shallow.confidence_interval()
    assert low <= exact <= high
    deep = tk.trace_function(A, functions.log, 199, rng=0, deflate=0)
    assert deep.kept.quadrature < split.quadrature / 3


def test_one_step_says_nothing_of_its_own_error():
    A = known_spectrum(np.linspace(1.0, 3.0, 50))
    assert tk.trace_function(A, functions.log, 30, rng=0, depth=1).standard_error == np.inf


# --- depths ---------------------------------------------------------------------------------------

BULK = np.random.default_rng(1).uniform(0.05, 2.5, 300)
APART: dict[str, tuple[np.ndarray, Any, int, bool]] = {  # and whether of a factor
    "ten factors, log": (np.r_[np.linspace(200.0, 2000.0, 10), BULK], np.log, 60, False),
    "ten factors, root": (np.r_[np.linspace(200.0, 2000.0, 10), BULK], np.sqrt, 120, False),
    "ten factors, root of a factor": (
        np.r_[np.linspace(200.0, 2000.0, 10), BULK], np.sqrt, 200, True,
    ),
    "one far below, log": (np.r_[1e-8, np.linspace(1.0, 2.0, 300)], np.log, 150, False),
    "one far above, exp": (np.r_[40.0, np.linspace(-12.6, 12.6, 300)], np.exp, 150, False),
}  # fmt: skip
OURS = {np.log: functions.log, np.sqrt: functions.sqrt, np.exp: functions.exp}


@pytest.mark.parametrize("case", APART)
def test_eigenvalues_that_stand_apart_are_not_taken_for_the_whole_spectrum(case):
    w, twin, m, factored = APART[case]
    A: Any = known_spectrum(w)
    A = tk.gram(factor(A)) if factored else A
    exact, hits = np.sum(twin(w)), 0
    for seed in range(20):
        c, counter = tk.counted(A)
        estimate = tk.trace_function(c, OURS[twin], m, rng=seed)
        assert counter.total == estimate.num_matvecs <= m
        low, high = estimate.confidence_interval()
        hits += low <= exact <= high
    assert hits >= 16


def step(x):
    return (x < 0.1) * 1.0


UNSETTLED: dict[str, tuple[np.ndarray, Any, int]] = {
    "a count": (np.linspace(0.0, 1.0, 300), step, 100),
    "the inverse of a path": (
        2 - 2 * np.cos(np.pi * np.arange(400) / 400) + 1e-5, functions.inv, 100,
    ),
    "the inverse of a decay": (np.arange(1, 301.0) ** -2 + 1e-4, functions.inv, 20),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSETTLED)
def test_a_budget_that_ends_before_the_rule_settles_is_told(case):
    w, f, m = UNSETTLED[case]
    for seed in range(5):
        estimate = tk.trace_function(known_spectrum(w), f, m, rng=seed)
        assert not estimate.converged
        assert "not settled" in estimate.reason
        assert estimate.standard_error >= abs(estimate.value)
        low, high = estimate.confidence_interval()
        assert low <= np.sum(f(w)) <= high


@pytest.mark.parametrize("m", [24, 60, 150])
def test_the_depth_is_never_below_that_of_the_first_probes(m):
    estimate = tk.trace_function(
        known_spectrum(np.linspace(1.0, 1.1, 300)), functions.log, m, rng=0
    )
    assert int(estimate.reason.split("depth ")[1].split(",")[0]) >= 6
    assert estimate.converged


@pytest.mark.parametrize("on", ["numpy", "torch", "jax-jit"])
def test_a_node_that_stands_for_a_cluster_tells_how_wide_it_is(on):
    lib = library(on)
    w = APART["ten factors, log"][0]
    A, exact = known_spectrum(w), np.sum(np.log(w))

    def run(A, rng):
        return tk.trace_function(A, functions.log, 160, rng=rng, depth=8, deflate=0)

    estimate = lib.call(run, lib.array(A), lib.rng(0))
    error = abs(float(estimate.value) - exact)
    assert 0.4 * error < float(estimate.standard_error) < 4 * error
    assert error > 50  # one node of the eight stands for all but ten eigenvalues


def test_changes_that_grow_are_no_error():
    w = np.r_[np.linspace(0.0, 1.0, 299), 1e-9]
    estimate = tk.trace_function(
        known_spectrum(w + 1e-9), functions.inv, 120, rng=0, depth=12, deflate=0
    )
    assert estimate.kept.quadrature == np.inf


def test_kernels_that_a_probe_meets_by_rounding_alone_are_hermitian():
    v = np.zeros(40)
    v[:3] = 0.1, 0.2, -0.3  # of which three equal signs leave 5e-17
    A, X = np.outer(v, v), np.ones((40, 2))
    X[5:, 1] = -1
    assert 0 < abs(X[:, 0] @ v) < 1e-16
    nodes, M = gauss.rule(lanczos.begin(tk.as_operator(A), X).advance(3))
    assert np.all(gauss.forms(nodes, M, nodes) < 1e-16)


# --- costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("name", ["log", "sqrt", "exp"])
@pytest.mark.parametrize(
    "options",
    [{}, {"block": 2}, {"depth": 3}, {"deflate": 3}, {"deflate": 4, "depth": 2, "block": 3}],
)
def test_what_is_claimed_is_what_was_spent_and_never_more_than_allowed(factored, name, options):
    A = known_spectrum(np.geomspace(0.1, 9.0, 120))
    operator = tk.gram(factor(A)) if factored else A
    spent = []
    for budget in (1, 2, 3, 5, 8, 13, 40, 70, 101, 119, 120, 150):
        c, counter = tk.counted(operator)
        try:
            estimate = tk.trace_function(c, NAMED[name][0], budget, rng=0, **options)
        except ValueError:  # which case this is, is tested below
            assert counter.total == 0
            continue
        assert counter.total == estimate.num_matvecs <= budget
        spent.append(estimate.num_matvecs)
    assert len(spent) >= 6
    assert spent[-1] == 120


def test_memory_bounds_do_not_change_the_draws(monkeypatch):
    w = np.linspace(1.0, 3.0, 5000)[:, None]
    A = tk.LinearOperator((5000, 5000), lambda X: w * X + np.roll(X, 1, 0) + np.roll(X, -1, 0))
    whole = tk.trace_function(A, functions.exp, 90, rng=0)
    monkeypatch.setattr("tracekit._sketches.spaces.MEGABYTES", 1)
    parts = tk.trace_function(A, functions.exp, 90, rng=0)
    assert np.isclose(whole.value, parts.value, rtol=1e-13)
    assert whole.num_matvecs == parts.num_matvecs


# --- equivariance, precision, libraries -----------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-150, 1e-3, 1e150])
@pytest.mark.parametrize("deflate", [0, 4])
@pytest.mark.parametrize("factored", [False, True])
def test_scale_equivariance(scale, deflate, factored):
    A = definite("psd", 60)

    def run(A, f):
        operator = tk.gram(factor(A)) if factored else A
        return tk.trace_function(operator, f, 59, rng=0, depth=5, deflate=deflate)

    shifted, plain = run(scale * A, functions.log), run(A, functions.log)
    assert np.isclose(shifted.value - 60 * np.log(scale), plain.value, rtol=1e-9)
    assert np.isclose(shifted.standard_error, plain.standard_error, rtol=1e-6)
    rooted, plain = run(scale * A, functions.sqrt), run(A, functions.sqrt)
    assert np.isclose(rooted.value / scale**0.5, plain.value, rtol=1e-11)


@pytest.mark.parametrize("deflate", [0, 4])
@pytest.mark.parametrize("name", ["log", "sqrt", "exp"])
@kinds
def test_single_precision_stays_single_and_agrees(name, kind, deflate):
    A = definite(kind, 60)
    f = NAMED[name][0]
    options = {"rng": 0, "depth": 4, "deflate": deflate}
    double = tk.trace_function(A, f, 59, **options)
    small = A.astype(np.complex64 if np.iscomplexobj(A) else np.float32)
    single = tk.trace_function(small, f, 59, **options)
    assert single.value.dtype == np.float32
    assert np.isclose(single.value, double.value, rtol=1e-4)


@pytest.mark.parametrize(("name", "factored"), [("log", False), ("sqrt", True), ("exp", False)])
def test_deflation_is_the_same_in_every_library(but_jax: Library, name, factored):
    A = definite("complex psd", 40)
    f = NAMED[name][0]

    def run(lib):
        operator = tk.gram(lib.array(factor(A))) if factored else lib.array(A)
        return tk.trace_function(operator, f, 24, rng=0, depth=2, deflate=2)

    mine, numpy = run(but_jax), run(library("numpy"))
    assert mine.num_matvecs == numpy.num_matvecs
    assert np.isclose(float(mine), float(numpy), rtol=2e4 * but_jax.eps)


@pytest.mark.parametrize("options", [{}, {"depth": 3, "deflate": 4}])
def test_compiled_code_takes_a_fixed_depth_and_can_deflate(options):
    jax, A = library("jax-jit"), definite("psd", 30)

    def run(A, rng):
        return tk.trace_function(A, functions.log, 27, rng=rng, **options)

    estimate = jax.call(run, jax.array(A), jax.rng(1))
    low, high = estimate.confidence_interval(0.9999)
    assert low <= naive.trace(A, np.log) <= high
    assert estimate.num_matvecs <= 27


@pytest.mark.parametrize("probes", [tk.probes.orthogonal, tk.probes.hadamard, tk.probes.sphere])
def test_every_law_of_probes_will_do(probes):
    A = known_spectrum(np.linspace(1.0, 3.0, 128))
    estimate = tk.trace_function(A, functions.log, 120, rng=0, probes=probes)
    low, high = estimate.confidence_interval(0.999)
    assert low <= np.sum(np.log(np.linspace(1.0, 3.0, 128))) <= high


SLOPES = {"exp": np.exp, "log1p": lambda x: 1 / (1 + x), "sqrt": lambda x: 0.5 / np.sqrt(x)}


@pytest.mark.parametrize("name", SLOPES)
def test_gradients_do_not_see_the_sketch_whose_values_may_be_equal(name):
    torch = pytest.importorskip("torch")
    w = np.repeat([0.5, 1.0, 4.0], 40)
    A, D = known_spectrum(w), known_spectrum(np.linspace(0.0, 1.0, 120), rng=5)
    exact = np.sum(naive.matrix_function(A, SLOPES[name]) * D)
    slopes = []
    for seed in range(10):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        moved = torch.asarray(A) + t * torch.asarray(D)
        tk.trace_function(moved, NAMED[name][0], 100, rng=seed, deflate=10).value.backward()
        slopes.append(float(t.grad))
    error = np.std(slopes, ddof=1) / 10**0.5
    assert abs(np.mean(slopes) - exact) < 4 * error < 0.15 * abs(exact)


def test_complex_functions_give_complex_traces():
    w = np.linspace(-1.0, 1.0, 60)
    estimate = tk.trace_function(known_spectrum(w), lambda x: 1 / (x - 1j), 59, rng=0)
    exact = np.sum(1 / (w - 1j))
    assert abs(estimate.value - exact) < 5 * estimate.standard_error


# --- what is refused ------------------------------------------------------------------------------

HALF = np.repeat([0.0, 1.0, 2.0], 20)
BAD: dict[str, tuple[Any, Any, int, dict[str, Any], type[Exception], str]] = {
    "singular, quadrature": (known_spectrum(HALF), functions.log, 30, {}, ValueError, "singular"),
    "singular, exact": (known_spectrum(HALF), functions.log, 60, {}, ValueError, "singular"),
    "singular, sketch": (
        known_spectrum(HALF), functions.log, 59, {"deflate": 45, "depth": 2}, ValueError,
        "singular",
    ),
    "singular, inverse": (known_spectrum(HALF), functions.inv, 30, {}, ValueError, "singular"),
    "singular, factor": (
        tk.gram(np.ones((60, 3))), functions.log, 30, {}, ValueError, "factor with 3 columns",
    ),
    "zero": (np.zeros((60, 60)), functions.log, 30, {}, ValueError, "singular"),
    "indefinite, log": (known_spectrum(HALF - 1), functions.log, 30, {}, ValueError, "0 or more"),
    "indefinite, root": (known_spectrum(HALF - 1), functions.sqrt, 30, {}, ValueError, "0 or more"),
    "indefinite, sketch": (
        known_spectrum(HALF - 1), functions.sqrt, 59, {"deflate": 20}, ValueError, "negative",
    ),
    "not Hermitian": (
        np.triu(np.ones((60, 60))), functions.exp, 30, {}, ValueError, "not Hermitian",
    ),
    "not Hermitian, exact": (
        np.triu(np.ones((9, 9))), functions.exp, 30, {}, ValueError, "not Hermitian",
    ),
    "overflow": (1e3 * np.eye(60), functions.exp, 30, {}, ValueError, "not finite"),
    "name": (np.eye(60), "log", 30, {}, TypeError, "tracekit.functions.log"),
    "reduction": (np.eye(60), np.sum, 30, {}, TypeError, "that shape"),
    "rectangle": (np.ones((3, 2)), functions.exp, 30, {}, ValueError, "square"),
    "depth": (np.eye(60), functions.exp, 30, {"depth": 31}, ValueError, "at least"),
    "no depth": (np.eye(60), functions.exp, 30, {"depth": 0}, ValueError, "depth"),
    "no block": (np.eye(60), functions.exp, 30, {"block": 0}, ValueError, "block"),
    "block": (np.eye(60), functions.exp, 30, {"block": 31}, ValueError, "at least"),
    "deflate": (np.eye(60), functions.sqrt, 30, {"deflate": 30}, ValueError, "at least"),
    "negative sketch": (np.eye(60), functions.sqrt, 30, {"deflate": -1}, ValueError, "deflate"),
    "budget": (np.eye(60), functions.exp, 0, {}, ValueError, "num_matvecs"),
    "NaN": (np.full((60, 60), np.nan), functions.exp, 30, {}, tk.NotFiniteError, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused_with_the_reason(case):
    A, f, m, options, error, words = BAD[case]
    with pytest.raises(error, match=words):
        tk.trace_function(A, f, m, rng=0, **options)


@pytest.mark.parametrize("make", [functions.power, functions.ridge])
@pytest.mark.parametrize("value", [0, -1.0, np.inf, np.nan, "2", True])
def test_parameters_of_functions_have_to_be_positive(make, value):
    with pytest.raises(ValueError, match="positive number"):
        make(value)


def test_rank_deficient_matrices_are_fine_where_the_function_is_defined_at_zero():
    w = np.r_[np.zeros(100), np.linspace(1.0, 2.0, 50)]
    for operator in (known_spectrum(w), tk.gram(known_spectrum(np.sqrt(w))[:, :])):
        for deflate in (0, 40):
            estimate = tk.trace_function(operator, functions.sqrt, 149, rng=0, deflate=deflate)
            low, high = estimate.confidence_interval(0.999)
            assert low <= np.sum(np.sqrt(w)) <= high
    L = np.random.default_rng(0).standard_normal((80, 30))
    exact = np.sum(np.linalg.svd(L, compute_uv=False))
    assert np.isclose(tk.trace_function(tk.gram(L), functions.sqrt, 30).value, exact)


@pytest.mark.parametrize("kind", ["multiple", "low rank", "two values"])
def test_gradients_where_a_krylov_space_ends(kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    X = np.random.default_rng(0).standard_normal((20, 3)) / 4
    entries = {
        "multiple": 3 * np.eye(20),
        "low rank": X @ X.T,
        "two values": np.diag(np.r_[np.ones(8), np.full(12, 2.0)]),
    }[kind]
    A, seen = torch.tensor(entries, requires_grad=True), []

    def product(Y):
        seen.append(Y.detach())
        return A @ Y

    op = tk.LinearOperator(A.shape, product, xp=torch, dtype=torch.float64)
    estimate = tk.trace_function(op, torch.exp, 16, rng=0, depth=8, deflate=0)
    estimate.value.backward()
    B, Omega = torch.tensor(entries, requires_grad=True), seen[0] * np.sqrt(20)
    truth = torch.sum(Omega * (torch.linalg.matrix_exp(B) @ Omega)) / Omega.shape[1]
    truth.backward()
    found, expected = ((G + G.T) / 2 for G in (A.grad, B.grad))
    assert float(estimate) == pytest.approx(float(truth.detach()), rel=1e-10)
    np.testing.assert_allclose(found, expected, atol=1e-8 * float(expected.abs().max()))


def test_steps_may_be_truth_values():
    A = known_spectrum(np.linspace(1.0, 3.0, 200))
    for m in (50, 200):
        found = tk.trace_function(A, lambda x: x > 2, m, rng=0)
        same = tk.trace_function(A, lambda x: 1.0 * (x > 2), m, rng=0)
        assert found.value == same.value
        assert found.standard_error == same.standard_error


def test_an_infinite_error_is_not_converged():
    A = known_spectrum(np.repeat([0.0, 1.0, 5.0], 100))
    for seed in range(8):
        found = tk.trace_function(A, lambda x: np.sin(20 * x), 200, rng=seed)
        assert np.isfinite(found.standard_error) or not found.converged
        assert found.converged or "settled" in found.reason
