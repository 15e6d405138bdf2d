"""Operators of the kinds of network that PyTorch users have, against plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import close, dense

import tracekit as tk
import tracekit_ntk as tkn

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
nn = torch.nn
Array = Any
Network = tuple[Callable[..., Any], Any, Any]  # f(params, x), params, x


# Networks -----------------------------------------------------------------------------------------


class Product(torch.autograd.Function):
    """An operation of the user's own in the old style: no rule for vmap, none for forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Array, w: Array) -> Array:
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, w = ctx.saved_tensors
        return g @ w, g.T @ x


class Lambda(nn.Module):
    """Modules, and what to do with them."""

    def __init__(self, call: Any, **parts: Any) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.call(self, *inputs)


def checkpointed(m: Any, x: Array) -> Array:
    from torch.utils.checkpoint import checkpoint

    return m.out(checkpoint(lambda x: torch.tanh(m.hidden(x)), x, use_reentrant=False))


def packed(m: Any, x: Array) -> Array:
    """Sequences of two lengths, as the last entry of each sample says."""
    lengths = 2 + (x[:, 0, 0] > 0).long().cpu()
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(m.cell(rows)[0], batch_first=True, total_length=4)[0]


def energy_gradient(m: Any, x: Array) -> Array:
    """Forces: a gradient inside the forward pass."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(m.net(x).sum(), x, create_graph=True)[0]


def tied(m: Any, ids: Array) -> Array:
    return m.embed(ids) @ m.hidden.weight @ m.embed.weight.T


MODULES: dict[str, Callable[[], Any]] = {
    "transformer encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), 1
    ),
    "multi-head attention": lambda: Lambda(
        lambda m, x: m.attention(x, x, x)[0],
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "LSTM": lambda: Lambda(lambda m, x: m.cell(x)[0], cell=nn.LSTM(4, 2, batch_first=True)),
    "GRU": lambda: Lambda(lambda m, x: m.cell(x)[0], cell=nn.GRU(4, 2, batch_first=True)),
    "packed LSTM": lambda: Lambda(packed, cell=nn.LSTM(4, 2, batch_first=True)),
    "PReLU CNN": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv2d(1, 2, (2, 3)), nn.PReLU(2), nn.Flatten(), nn.Linear(8, 2)
    ),
    "embedding": lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(9, 2)),
    "sparse embedding": lambda: nn.Sequential(
        nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(9, 2)
    ),
    "embedding bag": lambda: nn.Sequential(nn.EmbeddingBag(5, 3), nn.Tanh(), nn.Linear(3, 2)),
    "tied weights": lambda: Lambda(tied, embed=nn.Embedding(5, 3), hidden=nn.Linear(3, 3, False)),
    "learned scale": lambda: Lambda(
        lambda m, x: m.scale.exp() * m.net(x) + m.shift,
        net=nn.Linear(4, 2),
        scale=nn.Parameter(torch.tensor(0.3)),
        shift=nn.Parameter(torch.tensor([0.1])),
    ),
    "operation of one's own": lambda: Lambda(
        lambda m, x: m.out(torch.tanh(Product.apply(x, m.w))),
        w=nn.Parameter(torch.randn(3, 4)),
        out=nn.Linear(3, 2),
    ),
    "checkpoint": lambda: Lambda(checkpointed, hidden=nn.Linear(4, 3), out=nn.Linear(3, 2)),
    "no numbers": lambda: Lambda(
        lambda m, x: m.net(x) + m.none.sum(), net=nn.Linear(4, 2), none=nn.Parameter(torch.ones(0))
    ),
    "forces": lambda: Lambda(
        energy_gradient, net=nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    ),
    "centres": lambda: Lambda(
        lambda m, x: torch.exp(-torch.cdist(x, m.centres)), centres=nn.Parameter(torch.randn(3, 4))
    ),
}
TOKENS = ("transformer encoder", "multi-head attention", "LSTM", "GRU", "packed LSTM", "PReLU CNN")
IDS = ("embedding", "sparse embedding", "embedding bag", "tied weights")
NO_FORWARD = ("embedding bag", "centres")


def network(name: str) -> Network:
    torch.manual_seed(0)
    module = MODULES[name]().double().eval()
    x = torch.randn(3, 3 if name == "PReLU CNN" else 4, 4, dtype=torch.float64)
    x = x if name in TOKENS else torch.randint(5, (3, 3)) if name in IDS else x[:, 0]
    return (*tkn.functional(module), x)


def plain(f: Any, params: Any, x: Any) -> np.ndarray:
    """The Jacobian by one plain reverse pass for each output."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    rows = []
    for y in f(leaves, x).reshape(-1):
        grads = torch.autograd.grad(y, list(leaves.values()), retain_graph=True, allow_unused=True)
        rows.append(torch.cat([
            torch.zeros(p.numel(), dtype=y.dtype) if g is None else g.to_dense().reshape(-1)
            for g, p in zip(grads, leaves.values(), strict=True)
        ]))  # fmt: skip
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("name", MODULES)
def test_products_are_those_of_autograd(name: str) -> None:
    """By both modes; of the whole batch and of each sample on its own."""
    f, params, x = network(name)
    J = plain(f, params, x)
    N, n, P = len(x), len(J) // len(x), J.shape[1]
    A = tkn.jacobian(lambda p: f(p, x), params)
    close(dense(A.H), J.T, 1e-9)
    own = J.reshape(N, n, P)
    for implementation in (tkn.jacobian_contraction, tkn.ntk_vector_products):
        if name in NO_FORWARD and implementation is tkn.ntk_vector_products:
            continue
        K = tkn.kernel(f, params, x, implementation=implementation)
        close(K.reshape(N, N, n, n), np.einsum("nip,mjp->nmij", own, own), 1e-9)
    S = tkn.sample_ntk(f, params, x)
    U = np.random.default_rng(0).standard_normal((N, n, 2))
    V = torch.asarray(U.reshape(-1, 2))
    pulled = np.einsum("nip,nik->npk", own, U)
    close(S.factor.H @ V, pulled.reshape(-1, 2), 1e-9)
    close(S.quad(V), np.sum(pulled**2, axis=(0, 1)), 1e-9)
    if name in NO_FORWARD:
        for operator in (A, S):
            with pytest.raises(NotImplementedError, match=r"one_sided_summary.* factored_ntk"):
                operator @ torch.ones(operator.shape[1], 1, dtype=torch.float64)
        return
    close(dense(A), J, 1e-9)
    close(S @ V, np.einsum("nip,npk->nik", own, pulled).reshape(-1, 2), 1e-9)


