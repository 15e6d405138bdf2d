"""Hessians of losses and their traces, held to brute force on both frameworks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn

LIBRARIES = ("torch", "jax")
libraries = pytest.mark.parametrize("library", LIBRARIES)
WIDTHS, N = (3, 4, 2), 5


class Problem(NamedTuple):
    """A network with a loss in a library, and its Hessian by brute force."""

    xp: Any
    f: Callable[[Any, Any], Any]
    params: Any
    x: Any
    y: Any
    loss: Any

    def value(self, params: Any) -> Any:
        return self.loss(self.f(params, self.x), self.y)

    def hessian(self) -> np.ndarray:
        """Every entry, by the library's own nested derivatives of flat parameters."""
        leaves = [self.params["a"], self.params["b"], self.params["c"]]
        cuts = np.cumsum([0, *(math.prod(leaf.shape) for leaf in leaves)])

        def flat(theta: Any) -> Any:
            parts = [
                theta[low:high].reshape(leaf.shape)
                for low, high, leaf in zip(cuts, cuts[1:], leaves, strict=False)
            ]
            return self.value(dict(zip("abc", parts, strict=True)))

        if self.xp.__name__ == "torch":
            theta = self.xp.cat([leaf.reshape(-1) for leaf in leaves])
            return self.xp.autograd.functional.hessian(flat, theta).numpy()
        import jax

        theta = self.xp.concatenate([leaf.ravel() for leaf in leaves])
        return np.asarray(jax.jacrev(jax.grad(flat))(theta))


def problem(library: str, act: str = "tanh", loss: str = "squared_error", *,
            samples: int = N, dtype: str = "float64") -> Problem:  # fmt: skip
    xp = pytest.importorskip("torch" if library == "torch" else "jax.numpy")
    rng = np.random.default_rng(0)
    d, w, k = WIDTHS
    made = (rng.standard_normal((d, w)), rng.standard_normal(w), rng.standard_normal((w, k)))
    x, y = rng.standard_normal((samples, d)), rng.standard_normal((samples, k))

    def put(a: np.ndarray) -> Any:
        a = xp.asarray(a)
        return a.to(getattr(xp, dtype)) if library == "torch" else a.astype(dtype)

    def f(p: Any, x: Any) -> Any:
        h = x @ p["a"] + p["b"]
        h = xp.tanh(h) if act == "tanh" else xp.where(h > 0, h, 0 * h)
        return h @ p["c"]

    targets = xp.asarray(rng.integers(0, k, samples)) if loss == "softmax_cross_entropy" else put(y)
    params = dict(zip("abc", map(put, made), strict=True))
    return Problem(xp, f, params, put(x), targets, getattr(tkn.losses, loss))


def dense(H: tk.LinearOperator) -> np.ndarray:
    return np.asarray(H.matmat(H.xp.eye(H.shape[1], dtype=H.dtype)))


# --- products -------------------------------------------------------------------------------------


@libraries
@pytest.mark.parametrize("loss", ["squared_error", "softmax_cross_entropy"])
def test_hessian_is_that_of_nested_derivatives(library: str, loss: str) -> None:
    p = problem(library, loss=loss)
    H = tkn.hessian(p.value, p.params)
    truth = p.hessian()
    assert np.abs(dense(H) - truth).max() < 1e-12 * np.abs(truth).max()
    assert np.array_equal(dense(H.H), dense(H))
    cut = tkn.hessian(p.value, p.params, chunk_size=5)
    assert np.abs(dense(cut) - truth).max() < 1e-12 * np.abs(truth).max()


