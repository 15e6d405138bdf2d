"""Random small PyTorch networks: exact numbers and products against plain autograd.

A network is drawn from a seed. Longer runs: ``python tests/test_drawn_networks.py FIRST LAST``.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import tracekit_ntk as tkn  # noqa: E402

Array = Any
COUNT = 60  # networks in a run of the suite
D = 4  # features
Block = Callable[[dict[str, Array], Array], Array]
BLOCKS: list[Callable[[Draw], Block]] = []


class Draw:
    """Choices and parameters of one network."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.params: dict[str, Array] = {}
        self.N, self.S = self.choose.randint(1, 4), self.choose.randint(1, 3)

    def normal(self, *shape: int) -> Array:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def new(self, *shape: int) -> str:
        """A parameter's name: of a new one, or at times of one that is there."""
        old = [n for n, p in self.params.items() if p.shape == shape]
        if old and self.choose.random() < 0.3:
            return self.choose.choice(old)
        name = f"p{len(self.params)}"
        self.params[name] = self.normal(*shape) / max(1, shape[-1] if shape else 1) ** 0.5
        return name

    def module(self, net: nn.Module) -> Callable[..., Any]:
        """A module, of parameters of ours."""
        net = net.double().eval()
        names = {n: f"m{len(self.params)}.{n}" for n, _ in net.named_parameters()}
        for n, p in net.named_parameters():
            self.params[names[n]] = self.normal(*p.shape) / 2

        def run(p: dict[str, Array], *args: Any) -> Any:
            return functional_call(net, {n: p[name] for n, name in names.items()}, args)

        return run


def block(make: Callable[[Draw], Block]) -> Callable[[Draw], Block]:
    BLOCKS.append(make)
    return make


@block
def linear(d: Draw) -> Block:
    w, b = d.new(D, D), d.new(D)
    return d.choose.choice([
        lambda p, h: F.linear(h, p[w], p[b]),
        lambda p, h: h @ p[w] + p[b],
        lambda p, h: torch.einsum("nsd,de->nse", h, p[w]) - p[b],
        lambda p, h: (p[w] @ h.mT).mT * p[b],
        lambda p, h: torch.addmm(p[b], h.reshape(-1, D), p[w].T).reshape(h.shape),
    ])  # fmt: skip


@block
def nonlinear(d: Draw) -> Block:
    f = d.choose.choice([torch.tanh, F.gelu, F.silu, F.elu, lambda h: torch.sin(2 * h), F.relu])
    return lambda p, h: h + f(h)


@block
def norm(d: Draw) -> Block:
    def batch(net: nn.BatchNorm1d) -> Any:
        net.running_mean.fill_(0.3)
        return d.module(net)

    kind = d.choose.randrange(4)
    if kind == 0:
        run = d.module(nn.LayerNorm(D, eps=0.1))
        return lambda p, h: run(p, h)
    if kind == 1:
        w = d.new(D)
        return lambda p, h: F.rms_norm(h, (D,), p[w], eps=0.1)
    run = d.module(nn.GroupNorm(2, D, eps=0.1)) if kind == 2 else batch(nn.BatchNorm1d(D))
    return lambda p, h: run(p, h.mT).mT


@block
def convolution(d: Draw) -> Block:
    kind = d.choose.randrange(4)
    if kind == 0:
        run = d.module(nn.Conv1d(D, D, 3, padding=1, groups=d.choose.choice([1, 2, 4])))
        return lambda p, h: run(p, h.mT).mT
    if kind == 1:
        run = d.module(nn.Conv1d(D, 1, 3, padding=1))
        return lambda p, h: h + torch.tanh(run(p, h.mT).mT)
    if kind == 2:
        run = d.module(nn.Conv2d(1, 2, (3, 2), padding=(1, 0), stride=(1, 2)))
        return lambda p, h: run(p, h[:, None]).transpose(1, 2).flatten(2)
    run = d.module(nn.ConvTranspose1d(D, D, 3, padding=1))
    return lambda p, h: run(p, h.mT).mT


