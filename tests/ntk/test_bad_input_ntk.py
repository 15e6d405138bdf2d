"""What has no Jacobian is refused with one clear sentence, in both frameworks."""

from __future__ import annotations

import re
from typing import Any

import networks
import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn

Array = Any
every_library = pytest.mark.parametrize("library", ["torch", "jax"])


def mlp(library: str) -> tuple[Any, Any, Any, Any]:
    """A function, its parameters, its inputs, and the library."""
    f, params, x = networks.network("mlp").on(library)
    if library == "torch":
        import torch as xp
    else:
        import jax.numpy as xp
    return f, params, x, xp


def refused(kind: type[Exception], match: str, call: Any) -> None:
    """One sentence, which says what to do after a semicolon if it says so at all."""
    with pytest.raises(kind, match=match) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert not message.endswith(".")
    assert len(re.findall(r"[a-z]\. [A-Z]", message)) == 0


@every_library
def test_outputs_that_are_not_one_array(library: str) -> None:
    f, params, x, _ = mlp(library)
    for wrap in (lambda y: (y, y), lambda y: [y], lambda y: {"logits": y}):
        refused(TypeError, "not one array", lambda: tkn.ntk(lambda p: wrap(f(p, x)), params))  # noqa: B023
        refused(
            TypeError, "not one array",
            lambda: tkn.sample_ntk(lambda p, x: wrap(f(p, x)), params, x),  # noqa: B023
        )  # fmt: skip
    refused(TypeError, "not one array", lambda: tkn.jacobian(lambda p: None, params))


def test_modules_that_return_tuples() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    f, params = tkn.functional(torch.nn.GRU(2, 3))
    refused(
        TypeError, "tuple of 2, not one array",
        lambda: tkn.ntk(lambda p: f(p, torch.ones(4, 2)), params),
    )  # fmt: skip


@every_library
def test_empty_trees(library: str) -> None:
    f, _, _, _ = mlp(library)
    for nothing in ({}, [], (), None, {"a": []}):
        refused(TypeError, "holds no PyTorch or JAX array", lambda: tkn.ntk(f, nothing))  # noqa: B023


@every_library
def test_parameters_that_are_no_floating_point_numbers(library: str) -> None:
    f, params, x, xp = mlp(library)
    steps = xp.asarray(np.arange(3))
    for make in (tkn.jacobian, tkn.ntk, tkn.parameter_gram, tkn.per_parameter):
        refused(
            TypeError, "steps.*dtype.*int64.*keep it out of the tree",
            lambda: make(lambda p: f(p["net"], x), {"net": params, "steps": steps}),  # noqa: B023
        )  # fmt: skip
    flags = xp.asarray(np.array([True]))
    refused(TypeError, "dtype.*bool", lambda: tkn.sample_ntk(f, [flags], x))
    refused(
        TypeError, r"name.* is a str, not an array",
        lambda: tkn.ntk(lambda p: f(p["net"], x), {"net": params, "name": "mlp"}),
    )  # fmt: skip
    others = (2.0,) if library == "jax" else (2.0, np.ones(2))  # JAX reads NumPy arrays too
    for scale in others:
        refused(
            TypeError,
            r"\[1\].* is a (float|ndarray), not an array of the same library",
            lambda: tkn.ntk(lambda p: f(p[0], x), [params, scale]),  # noqa: B023
        )


@every_library
def test_real_and_complex_parameters_together(library: str) -> None:
    _, params, _, _ = mlp(library)
    w, _ = params[0]
    refused(TypeError, "real and complex", lambda: tkn.ntk(lambda p: p[0] + p[1], [w, w * 1j]))


def test_parameters_of_no_library_that_differentiates() -> None:
    for params in ({"w": [1.0, 2.0]}, 3.0, "w"):
        refused(TypeError, "jacobian_from_pair", lambda: tkn.ntk(lambda p: p, params))  # noqa: B023
    refused(TypeError, "jacobian_from_pair", lambda: tkn.ntk(np.tanh, np.ones(3)))
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = torch.nn.Linear(2, 2)
    refused(TypeError, "functional", lambda: tkn.ntk(lambda p: p, module))
    refused(TypeError, "torch.nn.Module", lambda: tkn.functional(dict(module.named_parameters())))
    f, params = tkn.functional(module)
    refused(KeyError, "no parameter 'weights'", lambda: f({"weights": params["weight"]}, None))


