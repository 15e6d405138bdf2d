"""An accelerator for PyTorch on every machine, with the memory of the host and the rules of CUDA.

`device` registers it with PyTorch as the backend "emulated". Its tensors are ordinary dense tensors
to all that stands above the kernels (autograd, forward mode, vmap, modules, ``device=``), so that
what runs on CUDA runs there; below, one function takes every operation, reads the memory of its
tensors as that of CPU tensors, and calls the kernel of the CPU. As CUDA does, it refuses

* an operation on tensors of two devices, but for CPU tensors of no axes, and indices on the CPU;
* `numpy()`, and all else that reads its memory from the host;
* another device's generator for its own tensors: `Generator` makes one of its own.

What it does not show: it rounds like the CPU, it never runs behind, and it has none of the fused
kernels for attention and recurrence that PyTorch keeps for GPUs, but the cells of LSTM and GRU.
Sparse tensors cannot be put there, and a hook of saved tensors must not raise, as the hooks of
activation checkpoints do. An operation takes some 30 microseconds more than on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.dlpack import to_dlpack

NAME = "emulated"
_kept: list[torch.library.Library] = []  # a registration ends with its library
_generators: WeakValueDictionary[int, Generator] = WeakValueDictionary()


@cache
def device() -> torch.device:
    """The device, registered with PyTorch at the first call."""
    _setup_privateuseone_for_python_backend(NAME)
    every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_run, "PrivateUse1")
    for key in ("Conjugate", "Negative"):  # copies resolve these bits themselves
        own.impl("_copy_from", torch.library.fallthrough_kernel, key)
    for kernel in _KERNELS:
        own.impl(kernel.__name__, _on_the_host(kernel), "PrivateUse1")
    _kept.extend((every, own))
    # asked for by torch.utils.checkpoint and fork_rng, whatever device the tensors are on
    module = getattr(torch, NAME)
    module.get_rng_state = lambda _=None: torch.get_rng_state()
    module.set_rng_state = lambda *_: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return torch.device(NAME, 0)


class Generator(torch.Generator):
    """A generator of the device."""

    def __init__(self) -> None:
        _generators[self._cdata] = self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0)


# Every operation ----------------------------------------------------------------------------------

_INDEXING = ("aten::index", "aten::_index_put_impl_", "aten::_unsafe_index")  # and their kin


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation that meets a tensor of the device, or its name."""
    name = op._schema.name
    if name == "aten::_copy_from":
        _on_host(args[1]).copy_(_on_host(args[0]))
        return args[1]
    if op.is_view or name == "aten::as_strided_":
        return op._op_dk(torch.DispatchKey.CPU, *args, **kwargs)  # another look at the same storage
    if name == "aten::_efficientzerotensor":
        op = torch.ops.aten.zeros.default
    names, tensors, writes, returns = _declared(op)
    given = dict(zip(names, args, strict=False)) | kwargs
    _check(name, given)
    there = _each(_on_host, given)
    for n in tensors & there.keys():  # where numbers have been made Python's on the way
        if isinstance(there[n], complex | float | int):
            there[n] = _number(there[n])
    if there.get("device") is not None:
        there["device"] = torch.device("cpu")
    written = [n for n in writes if n in given]
    empty = [n for n in written if isinstance(given[n], torch.Tensor) and not given[n].numel()]
    for n in empty:  # an `out=` to be resized, for which it needs memory of its own
        there[n] = torch.empty_like(there[n])
    made = op(**there)
    for n in empty:
        given[n].data = _here(there[n])
    return _results(returns, made, iter([given[n] for n in written]))


@cache
def _declared(op: Any) -> tuple[list[str], set[str], list[str], list[bool]]:
    """Names of arguments: all, those of one tensor, those written into; which results those are."""
    arguments = op._schema.arguments
    return (
        [a.name for a in arguments],
        {a.name for a in arguments if str(a.type) == "Tensor"},
        [a.name for a in arguments if _is_written(a)],
        [_is_written(r) for r in op._schema.returns],
    )


def _check(name: str, given: dict[str, Any]) -> None:
    """What CUDA refuses."""
    tensors = list(_tensors(given))
    if name.startswith(_INDEXING):
        tensors = [t for n, part in given.items() if n != "indices" for t in _tensors(part)]
    strange = [tuple(t.shape) for t in tensors if t.device.type != NAME and t.ndim]
    if strange:
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, but of those of {NAME} and "
            f"of the CPU these are on the CPU: {', '.join(map(str, strange))}"
        )
    generator = given.get("generator")
    if generator is not None and generator._cdata not in _generators:
        raise RuntimeError(f"{name}: expected a generator of {NAME}, got {generator.device}'s")


