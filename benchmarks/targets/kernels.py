"""Exact kernels and traces from factors beside the plain methods, in PyTorch and in JAX.

A figure is our CPU time over that of a plain method of the same framework in the same run, each
the least of a few repeats in float32 on one thread, or our time or memory alone. Plain methods are
written below on vmap, vjp, jvp and jacrev, which both frameworks spell alike: n products with the
kernel in blocks of 64 (of which one is timed), the product of explicit Jacobians, and NTK-vector
products (Novak, Sohl-Dickstein, Schoenholz 2022, arXiv:2206.08720).

The reference times of FCNs are those of the structured method of that paper's code, measured on
another day and machine: they are printed, and decide nothing.

The networks of the size of ResNet-18 and ViT-tiny are measured in PyTorch; in JAX, where compiling
them takes longer than everything else together, only with LARGE=1. Each part of each framework is a
process of its own.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import networks
from .table import FIGURES, Row, Table, figure, in_own_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any
    Run = Callable[[], Any]

BLOCK = 64  # products at once
TRACE = {"torch": 150, "jax": 250}  # at least so many times cheaper
RECURRENT, VECTOR = {"torch": 150, "jax": 100}, 10
CONTRACTION = {(256, 64, 4): 60, (1024, 16, 4): 50}  # (width, outputs, samples)
REFERENCE = {(256, 64, 4): 8.5, (1024, 16, 4): 35.0}  # ms
LOOKUP_MS, LOOKUP_MB, COMPILING = 40, 50, 15


def tables() -> Iterator[Table]:
    """All parts of both frameworks."""
    yield Table("Times cheaper than plain methods; milliseconds, megabytes", FIGURES, rows())


def rows() -> Iterator[Row]:
    """Run every part in a process of its own."""
    parts = {"torch": ["traces", "kernels", "large"], "jax": ["traces", "kernels", "compiling"]}
    if os.environ.get("LARGE"):
        parts["jax"].append("large")
    for library, names in parts.items():
        for name in names:
            yield from in_own_process(part, library, name)


def part(library: str, name: str) -> list[Row]:
    """Return the rows of one part."""
    return list(PARTS[name](networks.LIBRARIES[library]()))


# --- plain methods ------------------------------------------------------------------------------


def products(lib: Any, f: Any, params: Any, x: Array) -> tuple[Run, float]:
    """Return some products with the kernel, batched; and how often they make up all n of them."""
    n = int(np.prod(f(params, x).shape))
    V = lib.asarray(np.eye(BLOCK, n))

    def block(params: Any, V: Array) -> Array:
        _, back = lib.vjp(lambda p: f(p, x).reshape(-1), params)

        def product(v: Array) -> Array:
            tangent = back(v)[0]
            return lib.jvp(lambda p: f(p, x).reshape(-1), (params,), (tangent,))[1]

        return lib.vmap(product)(V)

    run = lib.jit(block)
    return lambda: run(params, V), n / BLOCK


def contraction(lib: Any, f: Any, params: dict[str, Array], x: Array) -> Run:
    """Return the kernel as a product of explicit Jacobians."""

    def run(params: Any, x: Array) -> Array:
        one = lib.jacrev(lambda p, row: f(p, row[None])[0])
        J = lib.vmap(one, (None, 0))(params, x)
        parts = [j.reshape(j.shape[0] * j.shape[1], -1) for j in J.values()]
        return sum(j @ j.T for j in parts)

    made = lib.jit(run)
    return lambda: made(params, x)


def vector_products(lib: Any, f: Any, params: dict[str, Array], x: Array) -> Run:
    """Return the kernel by two passes for each pair of samples and each output."""
    eye = lib.asarray(np.eye(f(params, x[:1]).shape[1]))

    def run(params: Any, x: Array) -> Array:
        def pair(a: Array, b: Array) -> Array:
            _, back = lib.vjp(lambda p: f(p, b[None])[0], params)

            def column(v: Array) -> Array:
                return lib.jvp(lambda p: f(p, a[None])[0], (params,), (back(v)[0],))[1]

            return lib.vmap(column)(eye)

        return lib.vmap(lib.vmap(pair, (None, 0)), (0, None))(x, x)

    made = lib.jit(run)
    return lambda: made(params, x)


# --- rows ---------------------------------------------------------------------------------------


def compiled(lib: Any, quantity: Callable[..., Any], f: Any, params: Any, x: Array) -> Run:
    """Return an exact quantity of a network as users run it."""
    made = lib.jit(lambda p: quantity(f, p, x))
    return lambda: made(params)


def traces(lib: Any) -> Iterator[Row]:
    """Judge traces over n products."""
    from tracekit_ntk.kernel import ntk_trace

    f, params, x = networks.mlp(lib)
    mine = lib.seconds(compiled(lib, ntk_trace, f, params, x), 10)
    block, times = products(lib, f, params, x)
    name = "MLP of Hazelden: exact trace, over n products"
    told, least = f"{mine * 1e3:.1f} ms", TRACE[lib.name]
    yield figure(name, lib.seconds(block) * times / mine, least=least, told=told)
    for steps, N in ((50, 15), (15, 50)):
        f, params = lib.gru(64, 10)
        x = lib.normal(N, steps, 10)
        mine = lib.seconds(lambda f=f, p=params, x=x: ntk_trace(f, p, x), 1)
        block, times = products(lib, lib.cells, params, x)
        name = f"GRU, {steps} steps, {N} samples: exact trace, over n products"
        told = f"{mine:.2f} s"
        ratio = lib.seconds(block, 1) * times / mine
        yield figure(name, ratio, least=RECURRENT[lib.name], told=told)


def kernels(lib: Any) -> Iterator[Row]:
    """Judge kernels over explicit Jacobians and NTK-vector products, and their memory."""
    from tracekit_ntk.kernel import kernel

    for size, least in CONTRACTION.items():
        net = networks.fcn(lib, *size)
        ours, plain = compiled(lib, kernel, *net), contraction(lib, *net)
        mine = lib.seconds(ours, 8)
        name, told = "FCN W={} O={} N={}: kernel".format(*size), f"{mine * 1e3:.1f} ms"
        ratio = lib.seconds(plain, 2) / mine
        yield figure(f"{name}, over contraction", ratio, least=least, told=told)
        ratio = lib.seconds(vector_products(lib, *net), 2) / mine
        yield figure(f"{name}, over NTK-vector", ratio, least=VECTOR)
        memory, theirs = lib.megabytes(ours), lib.megabytes(plain)
        told = f"a tenth of contraction's {theirs:.0f}"
        yield figure(f"{name}, MB", memory, most=max(theirs / 10, 1), told=told)
        aim = f"aim {lib.slack * REFERENCE[size]:.0f}, {lib.slack} x reference"
        yield figure(f"{name}, ms", mine * 1e3, told=aim)
    yield from convolutions(lib)
    ours = compiled(lib, kernel, *networks.embedding(lib))
    yield figure("Embedding 1000x64: kernel, ms", 1e3 * lib.seconds(ours, 5), most=LOOKUP_MS)
    yield figure("Embedding 1000x64: kernel, MB", lib.megabytes(ours), most=LOOKUP_MB)


def convolutions(lib: Any) -> Iterator[Row]:
    """Judge kernels of convolution networks over plain methods."""
    from tracekit_ntk.kernel import kernel

    net = networks.cnn(lib)
    mine = lib.seconds(compiled(lib, kernel, *net), 5)
    best = min(lib.seconds(method(lib, *net), 2) for method in (contraction, vector_products))
    told = f"{mine * 1e3:.0f} ms"
    yield figure("CNN: kernel, over the best plain method", best / mine, least=1, told=told)
    net = networks.cnn(lib, 32)
    mine = lib.seconds(compiled(lib, kernel, *net), 5)
    ratio, told = lib.seconds(vector_products(lib, *net), 2) / mine, f"{mine * 1e3:.0f} ms"
    yield figure("Depthwise CNN: kernel, over NTK-vector", ratio, least=1, told=told)


def compiling(lib: Any) -> Iterator[Row]:
    """Judge how long a kernel takes to compile."""
    from tracekit_ntk.kernel import kernel

    _, params = lib.gru(64, 10)
    x = lib.normal(4, 50, 10)
    start = time.perf_counter()
    lib.jit(lambda p: kernel(lambda p, x: lib.cells(p, x)[:, -1], p, x)).lower(params).compile()
    seconds = time.perf_counter() - start
    yield figure("Scanned RNN of 50 steps: compiles in s", seconds, most=COMPILING)


def large(lib: Any) -> Iterator[Row]:
    """Tell time and memory of networks whose explicit Jacobians do not fit."""
    from tracekit_ntk.kernel import kernel, ntk_trace

    for name, make in (("ResNet-18", networks.resnet), ("ViT-tiny", networks.vit)):
        f, params, x = make(lib)
        weights = sum(int(np.prod(p.shape)) for p in params.values())
        explicit = f"MB; explicit Jacobians alone are {200 * weights * 4 / 1e6:.0f} MB"
        for what, quantity in (("kernel", kernel), ("trace", ntk_trace)):
            run = compiled(lib, quantity, f, params, x)
            if lib.name == "jax":
                lib.wait(run())  # compile
            start = time.process_time()
            memory = lib.megabytes(run)
            seconds = time.process_time() - start
            told = f"{memory:.0f} {explicit}"
            yield figure(f"{name}, O=100, N=2: {what}, s", seconds, told=told)


PARTS = {f.__name__: f for f in (traces, kernels, convolutions, compiling, large)}