# Refused, or right after all ----------------------------------------------------------------------


def mlp(*extra: Any) -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *extra, nn.Linear(6, 2)).double()
    return (*tkn.functional(module), torch.randn(5, 4, dtype=torch.float64))


def test_functions_that_are_random_are_refused_by_every_operator() -> None:
    f, params, x = mlp(nn.Dropout(0.5))
    g = lambda p: f(p, x)  # noqa: E731
    for make in (
        lambda: tkn.jacobian(g, params),
        lambda: tkn.ntk(g, params),
        lambda: tkn.parameter_gram(g, params),
        lambda: tkn.cross_ntk(g, g, params),
        lambda: tkn.per_parameter(g, params),
        lambda: tkn.ntk(f, params, batches=[x, x]),
        lambda: tkn.jacobian(lambda p: p["0.weight"] * torch.randn(6, 4).double(), params),
    ):
        with pytest.raises(ValueError, match=r"two runs of f .* differ .* dropout"):
            make()

    def seeded(p: Any) -> Array:
        torch.manual_seed(0)
        return f(p, x)

    J = tkn.jacobian(seeded, params)
    close(dense(J), plain(lambda p, x: seeded(p), params, x), 1e-9)


def test_what_no_grad_hides_from_reverse_mode_is_noticed() -> None:
    w = torch.linspace(0.5, 2, 4, dtype=torch.float64)

    def hidden(w: Array) -> Array:
        with torch.no_grad():
            scale = w.sum()
        return torch.sin(w) * scale

    J = tkn.jacobian(hidden, w)
    own = np.diag(np.cos(w.numpy()) * float(w.sum()))
    close(dense(J.H), own, 1e-12)  # as autograd has it
    with pytest.raises(ValueError, match=r"forward and reverse mode disagree .*no_grad.*detach"):
        J @ torch.ones(4, 1).double()
    close(dense(tkn.jacobian(lambda w: torch.sin(w) * w.sum().detach(), w)), own, 1e-12)


