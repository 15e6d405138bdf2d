"""Laws of tracking: exact where it has to be, calibrated along a drift, what it costs and keeps."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import twins_moments as naive
from conftest import Library

import tracekit as tk
from tracekit import _arrays
from tracekit._tracking import control_variates

N, M, STEPS = 90, 16, 8
FIELDS = ("trace", "frobenius_norm", "alignment")
fields = pytest.mark.parametrize("field", ["real", "complex"])


@cache
def factors(field: str = "real", n: int = N, steps: int = STEPS) -> tuple[np.ndarray, ...]:
    """L of a drifting ``L L^H``: at the end its cosine with the start is about 0.9."""
    rng = np.random.default_rng(n)

    def draw() -> np.ndarray:
        X = rng.standard_normal((n, n + 30))
        X = X + 1j * rng.standard_normal(X.shape) if field == "complex" else X
        return X * np.arange(1, n + 31) ** -0.6

    start, drift = draw(), draw()
    return tuple(start + 0.06 * j * drift for j in range(steps))


def facts(A: np.ndarray, first: np.ndarray) -> tuple[float, float, float]:
    a, b = np.linalg.norm(A), np.linalg.norm(first)
    return float(np.trace(A).real), float(a), float(np.vdot(first, A).real / a / b)


def exact(matrices: list[np.ndarray]) -> np.ndarray:
    """Of shape (steps, 3)."""
    return np.array([facts(A, matrices[0]) for A in matrices])


def follow(operators: Any, m: int = M, *, rng: Any = 0, **options: Any) -> tk.Tracker:
    tracker = tk.Tracker(m, rng=rng, **options)
    for A in operators:
        tracker.update(A)
    return tracker


def read(tracker: tk.Tracker, name: str = "value") -> np.ndarray:
    """Of shape (steps, 3)."""
    rows = [[_arrays.to_number(getattr(e, name)).real for e in p[1:4]] for p in tracker.points]
    return np.array(rows)


def kernels(field: str = "real") -> list[Any]:
    return [tk.gram(L) for L in factors(field)]


def dense(field: str = "real") -> list[np.ndarray]:
    return [L @ L.conj().T for L in factors(field)]


# What is exact ------------------------------------------------------------------------------------


@fields
@pytest.mark.parametrize("m", [N, N + 5])
def test_all_products_are_exact(field: str, m: int) -> None:
    tracker = follow(dense(field), m)
    assert read(tracker) == pytest.approx(exact(dense(field)), rel=1e-10)
    assert not read(tracker, "standard_error").any()
    assert tracker.num_matvecs == N * STEPS
    assert not any(point.anchored for point in tracker.points)


@fields
def test_low_rank_is_exact_as_long_as_its_range_stays(field: str) -> None:
    Q, scales = np.linalg.qr(factors(field)[0])[0][:, :5], np.arange(1.0, 6)
    operators = [tk.gram(Q * scales**power) for power in (1.0, 0.8, 0.6)]
    tracker = follow(operators)
    assert read(tracker) == pytest.approx(
        exact([(Q * scales ** (2 * p)) @ Q.conj().T for p in (1.0, 0.8, 0.6)]), rel=1e-9
    )
    assert read(tracker, "standard_error").max() < 1e-6 * scales[-1] ** 2


def test_what_does_not_change_has_alignment_one_and_the_same_values() -> None:
    K = kernels()[0]
    tracker = follow([K, K, K])
    values = read(tracker)
    assert values[:, 2] == pytest.approx(1, abs=1e-12)
    assert values[1:] == pytest.approx(np.stack([values[0]] * 2), rel=1e-9)
    assert [point.anchored for point in tracker.points] == [True, False, False]


@fields
def test_a_multiple_is_seen_as_one(field: str) -> None:
    A = dense(field)[0]
    values = read(follow([A, 3 * A, A / 4]))
    assert values[:, 2] == pytest.approx(1, abs=1e-9)
    # the fresh probes' share, of c as that of the first step, scales along
    assert values[:, :2] / values[0, :2] == pytest.approx(
        np.array([[1, 1], [3, 3], [0.25, 0.25]]), rel=1e-6
    )


@pytest.mark.parametrize("scale", [1e-150, 1e140])
def test_units_do_not_matter(scale: float) -> None:
    plain, scaled = (follow([tk.gram(L * c) for L in factors()[:3]]) for c in (1.0, scale))
    units = np.array([scale * scale, scale * scale, 1])
    assert read(scaled) / units == pytest.approx(read(plain), rel=1e-8)


# Equal to naive twins -----------------------------------------------------------------------------


def compressed(field: str, s: int, n: int) -> tuple[control_variates.Sizes, np.ndarray, np.ndarray]:
    """Sizes and compressions of two operators by the same probes, 3 of them leading vectors."""
    A, B = dense(field)[0][:n, :n], dense(field)[-1][:n, :n]
    W = np.linalg.qr(factors(field)[2][:n, : 3 + s])[0]
    sizes = control_variates.Sizes(n - 3, 3, s, field == "complex")
    return sizes, *(W.conj().T @ X @ W for X in (A, B))


def inner_twin(sizes: control_variates.Sizes, K1: np.ndarray, K2: np.ndarray) -> float:
    """On Q exactly, between Q and the rest by the mean, beyond by inverting expectations."""
    k = sizes.k
    s = len(K1) - k
    seen = (
        np.trace(K1[k:, k:] @ K2[k:, k:]).real,
        (np.trace(K1[k:, k:]) * np.trace(K2[k:, k:])).real,
    )
    means = naive.zonal_means(sizes.n, s, cplx=sizes.complex_)
    beyond = np.linalg.solve(means, seen)[0]
    sides = np.vdot(K1[k:, :k], K2[k:, :k]).real * sizes.n / s
    return float(np.vdot(K1[:k, :k], K2[:k, :k]).real + 2 * sides + beyond)


@fields
def test_inner_products_and_their_replicates_are_their_twins(field: str) -> None:
    sizes, K1, K2 = compressed(field, 5, 30)
    got = control_variates._inner(sizes, K1, K2)
    assert got[0] == pytest.approx(inner_twin(sizes, K1, K2), rel=1e-10)
    for i in range(sizes.s):
        less = [np.delete(np.delete(K, sizes.k + i, 0), sizes.k + i, 1) for K in (K1, K2)]
        assert got[1 + i] == pytest.approx(inner_twin(sizes, *less), rel=1e-9)


@fields
def test_the_variance_is_that_of_the_diagonal_in_all_bases(field: str) -> None:
    sizes, K, _ = compressed(field, 5, 30)
    look, B = control_variates.evaluate(sizes, K, K), K[3:, 3:]
    rng, found = np.random.default_rng(0), []
    for _ in range(4000):
        X = rng.standard_normal((5, 5))
        X = X + 1j * rng.standard_normal((5, 5)) if field == "complex" else X
        U = np.linalg.qr(X)[0]
        d = np.diagonal(U.conj().T @ B @ U).real * sizes.n
        found.append(np.var(d, ddof=1) / 5 * (1 - 5 / sizes.n))
    variance = sizes.factor * look.deviation @ look.deviation
    z = (np.mean(found) - variance) / (np.std(found) / 4000**0.5)
    assert abs(z) < 4


def test_weights_leave_the_least_variance() -> None:
    rng = np.random.default_rng(0)
    x, X, ratios = rng.standard_normal(30), rng.standard_normal((30, 3)), [0.1, 0.5, 2.0]
    c, left = control_variates._least_variance(x, X, ratios, 30)

    def variance(c: np.ndarray) -> float:
        return np.sum((x - X @ c) ** 2) + np.sum(np.sum(X * X, axis=0) * ratios * c * c)

    for change in np.concatenate([np.eye(3), -np.eye(3)]):
        assert variance(c + 1e-3 * change) > variance(c)
    plain = float(np.sum((x - X @ c) ** 2))
    assert plain < left < plain * 30 / 27


def test_an_anchor_is_the_mean_over_old_and_fresh_probes() -> None:
    """With the ratio 1 / 2 of variances, two thirds of the weight are the fresh probes'."""
    sizes, K, _ = compressed("real", 5, 30)
    own = control_variates.evaluate(sizes, K, K)
    known = control_variates.Reading(own.trace + 3.0, 1.0, 9)
    anchor = control_variates.Calibration(own, known, own.norm, 0.5)
    reading, _ = control_variates.trace(sizes, own, [anchor])
    assert reading.value == pytest.approx(own.trace + 2.0)


