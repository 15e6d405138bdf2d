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
3. Root mean square error of `trace(A, num_matvecs=m)` over that of `hutchinson(A, m)`.

Estimates that differ from the trace by rounding, n units of it, count as covered, and
rows whose honest width is no more than that have no width to judge.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tracekit
from tracekit import probes

from ..measure import in_two_processes
from ..problems import SPECTRA, dense, factor
from .table import Row, Table, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Found = dict[tuple[str, str, int], "Runs"]

N, SEEDS, LEVEL = 1000, seeds(200), 0.95
BUDGETS, SMALL_TO_LARGE = (30, 90), (12, 30, 90, 270)
TOLERANCES = (5e-2, 1e-2, 1e-3)
ROUNDING = N * float(np.finfo(np.float64).eps)
LEAST, LEAST_ON_AVERAGE, WIDEST, DEAREST, WORST = 0.89, 0.93, 2.5, 3.0, 1.8
GRID = sorted({round(4 * 1.1**i) for i in range(59)} & set(range(N)))


def fixed(**hints: bool) -> Callable[..., tracekit.Estimate]:
    """Return the automatic choice for a budget that is spent whole."""
    return lambda A, m, rng: tracekit.trace(A, rtol=0.0, num_matvecs=m, rng=rng, **hints)


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
CASES = tuple(itertools.product(SPECTRA, (True, None)))  # spectrum, psd
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


def products(name: str, of_factor: bool) -> tuple[tracekit.LinearOperator, float]:
    """Hide a matrix behind its products, so that nothing is read off; with its trace."""
    M, trace = (factor if of_factor else dense)(name, N)
    return tracekit.LinearOperator(M.shape, lambda X: M @ X, lambda X: M.T @ X), trace


def runs(name: str, estimate: Callable[..., tracekit.Estimate], of_factor: bool = False) -> Runs:
    """Run one estimate on every seed."""
    A, trace = products(name, of_factor)
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


def tables() -> Iterator[Table]:
    """Intervals, tolerances, and the automatic choice beside Hutchinson."""
    found: Found = {}
    head = {"spectrum": "<10", "estimator": "<24"}
    yield Table(
        f"1. {SEEDS} intervals at {LEVEL:.0%}, n = {N}: coverage >= {LEAST}, on average "
        f">= {LEAST_ON_AVERAGE}; width <= {WIDEST}",
        head | {"m": ">4", "rms error": ">11.1e", "coverage": ">10.3f", "width": ">7.2f"},
        intervals(found),
    )
    yield Table(
        f"2. trace(A, rtol): share >= {LEVEL}, median products <= {DEAREST} x the oracle's",
        {"spectrum": "<10", "psd": "<6", "rtol": ">7.0e", "share": ">8.3f", "products": ">9.0f",
         "oracle": ">8", "ratio": ">7.2f", "  methods": "<40"},
        itertools.chain.from_iterable(in_two_processes(tolerances_on, *zip(*CASES, strict=True))),
    )  # fmt: skip
    yield Table(
        f"3. rms error of trace(A, num_matvecs=m) <= {WORST} x that of hutchinson(A, m)",
        head | {"m": ">4", "trace": ">11.1e", "hutchinson": ">11.1e", "ratio": ">9.1e",
         "  chosen": "<14"},
        comparisons(found),
    )  # fmt: skip


# --- 1. intervals ---------------------------------------------------------------------------------


def intervals(found: Found) -> Iterator[Row]:
    """Judge coverage and width, and the average coverage of each estimator; hand on the runs."""
    coverages: dict[str, list[float]] = {estimator: [] for estimator in ESTIMATORS}
    for runs_here in in_two_processes(fixed_on, SPECTRA):
        found |= runs_here
        for (name, estimator, m), r in runs_here.items():
            if m in BUDGETS:
                holds = {"coverage": r.coverage >= LEAST, "width": not r.width > WIDEST}
                yield Row((name, estimator, m, r.rms, r.coverage, r.width), holds)
                coverages[estimator].append(r.coverage)
    for estimator, all_of_it in coverages.items():
        mean = float(np.mean(all_of_it))
        row = ("average", estimator, None, None, mean, None)
        yield Row(row, {"average": mean >= LEAST_ON_AVERAGE})


def fixed_on(name: str) -> Found:
    """Run the estimators at every fixed budget that is asked of them, on one spectrum."""
    found = {}
    for estimator, estimate in ESTIMATORS.items():
        for m in SMALL_TO_LARGE if estimator in COMPARED else BUDGETS:

            def run(A: object, rng: int, estimate: Any = estimate, m: int = m) -> tracekit.Estimate:
                return estimate(A, m, rng=rng)

            found[name, estimator, m] = runs(name, run, estimator == "one_sided")
    return found


# --- 2. tolerances --------------------------------------------------------------------------------


def tolerances_on(name: str, psd: bool | None) -> list[Row]:
    """Run the automatic choice to each tolerance on one spectrum, beside its oracle."""
    rows = []
    for rtol in TOLERANCES:
        r = runs(name, partial(tracekit.trace, rtol=rtol, psd=psd))
        best = oracle(name, methods_of(r, psd), rtol)
        share, spent = float(np.mean(np.abs(r.errors) <= rtol)), float(np.median(r.matvecs))
        used = ", ".join(f"{k} {v}" for k, v in Counter(r.methods).most_common())
        holds = {"share": share >= LEVEL, "products": spent <= DEAREST * best}
        values = (name, str(psd), rtol, share, spent, best, spent / best, f"  {used}")
        rows.append(Row(values, holds))
    return rows


def methods_of(r: Runs, psd: bool | None) -> tuple[str, ...]:
    """Name what the oracle fixes the budget of: the method chosen most, and the choice itself."""
    chosen = Counter(method for method in r.methods if method != "exact_trace")
    default = "xnystrace" if psd else "xtrace"
    method = chosen.most_common(1)[0][0] if chosen else default
    return ("hutchinson signs" if method == "hutchinson" else method, *(() if psd else ("trace",)))


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


def suffices(name: str, estimator: str, m: int, rtol: float) -> bool:
    """Whether a budget is within rtol in 95 % of half the runs; stops when that is decided."""
    failures, allowed = 0, SEEDS // 2 - math.ceil(LEVEL * SEEDS / 2)
    for seed in range(SEEDS // 2):
        failures += error(name, estimator, m, seed) > rtol
        if failures > allowed:
            return False
    return True


@cache
def error(name: str, estimator: str, m: int, seed: int) -> float:
    """Relative error of one run; kept, because every tolerance asks again."""
    A, trace = products(name, estimator == "one_sided")
    return abs(float(ESTIMATORS[estimator](A, m, rng=seed)) / trace - 1)


# --- 3. the automatic choice ----------------------------------------------------------------------


def comparisons(found: Found) -> Iterator[Row]:
    """Judge the errors of the automatic choice over Hutchinson's."""
    for (name, estimator, m), r in found.items():
        if estimator in ("trace", "trace psd"):
            plain = found[name, "hutchinson signs", m].rms
            used = Counter(r.methods).most_common(1)[0][0]
            values = (name, estimator, m, r.rms, plain, r.rms / plain, f"  {used}")
            yield Row(values, {"": r.rms <= WORST * plain})