class WrongInBatches(torch.autograd.Function):
    """The identity, whose reverse pass is wrong for several rows at once."""

    @staticmethod
    def forward(x: Array) -> Array:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Array) -> Array:
        return Doubled.apply(g)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(x: Array) -> Array:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Array) -> Array:
        return g

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Array) -> Any:
        return 2 * x, in_dims[0]


def test_batched_reverse_passes_that_are_wrong_are_made_one_by_one() -> None:
    f, params, x = mlp()
    g = lambda p, x: WrongInBatches.apply(f(p, x))  # noqa: E731
    J = plain(g, params, x)
    A = tkn.jacobian(lambda p: g(p, x), params)
    close(dense(A.H), J.T, 1e-9)
    close(dense(A), J, 1e-9)  # no forward mode: two reverse passes

    def late(p: Any, x: Array) -> Array:  # in the last outputs alone
        return torch.cat([f(p, x), g(p, x)])

    close(dense(tkn.jacobian(lambda p: late(p, x), params, chunk_size=4).H), np.vstack([J, J]).T)


def test_calls_without_grad_and_tensors_of_inference_mode() -> None:
    f, params, x = mlp()
    J = plain(f, params, x)
    X, U = (torch.randn(k, 2, dtype=torch.float64) for k in J.shape[::-1])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            own = tkn.functional(nn.Linear(4, 2).double())[1], x.clone()
            inside = {name: p.clone() for name, p in params.items()}, x.clone()
            made = tkn.jacobian(lambda p: f(p, inside[1]), inside[0])  # noqa: B023
        outside = tkn.jacobian(lambda p: f(p, inside[1]), inside[0])  # noqa: B023
        assert own[0]["weight"].shape == (2, 4)
        for A in (made, outside):
            close(A @ X, J @ X.numpy(), 1e-9)
            with mode():
                close(A.H @ U.clone(), J.T @ U.numpy(), 1e-9)
                close(A @ X.clone(), J @ X.numpy(), 1e-9)


def test_mixed_precision_is_judged_by_the_precision_met_inside() -> None:
    torch.manual_seed(0)
    f, params = tkn.functional(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 3)))
    x = torch.randn(6, 32)

    def by_autocast(p: Any, x: Array) -> Array:
        with torch.autocast("cpu", torch.bfloat16):
            return f(p, x).float()

    def by_hand(p: Any, x: Array) -> Array:
        half = {name: leaf.bfloat16() for name, leaf in p.items()}
        return f(half, x.bfloat16()).float()

    for g in (by_autocast, by_hand):
        J = plain(g, params, x)
        exact = np.sum(J**2)
        for K in (tkn.sample_ntk(g, params, x), tkn.ntk(lambda p: g(p, x), params)):  # noqa: B023
            assert float(tk.exact_trace(K)) == pytest.approx(exact, rel=0.02)
            Y = (K @ torch.eye(18)[:, :4]).numpy()
            own = J.reshape(6, 3, -1)[:2]
            blocks = np.einsum("nip,nip->ni", own, own).reshape(-1)[:4]
            np.testing.assert_allclose(np.diag(Y), blocks, rtol=0.05)


def test_what_is_no_batch_of_samples_is_refused_before_f_is_called() -> None:
    f, params, x = mlp()
    loader = torch.utils.data.DataLoader(x)
    for wrong in (loader, "x", 3.0):
        for call in (
            lambda: tkn.ntk(f, params, wrong),  # noqa: B023
            lambda: tkn.sample_ntk(f, params, wrong),  # noqa: B023
            lambda: tkn.ntk_trace(f, params, wrong),  # noqa: B023
            lambda: tkn.kernel(f, params, wrong, implementation=tkn.jacobian_contraction),  # noqa: B023
        ):
            with pytest.raises(TypeError, match=r"x is a \w+, not an array or a tree .* axis 0"):
                call()


