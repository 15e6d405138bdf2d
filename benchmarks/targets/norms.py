"""Errors, biases and intervals of norms, effective ranks, alignments and partial traces.

1. Median relative errors of 51 seeds (in the Frobenius norm, where the value is an array), beside
   the figures that they should reach. A call is one column through J or J^T, or through A where it
   has no factor; every run's calls are counted, and a row whose runs spend more than they may, or
   claim other than they spend, does not hold. An alignment's calls are for both operators together,
   and so is its count. Hutch++ for such numbers is measured in `examples/hazelden2025`.
2. What has to be exact: the worst case over the seeds, or over all subsets of axes.
3. Bias: the mean relative deviation of 200 seeds, with its standard error, and as a share of the
   root mean square error; what is documented as unbiased is held to 4.5 standard errors (5 for the
   largest of an array's entries). Coverage: the share of the 95 % intervals that hold the value.

Operators A = J J^T are those of `problems.jacobian`; in the third table J is replaced by a smaller
factor of the same A. "no factor": A as a dense matrix. "cross": J J'^T, J' at other parameters,
dense.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tracekit
from tracekit import LinearOperator

from ..measure import in_two_processes
from ..problems import DIMS, jacobian
from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Real = NDArray[np.float64]
    Method = Callable[..., Any]
    Estimates = dict[str, tracekit.Estimate]

SEEDS, MANY_SEEDS, LEVEL = seeds(51), seeds(200), 0.95
SURE, SURE_OF_ALL, LEAST_COVERAGE = 4.5, 5.0, 0.89
ROUNDING = 1e-12
DRIFT = {"mlp": 0.7, "mlpimg": 1.15, "rnn": 0.28}  # parameters move until the cosine is 0.80
BLACK_BOX, CROSS = " no factor", " cross"
PAIRED = {"alignment", "inner"}


# --- operators and their exact values -------------------------------------------------------------


def factors(name: str, pair: bool) -> tuple[Real, ...]:
    """Return J, and where two operators are compared, J at other parameters."""
    return (jacobian(name), jacobian(name, DRIFT[name])) if pair else (jacobian(name),)


@cache
def matrices(name: str, pair: bool) -> tuple[Real, ...]:
    """Return the dense A = J J^T; of a cross kernel, J J'^T of two sets of parameters."""
    if name.endswith(CROSS):
        J, K = factors(name.removesuffix(CROSS), pair=True)
        return (J @ K.T,)
    return tuple(J @ J.T for J in factors(name.removesuffix(BLACK_BOX), pair))


def operators(name: str, pair: bool, *, small: bool = False) -> list[LinearOperator]:
    """Return what the estimators see; small: with the smallest J of the same A."""
    if name.endswith((BLACK_BOX, CROSS)):
        return [tracekit.as_operator(A) for A in matrices(name, pair)]
    found = factors(name, pair)
    return [tracekit.gram(np.linalg.qr(J.T, mode="r").T if small else J) for J in found]


def partial_of(A: NDArray[Any], dims: Sequence[int], axes: Sequence[int]) -> NDArray[Any]:
    """Return a dense partial trace over some axes, the definition itself."""
    k = len(dims)
    kept = [i for i in range(k) if i not in axes]
    columns = [i if i in axes else k + i for i in range(k)]
    order = [*kept, *(k + i for i in kept)]
    size = math.prod(dims[i] for i in kept)
    blocks = A.reshape(*dims, *dims)
    return np.einsum(blocks, [*range(k), *columns], order).reshape(size, size)


def norm_of(A: Real) -> float:
    return float(np.linalg.norm(A))


def cosine_of(A: Real, B: Real) -> float:
    return float(np.vdot(A, B)) / (norm_of(A) * norm_of(B))


def target_of(A: Real | LinearOperator) -> Real:
    """Return labels y for a kernel: one random sign for each of its rows."""
    return np.random.default_rng(2).choice([-1.0, 1.0], A.shape[0])