@block
def attention(d: Draw) -> Block:
    if d.choose.random() < 0.5:
        run = d.module(nn.MultiheadAttention(D, 2, batch_first=True))
        return lambda p, h: h + run(p, h, h, h)[0]
    w = d.new(D, 3 * D)
    return lambda p, h: h + F.scaled_dot_product_attention(*(h @ p[w]).chunk(3, -1))


@block
def transformer(d: Draw) -> Block:
    run = d.module(nn.TransformerEncoderLayer(D, 2, 5, dropout=0.0, batch_first=True))
    return lambda p, h: run(p, h)


@block
def recurrent(d: Draw) -> Block:
    kind, options = d.choose.choice([nn.GRU, nn.LSTM, nn.RNN]), {}
    if d.choose.random() < 0.3:
        options = {"num_layers": 2}
    run = d.module(kind(D, D, batch_first=True, bias=d.choose.random() < 0.8, **options))
    return lambda p, h: run(p, h)[0]


@block
def both_ways(d: Draw) -> Block:
    run = d.module(nn.GRU(D, D // 2, batch_first=True, bidirectional=True))
    return lambda p, h: run(p, h)[0]


@block
def packed(d: Draw) -> Block:
    run = d.module(d.choose.choice([nn.GRU, nn.LSTM])(D, D, batch_first=True))
    lengths = torch.tensor([d.choose.randint(1, d.S) for _ in range(d.N)])
    if d.choose.random() < 0.5:
        lengths[-1] = d.S

    def f(p: Any, h: Array) -> Array:
        put = nn.utils.rnn.pack_padded_sequence(h, lengths[: len(h)], True, enforce_sorted=False)
        out = nn.utils.rnn.pad_packed_sequence(run(p, put)[0], True, total_length=h.shape[1])[0]
        return h + out

    return f


@block
def hand_written_recurrence(d: Draw) -> Block:
    w, v = d.new(D, D), d.new(D, D)
    after = d.choose.choice([
        lambda p, h: h,
        lambda p, h: h @ (p[w] @ p[v]),
        lambda p, h: h @ torch.cat([p[w][:, :2], p[v][:, 2:]], 1),
        lambda p, h: F.linear(h, p[v] * p[w]),
    ])  # fmt: skip

    def f(p: Any, h: Array) -> Array:
        u, states = h.new_zeros(len(h), D), []
        for t in range(h.shape[1]):
            u = torch.tanh(h[:, t] @ p[w] + u @ p[v])
            states.append(u)
        return after(p, torch.stack(states, 1))

    return f


@block
def cells(d: Draw) -> Block:
    kind = d.choose.choice([nn.GRUCell, nn.LSTMCell, nn.RNNCell])
    run = d.module(kind(D, D))

    def f(p: Any, h: Array) -> Array:
        state, states = None, []
        for t in range(h.shape[1]):
            state = run(p, h[:, t], state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(states, 1)

    return f


@block
def looked_up(d: Draw) -> Block:
    e, kind = d.new(5, D), d.choose.randrange(4)

    def f(p: Any, h: Array) -> Array:
        ids = (h.detach() > 0).sum(-1)
        if kind == 0:
            return h + F.embedding(ids, p[e], padding_idx=2)
        if kind == 1:
            return h + F.embedding(ids, p[e], sparse=True)
        if kind == 2:
            return h * p[e][ids]
        return h + p[e].index_select(0, ids.flatten()).reshape(h.shape)

    return f


@block
def scalar(d: Draw) -> Block:
    s, b = d.new(), d.new(1)
    return d.choose.choice([
        lambda p, h: h * p[s],
        lambda p, h: h + p[s] * torch.tanh(h),
        lambda p, h: p[s].exp() * h + p[b],
        lambda p, h: h / (2 + p[b] ** 2),
        lambda p, h: torch.tanh(h) + p[b],
        lambda p, h: h.mul(p[b]).sub(p[s]),
        lambda p, h: F.prelu(h, p[b]),
        lambda p, h: h + F.linear(h, p[b].expand(1, D)),
    ])  # fmt: skip


@block
def head_of_one(d: Draw) -> Block:
    run = d.module(nn.Linear(D, 1))
    return lambda p, h: h + torch.sin(run(p, h))


@block
def in_place(d: Draw) -> Block:
    b, w = d.new(D), d.new(D, D)

    def one(p: Any, h: Array) -> Array:
        h = h.clone()
        h.add_(p[b])
        h[..., 0] *= p[b][1]
        return h

    def two(p: Any, h: Array) -> Array:
        h = h @ p[w]
        h += p[b]
        return h.mul_(0.5)

    def three(p: Any, h: Array) -> Array:
        out = torch.zeros_like(h)
        out[..., :2] = (h @ p[w])[..., :2]
        out[..., 2:] = p[b][2:]
        return out + h

    return d.choose.choice([one, two, three])


@block
def copied_and_written(d: Draw) -> Block:
    b, w = d.new(D), d.new(D, D)

    def one(p: Any, h: Array) -> Array:
        c = p[b].clone()
        c[1:3].zero_()
        return F.linear(h, p[w], c)

    def two(p: Any, h: Array) -> Array:
        c = p[w].to(torch.float64, copy=True)
        c.mul_(2.0)
        return h @ c

    def three(p: Any, h: Array) -> Array:
        c = p[w].clone()
        c[0] = p[b]
        return h @ c.T

    def four(p: Any, h: Array) -> Array:
        c = p[w].clone()
        c.T.add_(p[b])
        return h @ c + 0.5 * h

    return d.choose.choice([one, two, three, four])


@block
def gradient_inside(d: Draw) -> Block:
    w, v = d.new(D, D), d.new(D)
    kind = d.choose.randrange(3)

    def energy(p: Any, h: Array) -> Array:
        return (torch.tanh(h @ p[w]) @ p[v]).sum()

    def f(p: Any, h: Array) -> Array:
        with torch.enable_grad():
            z = h + 0 if h.requires_grad and not kind else h.detach().clone().requires_grad_()
            [g] = torch.autograd.grad(energy(p, z), z, create_graph=True)
            if kind == 2:
                [g] = torch.autograd.grad((g**2).sum(), z, create_graph=True)
        return h + g

    return f


@block
def functorch_inside(d: Draw) -> Block:
    w, v = d.new(D, D), d.new(D)

    def f(p: Any, h: Array) -> Array:
        def energy(z: Array) -> Array:
            return torch.tanh(p[w] @ z) @ p[v]

        return h + torch.func.vmap(torch.func.vmap(torch.func.grad(energy)))(h)

    return f


@block
def made_of_parameters(d: Draw) -> Block:
    w, v, b, s = d.new(D, D), d.new(D, D), d.new(D), d.new(D, 2)
    return d.choose.choice([
        lambda p, h: h @ (p[s] @ p[s].T),
        lambda p, h: h @ torch.cat([p[s], p[w][:, :2]], 1),
        lambda p, h: F.linear(h, p[b][:, None] * p[v] / p[v].norm(dim=1, keepdim=True)),
        lambda p, h: h @ torch.softmax(p[w], 1),
        lambda p, h: h @ torch.linalg.inv(p[w] + 3 * torch.eye(D, dtype=h.dtype)),
        lambda p, h: h + torch.stack([p[b], p[v][0], p[w][:, 1]]).sum(0),
        lambda p, h: h @ torch.where(p[w] > 0, p[w], p[v]),
        lambda p, h: h @ p[w].triu() + p[b].flip(0),
        lambda p, h: h @ torch.roll(p[w], 1, 0) * p[b].sigmoid(),
    ])  # fmt: skip


@block
def views(d: Draw) -> Block:
    w, b = d.new(D, D), d.new(D)
    q = d.new(2 * D, D)
    return d.choose.choice([
        lambda p, h: h @ p[w].view(-1).view(D, D) + p[b].narrow(0, 1, 1),
        lambda p, h: F.linear(h, p[q][D:], p[b]) + h @ p[q].T[:, :D],
        lambda p, h: h @ p[w].T.reshape(D, D),
        lambda p, h: F.linear(h[..., :2], p[w][:, :2]) * p[b][None, None],
        lambda p, h: h @ p[w].as_strided((D, D), (1, D)) - p[b].expand(h.shape),
        lambda p, h: h @ (p[q].chunk(2)[1] / 2).mT + (-p[b]).unsqueeze(0),
        lambda p, h: h * p[w].diagonal() + p[w][1].roll(1),
        lambda p, h: torch.cat([h[..., :3], p[b][:1].expand(*h.shape[:2], 1)], -1),
        lambda p, h: h + p[w][[0, 2]].sum(0) + p[w][:, torch.tensor([1, 1])].sum(),
    ])  # fmt: skip


@block
def complex_inside(d: Draw) -> Block:
    w, v = d.new(D, D), d.new(D, D)
    return d.choose.choice([
        lambda p, h: (torch.exp(1j * (h @ p[w])) @ p[v].to(torch.complex128)).abs(),
        lambda p, h: torch.fft.ifft(torch.fft.fft(h) * torch.complex(p[w][0], p[v][0])).real,
        lambda p, h: torch.view_as_real((h.to(torch.complex128) * 1j) @ (p[w] + 0j)).sum(-1),
        lambda p, h: torch.fft.irfft(torch.fft.rfft(h @ p[w]) * p[v][0, :3], n=D),
        lambda p, h: (torch.polar(h, h @ p[w]) + p[v][0]).imag,
    ])  # fmt: skip


class Product(torch.autograd.Function):
    """An operation of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Array, w: Array) -> Array:
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        x, w = ctx.saved_tensors
        return g @ w, g.flatten(0, -2).T @ x.flatten(0, -2)


class Straight(torch.autograd.Function):
    """The sign, whose derivative is taken to be one."""

    @staticmethod
    def forward(ctx: Any, x: Array) -> Array:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, g: Array) -> Array:
        return g


@block
def own_operations(d: Draw) -> Block:
    w, b = d.new(D, D), d.new(D)
    return d.choose.choice([
        lambda p, h: Product.apply(h, p[w]) + p[b],
        lambda p, h: F.linear(h, Straight.apply(p[w]), p[b]),
        lambda p, h: h + Straight.apply(h @ p[w]),
    ])  # fmt: skip


@block
def checkpointed(d: Draw) -> Block:
    w, b = d.new(D, D), d.new(D)

    def part(p: Any, h: Array) -> Array:
        return torch.tanh(h @ p[w] + p[b])

    return lambda p, h: h + checkpoint(part, p, h, use_reentrant=False)


@block
def distances(d: Draw) -> Block:
    c = d.new(D, D)
    return d.choose.choice([
        lambda p, h: torch.cdist(h.flatten(0, 1), p[c]).reshape(h.shape),
        lambda p, h: (h[..., None, :] - p[c]).square().sum(-1),
        lambda p, h: torch.exp(-torch.cdist(h, p[c].expand(len(h), D, D))),
    ])  # fmt: skip


@block
def two_inputs(d: Draw) -> Block:
    run = d.module(nn.Bilinear(D, D, D))
    return lambda p, h: h + run(p, h, torch.tanh(h))


@block
def samples_moved(d: Draw) -> Block:
    w, b = d.new(D, D), d.new(D)
    S = d.S

    def folded(p: Any, h: Array) -> Array:
        return (h.transpose(0, 1).reshape(-1, D) @ p[w]).reshape(S, -1, D).transpose(0, 1) + p[b]

    def permuted(p: Any, h: Array) -> Array:
        order = torch.tensor([*range(1, len(h)), 0])
        return ((h[order] @ p[w] + p[b])[order.argsort()]).tanh()

    def sorted_(p: Any, h: Array) -> Array:
        order = h.sum((1, 2)).argsort()
        return (h[order] * p[b])[order.argsort()] @ p[w]

    def one_by_one(p: Any, h: Array) -> Array:
        return torch.stack([torch.tanh(part @ p[w]) * p[b] for part in h])

    return d.choose.choice(
        [folded, permuted, sorted_, one_by_one, lambda p, h: (h.flip(0) @ p[w]).flip(0)]
    )


@block
def without_gradient(d: Draw) -> Block:
    w, b = d.new(D, D), d.new(D)

    def f(p: Any, h: Array) -> Array:
        with torch.no_grad():
            scale = (p[w].view(-1)[:D] * p[b]).norm()
        return h * scale + h @ p[w].detach() + p[b]

    return f


@block
def again(d: Draw) -> Block:
    """The same block twice."""
    one = d.choose.choice([linear, attention, scalar, convolution, views])(d)
    return lambda p, h: torch.tanh(one(p, torch.tanh(one(p, h))))


@block
def unused(d: Draw) -> Block:
    d.params[f"p{len(d.params)}"] = d.normal(0, D)
    n = list(d.params)[-1]
    d.new(3)
    return lambda p, h: h + p[n].sum()


class Drawn(NamedTuple):
    """A network, its parameters and its inputs."""

    f: Callable[[Any, Any], Any]
    params: dict[str, Array]
    x: Array
    blocks: list[str]
    J: Array  # (outputs, parameters)
    shape: tuple[int, ...]  # of the output


@lru_cache(maxsize=4)
def network(seed: int) -> Drawn:
    """The network of a seed."""
    d = Draw(seed)
    makers = [d.choose.choice(BLOCKS) for _ in range(d.choose.randint(1, 4))]
    blocks = [make(d) for make in makers]
    w = d.new(D, D)
    head = d.choose.choice([
        lambda p, h: h,
        lambda p, h: h.mean(1) @ p[w],
        lambda p, h: torch.tanh(h[:, -1]) @ p[w][:, :2],
        lambda p, h: h.sum((1, 2)),
    ])  # fmt: skip

    def f(p: Any, x: Array) -> Array:
        h = x
        for run in blocks:
            h = run(p, h)
        return head(p, h)

    x = d.normal(d.N, d.S, D)
    return Drawn(f, d.params, x, [m.__name__ for m in makers], *truth(f, d.params, x))


def truth(f: Any, params: dict[str, Array], x: Array) -> tuple[Array, tuple[int, ...]]:
    """The Jacobian by a plain reverse pass for each output, and the output's shape."""
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    y = f(leaves, x.clone())
    rows = []
    for end in y.reshape(-1):
        grads: Any = [torch.zeros_like(p) for p in leaves.values()]
        if y.requires_grad:
            grads = torch.autograd.grad(
                end, list(leaves.values()), retain_graph=True, materialize_grads=True
            )
        rows.append(torch.cat([g.to_dense().reshape(-1) for g in grads]))
    return torch.stack(rows).detach(), tuple(y.shape)


def exact(net: Drawn) -> dict[str, float]:
    """Errors of every exact call, relative to the largest of what is right."""
    f, params, x, J = net.f, net.params, net.x, net.J
    N, *shape = net.shape
    K = J @ J.T
    blocks = K.reshape(N, -1, N, K.shape[0] // N).transpose(1, 2).reshape(N, N, *shape, *shape)
    sizes = [p.numel() for p in params.values()]
    apart = [(part**2).sum() for part in J.split(sizes, 1)]
    got = {
        "trace": (tkn.ntk_trace(f, params, x), K.trace()),
        "trace in chunks": (tkn.ntk_trace(f, params, x, chunk_size=2), K.trace()),
        "parts": (
            torch.stack(list(tkn.ntk_trace(f, params, x, per_parameter=True).values())),
            torch.stack(apart),
        ),
        "diagonal": (tkn.ntk_diagonal(f, params, x), K.diagonal().reshape(net.shape)),
        "norm": (tkn.ntk_norm(f, params, x), K.norm()),
        "kernel": (tkn.kernel(f, params, x), blocks),
        "whole": (tkn.ntk_trace(f, params, x, whole=True), K.trace()),
    }
    if shape:
        got["traced"] = (
            tkn.kernel(f, params, x, trace_axes=1),
            blocks.diagonal(dim1=2, dim2=2 + len(shape)).sum(-1),
        )
        got["diagonals"] = (
            tkn.kernel(f, params, x, diagonal_axes=len(shape)),
            blocks.diagonal(dim1=1 + len(shape), dim2=1 + 2 * len(shape)).movedim(-1, 2),
        )
    return {name: _error(a, b) for name, (a, b) in got.items()}


def operators(net: Drawn) -> dict[str, float]:
    """Errors of products with the Jacobian and the kernel."""
    J = net.J
    U = torch.randn(J.shape[0], 2, generator=torch.Generator().manual_seed(1), dtype=J.dtype)
    L = tkn.jacobian(lambda p: net.f(p, net.x), net.params)
    return {
        "J^T u": _error(L.H @ U, J.T @ U),
        "J v": _error(L @ (J.T @ U), J @ (J.T @ U)),
        "K u": _error(tkn.ntk(net.f, net.params, net.x) @ U, J @ (J.T @ U)),
    }


def outcome(seed: int, compare: Callable[[Drawn], dict[str, float]]) -> str:
    """Right, refused, wrong or a crash, with why."""
    net = network(seed)
    if not bool(torch.isfinite(net.J).all()):
        return "no derivative"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            errors = compare(net)
        except (ValueError, NotImplementedError) as refusal:
            return f"refused: {str(refusal)[:200]}"
        except Exception as error:
            return f"crash: {type(error).__name__} {str(error)[:200]}"
    bad = {name: f"{e:.1e}" for name, e in errors.items() if not e < 1e-9}
    return f"wrong: {bad}" if bad else "right"


def _error(got: Array, wanted: Array) -> float:
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    size = max(float(wanted.abs().max()), 1e-30)
    return float((got - wanted).abs().max()) / size


@pytest.fixture(scope="module", autouse=True)
def _few_refusals() -> Any:
    seen.clear()
    yield
    assert sum(told.startswith("refused") for told in seen) <= max(1, len(seen) // 10)


seen: list[str] = []


@pytest.mark.parametrize("seed", range(COUNT))
def test_exact_numbers_of_drawn_networks(seed: int) -> None:
    told = outcome(seed, exact)
    seen.append(told)
    assert told.split(":")[0] in ("right", "refused", "no derivative"), network(seed).blocks


@pytest.mark.parametrize("seed", range(COUNT))
def test_products_of_drawn_networks(seed: int) -> None:
    """Refused are parts under no_grad, where the modes differ, and distances, which lack one."""
    told, blocks = outcome(seed, operators), network(seed).blocks
    excused = {"without_gradient", "distances"} & set(blocks)
    assert told in ("right", "no derivative") or (excused and told.startswith("refused")), blocks


if __name__ == "__main__":
    first, last = int(sys.argv[1]), int(sys.argv[2])
    compare = operators if "operators" in sys.argv else exact
    counts: Counter[str] = Counter()
    for seed in range(first, last):
        told = outcome(seed, compare)
        counts[told.split(":")[0]] += 1
        if not told.startswith(("right", "no derivative")):
            print(seed, network(seed).blocks, told, flush=True)
    print(dict(counts))
