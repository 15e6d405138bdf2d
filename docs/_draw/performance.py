"""Draws the pictures and tables of the page on performance, from figures that asv measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .style import MEASURED, STYLE

FIGURES = MEASURED / "asv.json"
LIBRARIES = ("numpy:cpu", "torch:cpu", "jax:cpu", "torch:cuda", "jax:cuda", "cupy:cuda")
OVERHEAD = "estimators.Overhead.track_overhead"
TRACES = "estimators.Traces.time_estimate"
QUANTITIES = "estimators.Quantities.time_estimate"
LARGEST = (100_000, 120)

Figures = dict[tuple[str, ...], float]


def draw(folder: Path) -> None:
    """Write pictures and tables into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, picture in {"overhead": overhead, "growth": growth}.items():
            picture().savefig(folder / f"performance_{name}.svg", metadata={"Date": None})
    for name, table in TABLES.items():
        text = "\n".join(table()) + "\n"
        (folder / f"performance_{name}.txt").write_text(text, encoding="utf-8")


def measured(benchmark: str) -> Figures:
    """Figures by parameters, of all machines; a parameter's come from the first that has it."""
    found: Figures = {}
    for machine in reversed(json.loads(FIGURES.read_text(encoding="utf-8"))):
        for key, value in machine["figures"].get(benchmark, {}).items():
            found[tuple(key.split(", "))] = value
    return found


def libraries(figures: Figures) -> list[str]:
    """Those that have figures, in the order of the page."""
    return [on for on in LIBRARIES if any(key[0] == on for key in figures)]


def names(figures: Figures) -> list[str]:
    """Values of the second parameter, in their order."""
    return list(dict.fromkeys(key[1] for key in figures))


def overhead() -> Figure:
    """What estimators take over their bare products, by library."""
    figures = measured(OVERHEAD)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    ax, shown = figure.subplots(), libraries(figures)
    width = 0.8 / len(shown)
    for i, on in enumerate(shown):
        places = [j + (i - (len(shown) - 1) / 2) * width for j in range(len(names(figures)))]
        ax.bar(places, [figures[on, name] for name in names(figures)], 0.9 * width, label=on)
    ax.axhline(1, color="k", linewidth=0.8, linestyle=":", marker="")
    ax.set_xticks(range(len(names(figures))), names(figures))
    ax.set_ylabel("time over that of the products")
    ax.set_title("60 products with a dense matrix of dimension 2000", loc="left")
    ax.legend(frameon=False)
    return figure


def growth() -> Figure:
    """Time against the numbers in a block of n by m, a panel for each library."""
    figures = measured(TRACES)
    shown = libraries(figures)
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, on in zip(panels, shown, strict=True):
        for name in names(figures):
            rows = sorted(
                (int(n) * int(m), value)
                for (where, which, n, m), value in figures.items()
                if (where, which) == (on, name)
            )
            ax.loglog(*zip(*rows, strict=True), label=name)
        ax.set_title(on, loc="left")
        ax.set_xlabel("numbers in a block, n m")
    panels[0].set_ylabel("seconds")
    panels[-1].legend(frameon=False, fontsize=7)
    return figure


def machines() -> Iterator[str]:
    """A list of what the machines are."""
    for told in json.loads(FIGURES.read_text(encoding="utf-8")):
        gpu = f", {told['gpu']}" if told.get("gpu") else ""
        yield f"- {told['cpu']}, {told['num_cpu']} cores{gpu}; {told['versions']}."


def table(benchmark: str, title: str, show: Callable[[float], str], *last: Any) -> Iterator[str]:
    """A column for each library, a row for all else; the last parameters may be fixed."""
    figures, end = measured(benchmark), tuple(map(str, last))
    shown = libraries(figures)
    rows = dict.fromkeys(key[1:] for key in figures if key[len(key) - len(end) :] == end)
    yield f"| {title} | {' | '.join(shown)} |"
    yield "|---|" + "---:|" * len(shown)
    for row in rows:
        cells = [show(figures[on, *row]) if (on, *row) in figures else "" for on in shown]
        yield f"| `{', '.join(row[: len(row) - len(end)])}` | {' | '.join(cells)} |"


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    return three_digits(1e3 * seconds)


def megabytes(size: float) -> str:
    return three_digits(1e-6 * size)


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "machines": machines,
    "traces": lambda: table(TRACES, "estimator", milliseconds, *LARGEST),
    "quantities": lambda: table(QUANTITIES, "function", milliseconds, 10_000, 60),
    "memory": lambda: table("memory.Peak.track_peak", "estimator", megabytes),
    "probes": lambda: table("probes.Probes.time_draw", "law", milliseconds),
    "orthonormalise": lambda: table(
        "orthonormalise.Orthonormalise.time_columns", "way", milliseconds
    ),
    "products": lambda: table("ntk.Products.time_product", "product", milliseconds),
    "exact": lambda: table("ntk.Exact.time_exact", "network, quantity", milliseconds),
}
