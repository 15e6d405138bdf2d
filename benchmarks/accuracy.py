"""Median errors and overheads of the estimators, beside the figures that they should reach.

The reference errors are medians over 30 seeds, at n = 2000, of public implementations that run
the algorithms right: Hutchinson (doi:10.1080/03610918908812806), Hutch++ (arXiv:2010.09649), XTrace
and XNysTrace (arXiv:2301.07825). Two medians of 30 errors differ by chance, so a figure holds when

    ours <= reference * exp(2.33 * sqrt(2) * s),

s the bootstrap standard deviation of the logarithm of the median of our own 30 errors; the factor
sqrt(2) is for the reference, a median of 30 errors of the same law; 2.33 leaves one chance in a
hundred that an estimator as good as the reference is called short. Because that is a blunt test
(s is about 0.2, the factor about 2), all figures of an estimator are also pooled: the geometric
mean of ours / reference, held to the same rule, catches a loss of some 25 % that runs through the
table. Errors below 64 units of rounding hold whatever the reference, and are not pooled.

Overheads are CPU times on one thread over those of the bare products, in the same blocks.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from _problems import SPECTRA, dense, in_two_processes, triangles

import tracekit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Errors = NDArray[np.float64]

N, SEEDS, BUDGETS = 2000, 30, (12, 30, 60, 120, 300)
ROUNDING = 64 * float(np.finfo(np.float64).eps)
QUANTILE = 2.33
ESTIMATORS: dict[str, Callable[..., tracekit.Estimate]] = {
    "hutchinson": tracekit.hutchinson,
    "hutchpp": tracekit.hutchpp,
    "xtrace": tracekit.xtrace,
    "xnystrace": tracekit.xnystrace,
}
# Median relative errors at the five budgets.
REFERENCE = {
    ("i^-2", "hutchinson"): (0.18, 0.11, 0.070, 0.057, 0.032),
    ("i^-2", "hutchpp"): (0.032, 5.3e-3, 1.2e-3, 2.9e-4, 4.6e-5),
    ("i^-2", "xtrace"): (0.020, 3.0e-3, 6.9e-4, 1.9e-4, 2.6e-5),
    ("i^-2", "xnystrace"): (0.017, 2.1e-3, 5.3e-4, 1.3e-4, 2.0e-5),
    ("i^-0.5", "hutchinson"): (6.7e-3, 4.7e-3, 2.8e-3, 1.9e-3, 1.3e-3),
    ("i^-0.5", "xnystrace"): (5.3e-3, 3.1e-3, 2.2e-3, 1.5e-3, 8.4e-4),
    ("1+U(0,1)", "hutchinson"): (1.2e-3, 6.4e-4, 5.2e-4, 3.9e-4, 2.3e-4),
    ("0.7^i", "hutchpp"): (0.076, 6.3e-3, 1.4e-4, 9.8e-8, 3e-16),
    ("0.7^i", "xtrace"): (0.062, 1.5e-3, 5.4e-6, 9e-11, 3e-16),
    ("0.7^i", "xnystrace"): (0.021, 9.6e-5, 3.8e-9, 4e-15, 7e-16),
    ("triangles", "xtrace"): (None, None, 2e-2, None, 1.8e-3),
}
# Blocks of columns that each estimator multiplies, and what it may cost at m = 60 and 300.
BLOCKS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "hutchinson": lambda m: (m,),
    "hutchpp": lambda m: (m // 3, m // 3, m - 2 * (m // 3)),
    "xtrace": lambda m: (m // 2, m // 2),
    "xnystrace": lambda m: (m,),
}
OVERHEAD = {
    "hutchinson": {60: 1.3, 300: 1.3},
    "hutchpp": {60: 1.5, 300: 1.5},
    "xtrace": {60: 1.6, 300: 1.9},
    "xnystrace": {60: 1.6, 300: 2.3},
}
REPETITIONS = {60: 41, 300: 21}


class Cell(NamedTuple):
    """A median error beside its reference, and whether the two agree within noise."""

    median: float
    noise: float
    reference: float | None

    @property
    def holds(self) -> bool:
        """Whether the median is as small as the reference, but for the noise of both."""
        if self.reference is None or self.median <= ROUNDING:
            return True
        return self.median <= self.reference * math.exp(QUANTILE * math.sqrt(2) * self.noise)

    def __str__(self) -> str:
        """Ours, then the reference, then a mark where ours falls short."""
        beside = "   -   " if self.reference is None else f"{self.reference:7.1e}"
        return f"{self.median:7.1e} {beside}{' ' if self.holds else '!'}"


def problem(name: str) -> tuple[object, float]:
    """Return an operator and its trace, by name."""
    if name != "triangles":
        return dense(name, N)
    product, n, trace = triangles()
    return tracekit.LinearOperator((n, n), product, dtype=np.dtype(np.float64), xp=np), trace


def errors_on(name: str) -> dict[tuple[str, str, int], Errors]:
    """Return the relative errors of every estimator at every budget on one problem."""
    A, trace = problem(name)
    found = {}
    for estimator, estimate in ESTIMATORS.items():
        if (name, estimator) == ("triangles", "xnystrace"):
            continue  # indefinite
        for place, m in enumerate(BUDGETS):
            seeds = range(SEEDS * place, SEEDS * (place + 1))  # other seeds at each budget
            values = np.array([float(estimate(A, m, rng=seed)) for seed in seeds])
            found[name, estimator, m] = np.abs(values / trace - 1)
    return found


def cell(errors: Errors, reference: float | None) -> Cell:
    """Take the median of the errors, and the bootstrap noise of its logarithm."""
    draws = np.random.default_rng(0).integers(len(errors), size=(2000, len(errors)))
    medians = np.median(np.maximum(errors, 1e-18)[draws], axis=1)
    return Cell(float(np.median(errors)), float(np.std(np.log(medians))), reference)


def accuracy_table() -> list[bool]:
    """Print the median errors; say for each figure with a reference whether it holds."""
    rows: dict[tuple[str, str], list[Cell]] = {}
    for found in in_two_processes(errors_on, (*SPECTRA, "triangles")):
        for (name, estimator, m), errors in found.items():
            references = REFERENCE.get((name, estimator), (None,) * len(BUDGETS))
            at = references[BUDGETS.index(m)]
            rows.setdefault((name, estimator), []).append(cell(errors, at))
    print(f"Median relative error of {SEEDS} runs at n = {N}, ours beside the reference\n")
    print(f"{'spectrum':10}{'estimator':12}" + "".join(f"{f'm={m}':^18}" for m in BUDGETS))
    for (name, estimator), cells in rows.items():
        short = [f"m={m}" for m, c in zip(BUDGETS, cells, strict=True) if not c.holds]
        judged = any(c.reference is not None for c in cells)
        verdict = "SHORT at " + ", ".join(short) if short else "ok" if judged else ""
        print(f"{name:10}{estimator:12}" + "  ".join(map(str, cells)) + f"  {verdict}")
    judged = [c for cells in rows.values() for c in cells if c.reference is not None]
    return [c.holds for c in judged] + pooled_table(rows)


def pooled_table(rows: dict[tuple[str, str], list[Cell]]) -> list[bool]:
    """Print the geometric mean of ours / reference for each estimator, and judge it."""
    print("\nAll budgets and spectra pooled: geometric mean of ours / reference\n")
    verdicts = []
    for estimator in ESTIMATORS:
        cells = [
            c
            for (_, name), row in rows.items()
            for c in row
            if name == estimator and c.reference is not None and c.median > ROUNDING
        ]
        if not cells:
            continue
        mean = np.mean([math.log(c.median / c.reference) for c in cells])
        noise = math.sqrt(2 * sum(c.noise**2 for c in cells)) / len(cells)
        verdicts.append(bool(mean <= QUANTILE * noise))
        print(
            f"{estimator:12}{math.exp(mean):6.2f}  (times or by {math.exp(noise):.2f}; allowed "
            f"{math.exp(QUANTILE * noise):.2f})  {'ok' if verdicts[-1] else 'SHORT'}"
        )
    return verdicts


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call, of this process alone."""
    start = time.process_time()
    work()
    return time.process_time() - start