TRUTHS: dict[str, Callable[..., Any]] = {
    "trace": lambda A: float(np.trace(A)),
    "norm": norm_of,
    "squared norm": lambda A: norm_of(A) ** 2,
    "effective rank": lambda A: float(np.trace(A) / norm_of(A)) ** 2,
    "inner": lambda A, B: float(np.vdot(A, B)),
    "alignment": cosine_of,
    "target alignment": lambda A: cosine_of(A, np.outer(target_of(A), target_of(A))),
    "outputs kept": lambda A: partial_of(A, DIMS["mlpimg"], (0,)),
    "samples kept": lambda A: partial_of(A, DIMS["mlpimg"], (1,)),
}


def truth(quantity: str, name: str) -> Any:
    """Return the exact value of a quantity of a named operator, or of two."""
    return TRUTHS[quantity](*matrices(name, quantity in PAIRED))


def array(value: Any) -> Real:
    """Return the value of an estimate, or of what is none."""
    return np.asarray(value.value if isinstance(value, tracekit.Estimate) else value)


class Runs(NamedTuple):
    """Values of all seeds, the most calls that one spent, and whether all told what they spent."""

    values: list[Any]
    calls: int
    honest: bool


def runs(method: Method, plain: list[LinearOperator], calls: int, number: int) -> Runs:
    """Run a method on counted operators with seeds 0, 1, ...; count its calls."""
    values, most, honest = [], 0, True
    for seed in range(number):
        counted, counters = zip(*map(tracekit.counted, plain), strict=True)
        value = method(*counted, calls, seed)
        spent = sum(counter.total for counter in counters)
        most = max(most, spent)
        told = value.values() if isinstance(value, dict) else [value]
        honest &= all(e.num_matvecs == spent for e in told if isinstance(e, tracekit.Estimate))
        values.append(value)
    return Runs(values, most, honest)


def tables() -> Iterator[Table]:
    """Median errors, what is exact, biases and intervals."""
    yield Table(
        f"Median relative error of {SEEDS} seeds",
        {"quantity": "<16", "operator": "<18", "calls": ">6", "spent": ">6", "target": ">9.1e",
         "ours": ">9.1e"},
        medians(),
    )  # fmt: skip
    yield Table("Worst relative error of what is exact", FIGURES, exact())
    yield Table(
        f"Bias and coverage of {MANY_SEEDS} seeds: mean relative deviation, as a share of the root "
        "mean square\nerror, in its standard errors (of an array, the largest entry's)",
        {"function": "<20", "quantity": "<17", "operator": "<14", "calls": ">6", "bias": ">8.0e",
         "+-": ">8.0e", "of rms": ">8.2f", "z": ">7.1f", "covers": ">8.3f"},
        biases(),
    )  # fmt: skip


# --- 1. median errors -----------------------------------------------------------------------------


def called(function: Callable[..., tracekit.Estimate], *given: Any) -> Method:
    """Return a function of the library as one of operators, calls and a seed."""
    return lambda *asked: function(*asked[:-2], *given, asked[-2], rng=asked[-1])


OURS: dict[str, Method] = {
    "norm": called(tracekit.frobenius_norm),
    "effective rank": called(tracekit.effective_rank),
    "alignment": called(tracekit.alignment),
    "outputs kept": called(tracekit.partial_trace, DIMS["mlpimg"], 0),
    "samples kept": called(tracekit.partial_trace, DIMS["mlpimg"], 1),
}


class Case(NamedTuple):
    """A quantity of an operator at a budget, and the median error that it should reach."""

    quantity: str
    name: str
    calls: int
    target: float


CASES = (
    Case("norm", "i^-2", 192, 1e-6),
    Case("norm", "mlpimg", 192, 3e-4),
    Case("norm", "rnn", 192, 3e-3),
    Case("norm", "i^-2" + BLACK_BOX, 96, 1e-6),
    Case("effective rank", "i^-2", 144, 1e-3),
    Case("effective rank", "i^-0.5", 144, 6e-3),
    Case("effective rank", "mlpimg", 144, 5e-3),
    Case("alignment", "mlp", 384, 3e-3),
    Case("alignment", "mlpimg", 384, 3e-3),
    Case("alignment", "rnn", 384, 3e-3),
    Case("outputs kept", "mlpimg", 256, 1.3e-2),
    Case("samples kept", "mlpimg", 256, 1.3e-2),
)


