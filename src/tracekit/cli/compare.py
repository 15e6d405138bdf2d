"""The command ``tracekit compare FILE``: errors of all methods against products."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .._trace import BUDGETS, applicable_methods, checked_budgets, compare
from .arguments import (
    OK,
    MisusedError,
    add_command,
    nonnegative_integer,
    positive_integer,
    positive_integers,
    read,
    require_plottable,
    watched,
)
from .console import Progress, saved


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "compare",
        _run,
        help="compare all methods on the matrix in a file",
        description=(
            "Run all methods that apply to a square matrix, or to a power of it, over many seeds\n"
            "and print the quartiles of their errors. Costs N products for each seed, method and\n"
            "budget N, and n products for the exact trace."
        ),
    )
    parser.add_argument(
        "--num-matvecs",
        type=positive_integers,
        metavar="N,N,...",
        help=f"budgets (default: those of {','.join(map(str, BUDGETS))} that are below n)",
    )
    parser.add_argument(
        "--num-seeds",
        type=positive_integer,
        default=20,
        metavar="S",
        help="runs of each method at each budget (default: 20)",
    )
    parser.add_argument(
        "--seed",
        type=nonnegative_integer,
        default=0,
        metavar="S",
        help="the first seed (default: 0)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="OUT.png",
        help="plot median errors and quartiles against products (.png, .pdf or .svg)",
    )


def _run(arguments: argparse.Namespace) -> int:
    """Run ``tracekit compare``."""
    import numpy as np

    if arguments.plot:
        require_plottable(arguments.plot)
    A = read(arguments)
    psd, n = arguments.psd, A.shape[0]
    try:
        budgets = checked_budgets(arguments.num_matvecs, n)
    except ValueError as error:
        raise MisusedError(str(error)) from error
    runs = arguments.num_seeds * len(applicable_methods(A, psd))
    with Progress(n + runs * sum(budgets)) as progress, np.errstate(all="ignore"):
        comparison = compare(
            watched(A, progress),
            budgets,
            num_seeds=arguments.num_seeds,
            rng=arguments.seed,
            psd=psd,
        )
    report = comparison.to_dict() | {
        "file": str(arguments.file),
        "shape": [n, n],
        "power": arguments.power,
        "seed": arguments.seed,
        "plot": None,
    }
    try:
        if arguments.plot:
            with saved(arguments.plot) as axes:
                comparison.plot(axes)
                power = f", power {arguments.power}" if arguments.power > 1 else ""
                name = Path(arguments.file).name + power
                axes.set_title(f"{name}: {axes.get_title()}", fontsize="medium")
            report["plot"] = str(arguments.plot)
    finally:  # the results so far are printed, whatever becomes of the plot
        print(json.dumps(report, indent=2) if arguments.json else comparison)
    if arguments.plot and not arguments.json:
        print(f"plot: {arguments.plot}")
    return OK
