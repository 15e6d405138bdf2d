"""Norms, ranks and alignments of kernels that are known from factors, and of data in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Library, library

import tracekit as tk
import tracekit_ntk as tkn
from tracekit._operators import exact_norm_cost, known_cost

N, INPUTS, HIDDEN, OUTPUTS = 6, 8, 20, 3
Array = Any


class Net:
    """A network with a tied layer in one library, and its kernels by explicit Jacobians."""

    def __init__(self, lib: Library, *, dtype: str = "float64") -> None:
        self.lib, self.xp, rng = lib, lib.xp, np.random.default_rng(0)
        self.draw = lambda *shape: lib.array(rng.standard_normal(shape), dtype)
        U, out = self.draw(INPUTS, HIDDEN), [(HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN, OUTPUTS)]
        self.params = {"in": {"U": U}, "out": [self.draw(*shape) for shape in out]}
        self.others = {"in": {"U": 1.5 * U}, "out": [1.2 * p + 0.3 for p in self.params["out"]]}
        self.params["unused"] = self.others["unused"] = self.draw(2)
        self.x = self.draw(N, INPUTS)

    def f(self, p: Any, x: Array) -> Array:
        T, b, V = p["out"]
        h = self.xp.tanh(x @ p["in"]["U"] + b)
        return self.xp.tanh(self.xp.tanh(h @ T) @ T.T) @ V

    def jacobian(self, params: Any, x: Array) -> np.ndarray:
        """(N O, P) by the framework itself."""
        rev = _module(self.lib).jacrev
        T, b, V = params["out"]
        J = rev(lambda U, T, b, V: self.f({"in": {"U": U}, "out": [T, b, V]}, x), (0, 1, 2, 3))(
            params["in"]["U"], T, b, V
        )
        return np.concatenate([self.lib.numpy(j).reshape(len(x) * OUTPUTS, -1) for j in J], 1)

    def kernel(self, params: Any, *, own: bool = False) -> np.ndarray:
        """The kernel of all samples, or its blocks of samples with themselves."""
        J = self.jacobian(params, self.x)
        blocks = np.kron(np.eye(N), np.ones((OUTPUTS, OUTPUTS)))
        return J @ J.T * (blocks if own else 1)


def _module(lib: Library) -> Any:
    if lib.name.startswith("torch"):
        return pytest.importorskip("torch.func")
    return pytest.importorskip("jax")


@pytest.fixture(params=["torch", "jax:1"], scope="module")
def net(request: pytest.FixtureRequest) -> Net:
    return Net(library(request.param))


OPERATORS = [(tkn.ntk, False), (tkn.sample_ntk, True)]


def cosine(A: np.ndarray, B: np.ndarray) -> float:
    return float(np.vdot(A, B) / np.linalg.norm(A) / np.linalg.norm(B))


@pytest.mark.parametrize(("make", "own"), OPERATORS)
def test_from_their_counted_cost_on_all_numbers_are_exact(
    net: Net, make: Callable[..., Any], own: bool
) -> None:
    K, M = make(net.f, net.params, net.x), net.kernel(net.params, own=own)
    L, other = make(net.f, net.others, net.x), net.kernel(net.others, own=own)
    cost = known_cost(K, "norm")
    assert OUTPUTS < cost == known_cost(K, "matrix") < exact_norm_cost(K)
    y = net.draw(N * OUTPUTS, 1)
    Y = net.lib.numpy(y)
    C = np.eye(len(M)) - 1 / len(M)
    calls: list[tuple[Callable[..., Any], int, float]] = [
        (lambda A, B, m: tk.frobenius_norm(A, m), 1, np.linalg.norm(M)),
        (lambda A, B, m: tk.effective_rank(A, m), 1, np.trace(M) ** 2 / np.sum(M * M)),
        (lambda A, B, m: tk.spectral_summary(A, m).trace, 1, np.trace(M)),
        (lambda A, B, m: tk.target_alignment(A, y, m), 1, cosine(M, Y @ Y.T)),
        (lambda A, B, m: tk.inner(A, B, m), 2, np.vdot(M, other)),
        (lambda A, B, m: tk.alignment(A, B, m), 2, cosine(M, other)),
        (lambda A, B, m: tk.alignment(tk.centered(A), tk.centered(B), m), 2,
         cosine(C @ M @ C, C @ other @ C)),
    ]  # fmt: skip
    for call, kernels, truth in calls if net.lib.family == "torch" else calls[::3]:
        (A, one), (B, two) = tk.counted(K), tk.counted(L)
        found = call(A, B, kernels * cost)
        assert float(found) == pytest.approx(truth, rel=1e-10)
        assert found.num_matvecs == one.total + two.total == kernels * cost
        assert float(found.standard_error) == 0
        name = "ntk_norm" if call is calls[0][0] else "kernel"
        assert found.reason == f"exact by {name} for {kernels * cost} products"
        assert net.lib.at_home(found.value)
        (A, one), (B, two) = tk.counted(K), tk.counted(L)
        fewer = call(A, B, kernels * cost - 1)
        assert fewer.reason == f"exact from {kernels * cost} products on"
        assert fewer.num_matvecs == one.total + two.total < kernels * cost
        assert float(fewer) != pytest.approx(truth, rel=1e-10)


def test_products_are_taken_where_there_are_fewer_parameters(net: Net) -> None:
    w, x = {"w": net.draw(INPUTS, 1)}, net.draw(20, INPUTS)

    def f(p: Any, x: Array) -> Array:
        return (x @ p["w"]) ** 2

    K = tkn.ntk(f, w, x)
    M = net.lib.numpy(tkn.kernel_matrix(tkn.kernel(f, w, x)))
    A, counter = tk.counted(K)
    assert known_cost(K, "norm") > exact_norm_cost(K) == INPUTS
    found = tk.frobenius_norm(A, 99)
    assert float(found) == pytest.approx(np.linalg.norm(M), rel=1e-10)
    assert found.num_matvecs == counter.total == INPUTS
    assert not found.reason


def test_no_more_is_counted_than_all_columns_cost() -> None:
    torch = pytest.importorskip("torch")
    x, w = torch.ones(3, 2), torch.ones(2, 4)
    assert known_cost(tkn.ntk(lambda w, x: x @ w, w, x), "norm") == 12


def test_costs_are_passes_and_multiply_adds_counted_by_hand() -> None:
    """A product of a linear layer costs 2 N d w; the kernel the cheapest order of contraction."""
    torch = pytest.importorskip("torch")
    n, d, w = 7, 30, 2
    x, W = torch.ones(n, d), torch.ones(d, w)
    K = tkn.ntk(lambda W, x: x @ W, W, x)
    gram = n * n * d + n * n * w * w * (w + 1) + 8 * (n * n + n * n * w * w)
    first = n * n * (d + w * w) + n * n * w * w * w + 8 * (n * n + n * n * w * w)
    assert known_cost(K, "norm") == w + -(-min(gram, first) // (2 * n * d * w))


def test_the_norm_of_a_zero_kernel_is_zero(net: Net) -> None:
    x, w = 0 * net.x, {"w": net.draw(INPUTS, 2)}
    K = tkn.ntk(lambda p, x: x @ p["w"], w, x)
    cost = known_cost(K, "norm")
    assert float(tk.frobenius_norm(K, cost)) == 0
    for estimator in (tk.effective_rank, lambda K, m: tk.alignment(K, K, 2 * m)):
        with pytest.raises(ValueError, match="zero"):
            estimator(K, cost)


def test_single_precision_and_one_sample_of_one_output(net: Net) -> None:
    small = Net(net.lib, dtype="float32")
    f = lambda p, x: small.f(p, x)[:, :1]  # noqa: E731
    K = tkn.ntk(f, small.params, small.x[:1, ...])
    M = small.jacobian(small.params, small.x)[:1]
    found = tk.frobenius_norm(K, 5)
    assert found.value.dtype == small.x.dtype
    assert float(found) == pytest.approx(float(np.sum(M * M)), rel=1e-5)


@pytest.fixture
def torch_net() -> Net:
    return Net(library("torch"))


def test_gradients_pass_through_exact_numbers(torch_net: Net) -> None:
    torch, U = torch_net.xp, torch_net.params["in"]["U"].clone().requires_grad_()
    params = {**torch_net.params, "in": {"U": U}}
    found = tk.effective_rank(tkn.ntk(torch_net.f, params, torch_net.x), 50)
    assert found.reason
    found.value.backward()

    def rank(U: np.ndarray) -> float:
        M = torch_net.kernel({**torch_net.params, "in": {"U": torch.asarray(U)}})
        return float(np.trace(M) ** 2 / np.sum(M * M))

    at, step = U.detach().numpy(), 1e-5
    slope = (rank(at + step) - rank(at - step)) / (2 * step)
    assert float(U.grad.sum()) == pytest.approx(slope, rel=1e-6)


def test_jax_compiles_the_exact_numbers() -> None:
    jax = pytest.importorskip("jax")
    net = Net(library("jax:1"))
    run = jax.jit(lambda p: tk.frobenius_norm(tkn.ntk(net.f, p, net.x), 20).value)
    assert float(run(net.params)) == pytest.approx(np.linalg.norm(net.kernel(net.params)), rel=1e-9)


def test_a_known_matrix_serves_any_operator() -> None:
    M = np.random.default_rng(0).standard_normal((8, 8))

    class Known:
        num_matvecs, method = 2, "by hand"

        def __call__(self) -> np.ndarray:
            return M

    A = tk.LinearOperator((8, 8), lambda X: M @ X, lambda X: M.T @ X, exact={"matrix": Known()})
    free = tk.LinearOperator((8, 8), lambda X: M @ X, exact={"matrix": lambda: M})
    found = tk.spectral_summary(A, 2)
    assert float(found.trace) == pytest.approx(np.trace(M), rel=1e-12)
    assert float(found.frobenius_norm) == pytest.approx(np.linalg.norm(M), rel=1e-12)
    assert found.effective_rank.reason == "exact by by hand for 2 products"
    told = tk.alignment(free, free, 2)
    assert (float(told), told.num_matvecs) == (pytest.approx(1.0), 0)
    assert told.reason == "known in closed form"
    both = tk.LinearOperator((8, 8), lambda X: M @ X, exact={
        "trace": lambda: np.trace(M), "norm": lambda: np.linalg.norm(M)})  # fmt: skip
    rank = tk.effective_rank(both, 1)
    assert float(rank) == pytest.approx(np.trace(M) ** 2 / np.sum(M * M), rel=1e-12)


# --- batches --------------------------------------------------------------------------------------


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, list) else [tree]


@pytest.mark.parametrize("per_parameter", [False, True])
def test_batches_give_what_all_samples_give(net: Net, per_parameter: bool) -> None:
    batches = [net.x[:2, ...], net.x[2:4, ...], net.x[4:, ...]]
    for quantity in (tkn.ntk_trace, tkn.ntk_diagonal, tkn.ntk_norm):
        for chunk_size in (None, 2) if net.lib.name.startswith("torch") else (None,):
            options = {"per_parameter": per_parameter, "chunk_size": chunk_size}
            one = quantity(net.f, net.params, net.x, **options)
            many = quantity(net.f, net.params, batches=batches, **options)
            for here, there in zip(leaves(many), leaves(one), strict=True):
                assert per_parameter or net.lib.at_home(here)
                assert here.shape == there.shape
                np.testing.assert_allclose(net.lib.numpy(here), net.lib.numpy(there), rtol=1e-10)
    if not per_parameter:
        M = net.kernel(net.params)
        norm = tkn.ntk_norm(net.f, net.params, batches=batches)
        assert float(norm) == pytest.approx(np.linalg.norm(M), rel=1e-10)


def test_batches_of_unlike_sizes_and_coupled_samples(torch_net: Net) -> None:
    net = torch_net
    batches = [net.x[:1, ...], net.x[1:, ...]]
    norm = tkn.ntk_norm(net.f, net.params, batches=batches)
    assert float(norm) == pytest.approx(np.linalg.norm(net.kernel(net.params)), rel=1e-10)

    def mixed(p: Any, x: Array) -> Array:
        return net.f(p, x - x.mean(0))

    J = [net.jacobian(net.params, x - x.mean(0)) for x in batches]
    K = np.concatenate(J) @ np.concatenate(J).T
    given = {"batches": batches, "whole": True}
    assert float(tkn.ntk_norm(mixed, net.params, **given)) == pytest.approx(np.linalg.norm(K))
    diagonal = net.lib.numpy(tkn.ntk_diagonal(mixed, net.params, **given))
    np.testing.assert_allclose(diagonal.ravel(), np.diag(K), rtol=1e-10)


class Passes:
    """Batches that count how often they are gone through, and change from some time on."""

    def __init__(self, batches: list[Any], changes: Callable[[int, list[Any]], list[Any]]) -> None:
        self.batches, self.changes, self.passes = batches, changes, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        yield from self.changes(self.passes, self.batches)


def test_batches_are_gone_through_again_for_the_norm_alone(torch_net: Net) -> None:
    net = torch_net
    batches = [net.x[:2, ...], net.x[2:4, ...], net.x[4:, ...]]
    for quantity, passes in ((tkn.ntk_trace, 1), (tkn.ntk_diagonal, 1), (tkn.ntk_norm, 3)):
        loader = Passes(batches, lambda k, some: some)
        quantity(net.f, net.params, batches=loader)
        assert loader.passes == passes
    assert float(tkn.ntk_trace(net.f, net.params, batches=iter(batches))) > 0  # once is enough
    with pytest.raises(ValueError, match="all of them meet"):
        tkn.ntk_norm(net.f, net.params, batches=iter(batches))
    for changed in (
        lambda k, some: some if k == 1 else some[::-1],
        lambda k, some: some if k == 1 else some[:-1],
        lambda k, some: some if k == 1 else [*some, some[0]],
        lambda k, some: some if k < 3 else [*some[:2], some[2] + 0.01],
    ):
        with pytest.raises(ValueError, match="was not the same"):
            tkn.ntk_norm(net.f, net.params, batches=Passes(batches, changed))
    for quantity in (tkn.ntk_trace, tkn.ntk_diagonal, tkn.ntk_norm):
        with pytest.raises(ValueError, match="empty"):
            quantity(net.f, net.params, batches=[])
        with pytest.raises(ValueError, match="both given"):
            quantity(net.f, net.params, net.x, batches=batches)