@every_library
def test_functions_that_return_integers(library: str) -> None:
    f, params, x, _ = mlp(library)
    for integer in (lambda y: y.argmax(-1), lambda y: y > 0):
        refused(TypeError, "no derivative", lambda: tkn.ntk(lambda p: integer(f(p, x)), params))  # noqa: B023
        refused(
            TypeError, "no derivative",
            lambda: tkn.sample_ntk(lambda p, x: integer(f(p, x)), params, x),  # noqa: B023
        )  # fmt: skip


@every_library
def test_empty_outputs(library: str) -> None:
    f, params, x, _ = mlp(library)
    refused(ValueError, "empty array of shape", lambda: tkn.ntk(lambda p: f(p, x)[:0], params))


@every_library
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_forward_passes_that_fail(library: str, value: float) -> None:
    f, params, x, _ = mlp(library)
    broken = [(params[0][0] * value, params[0][1]), *params[1:]]
    x = x * value if value == np.inf else x
    for call in (
        lambda: tkn.ntk(lambda p: f(p, x), broken),
        lambda: tkn.sample_ntk(f, broken, x),
        lambda: tkn.ntk(f, broken, batches=[x]),
        lambda: tkn.per_parameter(lambda p: f(p, x), broken),
    ):
        refused(ValueError, "NaN or infinity", call)


@every_library
def test_outputs_that_do_not_depend_on_the_parameters(library: str) -> None:
    """A warning, and a kernel of zero."""
    f, params, x, _ = mlp(library)
    constant = f(params, x)
    for make in (
        lambda: tkn.ntk(lambda p: constant, params),
        lambda: tkn.sample_ntk(lambda p, x: x * 2.0, params, x),
        lambda: tkn.ntk(lambda p, x: x * 2.0, params, batches=[x]),
    ):
        with pytest.warns(UserWarning, match=r"does not depend on the parameters.* trace are 0"):
            assert vanishes(make)


def vanishes(make: Any) -> bool:
    K = make()
    columns = K @ K.xp.ones((K.shape[0], 2), dtype=K.dtype)
    return float(tk.exact_trace(K)) == 0.0 and not np.any(np.asarray(columns))


