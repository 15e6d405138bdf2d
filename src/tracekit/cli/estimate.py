"""The command ``tracekit estimate FILE``: the trace, to a tolerance or for a budget."""

from __future__ import annotations

import argparse
import json
import math
import secrets
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import functions
from .._estimates import Estimate, NotFiniteError, files
from .._matrix_functions import trace_function
from .._operators import LinearOperator
from .._trace import METHODS as ALL_METHODS
from .._trace import exact_trace, trace
from .arguments import (
    NOT_CONVERGED,
    OK,
    MisusedError,
    add_command,
    level,
    nonnegative_integer,
    positive_integer,
    read,
    require_folder,
    require_plottable,
    tolerance,
    watched,
)
from .console import Progress, as_text, plot

METHODS: dict[str, Callable[..., Estimate]] = {  # a matrix from a file has no factor
    name: method for name, method in ALL_METHODS.items() if name != "one_sided"
}
FUNCTIONS: dict[str, functions.Function] = {
    f.__name__: f
    for f in (
        functions.log,
        functions.inv,
        functions.exp,
        functions.sqrt,
        functions.log1p,
        functions.entropy,
    )
}
TOLERANT = "auto", "hutchinson", "xtrace", "xnystrace"
RTOL, NUM_MATVECS = 1e-2, 100


