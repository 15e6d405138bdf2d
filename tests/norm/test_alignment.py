"""Laws of inner products and alignments: unbiased, exact, symmetric, what they cost, libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import twins_moments as naive
from conftest import KINDS, PSD, Library, installed, library, matrix

import tracekit as tk
from tracekit import probes
from tracekit.probes.source import Source
from tracekit.testing import known_spectrum, unbiasedness_test

N = 12
fields = pytest.mark.parametrize("field", ["real", "complex"])
kinds = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("estimator", [tk.inner, tk.alignment], ids=lambda f: f.__name__)


def factor(field: str, n: int, P: int, *, seed: int = 0) -> np.ndarray:
    return matrix(field, max(n, P), seed=seed)[:n, :P]


def black_box(A: np.ndarray) -> tk.LinearOperator:
    return tk.LinearOperator(A.shape, lambda X: A @ X, dtype=A.dtype)


def dense(A: Any) -> np.ndarray:
    return A if isinstance(A, np.ndarray) else A @ np.eye(A.shape[1])


def dot(A: Any, B: Any) -> complex:
    return complex(np.vdot(dense(A), dense(B)))


def cosine(A: Any, B: Any) -> complex:
    return dot(A, B) / (np.linalg.norm(dense(A)) * np.linalg.norm(dense(B)))


def psd_pair(field: str, n: int = N, P: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Factors of two kernels at an angle."""
    L = factor(field, n, P)
    return L, L + 0.5 * factor(field, n, P, seed=1)


def pair(kind: str) -> tuple[np.ndarray, np.ndarray]:
    A = matrix(kind, N)
    return A, A / 2 + matrix(kind, N, seed=1)


# One path each: two operators and a budget.
PATHS: dict[str, Callable[[str], tuple[Any, Any, int]]] = {
    "shared": lambda f: (*pair(f), 20),
    "shared of few": lambda f: (*map(black_box, pair(f)), 13),
    "independent": lambda f: (*pair(f), 8),
    "rectangular": lambda f: (*psd_pair(f, 12, 9), 12),
    "factored, P > n": lambda f: (*map(tk.gram, psd_pair(f)), 16),
    "factored, P < n": lambda f: (*map(tk.gram, psd_pair(f, 12, 10)), 16),
    "factored, few": lambda f: (*map(tk.gram, psd_pair(f)), 8),
    "one factored": lambda f: (tk.gram(psd_pair(f)[0]), pair(f)[1], 26),
}
paths = pytest.mark.parametrize("path", PATHS)


@cache
def many_runs(path: str, field: str) -> list[Any]:
    A, B, m = PATHS[path](field)
    return [tk.inner(A, B, m, rng=seed).value for seed in range(200)]


# Unbiased -------------------------------------------------------------------------------------


@fields
@paths
def test_inner_is_unbiased(path: str, field: str) -> None:
    A, B, _ = PATHS[path](field)
    exact = dot(A, B)
    runs = many_runs(path, field)
    unbiasedness_test(lambda A, rng: runs[rng], A, exact=exact, max_z=4.5)
    assert np.std(np.abs(runs)) > 1e-4 * abs(exact)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_of_any_kind_is_unbiased(kind: str) -> None:
    A, B = pair(kind)
    estimator = lambda A, rng: tk.inner(A, B, 16, rng=rng)  # noqa: E731
    unbiasedness_test(estimator, A, exact=dot(A, B), max_z=4.5)


@fields
@paths
def test_the_bias_of_alignment_is_of_second_order(path: str, field: str) -> None:
    A, B, m = PATHS[path](field)
    exact, size = cosine(A, B), np.linalg.norm(dense(A)) * np.linalg.norm(dense(B))
    values = np.array([tk.alignment(A, B, m, rng=seed).value for seed in range(200)])
    dots = np.array(many_runs(path, field))
    second = np.mean(np.abs(dots - dot(A, B)) ** 2) / size**2
    errors = values - exact
    assert abs(errors.mean()) < second + 4 * np.std(np.abs(errors)) / 200**0.5
    assert np.mean(np.abs(errors) ** 2) < 0.1


