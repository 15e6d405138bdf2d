"""Groups of processes of PyTorch, forked of one that has imported what they need: by `ranks`."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ntk_process
import torch_process

Program = Callable[[str, int, int], dict[str, Any]]
GROUPS: dict[str, tuple[Program, int]] = {
    "rows, 2": (torch_process.main, 2),
    "rows, 4": (torch_process.main, 4),
    "networks, 2": (ntk_process.main, 2),
    "example, 1": (torch_process.example, 1),
}


def write(folder: Path, name: str, rank: int) -> None:
    """What one process of a group reports."""
    program, size = GROUPS[name]
    report = program(f"file://{folder / name.replace(', ', '-')}", rank, size)
    (folder / f"{name}.{rank}.json").write_text(json.dumps(report))


def main(folder: Path) -> int:
    """How many processes failed."""
    fork = multiprocessing.get_context("fork")
    torch_process.alone()  # once for all
    failed = 0
    for name, (_, size) in GROUPS.items():
        group = [fork.Process(target=write, args=(folder, name, rank)) for rank in range(size)]
        for process in group:
            process.start()
        for process in group:
            process.join()
        failed += sum(process.exitcode != 0 for process in group)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
