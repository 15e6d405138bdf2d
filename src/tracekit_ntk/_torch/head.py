"""The linear operation that a PyTorch network ends in, and its body: what it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from tracekit._arrays import Array

from .._factors import OwnBias, OwnWeight, Use
from .reads import Call, TrackedView, layout
from .reverse import Edge, edge_of


@dataclass(frozen=True, eq=False)
class Last:
    """A linear operation, and what was made of its result: a bias added, its rows moved or chosen.

    `weight` (O, d) and `bias` are as they were used, `own` of both the parameters that they show.
    """

    given: Array
    given_at: Edge | None  # None where no parameter reaches it
    weight: Array
    input_last: bool  # whether the axes of the weight that was used are (O, d)
    bias: Array | None
    own: tuple[TrackedView | None, TrackedView | None]
    factors: tuple[float, float]
    out: Array
    edges: tuple[Edge, ...]  # of the results one after the other
    rows: Array | None = None  # which row of the operation each row of `out` is, if not the same

    @property
    def outputs(self) -> int:
        """O."""
        return int(self.weight.shape[0])


class Ending:
    """Follows the last linear operation of a run to its output.

    Which rule an operation follows is told by its name; `views` and `copies` are operations that
    but show or copy entries.
    """

    def __init__(
        self, seen: dict[int, TrackedView], rules: dict[Any, Any], views: set[Any], copies: set[Any]
    ) -> None:
        self._seen, self._views, self._copies = seen, views, copies
        self._names = {func: rule.__name__ for func, rule in rules.items()}
        self.last: Last | None = None

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """See an operation and what it gave."""
        rule, last = self._names.get(func), self.last
        if not isinstance(out, torch.Tensor) or not out.requires_grad:
            return
        if is_functorch_wrapped_tensor(out):
            return
        if rule in _PRODUCTS:
            self.last = self._product(rule, Call(args, kwargs, out))
        elif last is not None and any(a is last.out for a in args):
            self.last = None
            if rule == "added" and len(args) == 2 and not kwargs and out.shape == last.out.shape:
                other = args[1] if args[0] is last.out else args[0]
                self.last = self._with_bias(last, other, 1.0, out)
            elif func in self._views and args[0] is last.out and out.dtype == last.out.dtype:
                self.last = (
                    replace(last, out=out, edges=(*last.edges, edge_of(out)))
                    if func in self._copies and out.shape == last.out.shape
                    else _moved(last, func, args[1:], kwargs, out)
                )

    def at(self, y: Array) -> Last | None:
        """That operation, if a network's output is what was made of it."""
        last = self.last
        if last is None or last.edges[-1] != edge_of(y) or last.out.shape != y.shape:
            return None
        whole = last.given_at is None or last.given_at == edge_of(last.given)
        return last if whole else None  # else changed in place after it was read

    def _product(self, rule: str, call: Call) -> Last | None:
        if rule == "linear":
            got = call.bind("input weight bias")
            x, weight, bias, factors = got["input"], got["weight"], got.get("bias"), (1.0, 1.0)
        elif rule == "addmm":
            got = call.bind("input mat1 mat2")
            x, weight, bias = got["mat1"], got["mat2"], got["input"]
            factors = float(got.get("alpha", 1)), float(got.get("beta", 1))
        else:
            x, weight = list(call.bind("input other").values())[:2]
            bias, factors = None, (1.0, 1.0)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or x.ndim < 2:
            return None
        own, out = self._seen.get(id(weight)), call.out
        d, O = weight.shape[:: -1 if rule == "linear" else 1]  # noqa: E741
        if d >= O or (own is None and weight.requires_grad):
            return None
        if not x.dtype == weight.dtype == out.dtype or out.shape != (*x.shape[:-1], O):
            return None
        with torch.enable_grad():
            W = weight if rule == "linear" else weight.t()
            W = W if factors[0] == 1 else W * factors[0]
        at = edge_of(x) if x.requires_grad else None
        last = Last(
            x, at, W, rule == "linear", None, (own, None), (factors[0], 1.0), out, (edge_of(out),)
        )
        return last if bias is None else self._with_bias(last, bias, factors[1], out)

    def _with_bias(self, last: Last, bias: Any, factor: float, out: Array) -> Last | None:
        if last.bias is not None or not isinstance(bias, torch.Tensor):
            return None
        own = self._seen.get(id(bias))
        if own is None and bias.requires_grad:
            return None
        if own is not None and not _is_row(own.storage_view, last.outputs):
            return None
        return replace(
            last, bias=bias, own=(last.own[0], own), factors=(last.factors[0], factor), out=out,
            edges=(*last.edges, edge_of(out)),
        )  # fmt: skip


