"""Tolerances of every function that takes one: kept in how many runs, and at what price.

1. Of 200 runs on each spectrum, the share whose true error is within the tolerance that was asked
   for, and the median of the products spent, beside those of the oracle: the least number of
   probes, of 8, 16, 32, ..., at which the same sketch is within the tolerance in 95 % of 100 runs.
   Of several numbers all have to be within it. Methods that only average (Hutchinson, Hutch++) are
   asked for more than 8 probes give: these know their own error to a factor of two or so, and pay
   up to 8 times what would have been enough.
2. Runs that are killed at every call of the operator, one after the other, and go on from their
   checkpoint: how many end other than the run that nothing interrupts, in any bit.

Operators of dimension 200 with spectra 1/i, i^-2, 0.8^i, 1 to 3 (flat), a step of 20 ones over
1e-3, and 10 large eigenvalues over noise; Hermitian ones, complex, with 1/i; complex ones, not
Hermitian, with singular values 1/i; and A = L L^H from products with its factor alone ("gram"). An
alignment is with i^-2.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import tracekit

from ..measure import in_two_processes
from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Matrix = NDArray[Any]
    Truth = Callable[[Matrix], list[Any]]

N, SEEDS, ORACLES, SHARE, PRICE = 200, seeds(200), seeds(100), 0.95, 3.0
PARTS = ("controls", "curves")  # of the same subject, in modules of their own
NO_ESTIMATORS = {"Tracker", "resume"}  # whose rtol is of a run, or of an estimate

Y = np.random.default_rng(2).choice([-1.0, 1.0], N)


# --- operators and what they are asked for --------------------------------------------------------


@cache
def matrix(name: str) -> Matrix:
    """Return a dense matrix of a spectrum."""
    i = np.arange(1, N + 1.0)
    if name in ("complex", "hermitian"):
        rng = np.random.default_rng(1)
        U, V = (np.linalg.qr(rng.standard_normal((N, N, 2)) @ [1, 1j])[0] for _ in range(2))
        return (U / i) @ (V if name == "complex" else U).conj().T
    noise = np.random.default_rng(3).uniform(0.5, 1.5, N) * 1e-3
    spectra = {
        "1/i": 1 / i,
        "i^-2": i**-2,
        "0.8^i": 0.8**i,
        "flat": np.linspace(1, 3, N),
        "step": np.where(i <= 20, 1.0, 1e-3),
        "low rank": np.where(i <= 10, 1.0, noise),
        "gram": 1 / i,
    }
    return tracekit.testing.known_spectrum(spectra[name])


def operator(name: str) -> tracekit.LinearOperator:
    """Return what is known by its products alone."""
    M = matrix(name)
    if name == "gram":
        L = np.linalg.cholesky(M)
        return tracekit.gram(tracekit.LinearOperator(L.shape, L.__matmul__, L.T.__matmul__))
    H = M.conj().T
    return tracekit.LinearOperator(M.shape, M.__matmul__, H.__matmul__, dtype=M.dtype)


def trace_of(A: Matrix) -> list[Any]:
    return [np.trace(A)]


def norm_of(A: Matrix) -> list[Any]:
    return [np.linalg.norm(A)]


def all_three(A: Matrix) -> list[Any]:
    t, f = np.trace(A), np.linalg.norm(A)
    return [t, f, abs(t) ** 2 / f**2]


def rank_of(A: Matrix) -> list[Any]:
    return all_three(A)[2:]


def dot(A: Matrix, B: Matrix | None = None) -> list[Any]:
    return [np.vdot(A, matrix("i^-2") if B is None else B)]


def cosine(A: Matrix, B: Matrix | None = None) -> list[Any]:
    B = matrix("i^-2") if B is None else B
    return [np.vdot(A, B) / (np.linalg.norm(A) * np.linalg.norm(B))]


def of_factor(truth: Truth, A: Matrix) -> list[Any]:
    """Return a number of A A^H."""
    return truth(A @ A.conj().T)


def cosine_of_factors(A: Matrix) -> list[Any]:
    B = matrix("i^-2")
    return cosine(A @ A.conj().T, B @ B.T)


def of_targets(A: Matrix) -> list[Any]:
    return cosine(np.outer(Y, Y), A)


class Asked(NamedTuple):
    """A function, its exact value, the spectra and the tolerance, and what it takes beside A."""

    truth: Truth
    cases: tuple[str, ...]
    rtol: float = 0.0
    atol: float = 0.0
    beside: Callable[[str], tuple[Any, ...]] = lambda case: ()

    def operators(self, case: str) -> tuple[Any, ...]:
        """Return what the function is given."""
        return operator(case), *self.beside(case)

    def is_within(self, found: Any, truth: list[Any]) -> bool:
        """Tell whether all numbers are within the tolerance."""
        pairs = zip(every(found), truth, strict=True)
        return all(abs(e.value - x) <= self.atol + self.rtol * abs(x) for e, x in pairs)


def another(case: str) -> tuple[Any, ...]:
    """Return the second operator of a pair."""
    B = matrix("i^-2")
    gram = tracekit.gram(np.linalg.cholesky(B)) if case == "gram" else None
    return (operator("i^-2") if gram is None else gram,)


SPECTRA = ("1/i", "i^-2", "0.8^i", "flat", "step", "low rank")
FUNCTIONS: dict[str, Asked] = {  # every function of the package that takes a tolerance
    "trace": Asked(trace_of, (*SPECTRA, "hermitian", "gram"), rtol=0.03),
    "hutchinson": Asked(trace_of, ("flat",), rtol=0.008),
    "xtrace": Asked(trace_of, (*SPECTRA, "hermitian", "gram"), rtol=0.03),
    "xnystrace": Asked(trace_of, (*SPECTRA, "hermitian", "gram"), rtol=0.03),
    "hutchpp": Asked(trace_of, SPECTRA, rtol=0.015),
    "nahutchpp": Asked(trace_of, ("flat", "i^-2"), rtol=0.02),
    "one_sided": Asked(partial(of_factor, trace_of), ("flat", "complex"), rtol=0.05),
    "frobenius_norm": Asked(norm_of, (*SPECTRA, "complex", "gram"), rtol=0.03),
    "spectral_summary": Asked(all_three, (*SPECTRA, "hermitian", "gram"), rtol=0.05),
    "effective_rank": Asked(rank_of, (*SPECTRA, "gram"), rtol=0.05),
    "inner": Asked(dot, (*SPECTRA, "gram"), rtol=0.05, beside=another),
    "alignment": Asked(cosine, (*SPECTRA, "complex", "gram"), atol=0.03, beside=another),
    "target_alignment": Asked(of_targets, (*SPECTRA, "gram"), rtol=0.03, beside=lambda case: (Y,)),
    "one_sided_summary": Asked(partial(of_factor, all_three), ("flat", "step"), rtol=0.1),
    "one_sided_alignment": Asked(cosine_of_factors, ("flat", "complex"), atol=0.07, beside=another),
}


def taking_a_tolerance() -> set[str]:
    """Return the names of all functions that do."""
    found = set[str]()
    for name in set(tracekit.__all__) - NO_ESTIMATORS:
        value = getattr(tracekit, name)
        if inspect.isfunction(value) and "rtol" in inspect.signature(value).parameters:
            found.add(name)
    return found


# --- runs -----------------------------------------------------------------------------------------


def every(found: Any) -> list[tracekit.Estimate]:
    """Return the estimates of a record."""
    return [found] if isinstance(found, tracekit.Estimate) else list(found)


class Kept(NamedTuple):
    """The share of runs within the tolerance, median products, the oracle's, and whether honest."""

    share: float
    spent: float
    oracle: float
    honest: bool


