"""Measures one library in its own Python, and writes what it saw as JSON.

``python -m benchmarks.peers.worker ADAPTER SECTION FOLDER OUT``, in a process for each section:
some libraries do not end by themselves, and none should spoil another's memory.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..measure import cpu_seconds, in_turn, least
from .contract import PSD_ONLY, Answer, Counter, Run

ALL, FEW, DEEP = (30, 60, 120, 300), (60, 300), (120, 300)
OTHERS = dict.fromkeys(("i^-2", "i^-0.5", "kernel", "triangles"), FEW)
PLAN: dict[str, dict[str, tuple[int, ...]]] = {  # quantity, problem, budgets
    "trace": {
        **dict.fromkeys(("i^-2", "i^-0.5", "1+U(0,1)", "0.7^i"), ALL),
        **dict.fromkeys(("i^-2, complex", "triangles"), FEW),
    },
    "diagonal": OTHERS,
    "norm": OTHERS,
    "logdet": dict.fromkeys(("kernel", "1+U(0,1)"), DEEP),
}
SEEDS, LEAST, ALLOWANCE = 30, 9, 2.0  # runs; fewer if they take longer than these CPU seconds
COVERED = {"trace": (("i^-2", "i^-0.5", "1+U(0,1)", "triangles"), 60),
           "logdet": (("kernel", "1+U(0,1)"), 300)}  # fmt: skip
COVERAGE_SEEDS, COVERAGE_ALLOWANCE, COVERED_DEPTH = 100, 12.0, "depth 20"
TOLERANCE, TOLERATED = 0.02, ("i^-2", "i^-0.5", "triangles")
CASE_SEEDS = 20
TIMED = ("Hutchinson", "Hutch++", "XTrace", "XNysTrace")
REPEATS = {(2000, 300): 9, (2000, 60): 15, (200, 30): 101}
SHORT = 5e-3


class Task:
    """One adapter, the folder of problems, and what is known of them."""

    def __init__(self, adapter: str, folder: Path) -> None:
        name, _, mode = adapter.partition(":")
        self.module = importlib.import_module(f".adapters.{name}", __package__)
        self.modes = (mode,) if mode else self.module.MODES
        self.folder = folder
        self.products: dict[tuple[str, str, int], int] = {}
        self.told = json.loads((folder / "problems.json").read_text(encoding="utf-8"))

    def matrix(self, file: str) -> np.ndarray:
        """Read a matrix."""
        return np.load(self.folder / file)

    def methods(self, quantity: str, psd: bool) -> Iterator[str]:
        """Yield the methods that a problem allows."""
        for method in self.module.METHODS.get(quantity, ()):
            if psd or method not in PSD_ONLY:
                yield method


def accuracy(task: Task) -> list[Any]:
    """Return [quantity, problem, budget, method, products, relative errors, ms] of all methods."""
    rows = []
    for quantity, problems in PLAN.items():
        for problem, budgets in problems.items():
            facts = task.told["accuracy"][problem]
            matrix = task.matrix(facts["file"])
            truth = np.diagonal(matrix) if quantity == "diagonal" else facts[quantity]
            for method in task.methods(quantity, facts["psd"]):
                for m in budgets:
                    found = _errors(task, quantity, method, matrix, m, truth)
                    rows.append([quantity, problem, m, method, *found])
    return rows


def _errors(
    task: Task, quantity: str, method: str, matrix: np.ndarray, m: int, truth: Any
) -> tuple[int, Any, float]:
    """Return the products and the CPU time of one run, and errors of all or why there are none."""
    make = task.module.make
    try:
        run = make(quantity, method, matrix, m, task.modes[-1], None)
        answers, times = _within(run, SEEDS, ALLOWANCE, seed=1000 * m)
    except Exception as error:
        return 0, said(error), 0.0
    if (quantity, method, m) not in task.products:  # none of these budgets is adaptive
        counter = Counter()
        make(quantity, method, matrix, m, task.modes[0], counter)(0)
        task.products[quantity, method, m] = counter.products
    errors = [float(np.linalg.norm(a.value - truth) / np.linalg.norm(truth)) for a in answers]
    return task.products[quantity, method, m], errors, 1e3 * float(np.median(times))


def _within(run: Run, seeds: int, allowance: float, seed: int) -> tuple[list[Answer], list[float]]:
    """Run with seeds that follow one another, fewer of them if they take too long; time each."""
    answers: list[Answer] = []
    times: list[float] = []
    while len(answers) < seeds and (len(answers) < LEAST or sum(times[1:]) < allowance):
        times.append(cpu_seconds(lambda: answers.append(run(seed + len(answers)))))
    return answers, times


def coverage(task: Task) -> list[Any]:
    """Return [quantity, problem, budget, method, runs, share of nominal 95 % intervals]."""
    rows = []
    for quantity, (problems, m) in COVERED.items():
        for problem in problems:
            facts = task.told["accuracy"][problem]
            matrix = task.matrix(facts["file"])
            for method in task.methods(quantity, facts["psd"]):
                if method.startswith("SLQ") and not method.endswith(COVERED_DEPTH):
                    continue
                try:
                    run = task.module.make(quantity, method, matrix, m, task.modes[-1], None)
                    if run(0).half_width is None:
                        continue
                    answers, _ = _within(run, COVERAGE_SEEDS, COVERAGE_ALLOWANCE, seed=7_000_000)
                except Exception as error:
                    rows.append([quantity, problem, m, method, 0, said(error)])
                    continue
                held = [abs(float(a.value) - facts[quantity]) <= a.half_width for a in answers]
                rows.append([quantity, problem, m, method, len(held), float(np.mean(held))])
    return rows


def tolerance(task: Task) -> list[Any]:
    """Return [problem, method, runs, share within the tolerance, median products]."""
    rows = []
    for problem in TOLERATED if hasattr(task.module, "tolerance") else ():
        facts = task.told["accuracy"][problem]
        matrix, counter = task.matrix(facts["file"]), Counter()
        made = task.module.tolerance(matrix, TOLERANCE, counter, facts["psd"])
        for method, run in made.items():
            kept, spent = [], []
            for seed in range(SEEDS):
                counter.products = 0
                value = float(run(seed).value)
                kept.append(abs(value / facts["trace"] - 1) <= TOLERANCE)
                spent.append(counter.products)
            rows.append([problem, method, SEEDS, float(np.mean(kept)), float(np.median(spent))])
    return rows


def cases(task: Task) -> list[Any]:
    """Return [case, method, what came of it] for the traces of small delicate matrices."""
    rows = []
    for name, facts in task.told["cases"].items():
        matrix = task.matrix(facts["file"])
        for method in task.methods("trace", facts["psd"]):
            rows.append([name, method, _verdict(task, method, matrix, facts)])
    return rows


def _verdict(task: Task, method: str, matrix: np.ndarray, facts: dict[str, Any]) -> str:
    """Judge the mean and the spread of some runs by what Girard-Hutchinson's error would be."""
    truth = complex(*facts["trace"])
    try:
        make = task.module.make
        run = make("trace", method, matrix, facts["budget"], task.modes[-1], None)
        values = np.array([complex(np.squeeze(run(s).value)) for s in range(CASE_SEEDS)])
    except Exception as error:
        return said(error)
    if not np.all(np.isfinite(values)):
        return "wrong: NaN"
    scale = max(facts["sigma"], 1e-5 * abs(truth)) or 1e-300
    off = (values - truth) / scale
    biased = abs(np.mean(off)) > 5 / CASE_SEEDS**0.5
    if not biased and np.sqrt(np.mean(np.abs(off) ** 2)) <= 5:
        return "right"
    shown = complex(np.mean(values)) if biased else complex(values[np.argmax(np.abs(off))])
    return f"wrong: {_short(shown)} for {_short(truth)}"


