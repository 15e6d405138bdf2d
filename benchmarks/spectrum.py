"""Errors, biases and intervals of norms, effective ranks, alignments and partial traces.

1. Median relative errors of 51 seeds (in the Frobenius norm, where the value is an array), beside
   the figures that they should reach and beside what one would write down first at the same cost:

   pairs      Proposition 1 of Hazelden (2025), arXiv:2511.10796, in its corrected form: means of
              <J1^T u, J1^T v> <J2^T u, J2^T v> over independent u and v, estimates tr(A1 A2);
   Hutch++    on A^2, and on A1 A2 (arXiv:2010.09649), a new sketch for each number;
   sketch     |A Omega|^2 / m, and <A1 Omega, A2 Omega> / m, random signs Omega;
   outer      for partial traces: means of J p p^T J^T, each traced;
   basis x z  for partial traces: A on all coordinates of the kept axis, signs on the other
              (arXiv:2310.12364).

   A call is one column through J or J^T, or through A where it has no factor; every run's calls
   are counted, and a row whose runs spend more than they may, or claim other than they spend,
   does not hold. An alignment's calls are for both operators together, and so is its count.
2. What has to be exact: the worst case over the seeds, or over all subsets of axes.
3. Bias: the mean relative deviation of 200 seeds, with its standard error, and as a share of the
   root mean square error; what is documented as unbiased is held to 4.5 standard errors (5 for the
   largest of an array's entries). Coverage: the share of the 95 % intervals that hold the value.

Operators A = J J^T are those of `_jacobians`; in the third table J is replaced by a smaller factor
of the same A. "no factor": A as a dense matrix. "cross": J J'^T, J' at other parameters, dense.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import itertools
import math
import time
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from _jacobians import DIMS, jacobian
from _problems import in_two_processes

import tracekit
from tracekit import LinearOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Real = NDArray[np.float64]
    Method = Callable[..., Any]
    Estimates = dict[str, tracekit.Estimate]

SEEDS, MANY_SEEDS, LEVEL = 51, 200, 0.95
SURE, SURE_OF_ALL, LEAST_COVERAGE = 4.5, 5.0, 0.89
ROUNDING = 1e-12
DRIFT = {"mlp": 0.7, "mlpimg": 1.15, "rnn": 0.28}  # parameters move until the cosine is 0.80
BLACK_BOX, CROSS = " no factor", " cross"


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


def rank_of(A: Real) -> float:
    return float(np.trace(A) / norm_of(A)) ** 2


def cosine_of(A: Real, B: Real) -> float:
    return float(np.vdot(A, B)) / (norm_of(A) * norm_of(B))


def truth(quantity: str, name: str) -> Any:
    """Return the exact value of a quantity of a named operator, or of two."""
    pair = quantity in PAIRED
    return TRUTHS[quantity](*matrices(name, pair))


def target_of(A: Real | LinearOperator) -> Real:
    """Return labels y for a kernel: one random sign for each of its rows."""
    return np.random.default_rng(2).choice([-1.0, 1.0], A.shape[0])


PAIRED = {"alignment", "inner"}
TRUTHS: dict[str, Callable[..., Any]] = {
    "trace": lambda A: float(np.trace(A)),
    "norm": norm_of,
    "squared norm": lambda A: norm_of(A) ** 2,
    "effective rank": rank_of,
    "inner": lambda A, B: float(np.vdot(A, B)),
    "alignment": cosine_of,
    "target alignment": lambda A: cosine_of(A, np.outer(target_of(A), target_of(A))),
    "outputs kept": lambda A: partial_of(A, DIMS["mlpimg"], (0,)),
    "samples kept": lambda A: partial_of(A, DIMS["mlpimg"], (1,)),
}


# --- what one would write down first --------------------------------------------------------------


def signs(A: LinearOperator, m: int, rng: np.random.Generator) -> Real:
    return rng.choice([-1.0, 1.0], (A.shape[0], m))


def price(A: LinearOperator) -> int:
    """Calls that a product with A costs."""
    return 1 if A.factor is None else 2


def forms(A: LinearOperator, U: Real, V: Real) -> Real:
    """Return u^T A v for all columns; two calls each through J^T, one through A."""
    if A.factor is None:
        return np.sum(U * (A @ V), axis=0)
    return np.sum((A.factor.H @ U) * (A.factor.H @ V), axis=0)


def pairs_norm(A: LinearOperator, calls: int, seed: int) -> float:
    rng, m = np.random.default_rng(seed), calls // price(A)
    return math.sqrt(np.mean(forms(A, signs(A, m, rng), signs(A, m, rng)) ** 2))


def pairs_rank(A: LinearOperator, calls: int, seed: int) -> float:
    rng, m = np.random.default_rng(seed), calls // 2
    U, V = (A.factor.H @ signs(A, m, rng) for _ in range(2))
    return np.mean([U * U, V * V]) ** 2 * len(U) ** 2 / np.mean(np.sum(U * V, axis=0) ** 2)


def pairs_cosine(A: LinearOperator, B: LinearOperator, calls: int, seed: int) -> float:
    rng, m = np.random.default_rng(seed), calls // 4
    U, V = signs(A, m, rng), signs(A, m, rng)
    a, b = forms(A, U, V), forms(B, U, V)
    return np.mean(a * b) / math.sqrt(np.mean(a * a) * np.mean(b * b))


def squared_norm(A: LinearOperator, calls: int, seed: int) -> float:
    """Return the trace of A^2 by Hutch++."""
    return float(tracekit.hutchpp(tracekit.gram(A), calls // price(A), rng=seed))


def hutchpp_norm(A: LinearOperator, calls: int, seed: int) -> float:
    return math.sqrt(squared_norm(A, calls, seed))


def hutchpp_rank(A: LinearOperator, calls: int, seed: int) -> float:
    trace = float(tracekit.hutchpp(A, calls // 2, rng=SEEDS + seed))
    return trace**2 / squared_norm(A, calls // 2, seed)


def hutchpp_cosine(A: LinearOperator, B: LinearOperator, calls: int, seed: int) -> float:
    product = LinearOperator(A.shape, lambda X: A @ (B @ X))
    inner = float(tracekit.hutchpp(product, calls // 12, rng=2 * SEEDS + seed))
    norms = squared_norm(A, calls // 3, seed) * squared_norm(B, calls // 3, SEEDS + seed)
    return inner / math.sqrt(norms)


def sketch_norm(A: LinearOperator, calls: int, seed: int) -> float:
    m = calls // price(A)
    return norm_of(A @ signs(A, m, np.random.default_rng(seed))) / math.sqrt(m)


def sketch_rank(A: LinearOperator, calls: int, seed: int) -> float:
    m = calls // price(A)
    Omega = signs(A, m, np.random.default_rng(seed))
    Y = A @ Omega
    return (np.vdot(Omega, Y) / norm_of(Y)) ** 2 / m


def sketch_cosine(A: LinearOperator, B: LinearOperator, calls: int, seed: int) -> float:
    Omega = signs(A, calls // 4, np.random.default_rng(seed))
    return cosine_of(A @ Omega, B @ Omega)


def outer(axis: int, A: LinearOperator, calls: int, seed: int) -> Real:
    """Return the mean of the partial traces of J p p^T J^T, p of N(0, I)."""
    p = np.random.default_rng(seed).standard_normal((A.factor.shape[1], calls))
    X = np.moveaxis((A.factor @ p).reshape(*DIMS["mlpimg"], calls), axis, 1)
    X = X.reshape(X.shape[0], -1)
    return X @ X.T / calls


def basis_times_signs(axis: int, A: LinearOperator, calls: int, seed: int) -> Real:
    """Return the mean of (I x z)^T A (I x z), z of signs on the traced axis."""
    dims = DIMS["mlpimg"]
    kept, traced = dims[1 - axis], dims[axis]
    rng, total, m = np.random.default_rng(seed), np.zeros((kept, kept)), calls // (2 * kept)
    for _ in range(m):
        z, eye = rng.choice([-1.0, 1.0], (traced, 1)), np.eye(kept)
        lift = np.kron(z, eye) if axis == 0 else np.kron(eye, z)
        total += lift.T @ (A @ lift)
    return total / m


# --- 1. median errors -----------------------------------------------------------------------------


def deflated(axis: int, A: LinearOperator, calls: int, seed: int) -> tracekit.Estimate:
    return tracekit.partial_trace(A, DIMS["mlpimg"], axis, calls, rng=seed)


def called(function: Callable[..., tracekit.Estimate]) -> Method:
    """Return a function of the library as one of operators, calls and a seed."""
    return lambda *given: function(*given[:-1], rng=given[-1])


METHODS: dict[str, dict[str, Method]] = {
    "norm": {
        "ours": called(tracekit.frobenius_norm),
        "pairs": pairs_norm,
        "Hutch++": hutchpp_norm,
        "sketch": sketch_norm,
    },
    "effective rank": {
        "ours": called(tracekit.effective_rank),
        "pairs": pairs_rank,
        "Hutch++": hutchpp_rank,
        "sketch": sketch_rank,
    },
    "alignment": {
        "ours": called(tracekit.alignment),
        "pairs": pairs_cosine,
        "Hutch++": hutchpp_cosine,
        "sketch": sketch_cosine,
    },
    "outputs kept": {
        "ours": partial(deflated, 0),
        "outer": partial(outer, 0),
        "basis x z": partial(basis_times_signs, 0),
    },
    "samples kept": {
        "ours": partial(deflated, 1),
        "outer": partial(outer, 1),
        "basis x z": partial(basis_times_signs, 1),
    },
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


class Runs(NamedTuple):
    """Values of all seeds, the most calls that one spent, and whether all told what they spent."""

    values: list[Any]
    calls: int
    honest: bool


def runs(method: Method, plain: list[LinearOperator], calls: int, seeds: int) -> Runs:
    """Run a method on counted operators with seeds 0, 1, ...; count its calls."""
    values, most, honest = [], 0, True
    for seed in range(seeds):
        counted, counters = zip(*map(tracekit.counted, plain), strict=True)
        value = method(*counted, calls, seed)
        spent = sum(counter.total for counter in counters)
        most = max(most, spent)
        told = value.values() if isinstance(value, dict) else [value]
        honest &= all(e.num_matvecs == spent for e in told if isinstance(e, tracekit.Estimate))
        values.append(value)
    return Runs(values, most, honest)


def array(value: Any) -> Real:
    """Return the value of an estimate, or of what is none."""
    return np.asarray(value.value if isinstance(value, tracekit.Estimate) else value)


def errors(case: Case, method: Method) -> tuple[float, int, bool]:
    """Return the median relative error, the calls spent, and whether the count was honest."""
    found = runs(method, operators(case.name, case.quantity in PAIRED), case.calls, SEEDS)
    exact = truth(case.quantity, case.name)
    off = [np.linalg.norm(array(value) - exact) / np.linalg.norm(exact) for value in found.values]
    return float(np.median(off)), found.calls, found.honest


def medians(case: Case) -> tuple[Case, dict[str, tuple[float, int, bool]]]:
    """Return the median error of every method in one case."""
    return case, {label: errors(case, method) for label, method in METHODS[case.quantity].items()}


def median_table() -> Iterator[bool]:
    """Print the median errors; say for each of ours whether it holds."""
    print(f"Median relative error of {SEEDS} seeds")
    quantity = ""
    for case, row in in_two_processes(medians, CASES):
        others = [label for label in row if label != "ours"]
        if case.quantity != quantity:
            quantity = case.quantity
            heads = "".join(f"{label:>11}" for label in others)
            print(f"\n{quantity:18}{'calls':>6}{'spent':>6}{'target':>9}{'ours':>9}{'':7}{heads}")
        error, spent, honest = row["ours"]
        holds = error <= case.target and spent <= case.calls and honest
        told = "ok" if holds else "SHORT" if honest else "COUNT"
        rest = "".join(f"{row[label][0]:11.1e}" for label in others)
        print(
            f"{case.name:18}{case.calls:6}{spent:6}{case.target:9.1e}{error:9.1e}  {told:5}{rest}"
        )
        yield holds


# --- 2. what is exact -----------------------------------------------------------------------------


def self_alignment() -> tuple[str, float, float]:
    """Return how far the alignment of operators with themselves is from 1, and may be."""
    worst = 0.0
    for name in ("i^-2", "mlpimg", "rnn"):
        A = tracekit.gram(jacobian(name))
        values = [float(tracekit.alignment(A, A, 96, rng=seed)) for seed in range(SEEDS)]
        worst = max(worst, float(np.max(np.abs(np.array(values) - 1))))
    return "alignment of an operator with itself, 96 calls", worst, 1e-6


def exact_partial_traces() -> tuple[str, float, float]:
    """Return the worst error of partial traces over all sets of axes of a complex operator."""
    dims, rng = (4, 5, 6), np.random.default_rng(0)
    A = rng.standard_normal((120, 120)) + 1j * rng.standard_normal((120, 120))
    worst = 0.0
    for k in range(len(dims) + 1):
        for axes in itertools.combinations(range(len(dims)), k):
            exact = partial_of(A, dims, axes)
            value = array(tracekit.partial_trace(A, dims, axes)).reshape(exact.shape)
            worst = max(worst, float(np.linalg.norm(value - exact) / np.linalg.norm(exact)))
    return "exact partial traces of (4, 5, 6), all sets of axes", worst, 1e-12


def exact_table() -> Iterator[bool]:
    """Print the worst errors of what has to be exact, and judge them."""
    print("\nWorst relative error\n")
    for label, error, target in (self_alignment(), exact_partial_traces()):
        print(f"{label:52}{target:9.1e}{error:9.1e}  {'ok' if error <= target else 'SHORT'}")
        yield error <= target


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


def products(A: LinearOperator, B: LinearOperator, m: int, seed: int) -> Estimates:
    return {"inner": tracekit.inner(A, B, m, rng=seed)}


def cosines(A: LinearOperator, B: LinearOperator, m: int, seed: int) -> Estimates:
    return {"alignment": tracekit.alignment(A, B, m, rng=seed)}


def against_target(A: LinearOperator, m: int, seed: int) -> Estimates:
    return {"target alignment": tracekit.target_alignment(A, target_of(A), m, rng=seed)}


def partial_traces(A: LinearOperator, m: int, seed: int) -> Estimates:
    return {"outputs kept": deflated(0, A, m, seed)}


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
    "inner": Family(products, NETWORKS, (48, 288), pair=True),
    "alignment": Family(cosines, NETWORKS, (48, 288), pair=True),
    "one_sided_alignment": Family(one_sided_cosine, NETWORKS, (48, 288), pair=True),
    "target_alignment": Family(against_target, ALL, (24, 144)),
    "partial_trace": Family(partial_traces, ("mlpimg",), (32, 256)),
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


def bias_table() -> Iterator[bool]:
    """Print biases and coverages; judge what is documented as unbiased, and all intervals."""
    print(f"\nBias and coverage of {MANY_SEEDS} seeds: mean relative deviation, as a share of the")
    print("root mean square error, in its standard errors (of an array, the largest entry's)\n")
    heads = ("calls", "bias", "+-", "of rms", "z", "covers")
    titles = f"{'function':20}{'quantity':17}{'operator':14}"
    print(titles + "".join(f"{head:>8}" for head in heads))
    for task, (measured, honest) in zip(TASKS, in_two_processes(deviations, TASKS), strict=True):
        for quantity, found in measured.items():
            told = verdict(quantity, found, honest)
            share = abs(found.mean) / found.rms if found.rms > 0 else 0.0
            print(
                f"{task.family:20}{quantity:17}{task.name:14}{task.calls:8}{found.mean:8.0e}"
                f"{found.noise:8.0e}{share:8.2f}{found.largest:8.1f}{found.coverage:8.3f}  {told}"
            )
            yield told == "ok"


def verdict(quantity: str, found: Deviation, honest: bool) -> str:
    """Return "ok", or what is wrong with a row of the third table."""
    sure = SURE_OF_ALL if quantity.endswith("kept") else SURE
    if not honest:
        return "COUNT"
    if quantity in UNBIASED and found.largest > sure:
        return "BIASED"
    return "ok" if found.coverage >= LEAST_COVERAGE else "COVERS FEW"


def main() -> None:
    """Print the three tables, then how many rows hold."""
    start = time.perf_counter()
    verdicts = [*median_table(), *exact_table(), *bias_table()]
    held = sum(verdicts)
    print(f"\n{time.perf_counter() - start:.0f} s")
    print(f"{len(verdicts)} rows: {held} hold, {len(verdicts) - held} fall short")


if __name__ == "__main__":
    main()
