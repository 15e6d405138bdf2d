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
3. Where forward mode is missing: a pushforward by reverse mode through reverse mode, and whether
   Hutch++ with it pays against what needs the pullback alone, at equal time.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit
import tracekit_ntk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYERS, WIDTH, INPUTS, SAMPLES = 15, 64, 100, 50
COLUMNS = 8, 32, 128
REPEATS, TARGET = 9, 1.35
CHUNKS, BUDGETS = (8, 64), (128, 512)
SLACK = 16e6  # of an allocator, in bytes
SEEDS, PASSES = 25, 48


# --- the network ----------------------------------------------------------------------------------


def numbers() -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Weights and biases of all layers, and the inputs."""
    rng = np.random.default_rng(0)
    sizes = [INPUTS, *LAYERS * [WIDTH]]
    layers = [
        (
            rng.standard_normal((a, b), dtype=np.float32) * np.float32((2 / a) ** 0.5),
            np.zeros(b, dtype=np.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]
    return layers, rng.standard_normal((SAMPLES, INPUTS), dtype=np.float32)


def network(xp: Any) -> tuple[Callable[[Any], Any], Any]:
    """The network on its inputs, and its parameters, in PyTorch or jax.numpy."""
    layers, x = numbers()
    inputs = xp.asarray(x)

    def f(params: Any) -> Any:
        h = inputs
        for i, (W, b) in enumerate(params):
            h = h @ W + b
            if i < LAYERS - 1:
                h = h * (h > 0)
        return h

    return f, [(xp.asarray(W), xp.asarray(b)) for W, b in layers]


# --- 1. time --------------------------------------------------------------------------------------


def of_torch(k: int) -> dict[str, list[Callable[[], Any]]]:
    """Ours, then what PyTorch offers, by mode."""
    import torch
    from torch.func import jvp, vjp, vmap

    f, params = network(torch)
    J = tracekit_ntk.jacobian(f, params)
    X, U = torch.randn(J.shape[1], k), torch.randn(J.shape[0], k)
    V = torch.randn(k, SAMPLES, WIDTH)
    T = [tuple(torch.randn(k, *p.shape) for p in layer) for layer in params]
    active = [tuple(p.clone().requires_grad_() for p in layer) for layer in params]
    y = f(active)
    leaves = [p for layer in active for p in layer]
    pull = vmap(vjp(f, params)[1])
    push = vmap(lambda t: jvp(f, (params,), (t,))[1])
    return {
        "J.H @ U": [
            lambda: J.H @ U,
            lambda: torch.autograd.grad(y, leaves, V, retain_graph=True, is_grads_batched=True),
            lambda: pull(V),
        ],
        "J @ X": [lambda: J @ X, lambda: push(T)],
    }


def of_jax(k: int) -> dict[str, list[Callable[[], Any]]]:
    """Ours, then what JAX offers, by mode."""
    import jax
    import jax.numpy as jnp

    f, params = network(jnp)
    J = tracekit_ntk.jacobian(f, params)

    def normal(*shape: int) -> Any:
        return jax.random.normal(jax.random.key(0), shape)

    X, U = normal(J.shape[1], k), normal(J.shape[0], k)
    V = normal(k, SAMPLES, WIDTH)
    T = [tuple(normal(k, *p.shape) for p in layer) for layer in params]
    pull = jax.jit(jax.vmap(jax.vjp(f, params)[1]))
    push = jax.jit(jax.vmap(jax.linearize(f, params)[1]))
    anew = jax.jit(jax.vmap(lambda t: jax.jvp(f, (params,), (t,))[1]))
    return {
        "J.H @ U": [waiting(lambda: J.H @ U), waiting(lambda: pull(V))],
        "J @ X": [waiting(lambda: J @ X), waiting(lambda: push(T)), waiting(lambda: anew(T))],
    }


def waiting(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same function, which comes back when all is done."""
    import jax

    return lambda: jax.block_until_ready(function())


def least(functions: list[Callable[[], Any]]) -> list[float]:
    """CPU seconds of each: the least of several runs, taken in turn."""
    best = [float("inf")] * len(functions)
    for function in functions:
        function()
    for _ in range(REPEATS):
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            best[i] = min(best[i], time.process_time() - start)
    return best


def time_table() -> Iterator[bool]:
    """Print the time of every product over the framework's own."""
    print(f"CPU time of a product with k columns, over the framework's own: at most {TARGET}\n")
    print(f"{'library':10}{'product':10}{'k':>5}{'theirs ms':>11}{'ours ms':>10}{'ratio':>8}")
    for name, make in (("PyTorch", of_torch), ("JAX", of_jax)):
        for k in COLUMNS:
            for product, functions in make(k).items():
                ours, *others = least(functions)
                theirs = min(others)
                holds = ours <= TARGET * theirs
                print(
                    f"{name:10}{product:10}{k:5}{theirs * 1e3:11.1f}{ours * 1e3:10.1f}"
                    f"{ours / theirs:8.2f}  {'PASS' if holds else 'FAIL'}",
                    flush=True,
                )
                yield holds


