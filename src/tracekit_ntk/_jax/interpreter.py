"""A jaxpr run so that it can be differentiated by whatever its equations make of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from tracekit._arrays import Array

from .._derivatives import checks
from .programs import Traced, alone
from .reads import Eps, FunctionReads, Loop, Read, Rule, Slot
from .rules import explicit, find
from .views import View, look_through, whole

Views = list[View | None]

_INLINED = {
    "pjit": "jaxpr", "jit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "remat": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
}  # fmt: skip
_ELEMENTWISE = {"add", "sub", "mul", "div"}
_REASONS = {
    "conv_general_dilated": "no rule for a convolution of this layout",
    "dot_general": "the entries it reads do not factor in the parameter",
    "output": "f returns it",
    "self-check": checks.DISAGREES,
    "scan carry": "a scan starts from it",
    "scan output": "a scan returns it",
}


def find_reads(traced: Traced, parameters: int, apart: Collection[int] = ()) -> FunctionReads:
    """Where a function reads the first `parameters` of its arguments.

    Those `apart` are differentiated by on their own, whatever reads them.
    """
    consts, args = traced.shapes
    run = _Run(args[:parameters], None, apart=apart)
    jax.eval_shape(lambda consts, args: run(traced.jaxpr, consts, args), consts, args)
    return FunctionReads(run.slots, run.reads)


def perturbed(
    jaxpr: Any,
    consts: Sequence[Array],
    args: Sequence[Array],
    parameters: int,
    apart: Collection[int],
    eps: Eps,
    loop_eps: Eps,
) -> tuple[Array, list[Any]]:
    """The result with `eps` added in the slots, and what the rules want of each read.

    For each read the value of the operand that its rule asks for and the scalar that the
    parameter was multiplied by, None where there is none; stacked over the steps of loops.
    `loop_eps` are added to the results of loops, by the numbers of their slots.
    """
    run = _Run([jax.typeof(arg) for arg in args[:parameters]], eps, loop_eps, apart=apart)
    (out,) = run(jaxpr, consts, args)
    return out, run.kept


@dataclass
class _Run:
    """One run of a jaxpr: without `eps` it notes slots and reads, with it it adds them."""

    avals: Sequence[Any]  # of the parameters, which are the first arguments
    eps: Eps | None
    loop_eps: Eps = field(default_factory=dict)
    loops: tuple[int, ...] = ()
    apart: Collection[int] = ()
    slots: list[Slot | Loop] = field(default_factory=list)
    reads: list[Read | int] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)

    def __call__(self, jaxpr: Any, consts: Sequence[Array], args: Sequence[Array]) -> list[Array]:
        args, views = list(args), cast(Views, [None] * len(args))
        for k, aval in enumerate(self.avals):
            view = whole(k, aval.shape)
            if k in self.apart:
                args[k] = self.explicit(args[k], view, "self-check")
            else:
                views[k] = view
        return self.released(*self.body(jaxpr, consts, args, views), "output")

    def body(
        self, jaxpr: Any, consts: Sequence[Array], args: Sequence[Array], views: Views
    ) -> tuple[list[Array], Views]:
        """The results of all equations, and what they show of parameters."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        shown = dict(zip(jaxpr.invars, views, strict=True))
        read = Counter(v for e in (*jaxpr.eqns, jaxpr) for v in _variables(e))
        slot_of: dict[Any, int] = {}  # of variables that are read once

        for eqn in jaxpr.eqns:
            given, seen = _look_up(values, eqn.invars), _look_up(shown, eqn.invars, views=True)
            outs, seen, slot = self.equation(jaxpr, eqn, given, seen, slot_of)
            values.update(zip(eqn.outvars, outs, strict=True))
            shown.update(zip(eqn.outvars, seen, strict=True))
            if slot is not None and read[eqn.outvars[0]] == 1:
                slot_of[eqn.outvars[0]] = slot
        return _look_up(values, jaxpr.outvars), _look_up(shown, jaxpr.outvars, views=True)

    def equation(
        self, jaxpr: Any, eqn: Any, values: list[Array], views: Views, slot_of: dict[Any, int]
    ) -> tuple[list[Array], Views, int | None]:
        """The results of one equation, what they show of parameters, and the slot of the first."""
        name, none = eqn.primitive.name, _nothing(eqn)
        differentiable = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
        if name in ("add", "add_any") and differentiable:
            outs, slot = self.sum(jaxpr, eqn, values, views, slot_of)
            return outs, none, slot
        if not any(views) or not differentiable or name == "stop_gradient":
            return _evaluate(jaxpr, eqn, values), none, None
        if name in _INLINED:
            inner = eqn.params[_INLINED[name]]
            closed = isinstance(inner, ClosedJaxpr)
            jaxpr, consts = (inner.jaxpr, inner.consts) if closed else (inner, ())
            return *self.body(jaxpr, consts, values, views), None
        if name == "scan":
            return *self.scan(eqn, values, views), None
        through, seen = _look_through(eqn, values, views)
        ruled = []
        for k, view in enumerate(views):
            if view is None or k == through:
                continue
            rule = find(eqn, k, view, self.avals[view.leaf].shape, self.loops)
            if rule is None:
                values[k] = self.explicit(values[k], view, name)
            else:
                ruled.append((view, rule))
        outs = _evaluate(jaxpr, eqn, values)
        if not ruled:
            return outs, seen or none, None
        outs[0], slot = self.slot(outs[0])
        for view, rule in ruled:
            self.note(view, name, slot, rule, values[rule.other or 0])
        return outs, none, slot

    def sum(
        self, jaxpr: Any, eqn: Any, values: list[Array], views: Views, slot_of: dict[Any, int]
    ) -> tuple[list[Array], int | None]:
        """A sum, whose terms all have the derivative that it has itself."""
        out = eqn.outvars[0].aval
        known = []
        for k, v in enumerate(eqn.invars):
            view = views[k]
            if view is not None and v.aval.shape != out.shape:  # a scalar, spread by the sum
                values[k], views[k] = self.explicit(values[k], view, "add"), None
            if not isinstance(v, Literal) and v in slot_of and v.aval.shape == out.shape:
                known.append(slot_of[v])
        outs = _evaluate(jaxpr, eqn, values)
        if not known and any(views):
            outs[0], slot = self.slot(outs[0])
            known = [slot]
        for other in known[1:]:
            self.slots[other] = Slot(out.shape, out.dtype, same=known[0])
        for view in views:
            if view is not None:
                self.note(view, "add", known[0], self.rule(view))
        return outs, known[0] if known else None

    def scan(self, eqn: Any, values: list[Array], views: Views) -> tuple[list[Array], Views]:
        """A scan with slots inside: their eps go through it as xs, what is kept as ys."""
        p, number = eqn.params, len(self.slots)
        first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
        inner, consts = p["jaxpr"].jaxpr, p["jaxpr"].consts
        for k in range(first, last):  # a carry shows a parameter only if every step hands it on
            view = views[k]
            if view is not None and inner.outvars[k - first] is not inner.invars[k]:
                values[k], views[k] = self.explicit(values[k], view, "scan carry"), None
                number = len(self.slots)
        layers = [view and view.layer(len(self.loops)) for view in views[last:]]
        inside, carried = [*views[:last], *layers], views[first:last]
        run = self

        def step(carry: list[Array], given: tuple[list[Array], Any]) -> tuple[Any, Any]:
            nonlocal run
            xs, eps = given
            run = _Run(self.avals, eps, loops=(*self.loops, p["length"]))
            outs, seen = run.body(inner, consts, [*values[:first], *carry, *xs], inside)
            seen[: len(carry)] = [
                None if same else view for same, view in zip(carried, seen, strict=False)
            ]
            outs = run.released(outs, seen, "scan output")
            return outs[: len(carry)], (outs[len(carry) :], run.kept)

        eps = None if self.eps is None else self.eps.get(number, {})
        n = min((len(part) for part in jax.tree.leaves(eps)), default=p["length"])
        head, tail = slice(0, n), slice(n, None)
        if p["reverse"]:
            head, tail = slice(p["length"] - n, None), slice(0, p["length"] - n)
        carry, (ys, kept) = lax.scan(
            step, values[first:last], ([x[head] for x in values[last:]], eps), n,
            reverse=p["reverse"], unroll=p["unroll"],
        )  # fmt: skip
        if n < p["length"]:  # the steps after those have no derivative that anyone asked for
            carry, (rest, _) = lax.stop_gradient(lax.scan(
                step, carry, ([x[tail] for x in values[last:]], {}), p["length"] - n,
                reverse=p["reverse"], unroll=p["unroll"],
            ))  # fmt: skip
            parts = [ys, rest][:: -1 if p["reverse"] else 1]
            ys = [jnp.concatenate(pair) for pair in zip(*parts, strict=True)]
        outs = [*carry, *ys]
        if number in self.loop_eps:
            outs = [v + m if m.dtype == v.dtype else v
                    for v, m in zip(outs, self.loop_eps[number], strict=True)]  # fmt: skip
        results = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in outs]
        self.slots.append(Loop(
            p["length"], p["reverse"], any(layers), run.slots, run.reads, len(carry), results
        ))  # fmt: skip
        self.reads.append(number)
        self.kept.append(kept)
        return outs, [*carried, *[None] * len(ys)]

    def released(self, values: list[Array], views: Views, where: str) -> list[Array]:
        """Values whose views cannot be followed any further."""
        return [
            value if view is None else self.explicit(value, view, where)
            for value, view in zip(values, views, strict=True)
        ]

    def explicit(self, value: Array, view: View, name: str) -> Array:
        """An operand by which to differentiate, as no more is known of what reads it."""
        value, slot = self.slot(value)
        self.note(view, name, slot, self.rule(view))
        return value

    def rule(self, view: View) -> Rule:
        """The rule where no other is known."""
        aval = self.avals[view.leaf]
        return explicit(view, aval.shape, aval.dtype, self.loops)

    def slot(self, value: Array) -> tuple[Array, int]:
        """A value plus the eps of a new slot, and the number of that."""
        number = len(self.slots)
        self.slots.append(Slot(value.shape, value.dtype))
        if self.eps is not None and number in self.eps:
            value = value + self.eps[number]
        return value, number

    def note(
        self, view: View, name: str, slot: int, rule: Rule, other: Array | None = None
    ) -> None:
        """Note a read, and keep what its rule asks for."""
        ruled = rule.other is not None or name in _ELEMENTWISE
        reason = "" if ruled else _REASONS.get(name, f"no rule for {name} here")
        self.reads.append(Read(view.leaf, name, slot, rule, reason))
        self.kept.append((other, view.scale))


