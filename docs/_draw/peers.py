"""Draws the pictures of the page on other libraries, from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .style import MEASURED, STYLE

FIGURES = MEASURED / "peers.json"
OURS = "tracekit"
SIZE = (2000, 300)  # dimension and budget of the times


def draw(folder: Path) -> None:
    """Write all pictures into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(FIGURES.read_text(encoding="utf-8"))
    with mpl.rc_context(STYLE):
        for name, picture in {"peers_trace": traces, "peers_time": times}.items():
            picture(results).savefig(folder / f"{name}.svg", metadata={"Date": None})


def traces(results: dict[str, Any]) -> Figure:
    """Best median error of each library against products."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for ax, problem in zip(axes.flat, ("i^-2", "i^-0.5", "1+U(0,1)", "0.7^i"), strict=True):
        for name, told in results["errors"].items():
            budgets = told.get("trace", {}).get(problem, {})
            points = [(int(m), best(methods)) for m, methods in budgets.items()]
            points = [(m, error) for m, error in points if error is not None]
            if points:
                style = {"color": "k", "zorder": 3} if name == OURS else {"linewidth": 0.8}
                label = results["peers"][name]["called"]
                ax.loglog(*zip(*points, strict=True), label=label, **style)
        ax.set_title(problem, loc="left")
        ax.set_xticks([30, 60, 120, 300], ["30", "60", "120", "300"])
        ax.set_xticks([], minor=True)
    for ax in axes[-1]:
        ax.set_xlabel("products")
    for ax in axes[:, 0]:
        ax.set_ylabel("median relative error")
    axes[0, 1].legend(frameon=False, fontsize=7)
    return figure


def best(methods: dict[str, Any]) -> float | None:
    """Return the least median, not below rounding; nothing where all raised errors."""
    medians = [told[0] for told in methods.values() if not isinstance(told, str)]
    return max(min(medians), 1e-16) if medians else None


def times(results: dict[str, Any]) -> Figure:
    """Time over the bare product, by algorithm and library."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 4, sharex=True)
    for ax, method in zip(axes, ("Hutchinson", "Hutch++", "XTrace", "XNysTrace"), strict=True):
        bars = [
            (name != OURS, ratio, f"{results['peers'][name]['called']}\n{mode}")
            for name, rows in results["times"].items()
            for n, m, mode, at, _, _, _, ratio in (row for row in rows if len(row) > 5)
            if (n, m) == SIZE and at == method
        ]
        bars.sort(key=lambda bar: -bar[1])
        colors = ["0.7" if other else "k" for other, _, _ in bars]
        ax.barh(range(len(bars)), [ratio for _, ratio, _ in bars], color=colors, height=0.7)
        ax.set_yticks(range(len(bars)), [label for _, _, label in bars], fontsize=6)
        ax.axvline(1, color="0.4", linestyle=":", marker="")
        ax.set_title(method, loc="left")
        ax.set_xlabel("time / bare product")
    axes[0].set_xlim(0, 8)
    return figure