def medians() -> Iterator[Row]:
    """Judge errors and counts."""
    for case, (error, r) in zip(CASES, in_two_processes(errors, CASES), strict=True):
        holds = {"error": error <= case.target, "count": r.honest and r.calls <= case.calls}
        yield Row((*case[:3], r.calls, case.target, error), holds)


def errors(case: Case) -> tuple[float, Runs]:
    """Return the median relative error, and the runs."""
    plain, exact = operators(case.name, case.quantity in PAIRED), truth(case.quantity, case.name)
    r = runs(OURS[case.quantity], plain, case.calls, SEEDS)
    off = [np.linalg.norm(array(value) - exact) / np.linalg.norm(exact) for value in r.values]
    return float(np.median(off)), r


# --- 2. what is exact -----------------------------------------------------------------------------


def exact() -> Iterator[Row]:
    """Judge the alignment of operators with themselves, and partial traces without a budget."""
    worst = 0.0
    for name in ("i^-2", "mlpimg", "rnn"):
        A = tracekit.gram(jacobian(name))
        values = [float(tracekit.alignment(A, A, 96, rng=seed)) for seed in range(SEEDS)]
        worst = max(worst, float(np.max(np.abs(np.array(values) - 1))))
    yield figure("alignment of an operator with itself, 96 calls", worst, most=1e-6)
    dims, rng, worst = (4, 5, 6), np.random.default_rng(0), 0.0
    A = rng.standard_normal((120, 120)) + 1j * rng.standard_normal((120, 120))
    for k in range(len(dims) + 1):
        for axes in itertools.combinations(range(len(dims)), k):
            known = partial_of(A, dims, axes)
            value = array(tracekit.partial_trace(A, dims, axes)).reshape(known.shape)
            worst = max(worst, float(np.linalg.norm(value - known) / np.linalg.norm(known)))
    yield figure("exact partial traces of (4, 5, 6), all sets of axes", worst, most=1e-12)


# --- 3. biases and intervals ----------------------------------------------------------------------


def squared(norm: tracekit.Estimate) -> tracekit.Estimate:
    """Return the squared norm, its error by the delta method."""
    return replace(norm, value=norm.value**2, standard_error=2 * norm.value * norm.standard_error)


def summary(A: LinearOperator, m: int, seed: int) -> Estimates:
    found = tracekit.spectral_summary(A, m, rng=seed)
    named = dict(zip(("trace", "norm", "effective rank"), found, strict=True))
    return named | {"squared norm": squared(found.frobenius_norm)}


def norms(A: LinearOperator, m: int, seed: int) -> Estimates:
    norm = tracekit.frobenius_norm(A, m, rng=seed)
    return {"norm": norm, "squared norm": squared(norm)}


def one_sided(A: LinearOperator, m: int, seed: int) -> Estimates:
    found = tracekit.one_sided_summary(A.factor, m, rng=seed)
    return dict(zip(("trace", "norm", "effective rank"), found, strict=True))


def one_sided_cosine(A: LinearOperator, B: LinearOperator, m: int, seed: int) -> Estimates:
    return {"alignment": tracekit.one_sided_alignment(A.factor, B.factor, m, rng=seed)}


def against_target(A: LinearOperator, m: int, seed: int) -> Estimates:
    return {"target alignment": tracekit.target_alignment(A, target_of(A), m, rng=seed)}


def only(quantity: str, method: Method) -> Callable[..., Estimates]:
    """Return a method with a name for what it returns."""
    return lambda *given: {quantity: method(*given)}


