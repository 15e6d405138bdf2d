"""Losses of outputs: values against PyTorch's own, gradients and roots against autodiff of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.networks import close, normal, numpy
from tracekit_ntk import losses

Y = {
    "squared_error": normal(4, 3, seed=1),
    "softmax_cross_entropy": np.array([0, 2, 1, 1]),
    "logistic": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]]),
}
NAMES = tuple(Y)
every_loss = pytest.mark.parametrize("name", NAMES)
EXTREME = np.array([[0.0, 0.0, 0.0], [400.0, -400.0, 3.0], [-1e3, -1e3, -1e3], [1.0, 1e3, 1e3]])
POINTS = {"drawn": normal(4, 3), "zero": np.zeros((4, 3)), "extreme": EXTREME}


def test_values_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    for z in POINTS.values():
        z = torch.asarray(z)
        y = {name: torch.asarray(y) for name, y in Y.items()}
        close(
            [losses.squared_error(z, y["squared_error"]),
             losses.softmax_cross_entropy(z, y["softmax_cross_entropy"]),
             losses.logistic(z, y["logistic"])],
            [F.mse_loss(z, y["squared_error"], reduction="sum") / 2,
             F.cross_entropy(z, y["softmax_cross_entropy"], reduction="sum"),
             F.binary_cross_entropy_with_logits(z, y["logistic"].double(), reduction="sum")],
        )  # fmt: skip


def derivatives(library: str, name: str, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the value, by the library: the gradient and the Hessian by each sample's outputs."""
    loss: Any = getattr(losses, name)
    if library == "torch":
        torch = pytest.importorskip("torch")
        y = torch.asarray(Y[name])
        g = torch.func.grad(loss)(torch.asarray(z), y)
        H = torch.func.hessian(loss)(torch.asarray(z), y)
    else:
        jax = pytest.importorskip("jax")
        y = jax.numpy.asarray(Y[name])
        g, H = jax.jit(lambda z: (jax.grad(loss)(z, y), jax.hessian(loss)(z, y)))(z)
    return numpy(g), np.einsum("nonp->nop", numpy(H))


@every_loss
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_gradients_and_roots_are_those_of_the_value(library: str, name: str) -> None:
    loss = getattr(losses, name)
    for z in POINTS.values():
        gradient, hessian = derivatives(library, name, z)
        close(loss.gradient(z, Y[name]), gradient)
        S = loss.hessian_root(z)
        np.testing.assert_allclose(S @ S.swapaxes(1, 2), hessian, rtol=1e-10, atol=1e-14)


@every_loss
def test_roots_that_are_not_formed_are_those_that_are(name: str) -> None:
    z, V = normal(4, 3), normal(4, 3, 2)
    root, S = getattr(losses, name).root(z), getattr(losses, name).hessian_root(z)
    close(root.product(V), S @ V)
    close(root.adjoint_product(V), S.swapaxes(1, 2) @ V)
    close(root.columns(1, 2), S[:, :, 1:2])
    close(root.take(slice(1, None, 2)).columns(0, 3), S[1::2])


@every_loss
def test_the_derivative_of_a_root_is_finite_where_probabilities_round_to_0(name: str) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float64):
        z = torch.asarray(EXTREME).to(dtype)
        assert bool(torch.isfinite(torch.func.jacrev(getattr(losses, name).hessian_root)(z)).all())


def test_probabilities_may_be_the_targets() -> None:
    z, labels = normal(4, 3), Y["softmax_cross_entropy"]
    others = (labels + 1) % 3
    mixed = (np.eye(3)[labels] + 3 * np.eye(3)[others]) / 4
    for of in (losses.softmax_cross_entropy.value, losses.softmax_cross_entropy.gradient):
        close(of(z, mixed), (of(z, labels) + 3 * of(z, others)) / 4)


@every_loss
def test_positions_are_added_up(name: str) -> None:
    loss, z, y = getattr(losses, name), normal(4, 3), Y[name]
    z2, y2 = z.reshape(2, 2, 3), y.reshape(2, 2, *y.shape[1:])
    close(loss(z2, y2), loss(z, y))
    close(loss.gradient(z2, y2), loss.gradient(z, y).reshape(2, 2, 3))


@every_loss
def test_half_precision_is_computed_with_in_single(name: str) -> None:
    z = np.float16(EXTREME)
    loss = getattr(losses, name)
    assert loss(z, Y[name]).dtype == loss.hessian_root(z).dtype == np.float32
    assert np.isfinite(loss(np.repeat(z, 999, 0), np.repeat(Y[name], 999, 0)))


def test_targets_that_cannot_be_right_are_refused() -> None:
    z = normal(4, 3)
    with pytest.raises(ValueError, match="must be of the outputs' shape"):
        losses.squared_error(z, normal(4, 1))
    with pytest.raises(ValueError, match="must be of the outputs' shape"):
        losses.logistic(z[:, 0], np.zeros((4, 1)))
    for wrong in ([0, 1, 2, 3], [0, -1, 0, 0]):
        with pytest.raises(ValueError, match="classes from 0 to 2"):
            losses.softmax_cross_entropy(z, np.array(wrong))
    with pytest.raises(ValueError, match="one class for each row"):
        losses.softmax_cross_entropy(z, np.zeros((4, 1), int))
    with pytest.raises(ValueError, match="axis of classes"):
        losses.softmax_cross_entropy(z[:, 0], np.zeros(4, int))
    for outputs in (z + 1j, Y["logistic"]):
        with pytest.raises(TypeError, match="must be real floating-point"):
            losses.squared_error(outputs, z)


def test_classes_that_are_not_there_give_nan_in_compiled_code() -> None:
    jax = pytest.importorskip("jax")
    value = jax.jit(lambda y: losses.softmax_cross_entropy(jax.numpy.zeros((2, 3)), y))
    assert np.isfinite(value(jax.numpy.asarray([0, 2])))
    assert np.isnan(value(jax.numpy.asarray([0, 3])))


@pytest.mark.parametrize("y", [np.eye(3)[[0, 1, 2, 0]] * 2, np.zeros((4, 3)), np.ones((4, 3))])
def test_probabilities_must_have_the_sum_one(y: np.ndarray) -> None:
    with pytest.raises(ValueError, match="rows of probabilities"):
        losses.softmax_cross_entropy(normal(4, 3), y)
    soft = np.array([[0.2, 0.3, 0.5]] * 4)
    assert np.isfinite(losses.softmax_cross_entropy(normal(4, 3), soft))


def test_classes_need_an_axis() -> None:
    with pytest.raises(ValueError, match="axis of classes"):
        losses.softmax_cross_entropy(normal(4, 3)[:, 0], np.zeros(4))
