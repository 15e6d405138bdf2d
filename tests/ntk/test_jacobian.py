"""Laws of Jacobians and kernels of networks: in PyTorch, in JAX, and by hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import networks
import numpy as np
import pytest
from conftest import Library, installed
from networks import at_once, close, closed, columns, compiled, dense, jacobian, numpy, reference

import tracekit as tk
import tracekit_ntk as tkn
from examples import by_hand

Array = Any
LIBRARIES = ("torch", "jax")
every_library = pytest.mark.parametrize("library", LIBRARIES)
every_network = pytest.mark.parametrize("name", networks.NAMES)


# The same Jacobian, whoever gives it --------------------------------------------------------------


@every_library
@every_network
def test_both_products_are_those_of_the_library(name: str, library: str) -> None:
    J = reference(name, library)
    if library == "jax":
        forwards, backwards, _ = compiled(name)
    else:
        forwards, backwards = dense(jacobian(name, library)), dense(jacobian(name, library).H).T
    close(forwards, J)
    close(backwards, J)


@every_network
def test_the_same_network_has_the_same_kernel_everywhere(name: str) -> None:
    """As an operator, and its trace to ten digits."""
    kernels = {library: reference(name, library) for library in LIBRARIES}
    kernels = {library: J @ J.T for library, J in kernels.items()}
    traces = [float(tk.exact_trace(tk.gram(jacobian(name, "torch"))))]
    traces += [np.sum(product**2) for product in compiled(name)[:2]]
    if name in networks.WITH_PAIR:
        net = networks.network(name)
        K = tk.gram(net.pair(net.params, net.x))  # type: ignore[misc]
        kernels["pair"] = dense(K)
        traces.append(float(tk.exact_trace(K)))
    np.testing.assert_allclose(traces, traces[0], rtol=1e-10)
    for K in kernels.values():
        close(K, kernels["torch"])


@pytest.mark.parametrize("name", networks.WITH_PAIR)
@pytest.mark.parametrize("where", ["numpy", "strict:device1", "torch", "jax-jit", "cupy"])
def test_pairs_by_hand_run_on_every_library(name: str, where: str) -> None:
    net, X = networks.network(name), np.eye(J_by_hand(name).shape[1])[:, ::7]

    for lib in installed(where):

        def block(params: Any, x: Array, lib: Library = lib) -> Array:
            return net.pair(params, x) @ lib.array(X)  # type: ignore[misc]

        here = networks.each(lib.array, net.params), lib.array(net.x)
        close(lib.numpy(lib.call(block, *here)), J_by_hand(name) @ X)
        if where != "jax-jit":
            J = net.pair(*here)  # type: ignore[misc]
            assert tk.testing.adjoint_test(J) < 1e-12
            trace = tk.exact_trace(tk.gram(J))
            assert float(trace) == pytest.approx(np.sum(J_by_hand(name) ** 2), rel=1e-12)
            assert lib.at_home(trace.value)


@cache
def J_by_hand(name: str) -> np.ndarray:
    net = networks.network(name)
    return dense(net.pair(net.params, net.x))  # type: ignore[misc]


@every_library
def test_a_jacobian_crosses_over_by_dlpack(library: str) -> None:
    J = jacobian("gru", library)
    there = by_hand.bridged(J, np)
    X = np.random.default_rng(0).standard_normal((J.shape[1], 3))
    X.flags.writeable = False
    close(there @ X, numpy(J @ J.xp.asarray(X.copy())))
    assert isinstance(there.H @ np.ones((J.shape[0], 2)), np.ndarray)
    assert float(tk.exact_trace(there @ there.H)) == pytest.approx(np.sum(dense(J) ** 2), rel=1e-10)


def test_the_example_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    by_hand.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    for *_, low, to, high, exact in rows:
        assert to == "to"
        assert float(low) < float(exact) < float(high)


# Kernels ------------------------------------------------------------------------------------------


@every_library
def test_kernels_are_products_of_jacobians(library: str) -> None:
    f, params = closed("mlp", library)
    J = reference("mlp", library)
    K = tkn.ntk(f, params)
    assert K.dims == (6, 2)
    close(dense(K), J @ J.T)
    close(numpy(K.quad(K.xp.eye(12, dtype=K.dtype))), np.sum(J * J, axis=1))  # type: ignore[misc]
    G = tkn.parameter_gram(f, params)
    assert G.shape == (54, 54)
    X = np.eye(54)[:, :12]
    close(numpy(G @ G.xp.asarray(X)), J.T @ (J @ X))
    for A in (K, G):
        assert float(tk.exact_trace(A)) == pytest.approx(np.sum(J * J), rel=1e-12)


@every_library
def test_cross_kernels(library: str) -> None:
    """Between outputs on other inputs, of another function, at other parameters."""
    f, params, x = networks.network("mlp").on(library)
    one, two = (lambda p: f(p, x[:2])), (lambda p: f(p, x[2:])[..., 0])

    def made(params: Any) -> Any:
        moved = networks.each(lambda p: p + 0.1, params)
        C = tkn.cross_ntk(one, two, params)
        assert C.shape == (4, 4)
        apart = tkn.cross_ntk(one, two, params, moved)
        parts = [tkn.jacobian(g, at).H for g, at in ((one, params), (two, params), (two, moved))]
        return [columns(A) for A in (C, C.H, apart, *parts)]

    C, C_H, apart, A, B, B_moved = at_once(library, made, params)
    close(C, A.T @ B)
    close(C_H, B.T @ A)
    close(apart, A.T @ B_moved)
    trace = tk.exact_trace(tkn.cross_ntk(one, one, params))
    assert float(trace) == pytest.approx(np.sum(A * A), rel=1e-12)


@every_library
def test_parameters_own_jacobians_are_the_columns(library: str) -> None:
    f, params = closed("attention", library)
    J = reference("attention", library)
    parts = tkn.per_parameter(f, params)
    assert set(parts) == set(params)
    assert set(parts["norm"]) == {"scale", "shift"}
    blocks = [parts["bias"], *parts["norm"].values(), parts["out"], parts["qkv"]]
    close(np.concatenate([dense(L.H) for L in blocks[:3]], axis=0), J[:, :12].T)
    close(dense(blocks[2]), J[:, 8:12])
    traces = [float(tk.one_sided(L, 24)) for L in blocks]
    assert sum(traces) == pytest.approx(np.sum(J * J), rel=1e-12)


# Which parameters, which outputs ------------------------------------------------------------------


def test_a_subset_of_the_parameters_freezes_the_rest() -> None:
    """As for adapters of low rank on a network that stays as it is."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    f, params = tkn.functional(module.double())
    x = torch.asarray(networks.normal(5, 3))
    some = {name: params[name] for name in ("2.bias", "0.weight")}
    J = dense(tkn.jacobian(lambda p: f(p, x), params))  # 0.weight, 0.bias, 2.weight, 2.bias
    close(dense(tkn.jacobian(lambda p: f(p, x), some)), J[:, [24, 25, *range(12)]])

    def adapted(p: Any) -> Array:
        return f({"0.weight": params["0.weight"] + p["a"] @ p["b"]}, x)

    low = {"a": torch.zeros(4, 1).double(), "b": torch.ones(1, 3).double()}
    found = dense(tkn.jacobian(adapted, low))
    close(found[:, :4], J[:, :12].reshape(10, 4, 3).sum(axis=2))
    np.testing.assert_array_equal(found[:, 4:], 0)


