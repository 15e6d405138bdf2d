"""Laws of the estimators with restricted access: products on one side, and a single pass."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, Library, installed, matrix

import tracekit as tk
from tracekit import probes
from tracekit.testing import known_spectrum, unbiasedness_test

LAWS = (probes.orthogonal, probes.hadamard, probes.rademacher, probes.sphere, probes.normal)
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
SHAPES = ((20, 30), (20, 8))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["P > n", "P < n"])


def factor(shape: tuple[int, int], *, cplx: bool = False, seed: int = 0) -> np.ndarray:
    """A matrix whose singular values fall like 1 / i."""
    rng = np.random.default_rng([*shape, seed])

    def columns(n: int, k: int) -> np.ndarray:
        X = rng.standard_normal((n, k)) + (1j * rng.standard_normal((n, k)) if cplx else 0)
        return np.linalg.qr(X)[0]

    k = min(shape)
    return (columns(shape[0], k) / np.arange(1, k + 1)) @ columns(shape[1], k).conj().T


def backwards(L: np.ndarray) -> tuple[Any, list[np.ndarray]]:
    """An operator that knows the product with its adjoint alone, and the blocks it was given."""
    blocks: list[np.ndarray] = []

    def forwards(X: np.ndarray) -> np.ndarray:
        raise AssertionError("a product with L")

    def product(X: np.ndarray) -> np.ndarray:
        blocks.append(X.copy())
        return L.conj().T @ X

    return tk.LinearOperator(L.shape, forwards, product, dtype=L.dtype), blocks


def size2(L: np.ndarray) -> float:
    return float(np.sum(np.abs(L) ** 2))


def orthonormal(n: int, k: int, *, cplx: bool = False, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.linalg.qr(
        rng.standard_normal((n, k)) + (1j * rng.standard_normal((n, k)) if cplx else 0)
    )[0]


def leading(L: np.ndarray, k: int) -> np.ndarray:
    return np.linalg.svd(L)[0][:, :k]


def fixed(Omega: np.ndarray) -> Any:
    """A law that hands out one block."""
    return lambda source, n, m: Omega[:, :m]


# Unbiased -------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", [None, "leading", "bad"])
def test_mean_over_all_sign_vectors_is_the_trace(basis: str | None) -> None:
    L = factor((4, 3), seed=1)
    Q = {None: None, "leading": leading(L, 1), "bad": orthonormal(4, 1, seed=3)}[basis]
    values = []
    for entries in itertools.product((-1.0, 1.0), repeat=8):
        law = fixed(np.reshape(entries, (4, 2)))
        values.append(float(tk.one_sided(L, 2 + (basis is not None), probes=law, basis=Q)))
    assert np.mean(values) == pytest.approx(size2(L), rel=1e-12)
    assert np.std(values) > 1e-3


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("basis", [None, "leading", "bad", "rough"])
@every_law
def test_mean_of_many_runs_is_the_trace(law: Any, basis: str | None, cplx: bool) -> None:
    L = factor((14, 11), cplx=cplx)
    rough = L[:, :4] + 0.3 * orthonormal(14, 4, cplx=cplx, seed=8)
    Q = {None: None, "leading": leading(L, 4), "bad": orthonormal(14, 4, cplx=cplx, seed=9),
         "rough": tk.range_basis(rough)}[basis]  # fmt: skip
    estimator = partial(tk.one_sided, num_matvecs=9, probes=law, basis=Q)
    assert unbiasedness_test(estimator, L, exact=size2(L), seeds=range(300)) < 5


def test_the_variance_is_that_of_haar_probes() -> None:
    n, L = 16, factor((16, 12))
    A, squares = L @ L.T, []
    for basis in (None, leading(L, 3), orthonormal(n, 3, seed=5)):
        Q = np.zeros((n, 0)) if basis is None else basis
        P = np.eye(n) - Q @ Q.T
        rest, k = P @ A @ P, Q.shape[1]
        d, s = n - k, 8 - k
        spread = np.sum(rest * rest) - np.trace(rest) ** 2 / d
        true = 2 * d * (d - s) / (s * (d - 1) * (d + 2)) * spread
        runs = [tk.one_sided(L, 8, rng=seed, basis=basis) for seed in range(600)]
        seen = np.mean([(float(run) - np.trace(A)) ** 2 for run in runs])
        claimed = np.mean([float(run.standard_error) ** 2 for run in runs])
        assert seen == pytest.approx(true, rel=0.25)
        assert claimed == pytest.approx(true, rel=0.15)
        squares.append(seen)
    assert squares[1] < 0.2 * squares[0]  # what a good basis is for


def test_a_bad_basis_costs_its_products_and_no_more() -> None:
    """Against probes alone: k of m products are lost, not the estimate."""
    L = factor((60, 40))
    Q = leading(L, 60)[:, -10:]  # spans nothing of L
    errors = {}
    for name, m, basis in (("with", 40, Q), ("without", 30, None)):
        runs = [tk.one_sided(L, m, rng=seed, basis=basis) for seed in range(200)]
        errors[name] = np.sqrt(np.mean([(float(run) - size2(L)) ** 2 for run in runs]))
    assert errors["with"] < 1.2 * errors["without"]


# Exact where it should be, and what it costs --------------------------------------------------


@shapes
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_exact_from_the_dimension_on_by_the_adjoint_alone(
    shape: tuple[int, int], cplx: bool
) -> None:
    L = factor(shape, cplx=cplx)
    for budget in (20, 21, 10**9):
        A, blocks = backwards(L)
        estimate = tk.one_sided(A, budget, rng=0)
        assert complex(estimate.value) == pytest.approx(size2(L), rel=1e-12)
        assert float(estimate.standard_error) == 0.0
        assert estimate.num_matvecs == sum(X.shape[1] for X in blocks) == 20
        assert estimate.method == "one_sided"


@shapes
@every_law
@pytest.mark.parametrize("k", [0, 1, 4])
def test_spent_is_claimed_and_all_of_it_is_the_adjoint(
    shape: tuple[int, int], law: Any, k: int
) -> None:
    L = factor(shape)
    Q = leading(L, k) if k else None
    for budget in range(k + 1, 24):
        A, blocks = backwards(L)
        counted, counter = tk.counted(A)
        estimate = tk.one_sided(counted, budget, rng=0, probes=law, basis=Q)
        assert estimate.num_matvecs == counter.rmatvecs == counter.total == min(budget, 20)
        assert sum(X.shape[1] for X in blocks) == counter.total
        assert np.isfinite(float(estimate))


def test_exact_on_the_span_of_the_basis() -> None:
    """Rank within the basis: no error; a whole complement of probes: none either.

    Six sign vectors that meet nothing are no chance; five may be.
    """
    L = leading(factor((20, 30)), 3) @ factor((3, 30))
    for law in LAWS:
        estimate = tk.one_sided(L, 9, rng=0, basis=leading(L, 3), probes=law)
        assert float(estimate) == pytest.approx(size2(L), rel=1e-12)
        assert float(estimate.standard_error) < 1e-12
    full = factor((20, 30))
    for m in (20, 50):
        estimate = tk.one_sided(full, m, rng=0, basis=orthonormal(20, 6))
        assert float(estimate) == pytest.approx(size2(full), rel=1e-12)
        assert float(estimate.standard_error) == pytest.approx(0.0, abs=1e-12)


@shapes
def test_the_other_side(shape: tuple[int, int]) -> None:
    L = factor(shape)
    A, blocks = backwards(L.T)  # its adjoint's adjoint product is L.T's: forwards products of L.H
    other = tk.LinearOperator(A.shape[::-1], A.rmatmat, A.matmat, dtype=A.dtype)
    estimate = tk.one_sided(other.H, 6, rng=0)
    assert estimate.num_matvecs == sum(X.shape[1] for X in blocks) == 6
    assert abs(float(estimate) - size2(L)) < 6 * float(estimate.standard_error)
    z = unbiasedness_test(partial(tk.one_sided, num_matvecs=6), tk.as_operator(L).H, exact=size2(L))
    assert z < 5


def test_one_probe_has_no_error_bar() -> None:
    estimate = tk.one_sided(factor((20, 30)), 1, rng=0)
    assert float(estimate.standard_error) == np.inf
    assert [float(x) for x in estimate.confidence_interval()] == [-np.inf, np.inf]


# What is kept ---------------------------------------------------------------------------------


@every_law
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_the_gram_of_the_sketch_is_kept(law: Any, cplx: bool) -> None:
    L = factor((20, 30), cplx=cplx)
    A, blocks = backwards(L)
    estimate = tk.one_sided(A, 7, rng=2, probes=law)
    V = np.concatenate(blocks, axis=1)
    expected = V.conj().T @ L @ L.conj().T @ V
    np.testing.assert_allclose(estimate.kept.gram, expected, rtol=1e-10, atol=1e-12)
    assert np.trace(estimate.kept.gram).real / 7 == pytest.approx(
        complex(estimate.value).real, rel=1e-12
    )
    np.testing.assert_allclose(np.diag(estimate.kept.gram).real, estimate.samples, rtol=1e-12)


@every_law
def test_probes_stream_and_do_not_depend_on_the_chunk_size(law: Any) -> None:
    L, m = factor((40, 30)), 23
    A, blocks = backwards(L)
    base, V = tk.one_sided(A, m, rng=4, probes=law), np.concatenate(blocks, axis=1)
    for chunk_size in (1, 2, 5, 22, 23, 1000):
        A, blocks = backwards(L)
        estimate = tk.one_sided(A, m, rng=4, probes=law, chunk_size=chunk_size)
        assert max(X.shape[1] for X in blocks) == min(chunk_size, m)
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), V)
        assert float(estimate) == pytest.approx(float(base), rel=1e-12)
        assert float(estimate.standard_error) == pytest.approx(float(base.standard_error), rel=1e-9)
        assert (estimate.kept is None) == (chunk_size < m)


@pytest.mark.parametrize("law", [probes.hadamard, probes.rademacher], ids=lambda law: law.__name__)
def test_huge_dimensions_need_one_block_at_a_time(law: Any) -> None:
    """The peak of NumPy's memory stays far below that of all probes together."""
    import tracemalloc

    n, m = 2**18 + 5, 40
    d = np.linspace(1, 2, n)[:, None]
    A = tk.LinearOperator((n, n), lambda X: d * X, lambda X: d * X)
    for estimate in (
        partial(tk.one_sided, A, m, probes=law, chunk_size=4),
        partial(tk.hutchinson, A, m, probes=law, chunk_size=4),
    ):
        tracemalloc.start()
        found = estimate(rng=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        truth = np.sum(d**2) if estimate.func is tk.one_sided else np.sum(d)
        assert float(found) == pytest.approx(truth, rel=1e-9)  # diagonal: signs make it exact
        assert peak < 0.6 * 8 * n * m


# Bases ----------------------------------------------------------------------------------------


def test_bad_bases_are_refused() -> None:
    A, _ = backwards(factor((20, 30)))
    Q = orthonormal(20, 4)
    no_arrays_or_shapes = (Q.tolist(), "Q", Q[:, 0], Q.T, Q[:19], np.ones((20, 0)), np.eye(20))
    not_orthonormal = (2 * Q, Q + 1e-3, Q * np.nan, np.repeat(Q[:, :1], 2, axis=1))
    for bad in (*no_arrays_or_shapes, *not_orthonormal, 1j * Q, orthonormal(20, 10)):
        with pytest.raises((TypeError, ValueError), match="basis"):
            tk.one_sided(A, 10, rng=0, basis=bad)
    for lib in installed("torch"):
        with pytest.raises((TypeError, ValueError), match="basis"):
            tk.one_sided(A, 10, rng=0, basis=lib.array(Q))
        with pytest.raises((TypeError, ValueError), match="basis"):
            tk.one_sided(lib.array(factor((20, 30))), 10, rng=0, basis=Q)


def test_operators_without_an_adjoint_are_refused() -> None:
    with pytest.raises(TypeError, match="adjoint"):
        tk.one_sided(tk.LinearOperator((20, 30), lambda X: X), 5)
    for budget in (0, -1, 2.5, None, True):
        with pytest.raises(ValueError, match="`num_matvecs` must be"):
            tk.one_sided(factor((20, 30)), budget)  # type: ignore[arg-type]


def test_nan_is_an_error() -> None:
    for L in (factor((20, 30)) * np.nan, np.full((20, 30), np.inf)):
        for basis in (None, orthonormal(20, 3)):
            with pytest.raises(tk.NotFiniteError), np.errstate(invalid="ignore"):
                tk.one_sided(L, 8, rng=0, basis=basis)


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_range_basis_is_orthonormal_and_spans(eager: Library, cplx: bool) -> None:
    Y = factor((20, 5), cplx=cplx)
    for scale in (1.0, 1e-30, 1e30):
        Q = eager.numpy(tk.range_basis(eager.array(Y * scale)))
        np.testing.assert_allclose(Q.conj().T @ Q, np.eye(5), atol=100 * eager.eps)
        np.testing.assert_allclose(Q @ (Q.conj().T @ Y), Y, atol=1000 * eager.eps)
    assert eager.at_home(tk.range_basis(eager.array(Y)))


def test_range_basis_of_deficient_and_unusable_columns() -> None:
    for Y in (np.ones((6, 3)), np.zeros((6, 3)), np.ones((6, 3), dtype=np.int64)):
        Q = tk.range_basis(Y)
        np.testing.assert_allclose(Q.T @ Q, np.eye(3), atol=1e-14)
        np.testing.assert_allclose(Q @ (Q.T @ Y), Y, atol=1e-13)
    assert tk.range_basis(np.ones((6, 2), dtype=np.float32)).dtype == np.float32
    for bad in (np.ones(6), np.ones((2, 6))):
        with pytest.raises(ValueError, match="basis"):
            tk.range_basis(bad)


def test_a_basis_of_low_precision_will_do() -> None:
    """Whatever it was computed in, the estimate is of full precision."""
    L = leading(factor((40, 50)), 5) @ factor((5, 50))
    Y = (L @ np.random.default_rng(0).standard_normal((50, 5))).astype(np.float32)
    estimate = tk.one_sided(L, 12, rng=0, basis=tk.range_basis(Y))
    assert float(estimate) == pytest.approx(size2(L), rel=1e-12)


def test_a_basis_from_an_earlier_step_helps() -> None:
    before, L = factor((60, 80)), factor((60, 80)) + 0.002 * factor((60, 80), seed=1)
    Q = tk.range_basis(before @ (before.T @ np.random.default_rng(0).standard_normal((60, 10))))
    errors = {}
    for name, basis in (("with", Q), ("without", None)):
        runs = [tk.one_sided(L, 30, rng=seed, basis=basis) for seed in range(100)]
        errors[name] = np.sqrt(np.mean([(float(run) - size2(L)) ** 2 for run in runs]))
    assert errors["with"] < 0.2 * errors["without"]


# Bases from differences -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("numpy", "float64"),
        ("numpy", "float32"),
        ("torch", "float64"),
        ("torch", "float32"),
        ("jax", "float32"),
        ("strict:device1", "float64"),
    ],
)
def test_differences_span_the_range_of_a_linear_function(name: str, dtype: str) -> None:
    for lib in installed(name):
        L = leading(factor((30, 50)), 4) @ factor((4, 50))
        J, theta = lib.array(L, dtype), lib.array(np.linspace(-1, 1, 50), dtype)
        calls = 0

        def f(t: Any, J: Any = J) -> Any:
            nonlocal calls
            calls += 1
            return J @ t

        Q = tk.difference_basis(f, theta, 4, rng=0)
        assert calls == 5
        assert Q.shape == (30, 4)
        assert Q.dtype == J.dtype
        assert lib.at_home(Q)
        estimate = tk.one_sided(J, 10, rng=0, basis=Q)
        assert float(estimate) == pytest.approx(size2(L), rel=1e-5 if dtype == "float32" else 1e-10)


