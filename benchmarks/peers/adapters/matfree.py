"""matfree: differentiable matrix-free linear algebra in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..contract import Counter, Peer, Run
from . import _jax_products
from ._jax_products import MODES, bare  # noqa: F401

PEER = Peer(
    "matfree",
    "matfree",
    "0.6.3",
    "https://github.com/pnkraemer/matfree",
    "JAX",
    "squared row norms with leave-one-out; products of operators on pytrees; gradients "
    "through Lanczos, Arnoldi and bidiagonalisation by adjoints; LSMR; partial Cholesky "
    "preconditioners; functions of nonsymmetric matrices",
)
DEPTHS = (10, 20, 40)
METHODS = {
    "trace": ("Hutchinson", "XTrace", "XNysTrace"),
    "diagonal": ("Hutchinson", "XDiag", "XNysDiag"),
    "norm": ("mean of |A x|^2", "XSymRowNorm"),
    "logdet": tuple(f"SLQ, depth {depth}" for depth in DEPTHS),
}


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed."""
    like = _jax_products.array(np.ones(len(matrix), matrix.dtype))
    makers = {"trace": _trace, "diagonal": _diagonal, "norm": _norm, "logdet": _logdet}
    estimate = makers[quantity](method, m, like)
    name = (quantity, method, m)
    return _jax_products.run(lambda f, key, _: estimate(f, key), matrix, mode, counter, name)


def _trace(method: str, m: int, like: Any) -> Callable[..., Any]:
    from matfree import stochtrace as st

    if method == "Hutchinson":
        sampler = st.sampler_signs(like, num=m)
        return st.estimator_monte_carlo_mean_and_sem(st.monte_carlo_trace(), sampler)
    if method == "XTrace":
        sampler = st.sampler_sphere(like, num=m // 2)
        return st.estimator_leave_one_out_mean_and_sem(st.leave_one_out_xtrace(), sampler)
    sampler = st.sampler_sphere(like, num=m)
    return st.estimator_leave_one_out_mean_and_sem(st.leave_one_out_xnystrace(), sampler)


def _diagonal(method: str, m: int, like: Any) -> Callable[..., Any]:
    from matfree import stochtrace as st

    if method == "Hutchinson":
        return st.estimator_monte_carlo(st.monte_carlo_diagonal(), st.sampler_signs(like, num=m))
    if method == "XDiag":
        return st.estimator_leave_one_out(
            st.leave_one_out_xdiag(), st.sampler_signs(like, num=m // 2)
        )
    return st.estimator_leave_one_out(st.leave_one_out_xnysdiag(), st.sampler_signs(like, num=m))


def _norm(method: str, m: int, like: Any) -> Callable[..., Any]:
    from matfree import stochtrace as st

    if method == "XSymRowNorm":
        rows = st.estimator_leave_one_out(
            st.leave_one_out_xsymrownorms_squared(), st.sampler_normal(like, num=m // 2)
        )
        return lambda product, key: rows(product, key).sum() ** 0.5
    square = st.estimator_monte_carlo(
        st.monte_carlo_frobeniusnorm_squared(), st.sampler_signs(like, num=m)
    )
    return lambda product, key: square(product, key) ** 0.5


def _logdet(method: str, m: int, like: Any) -> Callable[..., Any]:
    from matfree import decomp, funm
    from matfree import stochtrace as st

    depth = int(method.split()[-1])
    integrand = funm.monte_carlo_funm_sym_logdet(decomp.tridiag_sym(depth))
    sampler = st.sampler_signs(like, num=m // depth)
    return st.estimator_monte_carlo_mean_and_sem(integrand, sampler)
