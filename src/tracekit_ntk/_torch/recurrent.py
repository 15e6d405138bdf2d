"""Fused recurrent operations of PyTorch taken apart, step by step, so that every read is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tracekit._arrays import Array

Step = Callable[[Array, Any, Sequence[Array], Any], Any]


class BatchedRowProduct(torch.autograd.Function):  # type: ignore[misc]
    """Rows (..., H) times matrices (..., H, H); a batch of rows shares its matrices."""

    @staticmethod
    def forward(g: Array, A: Array) -> Array:
        """One row for each matrix."""
        return torch.matmul(g.unsqueeze(-2), A).squeeze(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: this has no derivative of its own."""

    @staticmethod
    def vmap(info: Any, dims: Any, g: Array, A: Array) -> tuple[Array, int]:
        """Many rows for each matrix, kept beside each other."""
        return torch.matmul(g.movedim(dims[0], -2), A), g.ndim - 2


class GRUCell(torch.autograd.Function):  # type: ignore[misc]
    """A GRU's next state, from the products `i` with the input and `h` with the old state.

    The derivative by the old state takes in the way through `h`, which must not depend on it.
    """

    states_only = False  # whether derivatives by `i` and `h` are left out: see `states_only`
    SMALL, LARGE = 2**18, 2**24  # numbers in the derivative by the old state: kept; not made

    @staticmethod
    def forward(ctx: Any, i: Array, h: Array, state: Array, weight: Array, only: bool) -> Array:
        """Three gates side by side in `i` and `h`; `only`: nothing but parameters is behind i."""
        ir, iz, candidate = i.chunk(3, -1)
        hr, hz, hn = h.chunk(3, -1)
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        n = torch.tanh(candidate + r * hn)
        dn = (1 - z) * (1 - n * n)
        dz = (state - n) * z * (1 - z)
        dr = dn * hn * r * (1 - r)
        ctx.only, ctx.kept = only, None
        ctx.save_for_backward(
            torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, dn * r], -1), z, weight
        )
        return n + z * (state - n)

    @staticmethod
    def backward(ctx: Any, g: Array) -> Any:
        """Rows times the derivative of state by state, which is made of what was kept."""
        di, dh, z, weight = ctx.saved_tensors
        H = z.shape[-1]
        skip = GRUCell.states_only
        to_i = None if skip and ctx.only else torch.cat([g, g, g], -1) * di
        to_h = None if skip else torch.cat([g, g, g], -1) * dh
        if z.numel() * H > GRUCell.LARGE:
            return to_i, to_h, (torch.cat([g, g, g], -1) * dh) @ weight + g * z, None, None
        A = ctx.kept
        if A is None:
            A = torch.einsum("...kh,khj->...hj", dh.unflatten(-1, (3, H)), weight.view(3, H, H))
            A = A + torch.diag_embed(z)
            ctx.kept = A if A.numel() <= GRUCell.SMALL else None
        return to_i, to_h, BatchedRowProduct.apply(g, A), None, None


@contextmanager
def states_only() -> Iterator[None]:
    """Reverse passes that are after the derivatives by states, not by what makes the gates."""
    GRUCell.states_only = True
    try:
        yield
    finally:
        GRUCell.states_only = False


def gru_step(x: Array, h: Array, weights: Sequence[Array], watch: Any) -> Array:
    """The next state of a GRU, whose reads are noted as those of the state it gives."""
    w_ih, w_hh, b_ih, b_hh = weights
    if watch.graph:  # `GRUCell` has no derivative of its own
        with watch:
            i, j = F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)
            (ir, iz, a), (hr, hz, b) = i.chunk(3, -1), j.chunk(3, -1)
            z, n = torch.sigmoid(iz + hz), torch.tanh(a + torch.sigmoid(ir + hr) * b)
            return n + z * (h - n)
    old = h.detach()
    i, j = F.linear(x, w_ih, b_ih), F.linear(old, w_hh, b_hh)
    new = GRUCell.apply(i, j, h, w_hh.detach(), not x.requires_grad)
    if new.grad_fn is not None:
        di, dh, *_ = new.grad_fn.saved_tensors
        watch.through((x, w_ih, b_ih), i, new, di)
        watch.through((old, w_hh, b_hh), j, new, dh)
    return new


def lstm_step(x: Array, state: tuple[Array, Array], weights: Sequence[Array], watch: Any
              ) -> tuple[Array, Array]:  # fmt: skip
    """The next output and cell of an LSTM."""
    h, c = state
    w_ih, w_hh, b_ih, b_hh = weights[:4]
    i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (F.linear(h, weights[4]) if len(weights) > 4 else h), c


def rnn_step(x: Array, h: Array, weights: Sequence[Array], watch: Any, activation: Any) -> Array:
    """The next state of an Elman network."""
    w_ih, w_hh, b_ih, b_hh = weights
    return activation(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


STEPS: dict[str, Step] = {
    "gru": gru_step,
    "lstm": lstm_step,
    "rnn_tanh": partial(rnn_step, activation=torch.tanh),
    "rnn_relu": partial(rnn_step, activation=torch.relu),
}


def network(name: str, watch: Any, *args: Any) -> Callable[[], Any] | None:
    """A whole recurrent module, or None where it drops out entries or its input is packed."""
    if len(args) != 9:
        return None
    x, state, flat, biases, layers, dropout, training, both, batch_first = args
    packed = isinstance(state, torch.Tensor) and not state.is_floating_point()
    if packed or not isinstance(flat, tuple | list) or (dropout and training):
        return None
    directions = 2 if both else 1
    step, each = STEPS[name], len(flat) // (layers * directions)
    weights = [_with_biases(flat[i : i + each], biases) for i in range(0, len(flat), each)]

    def run() -> Any:
        ends, xs = [], (x.transpose(0, 1) if batch_first else x).unbind(0)
        for layer in range(layers):
            outs = []
            for way in range(directions):
                k = layer * directions + way
                s = tuple(part[k] for part in state) if name == "lstm" else state[k]
                hs = []
                for x_t in xs if way == 0 else reversed(xs):
                    with nullcontext() if name == "gru" else watch:
                        s = step(x_t, s, weights[k], watch)
                    hs.append(s[0] if name == "lstm" else s)
                ends.append(s)
                outs.append(hs if way == 0 else hs[::-1])
            xs = outs[0] if not both else [torch.cat(pair, -1) for pair in zip(*outs, strict=True)]
        y = torch.stack(list(xs), 1 if batch_first else 0)
        if name == "lstm":
            return y, *(torch.stack(part) for part in zip(*ends, strict=True))
        return y, torch.stack(ends)

    return run


def cell(name: str, watch: Any, x: Array, state: Any, *weights: Any) -> Callable[[], Any]:
    """One step of a recurrent network."""
    padded = [*weights, *[None] * (4 - len(weights))]

    def run() -> Any:
        with nullcontext() if name == "gru" else watch:
            return STEPS[name](x, state, padded, watch)

    return run


def _with_biases(weights: Sequence[Array], biases: bool) -> list[Any]:
    return list(weights) if biases else [*weights[:2], None, None, *weights[2:]]


CELLS: dict[Any, Callable[..., Callable[[], Any] | None]] = {
    getattr(torch, name): partial(network, name) for name in STEPS
} | {getattr(torch, name + "_cell"): partial(cell, name) for name in STEPS}