@every_library
def test_parameters_of_a_tree_are_chosen_by_their_keys(library: str) -> None:
    f, params, x = networks.network("attention").on(library)
    J = reference("attention", library)  # bias, norm.scale, norm.shift, out, qkv
    g, some = tkn.functional(f, params, trainable=["norm.*", "bias"])
    assert list(some) == ["bias", "norm.scale", "norm.shift"]
    close(numpy(g(some, x)), numpy(f(params, x)))
    close(dense(tkn.jacobian(lambda p: g(p, x), some).H), J[:, :12].T)
    named = {**params, "name": "attention", "steps": 3}
    g, every = tkn.functional(lambda p, x: f({**p}, x), named)
    assert "norm.shift" in every
    assert not {"name", "steps"} & set(every)
    with pytest.raises(KeyError, match="no parameter 'scale'"):
        g({"scale": some["bias"]}, x)
    with pytest.raises(ValueError, match=r"like 'head\.\*'; there are bias, norm\.scale"):
        tkn.functional(f, params, trainable="head.*")


def test_outputs_of_any_shape() -> None:
    f, params = closed("mlp", "torch")
    J = reference("mlp", "torch")
    for shape in ((), (12,), (2, 3, 1, 2)):

        def shaped(p: Any, shape: tuple[int, ...] = shape) -> Array:
            return f(p).reshape(shape) if shape else f(p)[1, 1]

        K, rows = tkn.ntk(shaped, params), J if shape else J[3:4]
        assert K.dims == (shape or None)
        assert float(tk.exact_trace(K)) == pytest.approx(np.sum(rows**2), rel=1e-12)


