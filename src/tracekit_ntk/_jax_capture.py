"""A JAX network in factored form: the equations that read its parameters, and their factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten, tree_map

from ._jax import leaves as named_leaves
from ._jax_plan import Plan
from ._products import is_traced
from ._uses import Use

Array = Any

_plans: WeakKeyDictionary[Any, dict[Any, Plan]] = WeakKeyDictionary()


def capture(f: Callable[[Any, Any], Any], params: Any, x: Any, *, whole: bool = False) -> Capture:
    """Find the equations of a JAX function that read its parameters.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of x and of the result.
    params : tree of JAX arrays
        What to differentiate by: all real, or all complex with f holomorphic in them.
    x : array or tree of arrays
        The inputs.
    whole : bool
        Whether the whole batch is one sample with all its outputs, for functions that mix samples.

    Returns
    -------
    Capture
        Which gives the factors for any range of outputs.

    Raises
    ------
    ValueError
        If f mixes samples, or is not holomorphic in complex parameters (not checked under a
        transformation of JAX, where there are no values to look at).

    Notes
    -----
    f is traced once for each shape of its arguments, as by jax.jit: hand in the same function
    object again, and neither is it traced nor are its passes compiled anew.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from tracekit_ntk._jax_capture import capture
    >>> found = capture(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((5, 3)))
    >>> [use] = found.uses(0, 2)["['w']"]
    >>> use.X.shape, use.G.shape
    ((5, 1, 1, 3), (5, 2, 1, 1, 2))
    """
    names = [name for name, _ in named_leaves(params)]
    leaves, tree = tree_flatten(tree_map(jnp.asarray, params))
    x = tree_map(jnp.asarray, x)
    inputs, shape = tree_flatten(x)
    key = (tree, shape, whole, *((a.shape, a.dtype) for a in (*leaves, *inputs)))
    try:
        known = _plans.setdefault(f, {})
    except TypeError:  # cannot be hashed or referred to weakly
        known = {}
    plan = known.get(key)
    if plan is None:
        plan = Plan(f, params, x, whole)
        if not any(map(is_traced, plan.consts)):
            known[key] = plan
    plan.check(f, params, x)
    return Capture(plan, names, leaves, x)


class Capture:
    """A function's Jacobian at one point, in factors: what `capture` finds.

    Attributes
    ----------
    samples, outputs : int
        Samples N, and outputs O of each.
    output_shape : tuple of int
        Of one sample; of the batch where that is the sample.
    dtype : dtype
        Of the Jacobian.
    sizes : dict
        Entries of each parameter, by its path in the tree.
    numbers : int
        Numbers in the derivatives of one output of one sample.
    bytes_at_once : int
        Of cotangents, where no chunk size is asked for.
    report : list of tuple
        For each operation that reads a parameter: path, operation, positions, and why its Jacobian
        is formed rather than factored (empty if it need not be).
    """

    def __init__(self, plan: Plan, names: list[str], leaves: list[Array], x: Any) -> None:
        self._plan, self._leaves = plan, leaves
        self._x = tree_map(lambda part: part[None], x) if plan.whole else x
        self.samples = len(jax.tree.leaves(self._x)[0])
        self.output_shape = tuple(plan.output.shape)
        self.outputs = math.prod(self.output_shape)
        self.dtype = jnp.result_type(plan.output.dtype, *(leaf.dtype for leaf in leaves))
        self.sizes = {name: leaf.size for name, leaf in zip(names, leaves, strict=True)}
        self.numbers = plan.numbers
        self.bytes_at_once = 2**24 if plan.loops else 2**27  # scans are fastest within the cache
        self._steps: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """The factors of outputs start to stop, by one reverse pass for all samples.

        Parameters
        ----------
        start, stop : int
            A range of the O outputs, flattened in C order.

        Returns
        -------
        dict of list of Outer, Lookup or Dense
            The stacked uses of each parameter; none of one that is not read.

        Notes
        -----
        Compiled once for each number of outputs, and each quarter of a scan that they reach: a scan
        is differentiated no further than the last step that these outputs depend on, which one more
        pullback shows (not under jit, where there are no values). Memory: the activations, and stop
        - start cotangents of them, for each sample.
        """
        columns = jnp.arange(start, stop)[:, None] == jnp.arange(self.outputs)
        columns = columns.astype(self._plan.output.dtype).reshape(-1, *self.output_shape)
        if (start, stop) not in self._steps:
            part = self._plan.loops and stop - start < self.outputs
            steps = self._plan.steps(self._leaves, self._x, columns) if part else ()
            self._steps[start, stop] = steps
        found = self._plan.uses(self._leaves, self._x, columns, self._steps[start, stop])
        return dict(zip(self.sizes, found, strict=True))

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The factors of k combinations of each sample's own outputs.

        Parameters
        ----------
        V : (N, O, k) array
            The combinations, ``V^H`` times the outputs.

        Returns
        -------
        dict of list of Outer, Lookup or Dense
            As `uses` gives them, for k outputs.
        """
        columns = jnp.moveaxis(jnp.conj(V), 2, 1).astype(self._plan.output.dtype)
        columns = columns.reshape(self.samples, -1, *self.output_shape)
        found = self._plan.uses(self._leaves, self._x, columns, (), each=True)
        return dict(zip(self.sizes, found, strict=True))

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Which operation reads which parameter, and how."""
        names = list(self.sizes)
        found = self._plan.report(self._leaves, self._x)
        rows = [(names[leaf], op, positions, reason) for leaf, op, positions, reason in found]
        unread = set(names) - {row[0] for row in rows}
        rows += [(name, "none", 0, "not read, or its values do not matter") for name in unread]
        return sorted(rows, key=lambda row: names.index(row[0]))