def kept(name: str, case: str) -> Kept:
    """Run a function on a spectrum with all seeds, and its oracle."""
    asked, function = FUNCTIONS[name], getattr(tracekit, name)
    given, truth = asked.operators(case), asked.truth(matrix(case))
    within, spent, honest = [], [], True
    for seed in range(SEEDS):
        counted, counters = zip(*map(counting, given), strict=True)
        found = function(*counted, rtol=asked.rtol, atol=asked.atol, rng=seed)
        within.append(asked.is_within(found, truth))
        spent.append(every(found)[0].num_matvecs)
        honest &= spent[-1] == sum(counter.total for counter in counters if counter)
    middle = float(np.median(spent))
    best = oracle(function, asked, given, truth, middle)
    return Kept(float(np.mean(within)), middle, best, honest)


def counting(x: Any) -> tuple[Any, Any]:
    """Return an operator that counts, and its counter; arrays as they are."""
    return tracekit.counted(x) if isinstance(x, tracekit.LinearOperator) else (x, None)


def oracle(
    function: Any, asked: Asked, given: tuple[Any, ...], truth: list[Any], most: float
) -> float:
    """Return the products of the first look at which 95 % of runs are within the tolerance.

    It is not looked for beyond the `most` that was spent.
    """
    within: dict[int, list[bool]] = {}
    for seed in range(ORACLES):

        def look(found: Any) -> bool:
            spent = every(found)[0].num_matvecs
            within.setdefault(spent, []).append(asked.is_within(found, truth))
            return 2 * spent > most  # the next look would be beyond

        function(*given, num_matvecs=int(most), rng=seed, callback=look)
    looks = [spent for spent, good in within.items() if np.mean(good) >= SHARE]
    return float(min(looks, default=most))


