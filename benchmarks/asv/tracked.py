"""What does not depend on the machine: errors at a budget, coverage, products, agreement."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tracekit as tk

from ._backends import ALL, backend
from ._problems import ESTIMATORS, KEPT, TRACES, numbers, operator
from ._timed import LIBRARY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Cell = tuple[str, str, int]

N, SEEDS, LEVEL = 400, 100, 0.95
SPECTRA: dict[str, Callable[[], np.ndarray]] = {
    "i^-2": lambda: np.arange(1.0, N + 1) ** -2,
    "1+U": lambda: 1 + np.random.default_rng(0).random(N),
}
BUDGETS = (24, 96)


def _partial_trace(A: np.ndarray) -> np.ndarray:
    return np.trace(A.reshape(N // KEPT, KEPT, N // KEPT, KEPT), axis1=0, axis2=2)


TRUTHS: dict[str, Callable[[np.ndarray], Any]] = {
    "one_sided": lambda A: np.sum(A * A),
    "diagonal": np.diagonal,
    "xdiag": np.diagonal,
    "xnysdiag": np.diagonal,
    "partial_trace": _partial_trace,
    "frobenius_norm": np.linalg.norm,
    "effective_rank": lambda A: np.trace(A) ** 2 / np.sum(A * A),
    "target_alignment": lambda A: np.sum(A) / (N * np.linalg.norm(A)),
    "logdet": lambda A: np.linalg.slogdet(A)[1],
}  # of the others: the trace


class Tracked(NamedTuple):
    """What is known of an estimator on a spectrum at a budget, over all seeds."""

    error: float  # median relative error
    coverage: float  # share of entries within their nominal 95 % intervals
    products: int  # counted where they are spent, the most of all seeds
    claimed: int  # by the estimates, the most of all seeds


class Accuracy:
    """On NumPy: the same seeds give the other libraries the same numbers, as `Agreement` holds."""

    params = (tuple(ESTIMATORS), tuple(SPECTRA), BUDGETS)
    param_names = ("estimator", "spectrum", "m")

    def setup_cache(self) -> dict[Cell, Tracked]:
        return dict(tracked(itertools.product(*self.params)))

    setup_cache.timeout = 300  # type: ignore[attr-defined]

    def track_error(self, found: dict[Cell, Tracked], *cell: Any) -> float:
        return found[cell].error

    def track_coverage(self, found: dict[Cell, Tracked], *cell: Any) -> float:
        return 100 * found[cell].coverage

    def track_products(self, found: dict[Cell, Tracked], *cell: Any) -> int:
        return found[cell].products

    track_error.unit = "median relative error"  # type: ignore[attr-defined]
    track_coverage.unit = "% within nominal 95 % intervals"  # type: ignore[attr-defined]
    track_products.unit = "products"  # type: ignore[attr-defined]


class Agreement:
    """Of a library with NumPy: every estimator of traces once, of the same seed."""

    params = (ALL,)
    param_names = (LIBRARY,)
    unit = "largest relative difference"
    timeout = 120

    def setup(self, on: str) -> None:
        backend(on)

    def track_difference(self, on: str) -> float:
        return difference(traces(on), traces("numpy:cpu"))


def tracked(cells: Iterable[Cell]) -> Iterable[tuple[Cell, Tracked]]:
    """Run the estimators of the cells on all seeds."""
    matrices = {name: tk.testing.known_spectrum(law()) for name, law in SPECTRA.items()}
    for name, spectrum, m in cells:
        A = matrices[spectrum]
        truth = TRUTHS.get(name, np.trace)(A)
        errors, covered, spent, claimed = [], [], [], []
        for seed in range(SEEDS):
            known, counter = tk.counted(A)
            estimate = ESTIMATORS[name](known, m, rng=seed)
            low, high = estimate.confidence_interval(LEVEL)
            errors.append(relative_error(estimate.value, truth))
            covered.append(np.mean((low <= truth) & (truth <= high)))
            spent.append(counter.total)
            claimed.append(int(estimate.num_matvecs))
        yield (
            (name, spectrum, m),
            Tracked(float(np.median(errors)), float(np.mean(covered)), max(spent), max(claimed)),
        )


def traces(on: str) -> dict[str, tuple[float, int]]:
    """Every estimated trace, in double precision, and the products that were counted."""
    lib, found = backend(on), {}
    for name, estimator in TRACES.items():
        known, counter = tk.counted(operator(lib, *numbers(lib, N)))
        found[name] = float(estimator(known, BUDGETS[0], rng=0)), counter.total
    return found


def difference(theirs: dict[str, tuple[float, int]], ours: dict[str, tuple[float, int]]) -> float:
    """Largest relative difference of the estimates."""
    return max(abs(theirs[name][0] / ours[name][0] - 1) for name in ours)


def relative_error(value: Any, truth: Any) -> float:
    """Size of the error over that of the truth, of numbers or arrays."""
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))
