"""A JAX network in factored form: the equations that read its parameters, and their factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten, tree_map

from tracekit._arrays import Array

from .._derivatives import checks
from .._factors import Use
from .derivatives import detached, inputs, traced_batch, traced_whole
from .derivatives import leaves as named_leaves
from .plan import Plan, wide
from .programs import keep, replaced
from .trials import Values


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

    Warns
    -----
    UserWarning
        If the factors of a parameter do not make its plain gradient, so that its Jacobian is
        formed.

    Notes
    -----
    f is traced at each call, so that what it closes over is as it is now. Its passes are compiled
    once for each structure: shapes, equations, and the numbers of Python in them.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from tracekit_ntk._jax.capture import capture
    >>> found = capture(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones((5, 3)))
    >>> [use] = found.uses(0, 2)["['w']"]
    >>> use.X.shape, use.G.shape
    ((5, 1, 1, 3), (5, 2, 1, 1, 2))
    """
    names = [name for name, _ in named_leaves(params)]
    leaves, tree = tree_flatten(tree_map(detached, params))
    params, x = tree.unflatten(leaves), inputs(x)
    batch, one = (traced_whole(f, params, x),) * 2 if whole else traced_batch(f, params, x)
    key = batch.key and one.key and ("capture", len(leaves), whole, batch.key, one.key)
    plan = keep(key, lambda: Plan(batch, one, len(leaves)))
    x = jax.tree.leaves(x)
    own = Values(leaves, batch.consts, one.consts, x)
    slow: set[int] = set()
    while bad := plan.check(own, names):
        slow |= bad
        plan = Plan(batch, one, len(leaves), plan.apart | bad)
        replaced(key, plan)
    if slow:
        checks.slow({names[k]: checks.DISAGREES for k in sorted(slow)})
    return Capture(plan, names, leaves, one.consts, x)


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

    def __init__(
        self, plan: Plan, names: list[str], leaves: list[Array], consts: list[Array], x: list[Array]
    ) -> None:
        self._plan, self._leaves, self._consts = plan, leaves, consts
        self._x = [part[None] for part in x] if plan.whole else x
        self.samples = len(self._x[0]) if self._x else 1
        self.output_shape = tuple(plan.output.shape)
        self.outputs = math.prod(self.output_shape)
        self.dtype = wide(plan.output, *leaves)
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
        columns = jnp.arange(start, stop)[:, None] == jnp.arange(self.outputs)[None, :]
        columns = columns.astype(self._plan.output.dtype).reshape(-1, *self.output_shape)
        if (start, stop) not in self._steps:
            part = self._plan.loops and stop - start < self.outputs
            steps = self._plan.steps(self._leaves, self._consts, self._x, columns) if part else ()
            self._steps[start, stop] = steps
        found = self._plan.uses(
            self._leaves, self._consts, self._x, columns, self._steps[start, stop]
        )
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
        found = self._plan.uses(self._leaves, self._consts, self._x, columns, (), each=True)
        return dict(zip(self.sizes, found, strict=True))

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Which operation reads which parameter, and how."""
        names = list(self.sizes)
        found = self._plan.report(self._leaves, self._consts, self._x)
        rows = [(names[leaf], op, positions, reason) for leaf, op, positions, reason in found]
        unread = set(names) - {row[0] for row in rows}
        rows += [(name, "none", 0, "not read, or its values do not matter") for name in unread]
        return sorted(rows, key=lambda row: names.index(row[0]))
