"""What is known of a JAX function before its values: where it reads parameters; compiled passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.tree_util import tree_flatten, tree_map

from . import _checks
from ._jax_interpreter import perturbed, places
from ._jax_places import Loop, Site, readings, zeros
from ._products import is_traced
from ._uses import Dense, Use, cotangent, stack

Array = Any


class Plan:
    """What depends on a function and the shapes of its arguments alone, compiled and kept."""

    def __init__(self, f: Callable[[Any, Any], Any], params: Any, x: Any, whole: bool) -> None:
        leaves, tree = tree_flatten(params)

        def batch(leaves: list[Array], x: Any) -> Array:
            return f(tree.unflatten(leaves), x)

        def one(leaves: list[Array], x: Any) -> Array:
            return batch(leaves, tree_map(lambda part: part[None], x))[0]

        self.batch, y = jax.make_jaxpr(batch, return_shape=True)(leaves, x)
        _checks.output(y, lambda y: isinstance(y, jax.ShapeDtypeStruct), _is_inexact)
        self.jaxpr, self.whole, self.parameters, self.checked = (
            self.batch,
            whole,
            len(leaves),
            False,
        )
        if not whole:
            _checks.samples([part.shape for part in jax.tree.leaves(x)], y.shape)
            sample = tree_map(lambda part: jax.ShapeDtypeStruct(part.shape[1:], part.dtype), x)
            try:
                self.jaxpr = jax.make_jaxpr(one)(leaves, sample)
            except Exception as error:
                raise _checks.alone(error) from error
        self.consts = [self.jaxpr.consts, self.batch.consts]
        (self.output,) = self.jaxpr.out_avals
        self.places = places(self.jaxpr, self.parameters)
        slots = dict(enumerate(self.places.slots))
        self.loops = {k: s for k, s in slots.items() if isinstance(s, Loop) and not s.layered}
        eps = jax.eval_shape(lambda: zeros(self.places.slots, {}))
        self.numbers = sum(part.size for part in jax.tree.leaves(eps))
        self.both_parts = jnp.iscomplexobj(y) and not jnp.iscomplexobj(leaves[0])
        self.while_loop = _has_while(self.jaxpr.jaxpr) and self._no_reverse()
        sweep = self._forward if self.while_loop else self._reverse
        self._sweep = jax.jit(sweep, static_argnames=("steps", "each"))
        self._reached, self._both = jax.jit(self._reach), jax.jit(self._outputs)

    def check(self, f: Callable[[Any, Any], Any], params: Any, x: Any) -> None:
        """Refuse what has no Jacobian of this kind: once, where there are values to see it by."""
        leaves = jax.tree.leaves(params)
        if self.checked or any(map(is_traced, jax.tree.leaves((leaves, x, self.consts)))):
            return
        y, *alone = self._both(leaves, self.consts, x)
        _checks.finite(bool(jnp.all(jnp.isfinite(y))))
        scale, eps = float(jnp.max(jnp.abs(y)).clip(1e-30)), float(jnp.finfo(y.dtype).eps)
        if not self.whole:
            equals = tree_map(lambda part: jnp.broadcast_to(part[:1], part.shape), x)
            first = self._both(leaves, self.consts, equals)[0][0]  # in other company
            _checks.independent(float(jnp.max(jnp.abs(alone[0] - y))) / scale, eps**0.5)
            _checks.independent(float(jnp.max(jnp.abs(first - y[0]))) / scale, 64 * eps)
        if jnp.iscomplexobj(leaves[0]):
            back = jax.vjp(f, params, x)[1]
            _checks.holomorphic(jnp.iscomplexobj(y) and _is_linear(back, y))
        self.checked = True

    def uses(
        self, leaves: list[Array], x: Any, columns: Array, steps: tuple[tuple[int, int], ...],
        *, each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """All uses of each parameter by the outputs that the rows of `columns` pick or combine.

        With `each`, every sample has columns of its own.
        """
        return self._sweep(leaves, self.jaxpr.consts, x, columns, steps=steps, each=each)  # type: ignore[no-any-return]

    def factors(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (),
    ) -> Iterator[tuple[Site, Use]]:  # fmt: skip
        """Each reading of a parameter, with its factors of one sample."""
        args = [*leaves, *jax.tree.leaves(x)]
        run = partial(perturbed, self.jaxpr.jaxpr, consts, args, self.parameters, marks={})
        _, back, kept = jax.vjp(run, zeros(self.places.slots, dict(steps)), has_aux=True)
        halves = [columns, -1j * columns] if self.both_parts else [columns]
        derivatives = [jax.vmap(back)(half)[0] for half in halves]
        found = [readings(self.places, G, kept) for G in derivatives]
        for parts in zip(*found, strict=True):
            uses = [_factor(site, loops, G, keep) for site, loops, G, keep in parts]
            yield parts[0][0], _complex(*uses) if self.both_parts else uses[0]

    def steps(self, leaves: list[Array], x: Any, columns: Array) -> tuple[tuple[int, int], ...]:
        """Steps of each loop that these outputs depend on, rounded up to quarters of all.

        A pullback of a random combination of the outputs shows which.
        """
        if any(map(is_traced, jax.tree.leaves((leaves, x, self.consts)))):
            return ()
        draw = np.random.default_rng(0).standard_normal(len(columns))
        column = jnp.tensordot(jnp.asarray(draw, columns.dtype), columns, 1)
        found = self._reached(leaves, self.jaxpr.consts, x, column)
        quarter = {k: -(-loop.length // 4) for k, loop in self.loops.items()}
        return tuple(
            (k, min(self.loops[k].length, -(-int(n) // quarter[k]) * quarter[k]))
            for k, n in found.items()
        )

    def report(self, leaves: list[Array], x: Any) -> list[tuple[int, str, int, str]]:
        """Parameter, operation, positions and reason of each place."""
        if self.while_loop:
            reason = "no reverse mode through a while loop: forward mode, all parameters"
            return [(k, "while", 1, reason) for k in range(len(leaves))]
        columns = jnp.zeros((1, *self.output.shape), self.output.dtype)
        sites: list[Site] = []

        def shapes(x: Any) -> list[Use]:
            found = list(self.factors(leaves, self.jaxpr.consts, x, columns))
            sites.extend(site for site, _ in found)
            return [use for _, use in found]

        def positions(use: Use) -> int:
            return 1 if isinstance(use, Dense) else int(use.G.shape[-2])

        uses = jax.eval_shape(jax.vmap(shapes), x)
        return [
            (site.leaf, site.operation, positions(use), site.reason)
            for site, use in zip(sites, uses, strict=True)
        ]

    def _reverse(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (), each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """All uses of each parameter by all samples, from one reverse pass."""

        def sample(x: Any, columns: Array) -> list[list[Use]]:
            uses: list[list[Use]] = [[] for _ in leaves]
            for site, use in self.factors(leaves, consts, x, columns, steps):
                uses[site.leaf].append(_cast(use, jnp.result_type(leaves[site.leaf], columns)))
            return uses

        found = jax.vmap(sample, (0, 0 if each else None))(x, columns)
        return [stack(uses) for uses in found]

    def _reach(self, leaves: list[Array], consts: list[Array], x: Any, column: Array) -> Any:
        def sample(x: Any) -> Any:
            args = [*leaves, *jax.tree.leaves(x)]
            run = partial(perturbed, self.jaxpr.jaxpr, consts, args, self.parameters, {})
            marks = {k: loop.marks() for k, loop in self.loops.items()}
            return jax.vjp(run, marks, has_aux=True)[1](column)[0]

        derivatives = jax.vmap(sample)(x)
        return {k: loop.needed(derivatives[k]) for k, loop in self.loops.items()}

    def _forward(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (), each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """The Jacobians themselves, by forward mode: for functions without a reverse pass."""
        holomorphic = jnp.iscomplexobj(leaves[0])

        def sample(x: Any, columns: Array) -> list[Array]:
            jacobian = jax.jacfwd(
                lambda leaves: self._run(leaves, consts, x), holomorphic=holomorphic
            )
            return [
                jnp.tensordot(columns, J, self.output.ndim).reshape(len(columns), -1)
                for J in jacobian(leaves)
            ]

        found = jax.vmap(sample, (0, 0 if each else None))(x, columns)
        return [[Dense(J)] for J in found]

    def _outputs(self, leaves: list[Array], consts: Any, x: Any) -> list[Array]:
        """The outputs of the batch, and those of its samples one by one."""
        args = (*leaves, *jax.tree.leaves(x))
        (y,) = jax.core.eval_jaxpr(self.batch.jaxpr, consts[1], *args)
        return [y] if self.whole else [y, jax.vmap(lambda x: self._run(leaves, consts[0], x))(x)]

    def _no_reverse(self) -> bool:
        leaves, x = self.jaxpr.in_avals[: self.parameters], self.jaxpr.in_avals[self.parameters :]
        columns = jnp.zeros((1, *self.output.shape), self.output.dtype)
        factors = partial(self.factors, columns=columns)
        try:
            jax.eval_shape(
                lambda *given: [use for _, use in factors(*given)], leaves, self.jaxpr.consts, x
            )
        except ValueError:
            return True
        return False

    def _run(self, leaves: list[Array], consts: list[Array], x: Any) -> Array:
        (y,) = jax.core.eval_jaxpr(self.jaxpr.jaxpr, consts, *leaves, *jax.tree.leaves(x))
        return y


def _factor(site: Site, loops: tuple[int, ...], G: Array, keep: tuple[Array, Array]) -> Use:
    other, scale = keep
    if scale is not None:
        scale = jnp.asarray(scale, G.dtype)
        G = G * scale.reshape(1, *scale.shape, *[1] * (G.ndim - 1 - scale.ndim))
    return site.rule.factor(G, other)


def _cast(use: Use, dtype: Any) -> Any:
    return tree_map(lambda part: part.astype(dtype) if _is_inexact(part) else part, use)


def _complex(re: Use, im: Use) -> Use:
    """One use of complex derivatives, from uses of their real and imaginary parts."""
    if isinstance(re, Dense):
        return replace(re, J=re.J + 1j * cotangent(im))
    return replace(re, G=re.G + 1j * cotangent(im))


def _is_linear(back: Callable[[Array], Any], y: Array) -> bool:
    """Whether a pullback commutes with the imaginary unit in the parameters."""
    one, turned = (jax.tree.leaves(back(unit * jnp.ones_like(y))[0]) for unit in (1, 1j))
    return all(jnp.allclose(1j * a, b) for a, b in zip(one, turned, strict=True))


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _has_while(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name == "while" or any(map(_has_while, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )
