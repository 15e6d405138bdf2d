"""Laws of the lower and upper values of tr f(A) that one sketch has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import twins_functions as naive
from conftest import Library, library, matrix
from twins import haar

import tracekit as tk
from tracekit import functions
from tracekit._matrix_functions.one_sketch import Bracket, bracket, sketched
from tracekit.testing import known_spectrum

INDEX = np.arange(1.0, 601)
FAST = known_spectrum(INDEX**-2 + 0.1)
MONOTONE: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any], float]] = {
    "log1p": (functions.log1p, np.log1p, lambda x: 1 / (1 + x), 0.0),
    "log1p, shift": (functions.log1p, np.log1p, lambda x: 1 / (1 + x), 0.1),
    "log": (functions.log, np.log, lambda x: 1 / x, 0.1),
    "ridge": (functions.ridge(0.5), lambda x: x / (x + 0.5), lambda x: 0.5 / (x + 0.5) ** 2, 0.0),
    "ridge, shift": (
        functions.ridge(0.5), lambda x: x / (x + 0.5), lambda x: 0.5 / (x + 0.5) ** 2, 0.3,
    ),
    "sqrt, shift": (functions.sqrt, np.sqrt, lambda x: 0.5 * x**-0.5, 0.3),
    "power, shift": (functions.power(0.3), lambda x: x**0.3, lambda x: 0.3 * x**-0.7, 0.3),
}  # fmt: skip


def probes(n: int, b: int, seed: int = 0, *, cplx: bool = False) -> np.ndarray:
    return haar(np.random.default_rng(seed), n, b, cplx=cplx) * n**0.5


@pytest.mark.parametrize("kind", ["psd", "complex psd"])
@pytest.mark.parametrize("name", MONOTONE)
def test_values_are_those_with_each_probe_left_out(name, kind):
    f, g, slope, shift = MONOTONE[name]
    S = matrix(kind, 30)
    Omega = probes(30, 7, cplx=np.iscomplexobj(S))
    found = bracket(sketched(Omega, S @ Omega + shift * Omega, shift), f.resolvents, shift)
    at_zero = g(shift) if shift else 0.0
    low, lower, klein, jensen = naive.one_sketch(
        S, Omega, lambda x: g(x + shift) - at_zero, lambda x: slope(x + shift)
    )
    for x, y in zip(found[:4], (low, lower, klein, jensen), strict=True):
        assert np.allclose(x, y, rtol=1e-10)


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_functions_are_their_integrals(name, size):
    f, g, _, shift = MONOTONE[name]
    x = np.r_[0.0, np.geomspace(1e-3, 1.0, 20)]
    c, weights = f.resolvents(np.asarray(size), shift)
    at_zero = g(shift) if shift else 0.0
    found = np.sum(weights * x[:, None] / (x[:, None] + c), axis=-1)
    assert np.allclose(
        found, g(size * x + shift) - at_zero, rtol=1e-12, atol=1e-14 * (1 + abs(at_zero))
    )


def test_the_lower_value_is_below_and_the_upper_ones_are_above_on_average():
    for w in (100 * INDEX[:200] ** -2, INDEX[:200] ** -0.5):
        A, exact = known_spectrum(w), np.sum(np.log1p(w))
        means = []
        for seed in range(30):
            Omega = probes(200, 15, seed)
            found = bracket(sketched(Omega, A @ Omega, 0.0), functions.log1p.resolvents, 0.0)
            means.append([x.mean() for x in found[1:4]])
        off, error = np.mean(means, axis=0) - exact, np.std(means, axis=0) / 30**0.5
        assert off[0] < 3 * error[0]
        assert np.all(off[1:] > -3 * error[1:])
        assert off[0] < off[1:].min()


def in_every_library(lib: Library, A: np.ndarray, Omega: np.ndarray, shift: float) -> Bracket:
    def run(Y, Omega):
        return tuple(bracket(sketched(Omega, Y, shift), functions.log.resolvents, shift))

    return Bracket(*lib.call(run, lib.array(A @ Omega), lib.array(Omega)))


@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_in_every_library(lib: Library, kind):
    A = matrix(kind, 30) + 0.5 * np.eye(30)
    Omega = probes(30, 7, cplx=np.iscomplexobj(A))
    exact = bracket(sketched(Omega, A @ Omega, 0.5), functions.log.resolvents, 0.5)
    for x, y in zip(in_every_library(lib, A, Omega, 0.5)[:4], exact[:4], strict=True):
        assert lib.at_home(x)
        assert x.dtype == lib.real
        assert np.allclose(lib.numpy(x), y, rtol=3e3 * lib.eps)


@pytest.mark.parametrize("f", [functions.log1p, functions.ridge(1.0)])
def test_a_known_shift_makes_it_accurate(f):
    x = INDEX**-2 + 0.1
    exact, off, held = float(np.sum(f(x))), [], 0
    for seed in range(20):
        A, counter = tk.counted(FAST)
        estimate = tk.trace_function(A, f, 60, rng=seed, shift=0.1)
        assert counter.total == estimate.num_matvecs == 60
        assert "one sketch of 60 columns" in estimate.reason
        assert np.isclose(np.mean(estimate.samples), estimate.value)
        low, high = estimate.confidence_interval()
        held += low <= exact <= high
        off.append(abs(float(estimate) / exact - 1))
    assert np.median(off) < 1e-4
    assert held >= 18


def test_logdet_with_a_known_noise_level():
    x = 100 * INDEX**-2 + 0.1
    A, exact, off, held = known_spectrum(x), np.sum(np.log(x)), [], 0
    for seed in range(20):
        estimate = tk.logdet(A, 60, rng=seed, shift=0.1)
        low, high = estimate.confidence_interval()
        held += low <= exact <= high
        off.append(abs(float(estimate) - exact))
    assert np.median(off) < 1
    assert held >= 18


def test_effective_dimension_needs_no_shift():
    x = 100 * INDEX**-2
    A, exact = known_spectrum(x), np.sum(x / (x + 1))
    found = [tk.effective_dimension(A, 1.0, 60, rng=seed) for seed in range(10)]
    assert all("one sketch" in estimate.reason for estimate in found)
    assert np.median([abs(float(x) / exact - 1) for x in found]) < 0.01


def test_few_products_are_enough_where_eigenvalues_fall():
    x = 100 * INDEX**-2
    A, exact = known_spectrum(x), np.sum(np.log1p(x))
    off = [abs(float(tk.trace_function(A, functions.log1p, 20, rng=s)) - exact) for s in range(20)]
    assert np.median(off) < 0.03 * exact


@pytest.mark.parametrize("x", [INDEX**-0.5, 30 / INDEX, np.linspace(1.0, 2.0, 600)])
def test_where_they_do_not_fall_intervals_hold(x):
    A, exact, held = known_spectrum(x), np.sum(np.log1p(x)), 0
    for seed in range(40):
        low, high = tk.trace_function(A, functions.log1p, 120, rng=seed).confidence_interval()
        held += low <= exact <= high
    assert held >= 34


def test_quadrature_goes_on_with_the_columns_of_the_first_look():
    A, counter = tk.counted(known_spectrum(np.linspace(1.0, 2.0, 600)))
    estimate = tk.trace_function(A, functions.log1p, 120, rng=0)
    assert counter.total == estimate.num_matvecs <= 120
    assert "30 deflated" in estimate.reason


@pytest.mark.parametrize("options", [{"deflate": 0}, {"depth": 4}, {"block": 2}])
def test_who_says_how_products_are_spent_gets_quadrature(options):
    estimate = tk.trace_function(FAST, functions.log1p, 60, rng=0, shift=0.1, **options)
    assert "depth" in estimate.reason


def test_a_factor_costs_two_products_a_column():
    L = known_spectrum(INDEX**-2)
    A, counter = tk.counted(tk.gram(L))
    estimate = tk.trace_function(A, functions.log1p, 120, rng=0)
    assert counter.total == estimate.num_matvecs == 120
    assert "one sketch of 60 columns" in estimate.reason
    assert np.isclose(float(estimate), np.sum(np.log1p(INDEX**-4)), rtol=1e-6)


def test_compiled_with_a_shift():
    jax, A = library("jax-jit"), known_spectrum(INDEX[:80] ** -2 + 0.1)
    estimate = jax.call(
        lambda A, rng: tk.trace_function(A, functions.log, 30, rng=rng, shift=0.1),
        jax.array(A), jax.rng(0),
    )  # fmt: skip
    low, high = estimate.confidence_interval()
    assert low <= np.sum(np.log(INDEX[:80] ** -2 + 0.1)) <= high
    assert high - low < 0.5


def test_derivatives_are_those_of_quadrature():
    torch = pytest.importorskip("torch")
    x = INDEX[:200] ** -2 + 0.1
    A, t = torch.asarray(known_spectrum(x)), torch.zeros((), dtype=torch.float64)
    t.requires_grad_(True)
    estimate = tk.logdet(A + t * torch.eye(200, dtype=A.dtype), 150, rng=0, shift=0.1)
    (slope,) = torch.autograd.grad(estimate.value, t)
    assert abs(float(slope) / np.sum(1 / x) - 1) < 0.05


@pytest.mark.parametrize("shift", [1.0, np.float64(0.1), 0.1])
def test_exact_shift_of_the_identity(shift):
    estimate = tk.trace_function(shift * np.eye(60), functions.log, 40, rng=0, shift=shift)
    assert np.isclose(float(estimate), 60 * np.log(shift), rtol=1e-10)


@pytest.mark.parametrize("x", [np.repeat([0.0, 1.0], [57, 3]), np.zeros(60)])
@pytest.mark.parametrize("f", [functions.log1p, functions.sqrt])
def test_low_rank_and_zero(x, f):
    estimate = tk.trace_function(known_spectrum(x).astype(np.float32), f, 40, rng=1)
    assert estimate.value.dtype == np.float32
    assert np.isclose(float(estimate), np.sum(f(x)), rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("f", [functions.sqrt, functions.power(0.75)])
def test_powers_of_tiny_and_huge_numbers(f, scale):
    x = 0.5 ** INDEX[:100]
    found = tk.trace_function((known_spectrum(x) * scale).astype(np.float32), f, 80, rng=0)
    assert "one sketch" in found.reason
    unit = f(np.asarray(scale))
    off, error = (
        float(y) / unit for y in (found.value - unit * np.sum(f(x)), found.standard_error)
    )
    assert abs(off) < 2 * error < 0.3 * np.sum(f(x))


@pytest.mark.parametrize("shift", [-1.0, np.nan, np.inf, "0.1", True])
def test_shifts_are_numbers_of_zero_or_more(shift):
    with pytest.raises(ValueError, match="`shift` must be a number of 0 or more"):
        tk.trace_function(np.eye(60), functions.log, 40, shift=shift)
    with pytest.raises(ValueError, match="`shift` must be a number of 0 or more"):
        tk.logdet(np.eye(60), 40, shift=shift)


def test_a_shift_that_the_products_show_false_is_refused():
    with pytest.raises(ValueError, match=r"`shift` must be no more than .* got 0.5, .* 0\.[1-4]"):
        tk.logdet(FAST, 60, rng=0, shift=0.5)
