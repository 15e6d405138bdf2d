"""Prints the tables of all subjects, or of those that are named; 1 if a figure falls short."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time

from ..measure import ONE_THREAD

SUBJECTS = (
    *("accuracy", "calibration", "tolerances", "norms", "functions"),
    *("tracking", "memory", "products", "kernels", "networks", "distributed", "probing"),
)


def main(arguments: list[str] | None = None) -> int:
    """Print tables as they are measured, and after each subject how many of its figures hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    asked = parser.parse_args(arguments).only
    if unknown := [name for name in asked if name not in SUBJECTS]:
        parser.error(f"no subject is called {', '.join(unknown)}; there are {', '.join(SUBJECTS)}")
    os.environ.update(ONE_THREAD)  # before NumPy is loaded
    summary, short = [], 0
    for name in asked or SUBJECTS:
        start = time.perf_counter()
        module = importlib.import_module(f".{name}", __package__)
        print(f"\n{name}: {module.__doc__.strip()}", flush=True)
        held = [good for table in module.tables() for good in table.show()]
        missed = held.count(False)
        took = f"{time.perf_counter() - start:.0f} s"
        summary.append(f"{name:12}{len(held):4} figures, {missed:3} fall short, {took:>7}")
        print(f"\n{summary[-1]}", flush=True)
        short += missed
    if len(summary) > 1:
        print("", *summary, sep="\n")
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