@every_library
def test_any_tree_of_parameters(library: str) -> None:
    """A bare array, a deep tree, arrays of no entries and of no dimensions."""
    _, params, _ = networks.network("mlp").on(library)
    xp = jacobian("mlp", library).xp
    w, x = params[0][0], xp.asarray(networks.normal(6, 3))
    assert tkn.jacobian(lambda w: x @ w, w).shape == (30, 15)
    deep = {"a": [w, {"b": (xp.asarray(2.0, dtype=w.dtype), xp.zeros((0, 3), dtype=w.dtype))}]}
    J = tkn.jacobian(lambda p: (x @ p["a"][0] * p["a"][1]["b"][0])[0], deep)
    assert J.shape == (5, 16)
    expected = np.concatenate([2 * np.kron(numpy(x)[:1], np.eye(5)), numpy(x[:1] @ w).T], axis=1)
    close(dense(J), expected)


@pytest.mark.parametrize(
    ("library", "dtype", "rtol"),
    [("torch", "float32", 1e-5), ("torch", "bfloat16", 0.05), ("torch", "float16", 0.01),
     ("jax", "bfloat16", 0.05)],
)  # fmt: skip
def test_precisions(library: str, dtype: str, rtol: float) -> None:
    """Half precisions are handed on in single precision."""
    f, params, x = networks.network("mlp").on(library, dtype)
    K = tkn.ntk(lambda p: f(p, x), params)
    assert str(K.dtype).endswith("float32")
    for A in (K, tk.gram(K.factor.H)):  # type: ignore[union-attr]
        trace = tk.exact_trace(A)
        assert trace.value.dtype == K.dtype
        assert float(trace) == pytest.approx(np.sum(reference("mlp", library) ** 2), rel=rtol)


@every_library
def test_mixed_precisions_promote(library: str) -> None:
    f, params, x = networks.network("mlp").on(library)
    xp = jacobian("mlp", library).xp
    mixed = [(params[0][0], xp.asarray(params[0][1], dtype=xp.float32)), *params[1:]]
    J = tkn.jacobian(lambda p: f(p, x), mixed)
    assert J.dtype == params[0][0].dtype
    close(dense(J), reference("mlp", library), 1e-5)
    close(dense(J.H), reference("mlp", library).T, 1e-5)


def complex_numbers(*shape: int) -> np.ndarray:
    return networks.normal(*shape) + 1j * networks.normal(*shape, seed=1)


@every_library
def test_complex_networks(library: str) -> None:
    """Holomorphic, and real parameters with complex outputs; their products are adjoint."""
    jacobian("mlp", library)  # skips where the library is missing
    xp = jacobian("mlp", library).xp
    x, z = xp.asarray(complex_numbers(4, 3)), xp.asarray(complex_numbers(3, 2))
    for w in (z, xp.real(z)):

        def products(w: Array) -> Any:
            J = tkn.jacobian(lambda w: xp.tanh(x @ (w + 0j)), w)
            assert J.dtype == z.dtype
            return columns(J), columns(J.H), tk.hutchinson(J @ J.H, 3, rng=0).value

        forth, back, trace = at_once(library, products, w)
        slope = 1 - np.tanh(numpy(x) @ numpy(w)) ** 2
        expected = np.einsum("no,ni,op->noip", slope, numpy(x), np.eye(2)).reshape(8, 6)
        close(forth, expected)
        close(back, expected.conj().T)
        assert abs(complex(trace).imag) < 1e-12 * abs(complex(trace))