@libraries
@pytest.mark.parametrize(("dtype", "tol"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_hessian_in_less_precision(library: str, dtype: str, tol: float) -> None:
    p, q = problem(library), problem(library, dtype=dtype)
    H = tkn.hessian(q.value, q.params)
    assert "float32" in str(H.dtype)
    truth = p.hessian()
    assert np.abs(dense(H) - truth).max() < tol * np.abs(truth).max()


@libraries
def test_hessian_over_batches_is_the_sum(library: str) -> None:
    p = problem(library)
    batches = [(p.x[:2], p.y[:2]), (p.x[2:], p.y[2:])]
    H = tkn.hessian(lambda q, b: p.loss(p.f(q, b[0]), b[1]), p.params, batches=batches)
    truth = p.hessian()
    assert np.abs(dense(H) - truth).max() < 1e-12 * np.abs(truth).max()
    batches.reverse()
    assert np.abs(dense(H) - truth).max() < 1e-12 * np.abs(truth).max()
    batches.pop()
    with pytest.raises(ValueError, match="pass the same data"):
        dense(H)


@libraries
def test_hessian_stays_what_it_is(library: str) -> None:
    p = problem(library)
    params = dict(p.params)
    H, truth = tkn.hessian(p.value, params), p.hessian()
    if library == "torch":
        params["a"].zero_()
    params["b"] = 0 * params["b"]
    assert np.abs(dense(H) - truth).max() < 1e-12 * np.abs(truth).max()


@libraries
def test_parameters_that_the_loss_does_not_read(library: str) -> None:
    p = problem(library)
    H = tkn.hessian(p.value, {**p.params, "unread": p.params["b"]})
    found, truth = dense(H), p.hessian()
    assert found.shape == (len(truth) + WIDTHS[1],) * 2
    assert np.abs(found[: len(truth), : len(truth)] - truth).max() < 1e-12 * np.abs(truth).max()
    assert not found[len(truth) :].any()
    with pytest.warns(UserWarning, match="its Hessian is 0"):
        flat = tkn.hessian(lambda q: p.xp.sum(p.y), p.params)
    assert not dense(flat).any()


def test_all_routes_of_torch_agree() -> None:
    from tracekit_ntk._torch.hessian import Twice

    p = problem("torch")
    names = list(p.params)
    f = Twice(lambda *values: p.value(dict(zip(names, values, strict=True))),
              [leaf.clone() for leaf in p.params.values()])  # fmt: skip
    truth = p.hessian()
    rows = p.xp.eye(len(truth), dtype=p.xp.float64)
    for name, tol in (("mapped", 1e-12), ("each", 1e-12), ("reversed", 1e-12), ("singly", 1e-12),
                      ("differences", 1e-6)):  # fmt: skip
        made = f._along(name, rows, False).detach().numpy()
        assert np.abs(made - truth).max() < tol * np.abs(truth).max(), name


@cache
def torch_cubes() -> dict[str, Any]:
    """Cubes by rules of their own: differentiable, cut off, and once differentiable."""
    import torch
    from torch.autograd.function import once_differentiable

    def backward(ctx: Any, g: Any) -> Any:
        return g * 3 * ctx.saved_tensors[0] ** 2

    def cut_off(ctx: Any, g: Any) -> Any:
        return g * 3 * ctx.saved_tensors[0].detach() ** 2

    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    def rule(back: Any) -> Any:
        members = {"forward": staticmethod(forward), "backward": staticmethod(back)}
        return type("Cube", (torch.autograd.Function,), members).apply

    return {"right": rule(backward), "cut off": rule(cut_off),
            "once": rule(once_differentiable(backward))}  # fmt: skip


@cache
def jax_cubes() -> dict[str, Any]:
    import jax

    def rule(back: Any) -> Any:
        cube = jax.custom_vjp(lambda x: x**3)
        cube.defvjp(lambda x: (x**3, x), lambda x, g: (g * back(x),))
        return cube

    def outside(x: Any) -> Any:
        return jax.pure_callback(lambda x: 3 * np.asarray(x) ** 2, x, x)

    return {"right": rule(lambda x: 3 * x**2), "once": rule(outside),
            "cut off": rule(lambda x: 3 * jax.lax.stop_gradient(x) ** 2)}  # fmt: skip


@libraries
@pytest.mark.parametrize("kind", ["right", "cut off", "once"])
def test_rules_without_a_second_derivative_are_differenced_and_told_of(
    library: str, kind: str
) -> None:
    xp = problem(library).xp
    cube = (torch_cubes if library == "torch" else jax_cubes)()[kind]
    w = xp.asarray(np.asarray([1.0, 2.0, 3.0]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = dense(tkn.hessian(lambda w: cube(w).sum(), w))
    assert np.abs(found - np.diag([6.0, 12.0, 18.0])).max() < (1e-12 if kind == "right" else 1e-6)
    assert any("differences" in str(w.message) for w in told) == (kind != "right")


@libraries
def test_a_part_held_fixed_stays_fixed(library: str) -> None:
    xp = problem(library).xp
    if library == "torch":
        fixed = xp.Tensor.detach
    else:
        import jax

        fixed = jax.lax.stop_gradient
    w = xp.asarray(np.asarray([1.0, 2.0]))
    H = tkn.hessian(lambda w: (w**2 * fixed(w)).sum(), w)
    assert np.allclose(dense(H), np.diag([2.0, 4.0]), rtol=1e-12)


def test_products_can_be_differentiated() -> None:
    p = problem("torch")
    w = p.xp.tensor([1.0, 2.0], dtype=p.xp.float64, requires_grad=True)
    H = tkn.hessian(lambda w: (w**4).sum() / 12, w)
    H.matmat(p.xp.ones((2, 1), dtype=p.xp.float64)).sum().backward()  # w^2
    assert np.allclose(w.grad.numpy(), [2.0, 4.0])


# --- refusals -------------------------------------------------------------------------------------


@libraries
def test_losses_without_a_hessian_are_refused(library: str) -> None:
    p = problem(library)
    with pytest.raises(TypeError, match="not one number"):
        tkn.hessian(lambda q: p.f(q, p.x), p.params)
    with pytest.raises(TypeError, match="not one number"):
        tkn.hessian(lambda q: (p.value(q), 1), p.params)
    with pytest.raises(ValueError, match="NaN or infinity"):
        tkn.hessian(lambda q: p.value(q) * math.nan, p.params)
    with pytest.raises(TypeError, match="complex numbers have no order"):
        tkn.hessian(lambda q: p.value(q) * (1 + 1j), p.params)
    with pytest.raises(TypeError, match="real and imaginary parts"):
        tkn.hessian(lambda q: p.xp.abs(q).sum(), p.params["b"] * (1 + 1j))
    with pytest.raises(TypeError, match="pass a function"):
        tkn.hessian(p.value(p.params), p.params)
    with pytest.raises(ValueError, match="gone through only once"):
        tkn.hessian(lambda q, b: p.value(q), p.params, batches=iter([p.x]))
    with pytest.raises(ValueError, match="batches is empty"):
        tkn.hessian(lambda q, b: p.value(q), p.params, batches=[])


def test_losses_that_differ_each_time_are_refused() -> None:
    p = problem("torch")
    with pytest.raises(ValueError, match="two runs of loss"):
        tkn.hessian(lambda q: p.value(q) * p.xp.rand(()), p.params)


# --- traces ---------------------------------------------------------------------------------------


@libraries
@pytest.mark.parametrize("loss", ["squared_error", "softmax_cross_entropy"])
@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_trace_without_a_budget_is_exact(library: str, act: str, loss: str) -> None:
    p = problem(library, act, loss)
    truth = np.trace(p.hessian())
    found = tkn.hessian_trace(p.f, p.params, p.x, p.y, p.loss)
    assert abs(float(found) - truth) < 1e-11 * np.abs(np.diag(p.hessian())).sum()
    assert float(found.standard_error) == 0
    assert ("linear in each parameter" in found.reason) == (act == "relu")


@libraries
def test_trace_is_unbiased_and_its_interval_is_calibrated(library: str) -> None:
    p = problem(library)
    truth, seeds, m = np.trace(p.hessian()), 60 if library == "torch" else 20, 15
    runs = [tkn.hessian_trace(p.f, p.params, p.x, p.y, p.loss, m, rng=s) for s in range(seeds)]
    assert all(run.num_matvecs == m for run in runs)
    values = np.asarray([float(run) for run in runs])
    assert abs(values.mean() - truth) < 3.5 * values.std(ddof=1) / seeds**0.5
    inside = [float(low) <= truth <= float(high)
              for low, high in (run.confidence_interval() for run in runs)]  # fmt: skip
    assert np.mean(inside) > 0.85


def shared(xp: Any) -> Callable[[Any, Any], Any]:
    """A relu network that reads its first weight twice."""

    def f(p: Any, x: Any) -> Any:
        h = x @ p["a"] + p["b"]
        h = xp.where(h > 0, h, 0 * h)
        return (h * (x @ p["a"])) @ p["c"]

    return f


@libraries
def test_shared_weights_are_not_taken_for_linear_ones(library: str) -> None:
    p = problem(library)
    p = p._replace(f=shared(p.xp))
    truth = p.hessian()
    found = tkn.hessian_trace(p.f, p.params, p.x, p.y, p.loss)
    assert "linear" not in found.reason
    assert abs(float(found) - np.trace(truth)) < 1e-10 * np.abs(np.diag(truth)).sum()
    assert abs(float(tkn.ggn_trace(p.f, p.params, p.x, p.loss)) - np.trace(truth)) > 1


def test_trace_without_forward_mode_twice_counts_two() -> None:
    p = problem("torch")
    cube = torch_cubes()["right"]

    def f(q: Any, x: Any) -> Any:
        return cube(x @ q["a"] + q["b"]) @ q["c"]

    p = p._replace(f=f)
    truth = p.hessian()
    found = tkn.hessian_trace(p.f, p.params, p.x, p.y, p.loss)
    assert abs(float(found) - np.trace(truth)) < 1e-10 * np.abs(np.diag(truth)).sum()
    assert tkn.hessian_trace(p.f, p.params, p.x, p.y, p.loss, 20, rng=0).num_matvecs == 19


@libraries
def test_minibatch_trace_covers_the_noise_of_batches(library: str) -> None:
    p = problem(library, samples=8)
    batches = [(p.x[i : i + 2] * (1 + i), p.y[i : i + 2]) for i in range(0, 8, 2)]
    H = tkn.hessian(lambda q, b: p.loss(p.f(q, b[0]), b[1]), p.params, batches=batches)
    truth, seeds = float(tk.exact_trace(H)), 30 if library == "torch" else 8
    runs = [tkn.minibatch_hessian_trace(p.f, p.params, batches, p.loss, 30, rng=s)
            for s in range(seeds)]  # fmt: skip
    values = np.asarray([float(run) for run in runs])
    assert abs(values.mean() - truth) < 3.5 * values.std(ddof=1) / seeds**0.5
    inside = [float(low) <= truth <= float(high)
              for low, high in (run.confidence_interval() for run in runs)]  # fmt: skip
    assert np.mean(inside) > 0.8


@libraries
def test_one_sample_one_output_and_one_direction(library: str) -> None:
    p = problem(library, samples=1)
    x, y, whole = p.x, p.y[:, 0], p.f

    def f(q: Any, x: Any) -> Any:
        return whole(q, x)[:, 0]

    p = p._replace(f=f, y=y)
    truth = p.hessian()
    found = tkn.hessian_trace(f, p.params, x, y, p.loss)
    assert abs(float(found) - np.trace(truth)) < 1e-11 * np.abs(np.diag(truth)).sum()
    one = tkn.hessian_trace(f, p.params, x, y, p.loss, 1, rng=0)
    assert math.isinf(float(one.standard_error))
    assert one.num_matvecs == 1


@libraries
def test_traces_that_cannot_be_are_refused(library: str) -> None:
    p = problem(library)
    with pytest.raises(ValueError, match="positive integer"):
        tkn.hessian_trace(p.f, p.params, p.x, p.y, p.loss, 0)
    with pytest.raises(TypeError, match="method"):
        tkn.hessian_trace(p.f, p.params, p.x, p.y, lambda outputs, y: outputs.sum(), 4)
    with pytest.raises(TypeError, match="no pair"):
        tkn.minibatch_hessian_trace(p.f, p.params, [p.x, p.x], p.loss, 4)
    with pytest.raises(TypeError, match="cannot be drawn from"):
        tkn.minibatch_hessian_trace(p.f, p.params, iter([(p.x, p.y)]), p.loss, 4)
