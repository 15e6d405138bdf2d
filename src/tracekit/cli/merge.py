"""The option ``tracekit estimate --merge``: printed results of several runs as one."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from .._estimates import Estimate, merged
from .arguments import NOT_CONVERGED, OK, MisusedError
from .console import as_text

TAKEN = "merge", "level", "json", "run"  # options that go with it
SAME = "power", "function"  # what has to be so of all results, besides the name of the file


def add(parser: argparse.ArgumentParser) -> None:
    """Add the option to the command ``estimate``, which then reads no matrix."""
    alone = parser.get_default("run")
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="RUN.json",
        help="what runs of one estimate with different seeds printed (--json), as one estimate; "
        "no FILE is read",
    )

    def run(arguments: argparse.Namespace) -> int:
        found: int = _merge(arguments) if arguments.merge else alone(arguments)
        return found

    parser.set_defaults(run=run)


def _merge(arguments: argparse.Namespace) -> int:
    """Print what several runs say together."""
    for name, value in vars(arguments).items():
        given = value is not None and value is not False and (name, value) != ("power", 1)
        if given and name not in TAKEN:
            option = "FILE" if name == "file" else "--" + name.replace("_", "-")
            raise MisusedError(f"--merge is incompatible with {option}; leave out one of them")
    reports = [_read(path) for path in arguments.merge]
    try:
        result = merged([_estimate(report) for report in reports])
    except ValueError as error:
        raise MisusedError(f"{', '.join(map(str, arguments.merge))}: {error}") from error
    ends = (float(end) for end in result.confidence_interval(arguments.level))
    report = reports[0] | result.to_dict() | {
        "level": arguments.level,
        "confidence_interval": [end if math.isfinite(end) else None for end in ends],
        "max_matvecs": None,
        "seed": [report.get("seed") for report in reports],
        "seconds": round(sum(report["seconds"] for report in reports), 4),
        "merged": [str(path) for path in arguments.merge],
        "checkpoint": None,
        "plot": None,
    }  # fmt: skip
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return OK if result.converged else NOT_CONVERGED


def _read(path: Path) -> dict[str, Any]:
    """What a run printed."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for name in (*SAME, "file", "shape", "seconds", "rtol", "atol", "value"):
            report[name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise MisusedError(
            f"{path} holds no result that can be merged ({error}); pass what "
            "`tracekit estimate --json` printed"
        ) from error
    return dict(report)


def _estimate(report: dict[str, Any]) -> Estimate:
    """The estimate of a report, which remembers the file and what was asked of it."""
    estimate = Estimate.from_dict(report)
    asked = {name: report[name] for name in SAME} | {"file": Path(report["file"]).name}
    return replace(estimate, origin=(estimate.origin or {}) | asked)
