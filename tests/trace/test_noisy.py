"""Laws of noisy products: the two-way layout of probes and batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Library, library

import tracekit as tk
from tracekit.probes.source import Source

N = 40


def base(*, cplx: bool = False) -> np.ndarray:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((N, N)) + (1j * rng.standard_normal((N, N)) if cplx else 0)
    return X @ X.conj().T / N


def noisy(size: float, seed: int = 0, *, cplx: bool = False) -> Callable[[int], np.ndarray]:
    """Batches of a matrix: each with a multiple of it, and a noise of its own."""
    A = base(cplx=cplx)

    def draw(j: int) -> np.ndarray:
        rng = np.random.default_rng((seed, j))
        E = rng.standard_normal((N, N)) / 10
        return (1 + size * rng.standard_normal()) * A + E + E.T

    return draw


@pytest.mark.parametrize("cplx", [False, True])
def test_estimates_are_those_of_the_naive_twin(cplx):
    p, q, draw = 5, 4, noisy(0.2, cplx=cplx)
    found = tk.noisy_trace(draw, p, q, rng=3)
    X = np.asarray(Source(3, tk.as_operator(draw(0))).signs((N, p)))
    Q = np.array([[X[:, i].conj() @ draw(j) @ X[:, i] for j in range(q)] for i in range(p)])
    rows, columns, m = Q.mean(axis=1), Q.mean(axis=0), Q.mean()
    left = Q - rows[:, None] - columns[None, :] + m
    msp = q * np.sum(np.abs(rows - m) ** 2) / (p - 1)
    msb = p * np.sum(np.abs(columns - m) ** 2) / (q - 1)
    mse = np.sum(np.abs(left) ** 2) / ((p - 1) * (q - 1))
    assert np.isclose(found.value, m)
    assert np.isclose(found.standard_error**2, max(msp + msb - mse, msp, msb) / (p * q), rtol=1e-10)
    parts = [max(msp - mse, 0), max(msb - mse, 0), mse]
    for part, expected in zip(found.kept[:3], parts, strict=True):
        assert np.isclose(part**2, expected / (p * q), rtol=1e-8)
    np.testing.assert_allclose(found.kept.forms, Q, rtol=1e-11)
    assert (found.num_matvecs, found.dof, found.method) == (20, 3, "noisy_trace")


def test_the_mean_is_unbiased():
    """Over all sign vectors, and all batches."""
    B = [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0, -1.0], [0.0, 2.0]])]
    signs = list(itertools.product((-1.0, 1.0), repeat=2))
    for columns in itertools.product(signs, repeat=1):
        turned = [np.array(columns).T, -np.array(columns).T]
        assert len(turned) == 2
    total = []
    for x in signs:
        law = lambda source, n, m, x=x: np.array(x)[:, None] * np.ones((1, m))  # noqa: E731
        for j, k in itertools.product((0, 1), repeat=2):
            total.append(tk.noisy_trace(lambda i, jk=(j, k): B[jk[i]], 1, 2, probes=law).value)
    assert np.isclose(np.mean(total), np.trace(B[0] + B[1]) / 2)


@pytest.mark.parametrize(("size", "probes", "batches"), [(0.0, 8, 8), (0.3, 8, 8), (0.1, 6, 20)])
def test_intervals_hold(size, probes, batches):
    exact, held, z = np.trace(base()), [], []
    for seed in range(120):
        found = tk.noisy_trace(noisy(size, seed), probes, batches, rng=seed)
        low, high = found.confidence_interval()
        held.append(bool(low <= exact <= high))
        z.append((found.value - exact) ** 2 / found.standard_error**2)
    assert 0.88 <= np.mean(held) <= 0.995
    assert 0.6 < np.median(z) / 0.55 < 1.7


def test_one_batch_for_all_probes_deceives_others():
    """What the layout is for: plain intervals with one batch hold far less than they say."""
    exact, held = np.trace(base()), []
    for seed in range(60):
        low, high = tk.hutchinson(noisy(0.3, seed)(0), 16, rng=seed).confidence_interval()
        held.append(bool(low <= exact <= high))
    assert np.mean(held) < 0.7
    found = tk.noisy_trace(noisy(0.3), 16, 1, rng=0)
    assert math.isinf(found.standard_error)
    assert not found.converged
    assert "one batch for all probes" in found.reason


def test_it_says_what_lowers_the_error():
    loud, quiet = (tk.noisy_trace(noisy(size), 8, 8, rng=0) for size in (0.5, 0.001))
    assert loud.reason.endswith("more batches lower it")
    assert loud.kept.batches > loud.kept.probes
    assert quiet.reason.endswith("more probes lower it")
    for more, size in (((8, 32), 0.5), ((32, 8), 0.001)):
        better = tk.noisy_trace(noisy(size), *more, rng=0)
        worse = tk.noisy_trace(noisy(size), *more[::-1], rng=0)
        assert better.standard_error < worse.standard_error


def test_what_cannot_be_known_has_an_infinite_error():
    A = base()
    for draw, p, q, match in (
        (noisy(0.3), 1, 8, "so few probes"),
        (noisy(0.3), 1, 1, "one batch"),
        (lambda j: A, 8, 8, "all batches agree"),
        (lambda j: 0 * A, 8, 8, "all batches agree"),
        (lambda j: (1 + j) * np.eye(N), 3, 8, "so few probes"),  # signs that tie by chance
        (noisy(0.3), N, 1, "noise of one batch"),
        (lambda j: A, N, 3, "several that agree"),
    ):
        found = tk.noisy_trace(draw, p, q, rng=0)
        assert math.isinf(found.standard_error), match
        assert not found.converged
        assert match in found.reason
        assert np.isfinite(found.value)
    diagonal = tk.noisy_trace(lambda j: (1 + j) * np.eye(N), 20, 8, rng=0)
    assert np.isclose(diagonal.standard_error, N * np.std(np.arange(8), ddof=1) / 8**0.5)


def test_as_many_probes_as_dimensions_are_exact_traces():
    draw, q = noisy(0.2), 6
    A, counter = tk.counted(draw(0))
    found = tk.noisy_trace(lambda j: A if j == 0 else draw(j), N + 9, q)
    traces = [np.trace(draw(j)) for j in range(q)]
    assert np.isclose(found.value, np.mean(traces))
    assert np.isclose(found.standard_error, np.std(traces, ddof=1) / q**0.5)
    assert (found.num_matvecs, counter.total, found.dof) == (N * q, N, q - 1)
    assert tk.noisy_trace(lambda j: np.array([[1.0 + j]]), 1, 3).value == 2


def test_orthogonal_probes_have_less_of_an_error():
    few = tk.noisy_trace(noisy(0.001), 38, 8, rng=0, probes=tk.probes.orthogonal)
    plain = tk.noisy_trace(noisy(0.001), 38, 8, rng=0, probes=tk.probes.sphere)
    assert few.kept.probes < plain.kept.probes / 2


def test_what_is_claimed_is_what_was_spent():
    made = [tk.counted(tk.gram(np.linalg.cholesky(base() + (1 + j) * np.eye(N)))) for j in range(3)]
    found = tk.noisy_trace(lambda j: made[j][0], 5, 3, rng=0, chunk_size=2)
    assert sum(counter.total for _, counter in made) == found.num_matvecs == 15
    whole = tk.noisy_trace(lambda j: made[j][0], 5, 3, rng=0)
    assert np.isclose(whole.value, found.value)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_squares_stay_in_range(scale):
    draw = noisy(0.2)
    plain = tk.noisy_trace(draw, 4, 4, rng=0)
    found = tk.noisy_trace(lambda j: (scale * draw(j)).astype(np.float32), 4, 4, rng=0)
    assert found.value.dtype == np.float32
    assert np.isclose(found.standard_error / scale, plain.standard_error, rtol=1e-4)


def test_libraries_agree(lib: Library):
    draw = noisy(0.2)
    expected = tk.noisy_trace(draw, 5, 4, rng=3)
    found = tk.noisy_trace(lambda j: lib.array(draw(j)), 5, 4, rng=3)
    assert lib.at_home(found.value)
    np.testing.assert_allclose(lib.numpy(found.value), expected.value, rtol=1e-4)
    np.testing.assert_allclose(lib.numpy(found.standard_error), expected.standard_error, rtol=1e-3)


def test_it_compiles():
    jax, lib = pytest.importorskip("jax"), library("jax")
    made = lib.xp.stack([lib.array(noisy(0.2)(j)) for j in range(3)])
    call = lambda made: tk.noisy_trace(lambda j: made[j], 4, 3, rng=3)  # noqa: E731
    found, plain = jax.jit(call)(made), call(made)
    assert np.isclose(found.value, plain.value)
    assert np.isclose(found.standard_error, plain.standard_error)


def test_bad_input_is_told():
    for call, match in (
        (lambda: tk.noisy_trace(3, 2, 2), "`draw` must be a function"),
        (lambda: tk.noisy_trace(noisy(1), 0, 2), "`num_probes`"),
        (lambda: tk.noisy_trace(noisy(1), 2, 1.5), "`num_batches`"),
        (lambda: tk.noisy_trace(lambda j: np.eye(9 + j), 2, 2), "one shape, got"),
        (lambda: tk.noisy_trace(lambda j: np.eye(9, dtype=f"f{4 + 4 * j}"), 2, 2), "one dtype"),
        (lambda: tk.noisy_trace(
            lambda j: library("torch" if j else "numpy").array(np.eye(9)), 2, 2), "one library"),
        (lambda: tk.noisy_trace(lambda j: np.ones((3, 2)), 2, 2), "square"),
        (lambda: tk.noisy_trace(lambda j: np.full((9, 9), np.nan), 2, 2), "NaN"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, tk.NotFiniteError), match=match):
            call()
