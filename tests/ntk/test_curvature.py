"""Gauss-Newton and Fisher matrices against Jacobians and Hessians of the loss that are formed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn
from tests import networks
from tests.conftest import Library
from tests.networks import at_once, close, dense, network, normal, numpy
from tests.ntk.test_factors import KINDS, entries, make, there
from tests.ntk.test_losses import Y
from tracekit_ntk._backend import capture
from tracekit_ntk._curvature import roots, squares
from tracekit_ntk.factors import Outer

LIBRARIES = ("torch", "jax")
LOSSES = {name: getattr(tkn.losses, name) for name in Y}
CASES = [  # JAX compiles for seconds
    *itertools.product(networks.NAMES, ["torch"], ["softmax_cross_entropy"]),
    *itertools.product(["mlp", "gru"], ["torch"], ["squared_error", "logistic"]),
    ("mlp", "jax", "logistic"),
    *itertools.product(["gru", "tied"], ["jax"], ["softmax_cross_entropy"]),
]
every_library = pytest.mark.parametrize("library", LIBRARIES)


class Weighted:
    """A loss of one's own: a quadratic form of outputs that has one column in its root."""

    def hessian_root(self, outputs: Any) -> Any:
        """The same for all samples."""
        return outputs[:, :, None] * 0 + 2.0


def brute(J: np.ndarray, outputs: np.ndarray, loss: Any) -> np.ndarray:
    """``sum J^T H J`` over rows of outputs, H by twice the differentiated value of the loss."""
    torch = pytest.importorskip("torch")
    outputs = np.array(outputs)
    rows = torch.asarray(outputs.reshape(-1, outputs.shape[-1] if outputs.ndim > 1 else 1))
    y = torch.zeros(rows.shape[0], dtype=torch.int64)
    if loss is not tkn.losses.softmax_cross_entropy:
        y = torch.zeros_like(rows)
    H = torch.func.vmap(torch.func.hessian(lambda z, y: loss(z[None], y[None])))(rows, y)
    J = J.reshape(*rows.shape, -1)
    return np.einsum("nop,noq,nqr->pr", J, numpy(H), J)


def flat(tree: Any) -> np.ndarray:
    """The leaves of a tree end to end."""
    leaves: list[np.ndarray] = []
    networks.each(lambda leaf: leaves.append(numpy(leaf).ravel()), tree)
    return np.concatenate(leaves)


@pytest.mark.parametrize(("name", "library", "loss"), CASES)
def test_products_traces_and_diagonals_are_those_of_matrices_that_are_formed(
    name: str, library: str, loss: str
) -> None:
    f, params, x = network(name).on(library)
    record = LOSSES[loss]
    G = brute(networks.reference(name, library), numpy(f(params, x)), record)

    def all_of(params: Any) -> Any:
        diagonal = tkn.ggn_diagonal(f, params, x, record)
        parts = tkn.ggn_trace(f, params, x, record, per_parameter=True)
        A = tkn.ggn(f, params, x, record)
        known = tk.exact_trace(A), tk.diagonal(A)
        assert known[0].method == "ggn_trace"
        head = capture(f, params, x).head
        columns = A.factor.shape[1] // len(x) if head is None else head.body.outputs
        assert known[0].num_matvecs == columns
        return (tkn.ggn_trace(f, params, x, record), A.xp.stack(leaves_of(parts)),
                A.xp.concat([p.reshape(-1) for p in leaves_of(diagonal)]),
                known[0].value, known[1].value, networks.columns(A))  # fmt: skip

    trace, parts, diagonal, of_operator, diagonal_of_operator, made = at_once(
        library, all_of, params
    )
    close(made, G)
    close(trace, np.trace(G))
    close(np.sum(parts), np.trace(G))
    sizes = [p.size for p in map(numpy, leaves_of(params))]
    edges = np.cumsum([0, *sizes])
    close(parts, [np.trace(G[a:b, a:b]) for a, b in itertools.pairwise(edges)])
    close(diagonal, np.diag(G))
    close(of_operator, trace)
    close(diagonal_of_operator, diagonal)


def leaves_of(tree: Any) -> list[Any]:
    """The leaves in the order of the library that they are of."""
    import jax
    import torch

    leaves = torch.utils._pytree.tree_leaves(tree)
    return leaves if isinstance(leaves[0], torch.Tensor) else jax.tree.leaves(tree)


