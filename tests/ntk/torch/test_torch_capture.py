"""PyTorch networks in factored form, against Jacobians by one reverse pass for each output."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call, jacrev  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import tracekit_ntk as tkn  # noqa: E402
from tracekit_ntk._factors.uses import take_samples  # noqa: E402
from tracekit_ntk._torch.capture import capture  # noqa: E402
from tracekit_ntk._torch.reads import direct  # noqa: E402
from tracekit_ntk._torch.rules import RULES  # noqa: E402
from tracekit_ntk.factors import Outer, dense  # noqa: E402

Array = Any
NETS: dict[str, tuple[Any, ...]] = {}


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def module(net: nn.Module) -> tuple[Callable[..., Any], dict[str, Array]]:
    params = {name: p.detach() for name, p in net.named_parameters()}
    return lambda p, x: functional_call(net, p, (x,)), params


def rows(f: Any, params: dict[str, Array], x: Any) -> dict[str, Array]:
    """Jacobians (N, O, P) by plain autograd, an output at a time."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    y = f(leaves, x)
    ends = y.reshape(-1)
    grads = [
        torch.autograd.grad(e, list(leaves.values()), torch.ones_like(e), retain_graph=True,
                            materialize_grads=True)
        for e in ends
    ]  # fmt: skip
    stacked = [torch.stack(g).to_dense().conj().resolve_conj() for g in zip(*grads, strict=True)]
    return {
        n: g.reshape(len(y), len(ends) // len(y), p.numel())
        for (n, p), g in zip(params.items(), stacked, strict=True)
    }


def check(
    f: Any, params: dict[str, Array], x: Any, *, chunks: int = 0, whole: bool = False,
    fallback: tuple[str, ...] = (), expected: Any = None,
) -> Any:  # fmt: skip
    """Hold factors to Jacobians, and parameters without factors to those that are named."""
    found = capture(f, params, x, whole=whole)
    expected = rows(f, params, x) if expected is None else expected
    M = found.outputs
    step = chunks or M
    told = ""
    for low in range(0, M, step):
        high = min(low + step, M)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            uses = found.uses(low, high)
        assert len(said) <= (not told)
        told += "".join(str(w.message) for w in said)
        for name, p in params.items():
            J = expected[name].reshape(found.samples, M, p.numel())[:, low:high]
            mine = uses[f"['{name}']"]
            made = dense(mine, p.numel()) if mine else torch.zeros_like(J)
            size = float(1 + J.abs().max()) if p.numel() else 1
            torch.testing.assert_close(made, J, rtol=1e-10, atol=1e-12 * size)
    reasons = {path[2:-2] for path, _, _, reason in found.report if reason}
    assert reasons == set(fallback), found.report
    slow = {path for path, op, _, reason in found.report if reason and op != "none"}
    assert bool(told) == bool(slow)
    assert all(path in told for path in list(slow)[:5]) or len(slow) > 5, told
    return found


def net(build: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
    """Enter a golden network: f, params, x, and what `check` is told."""
    NETS[build.__name__] = build  # type: ignore[assignment]
    return build


R = torch.randn


@net
def fcn() -> Any:
    mlp = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    return *module(mlp), R(6, 4), {"chunks": 2}


@net
def fcn_in_ntk_parametrisation() -> Any:
    params = {"a": R(4, 5), "b": R(5, 3), "c": R(3)}

    def f(p: Any, x: Array) -> Array:
        return torch.relu(x @ (p["a"] / 2)) @ p["b"] * 5**-0.5 + 0.1 * p["c"]

    return f, params, R(3, 4), {}


class ConvNet(nn.Module):
    """Strides, both paddings, dilation, groups, depthwise, residual, pooling, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, stride=2, padding="valid")
        self.two = nn.Conv2d(4, 6, (3, 2), padding="same", groups=2, dilation=2)
        self.three = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.norm, self.groups, self.out = nn.BatchNorm2d(6), nn.GroupNorm(2, 4), nn.Linear(6, 2)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Array) -> Array:
        h = torch.tanh(self.norm(self.two(torch.relu(self.groups(self.one(x))))))
        h = F.max_pool2d(self.three(h) + h, 2)
        return self.out(h.mean((2, 3)))


@net
def cnn() -> Any:
    return *module(ConvNet().eval()), R(3, 3, 11, 9), {}


@net
def conv1d() -> Any:
    layers = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), nn.Tanh(),
                           nn.Conv1d(4, 2, 2, groups=2, stride=2), nn.Flatten())  # fmt: skip
    return *module(layers), R(4, 2, 6), {}


@net
def conv3d() -> Any:
    layers = nn.Sequential(
        nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)
    )
    return *module(layers), R(2, 2, 4, 4, 3), {}


class Recurrent(nn.Module):
    """A recurrent module with a read-out at every time step."""

    def __init__(self, kind: Any, batch_first: bool, **options: Any) -> None:
        super().__init__()
        self.r = kind(3, 4, batch_first=batch_first, **options)
        self.first = batch_first
        self.out = nn.Linear(self.r.hidden_size * (1 + self.r.bidirectional), 2)

    def forward(self, x: Array) -> Array:
        h = self.r(x)[0] if self.first else self.r(x.transpose(0, 1))[0].transpose(0, 1)
        return self.out(h)


@net
def gru() -> Any:
    return *module(Recurrent(nn.GRU, True)), R(2, 5, 3), {"chunks": 3}


@net
def gru_of_two_layers_both_ways() -> Any:
    made = Recurrent(nn.GRU, False, num_layers=2, bidirectional=True)
    return *module(made), R(2, 4, 3), {"chunks": 3}


@net
def gru_of_two_layers_without_biases() -> Any:
    return *module(Recurrent(nn.GRU, True, num_layers=2, bias=False)), R(2, 4, 3), {"chunks": 2}


@net
def lstm() -> Any:
    return *module(Recurrent(nn.LSTM, False, num_layers=2)), R(2, 5, 3), {"chunks": 3}


@net
def elman() -> Any:
    return (
        *module(Recurrent(nn.RNN, True, num_layers=2, nonlinearity="relu")),
        R(2, 5, 3),
        {"chunks": 3},
    )


class Cells(nn.Module):
    """All three kinds of cells, one upon the other, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.l, self.e = nn.GRUCell(3, 4), nn.LSTMCell(4, 4), nn.RNNCell(4, 4, bias=False)

    def forward(self, x: Array) -> Array:
        h = e = x.new_zeros(len(x), 4)
        c = (h, h)
        for t in range(x.shape[1]):
            h = self.g(x[:, t], h)
            c = self.l(h, c)
            e = self.e(c[0], e)
        return e


@net
def cells() -> Any:
    return *module(Cells()), R(2, 4, 3), {}


@net
def hand_written_recurrence() -> Any:
    params = {"a": R(3, 4), "b": R(4, 4), "c": R(4, 2)}

    def f(p: Any, x: Array) -> Array:
        drive, h = x @ p["a"], x.new_zeros(len(x), 4)
        states = [h[:, None]]
        for t in range(x.shape[1]):
            h = torch.tanh(drive[:, t] + torch.mm(h, p["b"]))
            states.append(h[:, None])
        return torch.cat(states, -2) @ p["c"]

    return f, params, R(2, 4, 3), {"chunks": 3}


class Transformer(nn.Module):
    """A block with a class token, positions, tied read-out, and attention of PyTorch."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.e = nn.Embedding(7, 8, padding_idx=2)
        self.at, self.token = nn.Parameter(R(1, 5, 8)), nn.Parameter(R(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, batch_first=batch_first, norm_first=True
        )
        self.norm, self.first = nn.LayerNorm(8), batch_first

    def forward(self, ids: Array) -> Array:
        h = torch.cat([self.token.expand(len(ids), -1, -1), self.e(ids) + self.at], 1)
        h = self.block(h) if self.first else self.block(h.transpose(0, 1)).transpose(0, 1)
        return self.norm(h)[:, 0] @ self.e.weight.T


@net
def transformer() -> Any:
    ids = torch.tensor([[0, 2, 4, 6, 1], [3, 3, 1, 2, 0], [5, 0, 0, 1, 2]])
    return *module(Transformer(True).train()), ids, {"chunks": 4}


@net
def transformer_in_eval_mode_with_time_first() -> Any:
    return *module(Transformer(False).eval()), torch.randint(0, 7, (3, 5)), {}


@net
def tied_autoencoder() -> Any:
    def f(p: Any, x: Array) -> Array:
        return torch.tanh(x @ p["w"] + p["b"]) @ p["w"].T

    return f, {"w": R(4, 3), "b": R(3)}, R(3, 4), {}


@net
def scalar_output() -> Any:
    return (
        lambda p, x: (torch.tanh(x @ p["a"]) * p["b"]).sum(1),
        {"a": R(4, 5), "b": R(5)},
        R(3, 4),
        {},
    )


@net
def several_outputs() -> Any:
    def f(p: Any, x: Array) -> Array:
        h = torch.tanh(x @ p["a"])
        return torch.stack([h, h**2 @ p["b"]], 1)

    return f, {"a": R(4, 5), "b": R(5, 5)}, R(3, 4), {"chunks": 4}


@net
def embedding_by_index() -> Any:
    def f(p: Any, ids: Array) -> Array:
        return torch.tanh(p["e"][ids].sum(1) + p["e"].index_select(0, ids[:, 0])) @ p["w"]

    return f, {"e": R(6, 3), "w": R(3, 2)}, torch.randint(-6, 6, (4, 3)).abs() % 6, {}


@net
def products_of_all_spellings() -> Any:
    params = {"a": R(4, 5), "b": R(5, 5), "c": R(5), "m": R(2, 5, 3), "v": R(5)}

    def f(p: Any, x: Array) -> Array:
        h = torch.addmm(p["c"], x, p["a"], beta=0.5, alpha=2.0)
        h = h + (p["a"].t() @ x.T).T + torch.einsum("...d,de->...e", x, p["a"])
        h = torch.tanh(F.linear(h, -p["b"], p["c"])) / p["c"] - p["c"] / (3 + h**2)
        heads = torch.einsum("nhd,hde->nhe", torch.stack([h, h**2], 1), p["m"])
        moved = torch.bmm(torch.stack([h, h**2], 0), p["m"]).transpose(0, 1)
        return (
            heads + moved * (h @ p["v"])[:, None, None] - (h * p["v"]).sum(1)[:, None, None]
        ).flatten(1)

    return f, params, R(3, 4), {}


@net
def views_and_slices() -> Any:
    def f(p: Any, x: Array) -> Array:
        one, two = p["b"][:4].chunk(2)
        h = torch.cat([x @ p["a"], x[:, :2] @ p["a"][:2], x @ p["a"][:, 1:3]], 1)
        h = F.linear(h[:, :5], one) - F.linear(h[:, 7:], two)
        h = (
            h[..., None] * p["c"].view(1, -1, 1, 1)[:, 1:2, 0]
            + p["c"].expand(len(x), 5)[:, :2, None]
        )
        return h.flatten(1) + p["a"].reshape(-1).narrow(0, 3, 2)

    return f, {"a": R(4, 5), "b": R(5, 5), "c": R(5)}, R(3, 4), {}


@net
def samples_folded_into_other_axes() -> Any:
    def f(p: Any, x: Array) -> Array:
        N, S, _ = x.shape
        first = F.linear(x.reshape(N * S, -1), p["w"]).reshape(N, S, -1)
        last = F.linear(x.transpose(0, 1).reshape(S * N, -1), p["w"]).reshape(S, N, -1)
        return torch.tanh(first + last.transpose(0, 1)).sum(1)

    return f, {"w": R(3, 4)}, R(2, 2, 4), {}


@net
def activation_checkpointing() -> Any:
    def block(p: Any, h: Array) -> Array:
        return torch.tanh(h @ p["b"] + p["c"])

    def f(p: Any, x: Array) -> Array:
        h = checkpoint(block, p, torch.tanh(x @ p["a"]), use_reentrant=False)
        return h @ p["b"]

    return f, {"a": R(4, 5), "b": R(5, 5), "c": R(5)}, R(3, 4), {}


@net
def mixed_operations() -> Any:
    def f(p: Any, x: Array) -> Array:
        h = (x @ p["a"]).add_(p["c"]).mul_(2)
        h = F.rms_norm(F.layer_norm(h, (5,), p["c"], p["d"]), (5,), p["c"])
        return torch.where(h > 0, h, 0.1 * h) - p["c"]

    return f, {"a": R(4, 5), "c": R(5), "d": R(5)}, R(3, 4), {}


@net
def transposed_conv1d() -> Any:
    def f(p: Any, x: Array) -> Array:
        h = F.conv_transpose1d(x, p["a"], p["b"], stride=3, padding=2, output_padding=1)
        h = torch.conv_transpose1d(torch.tanh(h), p["c"].transpose(0, 1), dilation=2)
        return F.conv_transpose1d(torch.tanh(h), p["d"], groups=3).flatten(1)

    return f, {"a": R(2, 4, 3), "b": R(4), "c": R(3, 4, 2), "d": R(3, 1, 1)}, R(4, 2, 2), {}


@net
def transposed_conv2d() -> Any:
    layers = nn.Sequential(
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=1, output_padding=(1, 0), groups=2),
        nn.Tanh(), nn.ConvTranspose2d(6, 2, 2, dilation=2, bias=False), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip
    return *module(layers), R(3, 4, 3, 3), {"chunks": 1}


@net
def transposed_conv3d() -> Any:
    layers = nn.Sequential(nn.ConvTranspose3d(2, 2, 2, stride=2), nn.Tanh(), nn.Flatten())
    return *module(layers), R(2, 2, 2, 1, 2), {}


# What no rule knows is differentiated on its own, and said.


@net
def instance_norm() -> Any:
    layers = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 2),
        nn.InstanceNorm2d(3, affine=True),
        nn.Flatten(),
        nn.Linear(48, 2),
    )
    return *module(layers), R(2, 2, 3, 3), {"fallback": ("1.weight", "1.bias")}


@net
def weight_norm() -> Any:
    layers = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)
    )
    names = tuple(f"0.parametrizations.weight.original{i}" for i in (0, 1))
    return *module(layers), R(3, 4), {"fallback": names}


@net
def functions_of_parameters() -> Any:
    def f(p: Any, x: Array) -> Array:
        return x @ (p["a"] @ p["b"]) + (x @ p["c"].exp())[:, None] + x @ (p["d"] * p["d"])

    params = {"a": R(4, 2), "b": R(2, 3), "c": R(4), "d": R(4, 3)}
    return f, params, R(3, 4), {"fallback": ("a", "b", "c", "d")}


@net
def one_use_known_and_one_not() -> Any:
    def f(p: Any, x: Array) -> Array:
        return x @ p["a"] + (p["a"] ** 2).sum() + x @ p["b"]

    return f, {"a": R(4, 3), "b": R(4, 3)}, R(3, 4), {"fallback": ("a",)}


class Double(torch.autograd.Function):
    """An operation of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Array, w: Array) -> Array:
        ctx.save_for_backward(x, w)
        return 2 * x @ w

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, w = ctx.saved_tensors
        return 2 * g @ w.T, 2 * x.T @ g


@net
def custom_function() -> Any:
    def f(p: Any, x: Array) -> Array:
        return torch.tanh(Double.apply(x @ p["a"], p["b"])) @ p["b"].T

    return f, {"a": R(4, 3), "b": R(3, 2)}, R(3, 4), {"fallback": ("b",)}


@net
def samples_in_another_order_inside() -> Any:
    return lambda p, x: (x.flip(0) @ p["a"]).flip(0), {"a": R(4, 3)}, R(4, 4), {"fallback": ("a",)}


@net
def one_parameter_for_each_sample() -> Any:
    def f(p: Any, x: Array) -> Array:
        return x @ p["a"] + p["s"]

    return f, {"a": R(4, 3), "s": R(3, 3)}, R(3, 4), {"fallback": ("s",)}


@net
def parameters_that_are_not_read() -> Any:
    def f(p: Any, x: Array) -> Array:
        return x @ p["a"] + p["b"].detach()

    return f, {"a": R(4, 3), "b": R(3), "c": R(2)}, R(3, 4), {"fallback": ("b", "c")}


class Force(nn.Module):
    """Forces and a penalty: derivatives of an energy by its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Array) -> Array:
        x = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            energy = self.net(x)
            [force] = torch.autograd.grad(energy.sum(), x, create_graph=True)
            [twice] = torch.autograd.grad(force[:, 0].sum(), x, create_graph=True)
        return torch.cat([energy, force, twice, force.square().sum(1, keepdim=True)], 1)


@net
def gradients_inside_the_forward_pass() -> Any:
    told = ("net.0.weight", "net.2.weight")
    return *module(Force()), R(3, 4), {"fallback": told}


@net
def copies_of_parameters_written_in_place() -> Any:
    def f(p: Any, x: Array) -> Array:
        b, c, w = p["b"].clone(), p["c"].to(torch.float64, copy=True), p["w"].clone()
        b[1:].zero_()
        c.mul_(3)
        w.T.add_(p["d"])
        return torch.tanh(F.linear(x, p["a"], b)) @ w + c

    params = {"a": R(3, 4), "b": R(3), "c": R(2), "w": R(3, 2), "d": R(3)}
    return f, params, R(3, 4), {"fallback": ("b", "c", "d")}


def recurrence(p: Any, x: Array) -> Array:
    h, states = x.new_zeros(len(x), 3), []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] @ p["w"] + h @ p["v"])
        states.append(h)
    return torch.stack(states, 1)


@net
def adapter_after_a_recurrence() -> Any:
    params = {"w": R(2, 3), "v": R(3, 3) / 2, "a": R(3, 2), "c": R(2, 2)}
    f = lambda p, x: recurrence(p, x) @ (p["a"] @ p["c"])  # noqa: E731
    return f, params, R(3, 4, 2), {"fallback": ("a", "c"), "chunks": 3}


@net
def parameters_joined_after_a_recurrence() -> Any:
    def f(p: Any, x: Array) -> Array:
        normed = p["v"] / p["v"].norm(dim=1, keepdim=True)
        return recurrence(p, x) @ torch.cat([p["a"], normed[:, :1], p["v"][:, 1:]], 1)

    params = {"w": R(2, 3), "v": R(3, 3) / 2, "a": R(3, 2)}
    return f, params, R(3, 4, 2), {"fallback": ("v", "a")}


@net
def complex_numbers_inside() -> Any:
    def f(p: Any, x: Array) -> Array:
        h = torch.exp(1j * (x @ p["w"])) @ p["v"].to(torch.complex128)
        h = torch.fft.fft(h + p["b"]) * p["c"] + p["e"][(x[:, 0] > 0).long()] * 1j
        return torch.cat([h.abs(), F.conv1d(h[:, None], p["k"] + 0j)[:, 0].real], 1)

    params = {"w": R(3, 5), "v": R(5, 4), "b": R(4), "c": R(4), "e": R(2, 4), "k": R(1, 1, 2)}
    return f, params, R(4, 3), {"fallback": ("k",)}


@net
def parameters_of_one_number() -> Any:
    def f(p: Any, x: Array) -> Array:
        h = torch.tanh(F.linear(x, p["w"], p["b"])) * p["s"] + p["o"]
        h = F.conv1d(torch.cat([h, x], 2).mT, p["k"], p["c"])
        return (h * p["c"] / p["r"]).flatten(1) + p["s"]

    params = {"w": R(1, 3), "b": R(1), "s": R(()), "o": R(1, 1), "k": R(1, 4, 2), "c": R(1)}
    return f, params | {"r": torch.tensor(1.5)}, R(3, 4, 3), {}


class Packed(nn.Module):
    """A recurrent module on sequences of different lengths."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.r, self.out = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Array) -> Array:
        lengths = torch.tensor([2, 4, 1])[: len(x)]
        put = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
        return self.out(nn.utils.rnn.pad_packed_sequence(self.r(put)[0], True)[0])


@net
def packed_lstm() -> Any:
    net = Packed(nn.LSTM)
    names = tuple(n for n, _ in net.named_parameters() if n.startswith("r."))
    return *module(net), R(3, 4, 3), {"fallback": names}


@net
def packed_gru() -> Any:
    net = Packed(nn.GRU)
    names = tuple(n for n, _ in net.named_parameters() if n.startswith("r."))
    return *module(net), R(3, 4, 3), {"fallback": names}


@net
def samples_swapped_within_a_half() -> Any:
    order = torch.tensor([1, 0, 2])
    told = {"fallback": ("a", "b")}
    return (
        lambda p, x: (x[order] @ p["a"] + p["b"])[order],
        {"a": R(4, 3), "b": R(3)},
        R(3, 4),
        told,
    )


@net
def views_made_without_gradients() -> Any:
    def f(p: Any, x: Array) -> Array:
        with torch.no_grad():
            fixed = p["a"].view(-1)[:3] * 2
        return torch.tanh(x @ p["a"]) * fixed + p["b"].detach()[0] * p["b"]

    return f, {"a": R(4, 3), "b": R(3)}, R(3, 4), {}


@net
def sparse_embedding_gradients() -> Any:
    def f(p: Any, ids: Array) -> Array:
        return torch.tanh(F.embedding(ids, p["e"], sparse=True).sum(1)) @ p["w"]

    return f, {"e": R(5, 3), "w": R(3, 2)}, torch.randint(0, 5, (3, 2)), {}


@net
def parameters_without_entries() -> Any:
    def f(p: Any, x: Array) -> Array:
        return F.linear(x[:, :0], p["z"], p["b"]) + x @ p["w"] + p["e"].sum()

    return f, {"z": R(2, 0), "b": R(2), "w": R(4, 2), "e": R(0)}, R(3, 4), {"fallback": ("z", "e")}


@net
def distances_from_centres() -> Any:
    def f(p: Any, x: Array) -> Array:
        return torch.cdist(torch.tanh(x @ p["w"]), p["c"]) @ p["v"]

    params = {"w": R(4, 3), "c": R(5, 3), "v": R(5, 2)}
    return f, params, R(3, 4), {"fallback": ("c",)}


@net
def positions_looked_up_once() -> Any:
    def f(p: Any, ids: Array) -> Array:
        h = F.embedding(ids, p["e"]) + F.embedding(
            torch.arange(3, device=ids.device)[None], p["at"]
        )
        return torch.tanh(h * p["g"]) @ p["w"]

    params = {"e": R(5, 3), "at": R(4, 3), "g": R(3), "w": R(3, 2)}
    return f, params, torch.randint(0, 5, (2, 3)), {}


@net
def positions_looked_up_once_and_cut_out() -> Any:
    def f(p: Any, ids: Array) -> Array:
        at = F.embedding(torch.arange(3, device=ids.device)[None], p["at"]).reshape(3, 3)
        return torch.tanh(F.embedding(ids, p["e"]) + at) @ p["w"]

    params = {"e": R(5, 3), "at": R(4, 3), "w": R(3, 2)}
    return f, params, torch.randint(0, 5, (2, 3)), {"fallback": ("at",)}


@net
def sums_of_what_is_looked_up_once() -> Any:
    def f(p: Any, ids: Array) -> Array:  # other numbers where each sample looks up for itself
        at = F.embedding(torch.arange(3, device=ids.device)[None], p["at"])
        return torch.tanh(F.embedding(ids, p["e"]) + at.sum(0)) @ p["w"]

    params = {"e": R(5, 3), "at": R(4, 3), "w": R(3, 2)}
    return f, params, torch.randint(0, 5, (2, 3)), {"fallback": ("at",)}


@net
def derivatives_by_functorch_inside() -> Any:
    def f(p: Any, x: Array) -> Array:
        return torch.func.vmap(torch.func.grad(lambda z: torch.tanh(z @ p["w"]) @ p["v"]))(x)

    return f, {"w": R(4, 3), "v": R(3)}, R(3, 4), {"fallback": ("w", "v")}


@pytest.mark.parametrize("name", list(NETS))
def test_factors_are_the_jacobian(name: str) -> None:
    f, params, x, told = NETS[name]()
    check(f, params, x, **told)


@pytest.mark.parametrize(
    "name", ["fcn", "gru", "tied_autoencoder", "samples_folded_into_other_axes"]
)
def test_the_whole_batch_as_one_sample(name: str) -> None:
    f, params, x, _ = NETS[name]()
    found = check(f, params, x, whole=True)
    assert found.samples == 1


def test_jacrev_agrees() -> None:
    f, params, x, _ = NETS["cnn"]()
    J = jacrev(lambda p: f(p, x))(params)
    check(f, params, x, expected={name: g.reshape(3, 2, -1) for name, g in J.items()})


def test_complex_parameters() -> None:
    params = {"a": R(4, 5, dtype=torch.complex128), "b": R(5, 2, dtype=torch.complex128)}
    check(lambda p, x: torch.sin(x @ p["a"]) @ p["b"], params, R(3, 4, dtype=torch.complex128))


def test_coupled_samples_are_refused_and_served_whole() -> None:
    f, params = module(
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    )
    x = R(6, 4)
    with pytest.raises(ValueError, match=r"samples are coupled.*eval mode, or pass whole=True"):
        capture(f, params, x).uses(0, 2)
    check(f, params, x, whole=True)


def test_attention_across_the_batch_is_refused() -> None:
    def f(p: Any, x: Array) -> Array:
        h = x @ p["a"]
        return torch.softmax(h @ h.T, 1) @ h

    with pytest.raises(ValueError, match="samples are coupled"):
        capture(f, {"a": R(4, 5)}, R(3, 4)).uses(0, 5)
    check(f, {"a": R(4, 5)}, R(3, 4), whole=True)


def test_inputs_changed_in_place_are_refused() -> None:
    def f(p: Any, x: Array) -> Array:
        h = x @ p["a"]
        y = torch.mul(h, p["c"])
        h.add_(1)
        return y

    with pytest.raises(RuntimeError, match="changed in place"):
        capture(f, {"a": R(4, 5), "c": R(5)}, R(3, 4))


def test_outputs_of_complex_numbers_need_complex_parameters() -> None:
    with pytest.raises(TypeError, match="view_as_real"):
        capture(lambda p, x: (x @ p).to(torch.complex128), R(4, 2), R(3, 4))


def test_what_is_not_reached_is_left_out() -> None:
    f, params, x, _ = NETS["gru"]()
    found = capture(f, params, x)
    found.uses(0, found.outputs)
    positions = [found.uses(2 * t, 2 * t + 2)["['r.weight_hh_l0']"][0].G.shape[3] for t in range(5)]
    assert positions == [1, 2, 3, 4, 5]


def test_tied_weights_are_stacked() -> None:
    f, params, x, _ = NETS["hand_written_recurrence"]()
    [use] = capture(f, params, x).uses(0, 10)["['b']"]
    assert isinstance(use, Outer)
    assert use.G.shape[3] == 4


def test_a_weight_and_its_bias_share_what_is_made_of_their_cotangents() -> None:
    params = {"a": R(4, 5), "b": R(5), "c": R(5, 3)}
    found = capture(lambda p, x: torch.tanh(x @ p["a"] + p["b"]) @ p["c"], params, R(6, 4))
    a, b, c = (use for [use] in found.uses(0, 3).values())
    assert a.shared is b.shared is not c.shared
    torch.testing.assert_close(b.shared.squared_lengths, (b.J**2).sum((1, 2)))
    assert take_samples(a, 0, 2).shared is None


def test_parameters_stay_as_they_are_and_need_no_gradient() -> None:
    w = R(4, 3)
    found = capture(lambda p, x: x @ p[0], [w], R(2, 4))
    w.zero_()
    assert not w.requires_grad
    assert dense(found.uses(0, 3)["[0]"], 12).abs().max() > 0


def test_half_of_the_parameters_alone() -> None:
    f, params, x, _ = NETS["transformer"]()
    part = {name: p for name, p in params.items() if "block" in name}
    frozen = {name: p for name, p in params.items() if name not in part}
    check(lambda p, x: f({**frozen, **p}, x), part, x)


def test_the_report_tells_operations_and_positions() -> None:
    f, params, x, _ = NETS["conv1d"]()
    report = capture(f, params, x).report
    assert ("['0.weight']", "conv1d", 6, "") in report
    assert ("['2.bias']", "conv1d", 3, "") in report


def test_a_rule_that_is_a_thousandth_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    f = lambda p, x: torch.tanh(x @ p["a"]).add(p["b"])  # noqa: E731
    params, x = {"a": R(4, 3), "b": R(3)}, R(5, 4)
    check(f, params, x)

    def wrong(call: Any, seen: Any) -> Any:
        return direct("add", call.out, seen, 1.001)

    monkeypatch.setitem(RULES, torch.Tensor.add, wrong)
    found = check(f, params, x, fallback=("b",))
    assert "do not sum up to its gradient" in found.report[1][3]


class Batched(torch.autograd.Function):
    """A product whose rule for batches is wrong."""

    @staticmethod
    def forward(x: Array, factor: float) -> Array:
        return x * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        return Batched.apply(g, ctx.factor), None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Array, factor: float) -> Any:
        return 2 * x * factor, dims[0]


