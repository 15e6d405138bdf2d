"""Callbacks of training loops: the kernel they follow, what it costs, what they leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn

SAMPLES, EVERY, STEPS = 24, 4, 12


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((SAMPLES, 5))
    return x, np.sin(2 * x[:, :2])


def facts(J: np.ndarray, first: np.ndarray) -> tuple[float, float, float]:
    """Trace and norm of ``J J^T``, and its cosine with the first one."""
    A, B = J @ J.T, first @ first.T
    a, b = np.linalg.norm(A), np.linalg.norm(B)
    return float(np.trace(A)), float(a), float(np.vdot(A, B) / a / b)


def check(points: Any, jacobians: list[np.ndarray]) -> None:
    """All within wide intervals that are narrow enough to mean something."""
    assert [point.step for point in points] == list(range(0, STEPS + 1, EVERY))
    for point, J in zip(points, jacobians, strict=True):
        for estimate, exact in zip(point[1:4], facts(J, jacobians[0]), strict=True):
            low, high = estimate.confidence_interval(0.999)
            assert low - 1e-6 * exact <= exact <= high + 1e-6 * exact
            assert estimate.standard_error < 0.1 * exact
    moved = facts(jacobians[-1], jacobians[0])
    assert moved[2] < 0.99  # there was something to follow


def torch_network() -> tuple[Any, Any, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    x, y = (torch.tensor(part) for part in data())
    network = torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2)
    )
    return network.to(x.dtype), x, y


def test_a_torch_loop_is_followed() -> None:
    network, x, y = torch_network()
    import torch

    tracker, jacobians, spent = tk.Tracker(20, rng=0), [], []
    follow = tkn.track_module(network, tracker, x, every=EVERY)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    for step in range(STEPS + 1):
        before = {name: p.detach().clone() for name, p in network.named_parameters()}
        found = follow(step)
        if step % EVERY == 0:
            network.eval()
            f, params = tkn.functional(network)
            rows = torch.func.jacrev(lambda p, f=f: f(p, x))(params).values()
            parts = [row.detach().reshape(2 * SAMPLES, -1).numpy() for row in rows]
            jacobians.append(np.concatenate(parts, axis=1))
            network.train()
            spent.append(found.trace.num_matvecs)
        else:
            assert found is None
        assert all(torch.equal(before[name], p) for name, p in network.named_parameters())
        optimiser.zero_grad()
        torch.mean((network(x) - y) ** 2).backward()
        optimiser.step()
    check(tracker.points, jacobians)
    assert sum(spent) == tracker.num_matvecs


def test_a_module_is_left_as_it_was() -> None:
    network, x, _ = torch_network()
    network[2].eval()
    network(x).sum().backward()
    modes = [part.training for part in network.modules()]
    gradients = [p.grad.clone() for p in network.parameters()]
    follow = tkn.track_module(network, tk.Tracker(12, rng=0), x)
    follow(0)
    assert [part.training for part in network.modules()] == modes
    for p, gradient in zip(network.parameters(), gradients, strict=True):
        assert (p.grad == gradient).all()
        assert p.requires_grad


def test_modes_come_back_after_a_failure() -> None:
    network, x, _ = torch_network()
    follow = tkn.track_module(network, tk.Tracker(12, rng=0), x[:, :3])
    with pytest.raises(RuntimeError):
        follow(0)
    assert all(part.training for part in network.modules())


def test_a_jax_loop_is_followed() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    import jax.numpy as jnp

    x, y = (jnp.asarray(part) for part in data())
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "in": jax.random.normal(keys[0], (5, 16)) / 2,
        "out": jax.random.normal(keys[1], (16, 2)) / 4,
    }

    def network(p: Any) -> Any:
        return jnp.tanh(x @ p["in"]) @ p["out"]

    slope = jax.jit(jax.grad(lambda p: jnp.mean((network(p) - y) ** 2)))
    exact = jax.jit(jax.jacrev(network))
    tracker, jacobians = tk.Tracker(20, rng=0), []
    follow = tkn.track(network, tracker, every=EVERY)
    for step in range(STEPS + 1):
        found = follow(step, params)
        assert (found is None) == bool(step % EVERY)
        if found is not None:
            parts = [np.asarray(J).reshape(2 * SAMPLES, -1) for J in exact(params).values()]
            jacobians.append(np.concatenate(parts, axis=1))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, slope(params))
    check(tracker.points, jacobians)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_steps_between_looks_are_counted_by_ints(every: Any) -> None:
    with pytest.raises(ValueError, match="every"):
        tkn.track(lambda p: p, tk.Tracker(12), every=every)


def test_what_is_no_module_is_refused_at_once() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        tkn.track_module(lambda x: x, tk.Tracker(12))


def test_what_is_frozen_is_not_followed() -> None:
    """With respect to what is chosen, of the output that is picked."""
    network, x, _ = torch_network()
    import torch

    network.eval()[0].requires_grad_(False)
    f, every = tkn.functional(network, trainable=False)
    rows = torch.func.jacrev(lambda p: f(p, x))(every)
    squares = {name: float(torch.sum(row[:, :1] ** 2)) for name, row in rows.items()}

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            return {"logits": self.network(x)}

    for trainable, chosen in ((True, ("3.weight", "3.bias")), (False, every), ("*.bias", None)):
        follow = tkn.track_module(
            Model(), tk.Tracker(2 * SAMPLES, rng=0), x,
            trainable=trainable, output=lambda y: y["logits"][:, :1],
        )  # fmt: skip
        names = ("0.bias", "3.bias") if chosen is None else chosen
        exact = sum(squares[name] for name in names)
        assert float(follow(0).trace) == pytest.approx(exact, rel=1e-6)  # type: ignore[union-attr]
    network.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        tkn.track_module(network, tk.Tracker(12), x)


def test_no_graph_is_kept_of_parameters_that_are_trained() -> None:
    network, x, _ = torch_network()
    f, _ = tkn.functional(network.eval())
    own = dict(network.named_parameters())
    found = tkn.track(lambda p: f(p, x), tk.Tracker(12, rng=0))(0, own)
    assert not found.trace.value.requires_grad  # type: ignore[union-attr]
