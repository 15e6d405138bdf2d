"""Prints the errors of the one-sided algorithms as published beside ours, at equal products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import tracekit as tk
from examples.hazelden2025.algorithms import paired_effective_rank, split_trace

N, M, RUNS = 512, 64, 200
SPECTRA = {
    "i^-2": np.arange(1.0, N + 1) ** -2,
    "i^-0.5": np.arange(1.0, N + 1) ** -0.5,
    "flat": np.linspace(1.0, 3.0, N),
}


def rms(estimate: Callable[[int], float], exact: float) -> float:
    """Root mean square relative error over seeds."""
    return float(np.sqrt(np.mean([(estimate(seed) / exact - 1) ** 2 for seed in range(RUNS)])))


def main() -> None:
    """Print the table."""
    print(f"rms relative error of {RUNS} runs, {M} products with L^H, L L^H of dimension {N}\n")
    names = ("Algorithm 2", "(a sixth)", "one_sided", "rank: pairs", "rank: ours")
    print(f"{'':8}" + "".join(f"{name:>13}" for name in names))
    for name, spectrum in SPECTRA.items():
        rng = np.random.default_rng(0)
        U = np.linalg.qr(rng.standard_normal((N, N)))[0]
        L = tk.as_operator((U * np.sqrt(spectrum)) @ U.T)
        trace, rank = spectrum.sum(), spectrum.sum() ** 2 / np.sum(spectrum**2)
        row = (
            rms(lambda s, L=L: split_trace(L, M, np.random.default_rng(s)), trace),
            rms(lambda s, L=L: split_trace(L, M, np.random.default_rng(s), 1 / 6), trace),
            rms(lambda s, L=L: float(tk.one_sided(L, M, rng=s)), trace),
            rms(lambda s, L=L: paired_effective_rank(L, M, np.random.default_rng(s)), rank),
            rms(lambda s, L=L: float(tk.one_sided_summary(L, M, rng=s).effective_rank), rank),
        )
        print(f"{name:8}" + "".join(f"{value:13.2e}" for value in row))


if __name__ == "__main__":
    main()
