"""Kernels, traces, diagonals and norms from factors, against Jacobians, in both libraries."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
import pytest

import tracekit as tk
from tracekit_ntk.kernel import (
    explain,
    factored_ntk,
    jacobian_contraction,
    kernel,
    kernel_matrix,
    ntk_diagonal,
    ntk_norm,
    ntk_trace,
    ntk_vector_products,
    structured_derivatives,
)

METHODS = (structured_derivatives, jacobian_contraction, ntk_vector_products)
SHAPE = (2, 3)  # of the output of one sample
Array = Any


class World:
    """One library and a network in it, with a tied layer and two axes of outputs."""

    def __init__(self, name: str) -> None:
        self.lib = pytest.importorskip(name)
        self.xp = self.lib if name == "torch" else self.lib.numpy
        rng = np.random.default_rng(0)
        self.params = {
            "a": self.array(rng.standard_normal((4, 5))),
            "b": self.array(rng.standard_normal((5, 6))),
            "c": self.array(rng.standard_normal(5)),
            "tied": self.array(rng.standard_normal((5, 5))),
        }
        self.x = self.array(rng.standard_normal((5, 4)))
        self.x2 = self.array(rng.standard_normal((3, 4)))
        self.f = self._f  # one function object, so that JAX compiles for it once
        self.known: dict[int, np.ndarray] = {}

    def run(self, calls: Callable[..., Any], *given: Any) -> Any:
        """Calls of the library under test, in JAX one program of them all."""
        return (calls if self.xp is self.lib else self.lib.jit(calls))(*given)

    def array(self, x: Any) -> Array:
        return self.xp.asarray(np.asarray(x))

    def _f(self, p: Any, x: Array) -> Array:
        xp = self.xp
        h = xp.tanh(x @ p["a"] + p["c"])
        h = xp.tanh(xp.tanh(h @ p["tied"]) @ p["tied"].T)
        return (h @ p["b"]).reshape(-1, *SHAPE)

    def jacobian(self, x: Array) -> np.ndarray:
        """(N O, P), parameters in the order of the tree."""
        n = np.prod(SHAPE) * len(x)
        if n not in self.known:
            rev = self.lib.func.jacrev if self.xp is self.lib else self.lib.jacrev
            J = self.run(rev(self.f), self.params, x)
            parts = [np.asarray(J[k]).reshape(n, -1) for k in self.params]
            self.known[n] = np.concatenate(parts, axis=1)
        return self.known[n]


@pytest.fixture(params=["torch", "jax"], scope="module")
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield torch
    torch.set_default_dtype(torch.float32)


def whole(J1: np.ndarray, J2: np.ndarray) -> np.ndarray:
    """The kernel (N1, N2, 2, 3, 2, 3) from Jacobians."""
    K = (J1 @ J2.T).reshape(-1, *SHAPE, len(J2) // 6, *SHAPE)
    return K.transpose(0, 3, 1, 2, 4, 5)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 4, 5])
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_and_chunks_give_the_kernel(
    world: World, method: Callable[..., Array], chunk_size: int | None
) -> None:
    if chunk_size in (1, 2, 5) and world.xp is not world.lib:
        pytest.skip("every chunk size is compiled anew")
    if chunk_size is not None and method is not METHODS[0] and world.xp is not world.lib:
        pytest.skip("every chunk size is compiled anew")
    options = {"implementation": method, "chunk_size": chunk_size}

    def both(params: Any, x: Array, x2: Array) -> tuple[Array, Array]:
        own = kernel_matrix(kernel(world.f, params, x, **options))
        return kernel(world.f, params, x, x2, **options), own

    ours, own = world.run(both, world.params, world.x, world.x2)
    J = world.jacobian(world.x)
    np.testing.assert_allclose(np.asarray(ours), whole(J, world.jacobian(world.x2)), atol=1e-10)
    np.testing.assert_allclose(np.asarray(own), J @ J.T, atol=1e-10)


AXES = [
    ({"trace_axes": 1}, "nmacad->nmcd"),
    ({"trace_axes": -1}, "nmacbc->nmab"),
    ({"trace_axes": (1, 2)}, "nmacac->nm"),
    ({"diagonal_axes": 1}, "nmacad->nmacd"),
    ({"diagonal_axes": (2, 1)}, "nmacac->nmac"),
    ({"trace_axes": 1, "diagonal_axes": 2}, "nmacac->nmc"),
    ({"trace_axes": 2, "diagonal_axes": 1}, "nmacac->nma"),
    ({"diagonal_axes": 0}, "nnacbd->nacbd"),
    ({"trace_axes": 0}, "nnacbd->acbd"),
    ({"trace_axes": (0, 1), "diagonal_axes": 2}, "nnacac->c"),
    ({"trace_axes": (0, 1, 2)}, "nnacac->"),
]


def test_axes_are_summed_or_kept(world: World) -> None:
    J = world.jacobian(world.x)
    eager = world.xp is world.lib
    methods, chunks = (METHODS, (None, 1, 4)) if eager else (METHODS[:1], (None,))
    for method, chunk_size in itertools.product(methods, chunks):
        options = {"implementation": method, "chunk_size": chunk_size}

        def of_all(params: Any, x: Array, options: dict[str, Any] = options) -> list[Array]:
            return [kernel(world.f, params, x, **options, **axes) for axes, _ in AXES]

        found = world.run(of_all, world.params, world.x)
        for (_, spec), ours in zip(AXES, found, strict=True):
            expected = np.einsum(spec, whole(J, J))
            assert tuple(ours.shape) == expected.shape
            np.testing.assert_allclose(np.asarray(ours), expected, atol=1e-9, err_msg=spec)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("as_one", [False, True])
def test_scalars_without_the_kernel(world: World, chunk_size: int | None, as_one: bool) -> None:
    if as_one and chunk_size and world.xp is not world.lib:
        pytest.skip("every chunk size is compiled anew")
    J = world.jacobian(world.x)
    K = J @ J.T
    options = {"chunk_size": chunk_size, "whole": as_one}
    trace, norm, diagonal = world.run(
        lambda *given: [f(world.f, *given, **options) for f in (ntk_trace, ntk_norm, ntk_diagonal)],
        world.params, world.x,
    )  # fmt: skip
    assert float(trace) == pytest.approx(np.trace(K), rel=1e-12)
    assert float(norm) == pytest.approx(np.linalg.norm(K), rel=1e-12)
    assert diagonal.shape == (5, *SHAPE)
    np.testing.assert_allclose(np.asarray(diagonal).ravel(), np.diag(K), atol=1e-10)


def test_parts_of_parameters(world: World) -> None:
    J, at = world.jacobian(world.x), 0
    options = {"per_parameter": True, "chunk_size": 4}
    trace, norm, diagonal = world.run(
        lambda *given: [f(world.f, *given, **options) for f in (ntk_trace, ntk_norm, ntk_diagonal)],
        world.params, world.x,
    )  # fmt: skip
    for name, p in world.params.items():
        part = J[:, at : at + np.prod(p.shape)]
        at += np.prod(p.shape)
        K = part @ part.T
        assert float(trace[name]) == pytest.approx(np.trace(K), rel=1e-12)
        assert float(norm[name]) == pytest.approx(np.linalg.norm(K), rel=1e-12)
        np.testing.assert_allclose(np.asarray(diagonal[name]).ravel(), np.diag(K), atol=1e-10)


@pytest.mark.parametrize("whole_batch", [False, True])
def test_the_operator_from_factors_is_the_kernel(world: World, whole_batch: bool) -> None:
    J = world.jacobian(world.x)

    def uses(params: Any, x: Array, eye: Array) -> tuple[Array, ...]:
        K = factored_ntk(world.f, params, x, whole=whole_batch)
        assert K.dims == (5, *SHAPE)
        exact = K.exact["diagonal"](), K.exact["trace"](), tk.exact_trace(K)
        return K @ eye, K.factor.H @ eye, *exact

    product, adjoint, diagonal, *traces = world.run(
        uses, world.params, world.x, world.array(np.eye(30))
    )
    np.testing.assert_allclose(np.asarray(product), J @ J.T, atol=1e-10)
    np.testing.assert_allclose(np.asarray(adjoint), J.T, atol=1e-11)
    np.testing.assert_allclose(np.asarray(diagonal), np.diag(J @ J.T), atol=1e-10)
    assert [float(trace) for trace in traces] == pytest.approx([np.trace(J @ J.T)] * 2, rel=1e-12)


def test_the_operator_from_factors_has_every_kind_of_use(torch: Any) -> None:
    params = {"e": torch.randn(6, 3), "k": torch.randn(4, 2, 3), "b": torch.randn(5)}

    def f(p: Any, ids: Array) -> Array:
        h = p["e"][ids].transpose(1, 2)[:, :2]
        h = torch.nn.functional.conv1d(torch.cat([h, h], 1), p["k"], groups=2)
        logits = h.flatten(1)[:, :3] @ p["e"].T
        return logits[:, :3] + p["b"][1:4]

    ids = torch.randint(0, 6, (3, 5))
    J = torch.func.jacrev(lambda p: f(p, ids))(params)
    J = torch.cat([J[k].reshape(9, -1) for k in params], 1)
    K = factored_ntk(f, params, ids)
    torch.testing.assert_close(K @ torch.eye(9), J @ J.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        kernel_matrix(kernel(f, params, ids)), J @ J.T, rtol=1e-10, atol=1e-10
    )
    trace = ntk_trace(f, params, ids)
    torch.testing.assert_close(trace, (J * J).sum(), rtol=1e-12, atol=0)


def test_coupled_samples_whole(torch: Any) -> None:
    params = {"a": torch.randn(4, 3)}

    def f(p: Any, x: Array) -> Array:
        h = x @ p["a"]
        return torch.tanh(h - h.mean(0))

    x, x2 = torch.randn(5, 4), torch.randn(3, 4)
    for call in (kernel, ntk_trace, ntk_norm, ntk_diagonal):
        with pytest.raises(ValueError, match="samples are coupled"):
            call(f, params, x)
    J1, J2 = (torch.func.jacrev(lambda p, x=x: f(p, x))(params)["a"] for x in (x, x2))
    K = torch.einsum("naij,mbij->nmab", J1, J2)
    torch.testing.assert_close(kernel(f, params, x, x2, whole=True), K)
    K = torch.einsum("naij,mbij->nmab", J1, J1)
    for chunk_size in (None, 4):
        ours = kernel(f, params, x, whole=True, chunk_size=chunk_size)
        torch.testing.assert_close(ours, K)
    traced = kernel(f, params, x, whole=True, trace_axes=1)
    torch.testing.assert_close(traced, torch.einsum("nmaa->nm", K))
    torch.testing.assert_close(ntk_trace(f, params, x, whole=True), torch.einsum("nnaa->", K))


def test_scalars_are_summed_in_double_precision(torch: Any) -> None:
    params = {"w": torch.ones(1, 7).float()}
    x = torch.linspace(0.5, 1.5, 5000).float()[:, None]
    trace = ntk_trace(lambda p, x: x @ p["w"], params, x)
    assert trace.dtype == torch.float32
    expected = 7 * float((x.double() ** 2).sum())
    assert float(trace) == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e15])
def test_squares_of_a_norm_neither_vanish_nor_overflow(world: World, scale: float) -> None:
    xp = world.xp
    x = xp.asarray(np.sin(np.arange(12.0)).reshape(4, 3).astype("float32"))
    w = xp.asarray(np.cos(np.arange(6.0)).reshape(3, 2).astype("float32"))
    K = np.kron(np.asarray(x, dtype=float) @ np.asarray(x, dtype=float).T, np.eye(2))

    def norms(w: Array, x: Array) -> tuple[Array, list[Array]]:
        parts = ntk_norm(lambda p, x: x @ p[0] * scale, [w, w], x, per_parameter=True)
        return ntk_norm(lambda w, x: x @ w * scale, w, x), parts

    norm, parts = world.run(norms, w, x)
    assert float(norm) == pytest.approx(np.linalg.norm(K) * scale**2, rel=1e-5)
    assert [float(part) for part in parts] == pytest.approx([float(norm), 0])


def test_no_parameter_is_read(world: World) -> None:
    def f(p: Any, x: Array) -> Array:
        return x * 2

    K = kernel(f, world.params, world.x)
    assert tuple(K.shape) == (5, 5, 4, 4)
    assert not np.asarray(K).any()
    assert float(ntk_trace(f, world.params, world.x)) == 0
    assert float(ntk_norm(f, world.params, world.x)) == 0
    assert not np.asarray(ntk_diagonal(f, world.params, world.x)).any()


def test_kernels_stay_in_their_library(world: World) -> None:
    for made in (kernel(world.f, world.params, world.x), ntk_trace(world.f, world.params, world.x)):
        assert array_api_compat.array_namespace(made) is array_api_compat.array_namespace(world.x)


@pytest.mark.parametrize("world", ["jax"], indirect=True)
def test_jax_kernels_are_compiled_and_differentiated(world: World) -> None:
    jax = world.lib

    def norm(p: Any) -> Array:
        return ntk_norm(world.f, p, world.x)

    def naive(p: Any) -> Array:
        J = jax.jacrev(world.f)(p, world.x)
        J = world.xp.concatenate([j.reshape(30, -1) for j in jax.tree.leaves(J)], 1)
        return world.xp.linalg.norm(J @ J.T)

    (found, ours), (right, theirs) = (
        jax.jit(jax.value_and_grad(f))(world.params) for f in (norm, naive)
    )
    assert float(found) == pytest.approx(float(right), rel=1e-12)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-8, atol=1e-9)


def tanh_network(lib: Any) -> tuple[Callable[..., Array], list[tuple[int, int]]]:
    """Seven layers of 64 inputs, and the shapes of their parameters."""

    def f(params: Any, x: Array) -> Array:
        for W in params[:-1]:
            x = lib.tanh(x @ W)
        return x @ params[-1]

    return f, [*[(64, 64)] * 6, (64, 4)]


@pytest.mark.parametrize("method", METHODS[1:])
def test_compiled_methods_hold_gradients_of_one_parameter_at_a_time(
    method: Callable[..., Array],
) -> None:
    jax = pytest.importorskip("jax")
    f, shapes = tanh_network(jax.numpy)
    params = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    x = jax.ShapeDtypeStruct((3, 64), np.float32)
    compiled = jax.jit(lambda params, x: kernel(f, params, x, implementation=method))
    used = compiled.lower(params, x).compile().memory_analysis().temp_size_in_bytes
    assert used < 2 * (4 * 3 * 4 * 64 * 64)  # of all parameters they are six times this


@pytest.mark.parametrize("method", METHODS[1:])
def test_no_array_holds_gradients_by_all_parameters(
    torch: Any, method: Callable[..., Array]
) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = function(*args, **(kwargs or {}))
            for x in made if isinstance(made, tuple | list) else (made,):
                if isinstance(x, torch.Tensor):
                    self.size = max(self.size, x.numel())
            return made

    f, shapes = tanh_network(torch)
    params, x = [torch.randn(shape) / 8 for shape in shapes], torch.randn(3, 64)
    with Largest() as seen:
        kernel(f, params, x, implementation=method, chunk_size=2)
    check = 4 * sum(p.numel() for p in params)  # gradients of one sample
    assert seen.size == max(check, 3 * 2 * 64 * 64)  # samples, outputs of a chunk, one parameter


def test_jacobians_of_what_only_a_loop_over_samples_can_differentiate(torch: Any) -> None:
    net = torch.nn.GRU(3, 4)
    params = {name: p.detach() for name, p in net.named_parameters()}

    def f(p: Any, x: Array) -> Array:
        return torch.func.functional_call(net, p, (x.transpose(0, 1),))[0][-1]

    x = torch.randn(4, 5, 3)
    ours = kernel(f, params, x, implementation=jacobian_contraction)
    torch.testing.assert_close(ours, kernel(f, params, x))


def test_explain_tells_reads_orders_and_fall_backs(torch: Any) -> None:
    net = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    params = {name: p.detach() for name, p in net.named_parameters()}
    params["odd"] = torch.randn(4)

    def f(p: Any, x: Array) -> Array:
        rest = {name: p[name] for name in params if name != "odd"}
        return torch.func.functional_call(net, rest, (x,))[:, 0] * p["odd"].exp().sum()

    x = torch.randn(2, 3, 8)
    table = explain(f, params, x)
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert set(lines) == {"parameter", "total", "exact:", *(f"['{name}']" for name in params)}
    assert "linear" in lines["['linear1.weight']"]
    assert "layer_norm" in lines["['norm1.bias']"]
    assert "1 of 1 uses without a rule" in lines["['odd']"]
    assert "fell back: ['odd']" in lines["exact:"]
    for name in params:
        assert str(params[name].numel()) in lines[f"['{name}']"]
    assert explain(f, params, x, trace=True) != table


BAD = [
    ({"trace_axes": 3}, r"trace_axes=3 names axis 3, but the output has 3 axes"),
    ({"diagonal_axes": (1, -4)}, r"diagonal_axes=\(1, -4\) names axis -4"),
    ({"trace_axes": 1, "diagonal_axes": 1}, "axis 1 of the output is both"),
    ({"chunk_size": 0}, "`chunk_size` must be a positive integer, got 0"),
    (
        {"chunk_size": 0, "implementation": jacobian_contraction},
        "`chunk_size` must be a positive integer, got 0",
    ),
    (
        {"chunk_size": 0, "implementation": ntk_vector_products},
        "`chunk_size` must be a positive integer, got 0",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:20] for _, message in BAD])
def test_errors_say_what_to_pass(world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel(world.f, world.params, world.x, **options)


def test_samples_with_themselves_need_one_batch(world: World) -> None:
    with pytest.raises(ValueError, match="leave x2 out, or axis 0"):
        kernel(world.f, world.params, world.x, world.x2, diagonal_axes=0)


def test_kernels_without_both_sides_have_no_matrix() -> None:
    with pytest.raises(ValueError, match="has no matrix"):
        kernel_matrix(np.ones((2, 2, 3)))


@pytest.mark.parametrize("scale", [1e-12, 1e15])
def test_norm_whose_square_is_no_number_of_its_dtype(world: World, scale: float) -> None:
    xp = world.xp
    rng = np.random.default_rng(0)
    x, W = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    single = [xp.asarray(a, dtype=xp.float32) for a in (W, x)]
    f = lambda W, x: scale * (x @ W)  # noqa: E731
    found = world.run(lambda *given: ntk_norm(f, *given, per_parameter=True), *single)
    wanted = scale**2 * np.linalg.norm(x @ x.T) * 2**0.5
    np.testing.assert_allclose(float(found), wanted, rtol=1e-5)


def test_an_implementation_of_ones_own_is_handed_the_axes():
    torch = pytest.importorskip("torch")
    x, w = torch.arange(12.0).reshape(4, 3), torch.ones(3, 2)
    seen = []

    class Dense(NamedTuple):
        output_shape: tuple[int, ...]
        kernel: Any

    def dense(f, params, x1, x2=None):
        ours = structured_derivatives(f, params, x1, x2)

        def compute(axes, chunk_size):
            seen.append((axes.diagonal, axes.traced, axes.crossed, axes.paired, chunk_size))
            return ours.kernel(axes, chunk_size)

        return Dense(ours.output_shape, compute)

    def f(w, x):
        return x @ w

    found = kernel(f, w, x, trace_axes=1, implementation=dense, chunk_size=1)
    torch.testing.assert_close(found, kernel(f, w, x, trace_axes=1))
    kernel(f, w, x, diagonal_axes=(0, 1), implementation=dense)
    assert seen == [((), (0,), (), False, 1), ((0,), (), (), True, None)]


@pytest.mark.parametrize(
    ("axes", "second", "message"),
    [
        ({"trace_axes": 1, "diagonal_axes": 1}, False, "both in trace_axes and in diagonal_axes"),
        ({"trace_axes": 2}, False, "names axis 2, but the output has 2 axes"),
        ({"diagonal_axes": 0}, True, "each sample with itself, but x2 is given"),
    ],
)
def test_axes_are_refused_before_an_implementation_computes(axes, second, message):
    class Prepared(NamedTuple):
        output_shape: tuple[int, ...]

        def kernel(self, axes, chunk_size):
            raise AssertionError("computed for axes that are refused")

    x = np.ones((4, 3))
    with pytest.raises(ValueError, match=message):
        kernel(
            None, None, x, x if second else None, **axes,
            implementation=lambda f, params, x1, x2=None: Prepared((2,)),
        )  # fmt: skip