def test_batched_reverse_passes_that_are_wrong_are_not_used() -> None:
    f = lambda p, x: Batched.apply(torch.tanh(x @ p["a"]), 3.0) @ p["b"]  # noqa: E731
    params, x = {"a": R(4, 3), "b": R(3, 2)}, R(3, 4)
    found, expected = capture(f, params, x), rows(f, params, x)
    with pytest.warns(UserWarning, match="batched reverse passes through f are wrong"):
        uses = found.uses(0, 2)
    for name, p in params.items():
        torch.testing.assert_close(dense(uses[f"['{name}']"], p.numel()), expected[name])


EXACT: dict[str, Callable[..., Any]] = {
    "trace": tkn.ntk_trace,
    "diagonal": tkn.ntk_diagonal,
    "norm": tkn.ntk_norm,
    "kernel": tkn.kernel,
    "factored": tkn.factored_ntk,
    "explain": tkn.explain,
}


@pytest.mark.parametrize("call", EXACT.values(), ids=EXACT)
def test_random_functions_are_refused(call: Callable[..., Any]) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 2)).train()
    f, params = module(net)
    for whole in (False, True):
        with pytest.raises(ValueError, match=r"two runs of f .* differ .*eval mode"):
            call(f, params, R(3, 4), whole=whole)
    noisy = lambda p, x: torch.tanh(x + 1e-3 * torch.randn_like(x)) @ p["w"]  # noqa: E731
    with pytest.raises(ValueError, match="two runs of f"):
        call(noisy, {"w": R(4, 2)}, R(3, 4))


