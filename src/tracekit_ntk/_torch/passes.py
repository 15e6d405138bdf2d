"""Passes through a PyTorch function: reverse ones, and forward ones by three routes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tracekit._arrays import Array

from .._derivatives import checks, cut, generic

MORE_RUNS = 8  # of a function that draws random numbers, and gave the same twice


@dataclass
class Known:
    """What was found out about a function: the least precision in it, and which routes are right.

    `batched`: whether reverse passes may run for all rows at once. `forward`, `second`: names of
    routes to products with J and with a Hessian. None where nothing asked yet. `numbers` are those
    that f makes on the way.
    """

    eps: float
    batched: bool | None = None
    forward: str | None = None
    second: str | None = None
    numbers: int = 0

    @property
    def allowed(self) -> float:
        """How far apart two ways to one number may be."""
        return float(self.eps**0.5)


class Derivative:
    """J of a function of several tensors, at a point: one forward pass, and its graph.

    Where the point has a graph of the caller's own, so have the products, in grad mode.
    """

    def __init__(
        self, values: Callable[..., Array], at: Sequence[Array], known: Known | None = None
    ) -> None:
        self._values = usable(values)
        self.differentiated = any(p.requires_grad for p in at)
        self.complex_parameters = at[0].is_complex()
        self._sizes = [p.numel() for p in at]
        self._twice: tuple[Array, list[Array | None]] | None = None
        with passes(), whole_modules(), _held() as self._held:
            self._active = [p if p.requires_grad else p.clone().requires_grad_() for p in at]
            self.output = self._values(*self._active)
        self._generator = generator_state()
        checks.output(self.output, is_array, is_inexact)
        with passes():
            self._flat = self.output.reshape(-1)
            self.depends = self._reads()
        self.known = known or Known(coarsest(self.output, *at))

    def look(self) -> float:
        """Run f again: how much its outputs differ. Notes the least precision on the way."""
        with passes(), Lowest() as lowest:
            runs = [self._values(*self._primals()).detach()]
            if not torch.equal(generator_state(), self._generator):
                runs += [self._values(*self._primals()).detach() for _ in range(MORE_RUNS)]
        self.known.eps = max(self.known.eps, lowest.eps)
        self.known.numbers = lowest.numbers // len(runs)
        return max(apart(again, self.output.detach()) for again in runs)

    def pull(self, V: Array) -> Array:
        """``J^H v`` for each row v: (k, n) to (k, P)."""
        create = self._creates()
        if not self._flat.requires_grad:
            return V.new_zeros((len(V), sum(self._sizes)), dtype=self._active[0].dtype)
        return self._again(partial(self._pull, normal(V), create))

    def reads_more(self) -> bool:
        """Whether the graph of the output ends at anything else, too."""
        own = {_node(p) for p in self._active}
        return not all(n.next_functions or n in own for n in self._nodes())

    def _reads(self) -> bool:
        """Whether the graph of the output ends at one of the parameters."""
        return not {_node(p) for p in self._active}.isdisjoint(self._nodes())

    def _nodes(self) -> Iterator[Any]:
        """The nodes of the graph of the output."""
        seen, nodes = set(), [_node(self._flat)] if self._flat.requires_grad else []
        while nodes:
            node = nodes.pop()
            yield node
            seen.add(node)
            nodes += [n for n, _ in node.next_functions if n is not None and n not in seen]

    def _pull(self, V: Array, create: bool) -> Array:
        if len(V) > 1 and self.known.batched is not False:
            try:
                rows = self._joined(self._grad(V, create, batched=True), V)
            except Exception:  # an operation without a batching rule; or one that fails at all
                self.known.batched = False
            else:
                if self.known.batched or self._is_right(V, rows.detach()):
                    return rows
        return torch.cat([self._joined(self._grad(v, create), v[None], alone=True) for v in V])

    def push(self, T: Array) -> Array:
        """``J t`` for each row t: (k, P) to (k, n)."""
        create = self._creates()
        T = normal(T)
        if self.known.forward is None:
            self.known.forward = self._route()
        Y = self._forward(self.known.forward, T, create)
        return Y if create else Y.detach()

    def _route(self) -> str:
        """The first route that runs, and whose products are the adjoint of reverse passes."""
        first: Exception | None = None
        T = torch.stack([generic(sum(self._sizes), xp, self._flat.device) + c for c in (0, 1)])
        T = normal(T.to(torch.promote_types(T.dtype, self._active[0].dtype)))
        for name in ("mapped", "each", "reversed"):
            try:
                Y = self._forward(name, T, False).detach()
            except Exception as error:
                first = first or error
                continue
            if self._is_adjoint(T, Y):
                return name
            if name == "each":
                raise ValueError(checks.modes_differ())
        first = first or RuntimeError("its reverse pass has no derivative of its own")
        raise NotImplementedError(checks.no_forward_mode(first)) from first

    def _forward(self, name: str, T: Array, create: bool) -> Array:
        if name == "reversed":
            return self._again(partial(self._reversed, T, create))

        def along(*tangents: Array) -> Array:
            return forward(lambda *ps: self._values(*ps).reshape(-1), primals, tangents)[1]

        with passes():
            primals, parts = tuple(self._active if create else self._primals()), self._cut(T)
            if name == "mapped":
                return vmap(along)(*parts)
            return torch.stack([along(*each) for each in zip(*parts, strict=True)])

    def _reversed(self, T: Array, create: bool) -> Array:
        """Products with J as derivatives of ``u -> J^H u``, which is linear: the reverse of it."""
        if self._twice is None:
            u = torch.zeros_like(self._flat, requires_grad=True)
            self._twice = u, self._grad(u, True)
        u, grads = self._twice
        parts = zip(grads, self._cut(T), strict=True)
        found = [(g, t) for g, t in parts if g is not None and g.requires_grad]
        if not found:
            raise RuntimeError("its reverse pass has no derivative of its own")
        outputs, tangents = zip(*found, strict=True)

        def grad(ts: Sequence[Array], batched: bool) -> Array:
            ts = [t.to(g.dtype) for g, t in zip(outputs, ts, strict=True)]
            return torch.autograd.grad(
                outputs, u, ts, retain_graph=True, create_graph=create, is_grads_batched=batched
            )[0]

        if self.known.batched is not False and len(T) > 1:
            try:
                return grad(tangents, True)
            except Exception:
                self.known.batched = False
        return torch.stack([grad(each, False) for each in zip(*tangents, strict=True)])

    def _grad(self, v: Array, create: bool, *, batched: bool = False) -> list[Array | None]:
        found = torch.autograd.grad(
            self._flat, self._active, v.to(self._flat.dtype), retain_graph=True,
            create_graph=create, allow_unused=True, is_grads_batched=batched,
        )  # fmt: skip
        return [g.to_dense() if g is not None and g.layout != torch.strided else g for g in found]

    def _joined(self, grads: list[Array | None], V: Array, *, alone: bool = False) -> Array:
        """Gradients end to end, (k, P)."""
        parts = []
        for g, p, size in zip(grads, self._active, self._sizes, strict=True):
            found = V.new_zeros((len(V), size), dtype=p.dtype) if g is None else g
            parts.append(found.reshape(1 if alone else len(V), size))
        return torch.cat(parts, dim=1)

    def _is_right(self, V: Array, rows: Array) -> bool:
        """Whether rows that were pulled back at once are those of plain passes: one sum of them.

        Known from then on where they ask for every output.
        """
        w = generic(len(V), xp, V.device)
        plain = self._joined(self._grad(w.to(V.dtype) @ V, False), V[:1], alone=True)[0]
        off, size = (w.to(rows.dtype) @ rows - plain).abs(), rows.abs().sum(0)
        off, size = ([float(p.max()) for p in part.split(self._sizes) if len(p)]
                     for part in (off, size))  # fmt: skip
        noise, tol = 100 * self.known.eps * max(size, default=0.0), self.known.allowed
        right = all(o <= tol * s + noise for o, s in zip(off, size, strict=True))
        if not right or bool((V != 0).any(0).all()):
            self.known.batched = right
        return right

    def _is_adjoint(self, T: Array, Y: Array) -> bool:
        """Whether ``<u, J t> = <J^H u, t>``, for u that has a part along ``J t``."""
        y, t = wide(Y).sum(0), T.sum(0)
        g = generic(len(y), xp, y.device).to(y.dtype)
        size = torch.linalg.vector_norm(y)
        u = g / torch.linalg.vector_norm(g) + y / size.clip(torch.finfo(size.dtype).tiny)
        r = self.pull(u[None])[0].detach()
        here, there = float(_dot(u, y)), float(_dot(r, t))
        norms = float(torch.linalg.vector_norm(u)) * float(size)
        return abs(here - there) <= self.known.allowed * (norms + abs(there))

    def _cut(self, T: Array) -> list[Array]:
        parts = cut(T, self._sizes, self._active, xp)
        return [t.to(p.dtype) for t, p in zip(parts, self._active, strict=True)]

    def _primals(self) -> list[Array]:
        return [p.detach() for p in self._active]

    def _creates(self) -> bool:
        return self.differentiated and torch.is_grad_enabled()

    def _again(self, run: Callable[[], Array]) -> Array:
        """Run a reverse pass, for which modules have the parameters and modes of the forward one.

        Checkpoints look at them once more.
        """
        for inside in self._held:
            run = partial(inside, run)
        with passes():
            return run()


class Lowest(TorchDispatchMode):  # type: ignore[misc]
    """Notes the least precision that numbers have while it is entered, and how many there are."""

    eps = 0.0
    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`."""
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor) and (made.is_floating_point() or made.is_complex()):
                self.eps = max(self.eps, rounding(made))
                self.numbers += made.numel()
        return out


