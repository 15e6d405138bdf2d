"""Gate on regressions: errors at a budget, coverage and products spent, not times.

    python -m benchmarks.check [--update]

Every estimator runs on NumPy, on two spectra, at two budgets, of fixed seeds. What is found has to
be what `benchmarks/asv/expected.json` says:

- products spent: exactly, and as many as the estimates claim;
- median relative error: at most 1.05 times what is expected, or 64 units of rounding;
- share of the nominal 95 % intervals that cover: at most 0.02 less.

The array libraries that are installed have to give NumPy's estimates to 1e-9, and spend the same
products. A change of draws changes every error, for better and worse: ``--update`` then writes the
new figures, and the reader of the change judges them.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .asv import tracked
from .asv._backends import ALL, backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    Figures = dict[str, float]  # error, coverage, products, claimed

EXPECTED = Path(__file__).parent / "asv" / "expected.json"
WORSE, ROUNDING, LESS, APART = 1.05, 64 * sys.float_info.epsilon, 0.02, 1e-9


def measured() -> Iterator[tuple[str, Figures]]:
    """Name and figures of every row, as they are found."""
    cells = itertools.product(*tracked.Accuracy.params)
    for (name, spectrum, m), found in tracked.tracked(cells):
        yield f"{name} {spectrum} m={m}", found._asdict()


def regressions(row: str, found: Figures, expected: Figures | None) -> list[str]:
    """One sentence for each figure of a row that is worse than expected."""
    faults = []
    if found["products"] != found["claimed"]:
        faults.append(
            f"{row}: {found['products']} products were spent, and the estimates claim "
            f"{found['claimed']}."
        )
    if expected is None:
        return [*faults, f"{row}: nothing is expected of it yet; run with --update."]
    if found["products"] != expected["products"]:
        faults.append(f"{row}: {found['products']} products, expected {expected['products']}.")
    if not found["error"] <= max(WORSE * expected["error"], ROUNDING):
        faults.append(
            f"{row}: median relative error {found['error']:.3g}, more than {WORSE} times the "
            f"expected {expected['error']:.3g}."
        )
    if not found["coverage"] >= expected["coverage"] - LESS - 1e-9:
        faults.append(
            f"{row}: {found['coverage']:.1%} of the intervals cover, more than {LESS:.0%} below "
            f"the expected {expected['coverage']:.1%}."
        )
    return faults


def disagreements() -> Iterator[tuple[str, str, list[str]]]:
    """Every library of the CPU that is here, what was found of it, and sentences."""
    ours = tracked.traces("numpy:cpu")
    for on in ALL[1:]:
        if not on.endswith(":cpu"):
            continue
        try:
            backend(on)
        except NotImplementedError as why:
            yield on, f"skipped: {why}", []
            continue
        theirs = tracked.traces(on)
        apart = tracked.difference(theirs, ours)
        faults = [
            f"{on}: {name} spends {theirs[name][1]} products, {ours[name][1]} on NumPy."
            for name in ours
            if theirs[name][1] != ours[name][1]
        ]
        if not apart <= APART:
            faults.append(f"{on}: estimates differ from NumPy's by {apart:.1g}, not {APART:.0e}.")
        yield on, f"{apart:.1e}  {'WORSE' if faults else 'ok'}", faults


def line(row: str, found: Figures, expected: Figures | None, *, holds: bool) -> str:
    """One line of the table: found beside expected."""
    before = expected or dict.fromkeys(found, float("nan"))
    name, spectrum, m = row.split()
    return (
        f"{name:17}{spectrum:7}{m:6}{found['error']:10.2e}{before['error']:10.2e}"
        f"{found['coverage']:10.3f}{before['coverage']:7.3f}"
        f"{found['products']:9}{before['products']:5}  {'ok' if holds else 'WORSE'}"
    )


def text(rows: dict[str, Figures]) -> str:
    """One row a line, so that differences between versions read well."""
    lines = (
        f'  "{row}": {{"error": {found["error"]:.4g}, "coverage": {found["coverage"]:.4f}, '
        f'"products": {found["products"]}}}'
        for row, found in rows.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: list[str] | None = None) -> int:
    """Print what is found beside what is expected; then one sentence a regression."""
    parser = argparse.ArgumentParser(prog="benchmarks.check", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help=f"write {EXPECTED.name} anew")
    update = parser.parse_args(arguments).update
    expected = {} if update else json.loads(EXPECTED.read_text(encoding="utf-8"))
    found, faults = {}, []
    print(f"{'':30}{'error':>10}{'expected':>10}{'coverage':>10}{'':>7}{'products':>9}")
    for row, figures in measured():
        found[row] = figures
        worse = [] if update else regressions(row, figures, expected.get(row))
        print(line(row, figures, expected.get(row), holds=not worse), flush=True)
        faults += worse
    print("\nLargest relative difference from NumPy's estimates of the same seed")
    for on, verdict, worse in disagreements():
        print(f"{on:24}{verdict}", flush=True)
        faults += worse
    faults += [f"{row}: it is expected, and no longer measured." for row in expected.keys() - found]
    if update:
        EXPECTED.write_text(text(found), encoding="utf-8")
        print(f"\n{len(found)} rows are written to {EXPECTED.name}; read the difference.")
    print("", *faults, f"{len(found)} rows, {len(faults)} regressions", sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
