"""The array libraries, devices and modes that the tests run over."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest
from haste import hasten

# What is started in the background by a shell ignores Ctrl-C, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when JAX is first imported: a second device, haste, and no claim to a GPU's whole memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
hasten(devices=2)

if importlib.util.find_spec("jax") is not None:
    import jax

# PyTorch's autograd counts the devices at the first backward pass: what is emulated comes before.
if importlib.util.find_spec("torch") is not None:
    import torch

    with suppress(ImportError):  # of a PyTorch that takes no backend written in Python
        import accelerator

        if not torch.cuda.is_available():
            accelerator.device()


collect_ignore = ["distributed/jax_program.py"]  # a program that needs four devices


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: not (item.path.suffix == ".md" or "distributed" in item.path.parts))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector of garbage need not go through it again."""
    gc.collect()
    gc.freeze()


class Library:
    """One array library on one device: makes its arrays, its seeds, and calls functions on them.

    Parameters
    ----------
    name : str
        One of `NAMES`; `family` is the array library's own name.
    xp : namespace
        As array_api_compat wraps it.
    device : optional
        Where `array` creates.
    double : bool
        Whether the device has double precision.
    readonly : bool
        Whether `array` locks what it makes.
    jit : bool
        Whether `call` compiles; seeds are then keys.
    """

    def __init__(
        self,
        name: str,
        xp: ModuleType,
        *,
        device: Any = None,
        double: bool = True,
        readonly: bool = False,
        jit: bool = False,
    ) -> None:
        self.name, self.xp, self.device, self.readonly, self.jit = name, xp, device, readonly, jit
        self.family = name.partition(":")[0].partition("-")[0]
        self.real = xp.float64 if double else xp.float32
        self.complex = xp.complex128 if double else xp.complex64
        self.eps = float(xp.finfo(self.real).eps)

    def __repr__(self) -> str:
        return self.name

    def array(self, x: Any, dtype: str | None = None) -> Any:
        """A NumPy array, or a number, in this library, in its widest dtype unless one is named."""
        x = np.array(x)
        if dtype is not None:
            wanted = getattr(self.xp, dtype)
        elif np.iscomplexobj(x):
            wanted = self.complex
        else:
            wanted = self.real
        made = self.xp.asarray(x, dtype=wanted, device=self.device)
        if self.readonly:
            made.flags.writeable = False
        return made

    def numpy(self, x: Any) -> np.ndarray:
        """Back on the host."""
        if self.family == "strict":
            import array_api_strict

            return np.asarray(x.to_device(array_api_strict.Device("CPU_DEVICE")))
        if self.family == "torch":
            return np.asarray(x.detach().cpu().resolve_conj().numpy())
        if self.family == "cupy":
            return np.asarray(x.get())
        return np.asarray(x)

    def rng(self, seed: int) -> Any:
        """What `rng=` takes here: a key where functions are compiled, the seed itself elsewhere."""
        return jax.random.key(seed) if self.jit else seed

    def call(self, f: Callable[..., Any], *arrays: Any) -> Any:
        """``f(*arrays)``, compiled where this library stands for compiled code."""
        return jax.jit(f)(*arrays) if self.jit else f(*arrays)

    def estimate(
        self, estimator: Callable[..., Any], A: Any, *budget: int, seed: int = 0, **options: Any
    ) -> Any:
        """An estimate of a matrix of this library."""
        return self.call(
            lambda A, rng: estimator(A, *budget, rng=rng, **options), A, self.rng(seed)
        )

    def at_home(self, x: Any) -> bool:
        """Whether an array is of this library and on this device."""
        if array_api_compat.array_namespace(x) is not self.xp:
            return False
        return self.device is None or array_api_compat.device(x) == self.device


def _numpy(name: str) -> Library:
    import array_api_compat.numpy as xp

    return Library(name, xp, readonly=name == "numpy-readonly")


def _strict(name: str) -> Library:
    xp = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    device = xp.Device(name.partition(":")[2])
    return Library(name, xp, device=device, double=name != "strict:no_float64")


def _torch(name: str) -> Library:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import array_api_compat.torch as xp

    where = name.partition(":")[2] or "cpu"
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    if where == "emulated":
        if torch.cuda.is_available():
            pytest.skip("PyTorch finds a GPU, which need not be emulated")
        try:
            import accelerator
        except ImportError:
            pytest.skip("this PyTorch takes no backend that is written in Python")
        return Library(name, xp, device=accelerator.device())
    return Library(name, xp, device=torch.device(where, 0 if where == "cuda" else None))


