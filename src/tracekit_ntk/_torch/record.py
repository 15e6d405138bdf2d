"""A forward pass watched: which operations read the parameters, and whether all were seen."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from tracekit._arrays import Array

from .._derivatives import checks
from .reads import Call, Read, Seen, through
from .recurrent import CELLS
from .reverse import Edge, below, edge_of
from .rules import COPIES, NEGATIONS, RULES, SCALES, VIEWS


class Recorder(TorchFunctionMode):  # type: ignore[misc]
    """Notes every operation that reads a parameter while it is entered."""

    def __init__(self, params: dict[str, Array], graph: bool = False) -> None:
        super().__init__()
        self.graph = graph  # whether what is made of the reads is to be differentiated
        self.dtypes = {p.dtype for p in params.values()}
        self.reads: list[tuple[Read, Edge]] = []
        self.versions: list[tuple[Array, int]] = []
        self._seen: dict[int, Seen] = {}
        self._events: list[tuple[Seen, Any]] = []
        for name, p in params.items():
            if p.numel() == 0:
                continue
            self._seen[id(p)] = Seen(name, p.detach(), p)
        self._leaves = {id(p): edge_of(p) for p in params.values()}
        self.ends = {node for node, _ in self._leaves.values()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`, and note it if it reads a parameter."""
        kwargs = kwargs or {}
        found = [self._seen[id(a)] for a in _tensors(args, kwargs) if id(a) in self._seen]
        if not found or not torch.is_grad_enabled():
            out = func(*args, **kwargs)
            if isinstance(out, torch.Tensor):
                self.dtypes.add(out.dtype)
            return out
        if func in CELLS:  # fused operations, taken apart; their parts come back here
            taken = CELLS[func](self, *args, **kwargs)
            if taken is not None:
                return taken()
        view = self._view(func, args, kwargs)
        rule = None if view else RULES.get(func)
        if view is None and rule is None and isinstance(func, _FUNCTION):
            with self:
                return _opened(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        if view is not None:
            self._derive(view, found[0], out)
        elif rule is not None and isinstance(out, torch.Tensor) and out.requires_grad:
            self._note(rule, Call(args, kwargs, out), found)
        if isinstance(out, torch.Tensor):
            self.dtypes.add(out.dtype)
        return out

    def _note(self, rule: Callable[..., Any], call: Call, found: list[Seen]) -> None:
        if is_functorch_wrapped_tensor(call.out):  # of a derivative or a map inside
            return
        edge = edge_of(call.out)
        for seen in found if len({id(s) for s in found}) == len(found) else []:
            with torch.set_grad_enabled(self.graph):
                try:
                    read = rule(call, seen)
                except Exception:  # a call that its rule does not foresee: counted, and missed
                    read = None
            if read is not None:
                self.reads.append((read, edge))
                self._events.append((seen, edge[0]))
                self.versions += [(x, x._version) for x in read.reads]

    def through(self, linear: tuple[Any, ...], given: Array, out: Array, factor: Array) -> None:
        """Note `given`, what F.linear gives, as read by `out`: G is `out`'s, times a factor."""
        for seen in [self._seen[id(a)] for a in linear[1:] if id(a) in self._seen]:
            read = RULES[F.linear](Call(linear, {}, given), seen)
            if read is not None:
                self.reads.append((through(read, out, factor), edge_of(out)))
                self._events.append((seen, edge_of(given)[0]))
                self.versions += [(x, x._version) for x in read.reads]

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """How to make the same view of other memory, if this call makes one."""
        seen = self._seen.get(id(args[0])) if args else None
        if seen is None:
            seen, other = (self._seen.get(id(args[1])), 0) if len(args) == 2 else (None, 1)
            if seen is None or SCALES.get(func) != 1:
                return None
        else:
            other = 1
        if func in SCALES and len(args) == 2 and (factor := _scalar(args[other])) is not None:
            factor = factor if SCALES[func] == 1 else 1 / factor
            return lambda seen: [(seen.ghost, seen.scale * factor)]
        if func in NEGATIONS:
            return lambda seen: [(seen.ghost, -seen.scale)]
        if func not in VIEWS or _indexed(func, args):
            return None
        if func in COPIES:
            return lambda seen: [(seen.ghost, seen.scale)]

        def shown(seen: Seen) -> list[tuple[Array, float]]:
            with torch.no_grad():
                made = func(seen.ghost, *args[1:], **kwargs)
            made = [made] if isinstance(made, torch.Tensor) else list(made)
            return [(ghost, seen.scale) for ghost in made]

        return shown

    def _derive(self, view: Any, seen: Seen, out: Any) -> None:
        """Keep a view of a parameter, which is watched from now on like the parameter."""
        outs = [out] if isinstance(out, torch.Tensor) else list(out)
        outs = [o for o in outs if o.requires_grad and o is not seen.tensor]
        outs = [o for o in outs if not is_functorch_wrapped_tensor(o)]
        if not outs:
            return
        memory = seen.ghost.untyped_storage().data_ptr()
        ghosts = view(seen)
        if any(ghost.untyped_storage().data_ptr() != memory for ghost, _ in ghosts):
            return  # copied in another order: not followed
        for tensor, (ghost, scale) in zip(outs, ghosts, strict=True):
            self._seen[id(tensor)] = Seen(seen.name, ghost, tensor, scale)
        self._events += [(seen, node) for node in {edge_of(tensor)[0] for tensor in outs}]

    def finish(self, y: Array) -> tuple[list[tuple[Read, Edge]], dict[str, str]]:
        """The reads that y depends on; and parameters with a use that was not noted, with why.

        Every use is an edge of the graph below y: they are counted.
        """
        edges, nodes = below(edge_of(y)[0], self.ends)
        checks.reentrant({node.name() for node in nodes})
        noted = Counter(id(seen) for seen, node in self._events if node in nodes)
        missed = {}
        for seen in self._seen.values():
            count = edges[self._leaves.get(id(seen.tensor)) or edge_of(seen.tensor)]
            if count != noted[id(seen)]:
                missed[seen.name] = f"{count - noted[id(seen)]} of {count} uses without a rule"
        for x, version in self.versions:
            if x._version != version:
                raise RuntimeError(
                    "an input of an operation that reads a parameter was changed in place after "
                    "it, so that the derivative is lost; do so on a copy"
                )
        return [(read, edge) for read, edge in self.reads if edge[0] in nodes], missed


_FUNCTION = types.FunctionType


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for a in (*args, *kwargs.values()):
        if isinstance(a, tuple | list):
            yield from a
        else:
            yield a


def _scalar(x: Any) -> float | None:
    if isinstance(x, torch.Tensor):
        alone = x.ndim == 0 and not x.requires_grad and not x.is_complex()
        return float(x) if alone else None
    return x if isinstance(x, int | float) else None


def _indexed(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an item is taken by arrays, which makes a copy."""
    if func is not torch.Tensor.__getitem__:
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(i, torch.Tensor | list) for i in index)


_OPENED: dict[Any, Any] = {}


def _opened(func: Any) -> Any:
    """A function of torch.nn.functional that does not hand itself over, so that its parts do."""
    if func not in _OPENED:
        closed = dict.fromkeys(
            ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"),
            lambda *_: False,
        )
        made = types.FunctionType(
            func.__code__, func.__globals__ | closed, func.__name__, func.__defaults__,
            func.__closure__,
        )  # fmt: skip
        made.__kwdefaults__ = func.__kwdefaults__
        _OPENED[func] = made
    return _OPENED[func]
