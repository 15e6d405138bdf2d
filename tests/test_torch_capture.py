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

from tracekit_ntk._torch_capture import capture  # noqa: E402
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
    stacked = [torch.stack(g).conj().resolve_conj() for g in zip(*grads, strict=True)]
    return {
        n: g.reshape(len(y), -1, p.numel())
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
            J = expected[name].reshape(found.samples, M, -1)[:, low:high]
            mine = uses[f"['{name}']"]
            made = dense(mine, p.numel()) if mine else torch.zeros_like(J)
            torch.testing.assert_close(made, J, rtol=1e-10, atol=1e-12 * float(1 + J.abs().max()))
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


# What no rule knows is differentiated on its own, and said.


@net
def transposed_convolution() -> Any:
    layers = nn.Sequential(
        nn.ConvTranspose2d(2, 3, 2),
        nn.InstanceNorm2d(3, affine=True),
        nn.Flatten(),
        nn.Linear(48, 2),
    )
    told = {"fallback": ("0.weight", "0.bias", "1.weight", "1.bias")}
    return *module(layers), R(2, 2, 3, 3), told


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
