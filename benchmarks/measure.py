"""Clocks, peak memory, and work in processes of its own; needs nothing but the standard library.

``python -m benchmarks.measure MODULE FUNCTION ARGUMENTS`` is such a process: it prints what a
function returns of arguments in JSON, in JSON as the last line.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

ROOT = Path(__file__).parents[1]
ONE_THREAD = {  # with more, times are those of the scheduler
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

# --- time -----------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU time of one call, of this process alone."""
    start = time.process_time()
    work()
    return time.process_time() - start


def least(works: Iterable[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the least CPU time of each, of runs taken in turn, after one that may compile."""
    works = list(works)
    for work in works:
        work()
    rounds = [[cpu_seconds(work) for work in works] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]


def in_turn(
    ours: Callable[[int], Any], bare: Callable[[], Any], repeats: int, enough: float = math.inf
) -> tuple[float, float, float]:
    """Return median CPU times of both and of their ratio, taken in turn; ours is told the turn.

    Ten turns or more suffice when they have taken as many CPU seconds as are `enough`.
    """
    mine, plain, start = [], [], time.process_time()
    for turn in range(repeats):
        plain.append(cpu_seconds(bare))
        mine.append(cpu_seconds(partial(ours, turn)))
        if turn >= 9 and time.process_time() - start > enough:
            break
    ratio = statistics.median(a / b for a, b in zip(mine, plain, strict=True))
    return statistics.median(mine), statistics.median(plain), ratio


# --- memory ---------------------------------------------------------------------------------------


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def peak_above(work: Callable[[], Any]) -> float:
    """Return the bytes by which the resident memory rises while this runs, as Linux knows it."""

    def status(field: str) -> float:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * float(text.split(f"{field}:")[1].split()[0])

    ctypes.CDLL(None).malloc_trim(0)  # what is free is not ours
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


# --- processes ------------------------------------------------------------------------------------


def apart(
    function: Callable[..., Any],
    *arguments: Any,
    python: Path | str = sys.executable,
    patience: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call a function of a module in a fresh process; arguments and result are what JSON knows."""
    words = (python, "-m", "benchmarks.measure", function.__module__, function.__name__)
    try:
        done = subprocess.run(
            [*map(str, words), json.dumps(arguments)],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer in {patience:g} s") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def in_two_processes(work: Callable[..., Any], *columns: Iterable[Any]) -> Iterator[Any]:
    """Map `work` over the columns on at most two processes; yield each result when it is there."""
    with ProcessPoolExecutor(2) as pool:
        yield from pool.map(work, *columns)


def main(module: str, function: str, arguments: str) -> None:
    """Print what a function returns."""
    found = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    print(json.dumps(found), flush=True)
    os._exit(0)  # threads of some libraries would keep the process


if __name__ == "__main__":
    main(*sys.argv[1:])
