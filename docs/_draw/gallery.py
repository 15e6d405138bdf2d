"""What every example of the gallery starts from, whatever the one before has set."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from cycler import cycler

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"  # told apart by all
STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
}


def reset(gallery_conf: dict[str, Any], fname: str) -> None:
    """Restore the defaults of Matplotlib, but for the style."""
    mpl.rcdefaults()
    mpl.use("agg")
    mpl.rcParams.update(STYLE)