def test_differences_of_a_curved_function_help() -> None:
    """Tanh of a linear map of decaying spectrum; at theta = 0, and far from it."""
    L = factor((60, 80)) * 3
    for size in (0.0, 0.3):
        theta = size * np.random.default_rng(1).standard_normal(80)
        J = (1 - np.tanh(L @ theta) ** 2)[:, None] * L
        Q = tk.difference_basis(lambda t: np.tanh(L @ t), theta, 10, rng=0)
        errors = {}
        for name, basis in (("with", Q), ("without", None)):
            runs = [tk.one_sided(J, 30, rng=seed, basis=basis) for seed in range(100)]
            errors[name] = np.sqrt(np.mean([(float(run) - size2(J)) ** 2 for run in runs]))
        assert errors["with"] < 0.25 * errors["without"]


def test_outputs_of_any_shape_and_one_seed_one_basis() -> None:
    L = factor((12, 9))
    flat = tk.difference_basis(lambda t: L @ t, np.ones(9), 3, rng=5)
    shaped = tk.difference_basis(lambda t: (L @ t).reshape(3, 4), np.ones(9), 3, rng=5)
    np.testing.assert_array_equal(flat, shaped)
    assert np.any(flat != tk.difference_basis(lambda t: L @ t, np.ones(9), 3, rng=6))
    rough = tk.difference_basis(lambda t: L @ t, np.ones(9), 3, rng=5, step=1.0)
    np.testing.assert_allclose(np.abs(np.sum(rough * flat, axis=0)), 1, rtol=1e-6)


