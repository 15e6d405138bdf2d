"""Writes docs/measured/asv.json, of which the documentation draws: every machine's newest figures.

    python -m benchmarks.summary [FOLDER]

reads what asv saved in FOLDER, .asv/results if not given.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

from asv.results import Results, iter_results_for_machine

MEASURED = Path("docs/measured/asv.json")
TOLD = ("cpu", "num_cpu", "gpu")  # of a machine, but not its name
LEFT = ("tracked.",)  # what does not depend on the machine stands in expected.json


def machine(folder: Path) -> dict[str, Any]:
    """What one machine is, and its newest figures: rows of parameters and a number."""
    told = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    newest = max(iter_results_for_machine(str(folder.parent), folder.name), key=started)
    known = {key: told[key] for key in TOLD if told.get(key)}
    versions = (folder / "versions.txt").read_text(encoding="utf-8").strip()
    return {**known, "versions": versions, "figures": figures(newest)}


def started(results: Results) -> int:
    """When the last of the benchmarks was run."""
    return max(results.started_at.values(), default=0)


def figures(results: Results) -> dict[str, dict[str, float]]:
    """Of every benchmark: a number by its parameters, without what failed or was skipped."""
    found = {}
    for name in sorted(results.get_all_result_keys()):
        if not name.startswith(LEFT):
            params = results.get_result_params(name)
            values = results.get_result_value(name, params)
            rows = zip(itertools.product(*params), values, strict=True)
            found[name] = {
                ", ".join(row).replace("'", ""): float(f"{value:.3g}")
                for row, value in rows
                if value is not None and not math.isnan(value)
            }
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".asv/results")
    machines = [machine(path.parent) for path in sorted(folder.glob("*/machine.json"))]
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    MEASURED.write_text(json.dumps(machines, indent=1) + "\n", encoding="utf-8")
    print(f"{len(machines)} machines, {MEASURED.stat().st_size} bytes in {MEASURED}")


if __name__ == "__main__":
    main()
