"""Traces of f of sparse matrices: by probing, and exactly by a factorisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import library, matrix

import tracekit as tk
from tracekit._matrix_functions.sparse import factorisation_cost

T = sp.diags_array([-np.ones(19), 2 * np.ones(20), -np.ones(19)], offsets=[-1, 0, 1])
GRID = sp.csr_array(
    sp.kron(T, sp.eye_array(20)) + sp.kron(sp.eye_array(20), T) + 0.5 * sp.eye_array(400)
)
INVERSE = np.linalg.inv(GRID.toarray())
TRACE = np.trace(INVERSE)
COLOURED = tk.probes.coloured(tk.probes.grid((20, 20)))


def complex_grid() -> sp.csr_array:
    K = sp.diags_array([0.2j * np.ones(399)], offsets=[1])
    return sp.csr_array(GRID + K + K.conj().T)


# --- probing --------------------------------------------------------------------------------------


def test_errors_are_those_of_pairs_of_one_colour_and_intervals_cover() -> None:
    colours = COLOURED.plan(400, 26, tk.probes.Source(0, tk.as_operator(GRID))).colours
    same = (colours[:, None] == colours) & ~np.eye(400, dtype=bool)
    errors, hits = [], []
    for seed in range(60):
        found = tk.trace_inverse(GRID, 340, rng=seed, depth=13, probes=COLOURED)
        low, high = found.confidence_interval()
        errors.append(float(found) - TRACE)
        hits.append(low <= TRACE <= high)
    ours = np.sqrt(np.mean(np.square(errors)))
    assert abs(ours / np.sqrt(np.sum(INVERSE**2 * same)) - 1) < 0.25  # of two draws
    assert np.mean(hits) >= 0.9


def test_a_depth_is_found_and_what_is_spent_is_claimed() -> None:
    A, counter = tk.counted(GRID)
    found = tk.trace_inverse(A, 390, rng=0, probes=COLOURED)
    assert found.num_matvecs == counter.total <= 390
    assert found.converged
    assert abs(float(found) - TRACE) < 4 * found.standard_error
    assert found.kept.quadrature < 0.2 * found.standard_error


def test_forms_at_a_depth_are_those_of_the_inverse() -> None:
    """With enough steps the same as solving for each vector."""
    B = INVERSE
    law = tk.probes.coloured(tk.probes.grid((20, 20)), 1)
    found = tk.trace_inverse(GRID, 260, rng=3, depth=60, probes=law)
    expected = tk.hutchinson(B, 4, rng=3, probes=law)
    assert found.num_matvecs == 240
    assert np.isclose(found.value, expected.value, rtol=1e-9)
    assert np.isclose(found.kept.monte_carlo, expected.standard_error, rtol=1e-6)
    assert found.dof == expected.dof
    assert "20 of 260" in found.reason


@pytest.mark.parametrize(
    "law", [tk.probes.hierarchical((20, 20)), tk.probes.kronecker((20, 20))], ids=["levels", "kron"]
)
def test_other_laws_of_draws(law: Any) -> None:
    A, counter = tk.counted(GRID)
    found = tk.trace_function(A, tk.functions.exp, 300, rng=0, probes=law, depth=20)
    exact = np.sum(np.exp(np.linalg.eigvalsh(GRID.toarray())))
    assert found.num_matvecs == counter.total <= 300
    assert abs(float(found) - exact) < 5 * float(found.standard_error) + 1e-9 * exact


def test_other_libraries_and_complex_matrices() -> None:
    D = complex_grid().toarray()
    expected = tk.trace_inverse(D, 200, rng=0, depth=12, probes=COLOURED)
    lib = library("torch")
    found = tk.trace_inverse(lib.array(D), 200, rng=0, depth=12, probes=COLOURED)
    assert np.isclose(float(found), float(expected), rtol=1e-4)
    assert abs(float(expected) - np.trace(np.linalg.inv(D)).real) < 6 * expected.standard_error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_matvecs": 20}, "colours"),
        ({"num_matvecs": 100, "depth": 20}, "colours"),
        ({"num_matvecs": 200, "deflate": 10}, "deflate"),
        ({"num_matvecs": 200, "quadrature": tk.quadrature.chebyshev()}, "Chebyshev"),
    ],
)
def test_what_draws_do_not_take(options: dict[str, Any], told: str) -> None:
    law = tk.probes.coloured(tk.probes.grid((20, 20)), 4)
    A, counter = tk.counted(GRID)
    with pytest.raises(ValueError, match=told):
        tk.trace_inverse(A, **options, probes=law)
    assert counter.total == 0


# --- factorisations -------------------------------------------------------------------------------


@pytest.mark.parametrize("A", [GRID, complex_grid(), sp.csr_array([[2.0]])], ids=["r", "c", "1"])
@pytest.mark.parametrize("form", ["csr", "coo", "dia"])
def test_a_factorisation_is_exact(A: Any, form: str) -> None:
    D, A = A.toarray(), A.asformat(form)
    determinant, inverse = tk.logdet(A, exact=True), tk.trace_inverse(A, exact=True)
    assert np.isclose(determinant.value, np.linalg.slogdet(D)[1], rtol=1e-12)
    assert np.isclose(inverse.value, np.trace(np.linalg.inv(D)).real, rtol=1e-12)
    for found in (determinant, inverse):
        assert (found.num_matvecs, float(found.standard_error)) == (0, 0)
        assert "factorisation" in found.reason


def test_of_general_matrices_the_modulus() -> None:
    A = sp.csr_array(matrix("real", 20))
    found = tk.logdet(A, exact=True, hermitian=False)
    assert np.isclose(found.value, np.linalg.slogdet(A.toarray())[1], rtol=1e-10)
    swapped = sp.csr_array([[0.0, 3.0], [1.0, 0.0]])
    assert np.isclose(tk.logdet(swapped, exact=True, hermitian=False).value, np.log(3.0))


def test_single_precision_stays() -> None:
    found = tk.logdet(GRID.astype(np.float32), exact=True)
    assert found.value.dtype == np.float32
    assert tk.logdet(sp.csr_array(np.diag([2, 3])), exact=True).value.dtype == np.float64


def singular() -> sp.csr_array:
    """The Laplacian of a ring, whose last pivot is rounding."""
    L = 2 * np.eye(30) - np.roll(np.eye(30), 1, axis=0) - np.roll(np.eye(30), -1, axis=0)
    return sp.csr_array(L / 3)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: tk.logdet(GRID.toarray(), exact=True), TypeError, "entries"),
        (lambda: tk.logdet(tk.as_operator(GRID), exact=True), TypeError, "entries"),
        (lambda: tk.logdet(GRID[:3], exact=True), ValueError, "square"),
        (lambda: tk.logdet(GRID - sp.eye_array(400), exact=True), ValueError, "positive definite"),
        (lambda: tk.logdet(sp.csr_array(np.triu(np.ones((3, 3)))), exact=True), ValueError, "Herm"),
        (lambda: tk.logdet(singular(), exact=True), ValueError, "singular"),
        (lambda: tk.trace_inverse(singular(), exact=True), ValueError, "singular"),
        (lambda: tk.logdet(0 * GRID, exact=True), ValueError, "singular"),
        (lambda: tk.logdet(singular(), exact=True, hermitian=False), ValueError, "singular"),
        (lambda: tk.logdet(np.nan * GRID, exact=True), ValueError, "NaN"),
        (lambda: tk.logdet(GRID), ValueError, "num_matvecs"),
        (lambda: tk.trace_inverse(GRID), ValueError, "num_matvecs"),
    ],
)
def test_what_is_refused(call: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        call()


def test_tiny_scales_are_not_singular() -> None:
    A = sp.csr_array(sp.diags_array([1e-20, 1.0, 1e20]))
    assert np.isclose(tk.logdet(A, exact=True).value, 0.0, atol=1e-12)


def test_reason_says_where_a_factorisation_is_cheaper() -> None:
    assert "exact=True" in tk.logdet(GRID, 300, rng=0).reason
    assert "exact=True" not in tk.logdet(GRID, 40, rng=0).reason
    assert "exact=True" not in tk.trace_inverse(GRID, 300, rng=0).reason  # as many solves as n
    assert "exact=True" not in tk.logdet(GRID.toarray(), 300, rng=0).reason


def test_the_cost_is_a_bound() -> None:
    """A band of width b, in any order of the rows, takes about 2 n b^2."""
    n, b = 60, 3
    band = sp.csr_array(sum(np.eye(n, k=k) for k in range(-b, b + 1)))
    assert n * b**2 < factorisation_cost(band) <= 2 * n * b * (b + 1)
    order = np.random.default_rng(0).permutation(n)
    mixed = band[order][:, order]
    assert factorisation_cost(mixed) <= 2.5 * factorisation_cost(band)
    assert factorisation_cost(sp.eye_array(5)) == 0