def _jax(name: str) -> Library:
    pytest.importorskip("jax", reason="JAX is not installed")
    where = name.partition(":")[2]
    if where == "cuda" and not _jax_finds_a_gpu():
        pytest.skip("JAX finds no GPU")
    devices = {
        "": lambda: None,
        "1": lambda: jax.devices("cpu")[1],
        "cuda": lambda: jax.devices("cuda")[0],
    }
    xp = array_api_compat.array_namespace(jax.numpy.empty(0))
    return Library(name, xp, device=devices[where](), jit=name == "jax-jit")


def _cupy(name: str) -> Library:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("CuPy finds no GPU")
    import array_api_compat.cupy as xp

    return Library(name, xp)


@cache
def _jax_finds_a_gpu() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


_MAKERS = {
    "numpy": _numpy,
    "numpy-readonly": _numpy,
    "strict:CPU_DEVICE": _strict,
    "strict:device1": _strict,
    "strict:no_float64": _strict,
    "torch": _torch,
    "torch:emulated": _torch,
    "torch:cuda": _torch,
    "jax": _jax,
    "jax:1": _jax,
    "jax:cuda": _jax,
    "jax-jit": _jax,
    "cupy": _cupy,
}
# JAX compiles every operation of eager code by itself, which takes more time than all else: where
# compiled code holds a law, eager JAX is left to `test_capabilities`.
NAMES = tuple(name for name in _MAKERS if name not in ("jax", "jax:1"))
EAGER = tuple(name for name in _MAKERS if name not in ("jax", "jax-jit"))


def library(name: str) -> Library:
    """The library of that name; skips the test where it is not installed."""
    return _MAKERS[name](name)


def installed(*names: str) -> Iterator[Library]:
    """Those of the named libraries that can be used here."""
    for name in names:
        try:
            yield library(name)
        except pytest.skip.Exception:
            continue


@pytest.fixture(params=NAMES)
def lib(request: pytest.FixtureRequest) -> Library:
    """Every library and device; JAX compiled."""
    return library(request.param)


@pytest.fixture(params=EAGER)
def eager(request: pytest.FixtureRequest) -> Library:
    """Every library and device, not compiled."""
    return library(request.param)


@pytest.fixture(params=[name for name in EAGER if name != "jax:1"])
def but_jax(request: pytest.FixtureRequest) -> Library:
    """Every library and device that runs a law fast."""
    return library(request.param)


@pytest.fixture
def xp(lib: Library) -> ModuleType:
    """The namespace of `lib`."""
    return lib.xp


def matrix(kind: str, n: int, *, seed: int = 0) -> np.ndarray:
    """A well-conditioned test matrix of decaying spectrum.

    Kinds: "real" (not symmetric), "symmetric" (indefinite), "psd", "complex" (not normal),
    "hermitian" (indefinite), "complex psd".
    """
    rng = np.random.default_rng([seed, n])
    cplx = kind in ("complex", "hermitian", "complex psd")

    def unitary() -> np.ndarray:
        X = rng.standard_normal((n, n))
        return np.linalg.qr(X + 1j * rng.standard_normal((n, n)) if cplx else X)[0]

    U, decay = unitary(), 1.0 / np.arange(1, n + 1)
    if kind in ("real", "complex"):
        return (U * decay) @ unitary().conj().T + np.diag(decay)
    if kind in ("symmetric", "hermitian"):
        decay = decay * np.where(np.arange(n) % 3 == 1, -1.0, 1.0)
    A = (U * decay) @ U.conj().T
    return (A + A.conj().T) / 2


def by_products(A: Any) -> Any:
    """A matrix as an operator that is known by its products alone, so that `trace` estimates."""
    import tracekit as tk

    A = tk.as_operator(A)
    return replace(A, exact=None) if A.exact and "entries" in A.exact else A


KINDS = ("real", "symmetric", "psd", "complex", "hermitian", "complex psd")
PSD = ("psd", "complex psd")


@pytest.fixture
def mesh(tmp_path: Any) -> Iterator[Any]:
    """A mesh of this process alone, for tensors of PyTorch that may lie on several devices."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_gloo_available():
        pytest.skip("gloo is not there")
    from torch.distributed.device_mesh import init_device_mesh

    store = (tmp_path / "store").as_uri()
    distributed.init_process_group("gloo", init_method=store, world_size=1, rank=0)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()
