"""All of Hazelden (2025): its errata, its three experiments, one table, and what was aimed at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

import tracekit as tk
from examples.hazelden2025 import errata, figures, gru, mlp, mnist
from examples.hazelden2025.algorithms import paired_effective_rank, split_trace
from examples.hazelden2025.study import FULL, Results, print_results
from examples.hazelden2025.traces import PUBLISHED, TraceStudy

N, M, RUNS = 512, 64, 200
SPECTRA = {
    "i^-2": np.arange(1.0, N + 1) ** -2,
    "i^-0.5": np.arange(1.0, N + 1) ** -0.5,
    "flat": np.linspace(1.0, 3.0, N),
}


def main() -> None:
    """Print everything, and write the figures."""
    torch.set_num_threads(1)
    start = time.process_time()
    errata.main()
    one_sided_table()
    results = [experiment.main() for experiment in (mlp, gru, mnist)]
    studies = [study for found in results[:2] for study in found.studies]
    print("figure:", speedup(studies))
    print(f"\nAll together, {'50 seeds' if FULL else 'few seeds; FULL=1 for 50'}")
    rows = [row for found in results for row in found.rows]
    targets = [target for found in results for target in found.targets]
    print_results(Results(studies, rows, targets))
    print(f"\n{(time.process_time() - start) / 60:.1f} minutes of CPU time")


def one_sided_table() -> None:
    """Errors of the one-sided algorithms beside ours, at equal products, on known spectra."""
    print(f"\nrms relative error of {RUNS} runs, {M} products with L^H, L L^H of dimension {N}\n")
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


def rms(estimate: Callable[[int], float], exact: float) -> float:
    """Root mean square relative error over seeds."""
    return float(np.sqrt(np.mean([(estimate(seed) / exact - 1) ** 2 for seed in range(RUNS)])))


def speedup(studies: Sequence[TraceStudy]) -> str:
    """Draw how many times faster than n products a relative error is reached."""
    tolerances = np.logspace(-1, -4, 25)
    drawing, axes = figures.figure(2, len(studies) // 2)
    for ax, study in zip(axes.flat, studies, strict=True):
        for text, colour, line, published in (
            ("the paper's algorithms", "#D55E00", figures.PUBLISHED, True),
            ("ours", "#0072B2", figures.OURS, False),
        ):
            curves = [c for name, c in study.curves.items() if (name in PUBLISHED) == published]
            best = np.array([min(c.time_to(t) for c in curves) for t in tolerances])
            reached = np.isfinite(best)
            times = study.by_products / best[reached]
            ax.plot(tolerances[reached], times, line, color=colour, linewidth=1.6)
            ax.annotate(
                text, (0.99, 0.86 if published else 0.94), xycoords="axes fraction", ha="right",
                color=colour,
            )  # fmt: skip
        exact = study.by_products / study.by_factors
        ax.axhline(exact, color=figures.GREY, linestyle=":", linewidth=1)
        ax.annotate(
            "exact, from factors", (0.09, exact), color=figures.GREY, fontsize="small",
            xytext=(0, 3), textcoords="offset points",
        )  # fmt: skip
        ax.set(
            xscale="log", yscale="log", xlabel="relative error",
            ylabel="times faster than n products",
        )  # fmt: skip
        ax.set_xlim(tolerances[0], tolerances[-1] / 10)
        figures.log_ticks(ax.yaxis)
        ax.set_xticks([1e-1, 1e-2, 1e-3, 1e-4], ["1e-1", "1e-2", "1e-3", "1e-4"])
        ax.set_xticks([], minor=True)
        ax.set_title(study.problem.name, loc="left")
    return figures.save(drawing, "hazelden_speedup")


if __name__ == "__main__":
    main()