@pytest.mark.parametrize(("name", "library"), [("mlp", "torch"), ("gru", "torch"), ("mlp", "jax")])
def test_the_empirical_fisher_is_the_sum_of_outer_products_of_gradients(
    name: str, library: str
) -> None:
    f, params, x = network(name).on(library)
    outputs, loss = numpy(f(params, x)), tkn.losses.softmax_cross_entropy
    y = np.random.default_rng(0).integers(0, outputs.shape[-1], outputs.shape[:-1])
    J = networks.reference(name, library)
    J = J.reshape(len(x), -1, J.shape[1])
    g = np.einsum("nop,no->np", J, loss.gradient(outputs, y).reshape(len(x), -1))

    def all_of(params: Any) -> Any:
        A = tkn.fisher(f, params, x, loss, y)
        assert A.factor.shape[1] == len(x)
        return networks.columns(A), tk.exact_trace(A).value, tk.diagonal(A).value

    made, trace, diagonal = at_once(library, all_of, params)
    close(made, g.T @ g)
    close(trace, np.sum(g * g))
    close(diagonal, np.sum(g * g, 0))


def test_without_labels_the_fisher_is_the_gauss_newton_matrix() -> None:
    f, params, x = network("mlp").on("torch")
    loss = tkn.losses.logistic
    close(dense(tkn.fisher(f, params, x, loss)), dense(tkn.ggn(f, params, x, loss)), 0)


def test_of_squared_errors_it_is_the_kernel_on_the_parameters() -> None:
    f, params, x = network("cnn").on("torch")
    G = tkn.ggn(f, params, x, tkn.losses.squared_error)
    close(dense(G), dense(tkn.parameter_gram(lambda p: f(p, x), params)))
    trace = tkn.ggn_trace(f, params, x, tkn.losses.squared_error)
    close(numpy(trace), numpy(tkn.ntk_trace(f, params, x)))


def test_a_loss_of_ones_own_needs_a_root_alone() -> None:
    f, params, x = network("gru").on("torch")
    J = networks.reference("gru", "torch").reshape(8, 3, -1).sum(1)
    A = tkn.ggn(f, params, x, Weighted())
    assert A.factor.shape[1] == 8
    close(dense(A), 4 * J.T @ J)
    close(numpy(tkn.ggn_trace(f, params, x, Weighted())), 4 * np.sum(J * J))


@every_library
def test_traces_and_diagonals_can_be_differentiated(library: str) -> None:
    """Through the root too: probabilities change with the parameters."""
    rng = np.random.default_rng(0)
    x, w, v = rng.standard_normal((4, 3)), rng.standard_normal((3, 2)), rng.standard_normal((2, 3))
    loss = tkn.losses.softmax_cross_entropy

    if library == "torch":
        torch = pytest.importorskip("torch")
        xp, x = torch, torch.asarray(x)
    else:
        jax = pytest.importorskip("jax")
        xp = jax.numpy

    def f(p: Any, x: Any) -> Any:
        return xp.tanh(x @ p["w"]) @ p["v"]

    def exact(w: Any, v: Any) -> Any:
        p = {"w": w, "v": v}
        d = tkn.ggn_diagonal(f, p, x, loss)
        return tkn.ggn_trace(f, p, x, loss) + (d["w"] ** 2).sum() + (d["v"] ** 2).sum()

    def of_operator(w: Any, v: Any) -> Any:
        A = tkn.ggn(f, {"w": w, "v": v}, x, loss)
        D = A.matmat(A.xp.eye(12, dtype=A.dtype)).diagonal()
        return D.sum() + (D**2).sum()

    def plain(w: Any, v: Any) -> Any:
        """By one reverse pass for each output."""
        jacrev = torch.func.jacrev if library == "torch" else jax.jacrev
        parts = jacrev(lambda w, v: f({"w": w, "v": v}, x), (0, 1))(w, v)
        J = xp.concatenate([part.reshape(4, 3, 6) for part in parts], 2)
        p = xp.exp(xp.log(xp.exp(z := f({"w": w, "v": v}, x)) / xp.exp(z).sum(1)[:, None]))
        H = p[:, :, None] * xp.eye(3, dtype=p.dtype) - p[:, :, None] * p[:, None, :]
        D = xp.einsum("nop,noq,nqp->p", J, H, J)
        return D.sum() + (D**2).sum()

    if library == "torch":

        def gradient(of: Any) -> Any:
            leaves = [torch.asarray(a).requires_grad_() for a in (w, v)]
            return torch.autograd.grad(of(*leaves), leaves)
    else:

        def gradient(of: Any) -> Any:
            return jax.jit(jax.grad(of, (0, 1)))(w, v)

    truth = gradient(plain)
    for of in (exact, of_operator):
        for mine, plain_one in zip(gradient(of), truth, strict=True):
            close(numpy(mine), numpy(plain_one))