# --- 2. memory ------------------------------------------------------------------------------------


def peak_of_a_trace(library: str, chunk_size: int, budget: int) -> float:
    """Bytes that a trace takes at its peak, above those before."""
    if library == "PyTorch":
        import torch as xp
    else:
        import jax.numpy as xp
    f, params = network(xp)
    K = tracekit_ntk.ntk(f, params, chunk_size=chunk_size)
    K.quad(xp.ones((K.shape[0], 1), dtype=xp.float32))  # type: ignore[misc]
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    tracekit.hutchinson(K, budget, rng=0)
    return high_water() - before


def high_water() -> float:
    """Peak resident memory of this process since it was last reset, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def apart(*arguments: Any) -> float:
    """Run in a fresh process."""
    command = [sys.executable, __file__, json.dumps(arguments)]
    steady = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=steady)
    return float(json.loads(done.stdout))


def memory_table() -> Iterator[bool]:
    """Print peaks by chunk size and budget."""
    n = SAMPLES * WIDTH
    print("\nPeak memory of hutchinson(ntk(...), m), MB: not above that of the smaller budget by")
    print(f"more than the probes, {n} numbers each, and {SLACK / 1e6:.0f} MB; above that of the")
    print("smaller chunk\n")
    print(f"{'library':10}{'chunk_size':>11}" + "".join(f"{f'm = {m}':>10}" for m in BUDGETS))
    for library in ("PyTorch", "JAX"):
        smaller = 0.0
        for chunk_size in CHUNKS:
            few, many = (apart(library, chunk_size, m) for m in BUDGETS)
            probes = 3 * 4.0 * n * (BUDGETS[1] - BUDGETS[0])  # drawn, cast, and cut in chunks
            holds = many <= few + probes + SLACK and few > smaller
            print(
                f"{library:10}{chunk_size:11}{few / 1e6:10.0f}{many / 1e6:10.0f}"
                f"  {'PASS' if holds else 'FAIL'}",
                flush=True,
            )
            smaller = few
            yield holds


# --- 3. reverse through reverse -------------------------------------------------------------------


def double_reverse() -> None:
    """Print what a pushforward by two reverse modes costs, and what Hutch++ makes of it."""
    import torch

    f, params = network(torch)
    J = tracekit_ntk.jacobian(f, params)
    active = [tuple(p.clone().requires_grad_() for p in layer) for layer in params]
    y, leaves = f(active), [p for layer in active for p in layer]
    u = torch.zeros_like(y, requires_grad=True)
    pulled = torch.autograd.grad(y, leaves, u, create_graph=True)

    def push(X: Any) -> Any:
        parts = torch.split(X.T, [p.numel() for p in leaves], dim=1)
        tangents = [t.reshape(-1, *p.shape) for t, p in zip(parts, leaves, strict=True)]
        (made,) = torch.autograd.grad(pulled, u, tangents, retain_graph=True, is_grads_batched=True)
        return made.reshape(X.shape[1], -1).T

    k = 32
    X, U = torch.randn(J.shape[1], k), torch.randn(J.shape[0], k)
    twice, forward, back = least([lambda: push(X), lambda: J @ X, lambda: J.H @ U])
    apart_by = torch.linalg.norm(push(X) - J @ X) / torch.linalg.norm(J @ X)
    price = twice / back
    exact = float(tracekit.exact_trace(J @ J.H))
    both = tracekit.gram(J)
    # of m products Hutch++ spends a third forwards; at equal time these are worth `price` each
    budget = int(PASSES / (2 / 3 + price / 3))
    errors = {
        "Hutch++": [float(tracekit.hutchpp(both, budget, rng=s)) / exact - 1 for s in range(SEEDS)],
        "one_sided": [
            float(tracekit.one_sided(J, PASSES, rng=s)) / exact - 1 for s in range(SEEDS)
        ],
    }
    medians = {name: float(np.median(np.abs(error))) for name, error in errors.items()}
    print(
        f"\nA pushforward by reverse through reverse mode takes {price:.2f} pullbacks, forward "
        f"mode {forward / back:.2f}\n(k = {k}; they differ by {float(apart_by):.0e}). In the time "
        f"of {PASSES} pullbacks: median error {medians['Hutch++']:.1e} by Hutch++\nwith it, "
        f"{medians['one_sided']:.1e} by one_sided, without any pushforward."
    )


def main() -> None:
    """Print the tables, then how many rows hold."""
    verdicts = [*time_table(), *memory_table()]
    double_reverse()
    held = sum(verdicts)
    print(f"\n{len(verdicts)} rows: {held} hold, {len(verdicts) - held} fall short")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(peak_of_a_trace(*json.loads(sys.argv[1]))))
    else:
        main()
