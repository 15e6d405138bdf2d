"""Errors along a training run: tracking a kernel from few products a checkpoint, and other ways.

A tanh network of three layers learns scikit-learn's handwritten digits by stochastic gradient
descent. At 61 checkpoints, ten steps apart, its exact Jacobian on 60 of the digits, ten outputs
each, gives the kernel of dimension 600: the truth that errors are measured from. Errors are root
mean squares over all checkpoints and seeds, of the trace and norm relative ones, of the alignment
with the first kernel absolute ones. A call is one column through J or J^T; "calls" is the mean over
checkpoints of what was counted, anchors and all. Beside `tracekit.Tracker`:

  one-sided     `tracekit.one_sided`, anew at every checkpoint; "24 + 24": `one_sided_summary` for
                trace and norm, and `one_sided_alignment`, half of its calls through the first J;
  Hutch++       as Hazelden (2025), arXiv:2511.10796, publishes it, with that paper's allocation;
                a product with J J^T is two calls;
  DeltaShift    Dharangutte, Musco (2021), arXiv:2106.03521: half of the calls through J^T, half
                through that of the checkpoint before, whose parameters it needs.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tracekit

from ..measure import in_two_processes
from ..problems import CHECKPOINTS, training
from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Real = NDArray[np.float64]

SEEDS, CALLS, TARGET, FRESH, LEAST_COVERAGE = seeds(20), 24, 0.015, 0.05, 0.89


@cache
def truths() -> Real:
    """Return trace, norm and alignment with the start at all checkpoints."""
    kernels = [L @ L.T for L in training()]
    first, size = kernels[0], np.linalg.norm(kernels[0])
    rows = []
    for A in kernels:
        norm = np.linalg.norm(A)
        rows.append((np.trace(A), norm, np.vdot(first, A) / (size * norm)))
    return np.array(rows)


# --- ways to follow it ----------------------------------------------------------------------------


def tracked(m: int, seed: int, **options: Any) -> Callable[..., Any]:
    tracker = tracekit.Tracker(m, rng=seed, **options)
    return lambda A, _: tracker.update(A)[1:4]


def one_sided(m: int, seed: int) -> Callable[..., Any]:
    draws = seeds_of(seed)
    return lambda A, _: [tracekit.one_sided(A.factor, m, rng=next(draws))]


def one_sided_all(m: int, seed: int) -> Callable[..., Any]:
    """Trace and norm from m calls; the alignment from m others, half through the first kernel."""
    draws = seeds_of(seed)

    def follow(A: Any, start: Any) -> list[Any]:
        summary = tracekit.one_sided_summary(A.factor, m, rng=next(draws))
        cosine = tracekit.one_sided_alignment(start.factor, A.factor, m, rng=next(draws))
        return [summary.trace, summary.frobenius_norm, cosine]

    return follow


def seeds_of(run: int) -> Iterator[int]:
    """Return seeds of their own for all checkpoints of a run."""
    return iter(range(2 * run * CHECKPOINTS, 2 * (run + 1) * CHECKPOINTS))


def hutchpp(calls: int, seed: int) -> Callable[..., Any]:
    """Of a budget m the paper's code sketches m / 6 columns and tests half of what is left."""
    rng, products = np.random.default_rng(seed), calls // 2

    def split(m: int) -> tuple[int, int]:
        q = m // 6
        return q + (m - q) % 2, (m - q) // 2

    k, s = max(pair for pair in map(split, range(8, 99)) if 2 * pair[0] + pair[1] <= products)

    def follow(A: Any, _: Any) -> list[float]:
        S, T = (rng.choice([-1.0, 1.0], (A.shape[0], width)) for width in (k, s))
        Q = np.linalg.qr(A @ S)[0]
        T = T - Q @ (Q.T @ T)
        return [np.sum(Q * (A @ Q)) + np.sum(T * (A @ T)) / s]

    return follow


def delta_shift(calls: int, seed: int) -> Callable[..., Any]:
    rng, half = np.random.default_rng(seed), calls // 2
    before, t, v = None, 0.0, 0.0

    def follow(A: Any, _: Any) -> list[float]:
        nonlocal before, t, v
        X = rng.choice([-1.0, 1.0], (A.shape[0], calls if before is None else half))
        a = A.quad(X)
        if before is None:
            t, v = np.mean(a), np.var(a, ddof=1) / calls
        else:
            b = before.quad(X)
            (s_aa, s_ab), (_, s_bb) = np.cov(a, b)
            c = (s_ab / half) / (v + s_bb / half)
            t = c * t + np.mean(a - c * b)
            v = c * c * v + (s_aa - 2 * c * s_ab + c * c * s_bb) / half
        before = A
        return [t]

    return follow


