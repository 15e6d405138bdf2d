"""The linear map that a JAX function ends in, told by its equations, and its body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Var

from tracekit._arrays import Array

from .._factors import OwnBias, OwnWeight
from .programs import Traced
from .views import View, look_through, place, whole

_INLINED = {"pjit": "jaxpr", "jit": "jaxpr", "closed_call": "call_jaxpr"}
_MOVES = {
    "broadcast_in_dim", "copy", "dynamic_slice", "gather", "reshape", "rev", "slice", "squeeze",
    "transpose",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Found:
    """The head of a function of one sample: of numbers of parameters, no values.

    `features` is the body, which takes the constants of the function and `rows` for its own;
    `weight` takes the same constants, and the parameters.
    """

    features: Traced
    weight: Callable[[Sequence[Array], Sequence[Array]], Array]
    rows: Any
    own: tuple[int, OwnWeight] | None
    bias: tuple[int, OwnBias] | None


def find_head(one: Traced, parameters: int) -> Found | None:
    """The head of a function of one sample, if it ends in one."""
    graph = _Graph(one, parameters)
    y, moves, bias = graph.out, list[Any](), None
    while True:
        eqn = None if isinstance(y, Literal) else graph.maker.get(y)
        name = "" if eqn is None else eqn.primitive.name
        if eqn is not None and name in _MOVES and graph.is_fixed(eqn.invars[1:]):
            moves.append(eqn)
            y = eqn.invars[0]
        elif eqn is not None and name in ("add", "add_any") and bias is None:
            terms = [v for v in eqn.invars if graph.is_product(v) and v.aval.shape == y.aval.shape]
            if len(terms) != 1:
                return None
            [y] = terms
            moves.append(None)  # the bias is added here
            bias = eqn.invars[1] if eqn.invars[0] is y else eqn.invars[0]
        else:
            break
    if eqn is None or name != "dot_general":
        return None
    sides = (_Side(graph, eqn, k, moves, bias, one.output) for k in (1, 0))
    return next((side.found() for side in sides if side.fits()), None)


class _Graph:
    """The equations of a function, calls inlined, and what depends on its parameters."""

    def __init__(self, one: Traced, parameters: int) -> None:
        self.one, self.parameters = one, parameters
        self.equations: list[Any] = []
        jaxpr = one.jaxpr
        [self.out] = self._inlined(jaxpr, [*jaxpr.constvars, *jaxpr.invars])
        self.maker = {v: eqn for eqn in self.equations for v in eqn.outvars}
        self.leaves = {v: k for k, v in enumerate(jaxpr.invars[:parameters])}
        self._by_parameters = self._reached(jaxpr.invars[:parameters])
        self._by_all = self._reached(jaxpr.invars)

    def is_product(self, v: Any) -> bool:
        """Whether a variable is a product of arrays, up to moves."""
        while not isinstance(v, Literal) and (eqn := self.maker.get(v)) is not None:
            if eqn.primitive.name not in _MOVES or not self.is_fixed(eqn.invars[1:]):
                return bool(eqn.primitive.name == "dot_general")
            v = eqn.invars[0]
        return False

    def is_fixed(self, variables: Sequence[Any]) -> bool:
        """Whether variables are numbers of the program."""
        return all(isinstance(v, Literal) for v in variables)

    def is_constant(self, v: Any) -> bool:
        """Whether a variable depends on neither parameters nor the sample."""
        return isinstance(v, Literal) or v not in self._by_all

    def depends(self, v: Any) -> bool:
        """Whether a variable depends on parameters."""
        return not isinstance(v, Literal) and v in self._by_parameters

    def view(self, v: Any) -> View | None:
        """What a variable shows of a parameter, if it does."""
        steps = []
        while not isinstance(v, Literal) and v not in self.leaves:
            if v not in self.maker or not self.maker[v].invars:
                return None
            steps.append((self.maker[v], self.maker[v].outvars.index(v)))
            v = steps[-1][0].invars[0]
        if isinstance(v, Literal):
            return None
        view = whole(self.leaves[v], v.aval.shape)
        for eqn, k in reversed(steps):
            shown = look_through(eqn, view) if len(eqn.invars) == 1 else None
            if not shown:
                return None
            view = shown[k]
        return view

    def values(self, wanted: Any, consts: Sequence[Array], args: Sequence[Any]) -> Array:
        """The value of a variable, by those equations alone that it needs."""
        jaxpr, needed, kept = self.one.jaxpr, {wanted}, []
        for eqn in reversed(self.equations):
            if any(v in needed for v in eqn.outvars):
                kept.append(eqn)
                needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
        part = jaxpr.replace(eqns=kept[::-1], outvars=[wanted])
        (value,) = jax.core.eval_jaxpr(part, consts, *args)
        return value

    def _inlined(self, jaxpr: Any, given: Sequence[Any]) -> list[Any]:
        now = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

        def at(v: Any) -> Any:
            return v if isinstance(v, Literal) else now[v]

        for eqn in jaxpr.eqns:
            args = [at(v) for v in eqn.invars]
            inner = eqn.params.get(_INLINED.get(eqn.primitive.name, ""))
            if isinstance(inner, ClosedJaxpr) and not inner.consts:
                outs = self._inlined(inner.jaxpr, args)
            else:
                outs = [Var(v.aval) for v in eqn.outvars]
                self.equations.append(eqn.replace(invars=args, outvars=outs))
            now.update(zip(eqn.outvars, outs, strict=True))
        return [at(v) for v in jaxpr.outvars]

    def _reached(self, start: Sequence[Any]) -> set[Any]:
        found = set(start)
        for eqn in self.equations:
            if any(not isinstance(v, Literal) and v in found for v in eqn.invars):
                found |= set(eqn.outvars)
        return found


class _Side:
    """A product of features with one of its operands for a weight."""

    def __init__(
        self, graph: _Graph, eqn: Any, number: int, moves: Sequence[Any], bias: Any, output: Any
    ) -> None:
        self._graph, self._moves, self._bias, self._output = graph, moves, bias, output
        self._weight, self._given = eqn.invars[number], eqn.invars[1 - number]
        self._number, self._product = number, eqn.outvars[0].aval
        contract, batch = eqn.params["dimension_numbers"]
        self._plain = not any(batch) and len(contract[0]) == 1 and self._weight.aval.ndim == 2
        self._inner, self._contracted = contract[number][0], contract[1 - number][0]

    def fits(self) -> bool:
        """Whether the output is what this weight makes of features, and fewer of them."""
        if not self._plain or isinstance(self._given, Literal | None):
            return False
        W, h = self._weight.aval, self._given.aval
        O, d = W.shape[1 - self._inner], W.shape[self._inner]  # noqa: E741
        leaves = self._graph.one.jaxpr.invars[: self._graph.parameters]
        dtypes = {v.dtype for v in (W, h, self._product, self._output, *(p.aval for p in leaves))}
        if d >= O or len(dtypes) > 1 or W.dtype.itemsize < 4 or self._output.shape[-1:] != (O,):
            return False
        if self._weight_view is None and not self._graph.is_constant(self._weight):
            return False
        if self._weight_view is not None and self._place is None:
            return False
        if self._bias is not None and self._graph.depends(self._bias) and self._start is None:
            return False
        own = {view.leaf for view in (self._weight_view, self._bias_view) if view is not None}
        both = self._weight_view is not None and self._bias_view is not None
        return (not both or len(own) == 2) and self._rows is not None

    def found(self) -> Found | None:
        """The head; only where it fits."""
        graph, (rows, _), d = self._graph, self._rows, self._weight.aval.shape[self._inner]
        shape = (*self._output.shape[:-1], d)
        alike = np.array_equal(rows.reshape(-1), np.arange(self._product.size // self._outputs))

        def features(consts: list[Array], rows: Array, args: list[Array]) -> Array:
            h = graph.values(self._given, consts, args)
            h = jnp.moveaxis(h, self._contracted, -1).reshape(-1, d)
            return (h if alike else jnp.take(h, rows.reshape(-1), axis=0)).reshape(shape)

        consts, args = graph.one.shapes
        closed = jax.make_jaxpr(features)(consts, rows, args)
        if closed.consts:  # values within, which are of one call alone
            return None
        n = len(consts) + 1
        jaxpr = closed.jaxpr
        body = Traced(
            jaxpr.replace(constvars=jaxpr.invars[:n], invars=jaxpr.invars[n:]), [],
            jax.ShapeDtypeStruct(shape, self._output.dtype), None,
        )  # fmt: skip
        rest = len(args) - graph.parameters

        def weight(consts: Sequence[Array], leaves: Sequence[Array]) -> Array:
            W = graph.values(self._weight, consts, [*leaves, *[None] * rest])
            return W.T if self._inner == 0 else W

        own = bias = None
        if self._weight_view is not None and self._place is not None:
            own = self._weight_view.leaf, OwnWeight("", self._place.input_first, self._place.start)
        if self._bias_view is not None and self._start is not None:
            bias = self._bias_view.leaf, OwnBias("", self._start, 1)
        return Found(body, jax.jit(weight), rows, own, bias)

    @property
    def _outputs(self) -> int:
        return int(self._weight.aval.shape[1 - self._inner])

    @cached_property
    def _weight_view(self) -> View | None:
        return self._graph.view(self._weight)

    @cached_property
    def _bias_view(self) -> View | None:
        return None if self._bias is None else self._graph.view(self._bias)

    @cached_property
    def _place(self) -> Any:
        view = self._weight_view
        if view is None:
            return None
        shape = self._graph.one.jaxpr.invars[view.leaf].aval.shape
        axes = view.axes
        where = place(view, shape, [], [axes[self._inner]], [axes[1 - self._inner]])
        return where if where is not None and where.apart == 1 and where.rows is None else None

    @cached_property
    def _start(self) -> int | None:
        """Where the bias begins in its parameter, if that has an entry for each output."""
        view = self._bias_view
        found = None if self._rows is None else self._rows[1]
        if view is None or found is None or len(view.axes) != found.ndim:
            return None
        # each entry of the sum must take the one of the number of its output
        numbers = np.lib.stride_tricks.as_strided(
            np.arange(self._outputs), found.shape, [8 * axis.stride for axis in view.axes]
        ) if _within(view, self._outputs) else None  # fmt: skip
        return view.offset if numbers is not None and np.array_equal(numbers, found) else None

    @property
    def _last(self) -> int:
        """Which axis of the product is that of the outputs."""
        return self._product.ndim - 1 if self._number == 1 else 0

    @cached_property
    def _rows(self) -> Any:
        """Which row of features each output is of; and the outputs' numbers at the bias.

        None where the outputs are not whole rows.
        """
        shape, O = self._product.shape, self._outputs  # noqa: E741
        places = [n for k, n in enumerate(shape) if k != self._last]
        rows = np.arange(int(np.prod(places, dtype=int)), dtype=np.int32).reshape(places)
        rows = np.broadcast_to(np.expand_dims(rows, self._last), shape)
        columns = np.arange(O, dtype=np.int32).reshape(
            [O if k == self._last else 1 for k in range(len(shape))]
        )
        columns = np.broadcast_to(columns, shape)
        there = None
        with jax.ensure_compile_time_eval():
            for eqn in reversed(self._moves):
                if eqn is None:
                    there = columns
                else:
                    rows, columns = (np.asarray(_moved(eqn, t)) for t in (rows, columns))
        if rows.shape != self._output.shape or (columns != np.arange(O)).any():
            return None
        return np.ascontiguousarray(rows[..., 0]), there


def _within(view: View, outputs: int) -> bool:
    """Whether a view has no more than so many entries of a parameter, one after the other."""
    reach = sum(axis.stride * (axis.length - 1) for axis in view.axes)
    return reach < outputs and all(axis.stride >= 0 for axis in view.axes)


def _moved(eqn: Any, t: Any) -> Any:
    rest = [v.val for v in eqn.invars[1:]]
    return eqn.primitive.bind(jnp.asarray(t), *rest, **eqn.params)


def named(found: Found, names: Sequence[Any]) -> tuple[OwnWeight | None, OwnBias | None]:
    """The parameters of weight and bias, by their names."""
    own, bias = found.own, found.bias
    return (
        None if own is None else own[1]._replace(name=names[own[0]]),
        None if bias is None else bias[1]._replace(name=names[bias[0]]),
    )