class _Usable(TorchFunctionMode):  # type: ignore[misc]
    """With copies in place of tensors that were made in inference mode, which no graph can keep."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`."""
        args, kwargs = tree_map(normal, (args, kwargs or {}))
        return func(*args, **kwargs)


class _Padded(TorchFunctionMode):  # type: ignore[misc]
    """With rows of padding held fixed in embeddings, as reverse mode does and forward mode not."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`."""
        if func is embedding:
            return _padded(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def forward(
    f: Callable[..., Array], primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    """``torch.func.jvp``, of what reverse mode differentiates."""
    with _Padded():
        return jvp(f, primals, tangents)  # type: ignore[no-any-return]


def _padded(ids: Array, table: Array, padding_idx: int | None = None, *args: Any, **kwargs: Any
            ) -> Array:  # fmt: skip
    if padding_idx is not None:
        rows = torch.arange(len(table), device=table.device)[:, None]
        table = torch.where(rows == padding_idx % len(table), table.detach(), table)
    return embedding(ids, table, None, *args, **kwargs)


def usable(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which may close over tensors that were made in inference mode."""

    def run(*args: Any) -> Any:
        try:
            return f(*args)
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
        with _Usable():
            return f(*args)

    return run


@contextmanager
def passes() -> Iterator[None]:
    """What passes run in, whatever mode the caller is in: with a graph, and plain attention.

    Fused attention has neither forward mode nor a batching rule.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def whole_modules() -> Any:
    """Refuses, while it is entered, modules in which FSDP puts its parameters for those passed."""
    if "torch.distributed.fsdp" not in sys.modules:
        return nullcontext()
    return register_module_forward_pre_hook(lambda module, _: checks.scattered(type(module)))


def hold(inside: Callable[[Callable[[], Any]], Any]) -> None:
    """Tell a derivative that is being made how reverse passes are run with what f ran with."""
    held = _HELD.get()
    if held is not None:
        held.append(inside)


@contextmanager
def _held() -> Iterator[list[Callable[[Callable[[], Any]], Any]]]:
    held: list[Callable[[Callable[[], Any]], Any]] = []
    token = _HELD.set(held)
    try:
        yield held
    finally:
        _HELD.reset(token)


_HELD: ContextVar[list[Any] | None] = ContextVar("held", default=None)


def generator_state() -> Array:
    """Where PyTorch's random numbers are: elsewhere after runs of f that draw some."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def apart(here: Array, there: Array) -> float:
    """The largest difference, relative to the largest number."""
    tiny = torch.finfo(torch.float32).tiny
    return float((here - there).abs().max() / there.abs().max().clip(tiny))


def coarsest(*arrays: Array) -> float:
    """The largest rounding unit of several arrays."""
    return max(rounding(x) for x in arrays)


def rounding(x: Array) -> float:
    """The rounding unit; of accelerators in single precision that of their products (TF32)."""
    eps = float(torch.finfo(x.dtype).eps)
    return eps if x.device.type == "cpu" or eps < 1e-12 else max(eps, 2.0**-10)


def normal(x: Any) -> Any:
    """The same tensor, or a copy that a graph can keep."""
    if not isinstance(x, torch.Tensor) or not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()


def wide(x: Array) -> Array:
    """In single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_array(leaf: Any) -> bool:
    """Whether something is a tensor."""
    return isinstance(leaf, torch.Tensor)


def is_inexact(leaf: Array) -> bool:
    """Whether a tensor can be differentiated by."""
    return bool(leaf.is_floating_point() or leaf.is_complex())


def _node(x: Array) -> Any:
    return torch.autograd.graph.get_gradient_edge(x).node


def _dot(x: Array, y: Array) -> Array:
    product = x.conj() * y
    return torch.sum(product.real if product.is_complex() else product, dtype=torch.float64)
