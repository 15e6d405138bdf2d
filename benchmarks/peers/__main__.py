"""Makes the environments, measures every library, prints the comparison and writes it down.

``python -m benchmarks.peers`` does everything; with names of adapters it measures these alone and
keeps the other figures; ``--tables`` measures nothing and writes the tables anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import environments, problems, results, tables

OURS = "tracekit"
SECTIONS = ("accuracy", "coverage", "tolerance", "cases", "timing", "kernels")
PATIENCE = 600  # seconds for one section of one library
THREADS = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
) | {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def sections(name: str) -> list[str]:
    """Return what there is to measure of a library."""
    adapter = importlib.import_module(f".adapters.{name}", __package__)
    methods = adapter.METHODS
    wanted = {
        "accuracy": bool(methods),
        "coverage": "trace" in methods or "logdet" in methods,
        "tolerance": hasattr(adapter, "tolerance"),
        "cases": "trace" in methods,
        "timing": "trace" in methods,
        "kernels": hasattr(adapter, "kernels"),
    }
    return [section for section in SECTIONS if wanted[section]]


def measure(name: str, section: str, folder: Path) -> dict[str, Any]:
    """Return what a worker in the library's environment wrote, or why it wrote nothing."""
    out = folder / f"{name} {section}.json"
    whole = name != OURS or section in ("timing", "kernels")
    adapter = name if whole else f"{name}:NumPy"
    words = (environments.python(name), "-m", "benchmarks.peers.worker", adapter, section)
    places = {"PYTHONPATH": str(environments.ROOT / "src")} if name == OURS else {}
    try:
        done = subprocess.run(
            [str(word) for word in (*words, folder, out)],
            cwd=environments.ROOT,
            env={**os.environ, **THREADS, **places},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer in {PATIENCE} s"}
    if not out.is_file():
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def everything(names: list[str]) -> dict[str, Any]:
    """Measure the libraries one after the other."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        problems.write(Path(folder))
        for name in names:
            start = time.perf_counter()
            try:
                if not environments.made(name):
                    say(f"{name}: making its environment")
                    environments.make(name)
            except RuntimeError as error:
                say(f"{name}: no environment: {error}")
                continue
            made, cpu = time.perf_counter() - start, 0.0
            for section in sections(name):
                told = measure(name, section, Path(folder))
                if "failed" in told:
                    say(f"{name}: {section}: {told['failed']}")
                    continue
                found.setdefault(name, {})[section] = told
                cpu += told["seconds"]
            took = time.perf_counter() - start - made
            say(f"{name}: environment {made:.0f} s, measured in {took:.0f} s ({cpu:.0f} s of CPU)")
    return found


def say(line: str) -> None:
    """Print what happens, at once."""
    print(line, flush=True)


def main() -> int:
    """Run from the command line; return 0 if the comparison could be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(environments.NAMES))
    parser.add_argument("--tables", action="store_true", help="write the tables anew, no more")
    given = parser.parse_args()
    if unknown := set(given.names) - set(environments.NAMES):
        parser.error(f"no adapter is called {', '.join(sorted(unknown))}")
    if not given.tables:
        start = time.perf_counter()
        before = results.load() if given.names and results.PATH.is_file() else None
        found = everything(given.names or list(environments.NAMES))
        results.save(results.reduce(found, before))
        say(f"{(time.perf_counter() - start) / 60:.0f} minutes in all\n")
    reduced = results.load()
    tables.write(reduced)
    say(tables.printed(reduced))
    return 0


if __name__ == "__main__":
    sys.exit(main())