def test_shared_probes_cancel_in_the_ratio() -> None:
    """The cosine is known far better than the three numbers it is made of."""
    A, B = pair("psd")
    runs = [(tk.inner(A, B, 16, rng=s), tk.alignment(A, B, 16, rng=s)) for s in range(100)]
    dots = np.std([float(x) for x, _ in runs]) / dot(A, B).real
    cosines = np.std([float(c) for _, c in runs]) / cosine(A, B).real
    assert cosines < 0.5 * dots


# Equal to naive twins -------------------------------------------------------------------------


def drawn(A: Any, b: int, *, seed: int = 3) -> np.ndarray:
    return probes.sphere(Source(seed, tk.as_operator(A)), A.shape[1], b)


@kinds
def test_shared_sketches_are_read_as_their_twin(kind: str) -> None:
    A, B = pair(kind)
    Omega = drawn(A, 4)
    # both are deflated by the range of their sum, each in units of its largest product
    Y = sum(X @ Omega / np.max(np.abs(X @ Omega)) for X in (A, B))
    samples = naive.shared(A, B, Y, Omega)
    for budget in (16, 19):
        estimate = tk.inner(A, B, budget, rng=3)
        assert complex(estimate.value) == pytest.approx(samples.mean(), rel=1e-6)
        assert estimate.num_matvecs == 16
    squares = [naive.shared(X, X, Y, Omega).mean().real for X in (A, B)]
    value = tk.alignment(A, B, 16, rng=3).value
    assert complex(value) == pytest.approx(samples.mean() / np.prod(squares) ** 0.5, rel=1e-6)


@fields
@pytest.mark.parametrize("P", [16, 10])
def test_factored_operators_are_read_as_their_twin(P: int, field: str) -> None:
    factors = psd_pair(field, N, P)
    A, B = (L @ L.conj().T for L in factors)
    Omega = drawn(factors[0], 4, seed=5) if P == N else probes.sphere(
        Source(5, tk.as_operator(A)), N, 4
    )  # fmt: skip
    samples, *squares = (
        naive.nystrom_pairs(*both, Omega).mean().real for both in ((A, B), (A, A), (B, B))
    )
    operators = [tk.gram(L) for L in factors]
    estimate = tk.inner(*operators, 16, rng=5)
    assert complex(estimate.value) == pytest.approx(samples, rel=1e-6)
    value = tk.alignment(*operators, 16, rng=5).value
    assert complex(value) == pytest.approx(samples / np.prod(squares) ** 0.5, rel=1e-6)


# Exact ----------------------------------------------------------------------------------------


@kinds
@both
def test_exact_from_all_columns(kind: str, estimator: Any) -> None:
    A, B = pair(kind)
    truth = (dot if estimator is tk.inner else cosine)(A, B)
    for X, Y in ((A, B), (black_box(A), black_box(B)), (A[:, :7], B[:, :7]), (A[:5], B[:5])):
        n = X.shape[1]
        for m in (2 * n, 2 * n + 1, 100):
            estimate = estimator(X, Y, m)
            exact = (dot if estimator is tk.inner else cosine)(X, Y)
            assert complex(estimate.value) == pytest.approx(exact, rel=1e-12)
            assert estimate.standard_error < 1e-12
            assert estimate.num_matvecs == 2 * n
    assert abs(truth) > 0.1


@fields
@both
@pytest.mark.parametrize("P", [3, 7, 12, 16, 1])
def test_exact_from_enough_columns_of_factors(field: str, estimator: Any, P: int) -> None:
    A, B = map(tk.gram, psd_pair(field, N, P))
    exact = (dot if estimator is tk.inner else cosine)(A, B)
    for m in (max(4, 2 * min(N, P)), 4 * N, 100):
        estimate = estimator(A, B, m, rng=0)
        assert complex(estimate.value) == pytest.approx(exact, rel=1e-10)
        assert estimate.standard_error < 1e-10
        assert estimate.num_matvecs == 2 * min(N, P)


@fields
@pytest.mark.parametrize("ranks", [(1, 1), (2, 3)])
def test_exact_on_low_rank(field: str, ranks: tuple[int, int]) -> None:
    rng = np.random.default_rng(77)

    def factor_of(rank: int) -> np.ndarray:
        X = rng.standard_normal((30, rank))
        return X + 1j * rng.standard_normal(X.shape) if field == "complex" else X

    L, M = factor_of(ranks[0]), factor_of(ranks[1])
    M = M + L[:, :1]
    A, B = L @ L.conj().T, M @ M.conj().T
    for X, Y, m in ((A, B, 40), (tk.gram(A), tk.gram(B), 40), (tk.gram(L), tk.gram(M), 40)):
        assert complex(tk.inner(X, Y, m, rng=0).value) == pytest.approx(dot(X, Y), rel=1e-7)
        assert complex(tk.alignment(X, Y, m, rng=0).value) == pytest.approx(cosine(X, Y), rel=1e-7)