# Accuracy and calibration -------------------------------------------------------------------------


@cache
def runs(field: str, form: str, seeds: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors and hits of 95 % intervals, (seeds, steps, 3), and the exact values."""
    matrices = dense(field)
    if form == "indefinite":
        matrices = [A - np.eye(N) * np.trace(A).real / N / 2 for A in matrices]
    # a small square factor has the same kernel, and the same laws
    operators = [np.linalg.cholesky(A) for A in matrices] if form == "gram" else matrices
    operators = [tk.gram(A) if form == "gram" else tk.as_operator(A) for A in operators]
    truth = exact(matrices)
    errors, hits = [], []
    for seed in range(seeds):
        tracker = follow(operators, rng=seed)
        errors.append(read(tracker) - truth)
        ends = [[e.confidence_interval() for e in point[1:4]] for point in tracker.points]
        hits.append(
            [[lo - 1e-9 <= t <= hi + 1e-9 for (lo, hi), t in zip(row, exact_row, strict=True)]
             for row, exact_row in zip(ends, truth, strict=True)]
        )  # fmt: skip
    return np.array(errors), np.array(hits), truth


CASES = [("real", "gram"), ("real", "indefinite"), ("complex", "gram")]


@pytest.mark.parametrize(("field", "form"), CASES, ids=str)
def test_bands_cover_along_the_whole_way(field: str, form: str) -> None:
    _, hits, _ = runs(field, form)
    assert (hits.mean(axis=(0, 1)) > 0.89).all()
    assert (hits.mean(axis=0) > 0.82).all()  # at each step


@pytest.mark.parametrize(("field", "form"), CASES, ids=str)
def test_what_choosing_weights_biases_is_a_small_part_of_the_error(field: str, form: str) -> None:
    errors, _, _ = runs(field, form)
    trace = errors[:, :, 0]
    share = np.abs(trace.mean(axis=0)) / np.sqrt(np.mean(trace**2, axis=0))
    assert share.max() < 0.4  # of 100 runs without bias: 0.1, seldom above 0.25


def test_it_beats_fresh_probes_and_stays_in_step_with_itself() -> None:
    errors, _, truth = runs("real", "gram")
    L = np.linalg.cholesky(dense()[-1])
    fresh = [float(tk.one_sided(L, M, rng=seed)) - truth[-1, 0] for seed in range(100)]
    trace = errors[:, :, 0]
    assert np.sqrt(np.mean(trace**2)) < np.sqrt(np.mean(np.square(fresh))) * 2 / 3
    steps = np.sqrt(np.mean(np.diff(trace, axis=1) ** 2))
    assert steps < np.sqrt(np.mean(trace**2)) * 2 / 3  # differences are better than values


# What it costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gram", "black box"])
def test_what_is_claimed_is_what_was_spent(form: str) -> None:
    operators = kernels() if form == "gram" else [tk.as_operator(A) for A in dense()]
    tracker, total = tk.Tracker(M, anchor_matvecs=20, every=3, rtol=10.0, rng=0), 0
    search = 3 * M if form == "gram" else 2 * M
    for j, A in enumerate(operators):
        A, counter = tk.counted(A)
        point = tracker.update(A)
        spent = counter.total
        total += spent
        assert [e.num_matvecs for e in point[1:4]] == [spent] * 3
        assert spent == M + (j == 0) * search + (j % 3 == 0) * 20
        assert counter.matvecs == (0 if j and form == "gram" else counter.matvecs)
    assert tracker.num_matvecs == total
    assert [p.anchored for p in tracker.points] == [j % 3 == 0 for j in range(STEPS)]


def test_a_jump_makes_an_anchor_and_rest_does_not() -> None:
    A, B = dense()[0], dense()[-1][::-1, ::-1]
    tracker = follow([A, A, B, B, B])
    assert [point.anchored for point in tracker.points] == [True, False, True, False, False]


def test_a_basis_of_the_callers_needs_the_adjoint_alone() -> None:
    def forwards(X: np.ndarray) -> np.ndarray:
        raise AssertionError("a product with L")

    Q = np.linalg.svd(factors()[0])[0][:, :6]
    operators = [tk.LinearOperator(L.shape, forwards, lambda X, L=L: L.T @ X) for L in factors()]
    tracker = follow([tk.gram(L) for L in operators], basis=Q)
    assert read(tracker)[:, 0] == pytest.approx(exact(dense())[:, 0], rel=0.05)
    assert tracker.points[0].trace.num_matvecs == M + 3 * M


# What goes wrong ----------------------------------------------------------------------------------


def test_nan_costs_nothing_that_was_paid_for() -> None:
    operators = kernels()
    tracker, clean = tk.Tracker(M, rng=0), follow(operators)
    bad = tk.gram(factors()[2] * np.nan)
    with pytest.raises(tk.NotFiniteError) as failure:
        tracker.update(bad)
    assert failure.value.estimate is None
    for j, A in enumerate(operators):
        tracker.update(A)
        with pytest.raises(tk.NotFiniteError) as failure:
            tracker.update(bad)
        assert failure.value.estimate is tracker.points[j].trace
    assert read(tracker) == pytest.approx(read(clean), rel=1e-12)
    assert tracker.num_matvecs > clean.num_matvecs


def stopping_at(L: np.ndarray, call: int) -> Any:
    """A kernel whose product number `call` is interrupted."""
    calls = iter(range(100))

    def product(X: np.ndarray) -> np.ndarray:
        if next(calls) == call:
            raise KeyboardInterrupt
        return L.T @ X

    return tk.gram(tk.LinearOperator(L.shape, lambda X: L @ X, product))


def test_ctrl_c_in_an_anchor_keeps_the_step() -> None:
    tracker = tk.Tracker(M, rng=0, every=1)
    tracker.update(kernels()[0])
    with pytest.raises(KeyboardInterrupt):
        tracker.update(stopping_at(factors()[1], 1))
    assert [point.anchored for point in tracker.points] == [True, False]
    assert float(tracker.points[1].trace) == pytest.approx(exact(dense())[1, 0], rel=0.05)
    assert tracker.update(kernels()[2]).anchored


def test_ctrl_c_in_the_first_anchor_keeps_the_probes() -> None:
    tracker = tk.Tracker(M, rng=0)
    with pytest.raises(KeyboardInterrupt):
        tracker.update(stopping_at(factors()[0], 3))
    assert len(tracker.points) == 1
    point = tracker.update(kernels()[1])
    assert point.anchored
    assert point.trace.num_matvecs == M + 3 * M  # no second search


def test_ctrl_c_before_leaves_all_as_it_was() -> None:
    tracker = follow(kernels()[:2])
    with pytest.raises(KeyboardInterrupt):
        tracker.update(stopping_at(factors()[2], 0))
    for A in kernels()[2:]:
        tracker.update(A)
    assert read(tracker) == pytest.approx(read(follow(kernels())), rel=1e-12)


@pytest.mark.parametrize(
    ("A", "words"),
    [
        (np.triu(dense()[0]), "Hermitian"),
        (np.zeros((N, N)), "zero"),
        (np.eye(N + 1), f"dimension {N}"),
        (np.eye(N, dtype=np.float32), "float64"),
        (np.ones((N, 3)), "square"),
    ],
    ids=str,
)
def test_operators_that_do_not_fit_are_refused(A: np.ndarray, words: str) -> None:
    tracker = follow(kernels()[:1])
    with pytest.raises(ValueError, match=words):
        tracker.update(A)
    assert len(tracker.points) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_matvecs": 7}, "at least 8"),
        ({"num_matvecs": 12.5}, "num_matvecs"),
        ({"anchor_matvecs": 2}, "anchor_matvecs"),
        ({"every": 0}, "every"),
        ({"rtol": 0.0}, "rtol"),
        ({"rtol": float("nan")}, "rtol"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tk.Tracker(**{"num_matvecs": 12, **options})


@pytest.mark.parametrize("basis", [np.eye(N)[:, :13], np.eye(N)[:, 0], np.eye(N + 1)[:, :3], [1]])
def test_a_basis_that_does_not_fit_is_refused(basis: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="basis"):
        follow(kernels()[:1], basis=basis)


def test_compiled_code_is_refused() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    with pytest.raises(TypeError, match="jit"):
        jax.jit(lambda A: tk.Tracker(M, rng=0).update(A).trace.value)(jax.numpy.eye(N))


# Libraries, saving, showing -----------------------------------------------------------------------


@fields
def test_one_seed_one_answer_in_every_library(but_jax: Library, field: str) -> None:
    Ls = factors(field)[:3]
    tracker = follow([tk.gram(but_jax.array(L)) for L in Ls])
    wanted = follow([tk.gram(L) for L in Ls])
    assert read(tracker) == pytest.approx(read(wanted), rel=but_jax.eps**0.6)
    for estimate in tracker.points[-1][1:4]:
        assert but_jax.at_home(estimate.value)
        assert but_jax.at_home(estimate.standard_error)
    assert tracker.points[-1].trace.value.dtype == but_jax.array(Ls[0]).dtype
    assert tracker.points[-1].frobenius_norm.value.dtype == but_jax.real


def test_single_precision_stays_single() -> None:
    tracker = follow([tk.gram(L.astype(np.float32)) for L in factors()])
    assert tracker.points[-1].trace.value.dtype == np.float32
    assert read(tracker) == pytest.approx(read(follow(kernels())), rel=1e-3)


@pytest.mark.parametrize("make", [lambda: 3, lambda: np.random.default_rng(3)], ids=["int", "rng"])
def test_a_saved_tracker_goes_on_as_if_nothing_had_been(make: Callable[[], Any]) -> None:
    whole = follow(kernels(), rng=make(), every=2)
    half = pickle.loads(pickle.dumps(follow(kernels()[:4], rng=make(), every=2)))
    for A in kernels()[4:]:
        half.update(A)
    assert (read(half) == read(whole)).all()
    assert half.num_matvecs == whole.num_matvecs


def test_it_prints_a_table() -> None:
    tracker = tk.Tracker(M, rng=0)
    assert repr(tracker) == "Tracker of 0 steps, 0 products, 0 anchors"
    for j, A in enumerate(kernels()):
        tracker.update(A, step=100 * j)
    lines = repr(tracker).splitlines()
    assert lines[0].startswith(f"Tracker of {STEPS} steps, {tracker.num_matvecs} products")
    assert lines[-1].split()[0] == f"{100 * (STEPS - 1)}"
    assert len(lines) == STEPS + 2


def test_it_draws_one_band() -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    tracker = follow(kernels())
    for quantity in FIELDS:
        ax = tracker.plot(quantity=quantity)
        assert len(ax.collections) == 1
        values = ax.lines[0].get_ydata()
        assert list(values) == pytest.approx(list(read(tracker)[:, FIELDS.index(quantity)]))
        plt.close(ax.figure)
    with pytest.raises(ValueError, match="frobenius_norm"):
        tracker.plot(quantity="norm")
    with pytest.raises(ValueError, match="0 steps"):
        tk.Tracker(M).plot()
