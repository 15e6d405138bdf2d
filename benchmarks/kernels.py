"""Exact kernels and traces from factors beside the plain methods, in PyTorch and in JAX.

Every row is a target: our CPU time over that of a plain method of the same framework in the same
run, each the least of a few repeats in float32 on one thread, or our time or memory alone. Plain
methods are written below on vmap, vjp, jvp and jacrev, which both frameworks spell alike: n
products with the kernel in blocks of 64 (of which one is timed), the product of explicit Jacobians,
and NTK-vector products (Novak, Sohl-Dickstein, Schoenholz 2022, arXiv:2206.08720).

The reference times of FCNs are those of the structured method of that paper's code, measured on
another day and machine: they are printed, and decide nothing.

    python benchmarks/kernels.py [torch] [jax] [jax-large]

The networks of the size of ResNet-18 and ViT-tiny are measured in PyTorch; in JAX, where compiling
them takes longer than everything else together, only by ``jax-large``.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
BLOCK = 64  # products at once
REFERENCE = {(256, 64, 4): 8.5, (1024, 16, 4): 35.0}  # ms, (width, outputs, samples)


class Torch:
    """What the networks and plain methods need of PyTorch."""

    name, slack = "torch", 3.0

    def __init__(self) -> None:
        import torch
        import torch.func

        torch.set_num_threads(1)
        self.xp, self.func, self.rng = torch, torch.func, np.random.default_rng(0)
        self.vmap, self.vjp, self.jvp, self.jacrev = (
            getattr(torch.func, name) for name in ("vmap", "vjp", "jvp", "jacrev")
        )

    def jit(self, f: Callable[..., Array]) -> Callable[..., Array]:
        return f

    def wait(self, x: Array) -> Array:
        return x

    def asarray(self, x: Any) -> Array:
        x = np.asarray(x)
        return self.xp.as_tensor(x if x.dtype.kind == "i" else x.astype(np.float32))

    def relu(self, x: Array) -> Array:
        return self.xp.relu(x)

    def conv(self, x: Array, w: Array, stride: int = 1, groups: int = 1) -> Array:
        pad = w.shape[-1] // 2
        return self.xp.nn.functional.conv2d(x, w, stride=stride, padding=pad, groups=groups)

    def layer_norm(self, x: Array, w: Array, b: Array) -> Array:
        return self.xp.nn.functional.layer_norm(x, x.shape[-1:], w, b)

    def attention(self, q: Array, k: Array, v: Array) -> Array:
        a = self.xp.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
        return a @ v

    def gru(self, hidden: int, inputs: int) -> tuple[Callable[..., Array], dict[str, Array]]:
        """Of its module; the plain methods get cells, as forward mode does not know the module."""
        torch = self.xp
        net = torch.nn.GRU(inputs, hidden, batch_first=True)
        params = {name: p.detach() for name, p in net.named_parameters()}
        return lambda p, x: torch.func.functional_call(net, p, (x,))[0], params

    def cells(self, p: dict[str, Array], x: Array) -> Array:
        """The same GRU."""
        torch = self.xp
        i = x @ p["weight_ih_l0"].T + p["bias_ih_l0"]
        h, states = x.new_zeros(len(x), p["weight_hh_l0"].shape[1]), []
        for t in range(x.shape[1]):
            j = h @ p["weight_hh_l0"].T + p["bias_hh_l0"]
            (ir, iz, a), (hr, hz, b) = i[:, t].chunk(3, -1), j.chunk(3, -1)
            z = torch.sigmoid(iz + hz)
            n = torch.tanh(a + torch.sigmoid(ir + hr) * b)
            h = n + z * (h - n)
            states.append(h)
        return torch.stack(states, 1)


class Jax:
    """What the networks and plain methods need of JAX."""

    name, slack = "jax", 1.2

    def __init__(self) -> None:
        import jax

        self.xp, self.jax, self.rng = jax.numpy, jax, np.random.default_rng(0)
        self.vmap, self.vjp, self.jvp, self.jacrev = jax.vmap, jax.vjp, jax.jvp, jax.jacrev
        self.jit, self.wait, self.relu = jax.jit, jax.block_until_ready, jax.nn.relu

    def asarray(self, x: Any) -> Array:
        x = np.asarray(x)
        return self.xp.asarray(x if x.dtype.kind == "i" else x.astype(np.float32))

    def conv(self, x: Array, w: Array, stride: int = 1, groups: int = 1) -> Array:
        pad = w.shape[-1] // 2
        return self.jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(pad, pad)] * 2, feature_group_count=groups
        )

    def layer_norm(self, x: Array, w: Array, b: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        return x / self.xp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w + b

    def attention(self, q: Array, k: Array, v: Array) -> Array:
        return self.jax.nn.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

    def gru(self, hidden: int, inputs: int) -> tuple[Callable[..., Array], dict[str, Array]]:
        shapes = {"weight_ih_l0": (3 * hidden, inputs), "weight_hh_l0": (3 * hidden, hidden)}
        shapes |= {"bias_ih_l0": (3 * hidden,), "bias_hh_l0": (3 * hidden,)}
        bound = hidden**-0.5
        params = {n: self.asarray(self.rng.uniform(-bound, bound, s)) for n, s in shapes.items()}
        return self.cells, params

    def cells(self, p: dict[str, Array], x: Array) -> Array:
        jax, xp = self.jax, self.xp

        def step(h: Array, i: Array) -> tuple[Array, Array]:
            j = h @ p["weight_hh_l0"].T + p["bias_hh_l0"]
            (ir, iz, a), (hr, hz, b) = xp.split(i, 3, -1), xp.split(j, 3, -1)
            z = jax.nn.sigmoid(iz + hz)
            n = xp.tanh(a + jax.nn.sigmoid(ir + hr) * b)
            h = n + z * (h - n)
            return h, h

        i = x @ p["weight_ih_l0"].T + p["bias_ih_l0"]
        start = xp.zeros((x.shape[0], p["weight_hh_l0"].shape[1]), x.dtype)
        return xp.swapaxes(jax.lax.scan(step, start, xp.swapaxes(i, 0, 1))[1], 0, 1)


# --- plain methods ------------------------------------------------------------------------------


def products(lib: Any, f: Any, params: Any, x: Array) -> tuple[Callable[[], Any], float]:
    """Some products with the kernel, batched; and how often they make up all n of them."""
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


def contraction(lib: Any, f: Any, params: dict[str, Array], x: Array) -> Callable[[], Any]:
    """The kernel as a product of explicit Jacobians."""

    def run(params: Any, x: Array) -> Array:
        one = lib.jacrev(lambda p, row: f(p, row[None])[0])
        J = lib.vmap(one, (None, 0))(params, x)
        parts = [j.reshape(j.shape[0] * j.shape[1], -1) for j in J.values()]
        return sum(j @ j.T for j in parts)

    made = lib.jit(run)
    return lambda: made(params, x)


def vector_products(lib: Any, f: Any, params: dict[str, Array], x: Array) -> Callable[[], Any]:
    """The kernel by a reverse and a forward pass for each pair of samples and each output."""
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


# --- networks -----------------------------------------------------------------------------------


def mlp(lib: Any) -> tuple[Any, dict[str, Array], Array]:
    """Hazelden (2025), arXiv:2511.10796, at He initialisation."""
    sizes = [100, *[64] * 15]
    params = {}
    for k, (a, b) in enumerate(pairwise(sizes)):
        params[f"w{k}"] = lib.asarray(lib.rng.standard_normal((a, b)) * (2 / a) ** 0.5)
        params[f"b{k}"] = lib.asarray(np.zeros(b))

    def f(p: Any, x: Array) -> Array:
        for k in range(15):
            x = (lib.relu(x) if k else x) @ p[f"w{k}"] + p[f"b{k}"]
        return x

    return f, params, lib.asarray(lib.rng.standard_normal((50, 100)))


def fcn(lib: Any, width: int, outputs: int, N: int) -> tuple[Any, dict[str, Array], Array]:
    """Novak et al. (2022): ten hidden layers."""
    sizes = [3, *[width] * 10, outputs]
    shapes = list(pairwise(sizes))
    params = {
        f"w{k:02}": lib.asarray(lib.rng.standard_normal(s) / s[0] ** 0.5)
        for k, s in enumerate(shapes)
    }

    def f(p: Any, x: Array) -> Array:
        for k in range(len(shapes)):
            x = (lib.relu(x) if k else x) @ p[f"w{k:02}"]
        return x

    return f, params, lib.asarray(lib.rng.standard_normal((N, 3)))


def cnn(lib: Any, groups: int = 1) -> tuple[Any, dict[str, Array], Array]:
    """Four layers 3x3 of width 32 on 16x16x3, ten outputs."""
    draw = lib.rng.standard_normal
    params = {"k0": lib.asarray(draw((32, 3, 3, 3)) / 5)}
    for k in range(1, 4):
        shape = (32, 32 // groups, 3, 3)
        params[f"k{k}"] = lib.asarray(draw(shape) / np.prod(shape[1:]) ** 0.5)
    params["out"] = lib.asarray(draw((32, 10)) / 32**0.5)

    def f(p: Any, x: Array) -> Array:
        for k in range(4):
            x = lib.relu(lib.conv(x, p[f"k{k}"], groups=groups if k else 1))
        return x.mean((2, 3)) @ p["out"]

    return f, params, lib.asarray(draw((4, 3, 16, 16)))


def embedding(lib: Any) -> tuple[Any, dict[str, Array], Array]:
    """A table of 1000 rows of 64, sixteen tokens, four outputs."""
    params = {"e": lib.asarray(lib.rng.standard_normal((1000, 64)))}
    params["w"] = lib.asarray(lib.rng.standard_normal((64, 4)) / 8)

    def f(p: Any, ids: Array) -> Array:
        return lib.xp.tanh(p["e"][ids]).mean(1) @ p["w"]

    return f, params, lib.asarray(lib.rng.integers(0, 1000, (4, 16)))


def resnet(lib: Any) -> tuple[Any, dict[str, Array], Array]:
    """A ResNet-18 without norms: 64 to 512 channels, two blocks each, 100 outputs."""
    params: dict[str, Array] = {}

    def weight(name: str, *shape: int) -> None:
        draw = lib.rng.standard_normal(shape)
        params[name] = lib.asarray(draw / np.prod(shape[1:]) ** 0.5)

    weight("stem", 64, 3, 3, 3)
    plan, before = [], 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            weight(name + "one", width, before, 3, 3)
            weight(name + "two", width, width, 3, 3)
            if before != width:
                weight(name + "skip", width, before, 1, 1)
            plan.append((name, stride, before != width))
            before = width
    params["out"] = lib.asarray(lib.rng.standard_normal((512, 100)) / 512**0.5)

    def f(p: Any, x: Array) -> Array:
        x = lib.relu(lib.conv(x, p["stem"]))
        for name, stride, skip in plan:
            h = lib.conv(lib.relu(lib.conv(x, p[name + "one"], stride)), p[name + "two"])
            x = lib.relu(h + (lib.conv(x, p[name + "skip"], stride) if skip else x))
        return x.mean((2, 3)) @ p["out"]

    return f, params, lib.asarray(lib.rng.standard_normal((2, 3, 64, 64)))


def vit(lib: Any) -> tuple[Any, dict[str, Array], Array]:
    """A ViT-tiny: patches of 8x8, twelve blocks of width 192 with three heads, 100 outputs."""
    D, heads, params = 192, 3, {}

    def weight(name: str, *shape: int) -> None:
        params[name] = lib.asarray(lib.rng.standard_normal(shape) / shape[0] ** 0.5)
        params[name + "_b"] = lib.asarray(np.zeros(shape[1]))

    weight("patch", 192, D)
    params["at"] = lib.asarray(0.02 * lib.rng.standard_normal((64, D)))
    for k in range(12):
        for name, shape in {
            "qkv": (D, 3 * D),
            "proj": (D, D),
            "up": (D, 4 * D),
            "down": (4 * D, D),
        }.items():
            weight(f"{name}{k}", *shape)
        for name in ("n", "m"):
            params[f"{name}{k}"], params[f"{name}{k}_b"] = (
                lib.asarray(np.ones(D)),
                lib.asarray(np.zeros(D)),
            )
    weight("out", D, 100)

    def affine(p: Any, name: str, x: Array) -> Array:
        return x @ p[name] + p[name + "_b"]

    def f(p: Any, x: Array) -> Array:
        N = x.shape[0]
        x = x.reshape(N, 3, 8, 8, 8, 8)
        x = lib.xp.moveaxis(x, (2, 4), (1, 2)).reshape(N, 64, 192)
        x = affine(p, "patch", x) + p["at"]
        for k in range(12):
            h = affine(p, f"qkv{k}", lib.layer_norm(x, p[f"n{k}"], p[f"n{k}_b"]))
            q, key, v = lib.xp.moveaxis(h.reshape(N, 64, 3, heads, D // heads), (2, 3), (0, 2))
            h = lib.xp.moveaxis(lib.attention(q, key, v), 1, 2).reshape(N, 64, D)
            x = x + affine(p, f"proj{k}", h)
            h = lib.relu(affine(p, f"up{k}", lib.layer_norm(x, p[f"m{k}"], p[f"m{k}_b"])))
            x = x + affine(p, f"down{k}", h)
        return affine(p, "out", x.mean(1))

    return f, params, lib.asarray(lib.rng.standard_normal((2, 3, 64, 64)))


# --- rows ---------------------------------------------------------------------------------------


def cpu(lib: Any, run: Callable[[], Any], repeats: int = 3) -> float:
    """Least CPU seconds, after one run that may compile."""
    lib.wait(run())
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        lib.wait(run())
        best = min(best, time.process_time() - start)
    return best


def peak(lib: Any, run: Callable[[], Any]) -> float:
    """MB by which the resident memory rises while this runs, as Linux knows it."""

    def status(field: str) -> float:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return int(text.split(field + ":")[1].split()[0]) / 1024

    ctypes.CDLL(None).malloc_trim(0)  # what is free is not ours
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    lib.wait(run())
    return status("VmHWM") - before


def row(lib: Any, name: str, value: str, holds: bool | None) -> None:
    """One line: PASS, FAIL, or what is only told."""
    verdict = "    " if holds is None else "PASS" if holds else "FAIL"
    print(f"{verdict}  {lib.name:5}  {name:46}  {value}", flush=True)


def traces(lib: Any) -> None:
    from tracekit_ntk.kernel import ntk_trace

    f, params, x = mlp(lib)
    ours = lib.jit(lambda p: ntk_trace(f, p, x))
    mine = cpu(lib, lambda: ours(params), 10)
    block, times = products(lib, f, params, x)
    ratio = cpu(lib, block) * times / mine
    told = f"{ratio:6.0f}x cheaper than n products, at least 120 (aim 250); {mine * 1e3:.1f} ms"
    row(lib, "MLP of Hazelden: exact trace", told, ratio >= 120)
    for steps, N in ((50, 15), (15, 50)):
        f, params = lib.gru(64, 10)
        x = lib.asarray(lib.rng.standard_normal((N, steps, 10)))
        mine = cpu(lib, lambda f=f, p=params, x=x: ntk_trace(f, p, x), 1)
        block, times = products(lib, lib.cells, params, x)
        ratio = cpu(lib, block, 1) * times / mine
        told = f"{ratio:6.0f}x cheaper than n products, at least 80 (aim 150); {mine:.2f} s"
        row(lib, f"GRU, {steps} steps, {N} samples: exact trace", told, ratio >= 80)


def kernels(lib: Any) -> None:
    from tracekit_ntk.kernel import kernel

    for size, first in (((256, 64, 4), 60), ((1024, 16, 4), 50)):
        f, params, x = fcn(lib, *size)
        made = lib.jit(lambda p, f=f, x=x: kernel(f, p, x))
        ours = lambda made=made, params=params: made(params)  # noqa: E731
        mine = cpu(lib, ours, 8)
        name = "FCN W={} O={} N={}: kernel".format(*size)
        plain = contraction(lib, f, params, x)
        ratio = cpu(lib, plain, 2) / mine
        told = f"{ratio:6.1f}x cheaper than contraction, at least {first}; {mine * 1e3:.1f} ms"
        row(lib, name, told, ratio >= first)
        ratio = cpu(lib, vector_products(lib, f, params, x), 2) / mine
        row(lib, name, f"{ratio:6.1f}x cheaper than NTK-vector, at least 10", ratio >= 10)
        memory = peak(lib, ours), peak(lib, plain)
        told = f"{memory[0]:.0f} MB of contraction's {memory[1]:.0f}, at most a tenth"
        row(lib, name, told, memory[0] <= max(memory[1] / 10, 1))
        aim = lib.slack * REFERENCE[size]
        row(lib, name, f"{mine * 1e3:.1f} ms; aim {aim:.0f} ms, {lib.slack} x reference", None)
    f, params, x = cnn(lib)
    made = lib.jit(lambda p: kernel(f, p, x))
    mine = cpu(lib, lambda: made(params), 5)
    best = min(cpu(lib, m(lib, f, params, x), 2) for m in (contraction, vector_products))
    told = (
        f"{best / mine:6.1f}x cheaper than the best plain method, at least 1; {mine * 1e3:.0f} ms"
    )
    row(lib, "CNN: kernel", told, best >= mine)
    g, grouped, y = cnn(lib, 32)
    made_g = lib.jit(lambda p: kernel(g, p, y))
    mine = cpu(lib, lambda: made_g(grouped), 5)
    best = cpu(lib, vector_products(lib, g, grouped, y), 2)
    told = f"{best / mine:6.1f}x cheaper than NTK-vector, at least 1; {mine * 1e3:.0f} ms"
    row(lib, "Depthwise CNN: kernel", told, best >= mine)
    e, table, ids = embedding(lib)
    made_e = lib.jit(lambda p: kernel(e, p, ids))
    mine = cpu(lib, lambda: made_e(table), 5)
    memory = peak(lib, lambda: made_e(table))
    told = f"{mine * 1e3:.1f} ms, {memory:.0f} MB; at most 40 ms and 50 MB"
    row(lib, "Embedding 1000x64: kernel", told, mine <= 0.04 and memory <= 50)


def compiling(lib: Any) -> None:
    from tracekit_ntk.kernel import kernel

    if lib.name != "jax":
        return
    _, params = lib.gru(64, 10)
    x = lib.asarray(lib.rng.standard_normal((4, 50, 10)))
    start = time.perf_counter()
    lib.jax.jit(lambda p: kernel(lambda p, x: lib.cells(p, x)[:, -1], p, x)).lower(params).compile()
    seconds = time.perf_counter() - start
    row(lib, "Scanned RNN of 50 steps", f"compiles in {seconds:.1f} s, at most 15", seconds <= 15)


def large(lib: Any) -> None:
    from tracekit_ntk.kernel import kernel, ntk_trace

    for name, net in (("ResNet-18", resnet), ("ViT-tiny", vit)):
        f, params, x = net(lib)
        for what, call in (("kernel", kernel), ("trace", ntk_trace)):
            made = lib.jit(lambda p, call=call, f=f, x=x: call(f, p, x))
            run = lambda made=made, params=params: made(params)  # noqa: E731
            if isinstance(lib, Jax):
                lib.wait(run())  # compile
            start = time.process_time()
            memory = peak(lib, run)
            seconds = time.process_time() - start
            row(lib, f"{name}, O=100, N=2: {what}", f"{seconds:.1f} s, {memory:.0f} MB", None)
        weights = sum(int(np.prod(p.shape)) for p in params.values())
        told = f"explicit Jacobians alone are {200 * weights * 4 / 1e6:.0f} MB"
        row(lib, f"{name}, O=100, N=2: contraction", told, None)


def main(names: list[str]) -> None:
    """Run one framework in this process, or each of several in its own."""
    if len(names) > 1:
        for name in names:
            subprocess.run([sys.executable, __file__, name], check=False)
        return
    lib = (Torch if names[0] == "torch" else Jax)()
    parts = {"torch": (traces, kernels, compiling, large), "jax": (traces, kernels, compiling)}
    for part in parts.get(names[0], (large,)):
        part(lib)


if __name__ == "__main__":
    main(sys.argv[1:] or ["torch", "jax"])
