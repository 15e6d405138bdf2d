"""Log-determinants, large sparse graphs and exact cases of functions of matrices, with targets.

1. What has to be exact.
2. Median relative errors of log-determinants at equal products, ours beside the stochastic Lanczos
   quadrature of other libraries (scikit-primate, imate, matfree). These take a depth: each is run
   with several, and the best of its medians counts. On decaying spectra ours has to be five times
   better than the best of them, on the flat one no worse. The matrices are `problems.covariance`'s;
   the others run in the environments that `make peers` has made, or in this one.
3. Coverage: the share of 95 % intervals that hold the value, over 100 seeds, depth and deflation
   chosen by the library; and once at a depth too small for the quadrature to have converged.
4. A mesh of 102,400 nodes, whose eigenvalues are known, and a graph of 100,000 points in a square
   joined to their six nearest others, whose determinant a sparse factorisation gives: errors, CPU
   seconds and memory on one thread.
5. Spectra that deceive quadrature, cases of use, values from one sketch, little memory: `spectra`.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit
from tracekit import functions

from ..measure import apart, cpu_seconds, in_two_processes, peak_memory
from ..peers import environments, worker
from ..problems import MESH, covariance, laplacian, mesh, neighbours
from . import spectra
from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Peers = dict[str, tuple[float, int] | str]  # median error and its depth, or why there is none

PRODUCTS, SEEDS, PEER_SEEDS, PEER_DEPTHS = 600, seeds(20), seeds(7), (15, 40)
PEERS, PATIENCE = ("primate", "imate", "matfree"), 120
COVERED, LEAST_COVERAGE, COVERAGE_PRODUCTS = seeds(100), 0.90, 200
GAIN = {"rbf": 5.0, "Matern": 5.0, "flat": 1.0}
EXACT, ERROR, SECONDS, GIGABYTES = 1e-10, 1e-3, 60, 1
GRAPHS = ("mesh, logdet", "mesh, Estrada index", "mesh, heat trace", "neighbours, logdet")


def tables() -> Iterator[Table]:
    """Exact cases, log-determinants, coverage, graphs."""
    yield Table("Exact cases: worst of ten seeds, and refusals", FIGURES, exact_cases())
    yield Table(
        f"Log-determinants, {PRODUCTS} products, median relative error",
        {"matrix": "<8", "ours": ">9.1e", "gain": ">7.1f", "wanted": ">8g", "  others": "<90"},
        logdets(),
    )
    yield Table(
        f"Coverage of 95 % intervals, {COVERED} seeds, {COVERAGE_PRODUCTS} products: at least "
        f"{LEAST_COVERAGE}",
        {"matrix": "<8", "depth": "<19", "coverage": ">10.2f", "quadrature's of error": ">24.2f"},
        coverage(),
    )
    yield Table(
        f"Graphs of 100,000 nodes, one thread: error < {ERROR:g}, {SECONDS} s, {GIGABYTES} GB",
        {"case": "<20", "error": ">9.1e", "s": ">6.0f", "GB": ">6.2f", "  how": "<24"},
        graphs(),
    )
    yield from spectra.tables()


# --- 1. exact cases -------------------------------------------------------------------------------


def polynomial(seed: int) -> float:
    """Return the largest relative error of a probe's integral of a polynomial of degree 15."""
    A = tracekit.testing.known_spectrum(np.random.default_rng(seed).random(300))
    c = np.random.default_rng(seed + 50).standard_normal(16)
    at_8, at_25 = (
        tracekit.trace_function(
            A, lambda x: np.polynomial.polynomial.polyval(x, c), m, rng=seed, depth=d, deflate=0
        ).samples
        for m, d in ((80, 8), (250, 25))
    )
    return float(np.max(np.abs(at_8 / at_25[: len(at_8)] - 1)))


