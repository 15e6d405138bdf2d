"""PyTorch networks in factored form: one forward pass, and batched reverse passes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from . import _checks
from ._torch import leaves, unflatten
from ._torch_cells import lean
from ._torch_reads import Array, Read
from ._torch_record import Recorder
from ._torch_reverse import Edge, batched_grad, cut, last_joint
from ._uses import Dense, Use, stack


class Place(NamedTuple):
    """Which axis of the positions runs over the samples, and what else it runs over."""

    axis: int
    outer: int
    inner: int


def capture(f: Callable[[Any, Any], Any], params: Any, x: Any, *, whole: bool = False) -> Capture:
    """Run a PyTorch function once, and find the operations that read its parameters.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> tensor`` with samples on axis 0 of x and of the result.
    params : tree of tensors
        What to differentiate by; requires_grad is ignored.
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
    control flow. Every use of a parameter is an edge of the graph that autograd builds. Those edges
    are counted, and a parameter with one that no rule accounts for is differentiated on its own. No
    forward mode is needed. Where samples are is seen in one more reverse pass with two rows.

    Examples
    --------
    >>> import torch
    >>> from tracekit_ntk._torch_capture import capture
    >>> found = capture(lambda p, x: x @ p["w"], {"w": torch.ones(3, 2)}, torch.ones(5, 3))
    >>> [use] = found.uses(0, 2)["['w']"]
    >>> use.X.shape, use.G.shape
    (torch.Size([5, 1, 1, 3]), torch.Size([5, 2, 1, 1, 2]))
    """
    return Capture(f, params, x, whole)


class Capture:
    """A function's Jacobian at one point, in factors; see `factors.Capture`."""

    bytes_at_once = 2**27

    def __init__(self, f: Callable[..., Any], params: Any, x: Any, whole: bool) -> None:
        named = leaves(params)
        self._f, self._params, self._x, self._whole = f, params, x, whole
        self._leaves = {name: _leaf(p) for name, p in named}
        self.sizes = {name: p.numel() for name, p in named}
        recorder = self._record(x)
        y = self._y
        _checks.output(y, lambda y: isinstance(y, torch.Tensor), _inexact)
        _checks.finite(bool(torch.isfinite(y.detach()).all()))
        if y.is_complex() != next(iter(self._leaves.values())).is_complex():
            raise TypeError(
                f"f of {'real' if y.is_complex() else 'complex'} parameters returned "
                f"{y.dtype}; return its real and imaginary parts (torch.view_as_real)"
            )
        if not whole:
            _checks.samples([tuple(part.shape) for part in _inputs(x)], tuple(y.shape))
        self.samples = 1 if whole else y.shape[0]
        self.output_shape = tuple(y.shape[0 if whole else 1 :])
        self.outputs = prod(self.output_shape)
        self._missed: dict[str, str] = {}
        self._reads: list[tuple[Read, Edge]] = []
        if y.requires_grad:
            self._reads, self._missed = recorder.finish(y)
        given = {edge: read.out.numel() for read, edge in self._reads}
        self.numbers = sum(given.values()) // self.samples
        self._edges = list(given)
        self._joint = last_joint(y.grad_fn)
        self._places: dict[int, Place] | None = {} if self.samples == 1 else None
        self._data: dict[int, Any] = {}

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter, for the outputs start to stop of every sample."""
        return self._pulled(self._rows(start, stop), (start, stop) == (0, self.outputs))

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for k combinations ``V^H y`` of each sample's own outputs: V (N, O, k)."""
        rows = V.to(self._y.dtype).permute(2, 0, 1)
        return self._pulled(rows.reshape(-1, *self._y.shape), True)

    def _pulled(self, rows: Array, check: bool) -> dict[str, list[Use]]:
        """The uses of each row of cotangents; where samples are may be seen in the same pass."""
        if not self._y.requires_grad:
            return {name: [] for name in self.sizes}
        if self._places is None and check:
            both = self._reverse(torch.cat([rows, self._check_rows()]))
            self._place([g if g is None else g[-2:] for g in both])
            grads = [g if g is None else g[:-2] for g in both]
        else:
            if self._places is None:
                self._place(self._reverse(self._check_rows()))
            grads = self._reverse(rows)
        by_edge = dict(zip(self._edges, grads, strict=True))
        found: dict[str, list[Use]] = {name: [] for name in self.sizes}
        kinds: dict[Any, list[tuple[int, Array]]] = {}
        for i, (read, edge) in enumerate(self._reads):
            G = by_edge[edge]
            if G is not None and read.seen.name not in self._missed:
                key = i if read.kind is None else (read.seen.name, read.kind)
                kinds.setdefault(key, []).append((i, G))
        for parts in kinds.values():
            found[self._reads[parts[0][0]][0].seen.name].append(self._use(parts))
        for name in self._missed:
            found[name] = [self._formed(name, rows)]
        return {name: stack(uses) for name, uses in found.items()}

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Every read: parameter, operation, positions, why its Jacobian is formed (or "")."""
        if self._places is None:
            self._place(self._reverse(self._check_rows()))
        lines = []
        for name in self.sizes:
            found: dict[str, int] = {}
            for read, _ in self._reads:
                if read.seen.name == name:
                    sizes = read.arrange(read.out.detach()[None]).shape[1 : 1 + read.positions]
                    found[read.op] = found.get(read.op, 0) + prod(sizes) // self.samples
            if name in self._missed:
                found = {"several" if len(found) > 1 else next(iter(found), "other"): 1}
            reason = self._missed.get(name, "" if found else "not read, or to no effect")
            lines += [(name, op, n, reason) for op, n in (found or {"none": 0}).items()]
        return lines

    def _record(self, x: Any) -> Recorder:
        recorder = Recorder(self._leaves)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), recorder:  # the fused: no batching
            self._y = self._f(unflatten(self._params, self._leaves.values()), x)
        return recorder

    def _rows(self, start: int, stop: int) -> Array:
        """Cotangents that pick outputs start to stop of every sample."""
        eye = torch.zeros(stop - start, self.outputs, dtype=self._y.dtype, device=self._y.device)
        eye.diagonal(start).fill_(1)
        rows = eye[:, None, :].expand(-1, self.samples, -1)
        return rows.reshape(-1, *self._y.shape)

    def _check_rows(self) -> Array:
        """Two cotangents, each on its own half of the samples."""
        generator = torch.Generator().manual_seed(0)
        half = torch.randint(0, 2, (self.samples,), generator=generator)
        half[0], half[-1] = 1, 0
        self._half = half.bool().to(self._y.device)
        v = torch.randn(self._y.shape, generator=generator, dtype=torch.float64).to(self._y)
        masks = torch.stack([self._half, ~self._half])
        masks = masks.reshape(2, self.samples, *[1] * len(self.output_shape))
        return masks * v

    def _reverse(self, rows: Array) -> list[Array | None]:
        """Derivatives of each row's sum of outputs by what every operation gave."""
        with lean():
            found = self._sweep(rows)
        return [g.conj() if g is not None and g.is_complex() else g for g in found]

    def _sweep(self, rows: Array) -> list[Array | None]:
        if self._joint is None:
            return batched_grad([self._y], self._edges, [rows])
        joint, above = self._joint
        upper = [edge for edge in self._edges if edge[0] in above]
        found = batched_grad([self._y], [*upper, (joint, 0)], [rows])
        grads = dict(zip(upper, found, strict=False))
        # go on only from those parts of the output that these rows ask for
        asked = [(edge, v) for edge, v in cut(joint, found[-1]) if bool(v.any())]
        outputs, cotangents = zip(*asked, strict=True) if asked else ((), ())
        lower = [edge for edge in self._edges if edge not in grads]
        grads |= dict(zip(lower, batched_grad(outputs, lower, cotangents), strict=True))
        return [grads[edge] for edge in self._edges]

    def _use(self, parts: list[tuple[int, Array]]) -> Use:
        """Reads of one kind, from the derivatives of what each gave."""
        read = self._reads[parts[0][0]][0]
        X, G = zip(*(self._by_sample(i, G) for i, G in parts), strict=True)
        joined = (
            G[0] if len(G) == 1 else torch.cat([g.transpose(1, 2) for g in G], 1).transpose(1, 2)
        )
        data = X[0] if len(X) == 1 or X[0] is None else torch.cat(X, 1)
        return read.use(data, joined)

    def _by_sample(self, i: int, G: Array) -> tuple[Any, Array]:
        read = self._reads[i][0]
        place = None if self._places is None else self._places.get(i)
        if i not in self._data:
            X = read.data() if callable(read.data) else read.data
            if X is not None:
                X = _by_sample(X, read.positions, place, 0, self.samples)
                X = X.to(read.seen.ghost.dtype) if X.is_floating_point() else X
            self._data[i] = X
        G = _by_sample(read.arrange(G), read.positions, place, 1, self.samples)
        return self._data[i], G.to(read.seen.ghost.dtype)

    def _formed(self, name: str, rows: Array) -> Use:
        """The Jacobian of one parameter on its own: a reverse pass for each output of a sample."""
        N, M = self.samples, len(rows)
        p = self._leaves[name]
        J = []
        for n in range(N):
            one = torch.zeros_like(rows) if not self._whole and N > 1 else rows
            if one is not rows:
                one[:, n] = rows[:, n]
            [g] = batched_grad([self._y], [p], [one])
            J.append(p.new_zeros(M, p.numel()) if g is None else g.reshape(M, -1).conj())
        return Dense(torch.stack(J).resolve_conj())

    def _place(self, grads: list[Array | None]) -> None:
        """Find where samples are in every operation's output, and refuse those that mix them."""
        self._places = {}
        by_edge = dict(zip(self._edges, grads, strict=True))
        known: dict[Any, Place | None] = {}
        mixed = []
        for i, (read, edge) in enumerate(self._reads):
            G = by_edge[edge]
            if G is None:
                continue
            key = edge, read.op, read.positions, i if read.op == "cat" else None
            if key not in known:  # a bias is read where its weight is
                hit = read.arrange(G)
                hit = hit.reshape(*hit.shape[: read.positions + 1], -1).any(-1)
                known[key] = _find(hit, self._half)
            place = known[key]
            if place is not None:
                self._places[i] = place
            elif bool(((G[0] != 0) & (G[1] != 0)).any()):
                mixed.append(i)
            else:
                self._missed.setdefault(read.seen.name, "samples lie along no one axis")
        if mixed:
            self._refuse_mixing(mixed)

    def _refuse_mixing(self, mixed: list[int]) -> None:
        """What all samples share is a function of parameters alone, or samples are coupled."""
        values = [self._reads[i][0].out.detach().clone() for i in mixed]
        y, reads = self._y, self._reads
        recorder = self._record(tree_map(_rolled, self._x))
        others, _ = recorder.finish(self._y)
        self._y = y
        same = len(others) == len(reads)
        for i, value in zip(mixed, values, strict=True):
            if not same or not torch.equal(others[i][0].out.detach(), value):
                raise ValueError(
                    f"samples are coupled: the outputs of several depend on one entry of what "
                    f"{reads[i][0].op} gives with parameter {reads[i][0].seen.name}, as with "
                    "BatchNorm in training mode, so that samples have no kernels of their own; put "
                    "the module in eval mode, or pass whole=True to treat the batch as one sample"
                )
            self._missed.setdefault(reads[i][0].seen.name, "read before any sample is")


