"""Products with a matrix in JAX, for all of its libraries: plain ones, and ones that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract import Answer, Counter, Run

MODES = ("JAX", "JAX, jitted")
_COMPILED: dict[tuple[object, ...], Callable[..., Any]] = {}


def array(matrix: np.ndarray) -> Any:
    """Return the matrix, in double precision if it is."""
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax.numpy.asarray(matrix)


def run(
    estimate: Callable[..., Any],
    matrix: np.ndarray,
    mode: str,
    counter: Counter | None,
    name: tuple[object, ...],
) -> Run:
    """Return a function of a seed from ``estimate(product, key, A)``: a value, or it and its error.

    A is the matrix itself, None where products are counted. What is compiled under a name is used
    again for another matrix of the same size.
    """
    import jax

    A = array(matrix)
    if counter is not None:
        product = _counting(A, counter)

        def counting(seed: int) -> Answer:
            answer = _answer(estimate(product, jax.random.key(seed), None))
            jax.effects_barrier()
            return answer

        return counting

    def plain(A: Any, key: Any) -> Any:
        return estimate(lambda v: A @ v, key, A)

    if mode == "JAX, jitted":
        made = _COMPILED.setdefault((*name, matrix.shape, matrix.dtype), jax.jit(plain))
    else:
        made = plain
    return lambda seed: _answer(made(A, jax.random.key(seed)))


def _answer(found: Any) -> Answer:
    value, error = found if isinstance(found, tuple) else (found, None)
    return Answer(np.asarray(value), None if error is None else 1.96 * float(error))


def _counting(A: Any, counter: Counter) -> Callable[[Any], Any]:
    """Return the product with a vector; each of a batch counts, and so does the transpose."""
    import jax
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    primitive = Primitive("counted_product")

    def product(matrix: Any, block: Any) -> Any:
        counter.add(block.shape)
        return matrix @ block

    def called(matrix: Any, block: Any) -> Any:
        like = jax.ShapeDtypeStruct(block.shape, matrix.dtype)
        return jax.pure_callback(
            lambda *given: product(*map(np.asarray, given)), like, matrix, block
        )

    def batched(given: Any, axes: Any) -> Any:
        matrix, block = given
        columns = jax.numpy.moveaxis(block, axes[1], -1)
        found = primitive.bind(matrix, columns.reshape(len(matrix), -1))
        return found.reshape(columns.shape), columns.ndim - 1

    def transposed(cotangent: Any, matrix: Any, _: Any) -> Any:
        return None, primitive.bind(matrix.T, cotangent)

    primitive.def_impl(product)
    primitive.def_abstract_eval(lambda matrix, block: block.update(dtype=matrix.dtype))
    batching.primitive_batchers[primitive] = batched
    ad.primitive_transposes[primitive] = transposed
    mlir.register_lowering(primitive, mlir.lower_fun(called, multiple_results=False))
    return lambda v: primitive.bind(A, v)


def bare(matrix: np.ndarray, m: int, mode: str) -> Callable[[], Any]:
    """Return the product with a block of m columns."""
    import jax

    A = array(matrix)
    X = array(np.random.default_rng(0).standard_normal((len(matrix), m)))
    product = jax.jit(lambda A, X: A @ X)
    return lambda: product(A, X).block_until_ready()