def few_eigenvalues(seed: int) -> float:
    """Return how far probes at depth 3 are from those at depth 12, for three eigenvalues."""
    A = tracekit.testing.known_spectrum(np.repeat([0.5, 1.0, 4.0], 100))
    a, b = (tracekit.logdet(A, 20 * d, rng=seed, depth=d, deflate=0).samples for d in (3, 12))
    return float(np.max(np.abs(a / b - 1)))


def identity(seed: int) -> float:
    """Return the relative error of the determinant of a multiple of the identity."""
    return abs(float(tracekit.logdet(3 * np.eye(300), 60, rng=seed)) / (300 * np.log(3)) - 1)


def rank_deficient(seed: int) -> float:
    """Return the relative error of the nuclear norm of 20 columns, from 40 products."""
    L = np.random.default_rng(seed).standard_normal((300, 20))
    exact = float(np.sum(np.linalg.svd(L, compute_uv=False)))
    return abs(float(tracekit.nuclear_norm(L, 40, rng=seed)) / exact - 1)


def exact_cases() -> Iterator[Row]:
    """Judge the worst errors, and that a logarithm is refused where there is none."""
    for error in (polynomial, few_eigenvalues, identity, rank_deficient):
        name = error.__name__.replace("_", " ")
        yield figure(name, max(map(error, range(10))), most=EXACT)
    for name, w in (("singular", [0.0, 1.0, 2.0]), ("indefinite", [-1.0, 1.0, 2.0])):
        A = tracekit.testing.known_spectrum(np.repeat(w, 100))
        try:
            tracekit.logdet(A, 100, rng=0)
            refused, reason = False, "not refused"
        except ValueError as error:
            refused, reason = True, str(error)
        yield figure(f"log of {name} is refused", refused, least=1, told=reason)


# --- 2. log-determinants --------------------------------------------------------------------------


def logdets() -> Iterator[Row]:
    """Judge how many times smaller our errors are than the best of the others."""
    jobs = [(name, who) for name in GAIN for who in (our_error, peer_errors)]
    found = in_two_processes(call, jobs)
    for name, wanted in GAIN.items():
        ours, theirs = next(found), next(found)
        known = [x[0] for x in theirs.values() if isinstance(x, tuple)]
        told = [
            f"{peer} {x[0]:.1e} (depth {x[1]})" if isinstance(x, tuple) else f"{peer}: {x}"
            for peer, x in theirs.items()
        ]
        gain = min(known) / ours if known else None  # nobody to be compared with
        holds = {} if gain is None else {"gain": gain >= wanted}
        yield Row((name, ours, gain, wanted, f"  {', '.join(told)}"), holds)


def call(job: tuple[str, Callable[[str], Any]]) -> Any:
    """Run ours or theirs."""
    name, who = job
    return who(name)


def our_error(name: str) -> float:
    """Return our median relative error; refuse runs that spend other than they claim."""
    A, exact = covariance(name)
    errors = []
    for seed in range(SEEDS):
        counting, counter = tracekit.counted(A)
        estimate = tracekit.logdet(counting, PRODUCTS, rng=seed)
        if not counter.total == estimate.num_matvecs <= PRODUCTS:
            raise SystemExit(f"{name}: {counter.total} products, not {estimate.num_matvecs}")
        errors.append(abs(float(estimate) / exact - 1))
    return float(np.median(errors))


def peer_errors(name: str) -> Peers:
    """Return each library's best median relative error and its depth, or why there is none."""
    A, exact = covariance(name)
    found: Peers = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.npy"
        np.save(path, A)
        for peer, depth in itertools.product(PEERS, PEER_DEPTHS):
            python = environments.python(peer) if environments.made(peer) else sys.executable
            asked = peer, str(path), PRODUCTS, depth, PEER_SEEDS
            try:
                values = apart(worker.logdets, *asked, python=python, patience=PATIENCE)
            except RuntimeError as why:
                found.setdefault(peer, str(why))
                continue
            errors = np.abs(np.array(values) / exact - 1)
            median = float(np.median(np.where(np.isfinite(errors), errors, np.inf)))
            before = found.get(peer, "")
            if isinstance(before, str) or median < before[0]:
                found[peer] = median, depth
    return found


