"""Every estimate remembers its seed: runs of one are refused to add up, those of two do."""

from __future__ import annotations

import pytest
from capabilities import Case
from rows import SEED, law, positive, run

import tracekit as tk


@law("seed")
def test_runs_of_two_seeds_add_up(case: Case) -> None:
    A = positive()
    first, again, other = (run(case, A, rng=seed) for seed in (SEED, SEED, SEED + 1))
    if not isinstance(first, tk.Estimate) or first.method == "exact_trace":
        pytest.skip(f"{case.name} gives no Estimate of its own")
    with pytest.raises(ValueError, match="same random numbers"):
        tk.merge([first, again])
    whole = tk.merge([first, other])
    assert whole.num_matvecs == first.num_matvecs + other.num_matvecs
    assert whole.method == first.method
    if case.name != "spectral_run":  # whose values are read later
        assert first.origin["draws"] == again.origin["draws"] != other.origin["draws"]