def test_products_have_the_graph_of_the_parameters() -> None:
    """As in JAX: gradients of estimates, in grad mode and of parameters that require one."""
    f, params, x = mlp()

    def estimates(p: Any) -> list[Array]:
        K = tkn.ntk(lambda p: f(p, x), p)
        J = K.factor
        U = torch.linspace(-1, 1, 10, dtype=torch.float64)[:, None] ** torch.arange(1, 4)
        return [
            tk.hutchinson(K, 4, rng=0).value,
            (K @ U).square().sum(),
            (J @ (J.H @ U)).sum(),  # type: ignore[union-attr]
            tk.one_sided(tkn.per_parameter(lambda p: f(p, x), p)["0.weight"], 3, rng=0).value,
            (tkn.sample_ntk(f, p, x) @ U).sum(),
        ]

    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    along = {name: torch.randn_like(p) for name, p in params.items()}
    moved = [estimates({n: p + t * along[n] for n, p in params.items()}) for t in (1e-5, -1e-5)]
    for value, up, down in zip(estimates(leaves), *moved, strict=True):
        assert not up.requires_grad
        grads = torch.autograd.grad(
            value, list(leaves.values()), retain_graph=True, allow_unused=True
        )
        pairs = zip(grads, along.values(), strict=True)
        slope = sum(float((g * t).sum()) for g, t in pairs if g is not None)
        assert slope == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
    with torch.no_grad():
        assert not any(value.requires_grad for value in estimates(leaves))


# Modules as functions -----------------------------------------------------------------------------


def test_a_checkpoint_runs_again_with_the_parameters_that_were_handed_in() -> None:
    torch.manual_seed(0)
    module = MODULES["checkpoint"]().double()
    f, params = tkn.functional(module)
    x = torch.randn(3, 4, dtype=torch.float64)
    moved = {name: p + 0.1 for name, p in params.items()}
    without = lambda p, x: torch.nn.functional.linear(  # noqa: E731
        torch.tanh(x @ p["hidden.weight"].T + p["hidden.bias"]), p["out.weight"], p["out.bias"]
    )
    J = plain(without, moved, x)
    A = tkn.jacobian(lambda p: f(p, x), moved)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    close(dense(A.H), J.T, 1e-9)
    close(dense(A), J, 1e-9)


def test_modes_are_frozen_with_the_module() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    module.train()[2].eval()
    f, params = tkn.functional(module)
    expected = f(params, x)
    module.eval()
    module[2].train()
    assert torch.equal(f(params, x), expected)
    assert [part.training for part in module] == [False, False, True, False]
    assert tkn.jacobian(lambda p: f(p, x), params).shape == (10, 24 + 6 + 12 + 12 + 2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Array) -> Array:
        return x + self.mlp(torch.tanh(self.attn(x)))


def test_which_parameters_are_chosen() -> None:
    module = nn.Sequential(nn.Linear(4, 3), Block(), Block())
    module[0].requires_grad_(False)
    module[2].mlp.weight = module[1].mlp.weight  # tied
    names = [name for name, _ in module.named_parameters()]
    both = ["1.attn.weight", "1.attn.bias", "2.attn.weight", "2.attn.bias"]
    for trainable, chosen in (
        (True, names[2:]),
        (False, names),
        ("*.attn.*", both),
        (["0.bias", "*.attn.*"], ["0.bias", *both]),
        ("2.mlp.weight", ["1.mlp.weight"]),  # by the other name
        (module[2].mlp, ["1.mlp.weight", "2.mlp.bias"]),
        ([module[0], "2.mlp.bias"], ["0.weight", "0.bias", "2.mlp.bias"]),
    ):
        assert list(tkn.functional(module, trainable=trainable)[1]) == chosen
    x = torch.randn(5, 4)
    f, some = tkn.functional(module, trainable="*.attn.*")
    whole = plain(*tkn.functional(module, trainable=False), x)
    sizes = [p.numel() for p in module.parameters()]
    kept = np.repeat([name in some for name in names], sizes)
    close(dense(tkn.jacobian(lambda p: f(p, x), some)), whole[:, kept], 1e-5)
    for trainable, error, match in (
        ("*.mpl.*", ValueError, r"no parameter is named like '\*\.mpl"),
        (nn.Linear(2, 2), ValueError, "one of its submodules"),
        (3, TypeError, "chooses no parameters"),
        ([3], TypeError, "chooses no parameters"),
        ([], ValueError, "chooses nothing"),
    ):
        with pytest.raises(error, match=match):
            tkn.functional(module, trainable=trainable)
    with pytest.raises(ValueError, match="requires a gradient; pass trainable=False"):
        tkn.functional(module.requires_grad_(False))