def test_parameters_that_f_does_not_read() -> None:
    """Those of the module itself, instead of the ones that are handed in."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = torch.nn.Linear(3, 2)
    params = dict(module.named_parameters())
    with pytest.warns(UserWarning, match="does not depend"):
        K = tkn.ntk(lambda p: module(torch.ones(4, 3)), params)
    assert float(tk.exact_trace(K)) == 0.0
    assert module.weight.grad is None


def test_stopped_gradients_in_jax() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    f, params, x, _ = mlp("jax")
    with pytest.warns(UserWarning, match="does not depend"):
        tkn.jacobian(lambda p: jax.lax.stop_gradient(f(p, x)), params)


@every_library
def test_some_parameters_may_go_unread(library: str) -> None:
    f, params, x, xp = mlp(library)
    K = tkn.ntk(lambda p: f(p["net"], x), {"net": params, "unread": xp.ones(3)})
    J_H = np.asarray(K.factor.H @ K.xp.ones((12, 1), dtype=K.dtype))  # type: ignore[union-attr]
    assert J_H.shape == (57, 1)
    np.testing.assert_array_equal(J_H[-3:], 0)
    assert np.any(J_H[:-3])


@every_library
def test_cross_kernels_of_different_trees(library: str) -> None:
    f, params, x, _ = mlp(library)
    g = lambda p: f(p, x)  # noqa: E731
    others = (
        (params[:2], "in one of them alone"),
        ([(w, b[:1]) for w, b in params], "in one of them alone"),
        ({"net": params}, "in one of them alone"),
        ([params[0][0]], "in one of them alone"),
    )
    for other, match in others:
        refused(ValueError, match, lambda: tkn.cross_ntk(g, g, params, other))  # noqa: B023


def test_cross_kernels_of_two_libraries() -> None:
    one, two = mlp("torch"), mlp("jax")
    with pytest.raises((TypeError, ValueError), match=r"PyTorch|JAX|library|torch"):
        tkn.cross_ntk(lambda p: one[0](p, one[2]), lambda p: two[0](p, two[2]), one[1], two[1])


@every_library
def test_inputs_whose_samples_are_not_those_of_the_output(library: str) -> None:
    f, params, x, _ = mlp(library)
    for g, inputs in (
        (lambda p, x: f(p, x)[:4], x),
        (lambda p, x: f(p, x).T, x),
        (lambda p, x: f(p, x)[0, 0], x),
        (lambda p, x: f(p, x["a"]), {"a": x, "b": x[:2]}),
    ):
        refused(
            ValueError, "are incompatible; axis 0 of both must run over",
            lambda: tkn.sample_ntk(g, params, inputs),  # noqa: B023
        )  # fmt: skip


@every_library
def test_unusable_inputs_of_samples(library: str) -> None:
    f, params, x, xp = mlp(library)
    for inputs in (xp.asarray(1.0), None, []):
        refused(
            ValueError, "axis 0",
            lambda: tkn.sample_ntk(lambda p, _: f(p, x), params, inputs),  # noqa: B023
        )  # fmt: skip


def test_inputs_that_are_no_arrays() -> None:
    f, params, x, _ = mlp("jax")
    for wrong in ("x", (part for part in [x]), object()):
        for call in (tkn.ntk_trace, tkn.kernel, tkn.sample_ntk):
            refused(TypeError, "not an array or a tree", lambda: call(f, params, wrong))  # noqa: B023
    refused(
        TypeError, "`implementation` must be a function, got 'jacobian'",
        lambda: tkn.kernel(f, params, x, implementation="jacobian"),
    )  # fmt: skip


@every_library
def test_batches_that_cannot_be_gone_through_again(library: str) -> None:
    f, params, x, _ = mlp(library)
    for once in ((b for b in [x]), iter([x])):
        refused(ValueError, "only once", lambda: tkn.jacobian(f, params, batches=once))  # noqa: B023
    refused(ValueError, "batches is empty", lambda: tkn.jacobian(f, params, batches=[]))
    refused(TypeError, "not iterable|batches", lambda: tkn.jacobian(f, params, batches=5))


@every_library
def test_chunks_of_no_columns(library: str) -> None:
    f, params, x, _ = mlp(library)
    for size in (0, -1, 2.5, "4"):
        for make in (
            lambda: tkn.ntk(lambda p: f(p, x), params, chunk_size=size),  # noqa: B023
            lambda: tkn.sample_ntk(f, params, x, chunk_size=size),  # noqa: B023
            lambda: tkn.jacobian(f, params, batches=[x], chunk_size=size),  # noqa: B023
            lambda: tkn.jacobian_from_pair(np.asarray, np.asarray, (3, 3), chunk_size=size),  # noqa: B023
        ):
            refused(ValueError, "`chunk_size` must be a positive integer", make)


def test_pairs_that_are_none() -> None:
    refused(
        TypeError, "pushforward is a int", lambda: tkn.jacobian_from_pair(3, np.asarray, (3, 3))
    )
    refused(
        TypeError,
        "pullback is a NoneType",
        lambda: tkn.jacobian_from_pair(np.asarray, None, (3, 3)),
    )
    wrong = tkn.jacobian_from_pair(lambda X: X[:2], lambda U: U, (3, 3))
    with pytest.raises(ValueError, match="shape"):
        tk.exact_trace(wrong)


def test_parameters_and_inputs_in_parts(mesh: Any) -> None:
    torch = pytest.importorskip("torch")
    from torch.distributed.tensor import Shard, distribute_tensor

    def f(w: Any, x: Any) -> Any:
        return torch.tanh(x @ w)

    w, x = torch.ones(3, 2), torch.ones(4, 3)
    w_parts, x_parts = (distribute_tensor(t, mesh, [Shard(0)]) for t in (w, x))
    of_parameters = (tkn.jacobian, tkn.ntk, tkn.parameter_gram, tkn.per_parameter)
    of_samples = (
        tkn.kernel, tkn.ntk_trace, tkn.ntk_diagonal, tkn.ntk_norm, tkn.sample_ntk, tkn.ntk,
        tkn.factored_ntk, tkn.explain,
    )  # fmt: skip
    calls = [lambda of=of: of(lambda p: f(p, x), w_parts) for of in of_parameters]
    for params, inputs in ((w_parts, x_parts), (w_parts, x), (w, x_parts), ({"w": w_parts}, x)):
        calls += [lambda of=of, p=params, i=inputs: of(f, p, i) for of in of_samples]
    calls += [
        lambda: tkn.kernel(f, w, x, x_parts),
        lambda: tkn.kernel(f, w, x_parts, implementation=tkn.jacobian_contraction),
        lambda: tkn.kernel(f, w, x, x_parts, implementation=tkn.ntk_vector_products),
        lambda: tkn.jacobian(f, w, batches=[x, x_parts]),
        lambda: tkn.cross_ntk(lambda p: f(p, x), lambda p: f(p, x), w, w_parts),
        lambda: tkn.difference_basis(lambda p: f(p, x), w_parts, 2),
    ]
    for call in calls:
        refused(TypeError, r"a DTensor .*not supported; pass .*full_tensor\(\)", call)


def test_sharded_modules(mesh: Any) -> None:
    """FSDP2 swaps parameters as it runs, so that a kernel would be 0."""
    torch = pytest.importorskip("torch")
    from torch.distributed.fsdp import fully_shard

    whole = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    part = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    fully_shard(whole, mesh=mesh)
    fully_shard(part[0], mesh=mesh)
    for module in (whole, part):
        refused(TypeError, r"sharded \(FSDP\).*; pass", lambda: tkn.functional(module))  # noqa: B023
        refused(
            TypeError, r"sharded \(FSDP\).*; pass",
            lambda: tkn.track_module(module, tk.Tracker(8, rng=0), torch.ones(4, 3)),  # noqa: B023
        )  # fmt: skip
        refused(
            TypeError, "DTensor",
            lambda: tkn.ntk_trace(
                lambda p, x: torch.func.functional_call(module, p, x),  # noqa: B023
                dict(module.named_parameters()),  # noqa: B023
                torch.ones(4, 3),
            ),
        )  # fmt: skip


def test_gradients_that_do_not_exist() -> None:
    jnp = pytest.importorskip("jax.numpy")
    params, x = {"a": jnp.ones(3), "b": jnp.array([1.0, 0.0, 2.0])}, jnp.ones((2, 3))

    def f(p: Any, x: Array) -> Array:
        return p["a"] * jnp.sqrt(jnp.abs(x * p["b"]))

    for call in (tkn.ntk_trace, tkn.ntk_norm, tkn.kernel, tkn.sample_ntk):
        refused(ValueError, r"gradient by \['b'\] is NaN", lambda: call(f, params, x))  # noqa: B023


def test_while_loops_have_no_pullback() -> None:
    jnp = pytest.importorskip("jax.numpy")
    from jax import lax

    W, x = jnp.eye(3) / 2, jnp.arange(6.0).reshape(2, 3) / 6

    def f(W: Array, x: Array) -> Array:
        return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ W), (0, x))[1]

    K = tkn.ntk(lambda W: f(W, x), W)
    for call in (lambda: tkn.sample_ntk(f, W, x), lambda: K @ jnp.eye(6)):
        refused(NotImplementedError, "runs a while loop", call)
    J = np.asarray(tkn.jacobian(lambda W: f(W, x), W) @ jnp.eye(9))
    np.testing.assert_allclose(tkn.ntk_norm(f, W, x), np.linalg.norm(J @ J.T), rtol=1e-9)


@every_library
def test_operators_of_parameters_without_entries(library: str) -> None:
    xp = pytest.importorskip("torch" if library == "torch" else "jax.numpy")
    params = {"w": xp.ones((3, 2)), "none": xp.ones((0, 2))}
    refused(
        ValueError, "'?none'?.* has no entries",
        lambda: tkn.per_parameter(lambda p: xp.ones((4, 3)) @ p["w"], params),
    )  # fmt: skip
