"""Kernels from random projections of gradients beside exact ones, in PyTorch and in JAX.

A network reads 256 tokens of each sample from a table of 1,000 rows of 64 numbers, applies three
layers of 64 units at each of these positions, and gives one output; float32, one thread. Errors
are of all entries over seeds, relative to the mean of the diagonal; times are the least of a few
repeats, of whole calls with their passes through the network, in JAX compiled. Each library is a
process of its own.

Both calls need the same passes. An exact kernel meets the tokens of all pairs of samples, N^2 S^2
of them; without a table it contracts the layers by gradients that it forms, for less than a pass.
The row of the same network on numbers in place of tokens tells of that, and is not judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import networks
from .table import FIGURES, Row, Table, figure, in_own_process, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any

DIM, POSITIONS, WIDTH, LAYERS, ROWS = 1024, 256, 64, 3, 1000
FEW, MANY = 24, 128  # samples of errors and of times
ERROR, TIME, SEEDS = 0.05, 0.3, seeds(8)
COVERED = 0.88


def tables() -> Iterator[Table]:
    """Both libraries."""
    yield Table(f"Projected kernels of {DIM:,} columns", FIGURES, rows())


def rows() -> Iterator[Row]:
    """Run each library in a process of its own."""
    for library in ("torch", "jax"):
        yield from in_own_process(part, library)


def part(library: str) -> list[Row]:
    """Return the rows of one library."""
    lib = networks.LIBRARIES[library]()
    return [*errors(lib), *times(lib)]


def network(lib: Any, N: int, *, tokens: bool = True) -> networks.Network:
    """Return a network of layers that are applied at every position, with one output."""
    head = lib.normal(POSITIONS, WIDTH) * POSITIONS**-0.5

    def f(p: Any, x: Array) -> Array:
        h = p["table"][x] if tokens else x
        for k in range(LAYERS):
            h = lib.xp.tanh(h @ p[f"w{k}"])
        return (h * head).sum((1, 2))

    params = {f"w{k}": lib.normal(WIDTH, WIDTH) * WIDTH**-0.5 for k in range(LAYERS)}
    if not tokens:
        return f, params, lib.normal(N, POSITIONS, WIDTH)
    x = lib.asarray(lib.rng.integers(0, ROWS, (N, POSITIONS)))
    return f, params | {"table": lib.normal(ROWS, WIDTH)}, x


def errors(lib: Any) -> Iterator[Row]:
    """Judge errors and intervals of all entries."""
    from tracekit_ntk import kernel, projected_kernel

    f, params, x = network(lib, FEW)
    exact = np.asarray(kernel(f, params, x))
    misses, held = [], []
    for seed in range(SEEDS):
        K = projected_kernel(f, params, x, dim=DIM, rng=seed)
        low, high = map(np.asarray, K.confidence_interval())
        misses.append(np.asarray(K.value) - exact)
        held.append(np.mean((low <= exact) & (exact <= high)))
    size = np.mean(np.diag(exact))
    error = float(np.sqrt(np.mean(np.square(misses))) / size)
    yield figure("error of entries, over the mean of the diagonal", error, most=ERROR)
    yield figure("share of entries in their intervals of 95 %", float(np.mean(held)), least=COVERED)


def times(lib: Any) -> Iterator[Row]:
    """Judge the time of a call over that of the exact kernel."""
    ours, exact = seconds(lib, *network(lib, MANY))
    told = f"{ours:.2f} of {exact:.2f} s, {MANY} samples"
    yield figure("time of a kernel, over the exact one", ours / exact, most=TIME, told=told)
    ours, exact = seconds(lib, *network(lib, MANY, tokens=False))
    told = f"{ours:.2f} of {exact:.2f} s, {MANY} samples"
    yield figure("the same without a table of tokens", ours / exact, told=told)


def seconds(lib: Any, f: Any, params: Any, x: Array) -> list[float]:
    """Return the times of a projected and of an exact kernel."""
    from tracekit_ntk import kernel, projected_kernel

    calls: list[Callable[[Any], Any]] = [
        lambda p: projected_kernel(f, p, x, dim=DIM, rng=0).value,
        lambda p: kernel(f, p, x),
    ]
    made = [lib.jit(call) for call in calls]
    return [lib.seconds(lambda run=run: run(params), 2) for run in made]
