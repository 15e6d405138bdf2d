"""Laws of scores that choose a ridge: textbook values, their errors, and where they are least."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from conftest import Library

import tracekit as tk

N = 200
RIDGES = np.geomspace(0.1, 30.0, 9)
SCORES = pytest.mark.parametrize("score", [tk.gcv, tk.reml], ids=["gcv", "reml"])


@cache
def problem(cplx: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A kernel matrix, responses, and columns that are fixed."""
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 1.0, N)
    far = 12 * np.abs(x[:, None] - x)
    K, F = (1 + far) * np.exp(-far), np.stack([np.ones(N), x], axis=1)
    y = np.sin(9 * x) + 3 * x + 0.5 * rng.standard_normal(N)
    if cplx:
        phase = np.exp(2j * np.pi * rng.uniform(size=N))
        K, y, F = phase[:, None] * K * phase.conj(), phase * y, phase[:, None] * F
    return K, y, F


@cache
def penalty() -> np.ndarray:
    """That of a chain of second differences, which takes constants and slopes to 0."""
    D = np.diff(np.eye(N), 2, axis=0)
    return D.T @ D


def textbook(score, A, y, fixed, *, is_penalty=False, ridges=RIDGES):
    """By inverses, one ridge at a time; restricted likelihoods as Harville (1974) has them."""
    n, p, found = len(A), 0 if fixed is None else fixed.shape[1], []
    for c in ridges:
        if is_penalty:
            R = np.eye(n) - np.linalg.inv(np.eye(n) + c * A)
            logdet = np.linalg.slogdet(np.eye(n) + c * A)[1] - (n - p) * np.log(c)
        else:
            V = A + c * np.eye(n)
            inverse = np.linalg.inv(V)
            P, logdet = inverse, np.linalg.slogdet(V / c)[1]
            if p:
                M = fixed.conj().T @ inverse @ fixed
                P = inverse - inverse @ fixed @ np.linalg.solve(M, fixed.conj().T @ inverse)
                logdet += np.linalg.slogdet(c * M)[1]
                logdet -= np.linalg.slogdet(fixed.conj().T @ fixed)[1]
            R = c * P
        if score is tk.gcv:
            found.append(n * np.linalg.norm(R @ y) ** 2 / np.trace(R).real ** 2)
        else:
            found.append((n - p) * np.log((y.conj() @ R @ y).real) + logdet)
    return np.array(found)


# --- values ---------------------------------------------------------------------------------------


@SCORES
@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("is_fixed", [False, True], ids=["free", "fixed"])
def test_all_products_give_the_textbook_values(score, cplx, is_fixed):
    K, y, F = problem(cplx)
    F = F if is_fixed else None
    found = score(K, y, RIDGES, N, fixed=F)
    np.testing.assert_allclose(found.value, textbook(score, K, y, F), rtol=1e-8)
    assert found.num_matvecs == N
    assert np.all(found.standard_error == 0)
    L = np.linalg.cholesky(K + 1e-8 * np.eye(N))
    np.testing.assert_allclose(
        score(tk.gram(L), y, RIDGES, N, fixed=F).value, found.value, rtol=1e-5
    )


@SCORES
def test_penalties_of_splines(score):
    _, y, F = problem()
    found = score(penalty(), y, RIDGES, N, penalty=True, fixed=F)
    expected = textbook(score, penalty(), y, F, is_penalty=True)
    np.testing.assert_allclose(found.value, expected, rtol=1e-7)


@SCORES
def test_a_penalty_is_the_inverse_of_a_covariance(score):
    rng = np.random.default_rng(1)
    K, (_, y, _) = tk.testing.known_spectrum(rng.uniform(0.5, 2.0, N)), problem()
    of_K = score(K, y, RIDGES, N).value
    of_P = score(np.linalg.inv(K), y, RIDGES, N, penalty=True).value
    off = of_P - of_K
    constant = np.linalg.slogdet(K)[1] if score is tk.reml else 0.0
    np.testing.assert_allclose(off, -constant, atol=1e-8)


@SCORES
def test_columns_of_responses_are_summed(score):
    K, y, _ = problem()
    Y = np.stack([y, y[::-1]], axis=1)
    both = score(K, Y, RIDGES, 120, rng=0, depth=20)
    parts = [score(K, Y[:, [j]], RIDGES, 100, rng=0, depth=20) for j in range(2)]
    assert both.samples.shape == parts[0].samples.shape
    if score is tk.gcv:
        np.testing.assert_allclose(both.value, parts[0].value + parts[1].value, rtol=1e-8)
    else:
        np.testing.assert_allclose(score(K, Y[:, :1], RIDGES, 100, rng=0, depth=20).value,
                                   score(K, y, RIDGES, 100, rng=0, depth=20).value)  # fmt: skip


@SCORES
@pytest.mark.parametrize("factored", [False, True])
def test_what_is_claimed_is_what_was_spent(score, factored):
    K, y, F = problem()
    A = tk.gram(np.linalg.cholesky(K + 0.01 * np.eye(N))) if factored else K
    for budget in (2 + 2 * factored, 9, 40, 133, N - 1, N):
        operator, counter = tk.counted(A)
        found = score(operator, y, RIDGES, budget, fixed=F, rng=0)
        assert 0 < found.num_matvecs == counter.total <= budget


