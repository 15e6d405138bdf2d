"""Draws the picture of the README and the landing page: python -m docs._draw.landing renews it."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import tracekit as tk
from examples.triangles import count_triangles, cube_operator, neighbour_graph

from .style import DOCS, STYLE

BUDGETS = (12, 18, 30, 45, 60, 90, 120, 180, 240, 360, 480)
METHODS = {"Girard-Hutchinson": (tk.hutchinson, "#999999"), "Hutch++": (tk.hutchpp, "#d98c00"),
           "XTrace": (tk.xtrace, "#0060a8")}  # fmt: skip
SEEDS = range(30)


def landing() -> Figure:
    """The triangles of a graph: intervals that narrow, and errors at equal products."""
    graph = neighbour_graph()
    cube, exact = cube_operator(graph), count_triangles(graph)
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("Girard-Hutchinson", "XTrace"):
        method, colour = METHODS[name]
        ends = np.array([method(cube, m, rng=0).confidence_interval() for m in BUDGETS]) / 6
        left.fill_between(BUDGETS, *ends.T, color=colour, alpha=0.35, lw=0, label=name)
    left.axhline(exact, color="black", lw=1, label=f"exact: {exact}")
    left.set(
        xscale="log",
        ylim=(0.82 * exact, 1.18 * exact),
        ylabel="triangles",
        title="95 % intervals, one seed",
    )
    for name, (method, colour) in METHODS.items():
        errors = [
            [abs(float(method(cube, m, rng=seed)) / (6 * exact) - 1) for seed in SEEDS]
            for m in BUDGETS
        ]
        right.plot(BUDGETS, np.median(errors, axis=1), "o-", ms=4, color=colour, label=name)
    right.set(xscale="log", yscale="log", ylabel="relative error", title="median of 30 seeds")
    for axes in (left, right):
        axes.set_xticks((12, 30, 60, 120, 240, 480), (12, 30, 60, 120, 240, 480))
        axes.minorticks_off()
        axes.set_xlabel(f"products with A³, of which {graph.shape[0]} give it exactly")
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    with mpl.rc_context(STYLE | {"lines.marker": "None", "figure.facecolor": "white"}):
        landing().savefig(DOCS / "figures" / "landing.svg", metadata={"Date": None})