def test_noise_that_f_seeds_itself_is_no_noise() -> None:
    def f(p: Any, x: Array) -> Array:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return F.dropout(x @ p["w"], 0.5)

    check(f, {"w": R(4, 3)}, R(3, 4))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients(mode: Any) -> None:
    f, params, x, _ = NETS["fcn"]()
    J = torch.cat(list(rows(f, params, x).values()), 2).flatten(0, 1)
    with mode():
        params, x = {name: p * 1 for name, p in params.items()}, x * 1
        torch.testing.assert_close(tkn.ntk_trace(f, params, x), (J * J).sum())
        torch.testing.assert_close(tkn.kernel_matrix(tkn.kernel(f, params, x)), J @ J.T)
        torch.testing.assert_close(tkn.ntk_norm(f, params, x, chunk_size=2), (J @ J.T).norm())
        torch.testing.assert_close(tkn.factored_ntk(f, params, x) @ J, J @ (J.T @ J))
        assert "linear" in tkn.explain(f, params, x)


def test_inputs_that_f_writes_into_stay_as_they_are() -> None:
    x = torch.ones(5, 3)
    assert float(tkn.ntk_trace(lambda w, x: x.mul_(2) @ w, torch.ones(3, 2), x)) == 120
    assert bool((x == 1).all())