METHODS: dict[str, Callable[[int], Any]] = {
    "Tracker(24)": partial(tracked, CALLS),
    "Tracker(24, every=20, rtol=1)": partial(tracked, CALLS, every=20, rtol=1.0),
    "Tracker(16, anchor_matvecs=32)": partial(tracked, 16, anchor_matvecs=32),
    "one-sided, 24": partial(one_sided, CALLS),
    "one-sided, 32": partial(one_sided, 32),
    "one-sided, 24 + 24": partial(one_sided_all, CALLS),
    "Hutch++, 24": partial(hutchpp, CALLS),
    "DeltaShift, 12 + 12": partial(delta_shift, CALLS),
}


# --- what comes of it -----------------------------------------------------------------------------


class Run(NamedTuple):
    """Values and hits of 95 % intervals, (checkpoints, 3), NaN where there are none."""

    values: Real
    hits: Real
    calls: float
    honest: bool


class Found(NamedTuple):
    """Of all seeds: errors of trace, norm and alignment, coverages, calls, and honest counts."""

    errors: Real
    coverage: Real
    calls: float
    honest: bool


def run(method: Callable[..., Any], seed: int) -> Run:
    """Give a method the kernels one after the other, with the first one beside, all counted."""
    (values, hits), honest = np.full((2, CHECKPOINTS, 3), np.nan), True
    start, counter = tracekit.counted(tracekit.gram(training()[0]))
    follow, counters = method(seed), [counter]
    for j, (L, truth) in enumerate(zip(training(), truths(), strict=True)):
        A, counter = tracekit.counted(tracekit.gram(L))
        counters.append(counter)
        for i, x in enumerate(follow(A, start)):
            values[j, i] = float(x)
            if isinstance(x, tracekit.Estimate):
                honest &= x.method != "tracker" or x.num_matvecs == counter.total
                low, high = x.confidence_interval()
                hits[j, i] = float(low - 1e-9 <= truth[i] <= high + 1e-9)
    return Run(values, hits, sum(c.total for c in counters) / CHECKPOINTS, honest)


def found_of(name: str) -> Found:
    """Run one method with all seeds."""
    runs = [run(METHODS[name], seed) for seed in range(SEEDS)]
    off = np.array([r.values for r in runs]) - truths()
    off[:, :, :2] /= truths()[:, :2]
    errors = np.sqrt(np.mean(off**2, axis=(0, 1)))
    hits = np.mean([r.hits for r in runs], axis=(0, 1))
    calls = float(np.mean([r.calls for r in runs]))
    return Found(errors, hits, calls, all(r.honest for r in runs))


def tables() -> Iterator[Table]:
    """Errors of all methods, and the targets."""
    found: dict[str, Found] = {}
    t, f, cosine = truths()[-1] / truths()[0]  # before there are processes that need them
    yield Table(
        f"{CHECKPOINTS} checkpoints, {SEEDS} seeds: trace x {t:.1f}, norm x {f:.1f}, alignment "
        f"{cosine:.2f} at the end; errors and coverages",
        {"method": "<30", "calls": ">8.1f", "trace": ">10.2e", "norm": ">10.2e",
         "alignment": ">10.2e", "covers": ">10.3f", "norm ": ">10.3f", "alignment ": ">11.3f"},
        rows(found),
    )  # fmt: skip
    yield Table("Targets", FIGURES, targets(found))


def rows(found: dict[str, Found]) -> Iterator[Row]:
    """Tell the errors of all methods; hand them on."""
    for name, one in zip(METHODS, in_two_processes(found_of, METHODS), strict=True):
        found[name] = one
        yield Row((name, one.calls, *map(float, one.errors), *map(float, one.coverage)))


def targets(found: dict[str, Found]) -> Iterator[Row]:
    """Judge the tracker, and that the run is as hard as it is meant to be."""
    ours = found["Tracker(24)"]
    for name in ("one-sided, 24", "one-sided, 32"):
        yield figure(f"{name}: at least 5 % on this run", found[name].errors[0], least=FRESH)
    yield figure("Tracker(24): at most 1.5 % of the trace", ours.errors[0], most=TARGET)
    for name, covered in zip(("trace", "norm", "alignment"), ours.coverage, strict=True):
        label = f"Tracker(24): 95 % band of the {name} covers"
        yield figure(label, covered, least=LEAST_COVERAGE)
    yield figure("Tracker: what it claims is what it spent", ours.honest, least=1)
