"""Laws of the samples' own kernels: the block-diagonal part of the whole one."""

from __future__ import annotations

from functools import partial
from typing import Any

import networks
import numpy as np
import pytest
from networks import at_once, close, columns, dense, reference

import tracekit as tk
import tracekit_ntk as tkn
from tracekit import probes
from tracekit.testing import unbiasedness_test

Array = Any
every_library = pytest.mark.parametrize("library", ["torch", "jax"])


def kernel_of_samples(name: str, library: str, **options: Any) -> tk.LinearOperator:
    return tkn.sample_ntk(*networks.network(name).on(library), **options)


def blocks(name: str, library: str) -> tuple[np.ndarray, np.ndarray]:
    """The samples' Jacobians (N, d, P), and the block-diagonal part of the dense kernel."""
    J, N = reference(name, library), len(networks.network(name).x)
    own = J.reshape(N, -1, J.shape[1])
    d = own.shape[1]
    K = np.zeros((N, d, N, d))
    K[np.arange(N), :, np.arange(N), :] = own @ own.transpose(0, 2, 1)
    return own, K.reshape(N * d, N * d)


# Block-diagonal -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "library"),
    [(name, "torch") for name in networks.NAMES] + [("mlp", "jax"), ("tied", "jax")],
)
def test_it_is_the_block_diagonal_part(name: str, library: str) -> None:
    """By all its products: quadratic forms, columns, and both of its factor."""
    own, K = blocks(name, library)
    N, d, P = own.shape
    f, params, x = networks.network(name).on(library)

    def products(params: Any) -> Any:
        S = tkn.sample_ntk(f, params, x)
        assert S.shape == (N * d, N * d)
        assert S.factor.shape == (N * d, N * P)  # type: ignore[union-attr]
        assert S.dims[0] == N  # type: ignore[index]
        quads = S.quad(S.xp.eye(N * d, dtype=S.dtype))  # type: ignore[misc]
        L: Any = S.factor
        return columns(S), quads, tk.diagonal(S).value, columns(L), columns(L.H)

    wide = np.zeros((N, d, N, P))
    wide[np.arange(N), :, np.arange(N), :] = own
    wide = wide.reshape(N * d, N * P)
    here = at_once(library, products, params)
    for found, expected in zip(here, (K, np.diag(K), np.diag(K), wide, wide.T), strict=True):
        close(found, expected)


@pytest.mark.parametrize("name", ["cnn", "residual", "attention"])
def test_libraries_agree(name: str) -> None:
    """In JAX by one product; in PyTorch all of them are held against the dense ones above."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    f, params, x = networks.network(name).on("jax")
    trace = jax.jit(lambda params: tk.exact_trace(tkn.sample_ntk(f, params, x)).value)(params)
    assert float(trace) == pytest.approx(np.trace(blocks(name, "torch")[1]), rel=1e-10)


@every_library
@pytest.mark.parametrize("chunk_size", [1, 4, 13])
def test_chunks_of_samples_and_of_columns_change_nothing(library: str, chunk_size: int) -> None:
    """Fewer at once than there are samples, and several columns of all of them."""
    if library == "jax" and chunk_size != 4:
        pytest.skip("each shape is compiled, which takes long")
    _, K = blocks("mlp", library)
    f, params, x = networks.network("mlp").on(library)
    X = networks.normal(12, 5)

    def products(params: Any) -> Any:
        S: Any = tkn.sample_ntk(f, params, x, chunk_size=chunk_size)
        here = S.xp.asarray(X)
        return S @ here, S.quad(here), tk.exact_trace(S).value

    expected = K @ X, np.sum(X * (K @ X), axis=0), np.trace(K)
    for found, value in zip(at_once(library, products, params), expected, strict=True):
        close(found, value)


def unknown(w: Array) -> Array:
    """A parameter read in a way that has no factors, so that gradients are formed."""
    return w.cumsum(0)


def test_chunks_bound_the_gradients_that_are_held() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = function(*args, **(kwargs or {}))
            for y in made if isinstance(made, tuple | list) else (made,):
                if isinstance(y, torch.Tensor):
                    self.size = max(self.size, y.numel())
            return made

    w, x = torch.asarray(networks.normal(200, 30)), torch.asarray(networks.normal(10, 200))
    for chunk_size in (2, 6, 40):
        S = tkn.sample_ntk(lambda w, x: torch.tanh(x @ unknown(w)), w, x, chunk_size=chunk_size)
        for budget in (8, 12):
            with Largest() as seen:
                tk.hutchinson(S, budget, rng=0)
            assert seen.size == chunk_size * w.numel()


def test_factors_and_gradients_say_the_same() -> None:
    """Of one network: its weights read directly, and in a way that has no factors."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w, x = torch.asarray(networks.normal(6, 5)), torch.asarray(networks.normal(4, 6))
    read = tkn.sample_ntk(lambda w, x: torch.tanh(x @ w), w, x)
    formed = tkn.sample_ntk(lambda w, x: torch.tanh(x @ (unknown(w) - unknown(w) + w)), w, x)
    assert (tk.exact_trace(read).method, tk.exact_trace(formed).method) == (
        "ntk_trace",
        "exact_trace",
    )
    for estimate in (tk.exact_trace, tk.diagonal, lambda S: tk.hutchinson(S, 3, rng=0)):
        close(estimate(read).value, np.asarray(estimate(formed).value))


