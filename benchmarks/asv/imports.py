"""Imports: the time that `import` takes in a fresh interpreter."""

from __future__ import annotations

from typing import Any


class Import:
    """Array libraries but NumPy stay unloaded."""

    params = ("numpy", "tracekit", "tracekit_ntk")
    param_names = ("module",)
    repeat = 5
    rounds = number = 1
    warmup_time = 0

    def timeraw_import(self, *params: Any) -> str:
        return f"import {params[0]}"
