"""Modules of Flax NNX and Haiku, and adapters alone, by the recipes of the documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracekit_ntk as tkn

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from tracekit_ntk._jax.capture import capture  # noqa: E402

X = np.random.default_rng(0).standard_normal((3, 4))


def agrees(f: Callable[[Any, Any], Any], params: Any, *, rounding: float) -> None:
    """Exact numbers are those of the explicit Jacobian."""
    blocks = jax.jit(jax.jacrev(f))(params, X)
    J = np.concatenate([np.reshape(b, (6, -1)) for b in jax.tree.leaves(blocks)], axis=1)
    K = tkn.kernel_matrix(tkn.kernel(f, params, X))
    np.testing.assert_allclose(K, J @ J.T, atol=rounding * np.abs(K).max())
    assert not any(reason for *_, reason in capture(f, params, X).report)


def test_modules_of_flax_nnx_with_state() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):  # type: ignore[misc]
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(4, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.last = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))

    net = Net(nnx.Rngs(0))
    net.eval()
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    agrees(lambda params, x: nnx.merge(graph, params, rest)(x), params, rounding=1e-6)


def test_adapters_of_flax_nnx_alone() -> None:
    nnx = pytest.importorskip("flax.nnx")
    base = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    net = nnx.LoRA(4, 1, 2, base_module=base, rngs=nnx.Rngs(1))
    graph, params, rest = nnx.split(net, nnx.LoRAParam, ...)
    assert len(jax.tree.leaves(params)) == 2
    agrees(lambda params, x: nnx.merge(graph, params, rest)(x), params, rounding=1e-6)


def test_modules_of_haiku() -> None:
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([3, 2], activation=jnp.tanh)(x)))
    params = net.init(jax.random.key(0), X)
    agrees(net.apply, params, rounding=1e-6)