DIFFERENTIABLE = [
    "fcn", "conv1d", "gru", "lstm", "tied_autoencoder", "embedding_by_index", "mixed_operations",
    "adapter_after_a_recurrence", "parameters_of_one_number", "gradients_inside_the_forward_pass",
    "complex_numbers_inside",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*differentiated apart")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_results_are_differentiable(name: str) -> None:
    f, params, x, _ = NETS[name]()
    params = {name: p.requires_grad_() for name, p in params.items()}
    y = f(params, x[:2])
    every = list(params.values())
    grads = [
        torch.autograd.grad(end, every, create_graph=True, materialize_grads=True)
        for end in y.reshape(-1)
    ]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in grads])
    K = J @ J.T
    for got, wanted in (
        (tkn.ntk_trace(f, params, x[:2]), K.trace()),
        ((tkn.ntk_diagonal(f, params, x[:2]) ** 2).sum(), (K.diagonal() ** 2).sum()),
        (tkn.ntk_norm(f, params, x[:2], chunk_size=3), K.norm()),
        ((tkn.kernel_matrix(tkn.kernel(f, params, x[:2])) ** 3).sum(), (K**3).sum()),
    ):
        pair = [
            torch.autograd.grad(v, every, retain_graph=True, materialize_grads=True)
            for v in (got, wanted)
        ]
        for mine, theirs in zip(*pair, strict=True):
            scale = float(max(t.abs().max() for t in pair[1]))
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9 * scale)
    with torch.no_grad():
        assert not tkn.ntk_trace(f, params, x[:2]).requires_grad
    held = {name: p.detach() for name, p in params.items()}
    assert not tkn.ntk_trace(f, held, x[:2]).requires_grad


