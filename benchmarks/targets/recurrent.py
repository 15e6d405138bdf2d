"""Kernels of recurrent states beside passes through the unrolled network, in PyTorch and in JAX.

The network is the GRU of Hazelden (2025), arXiv:2511.10796: 64 units, 10 inputs, the states of 15
samples at 50 steps. A figure is our CPU time over that of one reverse and one forward pass through
the unrolled network (vjp, then jvp; of several columns at once by vmap) in the same run, each the
least of a few repeats in float32 on one thread. In JAX the passes are compiled, and ours the less
of a product compiled as a whole and part by part. Each framework is a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import networks
from .table import FIGURES, Row, Table, figure, in_own_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = Any

UNITS, INPUTS, STEPS, SAMPLES = 64, 10, 50, 15
MOST, SAME = 1.5, 1e-5


def tables() -> Iterator[Table]:
    """Both frameworks."""
    title = "Recurrent states: products with their kernel over a JVP and a VJP; traces"
    yield Table(title, FIGURES, rows())


def rows() -> Iterator[Row]:
    """Run each framework in a process of its own."""
    for library in networks.LIBRARIES:
        yield from in_own_process(part, library)


def part(library: str) -> list[Row]:
    """Return the rows of one framework."""
    return list(judged(networks.LIBRARIES[library]()))


def judged(lib: Any) -> Iterator[Row]:
    """Judge products and the trace."""
    import tracekit
    from tracekit_ntk import ntk_trace, state_kernel

    f, params = lib.gru(UNITS, INPUTS)
    x, h0 = lib.normal(SAMPLES, STEPS, INPUTS), lib.asarray(np.zeros((SAMPLES, UNITS)))
    K = state_kernel(cell(lib), params, x, h0).kernel
    made = lib.seconds(lambda: state_kernel(cell(lib), params, x, h0).kernel, 1)
    for columns in (1, 16):
        V = lib.normal(K.shape[0], columns)
        passes = lib.jit(both(lib, x))
        product = lib.jit(K.matmat)
        theirs, mine, alone = (
            lib.seconds(run, 5)
            for run in (
                lambda V=V, run=passes: run(params, V.T),
                lambda V=V, run=product: run(V),
                lambda V=V: K @ V,
            )
        )
        name = f"A product with {columns} column{'s' * (columns > 1)}, over JVP and VJP"
        told = f"{1e3 * alone:.1f} ms, compiled {1e3 * mine:.1f}; made in {made:.2f} s"
        yield figure(name, min(mine, alone) / theirs, most=MOST, told=told)
    exact, trace = float(ntk_trace(f, params, x)), float(tracekit.exact_trace(K))
    yield figure("Trace: apart from ntk_trace, relative", abs(trace / exact - 1), most=SAME)
    ratio = lib.seconds(lambda: ntk_trace(f, params, x), 1)
    mine = lib.seconds(lambda: tracekit.exact_trace(K).value, 1)
    yield figure("Trace: its time over that of ntk_trace", mine / ratio, told=f"{mine:.2f} s")


def cell(lib: Any) -> Callable[..., Array]:
    """Return one step of the GRU."""
    xp = lib.xp

    def sigmoid(z: Array) -> Array:
        return xp.sigmoid(z) if lib.name == "torch" else lib.jax.nn.sigmoid(z)

    def step(p: dict[str, Array], h: Array, x: Array) -> Array:
        i = x @ p["weight_ih_l0"].T + p["bias_ih_l0"]
        j = h @ p["weight_hh_l0"].T + p["bias_hh_l0"]
        (ir, iz, a), (hr, hz, b) = (
            [g[:, k * UNITS : (k + 1) * UNITS] for k in range(3)] for g in (i, j)
        )
        z = sigmoid(iz + hz)
        n = xp.tanh(a + sigmoid(ir + hr) * b)
        return n + z * (h - n)

    return step


def both(lib: Any, x: Array) -> Callable[[Any, Array], Array]:
    """Return passes through the unrolled network, there and back, for rows of cotangents."""

    def states(params: Any) -> Array:
        return lib.cells(params, x).reshape(-1)

    def product(params: Any, V: Array) -> Array:
        _, back = lib.vjp(states, params)

        def one(v: Array) -> Array:
            return lib.jvp(states, (params,), (back(v)[0],))[1]

        return one(V[0])[None] if V.shape[0] == 1 else lib.vmap(one)(V)

    return product
