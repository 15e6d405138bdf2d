"""What is known of a JAX function before its values: where it reads parameters; compiled passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_map

from tracekit._arrays import Array, is_traced

from .._derivatives import checks
from .._factors import Dense, Lookup, Outer, Use, cotangent, stack
from .interpreter import perturbed, places
from .programs import Traced, is_inexact, reverses
from .reads import Loop, Site, readings, zeros
from .trials import Trials, Values


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
    """

    def __init__(
        self, batch: Traced, one: Traced, parameters: int, apart: frozenset[int] = frozenset()
    ) -> None:
        self.batch, self.one, self.parameters, self.apart = batch, one, parameters, apart
        self.whole, self.tried = one is batch, False
        self.output = one.output
        self.places = places(one, parameters, apart)
        slots = dict(enumerate(self.places.slots))
        self.loops = {k: s for k, s in slots.items() if isinstance(s, Loop) and not s.layered}
        eps = jax.eval_shape(lambda: zeros(self.places.slots, {}))
        self.numbers = sum(part.size for part in jax.tree.leaves(eps))
        self.complex = jnp.issubdtype(one.shapes[1][0].dtype, jnp.complexfloating)
        cplx = jnp.issubdtype(self.output.dtype, jnp.complexfloating)
        self.both_parts = cplx and not self.complex
        self.while_loop = not reverses(one, parameters) or self._no_reverse()
        sweep = self._forward if self.while_loop else self._reverse
        self._sweep = jax.jit(sweep, static_argnames=("steps", "each"))
        self._reached = jax.jit(self._reach)
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

    def uses(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...], *, each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """All uses of each parameter by the outputs that the rows of `columns` pick or combine.

        With `each`, every sample has columns of its own.
        """
        return self._sweep(leaves, consts, x, columns, steps=steps, each=each)  # type: ignore[no-any-return]

    def factors(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (),
    ) -> tuple[Array, list[tuple[Site, Use]]]:  # fmt: skip
        """The outputs of one sample, and each reading of a parameter with its factors."""
        args = [*leaves, *jax.tree.leaves(x)]
        run = partial(perturbed, self.one.jaxpr, consts, args, self.parameters, self.apart)
        run = partial(run, marks={})
        y, back, kept = jax.vjp(run, zeros(self.places.slots, dict(steps)), has_aux=True)
        halves = [columns, -1j * columns] if self.both_parts else [columns]
        derivatives = [jax.vmap(back)(half)[0] for half in halves]
        read = [readings(self.places, G, kept) for G in derivatives]
        found = []
        for parts in zip(*read, strict=True):
            uses = [
                _factor(site, loops, G, keep, leaves[site.leaf]) for site, loops, G, keep in parts
            ]
            found.append((parts[0][0], _complex(*uses) if self.both_parts else uses[0]))
        return y, found

    def steps(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array
    ) -> tuple[tuple[int, int], ...]:
        """Steps of each loop that these outputs depend on, rounded up to quarters of all.

        A pullback of a random combination of the outputs shows which.
        """
        if any(map(is_traced, jax.tree.leaves((leaves, x, consts)))):
            return ()
        draw = np.random.default_rng(0).standard_normal(len(columns))
        column = jnp.tensordot(jnp.asarray(draw, columns.dtype), columns, 1)
        found = self._reached(leaves, consts, x, column)
        quarter = {k: -(-loop.length // 4) for k, loop in self.loops.items()}
        return tuple(
            (k, min(self.loops[k].length, -(-int(n) // quarter[k]) * quarter[k]))
            for k, n in found.items()
        )

    def report(
        self, leaves: list[Array], consts: list[Array], x: Any
    ) -> list[tuple[int, str, int, str]]:
        """Parameter, operation, positions and reason of each place."""
        if self.while_loop:
            reason = "no reverse mode through a while loop: forward mode, all parameters"
            return [(k, "while", 1, reason) for k in range(len(leaves))]
        columns = jnp.zeros((1, *self.output.shape), self.output.dtype)
        sites: list[Site] = []

        def shapes(x: Any) -> list[Use]:
            _, found = self.factors(leaves, consts, x, columns)
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
        return self._outputs_and_uses(leaves, consts, x, columns, steps, each)[1]

    def _outputs_and_uses(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...], each: bool,
    ) -> tuple[Array, list[list[Use]]]:  # fmt: skip
        def sample(x: Any, columns: Array) -> tuple[Array, list[list[Use]]]:
            uses: list[list[Use]] = [[] for _ in leaves]
            y, found = self.factors(leaves, consts, x, columns, steps)
            for site, use in found:
                uses[site.leaf].append(_cast(use, wide(leaves[site.leaf], columns)))
            return y, uses

        ys, found = jax.vmap(sample, (0, 0 if each else None))(x, columns)
        return ys, [stack(uses) for uses in found]

    def _reach(self, leaves: list[Array], consts: list[Array], x: Any, column: Array) -> Any:
        def sample(x: Any) -> Any:
            args = [*leaves, *jax.tree.leaves(x)]
            run = partial(perturbed, self.one.jaxpr, consts, args, self.parameters, self.apart, {})
            marks = {k: loop.marks() for k, loop in self.loops.items()}
            return jax.vjp(run, marks, has_aux=True)[1](column)[0]

        derivatives = jax.vmap(sample)(x)
        return {k: loop.needed(derivatives[k]) for k, loop in self.loops.items()}

    def _forward(
        self, leaves: list[Array], consts: list[Array], x: Any, columns: Array,
        steps: tuple[tuple[int, int], ...] = (), each: bool = False,
    ) -> list[list[Use]]:  # fmt: skip
        """The Jacobians themselves, by forward mode: for functions without a reverse pass."""
        holomorphic = self.complex

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

    def _apart(
        self, leaves: list[Array], consts: list[Array], x: Any, cotangent: Array
    ) -> tuple[Array, list[Array]]:
        """Outputs of the samples one by one, and the gradients that their factors make."""
        if self.whole:
            x, cotangent = [part[None] for part in x], cotangent[None]
        if self.while_loop:
            return jax.vmap(lambda x: self._run(leaves, consts, x))(x), []
        ys, found = self._outputs_and_uses(leaves, consts, x, cotangent[:, None], (), True)
        return ys, [_gradient(uses, leaf) for uses, leaf in zip(found, leaves, strict=True)]

    def _no_reverse(self) -> bool:
        consts, args = self.one.shapes
        columns = jnp.zeros((1, *self.output.shape), self.output.dtype)
        factors = partial(self.factors, columns=columns)
        try:
            jax.eval_shape(
                lambda *given: [use for _, use in factors(*given)[1]],
                args[: self.parameters], consts, args[self.parameters :],
            )  # fmt: skip
        except ValueError:
            return True
        return False

    def _run(self, leaves: list[Array], consts: list[Array], x: Any) -> Array:
        return self.one(consts, leaves, x)


def _factor(
    site: Site, loops: tuple[int, ...], G: Array, keep: tuple[Array, Array], leaf: Array
) -> Use:
    other, scale = keep
    if scale is not None:
        scale = jnp.asarray(scale, G.dtype)
        G = G * scale.reshape(1, *scale.shape, *[1] * (G.ndim - 1 - scale.ndim))
    use = site.rule.factor(G, other)
    return use if jnp.iscomplexobj(leaf) else _real(use)


def _real(use: Use) -> Use:
    """The derivative by a real parameter: the real part, where it multiplies complex numbers."""
    if not isinstance(use, Outer):
        return tree_map(_real_part, use)  # type: ignore[no-any-return]
    if not jnp.iscomplexobj(use.X):
        return replace(use, G=_real_part(use.G))
    if not jnp.iscomplexobj(use.G):
        return replace(use, X=_real_part(use.X))
    X = jnp.concatenate([use.X.real, use.X.imag], axis=-2)  # twice the positions
    return replace(use, X=X, G=jnp.concatenate([use.G.real, -use.G.imag], axis=-2))


def _real_part(a: Array) -> Array:
    return jnp.real(a) if jnp.iscomplexobj(a) else a


def _gradient(uses: list[Use], leaf: Array) -> Array:
    """The sum over samples of a single output each, as the parameter lies."""
    total = jnp.zeros(leaf.size, jnp.promote_types(leaf.dtype, jnp.float32))
    for use in uses:
        if isinstance(use, Outer):
            form = "ngsd,nogsw->gdw" if use.input_first else "ngsd,nogsw->gwd"
            part = jnp.einsum(form, use.X, use.G).reshape(-1)
        elif isinstance(use, Lookup):
            G = use.G.reshape(-1, use.G.shape[-1])
            part = jnp.zeros((use.rows, G.shape[1]), G.dtype).at[use.ids.reshape(-1)].add(G)
            part = part.reshape(-1)
        else:
            part = jnp.sum(use.J, axis=(0, 1))
        part = part if jnp.iscomplexobj(leaf) else jnp.real(part)
        total = total.at[use.start : use.start + use.size].add(part.astype(total.dtype))
    return total.reshape(leaf.shape)


def wide(*arrays: Array) -> Any:
    """The dtype that arrays have together, of single precision at least."""
    dtype = jnp.result_type(*(a.dtype for a in arrays))
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def _cast(use: Use, dtype: Any) -> Any:
    return tree_map(lambda part: part.astype(dtype) if is_inexact(part) else part, use)


def _complex(re: Use, im: Use) -> Use:
    """One use of complex derivatives, from uses of their real and imaginary parts."""
    if isinstance(re, Dense):
        return replace(re, J=re.J + 1j * cotangent(im))
    return replace(re, G=re.G + 1j * cotangent(im))