def batch_norm() -> tuple[Any, Any, Any]:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False),
                          nn.Tanh(), nn.Linear(4, 2)).double()  # fmt: skip
    return *tkn.functional(model), torch.asarray(normal(5, 3))


def test_samples_that_mix_are_refused_or_treated_as_one() -> None:
    f, params, x = batch_norm()
    loss = tkn.losses.softmax_cross_entropy
    with pytest.raises(ValueError, match="coupled"):
        tkn.ggn_trace(f, params, x, loss)
    with pytest.raises(ValueError, match="coupled"):
        tkn.ggn_diagonal(f, params, x, loss)
    A = tkn.ggn(f, params, x, loss)
    G = brute(dense(tkn.jacobian(lambda p: f(p, x), params)), numpy(f(params, x)), loss)
    assert A.exact is None
    close(dense(A), G)
    close(numpy(tkn.ggn_trace(f, params, x, loss, whole=True)), np.trace(G))
    close(flat(tkn.ggn_diagonal(f, params, x, loss, whole=True)), np.diag(G))


@pytest.mark.parametrize(
    ("library", "shape"), [("torch", (1, 3)), ("torch", (4, 1)), ("torch", (4,)), ("jax", (4,))]
)
def test_shapes(library: str, shape: tuple[int, ...]) -> None:
    """One sample, one output, outputs without an axis; parameters that are not read."""
    xp = pytest.importorskip("torch" if library == "torch" else "jax.numpy")
    x, w = xp.asarray(normal(shape[0], 2)), xp.asarray(normal(2, *shape[1:]))
    params = {"a": {"w": w, "unread": xp.ones((2, 2))}}
    f = lambda p, x: xp.tanh(x @ p["a"]["w"])  # noqa: E731
    J = np.einsum("nd,no,oq->noqd", x, numpy(1 - f(params, x) ** 2).reshape(shape[0], -1),
                  np.eye(shape[1] if shape[1:] else 1))  # fmt: skip
    J = np.swapaxes(J, 2, 3).reshape(shape[0], -1, numpy(w).size)
    G = brute(J, numpy(f(params, x)), loss := tkn.losses.logistic)
    close(numpy(tkn.ggn_trace(f, params, x, loss)), np.trace(G))
    diagonal = tkn.ggn_diagonal(f, params, x, loss)
    close(numpy(diagonal["a"]["w"]).ravel(), np.diag(G))
    unread = numpy(diagonal["a"]["unread"])
    assert unread.shape == (2, 2)
    assert not unread.any()
    y = numpy(f(params, x)) * 0
    g = np.einsum("nop,no->np", J, loss.gradient(numpy(f(params, x)), y).reshape(shape[0], -1))
    F = tkn.fisher(f, params, x, loss, xp.asarray(y))
    close(float(tk.exact_trace(F)), np.sum(g * g))


def test_columns_of_several_positions_are_those_of_the_block_diagonal_root() -> None:
    outputs = normal(2, 3, 4)
    S = roots.roots_of(tkn.losses.softmax_cross_entropy, outputs, 2)
    rows = tkn.losses.softmax_cross_entropy.hessian_root(outputs.reshape(6, 4)).reshape(2, 3, 4, 4)
    whole = np.zeros((2, 12, 12))
    for t in range(3):
        whole[:, 4 * t : 4 * t + 4, 4 * t : 4 * t + 4] = rows[:, t]
    for low, high in ((0, 12), (3, 5), (4, 8), (5, 12), (11, 12)):
        close(S.columns(low, high), whole[:, :, low:high])
    V = normal(24, 2)
    close(S.product(V), (whole @ V.reshape(2, 12, 2)).reshape(24, 2))
    close(S.adjoint_product(V), (whole.swapaxes(1, 2) @ V.reshape(2, 12, 2)).reshape(24, 2))


