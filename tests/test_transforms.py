"""Estimators inside jax.jit, jax.vmap and jax.grad, and under torch autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import PSD, installed, matrix

import tracekit as tk
from tracekit import probes

N, M = 14, 10
STOCHASTIC = (tk.hutchinson, tk.hutchpp, tk.xtrace, tk.xnystrace)
estimators = pytest.mark.parametrize("estimator", STOCHASTIC, ids=lambda f: f.__name__)


def fits(estimator: Any, kind: str) -> str:
    if estimator is not tk.xnystrace or kind in PSD:
        return kind
    return "complex psd" if kind == "complex" else "psd"


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax")


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_compiled_is_eager(jax: Any) -> None:
    """With a key; `test_capabilities` holds it of every estimator, with a seed."""
    A, key = jax.numpy.asarray(matrix("complex", N)), jax.random.key(3)
    f = lambda A, key: tk.hutchinson(A, M, rng=key)  # noqa: E731
    eager, compiled = f(A, key), jax.jit(f)(A, key)
    assert isinstance(compiled, tk.Estimate)
    assert complex(compiled.value) == pytest.approx(complex(eager.value), rel=1e-9)
    assert float(compiled.standard_error) == pytest.approx(float(eager.standard_error), rel=1e-6)
    assert (compiled.num_matvecs, compiled.method) == (eager.num_matvecs, eager.method)
    low, high = compiled.confidence_interval()
    assert float(low) < complex(eager.value).real < float(high)


@pytest.mark.parametrize(
    "law", [probes.orthogonal, probes.hadamard, probes.normal], ids=lambda law: law.__name__
)
def test_every_law_compiles(jax: Any, law: Any) -> None:
    A, key = jax.numpy.asarray(matrix("real", N)), jax.random.key(3)
    f = lambda key: tk.hutchinson(A, M, rng=key, probes=law).value  # noqa: E731
    assert float(jax.jit(f)(key)) == pytest.approx(float(f(key)), rel=1e-9)


def test_old_keys_compile(jax: Any) -> None:
    A = jax.numpy.asarray(matrix("real", N))
    f = jax.jit(lambda key: tk.xtrace(A, M, rng=key).value)
    assert float(f(jax.random.PRNGKey(3))) == pytest.approx(float(f(jax.random.key(3))), rel=1e-9)


def test_operators_of_callables_compile(jax: Any) -> None:
    """A product may be any traceable function of what the jitted function is given."""
    M_ = jax.numpy.asarray(matrix("psd", N))

    @jax.jit
    def f(scale: Any, key: Any) -> Any:
        A = tk.LinearOperator((N, N), lambda X: scale * (M_ @ X), dtype=M_.dtype, xp=jax.numpy)
        return tk.xnystrace(A, M, rng=key)

    key = jax.random.key(0)
    doubled, single = f(2.0, key), f(1.0, key)
    assert float(doubled.value) == pytest.approx(2 * float(single.value), rel=1e-12)


@pytest.mark.parametrize("estimator", [tk.exact_trace, *STOCHASTIC], ids=lambda f: f.__name__)
def test_exact_budgets_compile(jax: Any, estimator: Any) -> None:
    A = matrix("psd", 6)
    call = estimator if estimator is tk.exact_trace else partial(estimator, num_matvecs=6)
    more = {} if estimator is tk.exact_trace else {"rng": jax.random.key(0)}
    estimate = jax.jit(lambda A: call(A, **more))(jax.numpy.asarray(A))
    assert float(estimate.value) == pytest.approx(np.trace(A), rel=1e-13)
    assert float(estimate.standard_error) == 0


@estimators
def test_not_a_number_passes_through_compiled_code(jax: Any, estimator: Any) -> None:
    A = jax.numpy.asarray(matrix("psd", N)).at[0, 0].set(np.nan)
    estimate = jax.jit(lambda A, key: estimator(A, M, rng=key))(A, jax.random.key(0))
    assert np.isnan(float(estimate.value))


def test_indefinite_is_not_a_number_in_compiled_xnystrace(jax: Any) -> None:
    """What eager code refuses must not become a plausible number."""
    A = jax.numpy.asarray(-matrix("psd", N))
    estimate = jax.jit(lambda A, key: tk.xnystrace(A, M, rng=key))(A, jax.random.key(0))
    assert np.isnan(float(estimate.value))


@estimators
def test_batched_over_keys(jax: Any, estimator: Any) -> None:
    A = jax.numpy.asarray(matrix(fits(estimator, "real"), N))
    keys = jax.random.split(jax.random.key(0), 3)
    f = lambda key: estimator(A, M, rng=key)  # noqa: E731
    batched, single = jax.jit(jax.vmap(f))(keys), jax.jit(f)
    assert batched.value.shape == batched.standard_error.shape == (3,)
    assert batched.num_matvecs == M
    for i, key in enumerate(keys):
        one = single(key)
        assert float(batched.value[i]) == pytest.approx(float(one.value), rel=1e-8)
        assert float(batched.standard_error[i]) == pytest.approx(
            float(one.standard_error), rel=1e-6
        )


@estimators
def test_batched_over_operators(jax: Any, estimator: Any) -> None:
    stack = np.stack([matrix(fits(estimator, "real"), N, seed=s) for s in range(3)])
    key = jax.random.key(0)
    f = lambda A: estimator(A, M, rng=key).value  # noqa: E731
    batched, single = jax.jit(jax.vmap(f))(jax.numpy.asarray(stack)), jax.jit(f)
    for A, value in zip(stack, batched, strict=True):
        assert float(value) == pytest.approx(float(single(A)), rel=1e-8)


def direction(estimator: Any) -> np.ndarray:
    """A perturbation that keeps the operator what the estimator needs."""
    D = matrix("psd" if estimator is tk.xnystrace else "real", N, seed=8)
    return D / np.linalg.norm(D)


def difference(f: Any, A: np.ndarray, D: np.ndarray) -> float:
    """Fourth-order central difference of f along D; good to about 1e-10."""
    h = 1e-3
    return (8 * (f(A + h * D) - f(A - h * D)) - (f(A + 2 * h * D) - f(A - 2 * h * D))) / (12 * h)


def test_forward_derivatives_are_those_of_finite_differences(jax: Any) -> None:
    A, D, key = matrix("real", N), direction(tk.hutchinson), jax.random.key(2)
    f = jax.jit(lambda A: tk.hutchinson(A, M, rng=key).value)
    expected = difference(lambda A: float(f(A)), A, D)
    assert float(jax.jvp(f, (A,), (D,))[1]) == pytest.approx(expected, rel=1e-6)


def test_gradients_of_gram_operators(jax: Any, torch: Any) -> None:
    L = matrix("real", N)[:, : N - 2]
    D = direction(tk.hutchinson)[:, : N - 2]
    for estimator in STOCHASTIC:
        Lt = torch.tensor(L, requires_grad=True)
        (gradient,) = torch.autograd.grad(estimator(tk.gram(Lt), M, rng=2).value, Lt)
        expected = difference(lambda L, f=estimator: float(f(tk.gram(L), M, rng=2).value), L, D)
        assert float(np.sum(gradient.numpy() * D)) == pytest.approx(expected, rel=1e-6), estimator


def test_gradient_of_the_exact_trace(jax: Any, torch: Any) -> None:
    A = matrix("real", N)
    gradient = jax.grad(lambda A: tk.exact_trace(A).value)(jax.numpy.asarray(A))
    np.testing.assert_array_equal(np.asarray(gradient), np.eye(N))
    At = torch.tensor(A, requires_grad=True)
    (gradient,) = torch.autograd.grad(tk.exact_trace(At).value, At)
    np.testing.assert_array_equal(gradient.numpy(), np.eye(N))


@estimators
def test_gradients_do_not_leak_into_inference(torch: Any, estimator: Any) -> None:
    A = torch.tensor(matrix(fits(estimator, "real"), N))
    assert not estimator(A, M, rng=0).value.requires_grad
    with torch.inference_mode():
        value = float(estimator(A, M, rng=0))
    assert value == pytest.approx(float(estimator(A, M, rng=0)), rel=1e-12)


def test_generators_of_torch(torch: Any) -> None:
    A = torch.tensor(matrix("real", N))
    first, same, other = (
        float(tk.xtrace(A, M, rng=torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)
    )
    assert first == same != other
    generator = torch.Generator().manual_seed(0)
    assert float(tk.xtrace(A, M, rng=generator)) == first
    assert float(tk.xtrace(A, M, rng=generator)) != first


@pytest.mark.parametrize("estimator", [tk.hutchinson, tk.xtrace], ids=lambda f: f.__name__)
def test_a_tolerance_under_jit_is_refused(jax: Any, estimator: Any) -> None:
    A = jax.numpy.asarray(matrix("real", N))
    with pytest.raises(TypeError, match="jit"):
        jax.jit(lambda A, key: estimator(A, M, rng=key, rtol=0.1).value)(A, jax.random.key(0))


def test_bad_input_is_refused_while_tracing(jax: Any) -> None:
    A, key = jax.numpy.ones((3, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match="square"):
        jax.jit(lambda A, key: tk.hutchinson(A, 2, rng=key).value)(A, key)
    with pytest.raises((TypeError, ValueError), match="num_matvecs"):
        jax.jit(lambda m, key: tk.hutchinson(jax.numpy.eye(3), m, rng=key).value)(2, key)


def test_estimates_are_pytrees(jax: Any, torch: Any) -> None:
    (lib,) = installed("jax")
    estimate = jax.jit(lambda A: tk.xtrace(A, M, rng=0))(lib.array(matrix("real", N)))
    halved = jax.tree.map(lambda x: x / 2, estimate)
    assert isinstance(halved, tk.Estimate)
    assert float(halved.value) == float(estimate.value) / 2
    assert (halved.num_matvecs, halved.method) == (estimate.num_matvecs, "xtrace")
    leaves, tree = torch.utils._pytree.tree_flatten(
        tk.xtrace(torch.tensor(matrix("real", N)), M, rng=0)
    )
    assert any(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = torch.utils._pytree.tree_unflatten(leaves, tree)
    assert isinstance(again, tk.Estimate)
    assert again.num_matvecs == M


PROMOTED = (
    tk.hutchpp, tk.xtrace, tk.xnystrace, tk.effective_rank, tk.diagonal, tk.xdiag,
    tk.xnysdiag, lambda A, m, rng: tk.alignment(A, A @ A, m, rng=rng),
)  # fmt: skip


@pytest.mark.parametrize("call", PROMOTED, ids=lambda f: f.__name__)
def test_no_rank_is_promoted(jax: Any, call: Any) -> None:
    """Code bases that forbid it can use the library."""
    A, key = jax.numpy.asarray(matrix("psd", N) + np.eye(N)), jax.random.key(0)
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(lambda A: call(A, M, rng=key).value, A)
