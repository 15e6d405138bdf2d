"""Runs of a function, watched for what reads its parameters, and reverse passes through them."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from tracekit._arrays import Array

from .._derivatives import checks
from .cotangents import Cotangents, Plain, largest
from .derivatives import unflatten
from .head import Ending, Last
from .passes import MORE_RUNS, generator_state, is_array, is_inexact, whole_modules
from .reads import Call, Read, TrackedView, through
from .recurrent import CELLS, states_only
from .reverse import JOINTS, Edge, Way, batched_grad, below, cut, each, edge_of, last_joint
from .rules import COPIES, NEGATIONS, RULES, SCALES, VIEWS


class Network:
    """A function at one point: a run that was watched, plain runs, and reverse passes."""

    def __init__(
        self, f: Callable[[Any, Any], Any], params: Any, named: list[tuple[str, Array]], x: Any
    ) -> None:
        carry = any(t.requires_grad for t in (*(p for _, p in named), *tensors(x)))
        self.way = Way(graph=carry and torch.is_grad_enabled())
        self._f, self._params, self._x = f, params, _copied(x)
        self.leaves = {name: _leaf(p, self.way.graph) for name, p in named}
        self._joint: tuple[Any, set[Any]] | None = None
        self.edges: list[Edge] = []
        self._readers = 1  # of tables that f looks up once for all samples
        self._keep(*self._watched(self._x))
        self._check_output()

    def by_each(self, samples: int) -> None:
        """Let each sample read tables for itself where f looks rows up once for all of them.

        As positions of a sequence often are. What it gives has to be the same.
        """
        if not self._shares or samples == 1:
            return
        try:
            made = self._watched(self._x, samples)
        except Exception:  # f takes no more rows than it looked up
            return
        if _apart(made[0], self.output) <= torch.finfo(self.output.dtype).eps ** 0.75:
            self._keep(*made)
            self._readers = samples

    def _keep(self, output: Any, recorder: Recorder) -> None:
        self.output, self._shares = output, recorder.shares
        self._generator = generator_state()
        self.dtypes = recorder.dtypes
        self._finish = partial(recorder.finish, output)
        self.last: Last | None = None
        if is_array(output) and output.requires_grad:
            self.dtypes = self.dtypes | {output.dtype}
            self.last = recorder.ending.at(output)

    def reads(self) -> tuple[list[tuple[Read, Edge]], dict[str, str]]:
        """The reads that the output depends on; and parameters not seen in full, with why."""
        if not self.output.requires_grad:
            return [], {}
        found, missed, self._joint = self._finish()
        self.edges = list(dict.fromkeys(edge for _, edge in found))
        return found, missed

    def reads_elsewhere(self) -> list[Read]:
        """The reads of a run with each sample in another's place."""
        y, recorder = self._watched(tree_map(_rolled, self._x), self._readers)
        return [read for read, _ in recorder.finish(y)[0]]

    def rows(self, start: int, stop: int, samples: int) -> Array:
        """Cotangents that pick outputs start to stop of every sample."""
        y = self.output
        outputs = y.numel() // samples
        eye = torch.zeros(stop - start, outputs, dtype=y.dtype, device=y.device)
        eye.diagonal(start).fill_(1)
        if samples == 1:
            return eye.reshape(-1, *y.shape)
        return eye.reshape(-1, 1, *y.shape[1:]).expand(-1, *y.shape)

    def reverse(
        self, rows: Array, way: Way | None = None, root: Array | None = None
    ) -> list[Array | None]:
        """Derivatives of each row's sum of outputs by what every operation gave.

        Of the output, or of a `root` on the way to it.
        """
        root = self.output if root is None else root
        if not root.requires_grad:
            return [None] * len(self.edges)
        with states_only():
            found = self._sweep(root, rows, self.way if way is None else way)
        return each(lambda g: g.conj() if g.is_complex() else g, found)

    def plain(self, check: Cotangents) -> Plain:
        """A run that nothing watches, and its gradients for the plain rows."""
        y, tolerance = self.run(), check.precision**0.75
        differs = not _apart(y, self.output) <= tolerance
        if differs:
            checks.repeatable(_apart(self.run(), y), tolerance)
        if not torch.equal(generator_state(), self._generator):
            for _ in range(MORE_RUNS):
                checks.repeatable(_apart(self.run(), y), tolerance)
        rows = [*check.plain]
        count = len(rows)
        if y.is_complex():
            rows.append(rows[0] * 1j)
        named = {name: p for name, p in self.leaves.items() if p.numel()}
        if not y.requires_grad:
            zeros = {name: p.new_zeros(count, p.numel()) for name, p in named.items()}
            return Plain(y, zeros, 0.0, differs)
        found = batched_grad([y], list(named.values()), [torch.stack(rows)], Way(mapped=False))
        truth = {}
        for (name, p), g in zip(named.items(), found, strict=True):
            g = p.new_zeros(len(rows), p.numel()) if g is None else g.reshape(len(rows), -1)
            g = g.detach().to(p.dtype)
            if y.is_complex():
                size = g.abs().max()
                deviation = (g[count] - 1j * g[0]).abs().max()
                checks.holomorphic(bool(deviation <= check.tolerance * size))
                g = g[:count].conj().resolve_conj()
            truth[name] = g
        sizes = largest(truth.values())
        for name, size in zip(truth, sizes, strict=True):
            checks.finite_gradient(isfinite(size), name)
        return Plain(y, truth, max(sizes, default=0.0), differs)

    def run(self, x: Any = None) -> Any:
        """What f gives, at samples that it may write into."""
        x = _copied(self._x if x is None else x)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused: no batching
            return self._f(unflatten(self._params, self.leaves.values()), x)

    def _watched(self, x: Any, samples: int = 1) -> tuple[Any, Recorder]:
        recorder = Recorder(self.leaves, self.way.graph, samples)
        with whole_modules(), recorder:
            return self.run(x), recorder

    def _check_output(self) -> None:
        y = self.output
        checks.output(y, is_array, is_inexact)
        checks.finite(bool(torch.isfinite(y.detach()).all()))
        if y.is_complex() != next(iter(self.leaves.values())).is_complex():
            raise TypeError(
                f"f of {'real' if y.is_complex() else 'complex'} parameters returned "
                f"{y.dtype}; return its real and imaginary parts (torch.view_as_real)"
            )

    def _sweep(self, root: Array, rows: Array, way: Way) -> list[Array | None]:
        if self._joint is None:
            return batched_grad([root], self.edges, [rows], way)
        joint, above = self._joint
        upper = [edge for edge in self.edges if edge[0] in above]
        found = batched_grad([root], [*upper, (joint, 0)], [rows], way)
        if found[-1] is None:  # the joint is above the root
            return batched_grad([root], self.edges, [rows], way)
        grads = dict(zip(upper, found, strict=False))
        # go on only from those parts of the output that these rows ask for
        asked = [(edge, v) for edge, v in cut(joint, found[-1]) if bool(v.any())]
        outputs, cotangents = zip(*asked, strict=True) if asked else ((), ())
        lower = [edge for edge in self.edges if edge not in grads]
        grads |= dict(zip(lower, batched_grad(outputs, lower, cotangents, way), strict=True))
        return [grads[edge] for edge in self.edges]


