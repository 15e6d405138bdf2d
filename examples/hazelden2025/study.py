"""Runs estimators over budgets and seeds, and says whether their errors meet what was aimed at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tracekit as tk

FULL = bool(os.environ.get("FULL"))  # 50 seeds everywhere, as in the paper
Estimator = Callable[..., Any]  # (operators, budget of AD calls, seed) -> number
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Method:
    """An estimator, the operators that it is applied to, and its budgets."""

    estimate: Estimator
    operators: Sequence[tk.LinearOperator]
    budgets: Sequence[int]


@dataclass(frozen=True)
class Curve:
    """What one method gave: by budget its AD calls, by budget and seed ratios to the exact value.

    An AD call is one forward-mode or reverse-mode pass through the network on all of its inputs.
    Seconds are CPU time.
    """

    budgets: tuple[int, ...]
    calls: Array
    ratios: Array
    seconds: Array

    @property
    def errors(self) -> Array:
        """Relative errors, (budgets, seeds)."""
        return np.abs(self.ratios - 1)

    @property
    def medians(self) -> Array:
        """Median error of each budget."""
        return np.median(self.errors, axis=1)

    @property
    def times(self) -> Array:
        """Median CPU seconds of each budget."""
        return np.median(self.seconds, axis=1)

    def at(self, budget: int) -> tuple[float, float]:
        """Median error and seconds at one of the budgets."""
        i = self.budgets.index(budget)
        return float(self.medians[i]), float(self.times[i])

    def time_to(self, tolerance: float) -> float:
        """Seconds until the median error is within the tolerance and stays there; else infinity.

        Between budgets, error and time are taken to follow a power law.
        """
        errors, times = self.medians, self.times
        outside = np.flatnonzero(errors > tolerance)
        last = -1 if len(outside) == 0 else int(outside[-1])
        if last == len(errors) - 1:
            return float("inf")
        if last == -1:
            return float(times[0])
        here, there = np.log(np.maximum(errors[last : last + 2], 1e-16))
        share = (here - np.log(tolerance)) / (here - there)
        return float(np.exp(np.interp(share, (0, 1), np.log(times[last : last + 2]))))


def measure(methods: Mapping[str, Method], exact: float, repeats: int) -> dict[str, Curve]:
    """Run every method at every budget with the seeds 0, 1, ...; with FULL=1 there are 50."""
    seeds = range(50 if FULL else repeats)
    return {name: _curve(method, exact, seeds) for name, method in methods.items()}


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its CPU seconds."""
    start = time.process_time()
    value = run()
    return value, time.process_time() - start


def _curve(method: Method, exact: float, seeds: range) -> Curve:
    calls, ratios, seconds = [], [], []
    for budget in method.budgets:
        values, times = [], []
        for seed in seeds:
            value, spent = timed(lambda m=budget, s=seed: method.estimate(*method.operators, m, s))
            values.append(value)
            times.append(spent)
        calls.append(_calls(method, budget, values[0]))
        ratios.append([float(value) / exact for value in values])
        seconds.append(times)
    return Curve(tuple(method.budgets), np.array(calls), np.array(ratios), np.array(seconds))


def _calls(method: Method, budget: int, value: Any) -> int:
    """AD calls, as an estimate says, or else as counted in one more run."""
    if isinstance(value, tk.Estimate):
        return value.num_matvecs
    pairs = [tk.counted(A) for A in method.operators]
    method.estimate(*(A for A, _ in pairs), budget, 0)
    return sum(counter.total for _, counter in pairs)


@dataclass(frozen=True)
class Target:
    """A number that has to stay at or below a bound."""

    what: str
    value: float
    bound: float

    def __str__(self) -> str:
        verdict = "PASS" if self.value <= self.bound else "FAIL"
        return f"{verdict}  {self.what}: {self.value:.2g} (at most {self.bound:.2g})"


@dataclass(frozen=True)
class Row:
    """One line of the table: what is estimated, and what three implementations give."""

    what: str
    paper: str
    published: str
    ours: str


@dataclass(frozen=True)
class Results:
    """What an experiment gave: its studies, lines for the table, and targets."""

    studies: Sequence[Any]
    rows: Sequence[Row]
    targets: Sequence[Target]


def print_results(results: Results) -> None:
    """Print the table, and whether the targets are met."""
    print()
    print_table(results.rows)
    print()
    for target in results.targets:
        print(target)


def print_table(rows: Sequence[Row]) -> None:
    """Print what the paper's own code, its algorithms here, and ours give."""
    header = Row("", "paper's code", "its algorithms as published", "ours, for no more AD calls")
    fields = "what", "paper", "published", "ours"
    widths = [max(len(getattr(row, name)) for row in (header, *rows)) for name in fields]
    for row in (header, *rows):
        cells = zip(fields, widths, strict=True)
        print("| " + " | ".join(getattr(row, name).ljust(width) for name, width in cells) + " |")
        if row is header:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def print_curves(curves: Mapping[str, Curve]) -> None:
    """Print median errors and times by method and AD calls."""
    for name, curve in curves.items():
        cells = zip(curve.calls, curve.medians, curve.times, strict=True)
        text = (f"{c:4d}: {error_text(e)} in {seconds_text(t)}" for c, e, t in cells)
        print(f"  {name:22} " + ", ".join(text))


def error_text(error: float) -> str:
    """A relative error, where there is one."""
    return "exact" if error < 1e-12 else f"{error:.1e}".replace("e-0", "e-")


def seconds_text(seconds: float) -> str:
    """A time, to two digits."""
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s"
