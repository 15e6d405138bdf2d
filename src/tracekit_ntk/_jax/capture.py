"""A JAX network in factored form: the equations that read its parameters, and their factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_map

from tracekit._arrays import Array, is_traced

from .._derivatives import checks
from .._factors import Dense, Head, Use, is_alone, stack
from .derivatives import detached, inputs, traced_batch, traced_whole
from .derivatives import leaves as named_leaves
from .head import find_head, named
from .interpreter import find_reads, perturbed
from .programs import Traced, keep, replaced, reverses, wide
from .reads import Loop, Read, each_read, pulled, zeros
from .trials import Trials, Values
from .uses import cast, complex_use, factor, forward, gradient


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
    return Capture(plan, names, own)


class Capture:
    """A function's Jacobian at one point, in factors; see `factors.Capture`."""

    def __init__(self, plan: Plan, names: list[str], own: Values) -> None:
        self._plan, self._names, self._own = plan, names, own
        self._leaves, self._consts, x = own.leaves, own.apart, own.x
        self._x = [part[None] for part in x] if plan.whole else x
        self.samples = len(self._x[0]) if self._x else 1
        self.output_shape = tuple(plan.output.shape)
        self.outputs = math.prod(self.output_shape)
        self.dtype = wide(plan.output, *own.leaves)
        self.sizes = {name: leaf.size for name, leaf in zip(names, own.leaves, strict=True)}
        self.numbers = plan.numbers
        self.bytes_at_once = 2**24 if plan.loops else 2**27  # scans are fastest within the cache
        self._steps: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}

    @property
    def output(self) -> Array:
        """What f gave for the whole batch."""
        y = self._plan.outputs(self._leaves, self._consts, self._x)
        return y[0] if self._plan.whole else y

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """The factors of outputs start to stop, by one reverse pass for all samples.

        Compiled once for each number of outputs, and each part of a scan that they reach: one more
        pullback shows the last step that they depend on (not under jit, where there are no values).
        Memory: the activations, and stop - start cotangents of them, for each sample.
        """
        plan, *given = self.asked(start, stop)
        return dict(zip(self.sizes, plan.uses(*given), strict=True))

    def asked(self, start: int, stop: int) -> tuple[Any, ...]:
        """The plan, and what it takes for these outputs: columns and steps last."""
        columns = jnp.arange(start, stop)[:, None] == jnp.arange(self.outputs)[None, :]
        columns = columns.astype(self._plan.output.dtype).reshape(-1, *self.output_shape)
        given = self._leaves, self._consts, self._x, columns
        if (start, stop) not in self._steps:
            part = self._plan.loops and stop - start < self.outputs
            self._steps[start, stop] = self._plan.steps(*given) if part else ()
        return self._plan, *given, self._steps[start, stop]

    @property
    def scans(self) -> bool:
        """Whether parameters are read within scans that go over no slices of them."""
        return bool(self._x and self._plan.loops) and not self._plan.while_loop

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The factors of k combinations ``V^H y`` of each sample's own outputs, V (N, O, k).

        Or (1, O, k) of combinations that all samples share.
        """
        columns = jnp.moveaxis(jnp.conj(V), 2, 1).astype(self._plan.output.dtype)
        columns = columns.reshape(len(V), -1, *self.output_shape)
        each = len(V) == self.samples
        columns = columns if each else columns[0]
        found = self._plan.uses(self._leaves, self._consts, self._x, columns, (), each=each)
        return dict(zip(self.sizes, found, strict=True))

    def outline(self) -> dict[str, list[Use]]:
        """Uses for all outputs, as shapes alone."""
        return jax.eval_shape(lambda: self.uses(0, self.outputs))  # type: ignore[no-any-return]

    @cached_property
    def head(self) -> Head | None:
        """The linear map with more outputs than inputs that the function ends in, if it does."""
        plan, names = self._plan, self._names
        if not plan.has_head(self._own):
            return None
        found, body, own = plan.head, plan.body, self._own
        below = Capture(body, names, own._replace(apart=[*own.apart, found.rows]))
        h = body.outputs(self._leaves, below._consts, self._x)
        one = jax.eval_shape(lambda x: body.one_output(self._leaves, below._consts, x), self._x)
        W, h = found.weight(self._consts, self._leaves), h.reshape(self.samples, -1, h.shape[-1])
        parts, one = named(found, names), dict(zip(names, one, strict=True))
        made = Head(below, W, h, *parts, one)
        return made if is_alone(made) else None

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Which operation reads which parameter, and how."""
        names = list(self.sizes)
        found = self._plan.report(self._leaves, self._consts, self._x)
        rows = [(names[leaf], op, positions, reason) for leaf, op, positions, reason in found]
        unread = set(names) - {row[0] for row in rows}
        rows += [(name, "none", 0, "not read, or its values do not matter") for name in unread]
        return sorted(rows, key=lambda row: names.index(row[0]))


