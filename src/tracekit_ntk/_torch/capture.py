"""PyTorch networks in factored form: one forward pass, and batched reverse passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import compress, product
from math import isfinite, prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from tracekit._arrays import Array

from .._derivatives import checks
from .._factors import Dense, Use, stack
from .check import Cotangents, Place, bound, by_sample, gradient
from .derivatives import leaves, unflatten
from .passes import MORE_RUNS, generator_state
from .reads import Read
from .record import Recorder
from .recurrent import lean
from .reverse import Edge, Way, batched_grad, cut, last_joint


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
        named = leaves(params)
        checks.inputs(x, bool(_inputs(x)) or (whole and x is None))
        carry = any(t.requires_grad for t in (*(p for _, p in named), *_inputs(x)))
        self._way = Way(graph=carry and torch.is_grad_enabled())
        self._f, self._params, self._whole = f, params, whole
        self._x = tree_map(lambda t: t.clone() if _is_tensor(t) else t, x)
        self._leaves = {name: _leaf(p, self._way.graph) for name, p in named}
        recorder = self._record(self._x)
        self.sizes = {name: p.numel() for name, p in named}
        y = self._y
        checks.output(y, _is_tensor, _inexact)
        checks.finite(bool(torch.isfinite(y.detach()).all()))
        if y.is_complex() != next(iter(self._leaves.values())).is_complex():
            raise TypeError(
                f"f of {'real' if y.is_complex() else 'complex'} parameters returned "
                f"{y.dtype}; return its real and imaginary parts (torch.view_as_real)"
            )
        if not whole:
            checks.samples([tuple(part.shape) for part in _inputs(x)], tuple(y.shape))
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
        self._joint = last_joint(y.grad_fn, recorder.ends)
        self._check = Cotangents(y.detach(), self.samples, recorder.dtypes | {y.dtype})
        self._places: dict[int, Place] | None = None
        self._told = False
        self._data: dict[int, Any] = {}
        self._raw: dict[int, Any] = {}

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter, for the outputs start to stop of every sample."""
        return self._pulled(self._rows(start, stop), (start, stop) == (0, self.outputs))

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for k combinations ``V^H y`` of each sample's own outputs: V (N, O, k)."""
        rows = V.to(self._y.dtype).permute(2, 0, 1)
        return self._pulled(rows.reshape(-1, *self._y.shape), True)

    def _pulled(self, rows: Array, check: bool) -> dict[str, list[Use]]:
        """The uses of each row of cotangents; the check may go through the same pass."""
        with torch.inference_mode(False):
            grads = self._checked(rows, check)
            if not self._told:
                self._tell()
            found: dict[str, list[Use]] = {name: [] for name in self.sizes}
            for name, kinds in self._kinds(grads).items():
                found[name] = stack([self._use(parts) for parts in kinds])
            return found | self._formed(rows)

    def _checked(self, rows: Array, check: bool) -> list[Array | None]:
        """Derivatives for each row, of a network that has been checked."""
        if self._places is not None:
            return self._reverse(rows)
        if not check:
            self._settle()
            return self._reverse(rows)
        both = self._reverse(torch.cat([rows, self._check.rows]))
        before = self._way
        self._settle([g if g is None else g[len(rows) :].detach() for g in both])
        if self._way != before:
            return self._reverse(rows)
        return [g if g is None else g[: len(rows)] for g in both]

    def _kinds(self, grads: list[Array | None]) -> dict[str, list[list[tuple[int, Array]]]]:
        """For each parameter its reads with their derivatives, those of one kind together."""
        by_edge = dict(zip(self._edges, grads, strict=True))
        kinds: dict[Any, list[tuple[int, Array]]] = {}
        for i, (read, edge) in enumerate(self._reads):
            G = by_edge[edge]
            if G is not None and read.seen.name not in self._missed:
                key = read.seen.name, i if read.kind is None else read.kind
                kinds.setdefault(key, []).append((i, G))
        found: dict[str, list[list[tuple[int, Array]]]] = {}
        for (name, _), parts in kinds.items():
            found.setdefault(name, []).append(parts)
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
        recorder = Recorder(self._leaves, self._way.graph)
        with recorder:
            self._y = self._run(x)
        self._generator = generator_state()
        return recorder

    def _run(self, x: Any) -> Any:
        x = tree_map(lambda t: t.clone() if _is_tensor(t) else t, x)  # f may write into it
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused: no batching
            return self._f(unflatten(self._params, self._leaves.values()), x)

    def _rows(self, start: int, stop: int) -> Array:
        """Cotangents that pick outputs start to stop of every sample."""
        eye = torch.zeros(stop - start, self.outputs, dtype=self._y.dtype, device=self._y.device)
        eye.diagonal(start).fill_(1)
        rows = eye[:, None, :].expand(-1, self.samples, -1)
        return rows.reshape(-1, *self._y.shape)

    def _reverse(self, rows: Array, way: Way | None = None) -> list[Array | None]:
        """Derivatives of each row's sum of outputs by what every operation gave."""
        if not self._y.requires_grad:
            return [None] * len(self._edges)
        with lean():
            found = self._sweep(rows, self._way if way is None else way)
        return [g.conj() if g is not None and g.is_complex() else g for g in found]

    def _sweep(self, rows: Array, way: Way) -> list[Array | None]:
        if self._joint is None:
            return batched_grad([self._y], self._edges, [rows], way)
        joint, above = self._joint
        upper = [edge for edge in self._edges if edge[0] in above]
        found = batched_grad([self._y], [*upper, (joint, 0)], [rows], way)
        grads = dict(zip(upper, found, strict=False))
        # go on only from those parts of the output that these rows ask for
        asked = [(edge, v) for edge, v in cut(joint, found[-1]) if bool(v.any())]
        outputs, cotangents = zip(*asked, strict=True) if asked else ((), ())
        lower = [edge for edge in self._edges if edge not in grads]
        grads |= dict(zip(lower, batched_grad(outputs, lower, cotangents, way), strict=True))
        return [grads[edge] for edge in self._edges]

    def _use(self, parts: list[tuple[int, Array]]) -> Use:
        """Reads of one kind, from the derivatives of what each gave."""
        X, G = self._joined(parts)
        return self._reads[parts[0][0]][0].use(X, G)

    def _joined(self, parts: list[tuple[int, Array]]) -> tuple[Any, Array]:
        """Data and derivatives of reads of one kind, along their positions."""
        X, G = zip(*(self._by_sample(i, G) for i, G in parts), strict=True)
        if len(parts) == 1:
            return X[0], G[0]
        joined = torch.cat([g.transpose(1, 2) for g in G], 1).transpose(1, 2)
        return X[0] if X[0] is None else torch.cat(X, 1), joined

    def _by_sample(self, i: int, G: Array) -> tuple[Any, Array]:
        read = self._reads[i][0]
        place = None if self._places is None else self._places.get(i)
        own = read.seen.ghost.dtype
        dtype = own.to_complex() if G.is_complex() else own
        if i not in self._data:
            X = self._raw.pop(i) if i in self._raw else self._read(i)
            X = X if X is None else by_sample(X, read.positions, place, 0, self.samples)
            self._data[i] = X
        G = by_sample(read.arrange(G), read.positions, place, 1, self.samples)
        return self._data[i], G.to(dtype)

    def _read(self, i: int) -> Any:
        """What an operation multiplied its parameter by, in the parameter's precision."""
        read = self._reads[i][0]
        own = read.seen.ghost.dtype
        with torch.set_grad_enabled(self._way.graph):
            X = read.data() if callable(read.data) else read.data
        if X is None:
            return X
        X = X if self._way.graph else X.detach()
        if X.is_complex():
            return X.to(own.to_complex())
        return X.to(own) if X.is_floating_point() else X

    def _formed(self, rows: Array) -> dict[str, list[Use]]:
        """Jacobians of parameters on their own: a reverse pass for each output of a sample."""
        names, N, M = list(self._missed), self.samples, len(rows)
        if not names:
            return {}
        p = [self._leaves[name] for name in names]
        at_once = max(1, self.bytes_at_once // (8 * M * N * max(1, self.numbers)))
        y, way = self._end
        parts: list[list[Array]] = [[] for _ in names]
        for low in range(0, N, at_once):
            n = range(low, min(low + at_once, N))
            one = rows if N == 1 else rows.new_zeros(len(n), *rows.shape)
            for k, sample in enumerate(n):
                if N > 1:
                    one[k, :, sample] = rows[:, sample]
            found = batched_grad([y], p, [one.reshape(-1, *y.shape)], way)
            for leaf, g, part in zip(p, found, parts, strict=True):
                g = rows.new_zeros(len(n), M, leaf.numel()) if g is None else g
                g = g.reshape(len(n), M, -1).to(leaf.dtype)
                part.append(g.conj().resolve_conj() if g.is_complex() else g)
        joined = zip(names, parts, strict=True)
        return {name: [Dense(torch.cat(part))] for name, part in joined}

    def _settle(self, grads: list[Array | None] | None = None) -> None:
        """Hold factors to two plain gradients of f, from derivatives for the check's rows."""
        if self._places is not None:
            return
        rows = self._check.rows
        if grads is None:
            grads = [None if g is None else g.detach() for g in self._reverse(rows)]
        y, truth = self._plain()
        known = dict(self._missed)
        mixed, wrong = self._judged(grads, truth)
        if (mixed or wrong) and self._way.mapped:
            alone = self._reverse(rows, Way(mapped=False))
            if not self._same(grads, alone):
                self._way, self._missed = Way(False, self._way.graph), known
                grads = alone
                mixed, wrong = self._judged(grads, truth)
        if mixed:
            self._refuse_mixing(mixed)
            wrong = self._wrong(grads, truth)
        self._missed |= wrong
        if self._missed:
            self._end = self._source(y, truth)

    def _judged(
        self, grads: list[Array | None], truth: dict[str, Array]
    ) -> tuple[list[int], dict[str, str]]:
        """Reads that mix samples; and if there are none, parameters whose factors are wrong."""
        mixed = self._place(grads)
        return mixed, {} if mixed else self._wrong(grads, truth)

    def _plain(self) -> tuple[Array, dict[str, Array]]:
        """A run of f that nothing watches, and its gradients for the check's plain rows."""
        y, tolerance = self._run(self._x), self._check.precision**0.75
        if not _apart(y, self._y) <= tolerance:
            checks.repeatable(_apart(self._run(self._x), y), tolerance)
            self._missed = dict.fromkeys(self.sizes, "the watched run of f gave something else")
        if not torch.equal(generator_state(), self._generator):
            for _ in range(MORE_RUNS):
                checks.repeatable(_apart(self._run(self._x), y), tolerance)
        rows = [*self._check.plain]
        count = len(rows)
        if y.is_complex():
            rows.append(rows[0] * 1j)
        named = {name: p for name, p in self._leaves.items() if p.numel()}
        if not y.requires_grad:
            self._most = 0.0
            return y, {name: p.new_zeros(count, p.numel()) for name, p in named.items()}
        found = batched_grad([y], list(named.values()), [torch.stack(rows)], Way(mapped=False))
        truth = {}
        for (name, p), g in zip(named.items(), found, strict=True):
            g = p.new_zeros(len(rows), p.numel()) if g is None else g.reshape(len(rows), -1)
            g = g.detach().to(p.dtype)
            if y.is_complex():
                size = g.abs().max()
                deviation = (g[count] - 1j * g[0]).abs().max()
                checks.holomorphic(bool(deviation <= self._check.tolerance * size))
                g = g[:count].conj().resolve_conj()
            truth[name] = g
        sizes = _largest(truth.values())
        for name, size in zip(truth, sizes, strict=True):
            checks.finite_gradient(isfinite(size), name)
        self._most = max(sizes, default=0.0)
        return y, truth

    def _wrong(self, grads: list[Array | None], truth: dict[str, Array]) -> dict[str, str]:
        """Parameters whose factors do not sum up to their gradients, with why."""
        kinds = self._kinds([g if g is None else self._check.summed(g) for g in grads])
        names = [name for name in truth if name not in self._missed]
        unseen = [name for name in names if name not in kinds and bool(truth[name].any())]
        names = [name for name in names if name in kinds]
        made, failed = {}, {}
        for name in names:
            try:
                uses = [self._whole_use(parts) for parts in kinds[name]]
                made[name] = gradient(uses, self.sizes[name]).detach()
            except Exception as error:  # a call that its rule does not foresee
                failed[name] = f"its rule fails: {type(error).__name__}"
        wanted = [truth[name] for name in made]
        far = list(compress(made, self._check.far(wanted, [*made.values()], self._most)))
        bounds = [
            bound([self._whole_use(parts, absolute=True) for parts in kinds[name]],
                  self.sizes[name]).detach()
            for name in far
        ]  # fmt: skip
        wanted, sums = [truth[name] for name in far], [made[name] for name in far]
        differ = self._check.differ(wanted, sums, bounds, self._most)
        unlike = dict.fromkeys(compress(far, differ), checks.DISAGREES)
        return dict.fromkeys(unseen, "read where nothing was seen") | failed | unlike

    def _whole_use(self, parts: list[tuple[int, Array]], *, absolute: bool = False) -> Use:
        """Reads of one kind by all samples as if they were one, or that of absolute values."""
        given: list[Array] = []
        data: list[Any] = []
        for i, G in parts:
            read = self._reads[i][0]
            if i not in self._raw:
                self._raw[i] = self._read(i)
            Z, own = self._raw[i], read.seen.ghost.dtype
            G = read.arrange(G)
            if read.positions:
                Z = Z if Z is None else Z.flatten(0, read.positions - 1)
                G = G.flatten(1, read.positions)
            else:
                Z, G = Z if Z is None else Z[None], G[:, None]
            data.append(Z if Z is None else Z[None])
            given.append(G.to(own.to_complex() if G.is_complex() else own))
        X: Any = data[0] if len(data) == 1 or data[0] is None else torch.cat(data, 1)
        G = (given[0] if len(given) == 1 else torch.cat(given, 1))[None]
        if absolute:
            number = X is not None and (X.is_floating_point() or X.is_complex())
            X, G = X.abs() if number else X, G.abs()
        return self._reads[parts[0][0]][0].use(X, G)

    def _same(self, grads: list[Array | None], alone: list[Array | None]) -> bool:
        """Whether batched reverse passes agree with single ones."""
        if any((a is None) != (b is None) for a, b in zip(grads, alone, strict=True)):
            return False
        batched = [a.flatten(1) for a in grads if a is not None]
        single = [b.flatten(1) for b in alone if b is not None]
        most = max(_largest(single), default=0.0)
        sizes = [_rowwise(b) for b in single]
        return not any(self._check.differ(single, batched, sizes, most))

    def _source(self, plain: Array, truth: dict[str, Array]) -> tuple[Array, Way]:
        """The run of f and the way to reverse it that give the gradients of what was missed."""
        names = [name for name in self._missed if name in truth]
        p = [self._leaves[name] for name in names]
        wanted = [truth[name] for name in names]
        sizes = [_rowwise(t) for t in wanted]
        ways = [Way(True), Way(False)] if self._way.mapped else [Way(False)]
        for y, way in product([y for y in (self._y, plain) if y.requires_grad], ways):
            found = batched_grad([y], p, [self._check.plain], way)
            made = []
            for t, g in zip(wanted, found, strict=True):
                g = torch.zeros_like(t) if g is None else g.detach().reshape(len(t), -1).to(t.dtype)
                made.append(g.conj() if g.is_complex() else g)
            if not any(self._check.differ(wanted, made, sizes, self._most)):
                return y, way._replace(graph=self._way.graph)
        return plain, Way(False, self._way.graph)

    def _tell(self) -> None:
        """Say once which parameters take the slow road."""
        self._told = True
        missed = {name: why for name, why in self._missed.items() if self.sizes[name]}
        checks.slow(missed, not self._way.mapped)

    def _place(self, grads: list[Array | None]) -> list[int]:
        """Find where samples are in every operation's output, and which operations mix them."""
        self._places = {}
        if self.samples == 1:
            return []
        by_edge = dict(zip(self._edges, grads, strict=True))
        keys: dict[int, tuple[Any, Array]] = {}
        arranged: dict[Any, tuple[Array, int]] = {}
        for i, (read, edge) in enumerate(self._reads):
            if (G := by_edge[edge]) is not None:  # a bias is read where its weight is
                key = edge, read.op, read.positions, i if read.op == "cat" else None
                keys[i] = key, G
                if key not in arranged:
                    arranged[key] = read.arrange(G), read.positions
        found = self._check.places(list(arranged.values()))
        known = dict(zip(arranged, found, strict=True))
        mixed = []
        for i, (key, G) in keys.items():
            place = known[key]
            if place is not None:
                self._places[i] = place
            elif bool(((G[0] != 0) & (G[1] != 0)).any()):
                mixed.append(i)
            else:
                name = self._reads[i][0].seen.name
                self._missed.setdefault(name, "samples lie along no one axis")
        return mixed

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


def _leaf(p: Array, graph: bool) -> Array:
    leaf = p.clone(memory_format=torch.contiguous_format)
    return leaf if graph and leaf.requires_grad else leaf.detach().requires_grad_()


def _inputs(x: Any) -> list[Array]:
    return [part for part in tree_leaves(x) if isinstance(part, torch.Tensor)]


def _rolled(x: Any) -> Any:
    return x.roll(1, 0) if isinstance(x, torch.Tensor) and x.ndim else x


def _apart(a: Array, b: Array) -> float:
    """How far two outputs are apart, relative to the largest."""
    a, b = a.detach(), b.detach()
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clip(torch.finfo(b.dtype).tiny))


def _largest(tensors: Iterable[Array]) -> list[float]:
    """The largest absolute value of each."""
    largest = [t.abs().amax().double() for t in tensors]
    return torch.stack(largest).tolist() if largest else []


def _rowwise(t: Array) -> Array:
    return t.abs().amax(1, keepdim=True)


def _is_tensor(y: Any) -> bool:
    return isinstance(y, torch.Tensor)


def _inexact(y: Array) -> bool:
    return bool(y.is_floating_point() or y.is_complex())
