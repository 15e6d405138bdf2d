"""The command line: ``tracekit estimate FILE``, ``tracekit compare FILE``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import compare, estimate, merge
from .arguments import BROKEN_PIPE, EPILOG, FAILED, INTERRUPTED, MISUSED, OK, MisusedError
from .console import say, silence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of the process if not given.

    Returns
    -------
    int
        The exit code: 0 done, 1 the products failed, 2 wrong usage, a bad file or no output, 3 the
        tolerance is not met or the quadrature of a function has not settled, 130 interrupted, 141
        the output's reader is gone.
    """
    if sys.stderr is None:  # closed by `2>&-`
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:  # closed by `>&-`
        return _fail(MisusedError("standard output, where results go, is closed"), MISUSED)
    code = OK
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `tracekit ... | head`: nobody listens any more
        silence(sys.stdout)
        return BROKEN_PIPE
    except OSError as error:  # as that of /dev/full; _run has said it if it met it first
        silence(sys.stdout)
        return code if code == MISUSED else _fail(error, MISUSED)
    finally:
        say("", end="")  # with what argparse wrote there
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.run(arguments)
    except SystemExit as stop:  # argparse leaves this way: --help, --version, wrong usage
        return int(stop.code or OK)
    except KeyboardInterrupt as interruption:
        say(": ".join(("tracekit: interrupted", *map(str, interruption.args))))
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except (MisusedError, OSError) as error:
        return _fail(error, MISUSED)
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        return _fail(error, FAILED)
    return code


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="tracekit",
        description="Traces of matrices that are known by their products.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"tracekit {version('tracekit-linalg')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    merge.add(estimate.add(commands))
    compare.add(commands)
    return parser


def _fail(error: Exception, code: int) -> int:
    """Say on one line what went wrong, and return the exit code."""
    reason = " ".join(str(error).split()) or type(error).__name__
    say(f"tracekit: error: {reason}")
    return code
