"""What each public function can do, marked once: for the tests, and for the documentation's table.

A function is marked by what it lacks; it has every other feature. `test_capabilities` calls each
function with each feature, and holds that what it lacks is refused; the documentation makes its
table of these marks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import tracekit as tk
import tracekit_ntk as tkn

N, DIMS = 24, (4, 6)  # the size of A, and its tensor shape
LIBRARIES = ("NumPy", "PyTorch", "JAX", "array-api-strict")
FEATURES = (*LIBRARIES, "jax.jit", "gradient", "complex", "non-Hermitian")
DISTRIBUTED = ("JAX sharded", "torch processes", "dask", "MPI rows")  # held by tests/distributed
NETWORK_FEATURES = ("PyTorch", "JAX", "jax.jit", "gradient", "complex")

NOTHING: Mapping[str, str] = MappingProxyType({})
HERMITIAN = {"non-Hermitian": "is of Hermitian operators"}
HOST = {"jax.jit": "decides as it goes", "gradient": "decides as it goes"}
OPERATOR = {
    "cost": "products are spent where it is applied",
    "error": "is an operator, applied without an error",
    "pickle": "holds the operator that it was given",
}
OF_L = {"factor": "is given L itself"}
RATIO = {"zero": "is 0 / 0, and refused"}
ENTRIES = dict.fromkeys(("seed", "cost"), "reads the entries of a matrix")
POSITIVE = {"zero": "is of positive definite operators"}
OF_ENERGIES = {"scale": "exponentials have no unit"}
OF_A_VECTOR = dict.fromkeys(("torch processes", "dask", "MPI rows"), "is given a whole y")
OF_A_CURVE = {
    "error": "is a function, of which one point is read",
    "scale": "the width of the curve is told in units of A",
    "zero": "reads the points from A",
    "integers": "reads the points from A",
}


def alone(A: Any) -> tuple[Any, ...]:
    return (A,)


def beside_its_square(A: Any) -> tuple[Any, ...]:
    return A, A * A


def beside_a_column(A: Any) -> tuple[Any, ...]:
    return A, A[:, 0]


def value(found: Any, A: Any) -> Any:
    return found.value


class Case(NamedTuple):
    """A function, how it is called, and what it lacks, with the reason.

    ``run(*operands(A), budget, rng=rng)`` gives a record, of which ``read`` takes an array. What it
    lacks are features of the table below, or laws of `tests/laws`. A function that looks at values
    to choose its way cannot look in compiled code, where it then gives another estimate.
    ``scaled(v, c)`` is what comes of c A where v comes of A.
    """

    name: str
    run: Callable[..., Any]
    budget: int
    lacks: Mapping[str, str] = NOTHING
    looks: bool = False
    blocks: bool = False  # takes chunk_size
    operands: Callable[[Any], tuple[Any, ...]] = alone
    read: Callable[[Any, Any], Any] = value
    scaled: Callable[[Any, float], Any] = operator.mul

    def call(self, A: Any, rng: Any) -> Any:
        """The numbers of a small call."""
        return self.read(self.run(*self.operands(A), self.budget, rng=rng), A)


def same(v: Any, c: float) -> Any:
    return v


def squared(v: Any, c: float) -> Any:
    return v * c * c


def cubed(v: Any, c: float) -> Any:
    return v * c**3


def shifted(v: Any, c: float) -> Any:
    return v + N * math.log(c)


CASES = (
    Case("trace", lambda A, m, rng: tk.trace(A, rtol=0.2, num_matvecs=m, rng=rng), N, ENTRIES),
    Case("exact_trace", lambda A, m, rng, **more: tk.exact_trace(A, **more), N,
         {"seed": "draws nothing", "budget": "has none"}, blocks=True),
    Case("hutchinson", tk.hutchinson, 8, blocks=True),
    Case("hutchpp", tk.hutchpp, 9, blocks=True),
    Case("nahutchpp", tk.nahutchpp, 9, {"zero": "signs that all find nothing may be chance"},
         blocks=True),
    Case("xtrace", tk.xtrace, 8, blocks=True),
    Case("xnystrace", tk.xnystrace, 8, HERMITIAN, blocks=True),
    Case("one_sided", tk.one_sided, 8, OF_L, blocks=True, scaled=squared),
    Case("noisy_trace", lambda A, m, rng, **more: tk.noisy_trace(
         lambda j: (1 + j) * A, m // 2, 2, rng=rng, **more), 8,
         {"budget": "counts probes and batches", "zero": "batches that all agree tell no error"},
         blocks=True),
    Case("spectral_summary", lambda A, m, rng: tk.spectral_summary(A, m, rng=rng).frobenius_norm,
         8, RATIO, looks=True),
    Case("frobenius_norm", tk.frobenius_norm, 8, looks=True),
    Case("effective_rank", tk.effective_rank, 8, RATIO, looks=True, scaled=same),
    Case("inner", tk.inner, 8, operands=beside_its_square, scaled=cubed),
    Case("alignment", tk.alignment, 8, RATIO, operands=beside_its_square, scaled=same),
    Case("target_alignment", tk.target_alignment, 8, RATIO, looks=True, operands=beside_a_column,
         scaled=same),
    Case("one_sided_summary", lambda L, m, rng: tk.one_sided_summary(L, m, rng=rng).frobenius_norm,
         8, OF_L | RATIO, scaled=squared),
    Case("one_sided_alignment", tk.one_sided_alignment, 8, OF_L | RATIO,
         operands=beside_its_square, scaled=same),
    Case("diagonal", tk.diagonal, 8, blocks=True),
    Case("xdiag", tk.xdiag, 8, blocks=True),
    Case("xnysdiag", tk.xnysdiag, 8, HERMITIAN, blocks=True),
    Case("block_traces", lambda A, m, **more: tk.block_traces(A, DIMS, 1, m, **more), 2,
         blocks=True),
    Case("partial_trace", lambda A, m, **more: tk.partial_trace(A, DIMS, 1, m, **more), 2,
         {"budget": "counts probes, of one product for every kept index each"}, blocks=True),
    Case("partial_trace_operator", lambda A, m, **more: tk.exact_trace(
         tk.partial_trace_operator(A, DIMS, 1, m, **more)), 2, OPERATOR, blocks=True),
    Case("trace_function", lambda A, m, rng: tk.trace_function(
         A, tk.functions.log, m, rng=rng, depth=3, deflate=0), 12, HERMITIAN | POSITIVE,
         scaled=shifted),
    Case("function_operator", lambda A, m, rng: tk.exact_trace(
         tk.function_operator(A, tk.functions.sqrt, m)), 4,
         HERMITIAN | OPERATOR | {"seed": "draws nothing"}, scaled=lambda v, c: v * math.sqrt(c)),
    Case("logdet", partial(tk.logdet, depth=3), 12, HERMITIAN | POSITIVE, looks=True,
         scaled=shifted),
    Case("trace_inverse", partial(tk.trace_inverse, depth=3), 12, HERMITIAN | POSITIVE,
         scaled=operator.truediv),
    Case("effective_dimension", lambda A, m, rng: tk.effective_dimension(
         A, 0.1, m, rng=rng, depth=3), 12, HERMITIAN | {"scale": "has a ridge, in units of A"}),
    Case("estrada_index", partial(tk.estrada_index, depth=3), 12, HERMITIAN | {
         "scale": "exponentials have no unit", "zero": "the exponential of zero is one"}),
    Case("schatten_norm", lambda A, m, rng: tk.schatten_norm(A, 3, m, rng=rng, depth=3), 12),
    Case("nuclear_norm", partial(tk.nuclear_norm, depth=3), 12),
    Case("entropy_rank", partial(tk.entropy_rank, depth=3), 12, scaled=same),
    Case("spectral_run", lambda A, m, rng: tk.spectral_run(A, m, rng=rng, depth=3).trace(
         tk.functions.log), 12, HERMITIAN | POSITIVE | {
             "scale": "judges its depth by the size of the logarithm, which units change"},
         looks=True, scaled=shifted),
    Case("gcv", lambda A, y, m, rng: tk.gcv(A, y, [0.3, 3.0], m, rng=rng, depth=3), 12,
         HERMITIAN | OF_A_VECTOR | {"scale": "has ridges, in units of A"},
         operands=beside_a_column),
    Case("reml", lambda A, y, m, rng: tk.reml(A, y, [0.3, 3.0], m, rng=rng, depth=3), 12,
         HERMITIAN | OF_A_VECTOR | {
             "scale": "has ridges, in units of A", "zero": "is of y that is not 0"},
         operands=beside_a_column),
    Case("expectation", lambda H, B, m, rng: tk.expectation(H, 0.5, B, m, rng=rng, depth=3), 12,
         HERMITIAN | OF_ENERGIES | {"cost": "counts products of the Hamiltonian alone"},
         looks=True, operands=beside_its_square),
    Case("thermodynamics", lambda H, m, rng: tk.thermodynamics(
         H, [0.1, 0.5], m, rng=rng, depth=3), 12, HERMITIAN | OF_ENERGIES | {
             "error": "is four estimates, of which one is read"},
         read=lambda found, A: found.energy.value),
    Case("marginal_variances", partial(tk.marginal_variances, depth=3), 12, HERMITIAN | POSITIVE,
         scaled=operator.truediv),
    Case("gibbs_density_matrix", lambda H, m, rng: tk.gibbs_density_matrix(
         H, 0.5, DIMS, 1, m, rng=rng, depth=3), 12, HERMITIAN | OF_ENERGIES | {
             "zero": "mixes all states of the zero operator"} | dict.fromkeys(
                 ("torch processes", "dask", "MPI rows"), "pairs rows apart")),
    Case("spectral_density", tk.spectral_density, 12, HERMITIAN | OF_A_CURVE,
         read=lambda found, A: found.density(A[0, :], 0.5)),
    Case("Tracker", lambda A, m, rng: tk.Tracker(m, rng=rng).update(A).trace, 12,
         HERMITIAN | HOST | RATIO | {
             "seed": "its first step is exact", "budget": "is of the steps after the first"}),
)  # fmt: skip


class NetworkCase(NamedTuple):
    """A function, a small call of f(params, x), params, x and an rng, and what it lacks."""

    name: str
    call: Callable[..., Any]
    lacks: Mapping[str, str] = NOTHING


LOSS = tkn.losses.softmax_cross_entropy
REAL_OUTPUTS = {"complex": "losses are of real outputs"}
CHOSEN = "batches are chosen by drawn numbers"


def states(f: Callable[..., Any], params: Any, x: Any) -> tkn.StateKernel:
    """A network as what multiplies a state, run for two steps."""
    return tkn.state_kernel(
        lambda p, h, x: h + h * f(p, x), params, x.reshape(3, 2, 4), x[:3, :3], initial_state=True
    )


def inwards(f: Callable[..., Any], params: Any) -> Callable[[Any], Any]:
    """A network as a field on the space of its samples."""
    return lambda x: f(params, x) @ params["V"].T @ params["U"].T


OF_REAL_INPUTS = {"complex": "differentiates by real inputs"}

NETWORK_CASES = (
    NetworkCase(
        "jacobian",
        lambda f, params, x, rng: (
            tk.frobenius_norm(tkn.jacobian(lambda p: f(p, x), params), 4, rng=rng).value
        ),
    ),
    NetworkCase(
        "ntk",
        lambda f, params, x, rng: (
            tk.hutchinson(tkn.ntk(lambda p: f(p, x), params), 4, rng=rng).value
        ),
    ),
    NetworkCase(
        "cross_ntk",
        lambda f, params, x, rng: (
            tk.hutchinson(
                tkn.cross_ntk(lambda p: f(p, x), lambda p: f(p, 2 * x), params), 4, rng=rng
            ).value
        ),
    ),
    NetworkCase(
        "parameter_gram",
        lambda f, params, x, rng: (
            tk.hutchinson(tkn.parameter_gram(lambda p: f(p, x), params), 4, rng=rng).value
        ),
    ),
    NetworkCase(
        "per_parameter",
        lambda f, params, x, rng: (
            tk.one_sided(tkn.per_parameter(lambda p: f(p, x), params)["U"], 4, rng=rng).value
        ),
    ),
    NetworkCase(
        "sample_ntk",
        lambda f, params, x, rng: tk.hutchinson(tkn.sample_ntk(f, params, x), 2, rng=rng).value,
    ),
    NetworkCase(
        "factored_ntk",
        lambda f, params, x, rng: tk.hutchinson(tkn.factored_ntk(f, params, x), 4, rng=rng).value,
    ),
    NetworkCase(
        "state_kernel",
        lambda f, params, x, rng: tk.hutchinson(states(f, params, x).kernel, 4, rng=rng).value,
    ),
    NetworkCase("kernel", lambda f, params, x, rng: tkn.kernel(f, params, x)),
    NetworkCase("project", lambda f, params, x, rng: tkn.project(f, params, x, 6, rng=rng)),
    NetworkCase(
        "projected_kernel",
        lambda f, params, x, rng: tkn.projected_kernel(f, params, x, dim=6, rng=rng).value,
    ),
    NetworkCase("ntk_trace", lambda f, params, x, rng: tkn.ntk_trace(f, params, x)),
    NetworkCase("ntk_diagonal", lambda f, params, x, rng: tkn.ntk_diagonal(f, params, x)),
    NetworkCase("ntk_norm", lambda f, params, x, rng: tkn.ntk_norm(f, params, x)),
    NetworkCase(
        "ggn",
        lambda f, params, x, rng: tk.hutchinson(tkn.ggn(f, params, x, LOSS), 4, rng=rng).value,
        REAL_OUTPUTS,
    ),
    NetworkCase(
        "fisher",
        lambda f, params, x, rng: (
            tk.hutchinson(tkn.fisher(f, params, x, LOSS, 6 * [1]), 4, rng=rng).value
        ),
        REAL_OUTPUTS,
    ),
    NetworkCase(
        "ggn_trace", lambda f, params, x, rng: tkn.ggn_trace(f, params, x, LOSS), REAL_OUTPUTS
    ),
    NetworkCase(
        "ggn_diagonal",
        lambda f, params, x, rng: tkn.ggn_diagonal(f, params, x, LOSS)["U"],
        REAL_OUTPUTS,
    ),
    NetworkCase(
        "hessian",
        lambda f, params, x, rng: (
            tk.hutchinson(tkn.hessian(lambda p: LOSS(f(p, x), 6 * [1]), params), 4, rng=rng).value
        ),
        REAL_OUTPUTS,
    ),
    NetworkCase(
        "hessian_trace",
        lambda f, params, x, rng: tkn.hessian_trace(f, params, x, 6 * [1], LOSS, 4, rng=rng).value,
        REAL_OUTPUTS,
    ),
    NetworkCase(
        "minibatch_hessian_trace",
        lambda f, params, x, rng: (
            tkn.minibatch_hessian_trace(f, params, [(x, 6 * [1])], LOSS, 4, rng=rng).value
        ),
        REAL_OUTPUTS | {"jax.jit": CHOSEN, "gradient": CHOSEN},
    ),
    NetworkCase(
        "jacobian_contraction",
        lambda f, params, x, rng: tkn.kernel(f, params, x, implementation=tkn.jacobian_contraction),
    ),
    NetworkCase(
        "ntk_vector_products",
        lambda f, params, x, rng: tkn.kernel(f, params, x, implementation=tkn.ntk_vector_products),
    ),
    NetworkCase(
        "divergence",
        lambda f, params, x, rng: tkn.divergence(inwards(f, params), x, 2, rng=rng).value,
        OF_REAL_INPUTS,
    ),
    NetworkCase(
        "laplacian",
        lambda f, params, x, rng: (
            tkn.laplacian(lambda x: (f(params, x) ** 2).sum(1), x, 2, rng=rng).value
        ),
        OF_REAL_INPUTS,
    ),
    NetworkCase(
        "batch_mean",
        lambda f, params, x, rng: (
            tkn.batch_mean(tkn.divergence(inwards(f, params), x, 2, rng=rng)).value
        ),
        OF_REAL_INPUTS,
    ),
)
