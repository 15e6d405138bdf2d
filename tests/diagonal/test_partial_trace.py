"""Laws of the partial traces: exact for every subset of axes, unbiased, naive twins, costs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from conftest import KINDS, PSD, Library, installed, matrix
from twins import range_basis

import tracekit as tk
from tracekit import probes
from tracekit._diagonal.columns import DEFLATE_FROM
from tracekit._diagonal.partial_trace import partial_trace, partial_trace_operator
from tracekit._operators.tensor_axes import with_dims
from tracekit.probes.source import Source

DIMS = (4, 5, 6)
SUBSETS = [axes for k in range(4) for axes in itertools.combinations(range(3), k)]
LAWS = (probes.rademacher, probes.sphere, probes.normal, probes.orthogonal, probes.hadamard)
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
subsets = pytest.mark.parametrize("axis", SUBSETS, ids=str)
kinds = pytest.mark.parametrize("kind", KINDS)


def twin(A: np.ndarray, dims: tuple[int, ...], axis: tuple[int, ...]) -> np.ndarray:
    """The sum of blocks, one multi-index after the other."""
    kept = [a for a in range(len(dims)) if a not in axis]
    rows = np.arange(len(A)).reshape(dims).transpose(*kept, *axis)
    rows = rows.reshape(int(np.prod([dims[a] for a in kept], dtype=int)), -1)
    return sum(A[np.ix_(r, r)] for r in rows.T)


def kron(z: np.ndarray, dims: tuple[int, ...], axis: tuple[int, ...]) -> np.ndarray:
    """The columns ``I x z`` of one probe, entry by entry."""
    kept = [a for a in range(len(dims)) if a not in axis]
    rows = np.arange(int(np.prod(dims))).reshape(dims).transpose(*kept, *axis)
    rows = rows.reshape(-1, len(z))
    X = np.zeros((rows.size, len(rows)), dtype=z.dtype)
    for k, row in enumerate(rows):
        X[row, k] = z
    return X


def forms(A: np.ndarray, Z: np.ndarray, dims: tuple[int, ...], axis: tuple[int, ...]) -> np.ndarray:
    lifted = [kron(z, dims, axis) for z in Z.T]
    return np.array([X.conj().T @ A @ X for X in lifted])


def factor(kind: str, n: int, P: int, *, seed: int = 0) -> np.ndarray:
    """An n by P matrix of decaying singular values."""
    size = max(n, P)
    return (matrix(kind, size, seed=seed) @ matrix(kind, size, seed=seed + 1))[:n, :P]


def matrix_of(L: np.ndarray) -> np.ndarray:
    return L @ L.conj().T


def black_box(A: np.ndarray, *, adjoint: bool = True) -> tk.LinearOperator:
    rmatmat = (lambda X: A.conj().T @ X) if adjoint else None
    return tk.LinearOperator(A.shape, lambda X: A @ X, rmatmat, dtype=A.dtype)


def worst_z(values: list[Any], exact: np.ndarray) -> float:
    """Of the mean of many runs over all entries; the parts of complex ones apart."""
    drawn, worst = np.array([np.asarray(v) for v in values]), 0.0
    for part in (np.real, np.imag):
        spread = part(drawn).std(axis=0, ddof=1) / np.sqrt(len(drawn))
        off = np.abs(part(drawn).mean(axis=0) - part(exact))
        worst = max(worst, np.max(off / np.maximum(spread, 1e-12 * np.abs(drawn).max())))
    return worst


def spread(samples: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis."""
    m = len(samples)
    return np.sqrt(np.sum(np.abs(samples - samples.mean(axis=0)) ** 2, axis=0) / (m - 1) / m)


# Exact ----------------------------------------------------------------------------------------


