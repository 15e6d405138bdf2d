"""What products with Jacobians cost, hold and leave behind, and what estimators make of them."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import networks
import numpy as np
import pytest
from networks import (
    at_once,
    beside,
    close,
    closed,
    columns,
    dense,
    jacobian,
    numpy,
    reference,
)

import tracekit as tk
import tracekit_ntk as tkn

Array = Any
LIBRARIES = ("torch", "jax")
every_library = pytest.mark.parametrize("library", LIBRARIES)


# One linearisation, nothing left behind -----------------------------------------------------------


def spied() -> tuple[Callable[[Any], Array], dict[str, Any], list[Any]]:
    """A torch function of a (40, 6) output, its parameters, and a list that grows by every pass."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    passes: list[Any] = []

    class Spy(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Array) -> Array:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, g: Array) -> Array:
            passes.append("back")
            return g

        @staticmethod
        def jvp(ctx: Any, t: Array) -> Array:
            passes.append("forth")
            return t.clone()

    x = torch.asarray(networks.normal(40, 5))
    params = {"w": torch.asarray(networks.normal(5, 6)), "b": torch.asarray(networks.normal(6))}
    return lambda p: Spy.apply(x @ p["w"] + p["b"]).tanh(), params, passes


def test_torch_runs_a_pass_for_every_chunk() -> None:
    """And once for every operator a plain one, and one of both modes, which check the others."""
    f, params, passes = spied()
    J = tkn.jacobian(f, params, chunk_size=3)
    assert passes == []
    for checks in (1, 0):
        J.H @ J.xp.ones((240, 8), dtype=J.dtype)
        assert passes == (3 + checks) * ["back"]
        passes.clear()
        J @ J.xp.ones((36, 6), dtype=J.dtype)
        assert passes == checks * ["forth", "back"] + 2 * ["forth"]
        passes.clear()


def test_parameters_share_their_passes() -> None:
    """Estimates of all parameters cost the passes of one, and add up to that of the whole."""
    f, params, passes = spied()
    parts = tkn.per_parameter(f, params, chunk_size=4)
    traces = [float(tk.one_sided(L, 8, rng=0)) for L in parts.values()]
    assert len(passes) == 2 + 1  # which checks the others
    norms = [tk.frobenius_norm(tk.gram(L), 8, rng=0) for L in parts.values()]
    assert len(norms) == len(parts)
    whole = tk.one_sided(tkn.jacobian(f, params), 8, rng=0)
    assert sum(traces) == pytest.approx(float(whole), rel=1e-12)
    one, two = (float(tk.one_sided(parts["w"], 8, rng=seed)) for seed in (0, 1))
    assert one == traces[0] != two


@every_library
def test_f_runs_once_for_all_pullbacks(library: str) -> None:
    f, params = closed("mlp", library)
    calls = 0

    def g(p: Any) -> Array:
        nonlocal calls
        calls += 1
        return f(p)

    J = tkn.jacobian(g, params, chunk_size=4)
    made = calls
    assert made == (1 if library == "jax" else 2)  # whose outputs have to be the same
    for _ in range(2):
        J.H @ J.xp.ones((12, 8), dtype=J.dtype)
    assert calls == made
    for checks in (1, 0):  # torch.func's forward mode runs f once a chunk
        made = calls
        J @ J.xp.ones((54, 8), dtype=J.dtype)
        assert calls == made + (0 if library == "jax" else 2 + checks)


@every_library
def test_chunks_change_nothing(library: str) -> None:
    f, params = closed("mlp", library)
    whole = jacobian("mlp", library)
    J = tkn.jacobian(f, params, chunk_size=5)
    close(dense(J), dense(whole), 1e-14)
    close(dense(J.H), dense(whole.H), 1e-14)
    K = tkn.ntk(f, params, chunk_size=5)
    close(dense(K), reference("mlp", library) @ reference("mlp", library).T)
    X = K.xp.asarray(networks.normal(12, 7))
    close(numpy(K.quad(X)), np.sum((reference("mlp", library).T @ numpy(X)) ** 2, axis=0))  # type: ignore[misc]


