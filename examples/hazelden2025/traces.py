"""The trace of one network's kernel, by all estimators: what the MLP and the GRU have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import tracekit as tk
import tracekit_ntk as tkn
from examples.hazelden2025 import algorithms, figures, references
from examples.hazelden2025.networks import Problem
from examples.hazelden2025.study import (
    Curve,
    Method,
    Results,
    Row,
    Target,
    error_text,
    measure,
    print_curves,
    print_results,
    seconds_text,
    timed,
)

ALGORITHM_1, REVERSE, FORWARD = (
    "Hutch++ (Algorithm 1)", "reverse (Algorithm 2)", "forward (Algorithm 2)"
)  # fmt: skip
SIGNS, HADAMARD = "per sample, signs", "per sample, Hadamard"
LADDER, ONE_SIDED = "xnystrace", "one_sided"
PUBLISHED = ALGORITHM_1, REVERSE, FORWARD


@dataclass(frozen=True)
class TraceStudy:
    """Curves of all estimators on one network, and what the exact trace costs in seconds."""

    problem: Problem
    exact: float
    curves: Mapping[str, Curve]
    by_products: float
    by_factors: float

    def best(self, calls: int) -> str:
        """What is most accurate of ours for no more AD calls, as text for a table."""
        found = [
            (curve.medians[i], name, count, curve.times[i])
            for name, curve in self.curves.items()
            if name not in PUBLISHED
            for i, count in enumerate(curve.calls)
            if count <= calls
        ]
        error, name, count, seconds = min(found)
        return f"{error_text(error)} in {seconds_text(seconds)}, {count} calls ({name})"


def study(problem: Problem, repeats: int, budgets: Mapping[str, tuple[int, ...]]) -> TraceStudy:
    """Run all estimators at their budgets of AD calls."""
    exact = references.trace(problem)
    by_factors = min(
        timed(lambda: tkn.ntk_trace(problem.f, problem.params, problem.x))[1] for _ in range(2)
    )
    J = tkn.jacobian(problem.outputs, problem.params)
    own = tkn.sample_ntk(problem.f, problem.params, problem.x)
    tiles = tk.probes.tiled(tk.probes.hadamard, problem.shape[0])
    rng = np.random.default_rng
    found: dict[str, tuple[Any, tk.LinearOperator]] = {
        ALGORITHM_1: (
            lambda K, m, s: algorithms.hutchpp(K, algorithms.allowed(m // 2), rng(s)),
            tk.gram(J),
        ),
        REVERSE: (lambda L, m, s: algorithms.split_trace(L, m, rng(s), 1 / 6), J),
        FORWARD: (lambda L, m, s: algorithms.split_trace(L, m, rng(s), 1 / 6), J.H),
        ONE_SIDED: (lambda L, m, s: tk.one_sided(L, m, rng=s), J),
        LADDER: (lambda K, m, s: tk.xnystrace(K, m, rng=s), tk.gram(J)),
        SIGNS: (lambda K, m, s: tk.hutchinson(K, m, rng=s), own),
        HADAMARD: (lambda K, m, s: tk.hutchinson(K, m, rng=s, probes=tiles), own),
    }
    methods = {name: Method(found[name][0], found[name][1:], m) for name, m in budgets.items()}
    curves = measure(methods, exact, repeats)
    return TraceStudy(problem, exact, curves, _by_products(J), by_factors)


def panels(axes: Any, study: TraceStudy) -> None:
    """Estimates, errors against calls, errors against seconds."""
    curves = study.curves
    figures.estimates(axes[0], curves)
    figures.errors(axes[1], curves, "calls", names=False)
    figures.errors(axes[2], curves, "seconds")
    figures.exact_times(
        axes[2], {"exact, ntk_trace": study.by_factors, "exact, n products": study.by_products}
    )
    axes[0].set_title(study.problem.name, loc="left")


def rows(study: TraceStudy, paper: Mapping[tuple[str, int], tuple[int, str]]) -> list[Row]:
    """Rows of the table; of an algorithm and its m are given AD calls and the paper's figures."""
    found = []
    for (name, m), (calls, quoted) in paper.items():
        error, seconds = study.curves[name].at(calls)
        published = f"{error_text(error)} in {seconds_text(seconds)}, {calls} calls"
        what = f"{study.problem.name}: {name}, m = {m}"
        found.append(Row(what, quoted, published, study.best(calls)))
    return found


def exact_row(study: TraceStudy, paper: str) -> Row:
    """The row of the exact trace."""
    return Row(
        f"{study.problem.name}: exact trace",
        paper,
        f"{seconds_text(study.by_products)} by n products",
        f"{seconds_text(study.by_factors)} (ntk_trace)",
    )


def target(study: TraceStudy, name: str, calls: int, bound: float) -> Target:
    """The median error of a method at some AD calls, and its bound."""
    what = f"{study.problem.name}: trace, {name}, {calls} AD calls"
    return Target(what, study.curves[name].at(calls)[0], bound)


def present(results: Results, name: str) -> None:
    """Print errors, table and targets of some networks, and draw them."""
    drawing, axes = figures.figure(len(results.studies), 3)
    for study, line in zip(results.studies, axes, strict=True):
        print(f"\n{study.problem.name}: exact trace {study.exact:.6g}")
        print("  AD calls: median error in CPU time")
        print_curves(study.curves)
        panels(line, study)
    print_results(results)
    print("figure:", figures.save(drawing, name))


def _by_products(J: tk.LinearOperator, columns: int = 32) -> float:
    """Seconds of n products with J J^T, from some of them."""
    X = J.xp.asarray(np.random.default_rng(0).standard_normal((J.shape[0], columns)), dtype=J.dtype)
    K = tk.gram(J)
    return min(timed(lambda: K.matmat(X))[1] for _ in range(2)) * J.shape[0] / columns
