"""What each public function can do, marked once: for the tests, and for the documentation's table.

A function is marked by what it lacks; it has every other feature. `test_capabilities` calls each
function with each feature, and holds that what it lacks is refused; the documentation makes its
table of these marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import tracekit as tk
import tracekit_ntk as tkn

N, DIMS = 24, (4, 6)  # the size of A, and its tensor shape
LIBRARIES = ("NumPy", "PyTorch", "JAX", "array-api-strict")
FEATURES = (*LIBRARIES, "jax.jit", "gradient", "complex", "non-Hermitian")
NETWORK_FEATURES = ("PyTorch", "JAX", "jax.jit", "gradient", "complex")

NOTHING: Mapping[str, str] = MappingProxyType({})
HERMITIAN = {"non-Hermitian": "is of Hermitian operators"}
HOST = {"jax.jit": "decides as it goes", "gradient": "decides as it goes"}


class Case(NamedTuple):
    """A function, a small call that gives an array, and what the function lacks, with the reason.

    The call is of a matrix A and an rng, or of a network f(params, x), params, x and an rng.
    A function that looks at values to choose its way cannot look in compiled code, where it then
    gives another estimate.
    """

    name: str
    call: Callable[..., Any]
    lacks: Mapping[str, str] = NOTHING
    looks: bool = False


CASES = (
    Case("trace", lambda A, rng: tk.trace(A, rtol=0.2, rng=rng).value),
    Case("exact_trace", lambda A, rng: tk.exact_trace(A).value),
    Case("hutchinson", lambda A, rng: tk.hutchinson(A, 8, rng=rng).value),
    Case("hutchpp", lambda A, rng: tk.hutchpp(A, 9, rng=rng).value),
    Case("nahutchpp", lambda A, rng: tk.nahutchpp(A, 9, rng=rng).value),
    Case("xtrace", lambda A, rng: tk.xtrace(A, 8, rng=rng).value),
    Case("xnystrace", lambda A, rng: tk.xnystrace(A, 8, rng=rng).value, HERMITIAN),
    Case("one_sided", lambda L, rng: tk.one_sided(L, 8, rng=rng).value),
    Case(
        "spectral_summary",
        lambda A, rng: tk.spectral_summary(A, 8, rng=rng).frobenius_norm.value,
        looks=True,
    ),
    Case("frobenius_norm", lambda A, rng: tk.frobenius_norm(A, 8, rng=rng).value, looks=True),
    Case("effective_rank", lambda A, rng: tk.effective_rank(A, 8, rng=rng).value, looks=True),
    Case("inner", lambda A, rng: tk.inner(A, A * A, 8, rng=rng).value),
    Case("alignment", lambda A, rng: tk.alignment(A, A * A, 8, rng=rng).value),
    Case(
        "target_alignment",
        lambda K, rng: tk.target_alignment(K, K[:, 0], 8, rng=rng).value,
        looks=True,
    ),
    Case(
        "one_sided_summary", lambda L, rng: tk.one_sided_summary(L, 8, rng=rng).frobenius_norm.value
    ),
    Case("one_sided_alignment", lambda L, rng: tk.one_sided_alignment(L, L * L, 8, rng=rng).value),
    Case("diagonal", lambda A, rng: tk.diagonal(A, 8, rng=rng).value),
    Case("xdiag", lambda A, rng: tk.xdiag(A, 8, rng=rng).value),
    Case("xnysdiag", lambda A, rng: tk.xnysdiag(A, 8, rng=rng).value, HERMITIAN),
    Case("block_traces", lambda A, rng: tk.block_traces(A, DIMS, 1, 2, rng=rng).value),
    Case("partial_trace", lambda A, rng: tk.partial_trace(A, DIMS, 1, 2, rng=rng).value),
    Case(
        "partial_trace_operator",
        lambda A, rng: tk.exact_trace(tk.partial_trace_operator(A, DIMS, 1, 2, rng=rng)).value,
    ),
    Case(
        "trace_function",
        lambda A, rng: tk.trace_function(A, tk.functions.log, 18, rng=rng, depth=3).value,
        HERMITIAN,
    ),
    Case(
        "function_operator",
        lambda A, rng: tk.exact_trace(tk.function_operator(A, tk.functions.sqrt, 4)).value,
        HERMITIAN,
    ),
    Case("logdet", lambda A, rng: tk.logdet(A, 18, rng=rng).value, HERMITIAN, looks=True),
    Case(
        "trace_inverse", lambda A, rng: tk.trace_inverse(A, 18, rng=rng, depth=3).value, HERMITIAN
    ),
    Case(
        "effective_dimension",
        lambda A, rng: tk.effective_dimension(A, 0.1, 18, rng=rng, depth=3).value,
        HERMITIAN,
    ),
    Case(
        "estrada_index", lambda A, rng: tk.estrada_index(A, 18, rng=rng, depth=3).value, HERMITIAN
    ),
    Case("schatten_norm", lambda A, rng: tk.schatten_norm(A, 3, 18, rng=rng, depth=3).value),
    Case("nuclear_norm", lambda A, rng: tk.nuclear_norm(A, 18, rng=rng, depth=3).value),
    Case("entropy_rank", lambda A, rng: tk.entropy_rank(A, 18, rng=rng, depth=3).value),
    Case(
        "spectral_density",
        lambda A, rng: tk.spectral_density(A, 18, rng=rng).density(A[0, :], 0.5),
        HERMITIAN,
    ),
    Case("Tracker", lambda A, rng: tk.Tracker(12, rng=rng).update(A).trace.value, HERMITIAN | HOST),
)

NETWORK_CASES = (
    Case(
        "jacobian",
        lambda f, params, x, rng: (
            tk.frobenius_norm(tkn.jacobian(lambda p: f(p, x), params), 4, rng=rng).value
        ),
    ),
    Case(
        "ntk",
        lambda f, params, x, rng: (
            tk.hutchinson(tkn.ntk(lambda p: f(p, x), params), 4, rng=rng).value
        ),
    ),
    Case(
        "cross_ntk",
        lambda f, params, x, rng: (
            tk.hutchinson(
                tkn.cross_ntk(lambda p: f(p, x), lambda p: f(p, 2 * x), params), 4, rng=rng
            ).value
        ),
    ),
    Case(
        "parameter_gram",
        lambda f, params, x, rng: (
            tk.hutchinson(tkn.parameter_gram(lambda p: f(p, x), params), 4, rng=rng).value
        ),
    ),
    Case(
        "per_parameter",
        lambda f, params, x, rng: (
            tk.one_sided(tkn.per_parameter(lambda p: f(p, x), params)["U"], 4, rng=rng).value
        ),
    ),
    Case(
        "sample_ntk",
        lambda f, params, x, rng: tk.hutchinson(tkn.sample_ntk(f, params, x), 2, rng=rng).value,
    ),
    Case(
        "factored_ntk",
        lambda f, params, x, rng: tk.hutchinson(tkn.factored_ntk(f, params, x), 4, rng=rng).value,
    ),
    Case("kernel", lambda f, params, x, rng: tkn.kernel(f, params, x)),
    Case("ntk_trace", lambda f, params, x, rng: tkn.ntk_trace(f, params, x)),
    Case("ntk_diagonal", lambda f, params, x, rng: tkn.ntk_diagonal(f, params, x)),
    Case("ntk_norm", lambda f, params, x, rng: tkn.ntk_norm(f, params, x)),
    Case(
        "jacobian_contraction",
        lambda f, params, x, rng: tkn.kernel(f, params, x, implementation=tkn.jacobian_contraction),
    ),
    Case(
        "ntk_vector_products",
        lambda f, params, x, rng: tkn.kernel(f, params, x, implementation=tkn.ntk_vector_products),
    ),
)