def test_unusable_differences() -> None:
    def f(t: np.ndarray) -> np.ndarray:
        return 2 * t

    with pytest.raises(ValueError, match="vector"):
        tk.difference_basis(f, np.ones((3, 1)), 2)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="`k` must be"):
            tk.difference_basis(f, np.ones(3), k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="basis"):
        tk.difference_basis(f, np.ones(3), 4)


# In every library -----------------------------------------------------------------------------


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_a_basis_of_every_library(but_jax: Library, cplx: bool) -> None:
    lib, L, Q = but_jax, factor((30, 20), cplx=cplx), orthonormal(30, 3, cplx=cplx)
    here = lib.estimate(tk.one_sided, lib.array(L), 9, seed=3, basis=lib.array(Q))
    there = tk.one_sided(L, 9, rng=3, basis=Q)
    assert complex(here.value) == pytest.approx(complex(there.value), rel=1e4 * lib.eps)
    assert float(here.standard_error) == pytest.approx(
        float(there.standard_error), rel=1e5 * lib.eps
    )
    assert here.value.dtype == (lib.complex if cplx else lib.real)
    assert lib.at_home(here.value)


def test_compiled_and_differentiated() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    L, Q = jax.numpy.asarray(factor((30, 20))), jax.numpy.asarray(orthonormal(30, 3))

    def value(c: Any, key: Any) -> Any:
        return tk.one_sided(c * L, 9, rng=key, basis=Q).value

    found, slope = jax.jit(jax.value_and_grad(value))(2.0, jax.random.key(0))
    assert float(slope) == pytest.approx(float(found), rel=1e-9)  # c |-> c^2 t at c = 2
    assert float(found) == pytest.approx(4 * size2(factor((30, 20))), rel=0.5)