def test_memory_grows_with_the_chunk_and_not_with_the_budget() -> None:
    """The largest array that PyTorch makes in an estimate."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
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

    x = torch.asarray(networks.normal(4, 30))
    params = [torch.asarray(networks.normal(30, 40)), torch.asarray(networks.normal(40, 50))]
    n, P = 4 * 50, 30 * 40 + 40 * 50

    def f(p: Any) -> Array:
        return (x @ p[0]).tanh() @ p[1]

    def largest(estimator: Any, chunk_size: int, budget: int) -> int:
        K = tkn.ntk(f, params, chunk_size=chunk_size)
        with Largest() as seen:
            estimator(K, budget, rng=0)
        return seen.size

    for estimator, (chunk_size, budget) in itertools.product(
        (tk.hutchinson, tk.hutchpp), itertools.product((4, 8), (40, 60))
    ):
        assert n * budget < chunk_size * P  # so that the probes are not the largest
        assert largest(estimator, chunk_size, budget) == chunk_size * P


def test_nothing_leaks_into_a_module() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    x = torch.asarray(networks.normal(6, 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    f, params = tkn.functional(module)
    J = tkn.jacobian(lambda p: f(p, x), params)
    Y, Z = J @ torch.ones(J.shape[1], 2).double(), J.H @ torch.ones(24, 2).double()
    assert not Y.requires_grad
    assert not Z.requires_grad
    assert not tk.hutchinson(J @ J.H, 3, rng=0).value.requires_grad
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    for name, value in module.state_dict().items():  # buffers too, which training mode writes to
        assert torch.equal(value, before[name])


def test_training_in_place_leaves_the_operator_as_it_is() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    own = dict(module.named_parameters())
    f, _ = tkn.functional(module)
    J = tkn.jacobian(lambda p: f(p, x), own)
    before = dense(J), dense(J.H)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(x).square().sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(dense(J), before[0])
    np.testing.assert_array_equal(dense(J.H), before[1])
    after = tkn.jacobian(lambda p: f(p, x), own)
    assert np.any(np.abs(dense(after) - before[0]) > 1e-3)


def test_the_graph_dies_with_the_operator() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Token:
        pass

    alive: list[weakref.ref[Token]] = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Array) -> Array:
            ctx.token = Token()
            alive.append(weakref.ref(ctx.token))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Array) -> Array:
            return g

    params = [torch.ones(3, dtype=torch.float64)]
    J = tkn.jacobian(lambda p: Marked.apply(p[0]).sin(), params)
    estimate = tk.one_sided(J, 2, rng=0)
    assert [ref() is not None for ref in alive] == [True, False]
    del J
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    assert float(estimate) > 0


# Batches ------------------------------------------------------------------------------------------


@every_library
def test_batches_are_stacked(library: str) -> None:
    f, params, x = networks.network("mlp").on(library)
    K = tkn.ntk(f, params, batches=(x[:4], x[4:]), chunk_size=7)
    J = K.factor
    close(dense(J), reference("mlp", library))
    close(dense(J.H), reference("mlp", library).T)
    trace = tk.exact_trace(K)
    assert float(trace) == pytest.approx(np.sum(reference("mlp", library) ** 2), rel=1e-12)


def test_batches_of_a_data_loader() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.utils.data import DataLoader, TensorDataset

    f, params, x = networks.network("mlp").on("torch")
    data = TensorDataset(x, torch.arange(6))
    at_once: list[int] = []

    def of_batch(p: Any, batch: Any) -> Array:
        at_once.append(len(batch[0]))
        return f(p, batch[0])

    K = tkn.ntk(of_batch, params, batches=DataLoader(data, batch_size=4))
    close(dense(K), reference("mlp", "torch") @ reference("mlp", "torch").T)
    assert set(at_once) == {4, 2}
    shuffled = DataLoader(
        data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    J = tkn.jacobian(of_batch, params, batches=shuffled)
    with pytest.raises(ValueError, match="fixed order"):
        J.H @ torch.ones(12, 1).double()


def test_batches_that_do_not_come_again_as_they_were() -> None:
    f, params, x = networks.network("mlp").on("torch")
    for first, later in (
        ([x[:4], x[4:]], [x[4:], x[:4]]),
        ([x, x], [x]),
        ([x], [x, x]),
        ([x], [x[::2]]),
    ):
        batches = list(first)
        J = tkn.jacobian(f, params, batches=batches)
        batches[:] = later
        with pytest.raises(ValueError, match="fixed order"):
            J.H @ J.xp.ones((J.shape[0], 1), dtype=J.dtype)


# All estimators -----------------------------------------------------------------------------------


def covered(estimate: tk.Estimate, exact: float) -> None:
    """Within five standard errors, which say something."""
    error = float(estimate.standard_error)
    assert abs(complex(estimate.value) - exact) <= 5 * error + 1e-9 * abs(exact)
    assert error < abs(exact)


@pytest.mark.parametrize("name", ["gru", "tied"])
def test_every_estimator_of_a_kernel(name: str) -> None:
    """In PyTorch: in JAX each of their steps would be compiled."""
    f, params = closed(name, "torch")
    K, G = tkn.ntk(f, params), tkn.parameter_gram(f, params)
    J = reference(name, "torch")
    A = J @ J.T
    trace, norm = np.trace(A), np.linalg.norm(A)
    for estimate in (
        tk.hutchinson(K, 12, rng=0),
        tk.hutchinson(G, 12, rng=0),
        tk.hutchpp(K, 12, rng=1),
        tk.xnystrace(K, 12, rng=0),
        tk.one_sided(K.factor, 12, rng=0),
        tk.one_sided(K.factor.H, 12, rng=0),  # type: ignore[union-attr]
        tk.trace(K, rtol=0.1, rng=0),
    ):
        covered(estimate, trace)
    covered(tk.frobenius_norm(K, 16, rng=0), norm)
    covered(tk.effective_rank(K, 16, rng=0), trace**2 / norm**2)
    y = np.random.default_rng(0).choice([-1.0, 1.0], A.shape[0])
    target = tk.target_alignment(K, K.xp.asarray(y), 16, rng=0)
    covered(target, y @ A @ y / (norm * A.shape[0]))
    moved = networks.each(lambda p: 1.1 * p + 0.05, params)
    K2 = tkn.ntk(f, moved)
    B = dense(K2)
    covered(tk.alignment(K, K2, 24, rng=0), np.vdot(A, B) / (norm * np.linalg.norm(B)))


def test_an_estimate_by_both_modes_compiled() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    f, params = closed("tied", "jax")

    def estimate(params: Any, key: Any) -> tk.Estimate:
        return tk.hutchpp(tkn.ntk(f, params), 12, rng=key)

    covered(jax.jit(estimate)(params, jax.random.key(0)), np.sum(reference("tied", "jax") ** 2))


def test_partial_traces_of_a_kernel() -> None:
    """Over samples, times and units of hidden states (2, 4, 3)."""
    K = tkn.ntk(*closed("gru", "torch"))
    J = reference("gru", "torch")
    blocks = (J @ J.T).reshape(2, 4, 3, 2, 4, 3)
    for axis, kept in (
        (0, np.einsum("stusvw->tuvw", blocks).reshape(12, 12)),
        (1, np.einsum("stuvtw->suvw", blocks).reshape(6, 6)),
        ((0, 2), np.einsum("stusvu->tv", blocks)),
        ((0, 1), np.einsum("stustv->uv", blocks)),
    ):
        close(numpy(tk.partial_trace(K, K.dims, axis).value), kept)
    estimate = tk.partial_trace(K, K.dims, (0, 1), 20, rng=0)
    error = numpy(estimate.standard_error)
    assert np.all(np.abs(numpy(estimate.value) - kept) <= 5 * error + 1e-9)


# Where forward mode is missing --------------------------------------------------------------------


@cache
def attention() -> tuple[Callable[[Any], Array], Any, np.ndarray]:
    """Attention that PyTorch runs as a fused kernel, which has no forward mode."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.nn import functional as F

    x = torch.asarray(networks.normal(3, 5, 4))
    params = {
        "qkv": torch.asarray(networks.normal(4, 12)),
        "out": torch.asarray(networks.normal(4, 2)),
    }

    def f(p: Any) -> Array:
        q, k, v = (x @ p["qkv"]).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2) @ p["out"]

    return f, params, by_autograd(f, params, 30)