@every_library
def test_functions_that_are_not_holomorphic_are_refused(library: str) -> None:
    xp = jacobian("mlp", library).xp
    z = xp.asarray(complex_numbers(3, 2))
    for f in (
        lambda z: xp.conj(z),
        lambda z: xp.abs(z),
        lambda z: xp.stack([xp.conj(z), -xp.conj(z)]),
    ):
        with pytest.raises(ValueError, match="not holomorphic"):
            tkn.jacobian(f, z)


# Compiled, mapped, differentiated -----------------------------------------------------------------


def test_kernels_inside_compiled_mapped_and_differentiated_code() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    f, params = closed("mlp", "jax")

    def trace(c: Any) -> Any:
        scaled = jax.tree.map(lambda p: c * p, params)
        K = tkn.ntk(f, scaled, chunk_size=4)
        return tk.hutchinson(K, 6, rng=jax.random.key(0)).value

    eager = float(trace(1.0))
    found, slope = jax.jit(jax.value_and_grad(trace))(1.0)
    assert float(found) == pytest.approx(eager, rel=1e-12)
    both = jax.jit(jax.vmap(trace))(jax.numpy.asarray([1.0, 1.0 + 1e-6]))
    assert float(both[0]) == pytest.approx(eager, rel=1e-12)
    assert float(both[1] - both[0]) / 1e-6 == pytest.approx(float(slope), rel=1e-4)


def test_functions_that_look_at_values_are_not_compiled() -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    f, params = closed("mlp", "jax")

    def g(p: Any) -> Array:
        return f(p) * (2.0 if float(f(params)[0, 0]) < 1e9 and bool(p[0][0][0, 0] < 1e9) else 1.0)

    close(dense(tkn.jacobian(g, params).H), 2 * reference("mlp", "jax").T)


def test_samples_that_change_afterwards_leave_operators_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    x, w = torch.randn(4, 5).double(), torch.randn(5, 3).double()
    f = lambda w, x: torch.tanh(x @ w)  # noqa: E731
    loss = tkn.losses.squared_error
    trace = float(tkn.ntk_trace(f, w, x))
    made = [tkn.ntk(f, w, x), tkn.sample_ntk(f, w, x), tkn.ggn(f, w, x, loss)]
    x.add_(1)
    for A in made:
        columns = A @ torch.eye(A.shape[0]).double()
        torch.testing.assert_close(columns, columns.T)
        assert float(columns.trace()) == pytest.approx(trace, rel=1e-12)
        assert float(tk.exact_trace(A)) == pytest.approx(trace, rel=1e-12)


def test_samples_of_two_batches_must_not_mix_behind_a_closed_gate() -> None:
    torch = pytest.importorskip("torch")
    params = {"W": torch.randn(5, 3), "g": torch.zeros(3)}
    x = torch.randn(6, 5)

    def f(p: Any, x: Any) -> Any:
        return torch.tanh(x @ p["W"] + p["g"] * x.mean())

    for call in (
        lambda: tkn.kernel(f, params, x, x[:3]),
        lambda: tkn.ntk_trace(f, params, batches=[x[:4], x[4:]]),
        lambda: tkn.ntk_norm(f, params, batches=[x[:4], x[4:]]),
        lambda: tkn.project(f, params, x, 8, rng=0),
        lambda: tkn.projected_kernel(f, params, x, dim=16, rng=0),
        lambda: tkn.state_kernel(lambda p, h, x: f(p, x), params, x[None], torch.zeros(1, 3)),
    ):
        with pytest.raises(ValueError, match="samples are coupled"):
            call()


@pytest.mark.filterwarnings("ignore:.*differentiated apart:UserWarning")
def test_products_of_parameters_without_axes() -> None:
    torch = pytest.importorskip("torch")
    params = {"s": torch.tensor(0.5), "t": torch.tensor(2.0)}
    trace = tkn.ntk_trace(lambda p, x: x * (p["s"] * p["t"]), params, torch.ones(3, 2))
    assert float(trace) == pytest.approx(6 * (0.25 + 4))
