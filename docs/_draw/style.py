"""How the pictures look, and where the figures lie that some of them show."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1]
MEASURED = DOCS / "measured"
STYLE = {"svg.hashsalt": "tracekit", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "lines.marker": "o", "lines.markersize": 4}  # fmt: skip