def _short(value: complex) -> str:
    parts = f"{value.real:.3g}"
    return parts if abs(value.imag) < 1e-9 * abs(value) else f"{parts}{value.imag:+.3g}i"


def timing(task: Task) -> list[Any]:
    """Return [n, budget, mode, method, first ms, ms, ms of the bare product, their ratio]."""
    rows = []
    for n, m in REPEATS:
        matrix = task.matrix(task.told["timed"][str(n)])
        for mode in task.modes:
            bare = task.module.bare(matrix, m, mode)
            for method in task.methods("trace", psd=True):
                if method not in TIMED:
                    continue
                try:
                    run = task.module.make("trace", method, matrix, m, mode, None)
                    first = cpu_seconds(lambda run=run: run(0))
                    found = _interleaved(run, bare, REPEATS[n, m])
                except Exception as error:
                    rows.append([n, m, mode, method, said(error)])
                    continue
                rows.append([n, m, mode, method, 1e3 * first, *found])
    return rows


def _interleaved(run: Run, bare: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Return medians of both times in ms and of their ratio, from turns about."""
    run(1)  # warm, as the first call may have compiled
    inner = 5 if cpu_seconds(lambda: run(2)) < SHORT else 1  # short calls are timed five at a time
    ours, plain, ratio = in_turn(
        lambda seed: [run(seed) for _ in range(inner)],
        lambda: [bare() for _ in range(inner)],
        repeats,
        ALLOWANCE,
    )
    return 1e3 * ours / inner, 1e3 * plain / inner, ratio


def kernels(task: Task) -> list[Any]:
    """Return [network, method, first ms, ms, trace, norm] of exact kernels of networks."""
    rows = []
    for name, file in task.told["networks"].items() if _has_kernels(task) else ():
        X, *weights = np.load(task.folder / file).values()
        for method, (run, read) in task.module.kernels(weights, X).items():
            first = cpu_seconds(run)
            K = np.asarray(read(run()), np.float64)
            told = [float(np.trace(K)), float(np.linalg.norm(K))]
            rows.append([name, method, 1e3 * first, 1e3 * least([run], 9)[0], *told])
    return rows


def _has_kernels(task: Task) -> bool:
    return hasattr(task.module, "kernels")


def logdets(adapter: str, file: str, m: int, depth: int, seeds: int) -> list[float]:
    """Return estimates of a log-determinant by quadrature of this depth; of another benchmark."""
    module = importlib.import_module(f".adapters.{adapter}", __package__)
    made = module.make("logdet", f"SLQ, depth {depth}", np.load(file), m, module.MODES[-1], None)
    return [float(made(seed).value) for seed in range(1, seeds + 1)]


def said(error: Exception) -> str:
    """Return the first words of an error."""
    words = " ".join(str(error).split())
    return f"error: {type(error).__name__}: {words[:70]}"


SECTIONS = {f.__name__: f for f in (accuracy, coverage, tolerance, cases, timing, kernels)}


def main(adapter: str, section: str, folder: str, out: str) -> None:
    """Write the version, the seconds and the rows of one section."""
    warnings.simplefilter("ignore")
    start = time.process_time()
    task = Task(adapter, Path(folder))
    rows = SECTIONS[section](task)
    try:
        version = importlib.metadata.version(task.module.PEER.distribution)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    found = {"version": version, "rows": rows, "seconds": time.process_time() - start}
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # threads of some libraries would keep the process


if __name__ == "__main__":
    main(*sys.argv[1:])