@pytest.mark.parametrize("shapes", [(4, 9), (9, 4), (3, 3), (9, 16), (1, 1), (1, 16)], ids=str)
@fields
def test_factors_of_any_width_at_any_budget(shapes: tuple[int, int], field: str) -> None:
    """Also where there are more probes than columns of a factor."""
    A, B = (tk.gram(factor(field, 9, P, seed=i)) for i, P in enumerate(shapes))
    exact = dot(A, B)
    for m in range(4, 40):
        runs = [tk.inner(A, B, m, rng=seed) for seed in range(4)]
        error = np.mean([abs(run.value - exact) for run in runs])
        claimed = np.mean([float(run.standard_error) for run in runs])
        assert error <= 6 * claimed + 1e-6 * abs(exact), m
        assert all(run.num_matvecs <= m for run in runs)


@both
def test_arrays_and_functions_go_together(estimator: Any) -> None:
    A, B = pair("real")
    for m in (8, 16, 40):
        plain = estimator(A, B, m, rng=0).value
        assert estimator(A, black_box(B), m, rng=0).value == pytest.approx(plain, rel=1e-12)
        assert estimator(black_box(A), B, m, rng=0).value == pytest.approx(plain, rel=1e-12)


# Symmetries -----------------------------------------------------------------------------------


@fields
@paths
@pytest.mark.parametrize("scale", [1, 2, -0.5])
def test_an_operator_is_aligned_with_itself(path: str, field: str, scale: float) -> None:
    A, _, m = PATHS[path](field)
    B = A if scale == 1 else scale * A
    if getattr(A, "factor", None) is not None and scale != 1:
        B = tk.gram(abs(scale) ** 0.5 * A.factor)
        scale = abs(scale)
    for budget in (m, 7, 100):
        estimate = tk.alignment(A, B, budget, rng=0)
        assert complex(estimate.value) == pytest.approx(np.sign(scale), abs=1e-6)
        assert estimate.standard_error < 1e-6 or estimate.num_matvecs <= 4


@fields
@paths
def test_the_order_conjugates(path: str, field: str) -> None:
    A, B, m = PATHS[path](field)
    for estimator in (tk.inner, tk.alignment):
        one, other = estimator(A, B, m, rng=0), estimator(B, A, m, rng=0)
        assert complex(one.value) == pytest.approx(np.conj(complex(other.value)), rel=1e-9)
        assert one.standard_error == pytest.approx(float(other.standard_error), rel=1e-6)
        assert one.num_matvecs == other.num_matvecs


@paths
@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_scale_equivariance(path: str, scale: float) -> None:
    A, B, m = PATHS[path]("real")
    L = getattr(A, "factor", None)
    A_ = scale * A if L is None else tk.gram(scale**0.5 * L)
    for budget in (m, 60):
        one, other = tk.inner(A, B, budget, rng=0), tk.inner(A_, B, budget, rng=0)
        assert float(other) / scale == pytest.approx(float(one), rel=1e-9)
        error = float(other.standard_error) / scale
        assert error == pytest.approx(float(one.standard_error), rel=1e-6, abs=1e-12)
        one, other = tk.alignment(A, B, budget, rng=0), tk.alignment(A_, B, budget, rng=0)
        assert float(other) == pytest.approx(float(one), rel=1e-9)


def test_inner_is_linear_in_the_second_on_the_same_probes() -> None:
    """Antilinear in the first, as the inner product of complex matrices is."""
    A, B = (matrix("complex", N, seed=seed) for seed in (0, 1))
    one = tk.inner(A, B, 8, rng=0).value
    assert tk.inner(A, 2j * B, 8, rng=0).value == pytest.approx(2j * one, rel=1e-9)
    assert tk.inner(2j * A, B, 8, rng=0).value == pytest.approx(-2j * one, rel=1e-9)