def add(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "estimate",
        _run,
        help="estimate the trace of a matrix in a file",
        description=(
            "The trace of a square matrix, read from its entries; of a power or function of it,\n"
            "or by a named method, estimated from products: as many as a tolerance needs, or as\n"
            "are given. Or results of runs with other seeds, as --json prints them, as one."
        ),
        nargs="?",
    )
    add = parser.add_argument
    add(
        "--method",
        choices=("auto", *METHODS),
        help="estimator (default: auto, which picks one and says why; without --power and "
        "--function it reads the diagonal instead, at no product)",
    )
    add(
        "--function",
        choices=tuple(FUNCTIONS),
        help="trace of this function of the matrix, which has to be Hermitian, by stochastic "
        "Lanczos quadrature; log gives the logarithm of the determinant (--num-matvecs)",
    )
    add(
        "--rtol",
        type=tolerance,
        metavar="R",
        help="spend products until the 95 %% interval is within R times the value "
        f"(default: {RTOL:g} if neither --atol nor --num-matvecs is given, and --method is auto)",
    )
    add(
        "--atol",
        type=tolerance,
        metavar="T",
        help="the same, within T; if both are given, within T plus R times the value",
    )
    add(
        "--num-matvecs",
        type=positive_integer,
        metavar="N",
        help="products to spend, all of them if there is no tolerance, else at most "
        f"(default: no limit if there is a tolerance, else {NUM_MATVECS})",
    )
    add(
        "--seed",
        type=nonnegative_integer,
        metavar="S",
        help="seed of the random probes (default: a fresh one, which is printed)",
    )
    add("--exact", action="store_true", help="the exact trace, at the cost of up to n products")
    add(
        "--level",
        type=level,
        default=0.95,
        metavar="P",
        help="confidence level of the interval shown, between 0 and 1 (default: 0.95)",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE.npz",
        help="keep the results so far in this file; the same command goes on from it, with the "
        "seed that it began with (--method auto)",
    )
    add(
        "--plot",
        type=Path,
        metavar="OUT.png",
        help="plot estimate and interval against the number of products (.png, .pdf or .svg)",
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """Run ``tracekit estimate``."""
    if arguments.file is None:
        raise MisusedError("there is no FILE to read; name one, or results to --merge")
    _refuse_contradictions(arguments)
    seed, resumed = _seed(arguments)
    A = read(arguments)
    start = time.perf_counter()
    result, seen, failure = _run_to_its_end(A, arguments, seed)
    asked = any(_tolerances(arguments)) or arguments.function  # a rule has to settle by itself
    if failure is None and not asked:
        result = replace(result, converged=True)  # nothing was asked that is not met
    drawn_nothing = arguments.exact or (_is_automatic(arguments) and result.num_matvecs == 0)
    report = _report(result, arguments, A.shape[0]) | {
        "seed": None if drawn_nothing else seed,
        "resumed": resumed,
        "seconds": round(time.perf_counter() - start, 4),
    }
    drawn = arguments.seed is None and not (drawn_nothing or resumed)
    try:
        if arguments.plot:
            earlier = [point for point in seen if point.num_matvecs < result.num_matvecs]
            plot([*earlier, result], report, arguments.plot)
            report["plot"] = str(arguments.plot)
    finally:  # the results so far are printed, whatever becomes of the plot
        print(json.dumps(report, indent=2) if arguments.json else as_text(report, drawn=drawn))
    if failure is not None:
        raise failure
    return OK if result.converged else NOT_CONVERGED


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Refuse arguments that are incompatible."""
    method = arguments.method or "auto"
    given = [
        "--" + name.replace("_", "-")
        for name in ("method", "rtol", "atol", "num_matvecs", "psd", "checkpoint", "plot")
        if getattr(arguments, name) not in (None, False)
    ]
    if arguments.exact and given:
        raise MisusedError(f"--exact is incompatible with {given[0]}; leave out one of them")
    unsuited = [option for option in given if option not in ("--num-matvecs", "--plot")]
    if arguments.function and unsuited:
        raise MisusedError(
            f"--function {arguments.function} is incompatible with {unsuited[0]}; leave out one, "
            "and set what may be spent by --num-matvecs"
        )
    if method not in TOLERANT and {"--rtol", "--atol"} & set(given):
        raise MisusedError(
            f"--method {method} knows no tolerance; leave out --rtol and --atol, or pass one of "
            f"{', '.join(TOLERANT)}"
        )
    if arguments.plot:
        require_plottable(arguments.plot)
    if arguments.checkpoint:
        if method != "auto":
            raise MisusedError(f"--checkpoint goes with --method auto alone, not with {method}")
        if arguments.checkpoint.suffix != ".npz":
            raise MisusedError(f"--checkpoint {arguments.checkpoint} does not end in .npz")
        require_folder("--checkpoint", arguments.checkpoint)


def _is_automatic(arguments: argparse.Namespace) -> bool:
    """Return whether `trace` picks the method."""
    return arguments.method in (None, "auto") and not arguments.function


def _tolerances(arguments: argparse.Namespace) -> tuple[float, float]:
    """Return rtol and atol; both are 0 where a budget alone is to be spent."""
    limits = arguments.rtol, arguments.atol, arguments.num_matvecs
    if _is_automatic(arguments) and not arguments.exact and limits == (None,) * 3:
        return RTOL, 0.0
    return arguments.rtol or 0.0, arguments.atol or 0.0


def _seed(arguments: argparse.Namespace) -> tuple[int | None, bool]:
    """Return the seed, None if only the checkpoint knows it, and whether a run is resumed."""
    try:
        kept = (
            None if arguments.checkpoint is None else files.load(arguments.checkpoint, "checkpoint")
        )
    except ValueError as error:
        raise MisusedError(str(error)) from error
    if arguments.seed is not None:
        return arguments.seed, kept is not None
    return (secrets.randbits(32), False) if kept is None else (kept[1].get("seed"), True)


def _run_to_its_end(
    A: LinearOperator, arguments: argparse.Namespace, seed: int | None
) -> tuple[Estimate, list[Estimate], BaseException | None]:
    """Return the estimate, those seen on the way, and what ended the run before its time."""
    import numpy as np

    n, budget, asked = A.shape[0], arguments.num_matvecs, any(_tolerances(arguments))
    auto = _is_automatic(arguments)
    total = budget if asked else min(budget or (n if auto else NUM_MATVECS), n)
    progress = Progress(total, at_most=asked, level=arguments.level)
    failure: BaseException | None = None
    try:
        with progress, np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _estimate(watched(A, progress), arguments, seed, progress)
    except NotFiniteError as error:
        paid = progress.latest if error.estimate is None else error.estimate
        if paid is None:
            raise
        result, failure = _ended(paid, "by products that are not finite"), error
    except BaseException as error:
        paid = getattr(error, "estimate", None)
        if paid is None and isinstance(error, KeyboardInterrupt | MemoryError | OSError):
            paid = progress.latest
        if paid is None:
            raise
        how = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        result, failure = _ended(paid, f"by {how}"), error
    path = arguments.checkpoint
    if isinstance(failure, KeyboardInterrupt) and path is not None and path.exists():
        failure = KeyboardInterrupt(f"the same command goes on from {path}")
    return result, progress.seen, failure


def _estimate(
    A: LinearOperator, arguments: argparse.Namespace, seed: int | None, progress: Progress
) -> Estimate:
    """Run the estimator that the arguments name."""
    rtol, atol = _tolerances(arguments)
    budget = arguments.num_matvecs
    if arguments.function:
        f = FUNCTIONS[arguments.function]
        m = A.shape[0] if arguments.exact else budget or NUM_MATVECS
        return trace_function(A, f, m, rng=seed)
    if arguments.exact:
        return exact_trace(A)
    if _is_automatic(arguments):
        psd = arguments.psd or None
        show, path = progress.see, arguments.checkpoint
        return trace(
            A, rtol=rtol, atol=atol, num_matvecs=budget, rng=seed, psd=psd, callback=show,
            checkpoint=path,
        )  # fmt: skip
    method = METHODS[arguments.method]
    if rtol == atol == 0:
        return method(A, budget or NUM_MATVECS, rng=seed)
    return method(A, budget or 2 * A.shape[0], rng=seed, rtol=rtol, atol=atol)  # never spends more


def _ended(estimate: Estimate, how: str) -> Estimate:
    reason = "; ".join(filter(None, (estimate.reason, f"ended {how}")))
    return replace(estimate, converged=False, reason=reason)


def _report(result: Estimate, arguments: argparse.Namespace, n: int) -> dict[str, Any]:
    """Return all that is known of an estimate, as JSON can hold it."""
    ends = (float(end) for end in result.confidence_interval(arguments.level))
    rtol, atol = _tolerances(arguments)
    return result.to_dict() | {
        "level": arguments.level,
        "confidence_interval": [end if math.isfinite(end) else None for end in ends],
        "rtol": rtol,
        "atol": atol,
        "max_matvecs": arguments.num_matvecs,
        "file": str(arguments.file),
        "shape": [n, n],
        "power": arguments.power,
        "function": arguments.function,
        "checkpoint": arguments.checkpoint and str(arguments.checkpoint),
        "plot": None,
    }
