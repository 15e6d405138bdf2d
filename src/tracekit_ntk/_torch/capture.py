"""PyTorch networks in factored form: one forward pass, and batched reverse passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import torch

from tracekit._arrays import Array

from .._derivatives import checks
from .._factors import (
    Dense,
    Head,
    Lookup,
    Shared,
    Use,
    cotangent,
    is_alone,
    pad,
    stack,
    with_cotangent,
)
from .check import Check
from .cotangents import Cotangents, Plain, largest, largest_of_rows
from .derivatives import leaves
from .head import Body, Found
from .noted import Noted, Part, in_precision
from .placement import Placement
from .record import Network, tensors
from .reverse import Way, batched_grad, each


def capture(f: Callable[[Any, Any], Any], params: Any, x: Any, *, whole: bool = False) -> Capture:
    """Run a PyTorch function once, and find the operations that read its parameters.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> tensor`` with samples on axis 0 of x and of the result.
    params : tree of tensors
        What to differentiate by. Where one requires a gradient, or an input does, and grad mode is
        on, what is made of the factors can be differentiated in turn.
    x : tensor or tree of tensors
        The inputs.
    whole : bool
        Whether the whole batch is one sample with all its outputs, for functions that mix samples.

    Returns
    -------
    Capture
        Which gives the factors for any range of outputs.

    Notes
    -----
    Operations are seen by a TorchFunctionMode, so that f may be any Python: modules, functions,
    control flow. No forward mode is needed. Whatever was seen, plain autograd decides: f runs once
    more, unwatched, two of its gradients are taken, and a parameter whose factors do not sum up to
    them is differentiated on its own. Where samples are is seen in the same cotangents.

    Examples
    --------
    >>> import torch
    >>> from tracekit_ntk._torch.capture import capture
    >>> found = capture(lambda p, x: x @ p["w"], {"w": torch.ones(3, 2)}, torch.ones(5, 3))
    >>> [use] = found.uses(0, 2)["['w']"]
    >>> use.X.shape, use.G.shape
    (torch.Size([5, 1, 1, 3]), torch.Size([5, 2, 1, 1, 2]))
    """
    with torch.inference_mode(False):
        return Capture(f, params, x, whole)


class Capture:
    """A function's Jacobian at one point, in factors; see `factors.Capture`."""

    bytes_at_once = 2**27

    def __init__(self, f: Callable[..., Any], params: Any, x: Any, whole: bool) -> None:
        named, inputs = leaves(params), tensors(x)
        checks.inputs(x, bool(inputs) or (whole and x is None))
        self._network = Network(f, params, named, x)
        y = self._network.output
        if not whole:
            checks.samples([tuple(part.shape) for part in inputs], tuple(y.shape))
            self._network.by_each(len(y))
            y = self._network.output
        self.samples = 1 if whole else y.shape[0]
        self.output_shape = tuple(y.shape[0 if whole else 1 :])
        self.outputs = prod(self.output_shape)
        self.sizes = {name: p.numel() for name, p in self._network.leaves.items()}
        reads, self._missed = self._network.reads()
        self._noted = Noted(reads, self._network.way.graph)
        self.numbers = sum(self._noted.sizes.values()) // self.samples
        self._cotangents = Cotangents(y.detach(), self.samples, self._network.dtypes)
        self._placement = Placement(self._noted, self._cotangents, self.samples)
        self._check = Check(self._noted, self._cotangents, self.sizes)
        self._settled = self._told = False
        self._end = y, self._network.way
        self._data: dict[int, Any] = {}

    @property
    def output(self) -> Array:
        """What f gave, with the caller's graph where factors have it."""
        y = self._network.output
        return y if self._network.way.graph else y.detach()

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter, for the outputs start to stop of every sample."""
        rows = self._network.rows(start, stop, self.samples)
        return self._pulled(rows, (start, stop) == (0, self.outputs))

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for k combinations ``V^H y`` of each sample's own outputs: V (N, O, k).

        Or (1, O, k) of combinations that all samples share.
        """
        y = self._network.output
        rows = V.to(y.dtype).permute(2, 0, 1).expand(-1, self.samples, -1)
        return self._pulled(rows.reshape(-1, *y.shape), True)

    @cached_property
    def head(self) -> Head | None:
        """The linear map with more outputs than inputs that the network ends in, if it does."""
        last = self._network.last
        if last is None or last.out.dtype not in _FULL:
            return None
        with torch.inference_mode(False):
            self._settle()
            y, way = self._end
            if y is not self._network.output:
                return None
            found = Found(last, self.samples, way.graph)
            if not found.fits or {part.name for part in found.parts} & self._missed.keys():
                return None
            body = Body(self, found.given, self._pulled_body)
            own, one = (found.own, found.bias), body.uses(0, 1)
            head = Head(body, found.weight, found.features, *own, one)
            return head if is_alone(head) and self._holds(head, found.given) else None

    def _pulled_body(self, given: Array, rows: Array) -> dict[str, list[Use]]:
        with torch.inference_mode(False):
            if not self._told:
                self._tell()
            found = self._stacked(self._network.reverse(rows, root=given))
            return found | self._formed(rows, given)

    def _holds(self, head: Head, given: Array) -> bool:
        """Whether head and body make the gradients that all factors do, which are right."""
        rows, d = self._cotangents.plain, head.width
        truth = self._summed(self._network.output, rows)
        made = self._summed(given, rows @ head.weight.detach().conj())
        V = rows.reshape(1, len(rows), -1, head.outputs)
        whole = replace(head, features=head.features.detach().reshape(1, -1, d))
        for name, uses in whole.direct(V.conj()).items():
            for use in uses:
                J = pad(use.dense(), use.start, self.sizes[name])[0]
                made[name] = made[name] + J if name in made else J
        return self._check.agree(truth, made)

    def _summed(self, root: Array, rows: Array) -> dict[str, Array]:
        """Gradients for rows of cotangents of an output, or of what leads to it."""
        grads = each(torch.Tensor.detach, self._network.reverse(rows, root=root))
        found = self._check.gradients(grads, self._missed)
        if self._missed and root.requires_grad:
            p = [self._network.leaves[name] for name in self._missed]
            plain = batched_grad([root], p, [rows], Way(mapped=False))
            for name, g in zip(self._missed, plain, strict=True):
                if g is not None:
                    found[name] = g.detach().reshape(len(rows), -1)
        return found

    def outline(self) -> dict[str, list[Use]]:
        """Uses for all outputs, of zeros that take the memory of one."""
        if not self._settled:
            self._settle()
        y, noted = self._network.output, self._noted
        outs = {k: read.out for k, read in zip(noted.edge_numbers, noted.reads, strict=True)}
        with torch.inference_mode(False), torch.set_grad_enabled(self._network.way.graph):
            grads: list[Array | None] = [
                y.new_zeros(1, *outs[k].shape, dtype=outs[k].dtype) for k in range(len(noted.edges))
            ]
            found: dict[str, list[Use]] = {name: [] for name in self.sizes}
            for name, kinds in noted.by_kind(grads, self._missed).items():
                uses = stack([self._use(parts, {}) for parts in kinds])
                found[name] = [_widened(use, self.outputs) for use in uses]
        J = y.new_zeros(1, 1, 1)
        for name in self._missed:
            found[name] = [Dense(J.expand(self.samples, self.outputs, self.sizes[name]))]
        return found

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Every read: parameter, operation, positions, why its Jacobian is formed (or "")."""
        with torch.inference_mode(False):
            self._settle()
        self._told = True
        lines = []
        for name in self.sizes:
            found: dict[str, int] = {}
            for read in self._noted.reads:
                if read.seen.name == name:
                    sizes = read.arrange(read.out.detach()[None]).shape[1 : 1 + read.positions]
                    found[read.op] = found.get(read.op, 0) + prod(sizes) // self.samples
            if name in self._missed:
                found = {"several" if len(found) > 1 else next(iter(found), "other"): 1}
            reason = self._missed.get(name, "" if found else "not read, or to no effect")
            lines += [(name, op, n, reason) for op, n in (found or {"none": 0}).items()]
        return lines

    def _pulled(self, rows: Array, check: bool) -> dict[str, list[Use]]:
        """The uses of each row of cotangents; the check may go through the same pass."""
        with torch.inference_mode(False):
            grads = self._checked(rows, check)
            if not self._told:
                self._tell()
            return self._stacked(grads) | self._formed(rows)

    def _stacked(self, grads: list[Array | None]) -> dict[str, list[Use]]:
        """The uses that derivatives by what every operation gave make."""
        found: dict[str, list[Use]] = {name: [] for name in self.sizes}
        shared: dict[Any, tuple[Array, Shared]] = {}
        for name, kinds in self._noted.by_kind(grads, self._missed).items():
            found[name] = stack([self._use(parts, shared) for parts in kinds])
        return found

    def _checked(self, rows: Array, check: bool) -> list[Array | None]:
        """Derivatives for each row, of a network that has been checked."""
        if self._settled or not check:
            self._settle()
            return self._network.reverse(rows)
        both, count = self._network.reverse(torch.cat([rows, self._cotangents.rows])), len(rows)
        before = self._network.way
        self._settle(each(lambda g: g[count:].detach(), both))
        if self._network.way != before:
            return self._network.reverse(rows)
        return each(lambda g: g[:count], both)

    def _use(self, parts: list[Part], shared: dict[Any, tuple[Array, Shared]]) -> Use:
        """Reads of one kind, from the derivatives of what each gave: joined along positions."""
        data, found = zip(*(self._by_sample(i, G) for i, G in parts), strict=True)
        make, X, G = self._noted.reads[parts[0][0]].use, data[0], found[0]
        if len(parts) > 1:
            X = X if X is None else torch.cat(data, 1)
            return make(X, torch.cat([g.transpose(1, 2) for g in found], 1).transpose(1, 2))
        use = make(X, G)
        if isinstance(use, Lookup) or not _same_entries(cotangent(use), G):
            return use
        key = id(parts[0][1]), G.shape, G.stride(), G.storage_offset()
        return replace(use, shared=shared.setdefault(key, (parts[0][1], Shared(G)))[1])

    def _by_sample(self, i: int, G: Array) -> tuple[Any, Array]:
        read = self._noted.reads[i]
        if i not in self._data:
            X = self._noted.take(i)
            with torch.set_grad_enabled(self._network.way.graph):  # kept for calls with a graph
                self._data[i] = X if X is None else self._placement.by_sample(i, X, 0)
        return self._data[i], in_precision(self._placement.by_sample(i, read.arrange(G), 1), read)

    def _formed(self, rows: Array, root: Array | None = None) -> dict[str, list[Use]]:
        """Jacobians of parameters on their own: a reverse pass for each output of a sample."""
        names, N, M = list(self._missed), self.samples, len(rows)
        if not names:
            return {}
        p = [self._network.leaves[name] for name in names]
        at_once = max(1, self.bytes_at_once // (8 * M * N * max(1, self.numbers)))
        end, way = self._end
        y = end if root is None else root
        if not y.requires_grad:
            return {name: [] for name in names}
        parts: list[list[Array]] = [[] for _ in names]
        for low in range(0, N, at_once):
            n = range(low, min(low + at_once, N))
            one = rows if N == 1 else rows.new_zeros(len(n), *rows.shape)
            for k, sample in enumerate(n):
                if N > 1:
                    one[k, :, sample] = rows[:, sample]
            one = one.reshape(-1, *y.shape)
            found = batched_grad([y], p, [one], way)
            if way.mapped and not self._sums_up(y, p, one, found):
                way = Way(False, way.graph)
                self._end = end, way
                found = batched_grad([y], p, [one], way)
            for leaf, g, part in zip(p, found, parts, strict=True):
                g = rows.new_zeros(len(n), M, leaf.numel()) if g is None else g
                g = g.reshape(len(n), M, -1).to(leaf.dtype)
                part.append(g.conj().resolve_conj() if g.is_complex() else g)
        joined = zip(names, parts, strict=True)
        return {name: [Dense(torch.cat(part))] for name, part in joined}

    def _sums_up(self, y: Array, p: list[Array], rows: Array, found: list[Array | None]) -> bool:
        """Whether batched gradients of all rows sum up to a plain one of their sum."""
        v = torch.randn(len(rows), generator=torch.Generator().manual_seed(0)).to(rows)
        summed = torch.tensordot(v, rows, 1)[None]
        plain = batched_grad([y], p, [summed], Way(mapped=False))
        pairs = [(a, b) for a, b in zip(plain, found, strict=True) if a is not None]
        if any(b is None for _, b in pairs):
            return False
        truth = [a.detach().reshape(1, -1) for a, _ in pairs if a.numel()]
        made = [b.detach().reshape(len(rows), -1) for a, b in pairs if b is not None and a.numel()]
        sizes = [(v.abs().to(b.abs())[None] @ b.abs()) for b in made]
        made = [v.to(b)[None] @ b for b in made]
        return not any(
            self._cotangents.differ(truth, made, sizes, max(largest(truth), default=0.0))
        )

    def _settle(self, grads: list[Array | None] | None = None) -> None:
        """Hold factors to two plain gradients of f, from derivatives for the check's rows."""
        if self._settled:
            return
        network, rows = self._network, self._cotangents.rows
        if grads is None:
            grads = each(torch.Tensor.detach, network.reverse(rows))
        plain = network.plain(self._cotangents)
        if plain.differs:
            self._missed = dict.fromkeys(self.sizes, "the watched run of f gave something else")
        known = dict(self._missed)
        mixed, wrong = self._judged(grads, plain)
        if (mixed or wrong) and network.way.mapped:
            alone = network.reverse(rows, Way(mapped=False))
            if not self._check.same(grads, alone):
                network.way, self._missed = Way(False, network.way.graph), known
                grads = alone
                mixed, wrong = self._judged(grads, plain)
        if mixed:
            self._refuse_mixing(mixed)
            wrong = self._check.wrong(grads, plain, self._missed)
        self._missed |= wrong
        if self._missed:
            self._end = self._source(plain)
        self._settled = True

    def _judged(self, grads: list[Array | None], plain: Plain) -> tuple[list[int], dict[str, str]]:
        """Reads that mix samples; and if there are none, parameters whose factors are wrong."""
        mixed, lost = self._placement.find(grads)
        for i in lost:
            self._missed.setdefault(self._name(i), "samples lie along no one axis")
        return mixed, {} if mixed else self._check.wrong(grads, plain, self._missed)

    def _refuse_mixing(self, mixed: list[int]) -> None:
        """What all samples share is a function of parameters alone, or samples are coupled."""
        reads = self._noted.reads
        values = [reads[i].out.detach().clone() for i in mixed]
        others = self._network.reads_elsewhere()
        for i, value in zip(mixed, values, strict=True):
            if len(others) != len(reads) or not torch.equal(others[i].out.detach(), value):
                raise ValueError(
                    f"samples are coupled: the outputs of several depend on one entry of what "
                    f"{reads[i].op} gives with parameter {self._name(i)}, as with "
                    "BatchNorm in training mode, so that samples have no kernels of their own; put "
                    "the module in eval mode, or pass whole=True to treat the batch as one sample"
                )
            self._missed.setdefault(self._name(i), "read before any sample is")

    def _name(self, i: int) -> str:
        return self._noted.reads[i].seen.name

    def _source(self, plain: Plain) -> tuple[Array, Way]:
        """The run of f and the way to reverse it that give the gradients of what was missed."""
        names = [name for name in self._missed if name in plain.gradients]
        p = [self._network.leaves[name] for name in names]
        wanted = [plain.gradients[name] for name in names]
        sizes = [largest_of_rows(t) for t in wanted]
        ways = [Way(True), Way(False)] if self._network.way.mapped else [Way(False)]
        runs = [y for y in (self._network.output, plain.output) if y.requires_grad]
        for y, way in product(runs, ways):
            found = batched_grad([y], p, [self._cotangents.plain], way)
            made = []
            for t, g in zip(wanted, found, strict=True):
                g = torch.zeros_like(t) if g is None else g.detach().reshape(len(t), -1).to(t.dtype)
                made.append(g.conj() if g.is_complex() else g)
            if not any(self._cotangents.differ(wanted, made, sizes, plain.most)):
                return y, way._replace(graph=self._network.way.graph)
        return plain.output, Way(False, self._network.way.graph)

    def _tell(self) -> None:
        """Say once which parameters take the slow road."""
        self._told = True
        missed = {name: why for name, why in self._missed.items() if self.sizes[name]}
        checks.slow(missed, not self._network.way.mapped)


def _widened(use: Use, outputs: int) -> Use:
    """The same use with its one output repeated, in the same memory."""
    G = cotangent(use)
    return with_cotangent(use, G.expand(G.shape[0], outputs, *G.shape[2:]))


_FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def _same_entries(a: Array, b: Array) -> bool:
    """Whether one array shows all entries of the other."""
    if a.numel() != b.numel() or a.dtype != b.dtype or a.storage_offset() != b.storage_offset():
        return False
    return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())
