"""Array libraries on their devices: which of them are here, and what a benchmark needs of each."""

from __future__ import annotations

import resource
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = Any

ALL = (
    "numpy:cpu",
    "array_api_strict:cpu",
    "torch:cpu",
    "torch:cuda",
    "jax:cpu",
    "jax:cuda",
    "cupy:cuda",
)
TIMED = tuple(on for on in ALL if not on.startswith("array_api_strict"))  # it is NumPy, slowed down
NETWORKS = tuple(on for on in ALL if on.startswith(("torch", "jax")))  # have derivatives
GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and Windows' Linux


class NumPy:
    """NumPy on the CPU; other libraries say where they differ."""

    clock = staticmethod(time.process_time)

    def __init__(self, device: str) -> None:
        self.xp, self.device = np, None

    def asarray(self, x: Array) -> Array:
        """A host array on the device, with its dtype."""
        return self.xp.asarray(x)

    def generator(self, seed: int) -> Any:
        """What the library's users draw from, on the device."""
        return np.random.default_rng(seed)

    def compiled(self, f: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        """The function as the library's users run it, compiled where they would."""
        return f

    def wait(self, result: Any) -> Any:
        """Return a result when it is there."""
        return result

    def peak(self) -> float:
        """Most bytes that were held so far, on the device."""
        kilo = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo)


class Strict(NumPy):
    """NumPy with nothing that is not in the array API standard."""

    def __init__(self, device: str) -> None:
        import array_api_strict

        self.xp, self.device = array_api_strict, array_api_strict.Device("CPU_DEVICE")


class Torch(NumPy):
    """PyTorch, eager."""

    def __init__(self, device: str) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError("this PyTorch finds no GPU")
        self.xp, self.device, self.cuda = torch, torch.device(device), device == "cuda"
        if self.cuda:
            self.clock = time.perf_counter

    def asarray(self, x: Array) -> Array:
        return self.xp.as_tensor(x, device=self.device)

    def generator(self, seed: int) -> Any:
        return self.xp.Generator(self.device).manual_seed(seed)

    def wait(self, result: Any) -> Any:
        if self.cuda:
            self.xp.cuda.synchronize()
        return result

    def peak(self) -> float:
        return float(self.xp.cuda.max_memory_allocated()) if self.cuda else super().peak()


class Jax(NumPy):
    """JAX in double precision, compiled."""

    def __init__(self, device: str) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_platforms", device if device == "cpu" else "cuda,cpu")
        try:
            self.place = jax.devices(device)[0]
        except RuntimeError:
            raise NotImplementedError("this JAX finds no GPU") from None
        self.jax, self.xp, self.device = jax, jax.numpy, None
        if device == "cuda":
            self.clock = time.perf_counter

    def asarray(self, x: Array) -> Array:
        return self.jax.device_put(x, self.place)

    def generator(self, seed: int) -> Any:
        return self.jax.random.key(seed)

    def compiled(self, f: Callable[..., Any], *args: Any) -> Callable[..., Any]:
        made: Callable[..., Any] = self.jax.jit(f).lower(*args).compile()
        return made

    def wait(self, result: Any) -> Any:
        return self.jax.block_until_ready(result)

    def peak(self) -> float:
        held = self.place.memory_stats()  # None on the CPU
        return float(held["peak_bytes_in_use"]) if held else super().peak()


class CuPy(NumPy):
    """CuPy, eager."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, device: str) -> None:
        import cupy

        if not cupy.is_available():
            raise NotImplementedError("this CuPy finds no GPU")
        self.xp, self.device = cupy, cupy.cuda.Device()

    def generator(self, seed: int) -> Any:
        return self.xp.random.default_rng(seed)

    def wait(self, result: Any) -> Any:
        self.device.synchronize()
        return result

    def peak(self) -> float:
        return float(self.xp.get_default_memory_pool().total_bytes())  # a pool gives nothing back


CLASSES: dict[str, type[NumPy]] = {
    "numpy": NumPy,
    "array_api_strict": Strict,
    "torch": Torch,
    "jax": Jax,
    "cupy": CuPy,
}


@cache
def backend(on: str) -> NumPy:
    """Load a library, and no other; asv skips what cannot run here, and says why."""
    library, device = on.split(":")
    if find_spec(library) is None:
        raise NotImplementedError(f"{library} is not installed")
    if device == "cuda" and not any(Path(node).exists() for node in GPU_NODES):
        raise NotImplementedError("this machine has no GPU")
    return CLASSES[library](device)


def main() -> None:
    """Say which libraries run here, and why the others do not."""
    for on in ALL:
        try:
            backend(on)
        except NotImplementedError as why:
            print(f"{on:22}skipped: {why}")
        else:
            print(f"{on:22}{sys.modules[on.partition(':')[0]].__version__}")


if __name__ == "__main__":
    main()
