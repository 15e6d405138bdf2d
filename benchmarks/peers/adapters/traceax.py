"""traceax: stochastic trace estimators on lineax operators, in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract import Counter, Peer, Run
from . import _jax_products
from ._jax_products import MODES, bare  # noqa: F401

PEER = Peer(
    "traceax",
    "traceax",
    "1.0.2",
    "https://github.com/mancusolab/traceax",
    "JAX",
    "estimators as Equinox modules on any lineax operator",
)
METHODS = {"trace": ("Hutchinson", "Hutch++", "XTrace", "XNysTrace")}


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed."""
    estimate = _trace(method, m, matrix)
    return _jax_products.run(estimate, matrix, mode, counter, (quantity, method, m))


def _trace(method: str, m: int, matrix: np.ndarray) -> Callable[..., Any]:
    import jax

    jax.config.update("jax_enable_x64", True)  # before samplers round their types
    import lineax as lx
    import traceax as tx

    made = {
        "Hutchinson": lambda s: tx.HutchinsonEstimator(s(tx.RademacherSampler)),
        "Hutch++": lambda s: tx.HutchPlusPlusEstimator(s(tx.RademacherSampler)),
        "XTrace": lambda s: tx.XTraceEstimator(s(tx.SphereSampler)),
        "XNysTrace": lambda s: tx.XNysTraceEstimator(s(tx.SphereSampler)),
    }
    estimator = made[method](lambda sampler: sampler(matrix.dtype))
    like = jax.ShapeDtypeStruct((len(matrix),), matrix.dtype)
    tags = {lx.positive_semidefinite_tag} if method == "XNysTrace" else set()

    def estimate(product: Callable[[Any], Any], key: Any, A: Any) -> Any:
        if A is None:
            operator = lx.FunctionLinearOperator(product, like, tags)
        else:
            operator = lx.MatrixLinearOperator(A, tags)
        value, told = estimator(key, operator, m)
        return (value, told["std.err"]) if told else value

    return estimate