def _find(hit: Array, half: Array) -> Place | None:
    """The first axis along which positions are reached by their own sample's half alone."""
    N = len(half)
    wrong = torch.stack([~half, half], 1)
    for axis, size in enumerate(hit.shape[1:]):
        if size % N:
            continue
        for outer in dict.fromkeys((1, size // N)):
            place = Place(axis, outer, size // N // outer)
            by = _by_sample(hit, hit.ndim - 1, place, 1, N)  # N, 2, S
            if not bool((by & wrong[:, :, None]).any()):
                return place
    return None


def _by_sample(t: Array, positions: int, place: Place | None, lead: int, N: int) -> Array:
    """Samples first, then the leading axis, all other positions as one, and the rest."""
    tail = t.shape[lead + positions :]
    if N == 1 or place is None:
        return t.reshape(1, *t.shape[:lead], -1, *tail)
    axis = lead + place.axis
    t = t.reshape(*t.shape[:axis], place.outer, N, place.inner, *t.shape[axis + 1 :])
    t = t.movedim(axis + 1, 0)
    return t.reshape(N, *t.shape[1 : 1 + lead], -1, *tail)


def _leaf(p: Array) -> Array:
    return p.detach().clone(memory_format=torch.contiguous_format).requires_grad_()


def _inputs(x: Any) -> list[Array]:
    return [part for part in tree_leaves(x) if isinstance(part, torch.Tensor)]


def _rolled(x: Any) -> Any:
    return x.roll(1, 0) if isinstance(x, torch.Tensor) and x.ndim else x


def _inexact(y: Array) -> bool:
    return bool(y.is_floating_point() or y.is_complex())