# --- 3. coverage ----------------------------------------------------------------------------------


def coverage() -> Iterator[Row]:
    """Judge the shares of intervals that hold the value."""
    cases = [*((name, None) for name in GAIN), ("Matern", 8)]
    results = in_two_processes(covered, *zip(*cases, strict=True))
    for (name, depth), (share, part) in zip(cases, results, strict=True):
        how = "as chosen" if depth is None else f"{depth}, no sketch"
        yield Row((name, how, share, part), {"": share >= LEAST_COVERAGE})


def covered(name: str, depth: int | None) -> tuple[float, float]:
    """Return the share of intervals that hold the value, and the quadrature's of the error."""
    A, exact = covariance(name)
    hits, share = 0, []
    for seed in range(COVERED):
        plain = {} if depth is None else {"deflate": 0}
        estimate = tracekit.logdet(A, COVERAGE_PRODUCTS, rng=seed, depth=depth, **plain)
        low, high = estimate.confidence_interval()
        hits += bool(low <= exact <= high)
        share.append(float(estimate.kept.quadrature / estimate.standard_error))
    return hits / COVERED, float(np.median(share))


# --- 4. large graphs ------------------------------------------------------------------------------


def graphs() -> Iterator[Row]:
    """Judge every case, each in a process of its own, so that memory is its own."""
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(partial(apart, large), GRAPHS))
    for case, (error, seconds, gigabytes, reason) in zip(GRAPHS, results, strict=True):
        holds = {"error": error < ERROR, "s": seconds < SECONDS, "GB": gigabytes < GIGABYTES}
        yield Row((case, error, seconds, gigabytes, f"  {reason}"), holds)


def large(case: str) -> tuple[float, float, float, str]:
    """Return the relative error, CPU seconds, gigabytes at the most, and how it was done."""
    from scipy import sparse

    W = mesh() if case.startswith("mesh") else neighbours()
    L = laplacian(W)
    shifted = (L + 0.1 * sparse.eye_array(W.shape[0])).tocsr()
    estimates: list[tracekit.Estimate] = []

    def estimate() -> None:
        if case.endswith("Estrada index"):
            found = tracekit.estrada_index(W, 5000, rng=0)
        elif case.endswith("heat trace"):
            found = tracekit.trace_function((-0.5 * L).tocsr(), functions.exp, 5000, rng=0)
        else:
            found = tracekit.logdet(shifted, 1000, rng=0)
        estimates.append(found)

    seconds, gigabytes = cpu_seconds(estimate), peak_memory() / 2**30
    error = abs(float(estimates[0]) / exact_value(case, shifted) - 1)
    return error, seconds, gigabytes, estimates[0].reason


def exact_value(case: str, shifted: Any) -> float:
    """Return what a case should give: from known eigenvalues, or a sparse factorisation."""
    of_laplacian = 2 - 2 * np.cos(np.pi * np.arange(MESH) / MESH)
    if case == "mesh, Estrada index":
        of_adjacency = 2 * np.cos(np.pi * np.arange(1, MESH + 1) / (MESH + 1))
        return float(np.sum(np.exp(of_adjacency)) ** 2)
    if case == "mesh, heat trace":
        return float(np.sum(np.exp(-0.5 * of_laplacian)) ** 2)
    if case == "mesh, logdet":
        return float(np.sum(np.log(of_laplacian[:, None] + of_laplacian + 0.1)))
    from scipy.sparse.linalg import splu

    symmetric = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
    factors = splu(shifted.tocsc(), permc_spec="MMD_AT_PLUS_A", **symmetric)
    return float(np.sum(np.log(np.abs(factors.U.diagonal()))))
