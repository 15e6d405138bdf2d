"""Makes the table of what each function can do, from the marks that the tests hold."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
YES, NO, UNTRIED = "✓", "-", "○"
SHORT = {"array-api-strict": "strict", "jax.jit": "jit", "non-Hermitian": "general"}  # headings


def draw(folder: Path) -> None:
    """Write both tables as MyST, for the page that includes them, into a folder, which is made."""
    sys.path.insert(0, str(ROOT / "tests"))
    from capabilities import CASES, DISTRIBUTED, FEATURES, NETWORK_CASES, NETWORK_FEATURES

    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "capabilities": table("tracekit", CASES, (*FEATURES, *DISTRIBUTED)),
        "capabilities_ntk": table("tracekit_ntk", NETWORK_CASES, NETWORK_FEATURES),
    }
    for name, text in tables.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def table(module: str, cases: Iterable, features: Sequence[str]) -> str:
    """One row a function, one column a feature; GPUs last, where no test has run yet."""
    lines = [
        "| function | " + " | ".join(SHORT.get(f, f) for f in features) + " | GPU |",
        "|---|" + ":-:|" * (len(features) + 1),
    ]
    for case in cases:
        marks = [NO if feature in case.lacks else YES for feature in features]
        link = f"{{any}}`{case.name} <{module}.{case.name}>`"
        lines.append(f"| {link} | " + " | ".join([*marks, UNTRIED]) + " |")
    return "\n".join(lines) + "\n"
