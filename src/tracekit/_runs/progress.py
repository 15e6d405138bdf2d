"""What a run that takes long shows while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .._arrays import abs2, namespace, to_number
from .._estimates import Estimate


def progress(write: Callable[[str], Any] | None = None) -> Progress:
    """A callback that shows how far a run is: ``trace(A, rtol=1e-3, callback=progress())``.

    Parameters
    ----------
    write : callable, optional
        Takes each line, such as `print`. By default one line on the error output is renewed, by
        `rich` or else `tqdm`, where one is installed and that is a terminal; else lines go there.

    Returns
    -------
    callable
        Takes the estimate of each look, and shows products spent, value, standard error and time.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.arange(1.0, 301.0) ** -1)
    >>> estimate = tk.hutchinson(A, 32, rng=0, callback=tk.progress())
    >>> estimate.num_matvecs
    32
    """
    return Progress(write)


class Progress:
    """Shows each estimate that it is called with; a run closes it when it ends."""

    def __init__(self, write: Callable[[str], Any] | None = None) -> None:
        self._write = write
        self._display: Any = None
        self._begun = time.monotonic()

    def __call__(self, estimate: Any) -> None:
        """Show where the run is."""
        first = estimate if isinstance(estimate, Estimate) else estimate[0]
        if self._display is None:
            self._display, self._begun = _display(self._write), time.monotonic()
        seconds = time.monotonic() - self._begun
        spent = first.num_matvecs
        self._display.show(spent, f"{_told(first)} after {spent} products, {seconds:.1f} s")

    def close(self) -> None:
        """Leave the last line where it is."""
        if self._display is not None:
            self._display.close()
        self._display = None


def _told(estimate: Estimate) -> str:
    """The value, or its norm, and the standard error."""
    value, error = estimate.value, estimate.standard_error
    if not getattr(value, "ndim", 0):
        return f"{_number(value):.6g} +- {to_number(error).real:.2g}"
    xp = namespace(value)
    norm, off = (to_number(xp.sqrt(xp.sum(abs2(x)))).real for x in (value, error))
    return f"norm {norm:.6g} +- {off:.2g}"


def _number(x: Any) -> float | complex:
    z = to_number(x)
    return z if z.imag else z.real


def _display(write: Callable[[str], Any] | None) -> Any:
    """A line on a terminal that is renewed, or lines."""
    if write is None and sys.stderr.isatty():
        for kind in (_Rich, _Tqdm):
            with suppress(ImportError):
                return kind()
    return _Lines(write)


class _Lines:
    def __init__(self, write: Callable[[str], Any] | None) -> None:
        self._write = write

    def show(self, spent: int, line: str) -> None:
        if self._write is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._write(line)

    def close(self) -> None:
        pass


class _Rich:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.status import Status

        self._status = Status("", console=Console(stderr=True))
        self._status.start()
        self._last = ""

    def show(self, spent: int, line: str) -> None:
        self._last = line
        self._status.update(line)

    def close(self) -> None:
        self._status.stop()
        self._status.console.print(self._last, markup=False)


class _Tqdm:
    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit=" products", file=sys.stderr)

    def show(self, spent: int, line: str) -> None:
        self._bar.set_description_str(line, refresh=False)
        self._bar.update(spent - self._bar.n)

    def close(self) -> None:
        self._bar.close()