@subsets
@pytest.mark.parametrize("kind", ["real", "complex", "hermitian"])
def test_exact_for_every_subset_of_axes(kind: str, axis: tuple[int, ...]) -> None:
    A = matrix(kind, 120)
    exact = twin(A, DIMS, axis)
    K = len(exact)
    for chunk_size in (None, 7):
        for budget in (None, 120 // K, 1000):
            op, counter = tk.counted(A)
            estimate = partial_trace(op, DIMS, axis, budget, rng=0, chunk_size=chunk_size)
            np.testing.assert_allclose(estimate.value, exact, atol=1e-12, rtol=0)
            assert not estimate.standard_error.any()
            assert estimate.num_matvecs == counter.total == 120
            assert abs(np.trace(estimate.value) - np.trace(A)) < 1e-12


@subsets
@pytest.mark.parametrize("kind", PSD)
@pytest.mark.parametrize("P", [40, 120, 300])
def test_exact_of_a_factor_is_one_sided(kind: str, P: int, axis: tuple[int, ...]) -> None:
    L = factor(kind, 120, P)
    for chunk_size, budget in ((None, None), (7, None), (None, min(P, 120))):
        op, counter = tk.counted(tk.gram(L))
        estimate = partial_trace(op, DIMS, axis, budget, chunk_size=chunk_size)
        np.testing.assert_allclose(estimate.value, twin(matrix_of(L), DIMS, axis), atol=1e-12)
        assert estimate.num_matvecs == counter.total == min(P, 120)
        assert (counter.matvecs, counter.rmatvecs) == ((P, 0) if P < 120 else (0, 120))
        assert (estimate.value == estimate.value.conj().T).all()


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_exact_in_every_library(lib: Library, kind: str) -> None:
    A = matrix(kind, 24)
    for make, exact in ((lambda A: A, A), (tk.gram, matrix_of(A))):
        f = lambda A: partial_trace(make(A), (2, 3, 4), (0, 2), chunk_size=5)  # noqa: B023, E731
        estimate = lib.call(f, lib.array(A))
        expected = twin(exact, (2, 3, 4), (0, 2))
        np.testing.assert_allclose(lib.numpy(estimate.value), expected, atol=1e3 * lib.eps)
        assert lib.at_home(estimate.value)
        assert tuple(estimate.value.shape) == tuple(estimate.standard_error.shape) == (3, 3)


def test_axes_are_read_as_they_are_meant() -> None:
    A = matrix("real", 24)
    dims = (2, 3, 4)
    expected = partial_trace(A, dims, (0, 2)).value
    for axis in ((2, 0), [0, -1], (-3, 2), (np.int64(0), np.int64(2))):
        np.testing.assert_array_equal(partial_trace(A, list(dims), axis).value, expected)
    carried = with_dims(A, np.array(dims))
    assert carried.dims == dims
    np.testing.assert_array_equal(partial_trace(carried, None, (0, 2)).value, expected)
    np.testing.assert_array_equal(
        partial_trace(carried, None, np.int64(1)).value, partial_trace(A, dims, -2).value
    )
    assert with_dims(tk.gram(A), dims).factor is not None
    op, _ = tk.counted(with_dims(tk.gram(A), dims))
    assert partial_trace(op, None, 0, 20, rng=0).value.shape == (12, 12)
    np.testing.assert_array_equal(partial_trace(A, (24,), ()).value, A)
    np.testing.assert_allclose(partial_trace(A, (24,), 0).value, [[np.trace(A)]], rtol=1e-13)


@pytest.mark.parametrize("law", [probes.orthogonal, probes.basis], ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_as_many_orthogonal_probes_as_entries_are_exact(kind: str, law: Any) -> None:
    A = matrix(kind, 24)
    axes = ((2, 3, 4), (0, 2))
    estimate = partial_trace(A, *axes, 8, rng=0, probes=law)
    np.testing.assert_allclose(estimate.value, twin(A, *axes), atol=1e-13)
    M = partial_trace_operator(A, *axes, 8, rng=0, probes=law)
    np.testing.assert_allclose(M @ np.eye(3, dtype=A.dtype), twin(A, *axes), atol=1e-12)
    errors = [
        np.linalg.norm(partial_trace(A, *axes, 7, rng=s, probes=f).value - twin(A, *axes))
        for f in (probes.orthogonal, probes.rademacher)
        for s in range(20)
    ]
    assert np.median(errors[:20]) < 0.7 * np.median(errors[20:])


@pytest.mark.parametrize("kind", ["real", "complex", "symmetric", "hermitian"])
def test_exact_where_the_rank_fits(lib: Library, kind: str) -> None:
    left = factor(kind, 40, 3)
    hermitian = kind in ("symmetric", "hermitian")
    A = left @ (left * [1, -1, 1] if hermitian else factor(kind, 40, 3, seed=4)).conj().T
    atol = 1e4 * lib.eps * np.abs(A).max()
    f = lambda A, m, rng: partial_trace(A, (4, 10), 1, m, rng=rng, rank=4)  # noqa: E731
    estimate = lib.estimate(f, lib.array(A), 1)
    np.testing.assert_allclose(lib.numpy(estimate.value), twin(A, (4, 10), (1,)), atol=atol)
    assert estimate.num_matvecs == 12
    L = left @ factor(kind, 50, 3).conj().T
    atol = 1e4 * lib.eps * np.abs(matrix_of(L)).max()
    f = lambda A, m, rng: partial_trace(tk.gram(A), (4, 10), 1, m, rng=rng)  # noqa: E731
    estimate = lib.estimate(f, lib.array(L), DEFLATE_FROM)
    expected = twin(matrix_of(L), (4, 10), (1,))
    np.testing.assert_allclose(lib.numpy(estimate.value), expected, atol=atol)
    assert (lib.numpy(estimate.standard_error) < atol).all()


# Equal to the naive versions ------------------------------------------------------------------


@kinds
@every_law
def test_random_partial_traces_are_their_twin(kind: str, law: Any) -> None:
    A, dims = matrix(kind, 24), (2, 3, 4)
    for axis in ((1,), (0, 2)):
        T = int(np.prod([dims[a] for a in axis]))
        m = T - 1
        Z = law(Source(1, black_box(A)), T, m)
        samples = forms(A, Z, dims, axis)
        population = {probes.hadamard: 2 ** (T - 1).bit_length()}.get(law, T)
        correction = np.sqrt(1 - m / population) if law.joint else 1.0
        for chunk_size in (None, 3, 10):
            op, counter = tk.counted(A)
            options = {"rng": 1, "probes": law, "chunk_size": chunk_size}
            estimate = partial_trace(op, dims, axis, m, **options)
            np.testing.assert_allclose(estimate.value, samples.mean(axis=0), atol=1e-11)
            error = correction * spread(samples)
            np.testing.assert_allclose(estimate.standard_error, error, rtol=1e-8, atol=1e-11)
            assert estimate.num_matvecs == counter.total == m * 24 // T
            M = partial_trace_operator(A, dims, axis, m, **options)
            eye = np.eye(24 // T, dtype=A.dtype)
            np.testing.assert_allclose(M @ eye, samples.mean(axis=0), atol=1e-11)


@pytest.mark.parametrize("kind", PSD)
@pytest.mark.parametrize("axis", [(0,), (1,), (0, 1), ()], ids=str)
@pytest.mark.parametrize(("m", "rank"), [(1, None), (9, None), (9, 3), (36, None), (36, 0)])
def test_random_partial_traces_of_a_factor_are_their_twin(
    kind: str, axis: tuple[int, ...], m: int, rank: int | None
) -> None:
    L, dims = factor(kind, 40, 50), (4, 10)
    b = (m // 3 if m >= DEFLATE_FROM else 0) if rank is None else rank
    source = Source(1, black_box(L))
    V = range_basis(L.conj().T @ probes.normal(source, 40, b)) if b else np.zeros((50, 0))
    Omega = probes.rademacher(source, 50, m - 2 * b)
    X = L @ (Omega - V @ (V.conj().T @ Omega))
    samples = np.array([twin(np.outer(x, x.conj()), dims, axis) for x in X.T])
    expected = twin(matrix_of(L @ V), dims, axis) + samples.mean(axis=0)
    for chunk_size in (None, 4):
        op, counter = tk.counted(tk.gram(L))
        estimate = partial_trace(op, dims, axis, m, rng=1, rank=rank, chunk_size=chunk_size)
        np.testing.assert_allclose(estimate.value, expected, atol=1e-11)
        if m > 1:
            np.testing.assert_allclose(estimate.standard_error, spread(samples), atol=1e-10)
        assert estimate.num_matvecs == counter.total == m
        assert (counter.rmatvecs, counter.matvecs) == (b, m - b)
        assert (estimate.value == estimate.value.conj().T).all()
        assert np.linalg.eigvalsh(estimate.value).min() > -1e-12


@kinds
@pytest.mark.parametrize("adjoint", [True, False])
def test_deflated_partial_traces_are_their_twin(kind: str, adjoint: bool) -> None:
    A, dims, axis, b, m = matrix(kind, 40), (4, 10), (1,), 6, 5
    source = Source(1, black_box(A))
    Q = range_basis(A @ probes.normal(source, 40, b))
    Z = probes.rademacher(source, 10, m)
    P = Q @ Q.conj().T
    hermitian = kind not in ("real", "complex")
    low = P @ A + A @ P - P @ A @ P if hermitian else P @ A
    samples = forms(A - low, Z, dims, axis)
    op, counter = tk.counted(black_box(A, adjoint=adjoint))
    if not adjoint and not hermitian:
        with pytest.raises(TypeError, match="rmatmat"):
            partial_trace(op, dims, axis, m, rng=1, rank=b)
        return
    for chunk_size in (None, 3):
        counter.matvecs = counter.rmatvecs = 0
        estimate = partial_trace(op, dims, axis, m, rng=1, rank=b, chunk_size=chunk_size)
        expected = twin(low, dims, axis) + samples.mean(axis=0)
        np.testing.assert_allclose(estimate.value, expected, atol=1e-11)
        np.testing.assert_allclose(estimate.standard_error, spread(samples), atol=1e-11)
        assert estimate.num_matvecs == counter.total == 2 * b + 4 * m
        if hermitian:
            assert (estimate.value == estimate.value.conj().T).all()


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("m", [None, 3])
def test_the_operator_form_is_the_matrix(lib: Library, kind: str, m: int | None) -> None:
    A, axes = matrix(kind, 24), ((2, 3, 4), (0, 2))
    X = matrix(kind, 3, seed=1)[:, :2]
    dense = partial_trace(A, *axes, m, rng=1).value
    for chunk_size in (None, 1, 5):

        def products(A: Any, X: Any, chunk_size: int | None = chunk_size) -> Any:
            M = partial_trace_operator(A, *axes, m, rng=1, chunk_size=chunk_size)
            assert (M.shape, M.dims) == ((3, 3), (3,))
            return M @ X, M.H @ X, M.quad(X)

        got = [lib.numpy(Y) for Y in lib.call(products, lib.array(A), lib.array(X))]
        quad = np.sum(X.conj() * (dense @ X), axis=0)
        for Y, expected in zip(got, (dense @ X, dense.conj().T @ X, quad), strict=True):
            np.testing.assert_allclose(Y, expected, atol=1e3 * lib.eps)


def test_the_operator_form_of_a_factor_has_one_sided_quadratic_forms() -> None:
    L = factor("real", 24, 30)
    op, counter = tk.counted(tk.gram(L))
    M = partial_trace_operator(op, (2, 3, 4), 1)
    assert float(tk.exact_trace(M)) == pytest.approx(np.sum(L * L), rel=1e-12)
    assert (counter.rmatvecs, counter.matvecs) == (24, 0)
    assert partial_trace_operator(black_box(L @ L.T, adjoint=False), (2, 12), 0).rmatmat is None


# Unbiased -------------------------------------------------------------------------------------


@every_law
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_mean_of_many_runs_is_the_partial_trace(kind: str, law: Any) -> None:
    A, axes = matrix(kind, 24, seed=2), ((2, 3, 4), (2, 0))
    values = [partial_trace(A, *axes, 3, rng=s, probes=law).value for s in range(200)]
    assert worst_z(values, twin(A, (2, 3, 4), (0, 2))) < 5
    L = factor(kind, 24, 30, seed=2)
    values = [partial_trace(tk.gram(L), *axes, 5, rng=s, probes=law).value for s in range(200)]
    assert worst_z(values, twin(matrix_of(L), (2, 3, 4), (0, 2))) < 5


@pytest.mark.parametrize("kind", ["real", "complex", "hermitian"])
def test_mean_of_many_deflated_runs_is_the_partial_trace(kind: str) -> None:
    A, axes = matrix(kind, 40, seed=2), ((4, 10), (1,))
    values = [partial_trace(A, *axes, 3, rng=s, rank=4).value for s in range(200)]
    assert worst_z(values, twin(A, *axes)) < 5
    L = factor(kind, 40, 50, seed=2)
    values = [partial_trace(tk.gram(L), *axes, DEFLATE_FROM, rng=s).value for s in range(200)]
    assert worst_z(values, twin(matrix_of(L), *axes)) < 5


# Costs, dtypes, edges -------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(1, 1), (3, 1), (1, 3), (2, 3), (2, 2, 3), (7, 6)], ids=str)
def test_spent_is_claimed(dims: tuple[int, ...]) -> None:
    n = int(np.prod(dims))
    A, L = matrix("real", n), factor("real", n, n + 2)
    for axis in (0, (0, 1), ()):
        for m in (1, 2, 5, 35):
            for make, options in ((tk.gram, {}), (lambda A: A, {}), (lambda A: A, {"rank": 1})):
                op, counter = tk.counted(make(L if make is tk.gram else A))
                estimate = partial_trace(op, dims, axis, m, rng=0, **options)
                assert estimate.num_matvecs == counter.total <= n
                assert np.isfinite(estimate.value).all()


def test_blocks_are_no_wider_than_asked() -> None:
    widths = []

    def product(X: np.ndarray) -> np.ndarray:
        widths.append(X.shape[1])
        return 2 * X

    A = tk.LinearOperator((60, 60), product, product)
    for op in (A, tk.gram(A)):
        for m, options in ((None, {}), (3, {}), (2, {"rank": 0}), (12, {"rank": 5})):
            partial_trace(op, (12, 5), 1, m, rng=0, chunk_size=4, **options)
    partial_trace_operator(A, (12, 5), 1, chunk_size=4) @ np.eye(12)
    assert max(widths) == 4


@kinds
def test_hermitian_operators_have_hermitian_partial_traces(kind: str) -> None:
    A, axes = matrix(kind, 60), ((6, 10), (1,))
    hermitian = kind not in ("real", "complex")
    for m, rank in ((None, 0), (1, 0), (4, 0), (4, 5)):
        M = partial_trace(A, *axes, m, rng=0, rank=rank).value
        assert (M == M.conj().T).all() == hermitian
        if kind in PSD and rank == 0:
            assert np.linalg.eigvalsh(M).min() > -1e-13


@pytest.mark.parametrize(("make", "m", "rank"), [
    (lambda A: A, 8, 0), (lambda A: A, 3, 4), (tk.gram, 36, 0), (tk.gram, 36, 12)])  # fmt: skip
def test_zero_operator_and_scale(make: Any, m: int, rank: int) -> None:
    A, power = matrix("real", 40), 2 if make is tk.gram else 1
    zero = partial_trace(make(0 * A), (4, 10), 1, m, rng=0, rank=rank)
    assert not zero.value.any()
    assert not zero.standard_error.any()
    base = partial_trace(make(A), (4, 10), 1, m, rng=0, rank=rank)
    for exponent in (-250, 240):
        scaled = partial_trace(make(A * 2.0**exponent), (4, 10), 1, m, rng=0, rank=rank)
        back = 2.0 ** (-exponent * power)
        np.testing.assert_allclose(scaled.value * back, base.value, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(scaled.standard_error * back, base.standard_error, rtol=1e-6)


WAYS = [(lambda A: A, 3, 0), (lambda A: A, 3, 4), (tk.gram, 9, 0), (tk.gram, 36, None)]
ways = pytest.mark.parametrize(
    ("make", "m", "rank"), WAYS, ids=["plain", "deflated", "factor", "deflated factor"]
)


@ways
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_one_seed_one_answer_in_every_library(make: Any, m: int, rank: Any, kind: str) -> None:
    A = matrix(kind, 40)
    f = lambda A: partial_trace(make(A), (4, 10), 1, m, rng=5, rank=rank)  # noqa: E731
    first = f(A)
    for lib in installed("strict:device1", "torch", "jax-jit"):
        other = lib.call(f, lib.array(A))
        np.testing.assert_allclose(lib.numpy(other.value), first.value, atol=1e-11)
        np.testing.assert_allclose(
            lib.numpy(other.standard_error), first.standard_error, rtol=1e-6, atol=1e-12
        )
        assert lib.at_home(other.value)
        if lib.jit:
            continue
        single = lib.call(f, lib.array(A, "complex64" if kind == "complex" else "float32"))
        assert single.standard_error.dtype == lib.xp.float32
        np.testing.assert_allclose(lib.numpy(single.value), first.value, atol=1e-4)


@ways
def test_batched_over_keys(make: Any, m: int, rank: Any) -> None:
    jax = pytest.importorskip("jax")
    A, keys = jax.numpy.asarray(matrix("real", 40)), jax.random.split(jax.random.key(3), 2)
    f = lambda A, key: partial_trace(make(A), (4, 10), 1, m, rng=key, rank=rank)  # noqa: E731
    batched = jax.jit(jax.vmap(f, in_axes=(None, 0)))(A, keys)
    np.testing.assert_allclose(batched.value[1], jax.jit(f)(A, keys[1]).value, atol=1e-11)


@ways
def test_gradients_are_those_of_finite_differences(make: Any, m: int, rank: Any) -> None:
    torch = pytest.importorskip("torch")
    A, D = matrix("real", 40), matrix("real", 40, seed=8)
    f = lambda A: partial_trace(make(A), (4, 10), 1, m, rng=2, rank=rank).value[1, 2]  # noqa: E731
    At = torch.tensor(A, requires_grad=True)
    (gradient,) = torch.autograd.grad(f(At), At)
    slope = (float(f(A + 1e-5 * D)) - float(f(A - 1e-5 * D))) / 2e-5
    assert float(np.sum(gradient.numpy() * D)) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_without_an_adjoint_compiled_code_needs_a_hermitian_operator() -> None:
    jax = pytest.importorskip("jax")

    @jax.jit
    def f(A: Any, key: Any) -> Any:
        op = tk.LinearOperator(A.shape, lambda X: A @ X, dtype=A.dtype, xp=jax.numpy)
        return partial_trace(op, (4, 5), 1, 2, rng=key, rank=2).value

    key = jax.random.key(0)
    assert np.isnan(f(jax.numpy.asarray(matrix("real", 20)), key)).all()
    M = np.asarray(f(jax.numpy.asarray(matrix("symmetric", 20)), key))
    assert np.isfinite(M).all()
    assert (M == M.T).all()


# Errors that are honest -----------------------------------------------------------------------


@pytest.mark.parametrize(("form", "m", "rank"), [
    ("plain", 9, 0), ("plain", 9, 8), ("factor", 24, None), ("factor", 60, None)])  # fmt: skip
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_intervals_cover(form: str, m: int, rank: int | None, power: float) -> None:
    n, rng = 120, np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    L = U * np.arange(1.0, n + 1) ** (-power / 2)
    L = L @ np.linalg.qr(rng.standard_normal((n, n)))[0]
    A, exact = tk.gram(L) if form == "factor" else L @ L.T, twin(L @ L.T, (8, 15), (1,))
    inside = []
    for seed in range(25):
        estimate = partial_trace(A, (8, 15), 1, m, rng=seed, rank=rank)
        low, high = estimate.confidence_interval(0.95)
        inside.append((low <= exact) & (exact <= high))
    assert np.mean(inside) > 0.9


def test_the_low_rank_part_pays_on_a_kernel_of_images() -> None:
    """At 256 columns through J or J.H, samples kept: a tenth with no low-rank part."""
    from benchmarks.problems import DIMS, jacobian

    J, dims = jacobian("mlpimg"), DIMS["mlpimg"]
    exact = twin(J @ J.T, dims, (0,))

    def error(**options: Any) -> float:
        values = [partial_trace(tk.gram(J), dims, 0, 256, rng=s, **options).value for s in range(5)]
        return float(np.median([np.linalg.norm(M - exact) for M in values]) / np.linalg.norm(exact))

    assert error() < 1.3e-2
    assert 5e-2 < error(rank=0) < 0.2


# Bad input ------------------------------------------------------------------------------------


def refused(match: str, f: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=match) as caught:
        f(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert 25 < len(message) < 400


@pytest.mark.parametrize("function", [partial_trace, partial_trace_operator])
def test_bad_input(function: Any) -> None:
    A = np.eye(12)
    for dims in ((3, 5), (12, 2), (), (-3, -4), (0, 12), (3, 4.0), 12, "ab", (True, 12)):
        refused("dims(=|` must be)", function, A, dims, 0)
    refused("dims", function, A, None, 0)
    for axis in (2, -3, (0, 2), 10**9):
        refused("axis=.*out of range", function, A, (3, 4), axis)
    for axis in ((0, 0), (0, -2), [1, 1]):
        refused("twice", function, A, (3, 4), axis)
    for axis in (0.0, "0", None, (0, 1.5), True, {0}):
        refused("`axis` must be", function, A, (3, 4), axis)
    for m in (0, -1, 2.5, True, "8"):
        refused("`num_probes` must be", function, A, (3, 4), 1, m)
    refused("square", function, np.ones((3, 4)), (3, 4), 0)
    refused("`chunk_size` must be", function, A, (3, 4), 0, chunk_size=0)
    refused("rng", function, A, (3, 4), 0, 2, rng="0")
    refused("probes", function, A, (3, 4), 0, 2, probes=lambda source, n, m: np.ones((m, n)))
    refused("probes", function, A, (3, 4), 0, 2, probes="rademacher")


def test_bad_ranks_dims_and_values() -> None:
    for rank in (-1, 2.5, True, "8"):
        refused("`rank` must be|rank=", partial_trace, np.eye(12), (3, 4), 1, 2, rank=rank)
    refused("rank=4", partial_trace, tk.gram(np.eye(40)), (4, 10), 1, 8, rank=4)
    refused("dims=", with_dims, np.eye(12), (3, 5))
    nan = np.full((40, 40), np.nan)
    for A, m, rank in ((nan, None, 0), (nan, 2, 0), (nan, 2, 3), (tk.gram(nan), 36, None)):
        with pytest.raises(tk.NotFiniteError):
            partial_trace(A, (4, 10), 1, m, rng=0, rank=rank)
