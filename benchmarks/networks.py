"""Networks that PyTorch and JAX run alike, in float32 on the CPU, and what both spell differently.

A network is a function of parameters and inputs, parameters, and inputs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .measure import least, peak_above

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = Any
    Network = tuple[Callable[[Any, Array], Array], Any, Array]


class Library:
    """What is the same in both."""

    name: str
    xp: Any
    rng: np.random.Generator

    def jit(self, f: Callable[..., Array]) -> Callable[..., Array]:
        return f

    def wait(self, x: Any) -> Any:
        return x

    def normal(self, *shape: int) -> Array:
        return self.asarray(self.rng.standard_normal(shape))

    def asarray(self, x: Any) -> Array:
        x = np.asarray(x)
        return self.xp.asarray(x if x.dtype.kind == "i" else x.astype(np.float32))

    def waiting(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return the same function, which comes back when all is done."""
        return lambda: self.wait(run())

    def seconds(self, run: Callable[[], Any], repeats: int = 3) -> float:
        """Return the least CPU time, after one run that may compile."""
        return least([self.waiting(run)], repeats)[0]

    def megabytes(self, run: Callable[[], Any]) -> float:
        """Return by how much the resident memory rises."""
        return peak_above(self.waiting(run)) / 2**20


class Torch(Library):
    name, slack = "torch", 3.0

    def __init__(self) -> None:
        import torch
        import torch.func

        torch.set_num_threads(1)
        self.xp, self.rng = torch, np.random.default_rng(0)
        self.vmap, self.vjp, self.jvp, self.jacrev = (
            getattr(torch.func, name) for name in ("vmap", "vjp", "jvp", "jacrev")
        )
        self.relu = torch.relu

    def conv(self, x: Array, w: Array, stride: int = 1, groups: int = 1) -> Array:
        pad = w.shape[-1] // 2
        return self.xp.nn.functional.conv2d(x, w, stride=stride, padding=pad, groups=groups)

    def layer_norm(self, x: Array, w: Array, b: Array) -> Array:
        return self.xp.nn.functional.layer_norm(x, x.shape[-1:], w, b)

    def attention(self, q: Array, k: Array, v: Array) -> Array:
        return self.xp.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v

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


class Jax(Library):
    name, slack = "jax", 1.2

    def __init__(self) -> None:
        import jax

        self.xp, self.jax, self.rng = jax.numpy, jax, np.random.default_rng(0)
        self.vmap, self.vjp, self.jvp, self.jacrev = jax.vmap, jax.vjp, jax.jvp, jax.jacrev
        self.relu = jax.nn.relu

    def jit(self, f: Callable[..., Array]) -> Callable[..., Array]:
        made: Callable[..., Array] = self.jax.jit(f)
        return made

    def wait(self, x: Any) -> Any:
        return self.jax.block_until_ready(x)

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


LIBRARIES: dict[str, type[Library]] = {"torch": Torch, "jax": Jax}


def mlp(lib: Any) -> Network:
    """Hazelden (2025), arXiv:2511.10796: 15 layers of width 64, at He initialisation."""
    params = [
        (lib.normal(a, b) * (2 / a) ** 0.5, lib.asarray(np.zeros(b)))
        for a, b in pairwise([100, *[64] * 15])
    ]

    def f(params: Any, x: Array) -> Array:
        for k, (W, b) in enumerate(params):
            x = (lib.relu(x) if k else x) @ W + b
        return x

    return f, params, lib.normal(50, 100)


def fcn(lib: Any, width: int, outputs: int, N: int) -> Network:
    """Novak et al. (2022), arXiv:2206.08720: ten hidden layers."""
    shapes = list(pairwise([3, *[width] * 10, outputs]))
    params = {f"w{k:02}": lib.normal(*s) / s[0] ** 0.5 for k, s in enumerate(shapes)}

    def f(p: Any, x: Array) -> Array:
        for k in range(len(shapes)):
            x = (lib.relu(x) if k else x) @ p[f"w{k:02}"]
        return x

    return f, params, lib.normal(N, 3)


def cnn(lib: Any, groups: int = 1) -> Network:
    """Four layers 3x3 of width 32 on 16x16x3, ten outputs."""
    params = {"k0": lib.normal(32, 3, 3, 3) / 5}
    for k in range(1, 4):
        shape = (32, 32 // groups, 3, 3)
        params[f"k{k}"] = lib.normal(*shape) / float(np.prod(shape[1:])) ** 0.5
    params["out"] = lib.normal(32, 10) / 32**0.5

    def f(p: Any, x: Array) -> Array:
        for k in range(4):
            x = lib.relu(lib.conv(x, p[f"k{k}"], groups=groups if k else 1))
        return x.mean((2, 3)) @ p["out"]

    return f, params, lib.normal(4, 3, 16, 16)


def embedding(lib: Any) -> Network:
    """A table of 1000 rows of 64, sixteen tokens, four outputs."""
    params = {"e": lib.normal(1000, 64), "w": lib.normal(64, 4) / 8}

    def f(p: Any, ids: Array) -> Array:
        return lib.xp.tanh(p["e"][ids]).mean(1) @ p["w"]

    return f, params, lib.asarray(lib.rng.integers(0, 1000, (4, 16)))


def resnet(lib: Any) -> Network:
    """A ResNet-18 without norms: 64 to 512 channels, two blocks each, 100 outputs."""
    params: dict[str, Array] = {}

    def weight(name: str, *shape: int) -> None:
        params[name] = lib.normal(*shape) / float(np.prod(shape[1:])) ** 0.5

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
    params["out"] = lib.normal(512, 100) / 512**0.5

    def f(p: Any, x: Array) -> Array:
        x = lib.relu(lib.conv(x, p["stem"]))
        for name, stride, skip in plan:
            h = lib.conv(lib.relu(lib.conv(x, p[name + "one"], stride)), p[name + "two"])
            x = lib.relu(h + (lib.conv(x, p[name + "skip"], stride) if skip else x))
        return x.mean((2, 3)) @ p["out"]

    return f, params, lib.normal(2, 3, 64, 64)


def vit(lib: Any) -> Network:
    """A ViT-tiny: patches of 8x8, twelve blocks of width 192 with three heads, 100 outputs."""
    D, heads = 192, 3
    params = {"at": 0.02 * lib.normal(64, D)}

    def weight(name: str, *shape: int) -> None:
        params[name] = lib.normal(*shape) / shape[0] ** 0.5
        params[name + "_b"] = lib.asarray(np.zeros(shape[1]))

    weight("patch", 192, D)
    shapes = {"qkv": (D, 3 * D), "proj": (D, D), "up": (D, 4 * D), "down": (4 * D, D)}
    for k in range(12):
        for name, shape in shapes.items():
            weight(f"{name}{k}", *shape)
        for name in (f"n{k}", f"m{k}"):
            params[name], params[name + "_b"] = lib.asarray(np.ones(D)), lib.asarray(np.zeros(D))
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

    return f, params, lib.normal(2, 3, 64, 64)
