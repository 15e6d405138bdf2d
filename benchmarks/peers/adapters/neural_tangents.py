"""neural-tangents: kernels of networks, of infinite and of finite width, in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract import Peer

PEER = Peer(
    "neural-tangents",
    "neural-tangents",
    "0.6.5",
    "https://github.com/google/neural-tangents",
    "JAX",
    "kernels of infinitely wide networks and their training in closed form; Monte Carlo kernels; "
    "linearised networks",
)
MODES = ("JAX, jitted",)
METHODS: dict[str, tuple[str, ...]] = {}
IMPLEMENTATIONS = {
    "Jacobian contraction": "JACOBIAN_CONTRACTION",
    "NTK-vector products": "NTK_VECTOR_PRODUCTS",
    "structured derivatives": "STRUCTURED_DERIVATIVES",
}


def kernels(
    weights: list[np.ndarray], X: np.ndarray
) -> dict[str, tuple[Callable[[], Any], Callable[[Any], np.ndarray]]]:
    """Return the exact kernel of a ReLU network by each method, and how to make it a matrix."""
    import jax
    import neural_tangents as nt

    def f(params: list[Any], x: Any) -> Any:
        for k, W in enumerate(params):
            x = (jax.nn.relu(x) if k else x) @ W
        return x

    params, x = [jax.numpy.asarray(W) for W in weights], jax.numpy.asarray(X)

    def by(implementation: str) -> Callable[[], Any]:
        made = jax.jit(
            nt.empirical_ntk_fn(
                f,
                trace_axes=(),
                vmap_axes=0,
                implementation=getattr(nt.NtkImplementation, implementation),
            )
        )
        return lambda: made(x, None, params).block_until_ready()

    def read(kernel: Any) -> np.ndarray:
        N, _, outputs, _ = kernel.shape
        return np.swapaxes(np.asarray(kernel), 1, 2).reshape(N * outputs, N * outputs)

    return {name: (by(told), read) for name, told in IMPLEMENTATIONS.items()}
