"""Lists of all public names, by the folder that each comes from, for the page of the API."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import tracekit
import tracekit_ntk

# For each list its package, and the folders or files of it whose names it holds.
LISTS: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "trace": (tracekit, ("_trace", "_estimates")),
    "norm": (tracekit, ("_norm",)),
    "matrix_functions": (tracekit, ("_matrix_functions",)),
    "functions": (tracekit.functions, ("",)),
    "tracking": (tracekit, ("_tracking",)),
    "diagonal": (tracekit, ("_diagonal",)),
    "operators": (tracekit, ("_operators",)),
    "jacobian": (tracekit_ntk, ("_jacobian",)),
    "kernel": (tracekit_ntk, ("kernel",)),
    "factors": (tracekit_ntk.factors, ("",)),
    "probes": (tracekit.probes, ("",)),
    "testing": (tracekit.testing, ("",)),
    "io": (import_module("tracekit.io"), ("",)),
}


def names(title: str) -> list[str]:
    """The public names of a list, in the order of the alphabet."""
    package, folders = LISTS[title]
    faces = [
        import_module(f"{package.__name__}.{folder}") if folder else package for folder in folders
    ]
    public = package.__all__
    return sorted(name for name in public if any(name in face.__all__ for face in faces))


def draw(folder: Path) -> None:
    """Write the lists beside the folder of pictures."""
    into = folder.parent / "api"
    into.mkdir(parents=True, exist_ok=True)
    for title, (package, _) in LISTS.items():
        lines = "\n".join(f"   {name}" for name in names(title))
        (into / f"{title}.txt").write_text(
            f"```{{eval-rst}}\n.. currentmodule:: {package.__name__}\n"
            f".. autosummary::\n   :toctree: generated/\n\n{lines}\n```\n"
        )