@cache
def bag() -> tuple[Callable[[Any], Array], Any, np.ndarray]:
    """Sums of embeddings, which PyTorch can differentiate once, in reverse mode."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.nn import functional as F

    ids = torch.asarray(np.random.default_rng(0).integers(6, size=(10, 2)))
    params = {
        "table": torch.asarray(networks.normal(6, 8)),
        "out": torch.asarray(networks.normal(8, 3)),
    }

    def f(p: Any) -> Array:
        return F.embedding_bag(ids, p["table"]).tanh() @ p["out"]

    return f, params, by_autograd(f, params, 30)


def by_autograd(f: Any, params: Any, n: int) -> np.ndarray:
    import torch

    names, leaves = zip(*params.items(), strict=True)
    own = torch.autograd.functional.jacobian(
        lambda *leaves: f(dict(zip(names, leaves, strict=True))), leaves
    )
    return beside(list(own), n)


def test_fused_attention_is_run_by_operations_that_have_forward_mode() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    f, params, J = attention()
    fast = torch.backends.mha.get_fastpath_enabled()
    K = tkn.ntk(f, params)
    close(dense(K.factor), J)
    close(dense(K.factor.H), J.T)  # type: ignore[union-attr]
    covered(tk.hutchpp(K, 12, rng=0), np.sum(J * J))
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_missing_forward_mode_is_said_and_not_needed() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    f, params, J = bag()
    K = tkn.ntk(f, params)
    exact = np.sum(J * J)
    with pytest.raises(NotImplementedError, match=r"forward mode is missing .*one_sided"):
        K.factor @ torch.ones(72, 1).double()
    with pytest.raises(NotImplementedError, match="forward mode is missing"):
        tk.hutchpp(K, 12, rng=0)
    assert float(tk.exact_trace(K)) == pytest.approx(exact, rel=1e-12)
    close(dense(K.factor.H), J.T)
    covered(tk.hutchinson(K, 10, rng=0), exact)
    covered(tk.one_sided(K.factor, 10, rng=0), exact)


def test_a_basis_from_differences_where_forward_mode_is_missing() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    f, params, J = bag()
    sizes = [p.numel() for p in params.values()]

    def of_vector(theta: Array) -> Array:
        parts = torch.split(theta, sizes)
        return f(
            {
                name: part.reshape(p.shape)
                for (name, p), part in zip(params.items(), parts, strict=True)
            }
        )

    theta = torch.cat([p.reshape(-1) for p in params.values()])
    operator = tkn.jacobian(f, params)
    Q = tk.difference_basis(of_vector, theta, 10, rng=0)
    errors = {}
    for basis in (None, Q):
        runs = [float(tk.one_sided(operator, 16, rng=seed, basis=basis)) for seed in range(60)]
        errors[basis is None] = np.sqrt(np.mean((np.array(runs) - np.sum(J * J)) ** 2))
        assert np.mean(runs) == pytest.approx(np.sum(J * J), abs=4 * np.std(runs) / 60**0.5)
    assert errors[False] < 0.6 * errors[True]


def straight_through() -> tuple[Any, Any, Any, np.ndarray]:
    """A network with a reverse rule alone, its parameters and inputs, and its Jacobian."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    xp = jax.numpy

    @jax.custom_vjp
    def rounded(h: Array) -> Array:
        return xp.round(h)

    rounded.defvjp(lambda h: (xp.round(h), h), lambda h, g: (g * xp.cos(h),))
    params = [xp.asarray(networks.normal(3, 4)), xp.asarray(networks.normal(4, 2))]
    x = xp.asarray(networks.normal(5, 3))

    def f(p: Any, x: Array) -> Array:
        return rounded(x @ p[0]) @ p[1]

    parts = jax.jit(jax.jacrev(f))(params, x)
    return f, params, x, np.concatenate([np.asarray(J).reshape(10, -1) for J in parts], axis=1)