def test_libraries_agree(but_jax: Library):
    lib = but_jax
    K, y, F = problem()
    expected = tk.gcv(K, y, RIDGES[3:], 60, fixed=F, rng=3, depth=6)
    found = tk.gcv(lib.array(K), lib.array(y), RIDGES[3:], 60, fixed=lib.array(F), rng=3, depth=6)
    assert lib.at_home(found.value)
    if lib.eps < 1e-10:
        np.testing.assert_allclose(lib.numpy(found.value), expected.value, rtol=1e-8)
    else:  # what deflates a probe is partly rounding
        off = np.abs(lib.numpy(found.value) - expected.value)
        assert np.all(off < 2 * expected.standard_error)


# --- errors ---------------------------------------------------------------------------------------


@SCORES
def test_intervals_and_bands_hold(score):
    """And the least score is among those that may be so."""
    K, y, F = problem()
    truth = textbook(score, K, y, F)
    runs = [score(K, y, RIDGES, 150, fixed=F, rng=seed, depth=14) for seed in range(40)]
    assert all(run.converged for run in runs)
    inside = [
        (low <= truth) & (truth <= high) for low, high in (r.confidence_interval() for r in runs)
    ]
    assert np.mean(inside) > 0.9
    bands = [np.all((low <= truth) & (truth <= high)) for low, high in (r.band() for r in runs)]
    assert np.mean(bands) >= 0.9
    values = np.array([run.value for run in runs])
    spread = np.std(values, axis=0) / len(runs) ** 0.5
    slack = 3e-3 * truth if score is tk.gcv else 0  # which has a bias of second order
    assert np.all(np.abs(values.mean(axis=0) - truth) < 4 * spread + slack)
    least = [np.argmin(truth) in tk.argmin(run)[1] for run in runs]
    assert np.mean(least) >= 0.95


def test_differences_of_shared_probes_tell_more_than_the_band():
    K, y, F = problem()
    scores = tk.gcv(K, y, RIDGES, 150, fixed=F, rng=0, depth=18)
    best, candidates = tk.argmin(scores)
    low, high = scores.band()
    assert best in candidates
    assert len(candidates) < len(RIDGES)
    assert set(candidates) <= {i for i in range(len(RIDGES)) if low[i] <= high[best]}
    assert len(tk.argmin(scores, 0.5)[1]) <= len(candidates)
    exact = tk.gcv(K, y, RIDGES, N, fixed=F)
    assert tk.argmin(exact) == (np.argmin(exact.value), [np.argmin(exact.value)])


@SCORES
def test_what_is_not_settled_says_so(score):
    K, y, _ = problem()
    truth = textbook(score, K, y, None)
    for depth in (1, 2, 3):
        found = score(K, y, RIDGES, 60, rng=0, depth=depth)
        assert not found.converged
        assert "not settled" in found.reason
        assert np.all(np.abs(found.value - truth) < 4 * found.standard_error)


def test_a_trace_that_may_be_0_has_no_score():
    K, y, F = problem()
    found = tk.gcv(1e6 * (K + np.eye(N)), y, [1e-2, 1e7], 100, fixed=F, rng=0)
    assert not found.converged
    assert np.isinf(found.standard_error[0])
    assert np.isfinite(found.standard_error[1])


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": np.ones(3)}, "`y` must be an array"),
        ({"y": [1.0] * N}, "`y` must be an array"),
        ({"y": np.ones(N) * 1j}, "complex `y`"),
        ({"y": np.zeros(N)}, "`y` must have a part"),
        ({"ridges": []}, "`ridges`"),
        ({"ridges": 1.0}, "`ridges`"),
        ({"ridges": [0.0]}, "`ridges`"),
        ({"ridges": [1.0, np.inf]}, "`ridges`"),
        ({"ridges": [True]}, "`ridges`"),
        ({"num_matvecs": 0}, "num_matvecs"),
        ({"num_matvecs": 1}, "does not pay"),
        ({"depth": 60}, "does not pay"),
        ({"fixed": np.ones((3, 1))}, "`fixed` must be"),
        ({"fixed": np.ones((N, 2))}, "linearly independent"),
        ({"A": np.triu(problem()[0])}, "Hermitian"),
        ({"A": -problem()[0]}, "eigenvalues of 0 or more"),
        ({"A": np.ones((3, 2))}, "square"),
    ],
)
def test_bad_input_is_told(change, match):
    K, y, _ = problem()
    asked = {"A": K, "y": y, "ridges": [1.0], "num_matvecs": 60} | change
    with pytest.raises((ValueError, TypeError), match=match):
        tk.reml(**asked, rng=0)


def test_argmin_is_of_a_curve():
    with pytest.raises(ValueError, match="shape"):
        tk.argmin(tk.exact_trace(np.eye(3)))


def test_scores_of_other_questions_do_not_merge():
    K, y, _ = problem()
    first, other = (tk.gcv(K, y, [c], 100, rng=seed) for seed, c in enumerate((1.0, 2.0)))
    with pytest.raises(ValueError, match="ridges"):
        tk.merge([first, other])
