"""What the command line shows: progress, numbers, text and plots."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TextIO

from .._estimates import Estimate


class Progress:
    """Products and estimate so far: one rewritten line on a terminal, plain, rare lines elsewhere.

    Parameters
    ----------
    total : int, optional
        Products that will be spent, if that is known.
    stream : text stream, optional
        Standard error if not given.
    seconds_between : float, optional
        The least time between two lines; by default 0.1 on a terminal and 5 elsewhere.
    at_most : bool, optional
        Whether the run may end before `total`, which is then a limit.
    level : float, optional
        Of the interval that is shown.
    """

    def __init__(
        self,
        total: int | None = None,
        stream: TextIO | None = None,
        seconds_between: float | None = None,
        *,
        at_most: bool = False,
        level: float = 0.95,
    ) -> None:
        self.total, self.at_most, self.level = total, at_most, level
        self.spent = self.resumed = 0  # products, and those of them that an earlier run used
        self.latest: Estimate | None = None
        self.seen: list[Estimate] = []  # each once
        self.estimate = ""
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        default = 0.1 if self.terminal else 5.0
        self.seconds_between = default if seconds_between is None else seconds_between
        self.start = time.monotonic()
        self.shown = -math.inf if self.terminal else self.start
        self.width = 0  # of the line that stands on the terminal

    def __enter__(self) -> Self:
        self.add(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self.width:
            self._write("\r" + " " * self.width + "\r")

    def add(self, columns: int) -> None:
        """Count products, and show where the run is if it is time to."""
        self.spent += columns
        if time.monotonic() - self.shown >= self.seconds_between:
            self._show()

    def see(self, estimate: Estimate) -> None:
        """Take note of the estimate so far, and show it at once on a terminal."""
        estimate = replace(estimate, samples=None, kept=None)  # these may be large
        if self.latest is None or complex(estimate) != complex(self.latest):
            self.seen.append(estimate)
        self.latest = estimate
        self.resumed += max(estimate.num_matvecs - self.spent, 0)
        self.spent = max(estimate.num_matvecs, self.spent)
        low, high = (float(end) for end in estimate.confidence_interval(self.level))
        report = estimate.to_dict()
        error = report["standard_error"]
        self.estimate = rounded(report["value"], error)
        if math.isfinite(high - low):
            self.estimate += f" ({rounded(low, error)} to {rounded(high, error)})"
        if self.terminal:
            self._show()
        else:
            self.add(0)

    def _show(self) -> None:
        """Write where the run is."""
        now = self.shown = time.monotonic()
        limit = "" if self.total is None else f" of {'at most ' * self.at_most}{self.total}"
        parts = [f"{self.spent}{limit} products", self.estimate, f"{now - self.start:.1f} s"]
        done = self.spent - self.resumed
        if self.total is not None and not self.at_most and done > 0 and self.spent < self.total:
            left = (now - self.start) * (self.total - self.spent) / done
            parts.append(f"about {left:.1f} s left")
        line = ", ".join(filter(None, parts))
        if self.terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # nobody looks: no reason to stop
            silence(self.stream)


def say(text: str, end: str = "\n") -> None:
    """Write a line to standard error, if that takes one."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Send all that a stream still holds nowhere, so that Python does not try again as it ends."""
    with suppress(OSError, ValueError):  # of streams that are no files
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def as_text(report: dict[str, Any], *, drawn: bool = False) -> str:
    """Return the report of an estimate for a reader; `drawn` if nobody chose the seed."""
    error, power, seed = report["standard_error"], report["power"], report["seed"]
    matrix = "A" if power == 1 else f"A^{power}"
    products = f"{report['num_matvecs']} products with {matrix}"
    real_part = " (real part)" if isinstance(report["value"], list) else ""
    low, high = report["confidence_interval"]
    interval = (
        "unknown: so few products show no error; pass a larger --num-matvecs"
        if error is None
        else f"{rounded(low, error)} to {rounded(high, error)}{real_part}"
    )
    rows = {
        f"trace of {_of(report, matrix)}": _emphasised(rounded(report["value"], error)),
        "standard error": "unknown" if error is None else f"{error:.2g}",
        f"{100 * report['level']:g} % interval": interval,
        "tolerance": _tolerance(report),
        "method": f"{report['method']}, {products} ({' x '.join(map(str, report['shape']))})",
        "reason": report["reason"],
        "seed": _seed(seed, report["resumed"], drawn),
        "time": f"{report['seconds']:.3g} s",
        "plot": report["plot"],
    }
    width = max(map(len, rows)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows.items() if value)


