"""Kernels from random projections of gradients beside exact ones, in PyTorch and in JAX.

A network of three layers of 64 units that are applied at each of 256 positions gives one output of
each sample, float32, one thread. Errors are of all entries over seeds, relative to the mean of the
diagonal; times are the least of a few repeats, of whole calls with their passes through the network,
in JAX compiled. Each library is a process of its own.

Both calls need the same passes, and the exact kernel contracts such layers by the gradients that
it forms: what a projection saves are N P multiply-adds a sample for P parameters, beside 256 P for
each pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import networks
from ..measure import apart
from .table import FIGURES, Row, Table, figure, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any

DIM, POSITIONS, WIDTH, LAYERS = 1024, 256, 64, 3
FEW, MANY = 48, 768  # samples of errors and of times
ERROR, TIME, SEEDS = 0.05, 0.3, seeds(8)
COVERED = 0.88


def tables() -> Iterator[Table]:
    """Both libraries."""
    yield Table(f"Projected kernels of {DIM:,} columns", FIGURES, rows())


def rows() -> Iterator[Row]:
    """Run each library in a process of its own."""
    for library in ("torch", "jax"):
        for values, holds in apart(part, library):
            yield Row((f"{library:6}{values[0]}", *values[1:]), holds)


def part(library: str) -> list[Row]:
    """Return the rows of one library."""
    lib = networks.LIBRARIES[library]()
    return [*errors(lib), *times(lib)]


def tokens(lib: Any, N: int) -> networks.Network:
    """Return a network of layers that are applied at every position, with one output."""
    head = lib.normal(POSITIONS, WIDTH) * POSITIONS**-0.5

    def f(p: Any, x: Array) -> Array:
        for w in p.values():
            x = lib.xp.tanh(x @ w)
        return (x * head).sum((1, 2))

    layers = {f"w{i}": lib.normal(WIDTH, WIDTH) * WIDTH**-0.5 for i in range(LAYERS)}
    return f, layers, lib.normal(N, POSITIONS, WIDTH)


def errors(lib: Any) -> Iterator[Row]:
    """Judge errors and intervals of all entries."""
    from tracekit_ntk import kernel, projected_kernel

    f, params, x = tokens(lib, FEW)
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
    from tracekit_ntk import kernel, project, projected_kernel

    f, params, x = tokens(lib, MANY)
    calls: dict[str, Callable[[Any], Array]] = {
        "exact": lambda p: kernel(f, p, x),
        "projected": lambda p: projected_kernel(f, p, x, dim=DIM, rng=0).value,
        "projections": lambda p: project(f, p, x, DIM, rng=0),
    }
    made = {name: lib.jit(call) for name, call in calls.items()}
    seconds = {name: lib.seconds(lambda run=run: run(params), 2) for name, run in made.items()}
    told = f"{seconds['projected']:.2f} of {seconds['exact']:.2f} s, {MANY} samples"
    ratio = seconds["projected"] / seconds["exact"]
    yield figure("projected kernel, over the exact one", ratio, most=TIME, told=told)
    yield figure("projections alone, over it", seconds["projections"] / seconds["exact"])