def test_products_of_functions_with_a_reverse_rule_alone() -> None:
    """By the transpose of the pullback, which the rule gives."""
    f, params, x, J = straight_through()

    def products(params: Any) -> Any:
        K = tkn.ntk(lambda p: f(p, x), params)
        by_products = tkn.kernel(f, params, x, implementation=tkn.ntk_vector_products)
        own = tkn.sample_ntk(f, params, x)
        return columns(K.factor), columns(K), columns(own), tkn.kernel_matrix(by_products)

    factor, K, own, by_products = at_once("jax", products, params)
    close(factor, J)
    close(K, J @ J.T)
    blocks = np.stack([(J @ J.T)[s : s + 2, s : s + 2] for s in range(0, 10, 2)])
    close(np.stack([own[s : s + 2, s : s + 2] for s in range(0, 10, 2)]), blocks)
    close(by_products, J @ J.T)


def test_trees_of_numpy_arrays_are_parameters_of_jax_functions() -> None:
    f, params, x, J = straight_through()
    held = [np.asarray(p) for p in params]
    assert float(tkn.ntk_trace(f, held, np.asarray(x))) == pytest.approx(np.sum(J * J), rel=1e-12)
    close(dense(tkn.ntk(lambda p: f(p, x), held)), J @ J.T)


