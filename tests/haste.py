"""JAX set to compile small programs fast, by tests and by the programs that they start."""

from __future__ import annotations

import importlib.util
import mmap
import os
from contextlib import suppress
from functools import cache
from pathlib import Path


def hasten(devices: int = 1) -> None:
    """Set up JAX, before its first use, for small programs on so many devices of the host.

    Each is compiled as one module without fusion and with few optimisations, in half the time.
    """
    for flag, value in (
        ("xla_force_host_platform_device_count", str(devices)),
        ("xla_cpu_use_fusion_emitters", "false"),
        ("xla_cpu_parallel_codegen_split_count", "1"),
    ):
        if flag not in os.environ.get("XLA_FLAGS", "") and _known(flag):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}={value}"
    if importlib.util.find_spec("jax") is None:
        return
    import jax

    # Double precision is a process-wide switch of JAX: thrown once, before any array is made.
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # most of the time is compilation

    # Every program is lowered in a context of its own, which takes a quarter of the time to compile
    # a small one: here they share one, where this JAX makes it by a function of that name.
    with suppress(ImportError, AttributeError):
        from jax._src.interpreters import mlir

        mlir.make_ir_context = cache(mlir.make_ir_context)


def _known(flag: str) -> bool:
    """Whether the compiler of JAX that is installed has a flag; it ends the process at others."""
    jaxlib = importlib.util.find_spec("jaxlib")
    folders = jaxlib.submodule_search_locations if jaxlib is not None else None
    for path in (path for folder in folders or () for path in Path(folder).glob("*.so")):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
            if code.find(flag.encode()) >= 0:
                return True
    return False