def gated(p: Any, x: Array) -> Array:
    """Samples meet behind a gate that is closed."""
    h = torch.tanh(x @ p["w"])
    return h + p["gate"] * h.mean(0)


def centred(p: Any, x: Array) -> Array:
    """Samples meet in derivatives alone."""
    h = torch.tanh(x @ p["w"])
    return h - h.mean(0) + h.mean(0).detach()


@pytest.mark.parametrize("f", [gated, centred])
@pytest.mark.parametrize("N", [2, 5])
def test_samples_that_mix_in_derivatives_alone_have_no_kernels_of_their_own(f: Any, N: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(N, 3, dtype=torch.float64)
    params = {"w": torch.randn(3, 2, dtype=torch.float64), "gate": torch.zeros(2).double()}
    for call in (
        lambda: tkn.sample_ntk(f, params, x),
        lambda: tkn.kernel(f, params, x, implementation=tkn.jacobian_contraction),
        lambda: tkn.kernel(f, params, x, implementation=tkn.ntk_vector_products),
    ):
        with pytest.raises(ValueError, match="samples are coupled: gradients"):
            call()
    J = torch.as_tensor(plain(lambda p, x: f(p, x), params, x))
    trace = tkn.ntk_trace(f, params, x, whole=True)
    assert float(trace) == pytest.approx(float((J**2).sum()))


def test_padding_of_embeddings_is_held_fixed_in_products_with_the_jacobian() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(6, 3, padding_idx=-2), nn.Flatten(), nn.Linear(9, 2)).double()
    f, params = tkn.functional(net)
    ids = torch.tensor([[0, 4, 4], [5, 0, 0], [4, 4, 4]])
    J = torch.as_tensor(plain(f, params, ids))
    assert not J[:, :18].reshape(-1, 6, 3)[:, 4].any()
    eye = torch.eye(J.shape[1], dtype=J.dtype)
    torch.testing.assert_close(tkn.jacobian(lambda p: f(p, ids), params) @ eye, J)
    own = tkn.sample_ntk(f, params, ids) @ torch.ones(6, 1, dtype=J.dtype)
    K = (J @ J.T).reshape(3, 2, 3, 2)
    torch.testing.assert_close(own[:, 0], torch.einsum("nanb->na", K).reshape(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision_have_operators_in_single(dtype: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)).to(dtype)
    x = torch.randn(6, 3).to(dtype)
    f, params = tkn.functional(net)
    J = torch.as_tensor(plain(tkn.functional(net.double())[0], to64(params), x.double()))
    trace = float((J**2).sum())
    for K in (tkn.sample_ntk(f, params, x), tkn.factored_ntk(f, params, x)):
        assert K.dtype == torch.float32
        few = replace(K, exact={})
        estimate = tk.hutchinson(few, 4, rng=0)
        assert estimate.value.dtype == torch.float32
        assert abs(float(estimate) - trace) < 5 * float(estimate.standard_error) + 0.05 * trace
        v = torch.ones(30, 1)
        assert (K @ v).dtype == torch.float32
    product = tkn.factored_ntk(f, params, x) @ torch.ones(30, 1)
    wanted = J @ (J.T @ torch.ones(30, 1).double())
    assert float((product - wanted).norm()) < 0.02 * float(wanted.norm())


def test_parameters_of_two_precisions_have_operators_in_the_wider() -> None:
    torch.manual_seed(0)
    params = {"a": torch.randn(3, 4), "b": torch.randn(4, 2).double()}
    x = torch.randn(3, 3).double()

    def f(p: Any, x: Array) -> Array:
        return torch.tanh(x.to(p["a"].dtype) @ p["a"]).double() @ p["b"]

    K = tkn.factored_ntk(f, params, x)
    J = torch.as_tensor(plain(f, to64(params), x))
    U = torch.randn(6, 2).double()
    assert K.dtype == torch.float64
    torch.testing.assert_close(K @ U, J @ (J.T @ U), rtol=1e-5, atol=1e-5)


def test_real_columns_through_a_complex_jacobian_of_real_parameters() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4, 3).double(), torch.randn(3, 2).double()
    J = tkn.jacobian(lambda w: torch.exp(1j * (x @ w)), w)
    X = torch.randn(6, 2).double()
    slope = 1j * torch.exp(1j * (x @ w))
    wanted = slope[..., None] * torch.einsum("nd,dok->nok", x, X.reshape(3, 2, 2))
    torch.testing.assert_close(J @ X, wanted.reshape(8, 2))