def _results(returns: list[bool], made: Any, written: Iterator[Any]) -> Any:
    """Results on the device; what was written into is given back itself."""
    made = [made] if len(returns) == 1 else made
    found = [
        next(written) if is_written else _each(_here, result)
        for is_written, result in zip(returns, made or (), strict=True)
    ]
    return found[0] if len(found) == 1 else tuple(found) or None


def _number(x: complex) -> torch.Tensor:
    wide = {float: torch.float64, complex: torch.complex128}
    return torch.tensor(x, dtype=wide.get(type(x)))


def _is_written(declared: Any) -> bool:
    return declared.alias_info is not None and declared.alias_info.is_write


def _each(f: Callable[[torch.Tensor], Any], x: Any) -> Any:
    """The same with `f` of every tensor."""
    if isinstance(x, torch.Tensor):
        return f(x)
    if isinstance(x, list | tuple):
        return type(x)(_each(f, part) for part in x)
    return {n: _each(f, part) for n, part in x.items()} if isinstance(x, dict) else x


def _tensors(x: Any) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, list | tuple | dict):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _tensors(part)


# One memory, two names ----------------------------------------------------------------------------

_CPU, _EXTENSION = 1, 12  # devices in DLPack's words


class _Head(ctypes.Structure):
    """The first fields of DLPack's record of a tensor."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32))


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _on_host(x: torch.Tensor) -> torch.Tensor:
    return _named(x, _CPU) if x.device.type == NAME else x


def _here(x: torch.Tensor) -> torch.Tensor:
    return _named(x, _EXTENSION)


def _named(x: torch.Tensor, device_type: int) -> torch.Tensor:
    """A tensor of the same memory, on another device by its record."""
    capsule = to_dlpack(x)
    _Head.from_address(_pointer(capsule, b"dltensor")).device_type = device_type
    y = torch._C._from_dlpack(capsule)
    y = torch._conj(y) if x.is_conj() else y
    return torch._neg_view(y) if x.is_neg() else y


# Kernels that PyTorch asks of an accelerator, and the CPU lacks -----------------------------------


def _on_the_host(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return _each(_here, kernel(*_each(_on_host, args)))

    return run


def convolution_overrideable(*args: Any) -> Any:
    return torch.ops.aten.convolution(*args)


def convolution_backward_overrideable(g: Any, x: Any, weight: Any, *options: Any) -> Any:
    sizes = [weight.shape[1] * options[-2] if options[3] else weight.shape[0]]
    return torch.ops.aten.convolution_backward(g, x, weight, sizes, *options)


def _thnn_fused_lstm_cell(i: Any, h: Any, cx: Any, i_bias: Any = None, h_bias: Any = None) -> Any:
    i, f, g, o = _biased(i + h, i_bias, h_bias).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _thnn_fused_lstm_cell_backward_impl(
    grad_hy: Any, grad_cy: Any, cx: Any, cy: Any, gates: Any, has_bias: bool
) -> Any:
    i, f, g, o = gates.chunk(4, 1)
    t = cy.tanh()
    zero = torch.zeros_like(cy)
    dh, dc = zero if grad_hy is None else grad_hy, zero if grad_cy is None else grad_cy
    dc = dc + dh * o * (1 - t * t)
    slopes = dc * g * i * (1 - i), dc * cx * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)
    grads = torch.cat(slopes, 1)
    return grads, dc * f, grads.sum(0) if has_bias else None


def _thnn_fused_gru_cell(i: Any, h: Any, hx: Any, i_bias: Any = None, h_bias: Any = None) -> Any:
    (ir, iz, candidate), (hr, hz, hn) = (
        _biased(i, i_bias).chunk(3, 1),
        _biased(h, h_bias).chunk(3, 1),
    )
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (candidate + r * hn).tanh()
    return n + z * (hx - n), torch.cat([r, z, n, hx, hn], 1)


def _thnn_fused_gru_cell_backward(g: Any, workspace: Any, has_bias: bool) -> Any:
    r, z, n, hx, hn = workspace.chunk(5, 1)
    dn = g * (1 - z) * (1 - n * n)
    dz, dr = g * (hx - n) * z * (1 - z), dn * hn * r * (1 - r)
    to_i, to_h = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    biases = (to_i.sum(0), to_h.sum(0)) if has_bias else (None, None)
    return to_i, to_h, g * z, *biases


def _biased(x: Any, *biases: Any) -> Any:
    return sum((b for b in biases if b is not None), x)


_KERNELS = (
    convolution_overrideable,
    convolution_backward_overrideable,
    _thnn_fused_lstm_cell,
    _thnn_fused_lstm_cell_backward_impl,
    _thnn_fused_gru_cell,
    _thnn_fused_gru_cell_backward,
)
