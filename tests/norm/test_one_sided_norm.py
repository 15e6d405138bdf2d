"""Laws of norm, rank and alignment from one side of a factor: unbiased, exact, what they cost."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import twins
import twins_moments as naive
from conftest import installed, library

import tracekit as tk
from tracekit import probes
from tracekit.probes.source import Source

fields = pytest.mark.parametrize("field", ["real", "complex"])
NAMES = ("trace", "frobenius_norm", "effective_rank")


def factor(field: str, n: int, P: int, *, seed: int = 0) -> np.ndarray:
    """Of slowly decaying singular values, so that a few probes are not at the mercy of one."""
    rng = np.random.default_rng([n, P, seed])

    def basis(size: int) -> np.ndarray:
        X = rng.standard_normal((size, min(n, P)))
        X = X + 1j * rng.standard_normal(X.shape) if field == "complex" else X
        return np.linalg.qr(X)[0]

    return (basis(n) * np.arange(1.0, min(n, P) + 1) ** -0.5) @ basis(P).conj().T


def backwards(L: np.ndarray) -> tuple[tk.LinearOperator, list[int]]:
    """An operator that knows the product with its adjoint alone, and the columns it was given."""
    columns: list[int] = []

    def forwards(X: np.ndarray) -> np.ndarray:
        raise AssertionError("a product with L")

    def product(X: np.ndarray) -> np.ndarray:
        columns.append(X.shape[1])
        return L.conj().T @ X

    return tk.LinearOperator(L.shape, forwards, product, dtype=L.dtype), columns


def facts(L: np.ndarray) -> tuple[float, float, float]:
    """Trace, norm and effective rank of ``L L^H``."""
    A = L @ L.conj().T
    t, f = float(np.trace(A).real), float(np.linalg.norm(A))
    return t, f, t * t / f**2


def cosine(L1: np.ndarray, L2: np.ndarray) -> float:
    A, B = L1 @ L1.conj().T, L2 @ L2.conj().T
    return float(np.vdot(A, B).real / np.linalg.norm(A) / np.linalg.norm(B))


def gram_of_probes(L: np.ndarray, m: int, seed: int) -> np.ndarray:
    """``V^H L L^H V`` for the same probes that the estimators draw."""
    n = len(L)
    V = probes.orthogonal(Source(seed, tk.as_operator(L)), n, m) / n**0.5
    return V.conj().T @ L @ L.conj().T @ V


def jackknifed(value: Any, K: list[np.ndarray], n: int) -> tuple[float, float]:
    """A function of compressions, corrected by leaving out one column after the other."""
    m = len(K[0])
    each = np.array([value(*(np.delete(np.delete(X, i, 0), i, 1) for X in K)) for i in range(m)])
    rest, whole = 1 - m / n, value(*K)
    error = np.sqrt((m - 1) / m * rest * np.sum((each - each.mean()) ** 2))
    return whole - (m - 1) * rest * (each.mean() - whole), error


def products(K1: np.ndarray, K2: np.ndarray, n: int) -> tuple[float, float]:
    """Unbiased estimates of ``tr A B`` and ``tr A tr B``."""
    m = len(K1)
    seen = np.trace(K1 @ K2).real, (np.trace(K1) * np.trace(K2)).real
    return tuple(np.linalg.solve(naive.zonal_means(n, m, cplx=np.iscomplexobj(K1)), seen))


# Equal to naive twins -------------------------------------------------------------------------


@fields
@pytest.mark.parametrize(("shape", "m"), [((14, 20), 6), ((14, 6), 9), ((14, 20), 13)], ids=str)
def test_summary_is_its_twin(shape: tuple[int, int], m: int, field: str) -> None:
    L, n = factor(field, *shape), shape[0]
    K = [gram_of_probes(L, m, 3)]
    readings = {
        "trace": lambda K: np.trace(K).real * n / len(K),
        "frobenius_norm": lambda K: products(K, K, n)[0] ** 0.5,
        "effective_rank": lambda K: products(K, K, n)[1] / products(K, K, n)[0],
    }
    summary = tk.one_sided_summary(L, m, rng=3)
    for name, reading in readings.items():
        estimate = getattr(summary, name)
        value, error = jackknifed(reading, K, n)
        assert estimate.value == pytest.approx(value, rel=1e-9)
        assert estimate.standard_error == pytest.approx(error * (1 + 8 / m**2), rel=1e-7)
        assert estimate.dof == m - 1


@fields
def test_alignment_is_its_twin(field: str) -> None:
    n, m = 14, 7
    factors = factor(field, n, 20), factor(field, n, 9, seed=1)
    K = [gram_of_probes(L, m, 3) for L in factors]

    def reading(K1: np.ndarray, K2: np.ndarray) -> float:
        x, a, b = (products(*pair, n)[0] for pair in ((K1, K2), (K1, K1), (K2, K2)))
        return x / (a * b) ** 0.5

    value, error = jackknifed(reading, K, n)
    for budget in (2 * m, 2 * m + 1):
        estimate = tk.one_sided_alignment(*factors, budget, rng=3)
        assert estimate.value == pytest.approx(value, rel=1e-9)
        assert estimate.standard_error == pytest.approx(error * (1.25 + 8 / m**2), rel=1e-7)
        assert estimate.num_matvecs == 2 * m


def test_the_trace_is_that_of_one_sided() -> None:
    L = factor("complex", 15, 20)
    one, other = tk.one_sided(L, 6, rng=2), tk.one_sided_summary(L, 6, rng=2).trace
    assert other.value == pytest.approx(complex(one))
    assert other.standard_error == pytest.approx(float(one.standard_error) * (1 + 8 / 6**2))


# Unbiased -------------------------------------------------------------------------------------


@fields
@pytest.mark.parametrize("m", [2, 5])
def test_trace_and_squared_norm_are_unbiased(field: str, m: int) -> None:
    """The squared norm before the root: with two probes nothing is left to correct it by."""
    n, runs = 10, 500
    L = factor(field, n, 13)
    t, f, _ = facts(L)
    traces, squares = np.zeros(runs), np.zeros(runs)
    for seed in range(runs):
        traces[seed] = float(tk.one_sided_summary(L, m, rng=seed).trace.value.real)
        K = gram_of_probes(L, m, seed)
        squares[seed] = products(K, K, n)[0]
        if m == 2:
            norm = float(tk.one_sided_summary(L, m, rng=seed).frobenius_norm)
            assert norm == pytest.approx(max(squares[seed], 0) ** 0.5, rel=1e-9)
    for values, exact in ((traces, t), (squares, f * f)):
        assert abs(values.mean() - exact) < 4.5 * values.std() / runs**0.5
        assert values.std() > 0.01 * exact


@fields
def test_biases_of_norm_rank_and_alignment_are_of_second_order(field: str) -> None:
    n, m, runs = 20, 8, 300
    L, M = factor(field, n, 26), factor(field, n, 26) + factor(field, n, 26, seed=1)
    summaries = [tk.one_sided_summary(L, m, rng=seed) for seed in range(runs)]
    seen = {name: [float(getattr(s, name).value) for s in summaries] for name in NAMES[1:]}
    exact = dict(zip(NAMES, facts(L), strict=True)) | {"alignment": cosine(L, M)}
    seen["alignment"] = [float(tk.one_sided_alignment(L, M, 2 * m, rng=s)) for s in range(runs)]
    for name, values in seen.items():
        errors = np.array(values) / exact[name] - 1
        assert abs(errors.mean()) < np.mean(errors**2) + 4 * errors.std() / runs**0.5, name
        assert np.mean(errors**2) < 0.1, name


@fields
def test_plain_scaling_would_be_biased(field: str) -> None:
    """What the zonal polynomials are for: ``(n / m)^2 |K|^2`` is far from the squared norm."""
    n, m = 20, 6
    L = factor(field, n, 26)
    f = facts(L)[1]
    plain = [np.sum(np.abs(gram_of_probes(L, m, seed)) ** 2) * (n / m) ** 2 for seed in range(100)]
    zonal = [float(tk.one_sided_summary(L, m, rng=seed).frobenius_norm) for seed in range(100)]
    assert np.mean(plain) > 1.5 * f * f
    assert np.mean(zonal) == pytest.approx(f, rel=0.05)


# Exact ----------------------------------------------------------------------------------------


@fields
@pytest.mark.parametrize("shape", [(7, 7), (7, 12), (7, 3), (2, 5)], ids=str)
def test_exact_from_n_columns(shape: tuple[int, int], field: str) -> None:
    L, M, n = factor(field, *shape), factor(field, *shape, seed=1), shape[0]
    for m in (n, n + 1, 3 * n):
        for estimate, exact in zip(tk.one_sided_summary(L, m, rng=0), facts(L), strict=True):
            assert estimate.value == pytest.approx(exact, rel=1e-10)
            assert estimate.standard_error < 1e-10
            assert estimate.num_matvecs == n
    for m in (2 * n, 2 * n + 3):
        estimate = tk.one_sided_alignment(L, M, m, rng=0)
        assert estimate.value == pytest.approx(cosine(L, M), rel=1e-10)
        assert estimate.standard_error < 1e-10
        assert estimate.num_matvecs == 2 * n


@pytest.mark.parametrize("m", [2, 3, 8, 20])
def test_identity(m: int) -> None:
    for L in (np.eye(20), 3 * np.eye(20), 1j * np.eye(20)):
        for estimate, exact in zip(tk.one_sided_summary(L, m, rng=0), facts(L), strict=True):
            assert estimate.value == pytest.approx(exact, rel=1e-10)


@fields
@pytest.mark.parametrize("m", [4, 5, 10, 16])
@pytest.mark.parametrize("scale", [1.0, 2.0, -1e-3])
def test_an_operator_is_aligned_with_itself(field: str, m: int, scale: float) -> None:
    L = factor(field, 16, 20)
    estimate = tk.one_sided_alignment(L, scale * L, m, rng=0)
    assert estimate.value == pytest.approx(1, abs=1e-9)
    assert m < 6 or estimate.standard_error < 1e-9


@fields
def test_alignment_does_not_depend_on_the_order(field: str) -> None:
    L, M = factor(field, 16, 20), factor(field, 16, 5, seed=1)
    one, other = (tk.one_sided_alignment(*pair, 14, rng=0) for pair in ((L, M), (M, L)))
    assert one.value == pytest.approx(float(other), rel=1e-12)
    assert one.standard_error == pytest.approx(float(other.standard_error), rel=1e-9)


# Cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 9), (9, 4)], ids=str)
def test_what_is_claimed_is_what_was_spent_on_the_adjoint_alone(shape: tuple[int, int]) -> None:
    L, M, n = factor("real", *shape), factor("real", *shape, seed=1), shape[0]
    for m in range(2, 2 * n + 4):
        A, columns = backwards(L)
        for estimate in tk.one_sided_summary(A, m, rng=0):
            assert estimate.num_matvecs == sum(columns) == min(m, n)
        if m >= 4:
            (A, columns), (C, others) = backwards(L), backwards(M)
            estimate = tk.one_sided_alignment(A, C, m, rng=0)
            assert estimate.num_matvecs == sum(columns) + sum(others) <= m
            assert sum(columns) == sum(others) == min(m // 2, n)


def test_the_other_side_by_the_adjoint() -> None:
    """The trace and the norm of ``L^H L`` are those of ``L L^H``."""
    L = factor("real", 9, 6)
    for estimate, exact in zip(
        tk.one_sided_summary(tk.as_operator(L).H, 6, rng=0), facts(L), strict=True
    ):
        assert estimate.value == pytest.approx(exact, rel=1e-10)


# Bad input ------------------------------------------------------------------------------------


def refused(match: str, f: Any, *arguments: Any, error: Any = ValueError, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        f(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert 5 < len(message.split()) < 50


def test_bad_input() -> None:
    L = factor("real", 6, 9)
    for budget in (0, -1, 2.5, None, "6", True):
        refused("`num_matvecs` must be a positive integer", tk.one_sided_summary, L, budget)
        refused("`num_matvecs` must be a positive integer", tk.one_sided_alignment, L, L, budget)
    refused("at least 2 .*got 1", tk.one_sided_summary, L, 1)
    refused("at least 4 .*got 3", tk.one_sided_alignment, L, L, 3)
    refused("6 and 5 rows", tk.one_sided_alignment, L, L[:5], 8)
    one_way = tk.LinearOperator(L.shape, lambda X: L @ X)
    refused("adjoint", tk.one_sided_summary, one_way, 4, error=TypeError)
    refused("adjoint", tk.one_sided_alignment, L, one_way, 8, error=TypeError)
    zero = np.zeros_like(L)
    for m in (2, 4, 6):
        refused("zero.* 0 / 0", tk.one_sided_summary, zero, m, rng=0)
        refused("zero.* 0 / 0", tk.one_sided_alignment, zero, L, 2 * m, rng=0)
        refused("zero.* 0 / 0", tk.one_sided_alignment, L, zero, 2 * m, rng=0)
    refused("NaN", tk.one_sided_summary, L * np.nan, 4, error=tk.NotFiniteError)
    refused("NaN", tk.one_sided_alignment, L, L * np.nan, 8, error=tk.NotFiniteError)


def test_operators_of_two_libraries() -> None:
    for lib in installed("torch", "strict:CPU_DEVICE"):
        L = factor("real", 6, 9)
        refused("are incompatible", tk.one_sided_alignment, L, lib.array(L), 8)


# Libraries ------------------------------------------------------------------------------------


def test_compiled() -> None:
    for lib in installed("jax-jit"):
        L, M = factor("complex", 9, 12), factor("complex", 9, 12, seed=1)
        got = lib.estimate(tk.one_sided_summary, lib.array(L), 7, seed=4)
        for estimate, exact in zip(got, facts(L), strict=True):
            assert abs(complex(estimate.value) - exact) < 5 * float(estimate.standard_error)
            assert float(estimate.standard_error) < 0.5 * exact
        cos = lib.call(
            lambda L, M, rng: tk.one_sided_alignment(L, M, 14, rng=rng),
            lib.array(L), lib.array(M), lib.rng(0),
        )  # fmt: skip
        assert abs(float(cos) - cosine(L, M)) < 5 * float(cos.standard_error)


def test_gradients_are_those_of_the_estimate() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    lib = library("torch")
    L, step = factor("real", 9, 12), factor("real", 9, 12, seed=1)
    M = factor("real", 9, 12, seed=2)
    for of in (
        lambda L, M: tk.one_sided_summary(L, 5, rng=0).effective_rank.value,
        lambda L, M: tk.one_sided_summary(L, 5, rng=0).frobenius_norm.value,
        lambda L, M: tk.one_sided_alignment(L, M, 10, rng=0).value,
    ):
        X = lib.array(L).requires_grad_()
        of(X, lib.array(M)).backward()
        slope = float(np.sum(lib.numpy(X.grad) * step))
        ahead, behind = (float(of(L + h * step, M)) for h in (1e-6, -1e-6))
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-4)


# Error bars -----------------------------------------------------------------------------------


@fields
@pytest.mark.parametrize("m", [10, 20, 30])
def test_intervals_cover(field: str, m: int) -> None:
    L, M = factor(field, 40, 50), factor(field, 40, 50) + factor(field, 40, 50, seed=1)
    runs = [tk.one_sided_summary(L, m, rng=seed) for seed in range(60)]
    cases = {name: ([getattr(run, name) for run in runs], exact)
             for name, exact in zip(NAMES, facts(L), strict=True)}  # fmt: skip
    align = partial(tk.one_sided_alignment, L, M, 2 * m)
    cases["alignment"] = [align(rng=seed) for seed in range(60)], cosine(L, M)
    for name, (estimates, exact) in cases.items():
        ends = [estimate.confidence_interval() for estimate in estimates]
        assert sum(low <= exact <= high for low, high in ends) >= 0.85 * 60, name
        error = np.sqrt(np.mean([(float(e.value.real) - exact) ** 2 for e in estimates]))
        claimed = np.median([float(e.standard_error) for e in estimates])
        assert 0.5 * error < claimed < 2 * error, name


def test_two_probes_have_no_error_bar() -> None:
    for estimate in tk.one_sided_summary(factor("real", 9, 12), 2, rng=0):
        assert estimate.standard_error == np.inf


def test_no_draw_gives_nan() -> None:
    """Also where the estimate of the squared norm is negative, as two probes may have it."""
    L = factor("real", 12, 12)
    for seed in range(100):
        for estimate in tk.one_sided_summary(L, 2, rng=seed):
            assert np.isfinite(estimate.value)


def test_spread_is_below_that_of_independent_pairs() -> None:
    """All pairs of orthogonal probes: far less spread than pairs of independent ones."""
    L = factor("real", 64, 64)
    f = facts(L)[1]
    runs = [tk.one_sided_summary(L, 48, rng=seed).frobenius_norm for seed in range(80)]
    zonal, pairs = np.std([float(run) / f for run in runs]), []
    for seed in range(80):
        U = probes.rademacher(Source(seed, tk.as_operator(L)), 64, 48)
        K = U.T @ L @ L.T @ U
        pairs.append(np.mean([K[2 * i, 2 * i + 1] ** 2 for i in range(24)]) ** 0.5 / f)
    assert zonal < 0.5 * np.std(pairs)


def test_twins_agree_with_the_quadratic_forms() -> None:
    """The mean of a compression's trace is the trace: what `zonal_means` is made from."""
    rng = np.random.default_rng(0)
    V = [twins.haar(rng, 5, 3) for _ in range(4000)]
    rows = np.array([[v[0] @ v[0], v[1] @ v[1], v[0] @ v[1]] for v in V])
    # of A = e e^T with itself, and of A with B = f f^T: columns of the matrix of means
    means = naive.zonal_means(5, 3, cplx=False)
    same, apart = np.mean(rows[:, 0] ** 2), np.mean(rows[:, 0] * rows[:, 1])
    across = np.mean(rows[:, 2] ** 2)
    assert same == pytest.approx(means.sum(axis=1)[0], rel=0.03)
    assert same == pytest.approx(means.sum(axis=1)[1], rel=0.03)
    assert apart == pytest.approx(means[1, 1], rel=0.03)
    assert across == pytest.approx(means[0, 1], rel=0.08)


def test_one_row_is_exact() -> None:
    for L in (np.ones((1, 1)), np.full((1, 4), 0.5)):
        summary = tk.one_sided_summary(L, 4)
        assert [float(e) for e in summary] == [1.0, 1.0, 1.0]
        assert all(float(e.standard_error) == 0 for e in summary)
        assert float(tk.one_sided_alignment(L, L, 4)) == 1.0


@pytest.mark.parametrize("m", [8, 9, 14, 500])
@pytest.mark.parametrize(
    "estimator",
    [
        tk.one_sided,
        lambda K, m, rng: tk.one_sided_summary(K, m, rng=rng).trace,
        lambda K, m, rng: tk.one_sided_alignment(K, K, m, rng=rng),
    ],
)
def test_products_of_a_kernel_are_counted_in_its_factor(estimator: Any, m: int) -> None:
    """A column through ``K = L L^H`` is two through L."""
    K, counter = tk.counted(tk.gram(tk.as_operator(factor("real", 30, 40))))
    assert estimator(K, m, rng=0).num_matvecs == counter.total <= m
