"""Reduces what the workers saw to medians, and keeps them in docs/measured/peers.json."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from . import judgement
from .environments import NAMES

PATH = Path(__file__).parents[2] / "docs" / "measured" / "peers.json"
DIGITS = 3
Results = dict[str, Any]


def reduce(found: dict[str, Any], before: Results | None = None) -> Results:
    """Return medians by section and library; those of libraries not found anew as before."""
    kept: Results = before or {}
    reduced: Results = {"peers": {}, "errors": {}, "coverage": {}, "tolerance": {}}
    reduced |= {"cases": {}, "times": {}, "kernels": {}}
    for name in NAMES:
        peer = importlib.import_module(f".adapters.{name}", __package__).PEER
        if name not in found:
            for section, by_name in reduced.items():
                if name in kept.get(section, {}):
                    by_name[name] = kept[section][name]
            continue
        told = found[name]
        versions = [section["version"] for section in told.values() if section["version"]]
        reduced["peers"][name] = {
            "called": peer.name,
            "version": versions[0] if versions else peer.version,
            "homepage": peer.homepage,
            "arrays": peer.arrays,
            "beyond": peer.beyond,
        }
        for section, reducer in REDUCERS.items():
            source = SOURCES[section]
            if source in told:
                reduced[section][name] = reducer(told[source]["rows"])
    return reduced


def _errors(rows: list[Any]) -> Any:
    """By quantity, problem, budget and method: median, noise, seeds, products, ms; or an error."""
    nested: dict[str, Any] = {}
    for quantity, problem, m, method, products, errors, ms in rows:
        at = nested.setdefault(quantity, {}).setdefault(problem, {}).setdefault(str(m), {})
        if isinstance(errors, str):
            at[method] = errors
            continue
        found = judgement.cell(errors, products)
        if not np.isfinite(found.median):
            at[method] = "error: NaN"
            continue
        at[method] = [
            rounded(found.median), round(found.noise, 2), found.seeds, products, rounded(ms)
        ]  # fmt: skip
    return nested


def _rows(rows: list[Any]) -> Any:
    return [[rounded(x) if isinstance(x, float) else x for x in row] for row in rows]


def rounded(value: float) -> float:
    """Keep three digits."""
    return float(f"{value:.{DIGITS}g}")


REDUCERS = {"errors": _errors, "coverage": _rows, "tolerance": _rows, "cases": _rows}
REDUCERS |= {"times": _rows, "kernels": _rows}
SOURCES = {"errors": "accuracy", "times": "timing"} | {
    section: section for section in ("coverage", "tolerance", "cases", "kernels")
}


def save(reduced: Results, path: Path = PATH) -> None:
    """Write one line for each library and section."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for section, by_name in reduced.items():
        lines = [
            f"  {json.dumps(name)}: {json.dumps(told, separators=(',', ':'))}"
            for name, told in by_name.items()
        ]
        parts.append(f" {json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n }")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def load(path: Path = PATH) -> Results:
    """Read them."""
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    return found