@pytest.mark.parametrize("S", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_squared_entries_are_those_of_jacobians_that_are_formed(
    but_jax: Library, monkeypatch: pytest.MonkeyPatch, kind: str, S: int
) -> None:
    use = make(np.random.default_rng(0), kind, 4, 2, S, real=True)
    size = use.start + use.size + 1
    expected = np.zeros(size)
    expected[use.start : use.start + use.size] = np.sum(entries(use) ** 2, (0, 1))
    for numbers in (1, 40, 2**22):
        monkeypatch.setattr(squares, "NUMBERS_AT_ONCE", numbers)
        made = but_jax.numpy(squares.squared_entries([there(but_jax, use)], size))
        close(made, expected, 100 * but_jax.eps)


def test_uses_of_the_same_entries_are_added_up_before_they_are_squared(but_jax: Library) -> None:
    rng = np.random.default_rng(0)
    uses = [make(rng, kind, 4, 2, 2, real=True) for kind in ("first", "lookup", "dense")]
    uses.append(Outer(uses[0].X, uses[0].G, True, start=12))
    J = np.zeros((4, 12, 24))
    for use in uses:
        J[:, :, use.start : use.start + use.size] += entries(use)
    made = squares.squared_entries([there(but_jax, use) for use in uses], 24)
    close(but_jax.numpy(made), np.sum(J**2, (0, 1)), 100 * but_jax.eps)


@every_library
def test_single_precision_stays_single(library: str) -> None:
    f, params, x = network("mlp").on(library, "float32")
    loss = tkn.losses.softmax_cross_entropy
    G = brute(networks.reference("mlp", library), numpy(f(params, x)).astype(float), loss)
    A = tkn.ggn(f, params, x, loss)
    made = [tkn.ggn_trace(f, params, x, loss), networks.columns(A),
            *leaves_of(tkn.ggn_diagonal(f, params, x, loss))]  # fmt: skip
    assert {numpy(a).dtype for a in made} == {np.dtype("float32")}
    close(numpy(made[0]), np.trace(G), 1e-5)
    close(numpy(made[1]), G, 1e-4)


def test_estimators_use_the_factor() -> None:
    f, params, x = network("mlp").on("torch")
    G = tkn.ggn(f, params, x, tkn.losses.logistic)
    A, counter = tk.counted(replace(G, exact=None))
    estimate = tk.hutchinson(A, 8, rng=0)
    assert counter.total == counter.rmatvecs == estimate.num_matvecs == 8
    matrix = dense(G)
    expected = np.linalg.slogdet(np.eye(len(matrix)) + matrix)[1]
    estimate = tk.trace_function(G, tk.functions.log1p, 2 * len(matrix), rng=0)
    close(float(estimate), expected, 1e-6)


def test_losses_that_give_something_else_are_refused() -> None:
    f, params, x = network("mlp").on("torch")

    class Wrong:
        def hessian_root(self, outputs: Any) -> Any:
            return outputs

        def gradient(self, outputs: Any, y: Any) -> Any:
            return outputs[:, 0]

    for of in (tkn.ggn, tkn.ggn_trace, tkn.ggn_diagonal, tkn.fisher):
        with pytest.raises(TypeError, match="must have a method hessian_root"):
            of(f, params, x, "squared_error")
        with pytest.raises(ValueError, match="must give a real array of shape"):
            of(f, params, x, Wrong())
    with pytest.raises(ValueError, match="must give a real array of the outputs' shape"):
        tkn.fisher(f, params, x, Wrong(), x)
    with pytest.raises(TypeError, match="must have a method gradient"):
        tkn.fisher(f, params, x, Weighted(), x)
    with pytest.raises(ValueError, match="classes from 0 to 1"):
        tkn.fisher(f, params, x, tkn.losses.softmax_cross_entropy, np.full(6, 2))


@every_library
def test_complex_outputs_are_refused(library: str) -> None:
    xp = pytest.importorskip("torch" if library == "torch" else "jax.numpy")
    params, x = xp.asarray(normal(2, 3)) + 0j, xp.asarray(normal(4, 2)) + 0j
    for of in (tkn.ggn, tkn.ggn_trace, tkn.ggn_diagonal):
        with pytest.raises(TypeError, match="must give real outputs"):
            of(lambda w, x: x @ w, params, x, tkn.losses.squared_error)