@pytest.mark.parametrize("m", [6, 16, 24])
def test_norms_are_inner_products_with_oneself(m: int) -> None:
    A = matrix("complex", N)
    square = tk.inner(A, A, m, rng=0)
    assert abs(square.value.imag) < 1e-12 * abs(square.value)
    assert square.value.real > 0


# Alignment with targets -----------------------------------------------------------------------


def target_cosine(K: np.ndarray, y: np.ndarray) -> float:
    y = y.reshape(len(y), -1)
    return float(cosine(K, y @ y.conj().T).real)


@pytest.mark.parametrize("kind", ["symmetric", "psd", "hermitian", "complex psd"])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_target_alignment(kind: str, k: int | None) -> None:
    K = matrix(kind, N)
    rng = np.random.default_rng(1)
    y = rng.standard_normal((N,) if k is None else (N, k))
    if np.iscomplexobj(K):
        y = y + 1j * rng.standard_normal(y.shape)
    exact, columns = target_cosine(K, y), k or 1
    whole = tk.target_alignment(K, y, N + columns)
    assert float(whole) == pytest.approx(exact, rel=1e-12)
    assert whole.standard_error < 1e-12
    assert whole.num_matvecs == N + columns
    few = tk.target_alignment(K, y, 10 + columns, rng=0)
    assert abs(float(few) - exact) < 5 * few.standard_error
    # the numerator is exact: what is left is the error of the norm
    norm = tk.frobenius_norm(K, 10, rng=0)
    assert float(few) == pytest.approx(exact * np.linalg.norm(K) / float(norm), rel=1e-12)
    assert few.num_matvecs == norm.num_matvecs + columns
    assert few.standard_error / abs(few.value) == pytest.approx(norm.standard_error / norm.value)


@fields
@pytest.mark.parametrize("P", [16, 7])
def test_target_alignment_of_factored_kernels(field: str, P: int) -> None:
    L = factor(field, N, P)
    y = np.random.default_rng(1).standard_normal((N, 2)) + (0.5j if field == "complex" else 0)
    exact = target_cosine(L @ L.conj().T, y)
    for m in (6, 12, 40):
        K, counter = tk.counted(tk.gram(L))
        estimate = tk.target_alignment(K, y, m, rng=0)
        assert abs(float(estimate) - exact) < 6 * estimate.standard_error + 1e-12
        assert counter.total == estimate.num_matvecs <= m


@pytest.mark.parametrize("scale", [1e-100, 1e-30, 1e30, 1e100])
def test_target_alignment_does_not_depend_on_units(scale: float) -> None:
    K, y = matrix("psd", N), np.arange(1.0, N + 1)
    plain = float(tk.target_alignment(K, y, 8, rng=0))
    assert float(tk.target_alignment(K, scale * y, 8, rng=0)) == pytest.approx(plain, rel=1e-9)
    assert float(tk.target_alignment(scale * K, y, 8, rng=0)) == pytest.approx(plain, rel=1e-9)


def test_a_kernel_made_of_its_targets_is_aligned() -> None:
    y = np.arange(1.0, 21)
    for K in (np.outer(y, y), tk.gram(y[:, None])):
        assert float(tk.target_alignment(K, y, 14, rng=0)) == pytest.approx(1, rel=1e-9)
    assert (
        float(tk.target_alignment(np.outer(y, y), np.flip(y) * np.array([1, -1] * 10), 14, rng=0))
        < 0.1
    )


# Centred --------------------------------------------------------------------------------------


@fields
@pytest.mark.parametrize("factored", [False, True])
def test_centred_alignment_is_cka(field: str, factored: bool) -> None:
    L, M = psd_pair(field)
    L, M = L + 1, M + 2
    C = np.eye(N) - 1 / N
    A, B = (C @ X @ X.conj().T @ C for X in (L, M))
    exact, plain = cosine(A, B).real, cosine(L @ L.conj().T, M @ M.conj().T).real
    assert abs(exact - plain) > 0.01  # the mean counts
    operators = (tk.gram(L), tk.gram(M)) if factored else (L @ L.conj().T, M @ M.conj().T)
    centred = [tk.centered(X) for X in operators]
    np.testing.assert_allclose(dense(centred[0]), A, atol=1e-12)
    assert (centred[0].factor is not None) == factored
    whole = tk.alignment(*centred, 4 * N)
    assert complex(whole.value) == pytest.approx(exact, rel=1e-9)
    few = tk.alignment(*centred, 16, rng=0)
    assert abs(complex(few.value) - exact) < 5 * few.standard_error
    y = np.random.default_rng(0).standard_normal(N) + 2
    target = tk.target_alignment(centred[0], y - y.mean(), 4 * N)
    assert float(target) == pytest.approx(cosine(A, C @ np.outer(y, y) @ C).real, rel=1e-9)