def test_a_regulariser_in_a_training_loop() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    f = lambda p, x: functional_call(net, p, (x,))  # noqa: E731
    x, steps = R(6, 4), torch.optim.SGD(net.parameters(), 0.01)
    values = []
    for _ in range(5):
        steps.zero_grad()
        loss = tkn.ntk_trace(f, dict(net.named_parameters()), x)
        loss.backward()
        steps.step()
        values.append(loss.item())
    assert values == sorted(values, reverse=True)


def test_the_slow_road_is_told_once() -> None:
    f, params, x, _ = NETS["functions_of_parameters"]()
    with pytest.warns(UserWarning, match=r"\['a'\] \(.*right, but slower") as said:
        tkn.ntk_norm(f, params, x, chunk_size=1)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert "['d']" in tkn.explain(f, params, x)  # which tells it in its table alone


def test_mixed_precision_is_no_fault() -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).float()
    f, params = module(net)
    x = R(6, 8, dtype=torch.float32)
    exact = tkn.ntk_trace(f, params, x)

    def cast(p: Any, x: Array) -> Array:
        low = {name: v.bfloat16() for name, v in p.items()}
        return f(low, x.bfloat16()).float()

    def autocast(p: Any, x: Array) -> Array:
        with torch.autocast("cpu", torch.bfloat16):
            return f(p, x).float()

    for g in (cast, autocast):
        torch.testing.assert_close(tkn.ntk_trace(g, params, x), exact, rtol=0.02, atol=0)