def test_parameters_of_one_number_and_of_none_in_jax() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    xp = jax.numpy
    x = xp.asarray(networks.normal(4, 3))
    params = {"w": xp.asarray(networks.normal(3, 2)), "scale": xp.asarray(1.5),
              "one": xp.ones(1), "none": xp.zeros((0, 2))}  # fmt: skip

    def f(p: Any, x: Array) -> Array:
        return xp.tanh(x @ p["w"]) * p["scale"] + p["one"] + p["none"].sum(0)

    parts = jax.jit(jax.jacrev(f))(params, x)
    J = np.concatenate([np.asarray(j).reshape(8, -1) for j in jax.tree.leaves(parts)], axis=1)

    def numbers(params: Any) -> Any:
        traces = tkn.ntk_trace(f, params, x), tk.exact_trace(tkn.sample_ntk(f, params, x)).value
        K, factored = tkn.ntk(lambda p: f(p, x), params), tkn.factored_ntk(f, params, x)
        return *traces, tkn.ntk_norm(f, params, x), columns(K), columns(factored)

    *traces, norm, K, factored = at_once("jax", numbers, params)
    assert [float(trace) for trace in traces] == pytest.approx([np.sum(J * J)] * 2, rel=1e-12)
    assert float(norm) == pytest.approx(np.linalg.norm(J @ J.T), rel=1e-12)
    close(K, J @ J.T)
    close(factored, J @ J.T)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, tracekit as tk, tracekit_ntk as tkn
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
w, x = jnp.cos(jnp.arange(15.0)).reshape(5, 3), jnp.sin(jnp.arange(20.0)).reshape(4, 5)
mesh = Mesh(np.array(jax.devices()), ("b",))
f = lambda w, x: jnp.tanh(x @ w)
placed = lambda w, x: jax.lax.with_sharding_constraint(f(w, x), NamedSharding(mesh, P("b")))
mapped = lambda w, x: jax.shard_map(f, mesh=mesh, in_specs=(P(), P("b")), out_specs=P("b"))(w, x)
want = float(np.sum(np.asarray(jax.jacrev(f)(w, x)) ** 2))
found = [tk.exact_trace(tkn.ntk(lambda w, g=g: g(w, x), w)).value for g in (placed, mapped)]
found += [tkn.ntk_trace(placed, w, x), tkn.ntk_trace(mapped, w, x, whole=True)]
assert len(jax.devices()) == 2 and np.allclose(found, want, rtol=1e-5), (found, want)
try:
    tkn.ntk_trace(mapped, w, x)
except ValueError as error:
    print(error)
"""


def test_outputs_that_jax_shards() -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sample by sample" in done.stdout
