"""JAX functions as jaxprs with constants for arguments, and programs kept by their structure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxprs_in_params

from tracekit._arrays import Array, is_traced

from .._derivatives import checks

Made = TypeVar("Made")
MOST = 256  # programs that are kept

_kept: OrderedDict[Any, Any] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Traced:
    """What a function does to arrays of these shapes, at this moment.

    `jaxpr` takes the values of what the function closes over, `consts`, as arguments. `key` is
    equal for functions of one structure, and None where none can be told.
    """

    jaxpr: Jaxpr
    consts: list[Array]
    output: Any
    key: Any

    @property
    def shapes(self) -> tuple[list[Any], list[Any]]:
        """Of the constants and of the arguments, flat."""
        kinds = self.jaxpr.constvars, self.jaxpr.invars
        consts, args = ([_shape(v.aval) for v in some] for some in kinds)
        return consts, args

    def __call__(self, consts: Sequence[Array], *args: Any) -> Array:
        """The result, for arguments of any tree with the leaves of those it was traced with."""
        (y,) = jax.core.eval_jaxpr(self.jaxpr, consts, *jax.tree.leaves(args))
        return y


def trace(f: Callable[..., Any], *args: Any) -> Traced:
    """A function of arrays as it is now: what it closes over is read anew.

    Parameters
    ----------
    f : callable
        To one array.
    *args : trees of arrays
        Or of their shapes.

    Returns
    -------
    Traced
        Which runs in any program.
    """
    leaves, tree = jax.tree.flatten(args)

    def flat(*leaves: Array) -> Any:
        return f(*tree.unflatten(leaves))

    closed, y = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    checks.output(y, lambda y: isinstance(y, jax.ShapeDtypeStruct), is_inexact)
    consts = [_plain(const) for const in closed.consts]
    try:
        key: Any = _structure(closed.jaxpr)
        hash(key)
    except (_NoKeyError, TypeError):
        key = None
    return Traced(closed.jaxpr, consts, y, key)


def keep(key: Any, make: Callable[[], Made]) -> Made:
    """What was made for this key, or is made now; the ones longest unused are let go."""
    if key is None:
        return make()
    if key not in _kept:
        _kept[key] = make()
        if len(_kept) > MOST:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    found: Made = _kept[key]
    return found


def replaced(key: Any, made: Any) -> None:
    """Keep this in the place of what was kept."""
    if key is not None:
        _kept[key] = made


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of jaxprs within others too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def precision(jaxpr: Any) -> float:
    """The rounding unit of the least precise numbers that are met on the way."""
    variables = [*jaxpr.invars, *(v for eqn in equations(jaxpr) for v in eqn.outvars)]
    found = [float(jnp.finfo(v.aval.dtype).eps) for v in variables if is_inexact(v.aval)]
    return max(found, default=0.0)


def is_inexact(x: Any) -> bool:
    """Whether an array is of real or complex floating-point numbers."""
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def wide(*arrays: Any) -> Any:
    """The dtype that arrays have together, of single precision at least."""
    dtype = jnp.result_type(*(a.dtype for a in arrays))
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def alone(jaxpr: Any, eqn: Any) -> tuple[Any, list[int]]:
    """One equation as a jaxpr of its own, and which of its operands that takes."""
    fresh = [v if isinstance(v, Literal) else Var(v.aval) for v in eqn.invars]
    taken = [k for k, v in enumerate(fresh) if isinstance(v, Var)]
    one = jaxpr.replace(
        constvars=[], invars=[fresh[k] for k in taken], outvars=list(eqn.outvars),
        eqns=[eqn.replace(invars=fresh)],
    )  # fmt: skip
    return one, taken


def reverses(traced: Traced, parameters: int) -> bool:
    """Whether reverse mode by the first arguments exists: through a while loop it does not."""
    if not any(eqn.primitive.name == "while" for eqn in equations(traced.jaxpr)):
        return True

    def back(consts: Any, args: Any, u: Any) -> Any:
        run = partial(traced, consts)
        return jax.vjp(lambda p: run(p, args[parameters:]), args[:parameters])[1](u)

    try:
        jax.eval_shape(back, *traced.shapes, traced.output)
    except ValueError:
        return False
    return True


class _NoKeyError(Exception):
    """A value that is not known yet is part of the structure."""


def _shape(aval: Any) -> Any:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


class _Same:
    """A thing that equals itself alone."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.thing is self.thing


def _plain(const: Any) -> Array:
    """A constant that any program takes as an argument."""
    if isinstance(const, jax.Array):
        return const
    return np.asarray(const, dtype=jax.typeof(const).dtype)


def _structure(jaxpr: Any, *, rules: bool = True) -> Any:
    """The jaxpr as a tuple, in which variables are numbers.

    With `rules`, custom derivatives are part of it as what they do.
    """
    numbers: dict[Any, int] = {}

    def of(v: Any) -> Any:
        if isinstance(v, Literal):
            return v.aval, np.asarray(v.val).tobytes()
        return numbers.setdefault(v, len(numbers))

    given = tuple((of(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
    steps = []
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        custom = name in ("custom_jvp_call", "custom_vjp_call")
        params = {k: v for k, v in eqn.params.items() if not (custom and k in _RULES)}
        steps.append((
            eqn.primitive, tuple(map(of, eqn.invars)),
            tuple((of(v), v.aval) for v in eqn.outvars),
            tuple((k, _param(params[k], rules)) for k in sorted(params)),
            _rule(jaxpr, eqn) if custom and rules else None,
        ))  # fmt: skip
    return len(jaxpr.constvars), given, tuple(steps), tuple(map(of, jaxpr.outvars))


_RULES = {"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees"}


def _param(value: Any, rules: bool) -> Any:
    if isinstance(value, ClosedJaxpr):
        return _structure(value.jaxpr, rules=rules), tuple(map(_constant, value.consts))
    if isinstance(value, Jaxpr):
        return _structure(value, rules=rules)
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(_param(part, rules) for part in value)
    if isinstance(value, dict):
        return tuple((k, _param(value[k], rules)) for k in sorted(value, key=str))
    if isinstance(value, np.ndarray):
        return _constant(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _constant(value: Any) -> Any:
    """A constant within: it is part of a program, unlike those of the function itself."""
    if is_traced(value):
        raise _NoKeyError
    if isinstance(value, jax.Array):
        return _Same(value)
    value = np.asarray(value)
    return value.shape, str(value.dtype), value.tobytes()


def _rule(jaxpr: Any, eqn: Any) -> Any:
    """What a custom derivative does."""
    one, _ = alone(jaxpr, eqn)

    def derivative(*args: Array) -> list[Array]:
        outs, back = jax.vjp(lambda *args: jax.core.eval_jaxpr(one, (), *args), *args)
        units = [y if is_inexact(y) else np.zeros(y.shape, jax.dtypes.float0) for y in outs]
        return [g for g in back(units) if is_inexact(g)]

    try:
        args = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in one.invars]
        closed = jax.make_jaxpr(derivative)(*args)
    except Exception:  # whatever a rule may raise: it is like no other
        return _Same(eqn)
    return _structure(closed.jaxpr, rules=False), tuple(map(_constant, closed.consts))
