"""Uses of parameters from the reads of a program, and gradients that they sum up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_map

from tracekit._arrays import Array

from .._factors import Dense, Lookup, Outer, Use, cotangent
from .programs import is_inexact
from .reads import Read


def factor(read: Read, G: Array, keep: tuple[Array, Array], leaf: Array) -> Use:
    """The use of a read, from derivatives by what its operation gave, and what it kept."""
    other, scale = keep
    if scale is not None:
        scale = jnp.asarray(scale, G.dtype)
        G = G * scale.reshape(1, *scale.shape, *[1] * (G.ndim - 1 - scale.ndim))
    use = read.rule.factor(G, other)
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


def gradient(uses: list[Use], leaf: Array) -> Array:
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


def forward(
    run: Callable[[list[Array]], Array], leaves: list[Array], columns: Array
) -> list[Dense]:
    """Jacobians of the outputs that columns pick, by forward mode: without the samples' axis."""
    holomorphic = any(map(jnp.iscomplexobj, leaves))
    jacobian = jax.jacfwd(run, holomorphic=holomorphic)(leaves)
    rows = [jnp.tensordot(columns, J, columns.ndim - 1) for J in jacobian]
    return [Dense(J.reshape(len(columns), -1)) for J in rows]


def cast(use: Use, dtype: Any) -> Any:
    """A use in another dtype."""
    return tree_map(lambda part: part.astype(dtype) if is_inexact(part) else part, use)


def complex_use(re: Use, im: Use) -> Use:
    """One use of complex derivatives, from uses of their real and imaginary parts."""
    if isinstance(re, Dense):
        return replace(re, J=re.J + 1j * cotangent(im))
    return replace(re, G=re.G + 1j * cotangent(im))