_PRODUCTS = ("linear", "matmul", "addmm")


def _is_row(bias: Array, outputs: int) -> bool:
    return bool(bias.numel() == bias.shape[-1] == outputs and bias.stride(-1) == 1)


def _moved(
    last: Last, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Array
) -> Last | None:
    """The same, with the rows of its result where an operation put them."""
    O, rows = last.outputs, last.rows  # noqa: E741
    if out.shape[-1:] != (O,):
        return None
    if rows is None:
        lead = last.out.shape[:-1]
        rows = torch.arange(prod(lead), device=out.device).reshape(lead)
    numbers = rows[..., None].expand(last.out.shape)
    every = torch.arange(O, device=out.device)
    columns = every.expand(last.out.shape)
    try:
        with torch.no_grad():
            numbers, columns = (func(t, *args, **kwargs) for t in (numbers, columns))
    except RuntimeError:  # a view of memory that is laid out otherwise
        return None
    if numbers.shape != out.shape or bool((columns != every).any()):
        return None
    rows = numbers[..., 0]
    return replace(last, out=out, edges=(*last.edges, edge_of(out)), rows=rows)


class Found:
    """A network's head, as its run shows it: not yet held to anything."""

    def __init__(self, last: Last, samples: int, graph: bool) -> None:
        (weight, bias), (factor, by) = last.own, last.factors
        with torch.set_grad_enabled(graph or last.given.requires_grad):
            flat, rows = last.given.reshape(-1, last.given.shape[-1]), last.rows
            flat = flat if rows is None else flat[rows.reshape(-1)]
            self.given = flat.reshape(*last.out.shape[:-1], -1)
        kept = (lambda t: t) if graph else torch.Tensor.detach
        self.weight = kept(last.weight)
        features = kept(self.given).reshape(samples, -1, flat.shape[-1])
        scale = 1.0 if weight is None else factor * weight.scale
        self.features = features if scale == 1 else features * scale
        self.own: OwnWeight | None = None
        self.bias: OwnBias | None = None
        self.fits = True
        if weight is not None:
            inner, outer = ([1], [0]) if last.input_last else ([0], [1])
            where = layout(weight, [], inner, outer)
            self.fits = where is not None
            if where is not None:
                self.own = OwnWeight(weight.name, where[1], where[0])
        if bias is not None:
            start = int(bias.storage_view.storage_offset())
            self.bias = OwnBias(bias.name, start, by * bias.scale)

    @property
    def parts(self) -> list[OwnWeight | OwnBias]:
        """The parameters of the head."""
        return [part for part in (self.own, self.bias) if part is not None]


class Body:
    """The capture of what a network's head is given; see `factors.Capture`."""

    head = None

    def __init__(
        self, owner: Any, given: Array, pull: Callable[[Array, Array], dict[str, list[Use]]]
    ) -> None:
        self._owner, self._given, self._pull = owner, given, pull
        self.samples, self.sizes = owner.samples, owner.sizes
        whole = given.ndim == len(owner.output_shape)
        self.output_shape = tuple(given.shape if whole else given.shape[1:])
        self.outputs = prod(self.output_shape)
        self.numbers = owner.numbers - owner.outputs + self.outputs
        self.bytes_at_once = owner.bytes_at_once

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Every read of the network."""
        return self._owner.report  # type: ignore[no-any-return]

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter, for the features start to stop of every sample."""
        y = self._given
        eye = torch.zeros(stop - start, self.outputs, dtype=y.dtype, device=y.device)
        eye.diagonal(start).fill_(1)
        return self._pulled(eye[:, None, :])

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for k combinations ``V^H h`` of each sample's own features.

        V is (N, S d, k), or (1, S d, k) of those that all samples share.
        """
        return self._pulled(V.to(self._given.dtype).permute(2, 0, 1))

    def _pulled(self, rows: Array) -> dict[str, list[Use]]:
        rows = rows.unflatten(2, self.output_shape).expand(-1, self.samples, *self.output_shape)
        return self._pull(self._given, rows.reshape(-1, *self._given.shape))
