"""Draws medians and quartiles of estimators against AD calls and CPU time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.hazelden2025.study import Curve

OUTPUT = Path(__file__).resolve().parents[2] / "output"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "tracekit",
    "svg.fonttype": "none",
}
OURS, PUBLISHED, GREY = "-", "--", "0.35"
LOOKS = {  # colour, marker; the paper's estimators are dashed and open
    "Hutch++ (Algorithm 1)": ("#D55E00", "s", PUBLISHED),
    "Hutch++ on products": ("#D55E00", "s", PUBLISHED),
    "reverse (Algorithm 2)": ("#E69F00", "v", PUBLISHED),
    "forward (Algorithm 2)": ("#A0522D", "^", PUBLISHED),
    "one_sided": ("#CC79A7", "D", OURS),
    "xnystrace": ("#009E73", "o", OURS),
    "per sample, signs": ("#56B4E9", "P", OURS),
    "per sample, Hadamard": ("#0072B2", "o", OURS),
    "spectral_summary": ("#0072B2", "o", OURS),
    "one_sided_summary": ("#CC79A7", "D", OURS),
    "alignment": ("#0072B2", "o", OURS),
    "one_sided_alignment": ("#CC79A7", "D", OURS),
}
FLOOR = 1e-10  # errors below are rounding, and drawn here


def figure(rows: int, columns: int) -> tuple[Any, Any]:
    """An empty figure and its axes, (rows, columns)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
        axes = drawing.subplots(rows, columns, squeeze=False)
    return drawing, axes


def save(drawing: Any, name: str) -> str:
    """Write PNG and SVG, and return where."""
    import matplotlib as mpl

    OUTPUT.mkdir(exist_ok=True)
    png, svg = (OUTPUT / f"{name}.{kind}" for kind in ("png", "svg"))
    with mpl.rc_context(STYLE):
        drawing.savefig(png, dpi=200)
        drawing.savefig(svg, metadata={"Date": None})
    svg.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", svg.read_text()))  # a hundredth of a point
    return f"output/{png.name}, output/{svg.name}"


def estimates(ax: Any, curves: Mapping[str, Curve], what: str = "trace") -> None:
    """Estimates over the exact value against AD calls: medians, and bands from the quartiles."""
    ax.axhline(1, color=GREY, linewidth=1, linestyle=":", zorder=1)
    for name, curve in curves.items():
        colour, marker, line = LOOKS[name]
        low, middle, high = np.quantile(curve.ratios, (0.25, 0.5, 0.75), axis=1)
        ax.fill_between(curve.calls, low, high, color=colour, alpha=0.2, linewidth=0)
        _line(ax, curve.calls, middle, colour, marker, line)
    ax.annotate("exact", (0.99, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                color=GREY, fontsize="small")  # fmt: skip
    _calls(ax, curves)
    ax.set_ylabel(f"estimate / exact {what}")


def errors(ax: Any, curves: Mapping[str, Curve], against: str, *, names: bool = True) -> None:
    """Median relative errors with quartiles, against "calls" or "seconds"."""
    ends = []
    for name, curve in curves.items():
        colour, marker, line = LOOKS[name]
        x = curve.calls if against == "calls" else curve.times
        low, middle, high = np.maximum(np.quantile(curve.errors, (0.25, 0.5, 0.75), axis=1), FLOOR)
        ax.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        _line(ax, x, middle, colour, marker, line)
        ends.append((x[-1], middle[-1], name))
    ax.set_yscale("log")
    ax.set_ylabel("relative error")
    log_ticks(ax.yaxis)
    if against == "calls":
        _calls(ax, curves)
    else:
        ax.set_xscale("log")
        ax.set_xlabel("CPU seconds")
        log_ticks(ax.xaxis)
    if names:
        _label(ax, ends)


def exact_times(ax: Any, times: Mapping[str, float]) -> None:
    """Ticks on the time axis: what the exact value costs."""
    for text, seconds in times.items():
        ax.axvline(seconds, color=GREY, linewidth=1, linestyle=":", zorder=1)
        ax.annotate(
            text, (seconds, 0.42), xycoords=("data", "axes fraction"), xytext=(-2, 0), rotation=90,
            textcoords="offset points", ha="right", va="center", color=GREY, fontsize="x-small",
        )  # fmt: skip
    log_ticks(ax.xaxis)


def log_ticks(axis: Any) -> None:
    """Numbers at 1 and 3 of each decade, or at decades alone where there are many."""
    low, high = axis.get_view_interval()
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    step = 1 + (last - first) // 6
    within = (1,) if last - first > 3 else (1, 3)
    ticks = [d * 10.0**e for e in range(first, last + 1, step) for d in within]
    ticks = [tick for tick in ticks if low <= tick <= high]
    plain = 1e-2 if axis.axis_name == "x" else 1.0
    labels = [f"{t:g}" if t >= plain else f"{t:.0e}".replace("-0", "-") for t in ticks]
    axis.set_ticks(ticks, labels)
    axis.set_ticks([], minor=True)


def _line(ax: Any, x: Any, y: Any, colour: str, marker: str, line: str) -> None:
    face = "white" if line == PUBLISHED else colour
    ax.plot(x, y, line, color=colour, marker=marker, markersize=4.5, markerfacecolor=face,
            linewidth=1.4)  # fmt: skip


def _calls(ax: Any, curves: Mapping[str, Curve]) -> None:
    ax.set_xscale("log")
    ticks = sorted({int(b) for curve in curves.values() for b in curve.budgets})
    kept = ticks[:1]
    for tick in ticks:
        if tick >= 1.7 * kept[-1]:  # room for the number
            kept.append(tick)
    ax.set_xticks(kept, [str(tick) for tick in kept])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("AD calls")


def _label(ax: Any, ends: Sequence[tuple[float, float, str]]) -> None:
    """Write names right of the plot at the heights of the curves' ends, moved apart if need be."""
    ends = sorted(ends, key=lambda end: end[1])
    bottom, top = np.log(ax.get_ylim())
    heights = [(np.log(y) - bottom) / (top - bottom) for _, y, _ in ends]
    gap, places = 0.085, [heights[0]]
    for height in heights[1:]:
        places.append(max(height, places[-1] + gap))
    ceiling = 1.0
    for i in reversed(range(len(places))):  # down again from the top
        places[i] = ceiling = min(places[i], ceiling)
        ceiling -= gap
    for place, (x, y, name) in zip(places, ends, strict=True):
        colour = LOOKS[name][0]
        thread = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkB": 4}
        ax.annotate(
            name, (x, y), xytext=(1.05, place), textcoords="axes fraction", color=colour,
            fontsize="small", va="center", annotation_clip=False, arrowprops=thread,
        )  # fmt: skip
