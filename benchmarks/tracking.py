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

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import time
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from _problems import in_two_processes

import tracekit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Real = NDArray[np.float64]

SEEDS, CALLS, TARGET, FRESH, LEAST_COVERAGE = 20, 24, 0.015, 0.05, 0.89
SAMPLES, CLASSES, WIDTH, BATCH = 60, 10, 24, 100
CHECKPOINTS, EVERY, RATE = 61, 10, 0.3


# --- the run --------------------------------------------------------------------------------------


@cache
def factors() -> list[Real]:
    """Return square factors of the kernels at all checkpoints."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    X, Y = digits.data / 16, np.eye(CLASSES)[digits.target]
    seen = [np.flatnonzero(digits.target == c)[: SAMPLES // CLASSES] for c in range(CLASSES)]
    sample, rng = X[np.concatenate(seen)], np.random.default_rng(0)
    sizes = (X.shape[1], WIDTH, WIDTH, CLASSES)
    weights = [rng.standard_normal(shape) / shape[0] ** 0.5 for shape in pairwise(sizes)]
    found = []
    for step in range((CHECKPOINTS - 1) * EVERY + 1):
        if step % EVERY == 0:
            J = jacobian(weights, sample)
            found.append(np.linalg.qr(J.T, mode="r").T)  # the same kernel
        batch = rng.integers(0, len(X), BATCH)
        h = layers(weights, X[batch])
        p = np.exp(h[-1] - h[-1].max(axis=1, keepdims=True))
        G = (p / p.sum(axis=1, keepdims=True) - Y[batch]) / BATCH
        slopes = []
        for i in reversed(range(len(weights))):
            slopes.insert(0, h[i].T @ G)
            G = (G @ weights[i].T) * (1 - h[i] ** 2)
        weights = [W - RATE * slope for W, slope in zip(weights, slopes, strict=True)]
    return found


def layers(weights: list[Real], X: Real) -> list[Real]:
    """Return the inputs of all layers, and the outputs."""
    h = [X]
    for i, W in enumerate(weights, start=1):
        h.append(np.tanh(h[-1] @ W) if i < len(weights) else h[-1] @ W)
    return h


def jacobian(weights: list[Real], X: Real) -> Real:
    """Return the derivatives of all outputs by all weights."""
    h, parts = layers(weights, X), []
    G = np.broadcast_to(np.eye(CLASSES), (len(X), CLASSES, CLASSES))
    for i in reversed(range(len(weights))):
        parts.append(np.einsum("np,noq->nopq", h[i], G).reshape(len(X) * CLASSES, -1))
        G = (G @ weights[i].T) * (1 - h[i] ** 2)[:, None, :]
    return np.concatenate(parts, axis=1)


@cache
def truths() -> Real:
    """Return trace, norm and alignment with the start at all checkpoints."""
    kernels = [L @ L.T for L in factors()]
    first, size = kernels[0], np.linalg.norm(kernels[0])
    rows = []
    for A in kernels:
        norm = np.linalg.norm(A)
        rows.append((np.trace(A), norm, np.vdot(first, A) / (size * norm)))
    return np.array(rows)


# --- ways to follow it ----------------------------------------------------------------------------


class Run(NamedTuple):
    """Values and hits of 95 % intervals, (checkpoints, 3), NaN where there are none."""

    values: Real
    hits: Real
    calls: float
    honest: bool


def run(method: Callable[..., Any], seed: int) -> Run:
    """Give a method the kernels one after the other, with the first one beside, all counted."""
    (values, hits), honest = np.full((2, CHECKPOINTS, 3), np.nan), True
    follow, counters = method(seed), []
    start, counter = tracekit.counted(tracekit.gram(factors()[0]))
    counters.append(counter)
    for j, (L, truth) in enumerate(zip(factors(), truths(), strict=True)):
        A, counter = tracekit.counted(tracekit.gram(L))
        counters.append(counter)
        for i, x in enumerate(follow(A, start)):
            values[j, i] = float(x)
            if isinstance(x, tracekit.Estimate) and x.method == "tracker":
                honest &= x.num_matvecs == counter.total
            if isinstance(x, tracekit.Estimate):
                low, high = x.confidence_interval()
                hits[j, i] = float(low - 1e-9 <= truth[i] <= high + 1e-9)
    return Run(values, hits, sum(c.total for c in counters) / CHECKPOINTS, honest)


def tracked(m: int, seed: int, **options: Any) -> Callable[..., Any]:
    tracker = tracekit.Tracker(m, rng=seed, **options)
    return lambda A, _: tracker.update(A)[1:4]


def one_sided(m: int, seed: int) -> Callable[..., Any]:
    draws = seeds(seed)
    return lambda A, _: [tracekit.one_sided(A.factor, m, rng=next(draws))]


def one_sided_all(m: int, seed: int) -> Callable[..., Any]:
    """Trace and norm from m calls; the alignment from m others, half through the first kernel."""
    draws = seeds(seed)

    def follow(A: Any, start: Any) -> list[Any]:
        summary = tracekit.one_sided_summary(A.factor, m, rng=next(draws))
        cosine = tracekit.one_sided_alignment(start.factor, A.factor, m, rng=next(draws))
        return [summary.trace, summary.frobenius_norm, cosine]

    return follow


def seeds(seed: int) -> Iterator[int]:
    """Return seeds of their own for all checkpoints of a run."""
    return iter(range(2 * seed * CHECKPOINTS, 2 * (seed + 1) * CHECKPOINTS))


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


class Row(NamedTuple):
    errors: Real  # of trace, norm, alignment
    coverage: Real
    calls: float
    honest: bool


def measure(name: str) -> tuple[str, Row]:
    """Run one method with all seeds."""
    runs = [run(METHODS[name], seed) for seed in range(SEEDS)]
    off = np.array([found.values for found in runs]) - truths()
    off[:, :, :2] /= truths()[:, :2]
    errors = np.sqrt(np.mean(off**2, axis=(0, 1)))
    hits = np.mean([found.hits for found in runs], axis=(0, 1))
    calls = float(np.mean([found.calls for found in runs]))
    return name, Row(errors, hits, calls, all(found.honest for found in runs))


def table() -> dict[str, Row]:
    """Print and return the errors of all methods."""
    t, f, cosine = truths()[-1] / truths()[0]
    print(f"{CHECKPOINTS} checkpoints, {SEEDS} seeds: trace x {t:.1f}, norm x {f:.1f}, ", end="")
    print(f"alignment {cosine:.2f} at the end\n")
    heads = ("calls", "trace", "norm", "alignment", "covers", "norm", "alignment")
    print(f"{'RMS error':30}" + "".join(f"{head:>10}" for head in heads))
    rows = {}
    for name, row in in_two_processes(measure, METHODS):
        rows[name] = row
        cells = [f"{row.calls:.1f}", *(f"{x:.2e}" for x in row.errors)]
        cells += [f"{x:.3f}" for x in row.coverage]
        print(f"{name:30}" + "".join(f"{cell.replace('nan', '-'):>10}" for cell in cells))
    return rows


def verdicts(rows: dict[str, Row]) -> Iterator[bool]:
    """Print one row for each target."""
    ours = rows["Tracker(24)"]
    checks = (
        ("one-sided, 24: at least 5 % on this run", rows["one-sided, 24"].errors[0], FRESH, False),
        ("one-sided, 32: at least 5 % on this run", rows["one-sided, 32"].errors[0], FRESH, False),
        ("Tracker(24): at most 1.5 % of the trace", ours.errors[0], TARGET, True),
        ("Tracker(24): 95 % band of the trace covers", ours.coverage[0], LEAST_COVERAGE, False),
        ("Tracker(24): 95 % band of the norm covers", ours.coverage[1], LEAST_COVERAGE, False),
        ("Tracker(24): 95 % band of the alignment covers", ours.coverage[2], LEAST_COVERAGE, False),
        ("Tracker: what it claims is what it spent", float(ours.honest), 1.0, False),
    )
    print()
    for label, value, bound, below in checks:
        holds = value <= bound if below else value >= bound
        print(f"{label:50}{value:9.4f}{'<=' if below else '>=':>4}{bound:8.3f}  "
              f"{'PASS' if holds else 'FAIL'}")  # fmt: skip
        yield bool(holds)


def main() -> None:
    """Print the table, then a row for each target."""
    start = time.perf_counter()
    truths()  # before there are processes that need them
    held = list(verdicts(table()))
    print(f"\n{time.perf_counter() - start:.0f} s")
    print(f"{len(held)} rows: {sum(held)} PASS, {len(held) - sum(held)} FAIL")


if __name__ == "__main__":
    main()
