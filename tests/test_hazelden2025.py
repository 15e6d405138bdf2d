"""The published one-sided algorithms: unbiased once corrected, and no better than ours."""

from __future__ import annotations

import numpy as np
import pytest

import tracekit as tk
from examples.hazelden2025.algorithms import paired_effective_rank, paired_moments, split_trace

RUNS = 400
rng = np.random.default_rng(1)
J1, J2 = rng.standard_normal((2, 20, 30)) / np.arange(1.0, 21.0)[:, None]
L1, L2 = tk.as_operator(J1), tk.as_operator(J2)
K1, K2 = J1 @ J1.T, J2 @ J2.T


def z_score(values: list[float], exact: float) -> float:
    return abs(np.mean(values) - exact) / (np.std(values, ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("share", [1 / 2, 1 / 6])
def test_the_split_form_is_unbiased(share: float) -> None:
    L, counter = tk.counted(L1)
    split = [split_trace(L, 12, np.random.default_rng(s), share) for s in range(RUNS)]
    assert counter.rmatvecs == 12 * RUNS
    assert z_score(split, np.trace(K1)) < 4


def test_the_split_form_has_about_twice_the_variance_or_more() -> None:
    L = tk.as_operator(np.random.default_rng(2).standard_normal((100, 120)))
    split = [split_trace(L, 24, np.random.default_rng(s)) for s in range(RUNS)]
    ours = [float(tk.one_sided(L, 24, rng=s)) for s in range(RUNS)]
    assert np.var(split) > 1.5 * np.var(ours)


def test_paired_products_are_unbiased_in_the_corrected_order() -> None:
    L, counter = tk.counted(L1)
    runs = np.array([paired_moments(L, L2, 40, np.random.default_rng(s)) for s in range(RUNS)])
    assert counter.rmatvecs == 20 * RUNS
    for values, exact in zip(
        runs.T, (np.sum(K1 * K2), np.sum(K1 * K1), np.sum(K2 * K2)), strict=True
    ):
        assert z_score(list(values), exact) < 4


def test_the_effective_rank_needs_the_squared_numerator() -> None:
    rank = np.trace(K1) ** 2 / np.sum(K1 * K1)
    pairs = [paired_effective_rank(L1, 2000, np.random.default_rng(s)) for s in range(5)]
    assert np.median(pairs) == pytest.approx(rank, rel=0.15)
