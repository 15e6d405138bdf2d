"""A neural tangent kernel without automatic differentiation: one source for NumPy, CuPy and others.

The network is written with the array API alone, and so are its two derivatives, on blocks of
columns. Where another library differentiates, `bridged` brings its Jacobian over by DLPack.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

import tracekit as tk
import tracekit_ntk as tkn

Array = Any
Layer = tuple[Array, Array]  # weights (inputs, outputs), bias (outputs,)

WIDTHS = 20, 64, 64, 5
SAMPLES = 80
BUDGET = 120


def main() -> None:
    """Print the trace and the effective rank of a network's kernel, estimated and exact."""
    xp = gpu() or np
    rng = np.random.default_rng(0)
    layers = [
        (xp.asarray(rng.standard_normal((a, b)) / a**0.5), xp.asarray(rng.standard_normal(b)))
        for a, b in pairwise(WIDTHS)
    ]
    J = jacobian(layers, xp.asarray(rng.standard_normal((SAMPLES, WIDTHS[0]))))
    K = tk.gram(J)
    dense = K @ xp.eye(K.shape[0])
    trace = xp.linalg.trace(dense)
    exact = {"trace": float(trace), "effective rank": float(trace**2 / xp.sum(dense * dense))}
    estimates = {
        "trace": tk.trace(K, rng=0),
        "effective rank": tk.effective_rank(K, BUDGET, rng=0),
    }
    print(f"""\
The kernel of {J.shape[0]} outputs and {J.shape[1]} parameters, by {xp.__name__}

                  passes   estimate   95 % interval        exact""")
    for name, estimate in estimates.items():
        low, high = estimate.confidence_interval()
        interval = f"{float(low):.6g} to {float(high):.6g}"
        print(
            f"{name:<16} {estimate.num_matvecs:>7} {float(estimate):>10.6g}   {interval:<18} "
            f"{exact[name]:>7.6g}"
        )


def gpu() -> Any:
    """CuPy where it finds a GPU."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy if cupy.is_available() else None


def network(layers: list[Layer], x: Array) -> list[Array]:
    """The activations of a perceptron: its inputs x, those of every layer, its outputs."""
    xp, h = array_namespace(x), [x]
    for i, (W, b) in enumerate(layers, 1):
        z = h[-1] @ W + b
        h.append(xp.tanh(z) if i < len(layers) else z)
    return h


def jacobian(layers: list[Layer], x: Array) -> tk.LinearOperator:
    """Of all outputs by all parameters, layer by layer: weights, then bias.

    Blocks of k columns become stacks of k matrices, which the library's matmul runs over.
    """
    xp, h = array_namespace(x), network(layers, x)
    shapes = [p.shape for layer in layers for p in layer]
    edges = list(accumulate(map(math.prod, shapes), initial=0))
    slopes = [1 - a * a for a in h[1:-1]]  # of tanh

    def pushforward(X: Array) -> Array:
        rows, k = xp.matrix_transpose(X), X.shape[1]
        cut = [
            xp.reshape(rows[:, start:end], (k, *shape))
            for start, end, shape in zip(edges, edges[1:], shapes, strict=False)
        ]
        dh = xp.zeros((k, *x.shape), dtype=x.dtype, device=device(X))
        for i, (W, _) in enumerate(layers):
            dz = dh @ W + h[i] @ cut[2 * i] + cut[2 * i + 1][:, None, :]
            dh = dz * slopes[i] if i < len(slopes) else dz
        return xp.matrix_transpose(xp.reshape(dh, (k, -1)))

    def pullback(U: Array) -> Array:
        g = xp.reshape(xp.matrix_transpose(U), (U.shape[1], *h[-1].shape))
        parts: list[Array] = []
        for i, (W, _) in reversed(list(enumerate(layers))):
            g = g * slopes[i] if i < len(slopes) else g
            dW = xp.reshape(xp.matrix_transpose(h[i]) @ g, (U.shape[1], -1))
            parts = [dW, xp.sum(g, axis=1), *parts]
            g = g @ xp.matrix_transpose(W)
        return xp.matrix_transpose(xp.concat(parts, axis=1))

    return tkn.jacobian_from_pair(
        pushforward,
        pullback,
        (math.prod(h[-1].shape), edges[-1]),
        dtype=x.dtype,
        xp=xp,
        device=device(x),
    )


def bridged(J: tk.LinearOperator, xp: Any) -> tk.LinearOperator:
    """A Jacobian of PyTorch or JAX for the arrays of `xp` on the same device, by DLPack."""

    def product(of: tk.LinearOperator, X: Array) -> Array:
        writable = xp.asarray(X, copy=True)  # not all importers take NumPy's read-only blocks
        return xp.from_dlpack(of.matmat(J.xp.from_dlpack(writable)))

    return tkn.jacobian_from_pair(
        partial(product, J),
        partial(product, J.H),
        J.shape,
        dtype=str(J.dtype).split(".")[-1],
        xp=xp,
    )


if __name__ == "__main__":
    main()
