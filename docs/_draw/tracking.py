"""Draws the picture of the page on tracking: a kernel in training, when the site is built."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import tracekit as tk

from .kernels import jacobian
from .style import STYLE

STEPS = range(0, 101, 4)
PRODUCTS = 24


def draw(folder: Path) -> None:
    """Write the picture into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        tracking().savefig(folder / "tracking.svg", metadata={"Date": None})


def tracking() -> Figure:
    """Trace and alignment along training: tracked, anew at every step, and exact."""
    tracker = tk.Tracker(PRODUCTS, rng=0)
    exact, fresh, kernels = [], [], []
    for step in STEPS:
        J = jacobian(step)
        tracker.update(tk.gram(J), step)
        estimate = tk.one_sided(J, PRODUCTS, rng=1 + step)
        low, high = estimate.confidence_interval()
        fresh.append((float(estimate), float(estimate) - float(low), float(high) - float(estimate)))
        kernels.append(J @ J.T)
        exact.append(np.trace(kernels[-1]))
    first = kernels[0]
    cosines = [np.vdot(first, K) / np.linalg.norm(first) / np.linalg.norm(K) for K in kernels]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    values, below, above = np.array(fresh).T
    left.errorbar(STEPS, values, (below, above), fmt=".", color="0.6", linewidth=0.8, zorder=0,
                  label=f"anew, {PRODUCTS} columns a step")  # fmt: skip
    for ax, quantity, truth in ((left, "trace", exact), (right, "alignment", cosines)):
        tracker.plot(ax, quantity=quantity)
        ax.lines[-2].set_marker("")  # of the curve; its anchors keep theirs
        ax.plot(STEPS, truth, "k:", marker="", label="exact")
        ax.set_xlabel("steps of training")
        ax.legend(frameon=False)
    mean = tracker.num_matvecs / len(tracker.points)
    left.set_title(f"{PRODUCTS} columns a step, {mean:.0f} with anchors", loc="left")
    right.set_title("the same columns", loc="left")
    return figure