def overhead(estimator: str, A: NDArray[np.float64], m: int) -> tuple[float, float, float]:
    """Return the median ratio to the bare products and both medians, from interleaved runs."""
    draw = np.random.default_rng(0).standard_normal
    blocks = [draw((N, k)) for k in BLOCKS[estimator](m)]
    pairs = []
    for seed in range(-2, REPETITIONS[m]):  # the first two warm up
        bare = cpu_seconds(lambda: [A @ X for X in blocks])
        ours = cpu_seconds(lambda: ESTIMATORS[estimator](A, m, rng=abs(seed)))  # noqa: B023
        pairs.append((bare, ours))
    bare, ours = np.array(pairs[2:]).T
    return float(np.median(ours / bare)), float(np.median(bare)), float(np.median(ours))


def overhead_table() -> list[bool]:
    """Print CPU times over those of the bare products; say for each whether it holds."""
    A, _ = dense("i^-2", N)
    print(f"\nCPU time over the bare block products, dense {N} x {N} float64, one thread\n")
    print(f"{'estimator':12}{'m':>4}{'bare ms':>10}{'ours ms':>10}{'ratio':>8}{'target':>8}")
    verdicts = []
    for estimator, targets in OVERHEAD.items():
        for m, target in targets.items():
            ratio, bare, ours = overhead(estimator, A, m)
            verdicts.append(ratio <= target)
            print(
                f"{estimator:12}{m:4}{1e3 * bare:10.1f}{1e3 * ours:10.1f}{ratio:8.2f}"
                f"{target:8.1f}  {'ok' if verdicts[-1] else 'SHORT'}"
            )
    return verdicts


def main() -> None:
    """Print both tables, then how many figures hold."""
    start = time.perf_counter()
    verdicts = accuracy_table() + overhead_table()
    print(f"\n{time.perf_counter() - start:.0f} s")
    held = sum(verdicts)
    print(f"{len(verdicts)} figures: {held} hold, {len(verdicts) - held} fall short")


if __name__ == "__main__":
    main()
