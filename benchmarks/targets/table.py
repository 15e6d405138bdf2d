"""Tables of figures beside what they have to reach: rows, verdicts, and how both are printed."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ..measure import apart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Row(NamedTuple):
    """Values of the columns, and whether what is judged of them holds, each by its name."""

    values: tuple[Any, ...]
    holds: Mapping[str, bool] = {}  # of a row that only tells: none


class Table(NamedTuple):
    """A title, the formats of the columns by their heads, and rows, made one after the other."""

    title: str
    columns: Mapping[str, str]
    rows: Iterable[Row]

    def show(self) -> list[bool]:
        """Print a line as soon as a row is there; return whether each judged figure holds."""
        print(f"\n{self.title}\n", flush=True)
        widths = map(width, self.columns.values())
        heads = (f"{head:{side}{w}}" for head, (side, w) in zip(self.columns, widths, strict=True))
        print("".join(heads).rstrip())
        held: list[bool] = []
        for row in self.rows:
            cells = map(shown, row.values, self.columns.values())
            print(f"{''.join(cells)}  {verdict(row.holds)}".rstrip(), flush=True)
            held += row.holds.values()
        return held


FIGURES = {"figure": "<60", "found": ">11.4g", "wanted": ">11", "": "<1"}  # columns of `figure`s


def figure(
    name: str,
    found: float,
    *,
    least: float | None = None,
    most: float | None = None,
    told: str = "",
) -> Row:
    """Return a row of a table of `FIGURES`: one number that has to be large or small enough."""
    if least is not None:
        return Row((name, found, f">= {least:g}", f"  {told}"), {"": bool(found >= least)})
    if most is not None:
        return Row((name, found, f"<= {most:g}", f"  {told}"), {"": bool(found <= most)})
    return Row((name, found, "", f"  {told}"))


def in_own_process(part: Any, library: str, *arguments: Any) -> Iterable[Row]:
    """Yield the rows of one framework, measured in a process of its own, with its name."""
    for values, holds in apart(part, library, *arguments):
        yield Row((f"{library:6}{values[0]}", *values[1:]), holds)


def seeds(number: int) -> int:
    """Return how many runs there are: fewer, to see that all works, with SEEDS=2 around it."""
    return min(number, int(os.environ.get("SEEDS", number)))


def width(form: str) -> tuple[str, str]:
    """Return side and width of a format."""
    side, wide = re.match(r"([<>])(\d+)", form).groups()  # type: ignore[union-attr]
    return side, wide


def shown(value: Any, form: str) -> str:
    """Return a cell: numbers by their format, words by its width alone, a dash for what is not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value = "-"
    return format(value, "".join(width(form)) if isinstance(value, str) else form)


def verdict(holds: Mapping[str, bool]) -> str:
    """Return how a line ends."""
    if not holds:
        return ""
    short = ", ".join(name for name, good in holds.items() if not good)
    return "ok" if all(holds.values()) else f"SHORT {short}".rstrip()
