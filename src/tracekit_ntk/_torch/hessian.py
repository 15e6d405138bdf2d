"""Products with a Hessian by PyTorch: forward over reverse, and what there is where that is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from array_api_compat import torch as xp
from torch.func import grad, vmap

from tracekit._arrays import Array

from .._derivatives import INEXACT, Quadratic, checks, cut, generic, steps
from .derivatives import common, point, quiet, unflatten
from .own_rules import own_rules
from .passes import Derivative, Known, forward, is_array, normal, passes, usable, wide


def quadratic(loss: Callable[[Any], Any], params: Any, known: Known | None = None) -> Quadratic:
    """The value and the Hessian of a loss at params."""
    at = point(params)
    checks.real_parameters(at[0].is_complex())

    def values(*ps: Array) -> Array:
        y = loss(unflatten(params, ps))
        checks.scalar(y, is_array(y), is_array(y) and y.is_complex())
        return y

    found = Twice(values, at, known)
    y, sizes = found.output.detach(), tuple(p.numel() for p in at)
    checks.finite_loss(bool(torch.isfinite(y)))
    if known is None:
        checks.flat(found.depends)
        checks.same_loss(found.look(), found.known.allowed)
    dtype, numbers = common(at, y.dtype), 2 * (sum(sizes) + found.known.numbers)

    def product(X: Array) -> Array:
        return found.product(X.T).T.to(dtype)

    return Quadratic(y, sizes, dtype, y.device, product, numbers, found.known)


def second_order(f: Callable[[Any], Any], params: Any) -> Callable[[Array], tuple[Array, Array]]:
    """First and second derivatives of f along directions, by forward mode of forward mode."""
    at = point(params)
    sizes, graph = [p.numel() for p in at], any(p.requires_grad for p in at)
    values = usable(lambda *ps: f(unflatten(params, ps)).reshape(-1))

    def along(*tangents: Array) -> tuple[Array, Array]:
        def first(*ps: Array) -> Array:
            return forward(values, ps, tangents)[1]

        return forward(first, tuple(at), tangents)

    def derivatives(X: Array) -> tuple[Array, Array]:
        parts = [t.to(p.dtype) for t, p in zip(cut(X.T, sizes, at, xp), at, strict=True)]
        with passes(), quiet():
            made = vmap(along)(*parts)
        keep = graph and torch.is_grad_enabled()
        first, second = (Y.T if keep else Y.T.detach() for Y in made)
        return first, second

    return derivatives


class Twice(Derivative):
    """The Hessian of a scalar function of several tensors, at a point.

    By the first of these routes that runs and is right: forward mode of gradients, for all columns
    at once ("mapped") or each ("each"); reverse mode of gradients, alike ("reversed", "singly");
    and differences of gradients ("differences").
    """

    _gradients: list[Array | None] | None = None

    def product(self, T: Array) -> Array:
        """``H t`` for each row t: (k, P) to (k, P)."""
        create, T = self._creates(), normal(T)
        if not self.depends:
            return torch.zeros_like(T)
        if self.known.second is None:
            self.known.second = self._second_route()
        made = self._along(self.known.second, T, create)
        return made if create else made.detach()

    def _second_route(self) -> str:
        T = torch.stack([generic(sum(self._sizes), xp, self._flat.device) + c for c in (0, 1)])
        T = T.to(torch.promote_types(T.dtype, self._active[0].dtype))
        sure, own = None, bool(own_rules(self.output))
        failed: Exception | None = None
        try:
            sure = self._along("singly", T, False).detach()
        except Exception as error:  # whatever the operations of a loss may raise
            failed = error
        for name in ("mapped", "each", "reversed", "singly"):
            try:
                made = sure if name == "singly" else self._along(name, T, False).detach()
            except Exception:
                continue
            if made is None or not self._is_symmetric(T, made):
                continue
            same = sure is None or _apart(made, sure) <= self.known.allowed
            if same and not (own and self._differs(T[0], made[0])):
                if name in ("mapped", "each"):
                    self._gradients = None  # with its graph
                return name
        self._tell(T, failed)
        return "differences"

    def _along(self, name: str, T: Array, create: bool) -> Array:
        if name in ("reversed", "singly"):
            return self._again(partial(self._reversed_twice, T, create, name == "reversed"))
        if name == "differences":
            return torch.stack([self._differences(t)[0] for t in T])
        everything = tuple(range(len(self._sizes)))
        gradient = grad(self._values, argnums=everything)

        def along(*tangents: Array) -> Array:
            made = forward(gradient, primals, tangents)[1]
            return torch.cat([g.reshape(-1) for g in made])

        with passes(), quiet():
            primals, parts = tuple(self._active if create else self._primals()), self._cut(T)
            if name == "mapped":
                return vmap(along)(*parts)
            return torch.stack([along(*each) for each in zip(*parts, strict=True)])

    def _reversed_twice(self, T: Array, create: bool, batched: bool) -> Array:
        if self._gradients is None:
            self._gradients = self._grad(torch.ones_like(self._flat), True)
        pairs = zip(self._gradients, self._cut(T), strict=True)
        found = [(g, t.to(g.dtype)) for g, t in pairs if g is not None and g.requires_grad]
        if not found:
            return torch.zeros_like(T)
        outputs, tangents = zip(*found, strict=True)

        def back(ts: Sequence[Array]) -> Array:
            made = torch.autograd.grad(
                outputs, self._active, ts, retain_graph=True, create_graph=create,
                allow_unused=True, is_grads_batched=batched,
            )  # fmt: skip
            return self._joined(_strided(made), T if batched else T[:1], alone=not batched)

        if batched:
            return back(tangents)
        return torch.cat([back(each) for each in zip(*tangents, strict=True)])

    def _differences(self, t: Array) -> tuple[Array, Array, Array]:
        """``H t`` by differences of gradients, of three steps."""
        primals = self._primals()
        norms = [float(torch.linalg.vector_norm(wide(torch.cat([p.reshape(-1) for p in ps]))))
                 for ps in (primals, [t])]  # fmt: skip
        parts = [part[0] for part in self._cut(t[None])]

        def gradient(h: float) -> Array:
            moved = [(p + h * s).requires_grad_() for p, s in zip(primals, parts, strict=True)]
            y = self._values(*moved)
            if not y.requires_grad:
                return torch.zeros_like(wide(t))
            made = torch.autograd.grad(y, moved, allow_unused=True)
            return wide(self._joined(_strided(made), t[None], alone=True)[0])

        with passes():
            found = [(gradient(h) - gradient(-h)) / (2 * h) for h in steps(self.known.eps, *norms)]
        return found[0], found[1], found[2]

    def _differs(self, t: Array, made: Array) -> bool:
        """Whether differences of gradients are something else, by whatever step."""
        return not min(_apart(d, made) for d in self._differences(t)) <= INEXACT

    def _tell(self, T: Array, failed: Exception | None) -> None:
        rows = [self._differences(t) for t in T]
        deviation = max(_apart(one, two) for one, two, _ in rows)
        if not self._is_symmetric(T, torch.stack([row[0] for row in rows]), INEXACT):
            deviation = max(deviation, 1.0)
        checks.differenced(checks.reason_of(failed), deviation, INEXACT)

    def _is_symmetric(self, T: Array, made: Array, allowed: float | None = None) -> bool:
        """Whether ``<s, H t> = <t, H s>``, of two rows."""
        T, made = wide(T), wide(made)
        here, there = float(T[0] @ made[1]), float(T[1] @ made[0])
        size = float(torch.linalg.vector_norm(T[0]) * torch.linalg.vector_norm(made[1]))
        return abs(here - there) <= (allowed or self.known.allowed) * size


def _strided(grads: Sequence[Array | None]) -> list[Array | None]:
    return [g.to_dense() if g is not None and g.layout != torch.strided else g for g in grads]


def _apart(here: Array, there: Array) -> float:
    """How far apart, relative to the length of the second; infinite where one is not finite."""
    here, there = wide(here), wide(there)
    size, off = (float(torch.linalg.vector_norm(a)) for a in (there, here - there))
    if not off < float("inf"):
        return float("inf")
    return off / size if size else off
