"""The command line: ``tracekit estimate FILE``, ``tracekit compare FILE``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import _cli_compare, _cli_estimate
from ._cli_shared import EPILOG, FAILED, INTERRUPTED, MISUSED, OK, MisusedError

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
        The exit code: 0 done, 1 the products failed, 2 wrong usage or a bad file, 3 the tolerance
        is not met, 130 interrupted.
    """
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse leaves this way: --help, --version, wrong usage
        return int(stop.code or OK)
    except KeyboardInterrupt as interruption:
        print(": ".join(("tracekit: interrupted", *map(str, interruption.args))), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `tracekit ... | head`: nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (MisusedError, OSError) as error:
        return _fail(error, MISUSED)
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        return _fail(error, FAILED)
    return code


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="tracekit",
        description="Traces of matrices that are known by their products.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tracekit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _cli_estimate.add(commands)
    _cli_compare.add(commands)
    return parser


def _fail(error: Exception, code: int) -> int:
    """Say on one line what went wrong, and return the exit code."""
    reason = " ".join(str(error).split()) or type(error).__name__
    print(f"tracekit: error: {reason}", file=sys.stderr)
    return code
