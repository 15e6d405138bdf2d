"""Laws of the diagonals: exact, unbiased entry by entry, naive twins, costs, libraries."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, PSD, Library, installed, matrix
from twins import combined_errors, range_basis, standard_error

import tracekit as tk
from tracekit import probes
from tracekit._diagonal.columns import DEFLATE_FROM
from tracekit._diagonal.diagonal import block_traces, diagonal
from tracekit._diagonal.xdiag import xdiag, xnysdiag
from tracekit._estimates.running_mean import add, fitted
from tracekit._sketches import leave_one_out
from tracekit.probes.source import Source

N = 20
LAWS = (probes.rademacher, probes.sphere, probes.normal, probes.orthogonal, probes.hadamard)
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
kinds = pytest.mark.parametrize("kind", KINDS)
estimators = pytest.mark.parametrize(
    "estimator", [diagonal, xdiag, xnysdiag], ids=lambda f: f.__name__
)


def factor(kind: str, n: int, P: int, *, seed: int = 0) -> np.ndarray:
    """An n by P matrix of decaying singular values."""
    size = max(n, P)
    return (matrix(kind, size, seed=seed) @ matrix(kind, size, seed=seed + 1))[:n, :P]


def matrix_of(L: np.ndarray) -> np.ndarray:
    return L @ L.conj().T


def black_box(A: np.ndarray, *, adjoint: bool = True) -> tk.LinearOperator:
    return tk.LinearOperator(
        A.shape, lambda X: A @ X, (lambda X: A.conj().T @ X) if adjoint else None, dtype=A.dtype
    )


def xdiag_twin(A: np.ndarray, Omega: np.ndarray) -> np.ndarray:
    """XDiag (arXiv:2301.07825): each probe tests what the range of the others leaves."""
    samples = []
    for i in range(Omega.shape[1]):
        Q = range_basis(A @ np.delete(Omega, i, axis=1))
        near, w = Q @ (Q.conj().T @ A), Omega[:, i]
        samples.append(np.diagonal(near) + w.conj() * ((A - near) @ w))
    return np.array(samples).T


def xnysdiag_twin(L: np.ndarray, Omega: np.ndarray) -> np.ndarray:
    """The same with the Nystrom approximation of L L^H from the others."""
    samples = []
    for i in range(Omega.shape[1]):
        V = range_basis(L.conj().T @ np.delete(Omega, i, axis=1))
        near, w = matrix_of(L @ V), Omega[:, i]
        samples.append(np.diagonal(near) + w.conj() * ((matrix_of(L) - near) @ w))
    return np.array(samples).T


def z_scores(values: list[Any], exact: np.ndarray) -> np.ndarray:
    """Of the mean of many runs, entry by entry; the parts of complex ones apart."""
    drawn = np.array([np.asarray(v) for v in values])
    scores = []
    for part in (np.real, np.imag) if np.iscomplexobj(drawn) else (np.real,):
        spread = part(drawn).std(axis=0, ddof=1) / np.sqrt(len(drawn))
        rounding = 1e-12 * np.abs(drawn).max()
        scores.append(np.abs(part(drawn).mean(axis=0) - part(exact)) / np.maximum(spread, rounding))
    return np.array(scores)


# Exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_exact(lib: Library, kind: str) -> None:
    A = matrix(kind, 9)
    for chunk_size in (None, 4):
        estimate = lib.call(partial(diagonal, chunk_size=chunk_size), lib.array(A))
        np.testing.assert_allclose(lib.numpy(estimate.value), np.diagonal(A), rtol=100 * lib.eps)
        assert not lib.numpy(estimate.standard_error).any()
        assert (estimate.num_matvecs, estimate.method) == (9, "diagonal")
        assert lib.at_home(estimate.value)


@pytest.mark.parametrize("kind", PSD)
@pytest.mark.parametrize(("P", "cost"), [(4, 4), (9, 9), (30, 9)])
def test_exact_of_a_factor_takes_its_shorter_side(kind: str, P: int, cost: int) -> None:
    L = factor(kind, 9, P)
    for budget in (None, cost, cost + 1, 1000):
        A, counter = tk.counted(tk.gram(L))
        estimate = diagonal(A, budget, rng=0, chunk_size=3)
        np.testing.assert_allclose(estimate.value, np.diagonal(matrix_of(L)), rtol=1e-12)
        assert estimate.value.dtype == L.dtype
        assert estimate.num_matvecs == counter.total == cost
        assert xdiag(A, 1000, rng=0).num_matvecs == cost


@estimators
def test_what_is_known_in_closed_form_costs_nothing(estimator: Any) -> None:
    def product(X: np.ndarray) -> np.ndarray:
        raise AssertionError("no product is needed")

    A = tk.LinearOperator((3, 3), product, exact={"diagonal": lambda: np.array([1.0, 2.0, 3.0])})
    estimate = estimator(A, 1)
    assert estimate.value.tolist() == [1.0, 2.0, 3.0]
    assert estimate.num_matvecs == 0
    assert block_traces(A, (3, 1), 0).value.tolist() == [6.0]


@estimators
@kinds
def test_budget_of_the_dimension_is_exact(estimator: Any, kind: str) -> None:
    for n, budget in ((1, 1), (2, 5), (7, 7)):
        A = matrix(kind, n)
        estimate = estimator(A, budget, rng=0)
        np.testing.assert_allclose(estimate.value, np.diagonal(A), rtol=1e-13)
        assert not estimate.standard_error.any()
        assert estimate.num_matvecs == n


@every_law
def test_random_probes_are_exact_where_only_the_diagonal_is_not_zero(law: Any) -> None:
    d = np.arange(1.0, N + 1)
    estimate = diagonal(np.diag(d), 8, rng=0, probes=law)
    np.testing.assert_allclose(estimate.value, d, rtol=1e-12)
    assert (estimate.standard_error < 1e-12 * d).all()


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_exact_where_the_rank_fits(lib: Library, kind: str) -> None:
    left, right = factor(kind, N, 3), factor(kind, N, 3, seed=4)
    A = left @ right.conj().T
    estimate = lib.estimate(xdiag, lib.array(A), 10)
    size = np.abs(A).max()
    np.testing.assert_allclose(
        lib.numpy(estimate.value), np.diagonal(A), atol=1e4 * lib.eps * size, rtol=0
    )
    assert (lib.numpy(estimate.standard_error) < 1e4 * lib.eps * size).all()
    L = left @ factor(kind, 40, 3).conj().T
    exact, size = np.diagonal(matrix_of(L)), np.abs(matrix_of(L)).max()
    # the leading part is exact, and the rest nothing
    wide, m = lib.array(np.concatenate([L] * 2)), DEFLATE_FROM
    for estimator, budget in ((xdiag, 10), (diagonal, m)):
        estimate = lib.estimate(lambda L, m, rng: estimator(tk.gram(L), m, rng=rng), wide, budget)  # noqa: B023
        np.testing.assert_allclose(
            lib.numpy(estimate.value), np.tile(exact, 2), atol=1e4 * lib.eps * size, rtol=0
        )
        assert (lib.numpy(estimate.standard_error) < 1e4 * lib.eps * size).all()


# Equal to the naive versions ------------------------------------------------------------------


@kinds
@every_law
def test_diagonal_is_its_twin(kind: str, law: Any) -> None:
    """Least squares through the origin, row by row."""
    A = matrix(kind, N)
    Omega = law(Source(1, black_box(A)), N, 7)
    top, bottom = (Omega.conj() * (A @ Omega)).sum(axis=1), (np.abs(Omega) ** 2).sum(axis=1)
    rest = (np.abs(A @ Omega - (top / bottom)[:, None] * Omega) ** 2).sum(axis=1)
    correction = np.sqrt(1 - 7 / (32 if law is probes.hadamard else N)) if law.joint else 1.0
    for chunk_size in (None, 3, 1):
        estimate = diagonal(A, 7, rng=1, probes=law, chunk_size=chunk_size)
        np.testing.assert_allclose(estimate.value, top / bottom, rtol=1e-11)
        np.testing.assert_allclose(
            estimate.standard_error, correction * np.sqrt(rest / 6 / bottom), rtol=1e-10
        )
        assert estimate.dof == 6


@pytest.mark.parametrize("kind", PSD)
@pytest.mark.parametrize("m", [1, 7, DEFLATE_FROM, DEFLATE_FROM + 3])
def test_diagonal_of_a_factor_is_its_twin(kind: str, m: int) -> None:
    L = factor(kind, 40, 50)
    source = Source(1, black_box(L))
    b = m // 3 if m >= DEFLATE_FROM else 0
    V = range_basis(L.conj().T @ probes.normal(source, 40, b)) if b else np.zeros((50, 0))
    P = probes.rademacher(source, 50, m - 2 * b)
    samples = np.abs(L @ (P - V @ (V.conj().T @ P))) ** 2
    for chunk_size in (None, 4):
        A, counter = tk.counted(tk.gram(L))
        estimate = diagonal(A, m, rng=1, chunk_size=chunk_size)
        expected = (np.abs(L @ V) ** 2).sum(axis=1) + samples.mean(axis=1)
        np.testing.assert_allclose(estimate.value, expected, rtol=1e-10)
        if m > 1:
            np.testing.assert_allclose(
                estimate.standard_error, [standard_error(row) for row in samples], rtol=1e-8
            )
        else:
            assert np.isinf(estimate.standard_error).all()
        assert estimate.num_matvecs == counter.total == m
        assert (counter.rmatvecs, counter.matvecs) == (b, m - b)


def test_running_means_are_those_of_all_samples() -> None:
    rng = np.random.default_rng(0)
    samples, running = rng.gamma(0.5, size=(4, 3, 60)) + 10, None
    for start, stop in ((0, 1), (1, 20), (20, 22), (22, 60)):
        running = add(running, samples[..., start:stop])
    assert running is not None
    estimate = fitted(running, 60, "")
    apart = samples - samples.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(estimate.value, samples.mean(axis=-1), rtol=1e-13)
    np.testing.assert_allclose(
        estimate.standard_error, samples.std(axis=-1, ddof=1) / np.sqrt(60), rtol=1e-12
    )
    skewness = (apart**3).mean(axis=-1) / (apart**2).mean(axis=-1) ** 1.5
    np.testing.assert_allclose(estimate.skewness, skewness, rtol=1e-10)


@kinds
def test_xdiag_is_its_twin(kind: str) -> None:
    A = matrix(kind, N)
    for m in (6, 8, 15):
        Omega = probes.rademacher(Source(1, black_box(A)), N, m // 2)
        twin = partial(xdiag_twin, A)
        estimate = xdiag(A, m, rng=1, chunk_size=4)
        np.testing.assert_allclose(estimate.samples, twin(Omega), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(estimate.value, twin(Omega).mean(axis=1), rtol=1e-10, atol=1e-12)
        if m >= 8:
            np.testing.assert_allclose(
                estimate.standard_error, combined_errors(twin, Omega), rtol=1e-6
            )


@pytest.mark.parametrize("kind", PSD)
def test_xdiag_of_a_factor_is_its_twin(kind: str) -> None:
    L = factor(kind, N, 25)
    for m in (6, 9, 16):
        Omega = probes.rademacher(Source(1, black_box(L)), N, m // 2)
        twin = partial(xnysdiag_twin, L)
        estimate = xdiag(tk.gram(L), m, rng=1)
        np.testing.assert_allclose(estimate.samples, twin(Omega), rtol=1e-9, atol=1e-11)
        if m >= 8:
            np.testing.assert_allclose(
                estimate.standard_error, combined_errors(twin, Omega), rtol=1e-6
            )


@pytest.mark.parametrize("lib_name", ["strict:device1", "torch", "jax-jit"])
def test_readings_agree_in_every_library(lib_name: str) -> None:
    for lib in installed(lib_name):
        for kind in ("real", "complex"):
            A = matrix(kind, 12)
            Omega = probes.rademacher(Source(3, black_box(A)), 12, 5)

            def law(source: Any, n: int, m: int, Omega: Any = Omega, lib: Any = lib) -> Any:
                return lib.array(Omega)

            estimate = lib.estimate(xdiag, lib.array(A), 10, probes=law)
            np.testing.assert_allclose(
                lib.numpy(estimate.samples), xdiag_twin(A, Omega), rtol=1e-9, atol=1e-11
            )


def test_xdiag_needs_no_adjoint_of_hermitian_operators() -> None:
    for kind in ("symmetric", "hermitian", "complex psd"):
        A = matrix(kind, N)
        op, counter = tk.counted(black_box(A, adjoint=False))
        estimate = xdiag(op, 12, rng=0)
        np.testing.assert_allclose(estimate.value, xdiag(A, 12, rng=0).value, rtol=1e-9, atol=1e-12)
        assert estimate.num_matvecs == counter.total == 12
    for kind in ("real", "complex"):
        with pytest.raises(TypeError, match=r"not Hermitian.*rmatmat"):
            xdiag(black_box(matrix(kind, N), adjoint=False), 12, rng=0)


def test_what_eager_code_refuses_is_not_a_number_in_compiled_code() -> None:
    jax = pytest.importorskip("jax")

    @jax.jit
    def f(A: Any, key: Any) -> Any:
        op = tk.LinearOperator(A.shape, lambda X: A @ X, dtype=A.dtype, xp=jax.numpy)
        return xdiag(op, 8, rng=key).value

    key = jax.random.key(0)
    assert np.isnan(f(jax.numpy.asarray(matrix("real", 12)), key)).all()
    A = jax.numpy.asarray(matrix("symmetric", 12))
    np.testing.assert_allclose(
        f(A, key), jax.jit(lambda A: xdiag(A, 8, rng=key).value)(A), rtol=1e-9
    )


# Unbiased -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 5])
def test_mean_of_leave_one_out_over_all_sign_vectors_is_the_diagonal(n: int) -> None:
    """With duplicate probes among them, whose sketches are of rank one."""
    A, means = matrix("real", n, seed=1), []
    for entries in itertools.product((-1.0, 1.0), repeat=2 * n):
        Omega = np.reshape(entries, (n, 2))
        Q, R = np.linalg.qr(A @ Omega)
        means.append(leave_one_out.xdiag(Omega, Q, R, A.T @ Q)[0].mean(axis=1))
    np.testing.assert_allclose(np.mean(means, axis=0), np.diagonal(A), rtol=1e-9)
    assert np.std(means, axis=0).min() > 1e-3


@every_law
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_mean_of_many_runs_is_the_diagonal(kind: str, law: Any) -> None:
    A = matrix(kind, 13, seed=2)
    values = [diagonal(A, 6, rng=seed, probes=law).value for seed in range(200)]
    assert z_scores(values, np.diagonal(A)).max() < 5
    L = factor(kind, 13, 17, seed=3)
    values = [diagonal(tk.gram(L), 6, rng=seed, probes=law).value for seed in range(200)]
    assert z_scores(values, np.diagonal(matrix_of(L))).max() < 5


@pytest.mark.parametrize("kind", ["real", "complex", "hermitian"])
def test_mean_of_many_leave_one_out_runs_is_the_diagonal(kind: str) -> None:
    A = matrix(kind, 13, seed=2)
    values = [xdiag(A, 10, rng=seed).value for seed in range(200)]
    assert z_scores(values, np.diagonal(A)).max() < 5
    L = factor(kind, 13, 17, seed=3)
    values = [xdiag(tk.gram(L), 10, rng=seed).value for seed in range(200)]
    assert z_scores(values, np.diagonal(matrix_of(L))).max() < 5


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_mean_of_many_deflated_runs_is_the_diagonal(kind: str) -> None:
    L = factor(kind, 40, 44, seed=3)
    values = [diagonal(tk.gram(L), DEFLATE_FROM, rng=seed).value for seed in range(200)]
    assert z_scores(values, np.diagonal(matrix_of(L))).max() < 5


# Sums over axes -------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    ("axis", "over"), [(0, (0,)), (-1, (2,)), ((2, 0), (0, 2)), ((), ()), ((0, 1, 2), (0, 1, 2))]
)
def test_block_traces_are_sums_of_the_diagonal(kind: str, axis: Any, over: tuple[int, ...]) -> None:
    dims = (3, 2, 4)
    A = matrix(kind, 24)

    def summed(d: np.ndarray) -> np.ndarray:
        return np.reshape(np.sum(np.reshape(d, dims), axis=over), -1)

    estimate = block_traces(A, dims, axis, chunk_size=5)
    np.testing.assert_allclose(estimate.value, summed(np.diagonal(A)), rtol=1e-12)
    assert estimate.num_matvecs == 24
    Omega = probes.rademacher(Source(1, black_box(A)), 24, 6)
    samples = np.array([summed(x.conj() * (A @ x)) for x in Omega.T]).T
    op, counter = tk.counted(A)
    estimate = block_traces(op, dims, axis, 6, rng=1, chunk_size=4)
    np.testing.assert_allclose(estimate.value, samples.mean(axis=1), rtol=1e-11)
    np.testing.assert_allclose(
        estimate.standard_error, [standard_error(row) for row in samples], rtol=1e-9
    )
    assert estimate.num_matvecs == counter.total == 6
    for P in (10, 60):
        L = factor(kind, 24, P)
        for m in (None, 7, 20):
            op, counter = tk.counted(tk.gram(L))
            estimate = block_traces(op, dims, axis, m, rng=1)
            np.testing.assert_allclose(
                estimate.value, summed(diagonal(tk.gram(L), m, rng=1).value), rtol=1e-11
            )
            assert estimate.num_matvecs == counter.total == min(m or 99, P, 24)


@every_law
def test_mean_of_many_runs_is_the_block_traces(law: Any) -> None:
    A = matrix("complex", 12, seed=2)
    exact = np.diagonal(A).reshape(4, 3).sum(axis=1)
    values = [block_traces(A, (4, 3), 1, 6, rng=seed, probes=law).value for seed in range(200)]
    assert z_scores(values, exact).max() < 5


# Costs, dtypes, edges -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_spent_is_claimed_and_never_above_the_budget(n: int) -> None:
    for A, most in (
        (matrix("real", n), n),
        (tk.gram(factor("real", n, n + 3)), n),
        (tk.gram(np.ones((n, 2))), min(n, 2)),
    ):
        for budget in (1, 2, 5, 6, 9, 34):
            for estimator in (diagonal, xdiag):
                op, counter = tk.counted(A)
                estimate = estimator(op, budget, rng=0)
                assert estimate.num_matvecs == counter.total
                odd = estimator is xdiag and 6 <= budget < most
                assert estimate.num_matvecs == min(budget - (budget % 2 if odd else 0), most)
                assert np.isfinite(estimate.value).all()


def test_rank_deficient_sketches_are_exact_to_the_last_bits() -> None:
    v = np.arange(30.0)
    for A in (np.outer(v, v), np.ones((30, 30)), np.diag([1.0] + [0.0] * 29)):
        for op in (A, tk.gram(range_basis(A) * np.sqrt(np.trace(A)))):
            estimate = xdiag(op, 12, rng=0)
            np.testing.assert_allclose(estimate.value, np.diagonal(A), atol=1e-11 * A.max())
            assert (estimate.standard_error < 1e-11 * A.max()).all()


WAYS = [
    (diagonal, 9, lambda A: A),
    (xdiag, 9, lambda A: A),
    (diagonal, 36, tk.gram),
    (xdiag, 9, tk.gram),
]
ways = pytest.mark.parametrize(
    ("estimator", "m", "make"), WAYS, ids=["diagonal", "xdiag", "factor", "xdiag factor"]
)


@ways
def test_batched_over_keys(estimator: Any, m: int, make: Any) -> None:
    jax = pytest.importorskip("jax")
    A, keys = jax.numpy.asarray(matrix("real", 40)), jax.random.split(jax.random.key(3), 2)
    f = lambda A, key: estimator(make(A), m, rng=key)  # noqa: E731
    batched = jax.jit(jax.vmap(f, in_axes=(None, 0)))(A, keys)
    one = jax.jit(f)(A, keys[1])
    np.testing.assert_allclose(batched.value[1], one.value, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(batched.standard_error[1], one.standard_error, rtol=1e-5, atol=1e-12)


@ways
def test_gradients_are_those_of_finite_differences(estimator: Any, m: int, make: Any) -> None:
    torch = pytest.importorskip("torch")
    A, D = matrix("real", 40), matrix("real", 40, seed=8)
    At = torch.tensor(A, requires_grad=True)
    (gradient,) = torch.autograd.grad(estimator(make(At), m, rng=2).value[3], At)
    up, down = (float(estimator(make(A + h * D), m, rng=2).value[3]) for h in (1e-5, -1e-5))
    assert float(np.sum(gradient.numpy() * D)) == pytest.approx(
        (up - down) / 2e-5, rel=1e-5, abs=1e-8
    )


# Errors that are honest -----------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "m", "form"), [
    (diagonal, 24, "plain"), (diagonal, 24, "factor"), (diagonal, 60, "factor"),
    (xdiag, 24, "plain"), (xdiag, 60, "plain"), (xdiag, 24, "factor"),
    (xdiag, 60, "factor")])  # fmt: skip
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_intervals_cover(estimator: Any, m: int, form: str, power: float) -> None:
    n, rng = 120, np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    L = (U * np.arange(1.0, n + 1) ** (-power / 2)) @ np.linalg.qr(rng.standard_normal((n, n)))[0]
    A, exact = tk.gram(L) if form == "factor" else L @ L.T, np.sum(L * L, axis=1)
    inside = []
    for seed in range(12):
        low, high = estimator(A, m, rng=seed).confidence_interval(0.95)
        inside.append((low <= exact) & (exact <= high))
    assert np.mean(inside) > 0.92


def test_leave_one_out_pays_where_the_spectrum_decays() -> None:
    n, rng = 200, np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    L = U * np.arange(1.0, n + 1) ** -1.0
    exact = np.sum(L * L, axis=1)

    def error(estimator: Any, A: Any, m: int) -> float:
        return float(
            np.median([np.linalg.norm(estimator(A, m, rng=s).value - exact) for s in range(9)])
        )

    plain, left_out = (error(estimator, L @ L.T, 60) for estimator in (diagonal, xdiag))
    assert left_out < plain / 5
    assert error(xdiag, tk.gram(L), 120) < left_out / 2  # a product with L L^H is two with L or L^H
    assert error(diagonal, tk.gram(L), 120) < left_out


# Bad input ------------------------------------------------------------------------------------


def refused(match: str, f: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=match) as caught:
        f(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert 25 < len(message) < 400


@estimators
def test_bad_input(estimator: Any) -> None:
    for budget in (0, -1, 2.5, True, "8"):
        refused("`num_matvecs` must be a positive integer, got ", estimator, np.eye(9), budget)
    refused("square", estimator, np.ones((3, 4)), 2)
    refused("`chunk_size` must be", estimator, np.eye(9), 8, chunk_size=0)
    refused("rng", estimator, np.eye(9), 8, rng="0")
    refused("probes", estimator, np.eye(9), 8, probes=lambda source, n, m: np.ones((m, n)))
    refused("probes", estimator, np.eye(9), 8, probes="rademacher")
    for A in (np.full((9, 9), np.nan), tk.gram(np.full((40, 40), np.inf))):
        for m in (4, 8, 36):
            with pytest.raises(tk.NotFiniteError), np.errstate(invalid="ignore"):
                estimator(A, m, rng=0)


def test_laws_that_would_bias_the_leave_one_out_diagonal_are_refused() -> None:
    for law in (probes.normal, probes.sphere, probes.orthogonal, probes.hadamard, probes.basis):
        refused("biases", xdiag, matrix("real", 12), 8, rng=0, probes=law)
    refused(
        "modulus",
        xdiag,
        matrix("real", 12),
        8,
        rng=0,
        probes=lambda source, n, m: 2 * source.signs((n, m)),
    )
