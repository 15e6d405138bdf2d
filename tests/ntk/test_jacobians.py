"""The benchmarks' Jacobians: always the same, with the spectra and derivatives they claim."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import problems

# Shape of J, trace and norm of J J^T.
KNOWN = {
    "mlp": ((400, 1258), 340.65509218996965, 34.98162983644474),
    "mlpimg": ((600, 2410), 312.78887975227053, 61.78790198698874),
    "rnn": ((768, 216), 643.0831709681386, 88.92163712771028),
    "i^-2": ((512, 700), 1.6429828479550965, 1.0403476492187014),
    "i^-0.5": ((512, 700), 43.81657297751133, 2.610845942324005),
}


@pytest.mark.parametrize("name", KNOWN)
def test_size_trace_and_norm_are_the_known_ones(name):
    J = problems.jacobian(name)
    shape, trace, norm = KNOWN[name]
    assert J.shape == shape
    assert J.dtype == np.float64
    np.testing.assert_allclose(np.sum(J * J), trace, rtol=1e-11)
    np.testing.assert_allclose(np.linalg.norm(J @ J.T), norm, rtol=1e-11)


@pytest.mark.parametrize("name", problems.DIMS)
def test_dims_multiply_to_the_rows(name):
    assert np.prod(problems.DIMS[name]) == KNOWN[name][0][0]


@pytest.mark.parametrize("name", problems.PRESCRIBED)
def test_singular_values_are_the_prescribed_ones(name):
    J = problems.prescribed(name, n=12, P=17)
    eigenvalues = problems.spectrum(name, 12)
    singular = np.linalg.svd(J, compute_uv=False)
    np.testing.assert_allclose(np.sort(singular**2), np.sort(eigenvalues), rtol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "rnn"])
def test_derivative_is_that_of_central_differences(name):
    f, theta = problems.recurrent() if name == "rnn" else problems.perceptron(name)
    direction = np.random.default_rng(0).standard_normal(theta.size)
    step = 1e-6 * direction
    slope = (f(theta + step) - f(theta - step)) / 2e-6
    np.testing.assert_allclose(problems.jacobian(name) @ direction, slope, atol=1e-7)


def test_drift_moves_the_parameters_of_networks_alone():
    assert np.array_equal(problems.jacobian("i^-2", 0.5), problems.jacobian("i^-2"))
    A, B = (J @ J.T for J in (problems.jacobian("rnn"), problems.jacobian("rnn", 0.28)))
    cosine = np.vdot(A, B) / (np.linalg.norm(A) * np.linalg.norm(B))
    np.testing.assert_allclose(cosine, 0.7984472594343033, rtol=1e-9)
