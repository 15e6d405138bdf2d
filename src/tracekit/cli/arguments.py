"""What the commands share: exit codes, arguments, the operator that a file holds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._operators import LinearOperator, blocked
from ..io import read_operator
from .console import Progress

OK, FAILED, MISUSED, NOT_CONVERGED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141

EPILOG = """\
exit codes:
  0    done
  1    the products failed: they are not finite, or show that a method or a
       hint does not apply to this matrix
  2    wrong usage, or a file that cannot be read or written
  3    the tolerance is not met with the products that may be spent, or the
       quadrature of a function has not settled; what they gave is printed
  130  interrupted; results so far are printed, if they give an estimate
  141  nobody reads the output any more, as after SIGPIPE

Progress goes to standard error: one line that is rewritten on a terminal,
plain lines, a few seconds apart, elsewhere. NO_COLOR is honoured.
"""


class MisusedError(Exception):
    """Wrong usage that is found after the arguments are parsed."""


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    nargs: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command that reads a matrix from a file, which may be left out if `nargs` is "?"."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "file",
        nargs=nargs,
        metavar="FILE",
        help="Matrix Market (.mtx), edges of an undirected graph (.edges, .edgelist, .txt), each "
        "also .gz or .bz2; SciPy sparse .npz, NumPy .npy, MATLAB .mat",
    )
    parser.add_argument(
        "--power",
        type=positive_integer,
        default=1,
        metavar="K",
        help="trace of the K-th power; a graph has tr(A^3)/6 triangles (default: 1)",
    )
    parser.add_argument(
        "--psd",
        action="store_true",
        help="the matrix, or its power, is Hermitian positive semidefinite",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def read(arguments: argparse.Namespace) -> LinearOperator:
    """Return the operator that the file and the power name."""
    try:
        return _power(read_operator(arguments.file), arguments.power)
    except ValueError as error:
        raise MisusedError(str(error)) from error


def watched(A: LinearOperator, progress: Progress) -> LinearOperator:
    """Return the operator with every column reported, in blocks small enough to be interrupted."""
    size = max(1, min(32, 2**24 // A.shape[0]))

    def watch(product: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
        if product is None:
            return None

        def watched(X: Any) -> Any:
            Y = product(X)
            progress.add(X.shape[1])
            return Y

        return blocked(watched, size)

    products = watch(A.matmat), watch(A.rmatmat), watch(A.quad)
    return A._like(A.shape, *products, exact=A.exact)  # type: ignore[arg-type]


def _power(A: LinearOperator, exponent: int) -> LinearOperator:
    """Return the operator whose product is that of A, `exponent` times over."""
    if exponent == 1:
        return A

    def repeated(product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def product_of_power(X: Any) -> Any:
            for _ in range(exponent):
                X = product(X)
            return X

        return product_of_power

    return A._like(A.shape, repeated(A.matmat), None if A.rmatmat is None else repeated(A.rmatmat))


def require_plottable(path: Path) -> None:
    """Refuse a plot that cannot be written, before anything is spent on it."""
    from importlib.util import find_spec

    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise MisusedError(
            f"--plot {path} has no suffix that is known; pass one of .png, .pdf, .svg"
        )
    require_folder("--plot", path)
    if find_spec("matplotlib") is None:
        raise MisusedError(
            "--plot needs matplotlib, which is not installed; install tracekit-linalg[plot]"
        )


def require_folder(option: str, path: Path) -> None:
    """Refuse a file in a folder that is not there."""
    if not path.parent.is_dir():
        raise MisusedError(
            f"{option} {path} lies in a folder that does not exist; make {path.parent} first"
        )


def positive_integer(text: str) -> int:
    """Read an argument of 1 or more."""
    return _integer(text, least=1)


def nonnegative_integer(text: str) -> int:
    """Read an argument of 0 or more."""
    return _integer(text, least=0)


def positive_integers(text: str) -> tuple[int, ...]:
    """Read arguments of 1 or more, between commas."""
    return tuple(positive_integer(part.strip()) for part in text.split(","))


def _integer(text: str, least: int) -> int:
    try:
        value = int(text) if text.isdecimal() else -1
    except ValueError:  # Python reads no number of thousands of digits
        value = -1
    if value < least:
        shown = text if len(text) < 20 else f"{text[:20]}..."
        raise argparse.ArgumentTypeError(f"{shown!r} is not a whole number of {least} or more")
    return value


def tolerance(text: str) -> float:
    """Read a number of 0 or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no tolerance, as 1e-3 is")
    return value


def level(text: str) -> float:
    """Read a share between 0 and 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} does not lie between 0 and 1, as 0.95 does")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