class Plan:
    """What depends on the structure of a function alone, compiled and kept.

    Parameters
    ----------
    batch, one : Traced
        The function of all samples, and that of one: the same where the batch is the sample.
    parameters : int
        How many of the arguments are parameters.
    apart : frozenset of int
        Parameters that are differentiated by on their own, whatever reads them.
    whole : bool, optional
        Whether the batch is the sample, where the functions do not tell.
    """

    def __init__(
        self, batch: Traced, one: Traced, parameters: int, apart: frozenset[int] = frozenset(),
        whole: bool | None = None,
    ) -> None:  # fmt: skip
        self.batch, self.one, self.parameters, self.apart = batch, one, parameters, apart
        self.whole, self.tried = one is batch if whole is None else whole, False
        self._head_holds: bool | None = None
        self.output = one.output
        self.reads = find_reads(one, parameters, apart)
        slots = dict(enumerate(self.reads.slots))
        self.loops = {k: s for k, s in slots.items() if isinstance(s, Loop) and not s.layered}
        eps = jax.eval_shape(lambda: zeros(self.reads.slots, {}))
        self.numbers = sum(part.size for part in jax.tree.leaves(eps))
        self.complex = jnp.issubdtype(one.shapes[1][0].dtype, jnp.complexfloating)
        cplx = jnp.issubdtype(self.output.dtype, jnp.complexfloating)
        self.both_parts = cplx and not self.complex
        self.while_loop = not reverses(one, parameters) or self._no_reverse()
        sweep = self._forward if self.while_loop else self._reverse
        self._sweep = jax.jit(sweep, static_argnames=("steps", "each"))
        self._reached = jax.jit(self._reach)
        fixed = ("steps", "names", "reduce")
        self.program = cache(lambda run: jax.jit(partial(run, self), static_argnames=fixed))
        self.outputs = jax.jit(jax.vmap(self._run, (None, None, 0)))
        self._trials = Trials(batch, self._apart, whole=self.whole, reverse=not self.while_loop)

    def check(self, own: Values, names: Sequence[str]) -> set[int]:
        """Refuse what has no Jacobian of this kind, and find parameters whose factors are wrong.

        At the values where they are known, and the first time at drawn ones too.
        """
        bad = self._trials.disagreeing(own, names, first=not self.tried)
        if bad & self.apart:
            raise ValueError(checks.MIXED_GRADIENTS)
        if self.complex and not bad:
            cplx = jnp.issubdtype(self.output.dtype, jnp.complexfloating)
            first = not self.tried
            checks.holomorphic(cplx and self._trials.holomorphic(own, first=first))
        self.tried = self.tried or not bad
        return bad

    @cached_property
    def head(self) -> Any:
        """The head that the equations of one sample show."""
        if self.apart or self.while_loop or self.both_parts:
            return None
        return find_head(self.one, self.parameters)

    @cached_property
    def body(self) -> Plan:
        """The plan of what the head is given."""
        return Plan(self.batch, self.head.features, self.parameters, whole=self.whole)

    def has_head(self, own: Values) -> bool:
        """Whether there is a head, which with its body makes the gradients of the batch."""
        if self.head is None:
            return False
        if self._head_holds is None:
            trials = Trials(self.batch, self._through_head, whole=self.whole)
            names = [str(k) for k in range(self.parameters)]
            self._head_holds = not trials.disagreeing(own, names, first=True)
        return self._head_holds

    def one_output(self, leaves: list[Array], consts: list[Array], x: Any) -> list[list[Use]]:
        """All uses of each parameter by the first output."""
        columns = jnp.zeros((1, *self.output.shape), self.output.dtype)
        return self._reverse(leaves, consts, x, columns)

    def uses(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...], *, each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """All uses of each parameter by the outputs that rows of `columns`, of `each`, combine."""
        return self._sweep(leaves, consts, x, columns, steps=steps, each=each)  # type: ignore[no-any-return]

    def factors(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (),
    ) -> tuple[Array, list[tuple[Read, Use]]]:  # fmt: skip
        """The outputs of one sample, and each read of a parameter with its factors."""
        args = [*leaves, *jax.tree.leaves(x)]
        run = partial(perturbed, self.one.jaxpr, consts, args, self.parameters, self.apart)
        run = partial(run, loop_eps={})
        eps = zeros(self.reads.slots, dict(steps))
        y, back, kept = jax.vjp(run, eps, has_aux=True)
        halves = [columns, -1j * columns] if self.both_parts else [columns]
        derivatives = [pulled(back, half, eps) for half in halves]
        by_half = [each_read(self.reads, G, kept) for G in derivatives]
        found = []
        for parts in zip(*by_half, strict=True):
            uses = [factor(read, G, keep, leaves[read.leaf]) for read, G, keep in parts]
            found.append((parts[0][0], complex_use(*uses) if self.both_parts else uses[0]))
        return y, found

    def of_sample(
        self, leaves: list[Array], consts: list[Array], steps: tuple[tuple[int, int], ...],
        x: Any, columns: Array,
    ) -> tuple[Array, list[list[Use]]]:  # fmt: skip
        """The outputs of one sample, and all uses of each parameter, without its axis."""
        uses: list[list[Use]] = [[] for _ in leaves]
        y, found = self.factors(leaves, consts, x, columns, steps)
        for read, use in found:
            uses[read.leaf].append(cast(use, wide(leaves[read.leaf], columns)))
        return y, uses

    def steps(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array
    ) -> tuple[tuple[int, int], ...]:
        """Steps of each loop that these outputs depend on, rounded up to some part of all.

        A pullback of a random combination of the outputs shows which.
        """
        if any(map(is_traced, jax.tree.leaves((leaves, x, consts)))):
            return ()
        draw = np.random.default_rng(0).standard_normal(len(columns))
        column = jnp.tensordot(jnp.asarray(draw, columns.dtype), columns, 1)
        found = self._reached(leaves, consts, x, column)
        return tuple((k, self.loops[k].up_to(int(n))) for k, n in found.items())

    def report(
        self, leaves: list[Array], consts: list[Array], x: Any
    ) -> list[tuple[int, str, int, str]]:
        """Parameter, operation, positions and reason of each read."""
        if self.while_loop:
            reason = "no reverse mode through a while loop: forward mode, all parameters"
            return [(k, "while", 1, reason) for k in range(len(leaves))]
        columns = jnp.zeros((1, *self.output.shape), self.output.dtype)
        reads: list[Read] = []

        def shapes(x: Any) -> list[Use]:
            _, found = self.factors(leaves, consts, x, columns)
            reads.extend(read for read, _ in found)
            return [use for _, use in found]

        def positions(use: Use) -> int:
            return 1 if isinstance(use, Dense) else int(use.G.shape[-2])

        uses = jax.eval_shape(jax.vmap(shapes), x)
        return [
            (read.leaf, read.operation, positions(use), read.reason)
            for read, use in zip(reads, uses, strict=True)
        ]

    def _reverse(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (), each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """All uses of each parameter by all samples, from one reverse pass."""
        return self._outputs_and_uses(leaves, consts, x, columns, steps, each)[1]

    def _outputs_and_uses(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...], each: bool,
    ) -> tuple[Array, list[list[Use]]]:  # fmt: skip
        sample = partial(self.of_sample, leaves, consts, steps)
        ys, found = jax.vmap(sample, (0, 0 if each else None))(x, columns)
        return ys, [stack(uses) for uses in found]

    def _reach(self, leaves: list[Array], consts: list[Array], x: Any, column: Array) -> Any:
        def sample(x: Any) -> Any:
            args = [*leaves, *jax.tree.leaves(x)]
            run = partial(perturbed, self.one.jaxpr, consts, args, self.parameters, self.apart, {})
            loop_eps = {k: loop.result_eps() for k, loop in self.loops.items()}
            return jax.vjp(run, loop_eps, has_aux=True)[1](column)[0]

        derivatives = jax.vmap(sample)(x)
        return {k: loop.needed(derivatives[k]) for k, loop in self.loops.items()}

    def _forward(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (), each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """The Jacobians themselves, by forward mode: for functions without a reverse pass."""

        def sample(x: Any, columns: Array) -> list[Dense]:
            return forward(lambda leaves: self._run(leaves, consts, x), leaves, columns)

        found = jax.vmap(sample, (0, 0 if each else None))(x, columns)
        return [[use] for use in found]

    def _apart(
        self, leaves: list[Array], consts: list[Array], x: Any, cotangent: Array
    ) -> tuple[Array, list[Array]]:
        """Outputs of the samples one by one, and the gradients that their factors make."""
        if self.whole:
            x, cotangent = [part[None] for part in x], cotangent[None]
        if self.while_loop:
            return jax.vmap(lambda x: self._run(leaves, consts, x))(x), []
        ys, found = self._outputs_and_uses(leaves, consts, x, cotangent[:, None], (), True)
        return ys, [gradient(uses, leaf) for uses, leaf in zip(found, leaves, strict=True)]

    def _through_head(
        self, leaves: list[Array], consts: list[Array], x: Any, cotangent: Array
    ) -> tuple[Array, list[Array]]:
        """The same as `_apart`, by way of the head and its body."""
        if self.whole:
            x, cotangent = [part[None] for part in x], cotangent[None]
        found, names = self.head, range(self.parameters)
        W = found.weight(consts, leaves)
        hs, uses = self.body._outputs_and_uses(
            leaves, [*consts, found.rows], x, jnp.matmul(cotangent, W)[:, None], (), True
        )
        h = hs.reshape(len(hs), -1, W.shape[1])
        parts = named(found, names)
        head = Head(None, W, h, *parts, {})
        own = head.direct(cotangent.reshape(len(hs), 1, -1, len(W)))
        every = [[*some, *own.get(k, [])] for k, some in zip(names, uses, strict=True)]  # type: ignore[call-overload]
        ys = jax.vmap(lambda x: self._run(leaves, consts, x))(x)
        return ys, [gradient(some, leaf) for some, leaf in zip(every, leaves, strict=True)]

    def _no_reverse(self) -> bool:
        consts, args = self.one.shapes
        columns = jnp.zeros((1, *self.output.shape), self.output.dtype)
        factors = partial(self.factors, columns=columns)
        try:
            leaves, x = args[: self.parameters], args[self.parameters :]
            jax.eval_shape(lambda *given: [use for _, use in factors(*given)[1]], leaves, consts, x)
        except ValueError:
            return True
        return False

    def _run(self, leaves: list[Array], consts: list[Array], x: Any) -> Array:
        return self.one(consts, leaves, x)