class Recorder(TorchFunctionMode):  # type: ignore[misc]
    """Notes every operation that reads a parameter while it is entered."""

    def __init__(self, params: dict[str, Array], graph: bool = False, samples: int = 1) -> None:
        super().__init__()
        self.graph = graph  # whether what is made of the reads is to be differentiated
        self.samples, self.shares = samples, False  # that read tables, once for all or by each
        self.dtypes = {p.dtype for p in params.values()}
        self.reads: list[tuple[Read, Edge]] = []
        self.versions: list[tuple[Array, int]] = []
        self._seen: dict[int, TrackedView] = {}
        self._events: list[tuple[TrackedView, Any]] = []
        self.ending = Ending(self._seen, RULES, VIEWS, COPIES)
        for name, p in params.items():
            if p.numel() == 0:
                continue
            self._seen[id(p)] = TrackedView(name, p.detach(), p)
        with torch.enable_grad():
            self._leaves = {id(p): edge_of(p) for p in params.values()}
        self.ends = {node for node, _ in self._leaves.values()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`, and note it if it reads a parameter."""
        kwargs = kwargs or {}
        found = [self._seen[id(a)] for a in _tensors(args, kwargs) if id(a) in self._seen]
        if not found or not torch.is_grad_enabled():
            return self._ran(func, args, kwargs, func(*args, **kwargs))
        if func is F.embedding and args and args[0].ndim > 1 and len(args[0]) == 1:
            self.shares = True
            args = (args[0].expand(self.samples, *args[0].shape[1:]), *args[1:])
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
        return self._ran(func, args, kwargs, out)

    def _ran(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if isinstance(out, torch.Tensor):
            self.dtypes.add(out.dtype)
            if torch.is_grad_enabled():
                self.ending.follow(func, args, kwargs, out)
        return out

    def _note(self, rule: Callable[..., Any], call: Call, found: list[TrackedView]) -> None:
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
            return lambda seen: [(seen.storage_view, seen.scale * factor)]
        if func in NEGATIONS:
            return lambda seen: [(seen.storage_view, -seen.scale)]
        if func not in VIEWS or _indexed(func, args):
            return None
        if func in COPIES:
            return lambda seen: [(seen.storage_view, seen.scale)]

        def shown(seen: TrackedView) -> list[tuple[Array, float]]:
            with torch.no_grad():
                made = func(seen.storage_view, *args[1:], **kwargs)
            made = [made] if isinstance(made, torch.Tensor) else list(made)
            return [(storage_view, seen.scale) for storage_view in made]

        return shown

    def _derive(self, view: Any, seen: TrackedView, out: Any) -> None:
        """Keep a view of a parameter, which is watched from now on like the parameter."""
        outs = [out] if isinstance(out, torch.Tensor) else list(out)
        outs = [o for o in outs if o.requires_grad and o is not seen.tensor]
        outs = [o for o in outs if not is_functorch_wrapped_tensor(o)]
        if not outs:
            return
        memory = seen.storage_view.untyped_storage().data_ptr()
        storage_views = view(seen)
        if any(
            storage_view.untyped_storage().data_ptr() != memory for storage_view, _ in storage_views
        ):
            return  # copied in another order: not followed
        for tensor, (storage_view, scale) in zip(outs, storage_views, strict=True):
            self._seen[id(tensor)] = TrackedView(seen.name, storage_view, tensor, scale)
        self._events += [(seen, node) for node in {edge_of(tensor)[0] for tensor in outs}]

    def finish(self, y: Array) -> tuple[list[tuple[Read, Edge]], dict[str, str], Any]:
        """The reads that y depends on; parameters with a use that was not noted, with why; a joint.

        Every use is an edge of the graph below y: they are counted.
        """
        edges, nodes = below(edge_of(y)[0], self.ends)
        names = {node.name() for node in nodes}
        checks.reentrant(names)
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
        joint = last_joint(y.grad_fn, self.ends) if names & JOINTS else None
        return [(read, edge) for read, edge in self.reads if edge[0] in nodes], missed, joint


def tensors(x: Any) -> list[Array]:
    """All tensors of a tree."""
    return [part for part in tree_leaves(x) if is_array(part)]


def _copied(x: Any) -> Any:
    return tree_map(lambda t: t.clone() if is_array(t) else t, x)


def _rolled(x: Any) -> Any:
    return x.roll(1, 0) if is_array(x) and x.ndim else x


def _leaf(p: Array, graph: bool) -> Array:
    leaf = p.clone(memory_format=torch.contiguous_format)
    return leaf if graph and leaf.requires_grad else leaf.detach().requires_grad_()


def _apart(a: Array, b: Array) -> float:
    """How far two outputs are apart, relative to the largest."""
    a, b = a.detach(), b.detach()
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clip(torch.finfo(b.dtype).tiny))


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
