"""A JAX function tried at its own values and at drawn ones: do samples mix, are gradients right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tracekit._arrays import Array, is_traced

from .._derivatives import checks
from .programs import Traced, is_inexact, precision

# (leaves, constants, x, cotangent): outputs, and the gradients of their sum with the cotangent
Pass = Callable[[Any, Any, Any, Array], tuple[Array, list[Array]]]


class Values(NamedTuple):
    """What a batch and its samples one by one are run with."""

    leaves: list[Array]
    together: list[Array]  # constants of the batch
    apart: list[Array]  # constants of a sample
    x: list[Array]


class Trials:
    """A batch against its samples one by one, in outputs and gradients.

    Parameters
    ----------
    batch : Traced
        The function ``(leaves, x)`` of all samples.
    apart : callable
        A `Pass` of its samples one by one, or of whatever is to agree with the batch.
    whole : bool
        Whether samples may mix.
    reverse : bool
        Whether there is a reverse mode; else outputs alone are compared.
    """

    def __init__(
        self, batch: Traced, apart: Pass, *, whole: bool = False, reverse: bool = True
    ) -> None:
        self.output, self.whole = batch.output, whole
        self.eps = max(precision(batch.jaxpr), float(jnp.finfo(batch.output.dtype).eps))

        def together(leaves: Any, consts: Any, x: Any, cotangent: Array) -> Any:
            if not reverse:
                return batch(consts, leaves, x), []
            y, back = jax.vjp(lambda leaves: batch(consts, leaves, x), leaves)
            return y, back(cotangent)[0]

        def compared(
            leaves: Any, consts: Any, x: Any, cotangent: Array, y: Array, gradients: Any
        ) -> Any:
            ys, parts = apart(leaves, consts, x, cotangent)
            norms = [_norm(g) for g in gradients] if reverse else []
            apart_by = [_norm(g - h) for g, h in zip(gradients, parts, strict=reverse)]
            return jnp.max(jnp.abs(ys - y)), apart_by, norms

        self._together, self._compared = jax.jit(together), jax.jit(compared)

    def disagreeing(self, own: Values, names: Sequence[str], *, first: bool) -> set[int]:
        """Numbers of the parameters whose gradients are not those of the batch.

        Parameters
        ----------
        own : Values
            Those that f is asked for; where some are not known yet, nothing is tried at them.
        names : sequence of str
            Of the parameters.
        first : bool
            Whether to try two drawn sets of values too.

        Returns
        -------
        set of int
            Which disagree beyond rounding somewhere.

        Raises
        ------
        ValueError
            If outputs or gradients are not finite at the function's own values, or if samples mix.
        """
        bad: set[int] = set()
        with jax.core.eval_context():
            for values, is_own in _trials(own, first):
                bad |= self._tried(values, names if is_own else [])
        return bad

    def holomorphic(self, own: Values, *, first: bool) -> bool:
        """Whether the imaginary unit passes through the gradients wherever they are tried."""
        c = self._cotangent()
        with jax.core.eval_context():
            for leaves, consts, _, x in (values for values, _ in _trials(own, first)):
                one, turned = (self._together(leaves, consts, x, u * c)[1] for u in (1, 1j))
                for g, h in zip(map(_host, one), map(_host, turned), strict=True):
                    size = np.max(np.abs(g), initial=0)
                    if np.max(np.abs(1j * g - h), initial=0) > self.eps**0.5 * size:
                        return False
        return True

    def _tried(self, values: Values, names: Sequence[str]) -> set[int]:
        """With `names` of the parameters at the function's own values alone."""
        leaves, consts, consts_apart, x = values
        c = self._cotangent()
        y, gradients = self._together(leaves, consts, x, c)
        outputs = _host(y)
        if not np.all(np.isfinite(outputs)):
            checks.finite(not names)
            return set()
        scale = max(float(np.max(np.abs(outputs))), 1e-30)
        compared = self._compared(leaves, consts_apart, x, c, y, gradients)
        deviation, apart, norms = jax.tree.map(float, compared)
        for name, norm in zip(names, norms, strict=False):  # no norms without reverse mode
            checks.finite_gradient(bool(np.isfinite(norm)), name)
        largest = max((n for n in norms if np.isfinite(n)), default=0.0)
        allowed = [self.eps**0.5 * n + 100 * self.eps * largest for n in norms]
        bad = {k for k, d in enumerate(apart) if np.isfinite(norms[k]) and not d <= allowed[k]}
        mixed = not self.whole and not deviation <= self.eps**0.5 * scale
        if bad or mixed:  # unless a move of a rounding unit does as much
            moved = [_moved(part, 8 * self.eps) for part in (leaves, x)]
            y2, others = self._together(moved[0], consts, moved[1], c)
            noise = 30 * float(np.max(np.abs(_host(y2) - outputs)))
            if mixed and not deviation <= noise:
                checks.independent(deviation / scale, 0)
            bad = {k for k in bad if not apart[k] <= 30 * _distance(others[k], gradients[k])}
        if not self.whole and len(outputs) > 1:
            for k in (0, -1):  # the same sample in other company
                equals = [_all_as(p, k) for p in x]
                same = _host(self._together(leaves, consts, equals, c)[0])[k]
                deviation = float(np.max(np.abs(same - outputs[k]))) / scale
                checks.independent(deviation, 64 * float(jnp.finfo(y.dtype).eps))
        return bad

    def _cotangent(self) -> Array:
        rng, (shape, dtype) = np.random.default_rng(0), (self.output.shape, self.output.dtype)
        c = rng.standard_normal(shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            c = c + 1j * rng.standard_normal(shape)
        return c.astype(dtype)


def one_by_one(traced: Traced) -> Pass:
    """The gradients of a function of one sample, mapped over samples."""

    def run(leaves: Any, consts: Any, x: Any, cotangent: Array) -> tuple[Array, list[Array]]:
        def outputs(leaves: Any) -> Array:
            return jax.vmap(lambda x: traced(consts, leaves, x))(x)

        y, back = jax.vjp(outputs, leaves)
        return y, back(cotangent)[0]

    return run


def _trials(own: Values, first: bool) -> Iterator[tuple[Values, bool]]:
    """Values to try, and whether they are the function's own."""
    if not any(map(is_traced, jax.tree.leaves(own))):
        yield own, True
    for positive in (False, True) if first else ():
        try:
            values = _drawn(own, positive)
        except NotImplementedError:  # nothing to draw for a key of this kind
            return
        yield values, False


def _drawn(own: Values, positive: bool) -> Values:
    """Other values of the same shapes: a gate that is closed now is open here.

    What f closes over is moved where the batch and its samples close over the same.
    """
    rng = np.random.default_rng(int(positive))
    shared = set(map(_identity, own.together)) & set(map(_identity, own.apart))
    moved: dict[Any, Array] = {}

    def constant(a: Array) -> Array:
        name = _identity(a)
        if not is_traced(a) and (name not in shared or not is_inexact(a)):
            return a
        if name not in moved:
            moved[name] = _like(a, rng, near=True, positive=positive)
        return moved[name]

    return Values(
        [_like(a, rng, near=positive, positive=positive) for a in own.leaves],
        list(map(constant, own.together)),
        list(map(constant, own.apart)),
        [_like(a, rng, near=not positive, positive=positive) for a in own.x],
    )


def _like(a: Array, rng: np.random.Generator, *, near: bool, positive: bool) -> Array:
    """Numbers of the same shape and dtype; near those of `a` where they are known and wanted."""
    known, shape, dtype = not is_traced(a), a.shape, a.dtype
    drawn: Any
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        key = jax.random.key(0)
        if not known and dtype != key.dtype:
            raise NotImplementedError
        return a if known else jax.random.split(key, shape)
    if not is_inexact(a):
        bounds = (0, 1)
        if known and a.size and dtype.kind != "b":
            bounds = int(np.min(a)), int(np.max(a))
        drawn = rng.integers(bounds[0], max(bounds[1], bounds[0] + 1), shape, endpoint=True)
    else:
        cplx = jnp.issubdtype(dtype, jnp.complexfloating)
        drawn = rng.standard_normal(shape)
        if cplx:
            drawn = drawn + 1j * rng.standard_normal(shape)
        if len(shape) > 1:  # as networks are initialised
            drawn = drawn / max(1, np.prod(shape[:-1])) ** 0.5
        if near and known:
            own = _host(a)
            drawn = np.where(
                own == 0, rng.uniform(0.2, 0.7, shape), own * rng.uniform(0.7, 1.3, shape)
            )
        if positive:
            drawn = np.abs(drawn) + (0 if near and known else 0.1)
    return _placed(drawn, a)


def _placed(numbers: Any, a: Array) -> Array:
    """Numbers in the dtype of an array, and where that is bound to."""
    made = np.asarray(numbers).astype(a.dtype)
    bound = isinstance(a, jax.Array) and not is_traced(a) and a.committed
    return jax.device_put(made, a.sharding) if bound else made


def _all_as(a: Array, k: int) -> Array:
    """Every sample as the one of that number."""
    if jnp.issubdtype(a.dtype, jax.dtypes.extended):  # keys, which NumPy cannot hold
        return jnp.broadcast_to(a[k], a.shape)
    return _placed(np.broadcast_to(np.asarray(a)[k], a.shape), a)


def _identity(a: Array) -> Any:
    if isinstance(a, np.ndarray):
        return a.shape, str(a.dtype), a.tobytes()
    return id(a)


def _moved(parts: Sequence[Array], by: float) -> list[Array]:
    """Numbers moved by so much of themselves."""
    rng = np.random.default_rng(2)

    def one(a: Array) -> Array:
        if not is_inexact(a):
            return a
        return _placed(_host(a) * (1 + by * rng.choice([-1, 1], a.shape)), a)

    return [one(a) for a in parts]


def _norm(a: Array) -> Array:
    """Of numbers whose squares may be too small or too large for their dtype."""
    wide = jnp.abs(a.astype(jnp.promote_types(a.dtype, jnp.float32)))
    largest = jnp.max(wide, initial=0)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.sqrt(jnp.sum((wide / unit) ** 2))


def _distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(np.ravel(_host(a) - _host(b))))


def _host(a: Array) -> Any:
    """On the host, in double precision."""
    cplx = jnp.issubdtype(a.dtype, jnp.complexfloating)
    return np.asarray(a).astype(np.complex128 if cplx else np.float64)
