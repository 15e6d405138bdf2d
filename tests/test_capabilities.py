"""Each public function with each feature it is marked with, and refused what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from capabilities import CASES, FEATURES, NETWORK_CASES, NETWORK_FEATURES, Case, N
from conftest import library, matrix

import tracekit as tk
import tracekit_ntk as tkn

SEED = 3
KINDS = {"complex": "complex psd", "non-Hermitian": "real"}
NOT_ESTIMATED = {  # records, ways to make operators or change them, and what has tests of its own
    *("Comparison", "Estimate", "LinearOperator", "NotFiniteError", "RowArray", "RowLayout"),
    *("Preconditioner", "SpectralDensity", "incomplete_cholesky"),
    *("low_rank_plus_diagonal", "pivoted_cholesky"),
    *("Thermodynamics", "argmin", "entanglement_entropy"),
    *("reduced_density_matrix",),
    *("SpectralRun", "SpectralSummary", "Tracked", "as_operator", "block_diagonal", "centered"),
    *("compare", "counted", "difference_basis", "functions", "gram", "merge", "probes"),
    *("progress",),
    *("quadrature", "range_basis", "resume", "testing", "vstack", "with_dims"),
    *("difference", "linear_combination", "ratio"),
}
NOT_NUMBERS = {
    *("difference_basis", "explain", "functional", "jacobian_from_pair", "kernel_matrix"),
    *("StateKernel", "losses", "structured_derivatives", "track", "track_module"),
}


def pairs(cases: tuple[Case, ...], features: tuple[str, ...]) -> Any:
    """Every case with every feature, named."""
    return pytest.mark.parametrize(
        ("case", "feature"),
        [pytest.param(c, f, id=f"{c.name}-{f}") for c in cases for f in features],
    )


def positive(kind: str = "psd") -> np.ndarray:
    """A well-conditioned positive definite matrix, or one that is not Hermitian."""
    return matrix(kind, N) + 0.5 * np.eye(N)


def on(name: str, case: Case, A: np.ndarray, *, compiled: bool = False) -> np.ndarray:
    """The numbers of a case in one library."""
    lib = library(name)
    f = lambda A: case.call(A, SEED)  # noqa: E731
    if compiled:
        f = transforms().jit(f)
    found = f(lib.array(A))
    assert lib.at_home(found)
    return lib.numpy(found)


def gradients(case: Case, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of the sum of a case's numbers, in JAX and in PyTorch."""
    torch, jax = library("torch"), library("jax")
    g = transforms().jit(transforms().grad(lambda A: jax.xp.sum(case.call(A, SEED))))
    leaf = torch.array(A).requires_grad_()
    torch.xp.sum(case.call(leaf, SEED)).backward()
    return jax.numpy(g(jax.array(A))), torch.numpy(leaf.grad)


# functions of networks, exact or of factors, through which PyTorch's backward goes
EXACT = {"kernel", "ntk_trace", "ntk_diagonal", "ntk_norm", "ggn_trace", "ggn_diagonal"}
EXACT |= {"project", "projected_kernel"}
EXACT |= {"divergence", "laplacian", "batch_mean"}


def transforms() -> Any:
    """What has jit and grad."""
    return pytest.importorskip("jax", reason="JAX is not installed")


def slope(call: Callable[[float], Any], step: float = 1e-5) -> float:
    """A derivative by central differences."""
    return float(np.sum(call(step) - call(-step))) / (2 * step)


