"""Time and memory of products with Jacobians, beside what the frameworks themselves take.

The network is that of Hazelden (2025), arXiv:2511.10796: 15 linear layers of width 64, ReLU
between, 50 Gaussian inputs of dimension 100, here at He initialisation, in single precision.

1. CPU time on one thread of a product with k columns, over the framework's own for the same chunk,
   parameters as the framework has them, no flattening; least of several runs, taken in turn.
   PyTorch: reverse mode by ``autograd.grad(is_grads_batched=True)`` and by ``vmap`` of what
   ``torch.func.vjp`` gives, whichever is faster; forward mode by ``vmap`` of ``torch.func.jvp``.
   JAX: ``jit`` of ``vmap`` of what ``jax.vjp`` and ``jax.linearize`` give, so that the forward pass
   is shared there as here, and of ``vmap`` of ``jax.jvp``, whichever is faster.
2. Peak resident memory of a trace, above that of the process before, in a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tracekit
import tracekit_ntk

from ..measure import apart, least, peak_above
from ..networks import LIBRARIES, mlp
from .table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[], Any]

COLUMNS = 8, 32, 128
REPEATS, TARGET = 9, 1.35
CHUNKS, BUDGETS, N = (8, 64), (128, 512), 3200
SLACK = 16e6  # of an allocator, in bytes
STEADY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once


def tables() -> Iterator[Table]:
    """Times and memory."""
    yield Table(
        f"CPU time of a product with k columns, over the framework's own: at most {TARGET}",
        {"library": "<10", "product": "<10", "k": ">5", "theirs ms": ">11.1f", "ours ms": ">10.1f",
         "ratio": ">8.2f"},
        times(),
    )  # fmt: skip
    few, many = (f"m = {m}" for m in BUDGETS)
    yield Table(
        "Peak memory of hutchinson(ntk(...), m), MB: not above that of the smaller budget by more "
        f"than the\nprobes, {N} numbers each, and {SLACK / 1e6:.0f} MB; above that of the smaller "
        "chunk",
        {"library": "<10", "chunk_size": ">11", few: ">10.0f", many: ">10.0f"},
        memory(),
    )


# --- 1. time --------------------------------------------------------------------------------------


def times() -> Iterator[Row]:
    """Judge the time of every product over the framework's own."""
    for name, make in (("torch", of_torch), ("jax", of_jax)):
        for k in COLUMNS:
            for product, functions in make(k).items():
                ours, *others = least(functions, REPEATS)
                theirs = min(others)
                values = (name, product, k, theirs * 1e3, ours * 1e3, ours / theirs)
                yield Row(values, {"ratio": ours <= TARGET * theirs})


def problem(name: str) -> tuple[Any, Callable[[Any], Any], list[tuple[Any, Any]]]:
    """Return a library, the network on its inputs, and its parameters."""
    lib = LIBRARIES[name]()
    f, params, x = mlp(lib)
    return lib, lambda params: f(params, x), params


def of_torch(k: int) -> dict[str, list[Run]]:
    """Return ours, then what PyTorch offers, by mode."""
    lib, f, params = problem("torch")
    torch = lib.xp
    J = tracekit_ntk.jacobian(f, params)
    X, U = lib.normal(J.shape[1], k), lib.normal(J.shape[0], k)
    V = lib.normal(k, 50, 64)
    T = [tuple(lib.normal(k, *p.shape) for p in layer) for layer in params]
    active = [tuple(p.clone().requires_grad_() for p in layer) for layer in params]
    y = f(active)
    leaves = [p for layer in active for p in layer]
    pull = lib.vmap(lib.vjp(f, params)[1])
    push = lib.vmap(lambda t: lib.jvp(f, (params,), (t,))[1])
    return {
        "J.H @ U": [
            lambda: J.H @ U,
            lambda: torch.autograd.grad(y, leaves, V, retain_graph=True, is_grads_batched=True),
            lambda: pull(V),
        ],
        "J @ X": [lambda: J @ X, lambda: push(T)],
    }


def of_jax(k: int) -> dict[str, list[Run]]:
    """Return ours, then what JAX offers, by mode."""
    lib, f, params = problem("jax")
    jax = lib.jax
    J = tracekit_ntk.jacobian(f, params)
    X, U = lib.normal(J.shape[1], k), lib.normal(J.shape[0], k)
    V = lib.normal(k, 50, 64)
    T = [tuple(lib.normal(k, *p.shape) for p in layer) for layer in params]
    pull = jax.jit(jax.vmap(jax.vjp(f, params)[1]))
    push = jax.jit(jax.vmap(jax.linearize(f, params)[1]))
    anew = jax.jit(jax.vmap(lambda t: jax.jvp(f, (params,), (t,))[1]))
    runs = {
        "J.H @ U": [lambda: J.H @ U, lambda: pull(V)],
        "J @ X": [lambda: J @ X, lambda: push(T), lambda: anew(T)],
    }
    return {product: list(map(lib.waiting, found)) for product, found in runs.items()}


# --- 2. memory ------------------------------------------------------------------------------------


def memory() -> Iterator[Row]:
    """Judge peaks by chunk size and budget."""
    probes = 3 * 4.0 * N * (BUDGETS[1] - BUDGETS[0])  # drawn, cast, and cut in chunks
    for library in LIBRARIES:
        smaller = 0.0
        for chunk in CHUNKS:
            few, many = (apart(peak, library, chunk, m, environment=STEADY) for m in BUDGETS)
            holds = {"budget": many <= few + probes + SLACK, "chunk": few > smaller}
            yield Row((library, chunk, few / 1e6, many / 1e6), holds)
            smaller = few


def peak(library: str, chunk_size: int, budget: int) -> float:
    """Return the bytes that a trace takes at its peak, above those before."""
    lib, f, params = problem(library)
    K = tracekit_ntk.ntk(f, params, chunk_size=chunk_size)
    K.quad(lib.xp.ones((K.shape[0], 1), dtype=lib.xp.float32))  # type: ignore[misc]
    return peak_above(lambda: tracekit.hutchinson(K, budget, rng=0))