# The single pass ------------------------------------------------------------------------------


@pytest.mark.parametrize("adjoint", [True, False], ids=["adjoint", "no adjoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_nahutchpp_is_unbiased(kind: str, adjoint: bool) -> None:
    A = matrix(kind, 20, seed=2)
    op = (
        tk.as_operator(A)
        if adjoint
        else tk.LinearOperator((20, 20), lambda X: A @ X, dtype=A.dtype)
    )
    estimator = partial(tk.nahutchpp, num_matvecs=16)
    assert unbiasedness_test(estimator, op, exact=np.trace(A), seeds=range(400)) < 5


def test_nahutchpp_of_a_factor_is_unbiased() -> None:
    L = factor((40, 36), cplx=True)
    estimator = partial(tk.nahutchpp, num_matvecs=30)
    assert unbiasedness_test(estimator, tk.gram(L), exact=size2(L), seeds=range(300)) < 5


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_nahutchpp_is_exact_where_the_rank_fits(but_jax: Library, cplx: bool) -> None:
    left, right = factor((30, 3), cplx=cplx), factor((30, 3), cplx=cplx, seed=1)
    A = left @ right.conj().T
    for budget in (12, 17, 25):
        estimate = tk.nahutchpp(but_jax.array(A), budget, rng=0)
        size = np.linalg.norm(A, "nuc")
        assert abs(complex(estimate.value) - np.trace(A)) < 1e5 * but_jax.eps * size
        assert but_jax.at_home(estimate.value)


@pytest.mark.parametrize("form", ["plain", "factor"])
def test_nahutchpp_spends_what_it_claims(form: str) -> None:
    for n in (5, 12, 40):
        for budget in range(1, n + 5):
            A, counter = tk.counted(
                tk.gram(matrix("real", n)) if form == "factor" else matrix("real", n)
            )
            estimate = tk.nahutchpp(A, budget, rng=0)
            assert estimate.num_matvecs == counter.total == min(budget, n)
            assert estimate.method == ("nahutchpp" if budget < n else "exact_trace")


def test_nahutchpp_asks_nothing_that_depends_on_an_answer() -> None:
    """The same blocks go through any two operators."""
    asked: list[list[np.ndarray]] = []

    def spy(A: np.ndarray) -> tk.LinearOperator:
        blocks: list[np.ndarray] = []
        asked.append(blocks)

        def product(M: np.ndarray, X: np.ndarray) -> np.ndarray:
            blocks.append(X.copy())
            return M @ X

        return tk.LinearOperator(A.shape, partial(product, A), partial(product, A.T))

    for A in (matrix("real", 40), known_spectrum(np.arange(1.0, 41.0)), np.zeros((40, 40))):
        tk.nahutchpp(spy(A), 20, rng=3)
    for blocks in asked[1:]:
        for here, there in zip(blocks, asked[0], strict=True):
            np.testing.assert_array_equal(here, there)


def test_nahutchpp_is_better_than_hutchinson_on_decay_and_worse_than_xnystrace() -> None:
    A = known_spectrum(np.arange(1.0, 101.0) ** -2)
    rms = {}
    for estimator in (tk.hutchinson, tk.nahutchpp, tk.xnystrace):
        runs = [float(estimator(A, 40, rng=seed)) for seed in range(60)]
        rms[estimator] = np.sqrt(np.mean((np.array(runs) - np.trace(A)) ** 2))
    assert 3 * rms[tk.xnystrace] < rms[tk.nahutchpp] < 0.3 * rms[tk.hutchinson]


def test_a_tolerance_needs_no_budget() -> None:
    L = np.random.default_rng(0).standard_normal((40, 60))
    found = tk.one_sided(L, rtol=0.1, rng=0)
    assert found.converged
    assert float(found) == pytest.approx(np.sum(L * L), rel=0.1)
    assert tk.one_sided(L, rtol=1e-9, rng=0).converged
