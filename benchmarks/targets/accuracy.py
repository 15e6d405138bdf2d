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

from typing import TYPE_CHECKING

import numpy as np

import tracekit

from ..measure import in_turn, in_two_processes
from ..peers import judgement
from ..problems import SPECTRA, dense, triangles
from .table import Row, Table, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..peers.judgement import Cell

    Cells = dict[tuple[str, str, int], Cell]

N, SEEDS, BUDGETS = 2000, seeds(30), (12, 30, 60, 120, 300)
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
REPETITIONS = {60: seeds(41), 300: seeds(21)}


def tables() -> Iterator[Table]:
    """Errors, the same pooled, and overheads."""
    found: Cells = {}
    yield Table(
        f"Median relative error of {SEEDS} runs at n = {N}, and the reference",
        {"spectrum": "<10", "estimator": "<12", "m": ">4", "ours": ">10.1e", "reference": ">11.1e"},
        medians(found),
    )
    yield Table(
        "All budgets and spectra pooled: geometric mean of ours / reference",
        {"estimator": "<12", "mean": ">8.2f", "allowed": ">9.2f"},
        pooled(found),
    )
    yield Table(
        f"CPU time over the bare block products, dense {N} x {N} float64, one thread",
        {"estimator": "<12", "m": ">4", "bare ms": ">10.1f", "ours ms": ">10.1f", "ratio": ">8.2f",
         "target": ">8.1f"},
        overheads(),
    )  # fmt: skip


def reference(key: tuple[str, str, int], ours: Cell) -> Cell | None:
    """Return the reference of a figure, if it has one, with the noise of ours."""
    medians = REFERENCE.get(key[:2], (None,) * len(BUDGETS))
    median = medians[BUDGETS.index(key[2])]
    return None if median is None else ours._replace(median=median)


def medians(found: Cells) -> Iterator[Row]:
    """Run everything, hand it on, and judge what has a reference."""
    for cells in in_two_processes(cells_of, (*SPECTRA, "triangles")):
        found |= cells
        for key, ours in cells.items():
            theirs = reference(key, ours)
            holds = {} if theirs is None else {"": judgement.holds(ours, theirs)}
            yield Row((*key, ours.median, theirs and theirs.median), holds)


def cells_of(name: str) -> Cells:
    """Return the median errors of every estimator at every budget on one problem."""
    A, trace = problem(name)
    found = {}
    for estimator, estimate in ESTIMATORS.items():
        if (name, estimator) == ("triangles", "xnystrace"):
            continue  # indefinite
        for place, m in enumerate(BUDGETS):
            start = 30 * place  # other seeds at each budget
            values = [float(estimate(A, m, rng=seed)) for seed in range(start, start + SEEDS)]
            errors = np.abs(np.array(values) / trace - 1)
            found[name, estimator, m] = judgement.cell(errors, m, draws=2000)
    return found


def problem(name: str) -> tuple[object, float]:
    """Return an operator and its trace, by name."""
    if name != "triangles":
        return dense(name, N)
    product, n, trace = triangles()
    return tracekit.LinearOperator((n, n), product, dtype=np.dtype(np.float64), xp=np), trace


def pooled(found: Cells) -> Iterator[Row]:
    """Judge the geometric means over all that has a reference and is above rounding."""
    for estimator in ESTIMATORS:
        both = [
            (ours, theirs)
            for key, ours in found.items()
            if key[1] == estimator and ours.median > judgement.ROUNDING
            if (theirs := reference(key, ours)) is not None
        ]
        if both:
            mean, allowed = judgement.pooled(both)
            yield Row((estimator, mean, allowed), {"": mean <= allowed})


def overheads() -> Iterator[Row]:
    """Judge the median ratios of interleaved runs."""
    A, _ = dense("i^-2", N)
    draw = np.random.default_rng(0).standard_normal
    for estimator, targets in OVERHEAD.items():
        for m, target in targets.items():
            blocks = [draw((N, k)) for k in BLOCKS[estimator](m)]

            def bare(blocks: list[np.ndarray] = blocks) -> list[np.ndarray]:
                return [A @ X for X in blocks]

            def ours(seed: int, estimator: str = estimator, m: int = m) -> tracekit.Estimate:
                return ESTIMATORS[estimator](A, m, rng=seed)

            in_turn(ours, bare, 2)  # warms up
            mine, plain, ratio = in_turn(ours, bare, REPETITIONS[m])
            values = (estimator, m, 1e3 * plain, 1e3 * mine, ratio, target)
            yield Row(values, {"": ratio <= target})