def test_centred_operators() -> None:
    A = matrix("complex", N)
    C = np.eye(N) - 1 / N
    np.testing.assert_allclose(dense(tk.centered(A)), C @ A @ C, atol=1e-12)
    np.testing.assert_allclose(dense(tk.centered(A).H), C @ A.conj().T @ C, atol=1e-12)
    with pytest.raises(ValueError, match=r"shape \(3, 4\) cannot be centred"):
        tk.centered(np.ones((3, 4)))


# Bad input ------------------------------------------------------------------------------------


def refused(match: str, f: Any, *arguments: Any, error: Any = ValueError, **options: Any) -> None:
    """One sentence that names what was given."""
    with pytest.raises(error, match=match) as caught:
        f(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert 5 < len(message.split()) < 50


@both
def test_bad_pairs(estimator: Any) -> None:
    A = matrix("psd", N)
    refused(r"\(12, 12\) and \(11, 11\)", estimator, A, A[1:, 1:], 8)
    refused(r"\(12, 12\) and \(12, 11\)", estimator, A, A[:, 1:], 8)
    for budget in (0, -1, 2.5, None, "8", True):
        refused("`num_matvecs` must be a positive integer, got ", estimator, A, A, budget)
    refused("num_matvecs=1 .*at least 2", estimator, A, A, 1)
    refused("num_matvecs=3 .*at least 4", estimator, tk.gram(A), tk.gram(A), 3)
    refused("rng", estimator, A, A, 8, rng="0", error=TypeError)
    refused(".", estimator, A, "a kernel", 8, error=TypeError)
    for lib in installed("torch", "strict:CPU_DEVICE"):
        refused("are incompatible", estimator, A, lib.array(A), 8)
        refused("are incompatible", estimator, lib.array(A), A, 8)
    for m in (4, 8, 16, 30):
        refused("NaN", estimator, A, A * np.nan, m, error=tk.NotFiniteError)
        refused("NaN", estimator, tk.gram(A * np.nan), tk.gram(A), m, error=tk.NotFiniteError)


@pytest.mark.parametrize("m", [2, 4, 12, 20, 30, 60])
@fields
def test_zero_operators(m: int, field: str) -> None:
    A, zero = matrix(field, N), np.zeros((N, N), dtype=matrix(field, N).dtype)
    for X, Y in ((A, zero), (zero, A), (zero, zero), (A[:, :5], zero[:, :5])):
        assert complex(tk.inner(X, Y, m, rng=0).value) == 0
        refused("zero.* 0 / 0", tk.alignment, X, Y, m, rng=0)
    if m >= 4:
        for X, Y in ((A, zero), (zero, A), (zero, zero), (A, zero[:, :4])):
            pair = tk.gram(X), tk.gram(Y)
            assert complex(tk.inner(*pair, m, rng=0).value) == 0
            refused("zero.* 0 / 0", tk.alignment, *pair, m, rng=0)


def test_bad_targets() -> None:
    K, y = matrix("psd", N), np.ones(N)
    refused(r"shape \(11,\) .*dimension 12", tk.target_alignment, K, y[1:], 8)
    refused(r"shape \(2, 12\)", tk.target_alignment, K, np.ones((2, N)), 8)
    refused(r"shape \(12, 1, 1\)", tk.target_alignment, K, np.ones((N, 1, 1)), 8)
    refused(
        r"\(12,\) or \(12, k\)", tk.target_alignment, K, [1.0] * N, 8, error=(TypeError, ValueError)
    )
    refused("num_matvecs=3 .*3 targets", tk.target_alignment, K, np.ones((N, 3)), 3)
    refused("`num_matvecs` must be a positive integer, got ", tk.target_alignment, K, y, 0)
    refused(r"square operator, not one of shape \(12, 5\)", tk.target_alignment, K[:, :5], y, 8)
    for m in (3, 8, 30):
        refused("zero.* 0 / 0", tk.target_alignment, K, 0 * y, m)
        refused("zero.* 0 / 0", tk.target_alignment, 0 * K, y, m)
        refused("NaN", tk.target_alignment, K * np.nan, y, m, error=tk.NotFiniteError)
    refused("NaN|finite", tk.target_alignment, K, y * np.nan, 8)


def test_targets_of_another_library() -> None:
    for lib in installed("torch", "strict:CPU_DEVICE"):
        K, y = matrix("psd", N), np.ones(N)
        refused(".", tk.target_alignment, K, lib.array(y), 8, error=(TypeError, ValueError))
        refused(".", tk.target_alignment, lib.array(K), y, 8, error=(TypeError, ValueError))


def test_complex_targets_of_a_real_kernel_are_not_truncated() -> None:
    K, y = matrix("psd", N), np.ones(N) + 1j * np.arange(N)
    try:
        got = float(tk.target_alignment(K, y, 40))
    except (TypeError, ValueError) as error:
        assert "complex" in str(error)  # noqa: PT017
    else:
        assert got == pytest.approx(target_cosine(K, y), rel=1e-9)


# Cost -----------------------------------------------------------------------------------------


@fields
@both
def test_what_is_claimed_is_what_was_spent(field: str, estimator: Any) -> None:
    n = 6
    A, B = matrix(field, n), matrix(field, n, seed=1)
    pairs = {
        "square": (A, B), "rectangular": (A[:, :4], B[:, :4]), "wide": (A[:4], B[:4]),
        "factored": (tk.gram(A), tk.gram(B)), "one factored": (tk.gram(A), B),
        "thin factors": (tk.gram(A[:, :3]), tk.gram(B[:, :2])),
        "wide factors": (tk.gram(factor(field, n, 9)), tk.gram(factor(field, n, 8))),
    }  # fmt: skip
    for name, (X, Y) in pairs.items():
        first = sum(1 if getattr(Z, "factor", None) is None else 2 for Z in (X, Y))
        for m in range(first, 4 * n + 4):
            (X_, one), (Y_, other) = tk.counted(X), tk.counted(Y)
            estimate = estimator(X_, Y_, m, rng=0)
            assert one.total + other.total == estimate.num_matvecs <= m, (name, m)


def test_what_targets_cost() -> None:
    K = matrix("psd", 8)
    for operator, more in ((K, 1), (tk.gram(K), 2)):
        for y in (np.ones(8), np.ones((8, 2)) + np.eye(8, 2)):
            columns = 1 if y.ndim == 1 else 2
            for m in range(columns + more, 22):
                K_, counter = tk.counted(operator)
                estimate = tk.target_alignment(K_, y, m, rng=0)
                assert counter.total == estimate.num_matvecs <= m


# Libraries ------------------------------------------------------------------------------------


def of_factors(L: Any, M: Any, rng: Any) -> tuple[Any, Any]:
    A, B = tk.gram(L), tk.gram(M)
    return tk.inner(A, B, 16, rng=rng), tk.alignment(A, B, 16, rng=rng)


def of_kernels(A: Any, B: Any, rng: Any) -> tuple[Any, Any]:
    return tk.inner(A, B, 14, rng=rng), tk.alignment(A, B, 14, rng=rng)


def test_targets_of_every_library(but_jax: Library) -> None:
    K, y = matrix("psd", N), np.ones((N, 2)) + np.eye(N, 2)
    estimate = tk.target_alignment(but_jax.array(K), but_jax.array(y), 8, rng=0)
    assert but_jax.at_home(estimate.value)
    tol = 1e-9 if but_jax.eps < 1e-10 else 2e-3
    assert float(estimate) == pytest.approx(float(tk.target_alignment(K, y, 8, rng=0)), rel=tol)


@pytest.mark.parametrize("reading", [of_factors, of_kernels], ids=lambda f: f.__name__)
def test_compiled(reading: Any) -> None:
    for lib in installed("jax-jit"):
        X, Y = psd_pair("complex") if reading is of_factors else pair("complex")
        A, B = (X @ X.conj().T, Y @ Y.conj().T) if reading is of_factors else (X, Y)
        got = lib.call(reading, lib.array(X), lib.array(Y), lib.rng(1))
        for estimate, exact in zip(got, (dot(A, B), cosine(A, B)), strict=True):
            assert abs(complex(estimate.value) - exact) < 5 * float(estimate.standard_error)
            assert float(estimate.standard_error) < abs(exact)
        y = lib.array(np.ones(N))
        target = lib.call(
            lambda K, y, rng: tk.target_alignment(K, y, 9, rng=rng),
            lib.array(matrix("psd", N)), y, lib.rng(0),
        )  # fmt: skip
        exact = target_cosine(matrix("psd", N), np.ones(N))
        assert abs(float(target) - exact) < 5 * float(target.standard_error)


def test_a_real_and_a_complex_operator_give_a_complex_product() -> None:
    A, B = matrix("real", N), matrix("complex", N)
    for m in (8, 16, 60):
        estimate = tk.inner(A, B, m, rng=0)
        assert estimate.value.dtype == np.complex128
        assert abs(estimate.value - dot(A, B)) <= 6 * estimate.standard_error + 1e-12


def test_gradients_are_those_of_the_estimate() -> None:
    """Also of what the range of a shared sketch owes to the weights of both operators."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    lib = library("torch")
    L, M = psd_pair("real")
    step = factor("real", N, 16, seed=3)
    for of in (
        lambda L, M, rng: tk.alignment(tk.gram(L), tk.gram(M), 16, rng=rng).value,
        lambda L, M, rng: tk.alignment(tk.gram(L), tk.gram(M), 60, rng=rng).value,
        lambda L, M, rng: tk.inner(L @ L.T, M @ M.T, 16, rng=rng).value,
        lambda L, M, rng: tk.target_alignment(tk.gram(L), M[:, 0], 12, rng=rng).value,
    ):
        for seed in range(5):
            X = lib.array(L).requires_grad_()
            of(X, lib.array(M), seed).backward()
            slope = float(np.sum(lib.numpy(X.grad) * step))
            ahead, behind = (float(of(L + h * step, M, seed)) for h in (1e-5, -1e-5))
            assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-5, abs=1e-6)


# Error bars -----------------------------------------------------------------------------------

SPECTRA = {
    "slow": np.arange(1, 41) ** -0.5,
    "quadratic": np.arange(1, 41) ** -2.0,
    "flat": np.linspace(1, 3, 40),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@fields
def test_intervals_cover(spectrum: str, field: str) -> None:
    dtype = np.dtype("complex128" if field == "complex" else "float64")
    A, B = (known_spectrum(SPECTRA[spectrum], rng=seed, dtype=dtype) for seed in (0, 1))
    B = (A + B) / 2
    factors = [tk.gram(np.linalg.cholesky(X)) for X in (A, B)]
    y = np.random.default_rng(0).standard_normal((40, 2)).astype(dtype)
    for X, Y, m in ((A, B, 40), (*factors, 40), (A, B, 10)):
        for estimator, exact in ((tk.inner, dot(A, B)), (tk.alignment, cosine(A, B))):
            runs = [estimator(X, Y, m, rng=seed) for seed in range(60)]
            ends = [run.confidence_interval() for run in runs]
            inside = sum(low <= exact.real <= high for low, high in ends)
            assert inside >= 0.85 * 60, (estimator.__name__, m)
            errors = [abs(run.value - exact) for run in runs]
            claimed = np.median([float(run.standard_error) for run in runs])
            assert claimed < 5 * np.sqrt(np.mean(np.square(errors)))
    runs = [tk.target_alignment(A, y, 16, rng=seed) for seed in range(60)]
    ends = [run.confidence_interval() for run in runs]
    assert sum(low <= target_cosine(A, y) <= high for low, high in ends) >= 0.85 * 60


@pytest.mark.parametrize("kind", PSD)
def test_one_probe_has_no_error_bar(kind: str) -> None:
    A, B = pair(kind)
    for estimator in (tk.inner, tk.alignment):
        assert estimator(A, B, 2, rng=0).standard_error == np.inf


@pytest.mark.parametrize("c", [2.0**-300, 2.0**300])
def test_alignment_knows_no_unit_of_either_side(c: float) -> None:
    A, B = matrix("psd", N), matrix("psd", N) @ matrix("psd", N)
    plain = tk.alignment(A, B, 10, rng=0)
    for one in (tk.alignment(c * A, B, 10, rng=0), tk.alignment(A, c * B, 10, rng=0)):
        assert float(one) == pytest.approx(float(plain), rel=1e-9)
        assert float(one.standard_error) == pytest.approx(float(plain.standard_error), rel=1e-6)