def _nothing(eqn: Any) -> Views:
    return [None] * len(eqn.outvars)


def _variables(reader: Any) -> list[Any]:
    read = reader.invars if hasattr(reader, "primitive") else reader.outvars
    return [v for v in read if not isinstance(v, Literal)]


def _look_up(found: dict[Any, Any], variables: Sequence[Any], views: bool = False) -> list[Any]:
    """The values of variables, or what they show of parameters."""
    if views:
        return [None if isinstance(v, Literal) else found.get(v) for v in variables]
    return [v.val if isinstance(v, Literal) else found[v] for v in variables]


def _look_through(eqn: Any, values: list[Array], views: Views) -> tuple[int, Views]:
    """The operand that the results still show, and what they show; -1 and nothing if none."""
    name = eqn.primitive.name
    if len(views) == 1 and views[0] is not None:
        if name == "neg":
            return 0, [views[0].times(-1)]
        seen = look_through(eqn, views[0])
        return (0, list(seen)) if seen else (-1, [])
    for k in {"mul": (0, 1), "div": (0,)}.get(name, ()):
        view, factor = views[k], values[1 - k]
        if view is not None and jnp.ndim(factor) == 0:
            return k, [view.times(factor if name == "mul" else 1 / factor)]
    return -1, []


def _evaluate(jaxpr: Any, eqn: Any, values: Sequence[Array]) -> list[Array]:
    """The results of an equation, with whatever derivative rules it brings."""
    one, taken = alone(jaxpr, eqn)
    return list(jax.core.eval_jaxpr(one, (), *(values[k] for k in taken)))