def test_functions_that_are_not_holomorphic_are_refused() -> None:
    w, x = R(3, 2, dtype=torch.complex128), R(5, 3, dtype=torch.complex128)
    with pytest.raises(ValueError, match="not holomorphic"):
        tkn.ntk_trace(lambda w, x: (x @ w).conj() * (x @ w), w, x)


def test_reentrant_checkpoints_are_refused() -> None:
    def f(p: Any, x: Array) -> Array:
        part = lambda h: torch.tanh(h @ p["a"])  # noqa: E731
        return checkpoint(part, x.clone().requires_grad_(), use_reentrant=True)

    with pytest.raises(NotImplementedError, match="use_reentrant=False"):
        tkn.ntk_trace(f, {"a": R(4, 3)}, R(3, 4))


def test_points_without_a_derivative_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gradient by \['a'\] is NaN"):
        tkn.ntk_trace(lambda p, x: (x @ p["a"]).square().sum(1).sqrt(), {"a": 0 * R(4, 3)}, R(3, 4))


@pytest.mark.parametrize("x", ["ids", [], nn.Linear(2, 2), torch.utils.data.DataLoader([1, 2])],
                         ids=["str", "empty", "module", "loader"])  # fmt: skip
def test_samples_must_be_arrays(x: Any) -> None:
    for call in (tkn.ntk_trace, tkn.kernel, tkn.explain):
        with pytest.raises((TypeError, ValueError), match="pass inputs with the samples on axis 0"):
            call(lambda w, x: x @ w, R(4, 3), x)