class Killed(BaseException):
    """Ends a run where nothing may catch it."""


def dying(A: tracekit.LinearOperator, at: int) -> tracekit.LinearOperator:
    """Return the operator, or the gram of a factor, that ends its run at one of its calls."""
    calls = 0

    def guarded(product: Any, X: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return product(X)

    L = A if A.factor is None else A.factor
    products = [partial(guarded, L.matmat), partial(guarded, L.rmatmat)]
    B = tracekit.LinearOperator(L.shape, *products, dtype=L.dtype)
    return B if A.factor is None else tracekit.gram(B)


def interrupted(name: str) -> tuple[int, int]:
    """Kill a run at each of its calls; return how many, and how many end other than it does."""
    asked, function = FUNCTIONS[name], getattr(tracekit, name)
    case = asked.cases[-1]
    A, *beside = asked.operators(case)
    options = {"rtol": 1e-9, "num_matvecs": 80, "rng": 3}
    whole = bits(function(A, *beside, **options))
    at, wrong = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while True:
            at += 1
            path = Path(folder) / f"{at}.npz"
            try:
                end = function(dying(A, at), *beside, checkpoint=path, **options)
            except Killed:
                end = function(A, *beside, checkpoint=path, **options)
                wrong += bits(end) != whole
            else:
                return at - 1, wrong + (bits(end) != whole)


def bits(found: Any) -> list[tuple[bytes, ...]]:
    """Return all of what was found."""
    return [
        (np.asarray(e.value).tobytes(), np.asarray(e.standard_error).tobytes(), repr(e).encode())
        for e in every(found)
    ]


# --- tables ---------------------------------------------------------------------------------------


def tables() -> Iterator[Table]:
    """What tolerances keep and cost, what is resumed, and what other modules tell of them."""
    yield Table(
        f"{SEEDS} runs of dimension {N}: within the tolerance, median products, and the oracle's",
        {"function": "<22", "A": "<10", "rtol": ">6", "atol": ">6", "within": ">8.3f",
         "products": ">10.0f", "oracle": ">8.0f", "ratio": ">7.2f"},
        kept_rows(),
    )  # fmt: skip
    yield Table("Killed at every call and resumed", FIGURES, resumed_rows())
    for name in PARTS:
        if find_spec(f"{__package__}.{name}"):
            yield from importlib.import_module(f".{name}", __package__).tables()


def kept_rows() -> Iterator[Row]:
    """Judge every function on every spectrum."""
    tasks = [(name, case) for name, asked in FUNCTIONS.items() for case in asked.cases]
    for (name, case), one in zip(tasks, in_two_processes(kept, *zip(*tasks, strict=True)),
                                 strict=True):  # fmt: skip
        asked, ratio = FUNCTIONS[name], one.spent / one.oracle
        cells = f"{asked.rtol:g}", f"{asked.atol:g}", one.share, one.spent, one.oracle, ratio
        holds = {"within": one.share >= SHARE, "ratio": ratio <= PRICE, "count": one.honest}
        yield Row((name, case, *cells), holds)


def resumed_rows() -> Iterator[Row]:
    """Judge runs that went on, and that no function is forgotten."""
    for name, (calls, wrong) in zip(FUNCTIONS, in_two_processes(interrupted, FUNCTIONS),
                                    strict=True):  # fmt: skip
        yield figure(f"{name}: ends that differ, of {calls}", wrong, most=0)
    forgotten = sorted(taking_a_tolerance() - set(FUNCTIONS))
    told = ", ".join(forgotten)
    yield figure(
        "functions that take a tolerance and have no row", len(forgotten), most=0, told=told
    )
