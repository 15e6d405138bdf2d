"""Coverage of the 95 % intervals, tolerances kept, and what the automatic choice costs.

Every matrix is dense, n = 1000, in one random eigenbasis; 200 seeds for each row.

1. Coverage: the share of intervals that hold the trace. Width: the mean width of the intervals
   over the honest one, which is twice the 95th percentile of the absolute errors seen (the
   narrowest interval of fixed width, centred on the estimates, that covers 95 % of the runs).
2. Tolerances: the share of `trace(A, rtol=...)` within rtol, its median products, and their ratio
   to an oracle's: the smallest budget, from 4 products up in steps of 10 %, at which the same
   method with that budget fixed is within rtol in 95 % of the runs on half the seeds; n, where no
   budget below n is. A run that ends exact has spent its sketch and then n. Without `psd` the
   method is both XTrace and the automatic choice itself, whichever needs less.
3. Root mean square error of `trace(A, max_matvecs=m)` over that of `hutchinson(A, m)`.

Estimates that differ from the trace by rounding, n units of it, count as covered, and
rows whose honest width is no more than that have no width to judge.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import math
import time
from collections import Counter
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from _problems import SPECTRA, dense, factor, in_two_processes

import tracekit
from tracekit import probes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

N, SEEDS, LEVEL = 1000, 200, 0.95
BUDGETS, SMALL_TO_LARGE = (30, 90), (12, 30, 90, 270)
TOLERANCES = (5e-2, 1e-2, 1e-3)
ROUNDING = N * float(np.finfo(np.float64).eps)
LEAST, LEAST_ON_AVERAGE, WIDEST, DEAREST, WORST = 0.89, 0.93, 2.5, 3.0, 1.8
GRID = sorted({round(4 * 1.1**i) for i in range(59)} & set(range(N)))


def fixed(**hints: bool) -> Callable[..., tracekit.Estimate]:
    """Return the automatic choice for a budget that is spent whole."""
    return lambda A, m, rng: tracekit.trace(A, rtol=0.0, max_matvecs=m, rng=rng, **hints)


ESTIMATORS: dict[str, Callable[..., tracekit.Estimate]] = {
    "hutchinson signs": tracekit.hutchinson,
    "hutchinson orthogonal": partial(tracekit.hutchinson, probes=probes.orthogonal),
    "hutchinson hadamard": partial(tracekit.hutchinson, probes=probes.hadamard),
    "hutchpp": tracekit.hutchpp,
    "xtrace": tracekit.xtrace,
    "xnystrace": tracekit.xnystrace,
    "one_sided": tracekit.one_sided,
    "trace": fixed(),
    "trace psd": fixed(psd=True),
}
COMPARED = ("hutchinson signs", "trace", "trace psd")


class Runs(NamedTuple):
    """What the runs of one estimator at one budget gave, relative to the trace."""

    errors: NDArray[np.float64]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]
    matvecs: NDArray[np.int64]
    methods: tuple[str, ...]

    @property
    def rms(self) -> float:
        """Root mean square error."""
        return float(np.sqrt(np.mean(self.errors**2)))

    @property
    def coverage(self) -> float:
        """Share of intervals that hold the trace, but for rounding."""
        return float(np.mean((self.lows <= ROUNDING) & (self.highs >= -ROUNDING)))

    @property
    def width(self) -> float:
        """Mean width over the honest one; NaN where the runs are exact."""
        honest = 2 * float(np.quantile(np.abs(self.errors), LEVEL))
        return float(np.mean(self.highs - self.lows)) / honest if honest > ROUNDING else math.nan


class Row(NamedTuple):
    """One printed line, and whether it holds."""

    text: str
    holds: bool

    def show(self) -> bool:
        """Print the line with its verdict, and return the verdict."""
        print(f"{self.text}  {'ok' if self.holds else 'SHORT'}")
        return self.holds


def runs(name: str, estimate: Callable[..., tracekit.Estimate], of_factor: bool = False) -> Runs:
    """Run one estimate on every seed."""
    M, trace = (factor if of_factor else dense)(name, N)
    A = tracekit.LinearOperator(M.shape, lambda X: M @ X, lambda X: M.T @ X)  # nothing to read off
    estimates = [estimate(A, rng=seed) for seed in range(SEEDS)]
    ends = np.array([[float(end) for end in e.confidence_interval(LEVEL)] for e in estimates])
    lows, highs = (ends / trace - 1).T
    return Runs(
        np.array([float(e) for e in estimates]) / trace - 1,
        lows,
        highs,
        np.array([e.num_matvecs for e in estimates]),
        tuple(e.method for e in estimates),
    )


def fixed_on(name: str) -> dict[tuple[str, str, int], Runs]:
    """Run the estimators at every fixed budget that is asked of them, on one spectrum."""
    found = {}
    for estimator, estimate in ESTIMATORS.items():
        for m in SMALL_TO_LARGE if estimator in COMPARED else BUDGETS:
            run = partial(fixed_budget, estimate, m)
            found[name, estimator, m] = runs(name, run, estimator == "one_sided")
    return found


def fixed_budget(
    estimate: Callable[..., tracekit.Estimate], m: int, A: object, rng: int
) -> tracekit.Estimate:
    """Call an estimator with its budget."""
    return estimate(A, m, rng=rng)


def coverage_table() -> tuple[list[bool], dict[tuple[str, str, int], Runs]]:
    """Print coverage and width, and whether each holds; hand on the runs."""
    print(f"1. {SEEDS} intervals at {LEVEL:.0%}, n = {N}: coverage >= {LEAST}, width <= {WIDEST}\n")
    print(f"{'spectrum':10}{'estimator':24}{'m':>3}{'rms error':>11}{'coverage':>10}{'width':>7}")
    verdicts, coverages = [], []
    everything: dict[tuple[str, str, int], Runs] = {}
    for found in in_two_processes(fixed_on, SPECTRA):
        everything |= found
        for (name, estimator, m), r in found.items():
            if m not in BUDGETS:
                continue
            width = f"{r.width:7.2f}" if r.width == r.width else "      -"
            text = f"{name:10}{estimator:24}{m:3}{r.rms:11.1e}{r.coverage:10.3f}{width}"
            holds = r.coverage >= LEAST and not r.width > WIDEST
            verdicts.append(Row(text, holds).show())
            coverages.append((estimator, r.coverage))
    for estimator in ESTIMATORS:
        mean = float(np.mean([c for e, c in coverages if e == estimator]))
        verdicts.append(
            Row(f"average of {estimator:37}{mean:10.3f}", mean >= LEAST_ON_AVERAGE).show()
        )
    return verdicts, everything


def methods_of(r: Runs, psd: bool | None) -> tuple[str, ...]:
    """Name what the oracle fixes the budget of: the method chosen most, and the choice itself."""
    chosen = Counter(method for method in r.methods if method != "exact_trace")
    default = "xnystrace" if psd else "xtrace"
    method = chosen.most_common(1)[0][0] if chosen else default
    return ("hutchinson signs" if method == "hutchinson" else method, *(() if psd else ("trace",)))


@cache
def error(name: str, estimator: str, m: int, seed: int) -> float:
    """Relative error of one run; kept, because every tolerance asks again."""
    A, trace = (factor if estimator == "one_sided" else dense)(name, N)
    return abs(float(ESTIMATORS[estimator](A, m, rng=seed)) / trace - 1)


def suffices(name: str, estimator: str, m: int, rtol: float) -> bool:
    """Whether a budget is within rtol in 95 % of half the runs; stops when that is decided."""
    failures, allowed = 0, SEEDS // 2 - math.ceil(LEVEL * SEEDS / 2)
    for seed in range(SEEDS // 2):
        failures += error(name, estimator, m, seed) > rtol
        if failures > allowed:
            return False
    return True


def oracle(name: str, estimators: tuple[str, ...], rtol: float) -> int:
    """Find the smallest budget on the grid that suffices for one of them; n if none does."""
    above = len(GRID)
    for estimator in estimators:
        below = -1
        while above - below > 1:
            middle = (below + above) // 2
            if suffices(name, estimator, GRID[middle], rtol):
                above = middle
            else:
                below = middle
    return GRID[above] if above < len(GRID) else N


def tolerance_on(name: str, psd: bool | None) -> list[Row]:
    """Run the automatic choice to each tolerance on one spectrum, beside its oracle."""
    rows = []
    for rtol in TOLERANCES:
        r = runs(name, lambda A, rng: tracekit.trace(A, rtol=rtol, rng=rng, psd=psd))  # noqa: B023
        best = oracle(name, methods_of(r, psd), rtol)
        share, spent = float(np.mean(np.abs(r.errors) <= rtol)), float(np.median(r.matvecs))
        used = ", ".join(f"{k} {v}" for k, v in Counter(r.methods).most_common())
        text = f"{name:10}{psd!s:6}{rtol:7.0e}{share:8.3f}{spent:9.0f}{best:8}{spent / best:7.2f}"
        rows.append(Row(f"{text}  {used:40}", share >= LEVEL and spent <= DEAREST * best))
    return rows


def tolerance_table() -> list[bool]:
    """Print shares within tolerance and products beside the oracle's, and whether each holds."""
    print(f"\n2. trace(A, rtol): share >= {LEVEL}, median products <= {DEAREST} x the oracle's\n")
    print(
        f"{'spectrum':10}{'psd':6}{'rtol':>7}{'share':>8}{'products':>9}{'oracle':>8}{'ratio':>7}"
    )
    cases = [(name, psd) for name in SPECTRA for psd in (True, None)]
    return [
        row.show()
        for rows in in_two_processes(tolerance_on, *zip(*cases, strict=True))
        for row in rows
    ]