@every_library
def test_the_whole_kernel_knows_its_trace_where_samples_do_not_mix(library: str) -> None:
    f, params, x = networks.network("mlp").on(library)
    J = reference("mlp", library)

    def values(params: Any) -> Any:
        K = tkn.ntk(f, params, x)
        exact = tk.trace(K)
        assert (exact.method, exact.num_matvecs) == ("ntk_trace", K.shape[0] // len(x))
        return exact.value, tk.diagonal(K).value, tk.hutchinson(K, 1, rng=0).value

    exact, diagonal, estimate = at_once(library, values, params)
    close(exact, np.sum(J * J))
    close(diagonal, np.sum(J * J, axis=1))
    close(estimate, tk.hutchinson(J @ J.T, 1, rng=0).value)


def test_a_whole_kernel_of_samples_that_mix_is_right() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w, x = torch.asarray(networks.normal(6, 5)), torch.asarray(networks.normal(4, 6))

    def mixed(w: Array, x: Array) -> Array:
        return (x @ w) * (x @ w).mean(0)

    K = tkn.ntk(mixed, w, x)
    assert tk.exact_trace(K).method == "exact_trace"
    plain = tkn.ntk(lambda w: mixed(w, x), w)
    close(tk.exact_trace(K).value, np.asarray(tk.exact_trace(plain).value))
    with pytest.raises(ValueError, match="pass x for data that fits"):
        tkn.ntk(mixed, w, x, batches=[x])


# What it costs ------------------------------------------------------------------------------------


def test_exact_after_as_many_passes_as_a_sample_has_outputs() -> None:
    own, K = blocks("mlp", "torch")
    S = kernel_of_samples("mlp", "torch")
    d = own.shape[1]
    assert d == 2
    for estimate in (
        tk.exact_trace(S),
        tk.hutchinson(S, d, rng=0),
        tk.hutchinson(S, d + 3, rng=0, probes=probes.sphere),
        tk.xnystrace(S, d, rng=0),
        tk.trace(S),
    ):
        assert float(estimate) == pytest.approx(np.trace(K), rel=1e-12)
        assert float(estimate.standard_error) == 0.0
        assert estimate.num_matvecs == d
    assert tk.diagonal(S).num_matvecs == d
    short = tk.hutchinson(S, d - 1, rng=0)
    assert short.num_matvecs == 1
    assert float(short) != pytest.approx(np.trace(K), rel=1e-6)


def test_passes_that_are_spent_are_those_that_are_claimed() -> None:
    """With as many gradients at once as there are samples, a pass is one call of `backward`."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    passes = 0

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
            nonlocal passes
            passes += 1
            return g

    w, x = torch.asarray(networks.normal(3, 5)), torch.asarray(networks.normal(4, 3))
    S = tkn.sample_ntk(lambda w, x: Spy.apply(x @ unknown(w)).tanh(), w, x, chunk_size=4)
    for budget in (3, 5, 9):
        passes = 0
        assert tk.hutchinson(S, budget, rng=0).num_matvecs == passes == min(budget, 5)


# Why: the variance --------------------------------------------------------------------------------


def test_the_variance_is_that_of_the_blocks_alone() -> None:
    """Formulas: signs 2 (|K|_F^2 - sum k_ii^2) / m; orthogonal tiles the sum of the blocks' own."""
    own, K = blocks("tied", "torch")
    J = reference("tied", "torch")
    whole = J @ J.T
    N = len(own)
    S, m = kernel_of_samples("tied", "torch"), 3

    def of_signs(A: np.ndarray) -> float:
        return 2 * (np.sum(A**2) - np.sum(np.diag(A) ** 2)) / m

    def of_orthogonal(A: np.ndarray) -> float:
        n = len(A)
        spread = np.sum(A**2) - np.trace(A) ** 2 / n
        return 2 * n * (n - m) / (m * (n - 1) * (n + 2)) * spread

    tiles = sum(of_orthogonal(G @ G.T) for G in own)
    assert of_signs(K) < of_signs(whole)
    assert tiles < of_orthogonal(K) < of_orthogonal(whole)
    law = probes.tiled(probes.orthogonal, N)
    for probe, expected in ((probes.rademacher, of_signs(K)), (law, tiles)):
        runs = [tk.hutchinson(S, m, rng=seed, probes=probe) for seed in range(400)]
        seen = np.mean([(float(run) - np.trace(K)) ** 2 for run in runs])
        claimed = np.mean([float(run.standard_error) ** 2 for run in runs])
        assert seen == pytest.approx(expected, rel=0.3)
        assert claimed == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("law", [probes.rademacher, probes.orthogonal, probes.hadamard])
def test_estimates_are_unbiased(law: Any) -> None:
    _, K = blocks("gru", "torch")
    S = kernel_of_samples("gru", "torch")
    estimator = partial(tk.hutchinson, num_matvecs=4, probes=probes.tiled(law, 2))
    assert unbiasedness_test(estimator, S, exact=np.trace(K), seeds=range(200)) < 5


# Which functions ----------------------------------------------------------------------------------


def test_inputs_of_several_arrays() -> None:
    f, params, x = networks.network("mlp").on("torch")
    S = tkn.sample_ntk(lambda p, x: f(p, x["a"] + x["b"][0]), params, {"a": x / 2, "b": [x / 2]})
    assert float(tk.exact_trace(S)) == pytest.approx(np.trace(blocks("mlp", "torch")[1]), rel=1e-12)


def test_a_scalar_for_each_sample() -> None:
    f, params, x = networks.network("mlp").on("torch")
    S = tkn.sample_ntk(lambda p, x: f(p, x)[:, 1], params, x)
    assert S.shape == (6, 6)
    assert S.dims == (6,)
    estimate = tk.hutchinson(S, 1, rng=0)
    own, _ = blocks("mlp", "torch")
    assert float(estimate) == pytest.approx(np.sum(own[:, 1] ** 2), rel=1e-12)


@pytest.mark.parametrize(
    ("library", "dtype"), [("torch", "float32"), ("torch", "bfloat16"), ("jax", "bfloat16")]
)
def test_precisions(library: str, dtype: str) -> None:
    """Squares of half precision are summed in single precision."""
    S = tkn.sample_ntk(*networks.network("mlp").on(library, dtype))
    assert str(S.dtype).endswith("float32")
    rtol = 1e-5 if dtype == "float32" else 0.05
    exact = np.trace(blocks("mlp", library)[1])
    assert float(tk.exact_trace(S)) == pytest.approx(exact, rel=rtol)
    J_H = S.factor.H @ S.xp.eye(12, 2, dtype=S.dtype)  # type: ignore[union-attr]
    assert J_H.dtype == S.dtype


@every_library
def test_complex_networks(library: str) -> None:
    _, params, x = networks.network("mlp").on(library)
    z = params[0][0] + 1j * params[0][0] ** 2
    X = np.random.default_rng(0).standard_normal((2, 30, 3))
    X = X[0] + 1j * X[1]
    for w in (z, params[0][0]):

        def g(w: Array, x: Array) -> Array:
            return (x + 0j) @ (w + 0j) * (1 + 2j)

        def products(w: Array) -> Any:
            S = tkn.sample_ntk(g, w, x)
            quads = S.quad(S.xp.asarray(X, dtype=S.dtype))  # type: ignore[misc]
            return columns(tkn.jacobian(lambda w: g(w, x), w)), columns(S), quads

        J, K, quads = at_once(library, products, w)
        J = J.reshape(6, 5, 15)
        close(K[:5, :5], J[0] @ J[0].conj().T)
        close(quads, np.sum(X.conj() * (K @ X), axis=0))


def test_compiled_mapped_and_differentiated() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    f, params, x = networks.network("mlp").on("jax")

    def trace(c: Any) -> Any:
        S = tkn.sample_ntk(f, jax.tree.map(lambda p: c * p, params), x, chunk_size=4)
        return tk.exact_trace(S).value

    found, slope = jax.jit(jax.value_and_grad(trace))(1.0)
    assert float(found) == pytest.approx(np.trace(blocks("mlp", "jax")[1]), rel=1e-12)
    both = jax.jit(jax.vmap(trace))(jax.numpy.asarray([1.0, 1.0 + 1e-6]))
    assert float(both[1] - both[0]) / 1e-6 == pytest.approx(float(slope), rel=1e-4)


def test_recurrent_cells_that_cannot_be_mapped_are_looped_over() -> None:
    """PyTorch has no batching rule for its own recurrent cells."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    f, params, x = networks.network("gru").on("torch")
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda x: f(params, x[None]))(x)
    close(dense(kernel_of_samples("gru", "torch")), blocks("gru", "torch")[1])


# Samples that talk to each other are refused ------------------------------------------------------


def torch_modules() -> dict[str, Any]:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    nn = torch.nn
    return {
        "batch norm": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        "batch norm of images": nn.Sequential(
            nn.Unflatten(1, (1, 1, 3)), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        ),
        "dropout": nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5)),
        "attention across the batch": nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0),
    }


@pytest.mark.parametrize(
    "name", ["batch norm", "batch norm of images", "dropout", "attention across the batch"]
)
def test_modules_that_mix_samples_are_refused(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    torch.manual_seed(0)
    module = torch_modules()[name]
    f, params = tkn.functional(module)
    x = torch.asarray(networks.normal(6, 3), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"no kernels of their own.* use ntk"):
        tkn.sample_ntk(f, params, x)
    if "batch norm" in name:
        f, params = tkn.functional(module.eval())
        S = tkn.sample_ntk(f, params, x)
        whole = tk.exact_trace(tkn.ntk(lambda p: f(p, x), params))
        assert float(tk.exact_trace(S)) == pytest.approx(float(whole), rel=1e-4)


@every_library
def test_functions_that_mix_samples_are_refused(library: str) -> None:
    f, params, x = networks.network("mlp").on(library)

    def neighbours(p: Any, x: Array) -> Array:
        y = f(p, x)
        return y + 1e-3 * y[::-1] if library == "jax" else y + 1e-3 * y.flip(0)

    for mixing in (neighbours, lambda p, x: f(p, x) / (f(p, x) ** 2).sum()):
        with pytest.raises(ValueError, match=r"differently in a batch.* use ntk"):
            tkn.sample_ntk(mixing, params, x)