def show(case: Case, feature: str) -> None:
    """Hold that a case has a feature: the numbers are those of NumPy with the same seed."""
    A = positive(KINDS.get(feature, "psd"))
    if feature == "gradient":
        of_jax, of_torch = gradients(case, A)
        assert np.all(np.isfinite(of_jax))
        assert np.max(np.abs(of_jax)) > 0
        along = np.sum(of_torch * A)
        if not case.looks or case.name == "logdet":
            np.testing.assert_allclose(of_torch, of_jax, rtol=1e-6, atol=1e-8)
        if case.name == "logdet":  # whose gradient is an estimate of its own
            assert along == pytest.approx(N, rel=0.2)
        else:
            assert along == pytest.approx(
                slope(lambda t: on("numpy", case, (1 + t) * A)), rel=1e-5, abs=1e-6
            )
        return
    expected = on("numpy", case, A)
    assert np.all(np.isfinite(expected))
    others = {"PyTorch": "torch", "JAX": "jax:1", "array-api-strict": "strict:device1"}
    if feature == "jax.jit":
        found = on("jax:1", case, A, compiled=True)
    elif feature in KINDS:
        found = on("torch", case, A)
    else:
        found = on(others.get(feature, "numpy-readonly"), case, A)
    another = case.looks and feature == "jax.jit"
    np.testing.assert_allclose(found, expected, rtol=0.1 if another else 1e-8, atol=1e-10)


@pairs(CASES, FEATURES)
def test_estimators(case: Case, feature: str) -> None:
    if feature in case.lacks:
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            show(case, feature)
    else:
        show(case, feature)


def network(lib: Any, *, cplx: bool = False) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    """A network of one hidden layer, its parameters and a batch, the same in every library."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        X = rng.standard_normal(shape)
        return lib.array(X + 1j * rng.standard_normal(shape) if cplx else X)

    params = {"U": draw(4, 5), "V": draw(5, 3)}
    return lambda params, x: lib.xp.tanh(x @ params["U"]) @ params["V"], params, draw(6, 4)


def show_of_network(case: Case, feature: str) -> None:
    """Hold that a case has a feature: the numbers are those of PyTorch with the same seed."""
    torch, jax = library("torch"), library("jax:1")
    if feature == "gradient":
        f, params, x = network(jax)
        total = lambda params: jax.xp.sum(case.call(f, params, x, SEED))  # noqa: E731
        g = transforms().jit(transforms().grad(total))(params)
        along = sum(float(jax.xp.sum(g[name] * leaf)) for name, leaf in params.items())
        compiled = transforms().jit(total)
        scaled = lambda t: compiled({name: (1 + t) * leaf for name, leaf in params.items()})  # noqa: E731
        assert along == pytest.approx(slope(scaled), rel=1e-6)
        if case.name in EXACT:
            f, params, x = network(torch)
            leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
            torch.xp.sum(case.call(f, leaves, x, SEED)).backward()
            here = sum(float((leaf.grad * leaf.detach()).sum()) for leaf in leaves.values())
            assert here == pytest.approx(along, rel=1e-8)
        return
    cplx = feature == "complex"
    expected = torch.numpy(case.call(*network(torch, cplx=cplx), SEED))
    assert np.all(np.isfinite(expected))
    if feature == "PyTorch":
        f, params, x = network(torch)
        for leaf in params.values():
            leaf.requires_grad_()
        found = case.call(f, params, x, SEED)
    elif feature == "jax.jit":
        f, params, x = network(jax)
        found = transforms().jit(lambda params, x: case.call(f, params, x, SEED))(params, x)
    else:
        found = case.call(*network(jax, cplx=cplx), SEED)
    lib = torch if feature == "PyTorch" else jax
    assert lib.at_home(found)
    found = lib.numpy(found)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pairs(NETWORK_CASES, NETWORK_FEATURES)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_kernels_of_networks(case: Case, feature: str) -> None:
    if feature in case.lacks:
        with pytest.raises((TypeError, ValueError)):
            show_of_network(case, feature)
    else:
        show_of_network(case, feature)


def test_no_function_is_left_out() -> None:
    assert {case.name for case in CASES} == set(tk.__all__) - NOT_ESTIMATED
    assert {case.name for case in NETWORK_CASES} == set(tkn.__all__) - NOT_NUMBERS