class Family(NamedTuple):
    """A function of the library, and the operators and budgets it is measured on."""

    method: Callable[..., Estimates]
    names: tuple[str, ...]
    budgets: tuple[int, ...]
    pair: bool = False


ALL, NETWORKS = ("i^-2", "i^-0.5", "mlpimg", "rnn"), ("mlp", "mlpimg", "rnn")
FAMILIES = {
    "spectral_summary": Family(summary, (*ALL, "rnn" + BLACK_BOX, "rnn" + CROSS), (24, 144)),
    "frobenius_norm": Family(norms, ("rnn" + CROSS,), (24, 144)),
    "one_sided_summary": Family(one_sided, ALL, (24, 144)),
    "inner": Family(only("inner", called(tracekit.inner)), NETWORKS, (48, 288), pair=True),
    "alignment": Family(only("alignment", OURS["alignment"]), NETWORKS, (48, 288), pair=True),
    "one_sided_alignment": Family(one_sided_cosine, NETWORKS, (48, 288), pair=True),
    "target_alignment": Family(against_target, ALL, (24, 144)),
    "partial_trace": Family(only("outputs kept", OURS["outputs kept"]), ("mlpimg",), (32, 256)),
}
UNBIASED = {"trace", "squared norm", "inner", "outputs kept"}


class Task(NamedTuple):
    """One operator and one budget of a family."""

    family: str
    name: str
    calls: int


TASKS = [
    Task(label, name, calls)
    for label, family in FAMILIES.items()
    for name in family.names
    for calls in family.budgets
]


class Deviation(NamedTuple):
    """Relative to the exact value: mean deviation, its standard error, the root mean square."""

    mean: float
    noise: float
    rms: float
    largest: float  # of an array's mean deviations, in their standard errors
    coverage: float


def biases() -> Iterator[Row]:
    """Judge what is documented as unbiased, all intervals, and all counts."""
    for task, (found, honest) in zip(TASKS, in_two_processes(deviations, TASKS), strict=True):
        for quantity, d in found.items():
            sure = SURE_OF_ALL if quantity.endswith("kept") else SURE
            holds = {"count": honest, "coverage": d.coverage >= LEAST_COVERAGE}
            if quantity in UNBIASED:
                holds["bias"] = not d.largest > sure
            share = abs(d.mean) / d.rms if d.rms > 0 else 0.0
            values = (task.family, quantity, task.name, task.calls, d.mean, d.noise, share)
            yield Row((*values, d.largest, d.coverage), holds)


def deviations(task: Task) -> tuple[dict[str, Deviation], bool]:
    """Return the deviations of all that a function returned, and whether its count was right."""
    family = FAMILIES[task.family]
    plain = operators(task.name, family.pair, small=True)
    found = runs(family.method, plain, task.calls, MANY_SEEDS)
    measured = {
        quantity: deviation([value[quantity] for value in found.values], truth(quantity, task.name))
        for quantity in found.values[0]
    }
    return measured, found.honest and found.calls <= task.calls


def deviation(estimates: Sequence[tracekit.Estimate], exact: Any) -> Deviation:
    """Measure the bias of estimates, and how often their intervals hold the value."""
    exact = np.asarray(exact)
    scale = float(np.linalg.norm(exact))
    rounding = ROUNDING * scale / math.sqrt(exact.size)
    off = np.stack([array(estimate) for estimate in estimates]) - exact
    mean, noise = off.mean(axis=0), off.std(axis=0, ddof=1) / math.sqrt(len(off))
    intervals = [estimate.confidence_interval(LEVEL) for estimate in estimates]
    hits = [(low - rounding <= exact) & (exact <= high + rounding) for low, high in intervals]
    return Deviation(
        float(mean / exact) if exact.ndim == 0 else norm_of(mean) / scale,
        norm_of(noise) / scale,
        math.sqrt(np.sum(np.mean(off**2, axis=0))) / scale,
        float(np.max(np.abs(mean) / np.maximum(noise, rounding))),
        float(np.mean(hits)),
    )
