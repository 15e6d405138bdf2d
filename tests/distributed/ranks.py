"""Programs of several processes: how they are started, and what they compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tracekit as tk

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def printed(
    program: Path,
    size: int,
    arguments: Callable[[int], list[str]],
    environment: Mapping[str, str] = ENVIRONMENT,
) -> list[dict[str, Any]]:
    """The last line, in JSON, of each of so many processes that run together."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), *arguments(rank)], text=True, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(found.splitlines()[-1]) for found, _ in said]


def run(*command: str) -> str:
    """What a command prints that must not fail."""
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def apart(found: Any, expected: Any) -> float:
    """Largest difference, of the rows that this process holds, by the largest entry; of PyTorch."""
    import torch

    found, expected = (getattr(x, "value", x) for x in (found, expected))
    expected = torch.asarray(expected)
    largest = float(expected.abs().max())
    if isinstance(found, tk.RowArray):
        rows = [slice(None)] * expected.ndim
        rows[found.axis] = slice(found.held.start, found.held.stop)
        found, expected = found.local, expected[tuple(rows)]
    return float((torch.asarray(found) - expected).abs().max()) / max(largest, 1e-300)


def told(call: Callable[[], Any]) -> str:
    """What a call is refused with."""
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return "nothing"
