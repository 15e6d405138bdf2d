"""Small networks, each in PyTorch and in JAX, two also by hand, of the same parameters.

Parameters are NumPy arrays by name; the functions take a tree of them and the
inputs. PyTorch keeps the order of their names, JAX sorts them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn
from examples import by_hand

Array = Any
Params = Any


@dataclass(frozen=True)
class Network:
    """One network on all libraries.

    Parameters
    ----------
    params : tree of NumPy arrays
    x : NumPy array
        Inputs, samples on axis 0.
    torch : callable
        Makes ``f(params, x)``.
    jax : callable
        ``f(params, x)``.
    pair : callable, optional
        ``pair(params, x)`` gives a `LinearOperator` in the library of its arguments.
    """

    params: Params
    x: np.ndarray
    torch: Callable[[], Callable[[Params, Array], Array]]
    jax: Callable[[Params, Array], Array]
    pair: Callable[[Params, Array], Any] | None = None

    def on(
        self, library: str, dtype: str = "float64"
    ) -> tuple[Callable[..., Array], Params, Array]:
        """The function, its parameters and its inputs in a library."""
        if library == "torch":
            torch = pytest.importorskip("torch", reason="PyTorch is not installed")
            f, xp = self.torch(), torch
        else:
            pytest.importorskip("jax", reason="JAX is not installed")
            import jax.numpy as xp

            f = self.jax

        def array(values: np.ndarray) -> Array:
            made = xp.asarray(values)
            if values.dtype.kind != "f":
                return made
            return made.to(getattr(xp, dtype)) if library == "torch" else made.astype(dtype)

        return f, each(array, self.params), array(self.x)


def each(function: Callable[[Any], Any], tree: Params) -> Params:
    """A tree of what a function makes of the leaves."""
    if isinstance(tree, dict):
        return {name: each(function, part) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(each(function, part) for part in tree)
    return function(tree)


@cache
def network(name: str) -> Network:
    """The network of that name."""
    return MAKERS[name]()


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng([seed, *shape]).standard_normal(shape)


def of_module(make: Callable[[], Any]) -> Callable[[], Callable[[Params, Array], Array]]:
    """A torch module as a function of parameters and inputs."""

    def f() -> Callable[[Params, Array], Array]:
        return tkn.functional(make().double().eval())[0]

    return f


# A perceptron, in a nested tree -----------------------------------------------------------------


def mlp() -> Network:
    def forward(layers: Params, x: Array) -> Array:
        return by_hand.network(layers, x)[-1]

    widths = 3, 5, 4, 2
    params = [(normal(a, b), normal(b)) for a, b in itertools.pairwise(widths)]
    return Network(params, normal(6, 3), lambda: forward, forward, by_hand.jacobian)


# Convolutions with stride, padding and groups ---------------------------------------------------


def cnn() -> Network:
    def module() -> Any:
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Tanh(),
            nn.Conv2d(4, 2, 2, groups=2, dilation=2), nn.SiLU(), nn.Flatten(), nn.Linear(2, 3),
        )  # fmt: skip

    def forward(p: Params, x: Array) -> Array:
        import jax
        from jax.lax import conv_general_dilated as conv

        x = conv(x, p["0.weight"], (2, 2), [(1, 1), (1, 1)]) + p["0.bias"][:, None, None]
        x = conv(jax.numpy.tanh(x), p["2.weight"], (1, 1), "VALID", rhs_dilation=(2, 2),
                 feature_group_count=2) + p["2.bias"][:, None, None]  # fmt: skip
        return jax.nn.silu(x).reshape(x.shape[0], -1) @ p["5.weight"].T + p["5.bias"]

    params = {
        "0.weight": normal(4, 2, 3, 3), "0.bias": normal(4),
        "2.weight": normal(2, 2, 2, 2), "2.bias": normal(2),
        "5.weight": normal(3, 2), "5.bias": normal(3),
    }  # fmt: skip
    return Network(params, normal(3, 2, 6, 6), of_module(module), forward)


# Gated recurrent units, all hidden states; derivatives by hand ----------------------------------


def gru() -> Network:
    def module() -> Any:
        from torch import nn

        class States(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gru = nn.GRU(2, 3, batch_first=True)

            def forward(self, x: Array) -> Array:
                return self.gru(x)[0]

        return States()

    def forward(p: Params, x: Array) -> Array:
        import jax
        import jax.numpy as jnp

        W, V, b, c = (p[f"gru.{name}_l0"] for name in GRU)

        def step(h: Array, x: Array) -> tuple[Array, Array]:
            (r, z, n), (s, y, m) = (jnp.split(a, 3, -1) for a in (x @ W.T + b, h @ V.T + c))
            r, z = jax.nn.sigmoid(r + s), jax.nn.sigmoid(z + y)
            h = (1 - z) * jnp.tanh(n + r * m) + z * h
            return h, h

        h = jnp.zeros((x.shape[0], 3), x.dtype)
        return jnp.swapaxes(jax.lax.scan(step, h, jnp.swapaxes(x, 0, 1))[1], 0, 1)

    shapes = (9, 2), (9, 3), (9,), (9,)
    params = {
        f"gru.{name}_l0": normal(*s, seed=i)
        for i, (name, s) in enumerate(zip(GRU, shapes, strict=True))
    }
    return Network(params, normal(2, 4, 2), of_module(module), forward, gru_by_hand)


GRU = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


def gru_by_hand(params: Params, x: Array) -> Any:
    """The Jacobian of all hidden states (samples, times, units) by blocks of columns."""
    from array_api_compat import array_namespace, device

    xp = array_namespace(x)
    W, V, b, c = (params[f"gru.{name}_l0"] for name in GRU)
    N, T, d = x.shape
    H, t = V.shape[1], xp.matrix_transpose

    def gates(a: Array) -> tuple[Array, ...]:
        return tuple(a[..., i * H : (i + 1) * H] for i in range(3))

    def sigmoid(a: Array) -> Array:
        return 1 / (1 + xp.exp(-a))

    kept, h = [], xp.zeros((N, H), dtype=x.dtype, device=device(x))
    for time in range(T):
        (r, z, n), (s, y, m) = gates(x[:, time, :] @ t(W) + b), gates(h @ t(V) + c)
        r, z = sigmoid(r + s), sigmoid(z + y)
        n = xp.tanh(n + r * m)
        kept.append((h, r, z, n, m))
        h = (1 - z) * n + z * h

    def pushforward(X: Array) -> Array:
        k = X.shape[1]
        parts, start = [], 0
        for p in (W, V, b, c):
            size = math.prod(p.shape)
            parts.append(xp.reshape(t(X)[:, start : start + size], (k, *p.shape)))
            start += size
        dW, dV, db, dc = parts
        dh, rows = xp.zeros((k, N, H), dtype=x.dtype, device=device(x)), []
        for time, (h, r, z, n, m) in enumerate(kept):
            dr, dz, dn = gates(x[:, time, :] @ t(dW) + db[:, None, :])
            ds, dy, dm = gates(h @ t(dV) + dh @ t(V) + dc[:, None, :])
            dr, dz = (dr + ds) * r * (1 - r), (dz + dy) * z * (1 - z)
            dn = (dn + dr * m + r * dm) * (1 - n * n)
            dh = dz * (h - n) + (1 - z) * dn + z * dh
            rows.append(dh)
        return t(xp.reshape(xp.stack(rows, axis=2), (k, -1)))

    def pullback(U: Array) -> Array:
        k = U.shape[1]
        G = xp.reshape(t(U), (k, N, T, H))
        total: Any = (0.0, 0.0, 0.0, 0.0)
        g = xp.zeros((k, N, H), dtype=x.dtype, device=device(x))
        for time, (h, r, z, n, m) in reversed(list(enumerate(kept))):
            g = g + G[:, :, time, :]
            dn = g * (1 - z) * (1 - n * n)
            dr, dz = dn * m * r * (1 - r), g * (h - n) * z * (1 - z)
            left, right = (xp.concat([dr, dz, last], axis=-1) for last in (dn, dn * r))
            parts = (
                t(left) @ x[:, time, :],
                t(right) @ h,
                xp.sum(left, axis=1),
                xp.sum(right, axis=1),
            )
            total = tuple(before + part for before, part in zip(total, parts, strict=True))
            g = g * z + right @ V
        return t(xp.concat([xp.reshape(part, (k, -1)) for part in total], axis=1))

    P = 3 * H * (d + H + 2)
    return tkn.jacobian_from_pair(
        pushforward, pullback, (N * T * H, P), dtype=x.dtype, xp=xp, device=device(x)
    )


# Long short-term memory, last state ---------------------------------------------------------------


def lstm() -> Network:
    def module() -> Any:
        from torch import nn

        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(2, 3, batch_first=True)

            def forward(self, x: Array) -> Array:
                return self.lstm(x)[0][:, -1]

        return Last()

    def forward(p: Params, x: Array) -> Array:
        import jax
        import jax.numpy as jnp

        W, V, b, c = (p[f"lstm.{name}_l0"] for name in GRU)

        def step(state: tuple[Array, Array], x: Array) -> tuple[Any, None]:
            h, cell = state
            i, f, g, o = jnp.split(x @ W.T + b + h @ V.T + c, 4, -1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

        zeros = jnp.zeros((x.shape[0], 3), x.dtype)
        return jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))[0][0]

    shapes = (12, 2), (12, 3), (12,), (12,)
    params = {
        f"lstm.{name}_l0": normal(*s, seed=i)
        for i, (name, s) in enumerate(zip(GRU, shapes, strict=True))
    }
    return Network(params, normal(2, 3, 2), of_module(module), forward)


# Attention with layer norms -----------------------------------------------------------------------


def attention() -> Network:
    d, heads = 4, 2

    def torch_block(p: Params, x: Array) -> Array:
        from torch.nn import functional as F

        def split(a: Array) -> Array:
            return a.unflatten(-1, (heads, -1)).transpose(1, 2)

        y = F.layer_norm(x, (d,), p["norm"]["scale"], p["norm"]["shift"])
        q, k, v = map(split, F.linear(y, p["qkv"]).chunk(3, dim=-1))
        weights = F.softmax(q @ k.transpose(-1, -2) / (d // heads) ** 0.5, dim=-1)
        return x + F.linear((weights @ v).transpose(1, 2).flatten(2), p["out"], p["bias"])

    def jax_block(p: Params, x: Array) -> Array:
        import jax
        import jax.numpy as jnp

        def split(a: Array) -> Array:
            return a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2)

        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        y = y * p["norm"]["scale"] + p["norm"]["shift"]
        q, k, v = map(split, jnp.split(y @ p["qkv"].T, 3, -1))
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / (d // heads) ** 0.5)
        return x + (weights @ v).swapaxes(1, 2).reshape(x.shape) @ p["out"].T + p["bias"]

    params = {
        "bias": normal(d), "norm": {"scale": normal(d, seed=1), "shift": normal(d, seed=2)},
        "out": normal(d, d), "qkv": normal(3 * d, d),
    }  # fmt: skip
    return Network(params, normal(2, 3, d), lambda: torch_block, jax_block)


# An embedding whose table is the read-out too; integer inputs -------------------------------------


def tied() -> Network:
    def module() -> Any:
        from torch import nn

        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(5, 3)
                self.mix = nn.Linear(3, 3)
                self.read = nn.Linear(3, 5, bias=False)
                self.read.weight = self.table.weight

            def forward(self, ids: Array) -> Array:
                return self.read(self.mix(self.table(ids)).tanh())

        return Tied()

    def forward(p: Params, ids: Array) -> Array:
        import jax.numpy as jnp

        table = p["table.weight"]
        return jnp.tanh(table[ids] @ p["mix.weight"].T + p["mix.bias"]) @ table.T

    params = {"table.weight": normal(5, 3), "mix.weight": normal(3, 3), "mix.bias": normal(3)}
    ids = np.array([[0, 3, 3], [4, 1, 0]])
    return Network(params, ids, of_module(module), forward)


# A residual block with batch norm in eval mode ----------------------------------------------------

MEAN, VARIANCE = normal(4, seed=8), np.abs(normal(4, seed=9)) + 0.5


def residual() -> Network:
    def module() -> Any:
        import torch
        from torch import nn

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)
                self.norm.running_mean = torch.asarray(MEAN)
                self.norm.running_var = torch.asarray(VARIANCE)

            def forward(self, x: Array) -> Array:
                return x + self.linear(self.norm(x).relu())

        return Residual()

    def forward(p: Params, x: Array) -> Array:
        import jax

        y = (x - MEAN) / np.sqrt(VARIANCE + 1e-5) * p["norm.weight"] + p["norm.bias"]
        return x + jax.nn.relu(y) @ p["linear.weight"].T + p["linear.bias"]

    params = {
        "norm.weight": normal(4), "norm.bias": normal(4, seed=1),
        "linear.weight": normal(4, 4), "linear.bias": normal(4, seed=2),
    }  # fmt: skip
    return Network(params, normal(5, 4), of_module(module), forward)


MAKERS = {maker.__name__: maker for maker in (mlp, cnn, gru, lstm, attention, tied, residual)}
NAMES = tuple(MAKERS)
WITH_PAIR = ("mlp", "gru")


# Dense Jacobians --------------------------------------------------------------------------------


@cache
def closed(name: str, library: str) -> tuple[Callable[[Any], Array], Any]:
    """A network with its inputs closed over, and its parameters."""
    f, params, x = network(name).on(library)
    return lambda p: f(p, x), params


@cache
def jacobian(name: str, library: str) -> tk.LinearOperator:
    return tkn.jacobian(*closed(name, library))


@cache
def reference(name: str, library: str) -> np.ndarray:
    """The Jacobian as the library itself gives it."""
    f, params = closed(name, library)
    if library == "torch":
        import torch

        leaves = torch.utils._pytree.tree_leaves(torch.func.jacrev(f)(params))
        return beside(leaves, f(params).numel())
    return compiled(name)[2]


@cache
def compiled(name: str) -> tuple[np.ndarray, ...]:
    """In JAX, by forward mode, by reverse mode, and as JAX gives it; all compiled in one go."""
    import jax

    f, params = closed(name, "jax")

    def all_three(params: Any) -> Any:
        J = tkn.jacobian(f, params)
        eyes = (J.xp.eye(size, dtype=J.dtype) for size in J.shape)
        backwards, forwards = (A.matmat(E) for A, E in zip((J.H, J), eyes, strict=True))
        return forwards, backwards, jax.jacrev(f)(params)

    forwards, backwards, own = jax.jit(all_three)(params)
    return (
        np.asarray(forwards),
        np.asarray(backwards).T,
        beside(jax.tree.leaves(own), len(forwards)),
    )


def beside(leaves: list[Array], n: int) -> np.ndarray:
    """Derivatives of n outputs by each parameter, as one matrix."""
    return np.concatenate([numpy(leaf).reshape(n, -1) for leaf in leaves], axis=1)


def dense(A: tk.LinearOperator) -> np.ndarray:
    """All columns; of a Jacobian by forward mode, of its adjoint by reverse mode."""
    product, eye = A.matmat, A.xp.eye(A.shape[1], dtype=A.dtype)
    if "jax" in A.xp.__name__:
        import jax

        product = jax.jit(lambda X: A.matmat(X))
    return numpy(product(eye))


def numpy(x: Array) -> np.ndarray:
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def close(here: Any, there: Any, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(here, there, rtol=rtol, atol=rtol * float(np.max(np.abs(there))))


def columns(A: tk.LinearOperator) -> Array:
    """All columns, in the operator's library."""
    return A.matmat(A.xp.eye(A.shape[1], dtype=A.dtype))


def at_once(library: str, f: Callable[..., Any], *arguments: Any) -> list[np.ndarray]:
    """The arrays that ``f(*arguments)`` gives; in JAX compiled in one go, which is faster."""
    if library == "jax":
        import jax

        f = jax.jit(f)
    return [numpy(made) for made in f(*arguments)]