LAYERS = [
    "linear",
    "relu",
    "tanh",
    "scale",
    "shift",
    "residual",
    "norm",
    "tied",
    "attend",
    "conv",
    "step",
]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from(LAYERS), min_size=1, max_size=6),
    st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 5),
)  # fmt: skip
def test_compositions_of_rules(
    layers: list[str], N: int, S: int, time_first: bool, chunks: int
) -> None:
    torch.manual_seed(len(layers))
    H = 3
    params = {"w": R(H, H), "c": R(H), "k": R(H, H, 3)}
    params |= {f"p{i}": R(H, H) / 2 for i in range(len(layers))}

    def f(p: dict[str, Array], x: Array) -> Array:
        h = x.transpose(0, 1) if time_first else x
        for i, layer in enumerate(layers):
            own = p[f"p{i}"]
            if layer == "linear":
                h = F.linear(h, own, p["c"])
            elif layer == "relu":
                h = torch.relu(h @ own)
            elif layer == "tanh":
                h = torch.tanh(h)
            elif layer == "scale":
                h = h * p["c"] * 0.5
            elif layer == "shift":
                h = h + p["c"].view(1, 1, -1) - own[0]
            elif layer == "residual":
                h = h + torch.tanh(h @ own.T) @ own
            elif layer == "norm":
                h = F.layer_norm(h, (H,), p["c"], own[1], eps=0.1)
            elif layer == "tied":
                h = torch.tanh(h @ p["w"]) @ p["w"].mT
            elif layer == "attend":
                g = h.transpose(0, 1) if time_first else h
                q, k, v = (g @ own).chunk(3, -1)
                g = g + F.scaled_dot_product_attention(q, k, v)
                h = g.transpose(0, 1) if time_first else g
            elif layer == "conv":
                g = h.permute(1, 2, 0) if time_first else h.transpose(1, 2)
                g = F.conv1d(g, p["k"], padding=1)
                h = g.permute(2, 0, 1) if time_first else g.transpose(1, 2)
            elif layer == "step":
                steps = list(h.unbind(0 if time_first else 1))
                for t in range(1, S):
                    steps[t] = torch.tanh(steps[t] + steps[t - 1] @ p["w"])
                h = torch.stack(steps, 0 if time_first else 1)
        return h.transpose(0, 1) if time_first else h

    x = R(N, S, H)
    if not f({k: v.requires_grad_() for k, v in params.items()}, x).requires_grad:
        return
    params = {name: p.detach() for name, p in params.items()}
    found = capture(f, params, x)
    expected = rows(f, params, x)
    step = chunks or found.outputs
    for low in range(0, found.outputs, step):
        high = min(low + step, found.outputs)
        for path, uses in found.uses(low, high).items():
            J = expected[path[2:-2]][:, low:high]
            made = dense(uses, J.shape[2]) if uses else torch.zeros_like(J)
            torch.testing.assert_close(made, J, rtol=1e-9, atol=1e-10 * float(1 + J.abs().max()))
    explicit = {path[2:-2] for path, *_, reason in found.report if reason}
    unread = {path[2:-2] for path, op, *_ in found.report if op == "none"}
    assert explicit == unread  # all that is read is read by rules
