"""Plots of arrays and labels; matplotlib is loaded when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_COLOURS = "#0072B2", "#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#D55E00", "#000000"
_MARKERS = "osv<^D*"


def plot_samples(
    ax: Any, samples: Any, value: float, interval: tuple[float, float], level: float, label: str
) -> Any:
    """Samples in a row, a value, and an interval around it."""
    ax = _axes(ax)
    low, high = interval
    if samples is not None:
        ax.plot(range(1, len(samples) + 1), samples, ".", color="0.6", label="samples")
    if math.isfinite(low):
        ax.axhspan(low, high, alpha=0.2, label=f"{level:.0%} interval")
    ax.axhline(value, label=label)
    ax.set_xlabel("sample")
    ax.set_ylabel("value")
    ax.legend()
    return ax


def plot_errors(
    ax: Any,
    names: Sequence[str],
    spent: Any,
    quartiles: Any,
    ticks: Sequence[int],
    label: str,
    title: str,
) -> Any:
    """Median errors of several methods against products, with bands from quartile to quartile."""
    ax = _axes(ax, layout="constrained")
    lower, median, upper = quartiles
    for i, name in enumerate(names):
        colour = _COLOURS[i % len(_COLOURS)]
        marker = _MARKERS[i % len(_MARKERS)]  # told apart without colour too
        ax.fill_between(spent[i], lower[i], upper[i], color=colour, alpha=0.15, linewidth=0)
        ax.plot(spent[i], median[i], color=colour, marker=marker, markersize=5, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(ticks, [str(m) for m in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("products")
    ax.set_ylabel(label)
    ax.set_title(title, fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_density(ax: Any, x: Any, y: Any, error: Any) -> Any:
    """A density of eigenvalues, with the band of its standard error."""
    ax = _axes(ax)
    (line,) = ax.plot(x, y)
    if error.any():
        low = (y - error).clip(min=0)
        ax.fill_between(x, low, y + error, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel="eigenvalue", ylabel="share of all per unit", ylim=(0, None))
    return ax


def plot_band(
    ax: Any,
    steps: Sequence[float],
    values: Sequence[float],
    band: tuple[Sequence[float], Sequence[float]],
    marked: Sequence[int],
    label: str,
    band_label: str,
    mark_label: str,
) -> Any:
    """Values along steps with a band, and dots at some of them."""
    ax = _axes(ax, layout="constrained")
    (line,) = ax.plot(steps, values, label=label)
    colour = line.get_color()
    ax.fill_between(steps, *band, color=colour, alpha=0.2, linewidth=0, label=band_label)
    x, y = ([each[i] for i in marked] for each in (steps, values))
    ax.plot(x, y, "o", color=colour, markersize=4, label=mark_label)
    ax.set_xlabel("step")
    ax.set_ylabel(label)
    ax.legend(frameon=False)
    return ax


def _axes(ax: Any, **layout: Any) -> Any:
    """The axes to draw on: as given, or those of a new figure."""
    import matplotlib.pyplot as plt

    return plt.subplots(**layout)[1] if ax is None else ax