def test_operators_of_samples_leave_inputs_as_they_are() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4, 3).double(), torch.randn(3, 2).double()

    def f(w: Array, x: Array) -> Array:
        return torch.tanh(x.mul_(2) @ w)

    before = x.clone()
    tree = {"w": w}
    J = torch.as_tensor(plain(lambda p, x: torch.tanh(2 * x @ p["w"]), tree, x))
    K = tkn.ntk(f, w, x) @ torch.eye(8).double()
    torch.testing.assert_close(K, J @ J.T)
    traces = [
        tk.exact_trace(tkn.sample_ntk(f, w, x)).value,
        torch.einsum("nnoo", tkn.kernel(f, w, x, implementation=tkn.jacobian_contraction)),
        torch.einsum("nnoo", tkn.kernel(f, w, x, implementation=tkn.ntk_vector_products)),
    ]
    for trace in traces:
        assert float(trace) == pytest.approx(float((J**2).sum()))
    assert torch.equal(x, before)


def test_random_gates_that_agree_by_chance_are_noticed() -> None:
    torch.manual_seed(3)
    x, w = torch.randn(4, 3).double(), torch.randn(3, 2).double()

    def seldom(w: Array, x: Array) -> Array:
        return x @ w * (torch.rand(()) < 0.7)

    def idle(w: Array, x: Array) -> Array:
        return x @ w + 0 * torch.rand(())

    for seed in range(8):
        torch.manual_seed(seed)
        with pytest.raises(ValueError, match="two runs of f"):
            tkn.ntk_trace(seldom, w, x)
        with pytest.raises(ValueError, match="two runs of f"):
            tkn.jacobian(lambda w: seldom(w, x), w)
    assert float(tkn.ntk_trace(idle, w, x)) == pytest.approx(2 * float((x**2).sum()))


def to64(params: Any) -> Any:
    return {name: p.double() for name, p in params.items()}


def test_batched_passes_of_a_parameter_on_its_own_are_held_to_a_plain_one() -> None:
    """PyTorch's batching rule of the derivative of distances is wrong for several rows."""
    torch.manual_seed(0)
    x, w = torch.randn(3, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def f(p: Any, x: Any) -> Any:
        return torch.cdist(x, p["w"]).exp()

    J = torch.autograd.functional.jacobian(lambda w: f({"w": w}, x), w).reshape(12, 12)
    with pytest.warns(UserWarning, match="'w'"):
        found = tkn.kernel_matrix(tkn.kernel(f, {"w": w}, x))
    torch.testing.assert_close(found, J @ J.T)


@pytest.mark.parametrize("seed", range(12))
def test_parameters_of_single_precision_in_double_arithmetic(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(3, 2, generator=generator)
    x = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    K = tkn.sample_ntk(lambda w, x: x @ w.double(), w, x) @ torch.eye(6)
    wanted = torch.block_diag(*((a @ a) * torch.eye(2, dtype=x.dtype) for a in x))
    torch.testing.assert_close(K.double(), wanted, rtol=1e-5, atol=1e-5)