def _of(report: dict[str, Any], matrix: str) -> str:
    """Return the matrix, or the function of it that was asked for."""
    return f"{report['function']}({matrix})" if report.get("function") else matrix


def _tolerance(report: dict[str, Any]) -> str:
    """Return what was asked and whether it is met; nothing, where nothing was asked."""
    rtol, atol = report["rtol"], report["atol"]
    asked = [f"{atol:g}"] * (atol > 0) + [f"{100 * rtol:g} % of the value"] * (rtol > 0)
    return f"{' + '.join(asked)}: {'met' if report['converged'] else 'not met'}" if asked else ""


def _seed(seed: int | list[int] | None, resumed: bool, drawn: bool) -> str:
    if isinstance(seed, list):
        return ", ".join(map(str, seed))
    if seed is None:
        return "kept in the checkpoint" if resumed else "none: nothing was drawn"
    return f"{seed} (fresh; --seed {seed} repeats this run)" if drawn else str(seed)


def rounded(value: Any, error: float | None) -> str:
    """Return a number with as many digits as its error leaves meaning to."""
    if isinstance(value, list):
        real, imaginary = (rounded(part, error) for part in value)
        return f"{real} {'-' if value[1] < 0 else '+'} {imaginary.removeprefix('-')}i"
    if value is None:
        return "unknown"
    if not error:
        return f"{value:.15g}" if error == 0 else f"{value:.6g}"
    decimals = 1 - math.floor(math.log10(error))
    if max(abs(value), error) >= 1e15 or decimals > 12:
        digits = max(1, decimals + 1 + math.floor(math.log10(max(abs(value), error))))
        return f"{value:.{min(digits, 17) - 1}e}"
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def _emphasised(text: str) -> str:
    """Return the text in bold where a terminal shows it and NO_COLOR does not forbid it."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"\033[1m{text}\033[0m"


def plot(results: Sequence[Estimate], report: dict[str, Any], path: Path) -> None:
    """Draw estimates and intervals against the products they cost."""
    products = [result.num_matvecs for result in results]
    values = [complex(result).real for result in results]
    sides = [_sides(result, report["level"]) for result in results]
    is_complex = isinstance(report["value"], list)
    matrix = "$A$" if report["power"] == 1 else f"$A^{{{report['power']}}}$"
    ticks = products[::-2] if len(products) > 9 else products  # labels need room
    interval = f"estimate, {100 * report['level']:g} % interval"
    seed = "" if report["seed"] is None else f", seed {report['seed']}"

    with saved(path) as axes:
        below_and_above = list(zip(*sides, strict=True))
        axes.errorbar(products, values, yerr=below_and_above, fmt="o-", capsize=4, label=interval)
        axes.set_xscale("log" if products[0] else "linear")
        axes.set_xticks(ticks, [str(m) for m in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(f"products with {matrix}")
        part = "real part of the " if is_complex else ""
        axes.set_ylabel(f"{part}trace of {_of(report, matrix)}")
        axes.set_title(f"{Path(report['file']).name}, {report['method']}{seed}", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


@contextmanager
def saved(path: Path) -> Iterator[Any]:
    """Give axes to draw on, and write them to a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    yield figure.add_subplot()
    figure.savefig(path, dpi=150)


def _sides(result: Estimate, level: float) -> tuple[float, float]:
    """Return how far the interval goes below and above; NaN, which is not drawn, if unknown."""
    low, high = (float(end) for end in result.confidence_interval(level))
    value = complex(result).real
    return (value - low, high - value) if math.isfinite(high - low) else (math.nan, math.nan)