def comparison_table(found: dict[tuple[str, str, int], Runs]) -> list[bool]:
    """Print the errors of the automatic choice over Hutchinson's, and whether each holds."""
    print(f"\n3. rms error of trace(A, max_matvecs=m) <= {WORST} x that of hutchinson(A, m)\n")
    print(f"{'spectrum':10}{'call':12}{'m':>4}{'trace':>11}{'hutchinson':>11}{'ratio':>9}")
    verdicts = []
    for (name, estimator, m), r in found.items():
        if estimator not in ("trace", "trace psd"):
            continue
        plain = found[name, "hutchinson signs", m]
        text = f"{name:10}{estimator:12}{m:4}{r.rms:11.1e}{plain.rms:11.1e}{r.rms / plain.rms:9.1e}"
        used = Counter(r.methods).most_common(1)[0][0]
        verdicts.append(Row(f"{text}  {used:12}", r.rms <= WORST * plain.rms).show())
    return verdicts


def main() -> None:
    """Print the three tables, then how many rows hold."""
    start = time.perf_counter()
    verdicts, found = coverage_table()
    verdicts += tolerance_table()
    verdicts += comparison_table(found)
    print(f"\n{time.perf_counter() - start:.0f} s")
    held = sum(verdicts)
    print(f"{len(verdicts)} rows: {held} hold, {len(verdicts) - held} fall short")


if __name__ == "__main__":
    main()
