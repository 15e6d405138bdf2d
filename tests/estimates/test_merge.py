"""Independent runs of one estimator as one: weights, errors, coverage, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import Library, installed, matrix

import tracekit as tk

N = 60
SPIKED = tk.testing.known_spectrum(np.arange(1.0, N + 1) ** -2)
SHIFTED = tk.testing.known_spectrum(np.arange(1.0, N + 1) ** -1 + 0.1)


def runs(estimator: Callable[..., Any], A: Any, *budgets: int) -> list[Any]:
    return [estimator(A, m, rng=seed) for seed, m in enumerate(budgets)]


def through_json(estimate: tk.Estimate) -> tk.Estimate:
    told = json.dumps(estimate.to_dict(), allow_nan=False)
    return tk.Estimate.from_dict(json.loads(told))


def textbook(*samples: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard error and skewness of all samples together."""
    x = np.concatenate(samples, axis=-1)
    m, mean = x.shape[-1], x.mean(axis=-1)
    apart = x - mean[..., None]
    error = np.sqrt((np.abs(apart) ** 2).sum(axis=-1) / (m * (m - 1)))
    skewness = (apart.real**3).mean(axis=-1) / (apart.real**2).mean(axis=-1) ** 1.5
    return mean, error, skewness


# Weights and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["psd", "complex psd", "real"])
def test_means_of_samples_are_that_of_all_samples(eager: Library, kind: str) -> None:
    A = eager.array(matrix(kind, 30))
    if kind == "real" or eager.family != "jax":
        parts = runs(tk.hutchinson, A, 6, 10, 20, 1)
        whole = tk.merge(parts)
        mean, error, skewness = textbook(*(eager.numpy(e.samples) for e in parts))
        assert eager.at_home(whole.value)
        assert whole.value.dtype == parts[0].value.dtype
        np.testing.assert_allclose(eager.numpy(whole.value), mean, rtol=1e-5)
        np.testing.assert_allclose(eager.numpy(whole.standard_error), error, rtol=1e-5)
        if kind != "complex psd":  # the spread of these has an imaginary part
            np.testing.assert_allclose(eager.numpy(whole.skewness), skewness, rtol=1e-4, atol=1e-4)
        assert (whole.dof, whole.num_matvecs, whole.samples.shape[-1]) == (36, 37, 37)


def test_entries_are_merged_without_their_samples() -> None:
    parts = [tk.block_traces(SHIFTED, (6, 10), 1, m, rng=seed) for seed, m in enumerate((5, 9, 12))]
    again = [tk.probes.rademacher(tk.probes.Source(s, tk.as_operator(SHIFTED)), N, m)
             for s, m in enumerate((5, 9, 12))]  # fmt: skip
    samples = [(X * (SHIFTED @ X)).reshape(6, 10, -1).sum(axis=1) for X in again]
    for e in (tk.merge(parts), tk.merge([through_json(x) for x in parts])):
        mean, error, skewness = textbook(*samples)
        np.testing.assert_allclose(e.value, mean, rtol=1e-10)
        np.testing.assert_allclose(e.standard_error, error, rtol=1e-10)
        np.testing.assert_allclose(e.skewness, skewness, rtol=1e-7)


def test_leave_one_out_runs_are_weighted_by_the_square_of_their_products() -> None:
    parts = runs(tk.xtrace, SPIKED, 12, 24, 24)
    weights = np.array([1, 4, 4]) / 9
    whole = tk.merge(parts)
    values, errors = (np.array([getattr(e, x) for e in parts]) for x in ("value", "standard_error"))
    assert float(whole) == pytest.approx(weights @ values, rel=1e-12)
    assert float(whole.standard_error) == pytest.approx(np.linalg.norm(weights * errors), rel=1e-12)
    assert whole.samples is None  # they were not averaged alike
    assert whole.dof == sum(e.dof for e in parts)
    stepwise = tk.merge([tk.merge(parts[:2]), parts[2]])
    assert float(stepwise) == pytest.approx(float(whole), rel=1e-12)
    assert float(stepwise.standard_error) == pytest.approx(float(whole.standard_error), rel=1e-12)
    assert tk.merge(parts[1:]).samples.shape == (24,)


def test_norms_are_averaged_as_squares() -> None:
    parts = runs(tk.frobenius_norm, SHIFTED, 12, 12)
    squares = [float(e) ** 2 for e in parts]
    assert float(tk.merge(parts)) == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-12)
    assert tk.merge(parts).method == "frobenius_norm"


def test_errors_of_the_quadrature_do_not_average_out() -> None:
    parts = [tk.trace_function(SHIFTED, np.sqrt, 40, rng=s, depth=4, deflate=0) for s in (0, 1, 2)]
    whole = tk.merge(parts)
    shares = np.array([e.dof + 1 for e in parts]) / (whole.dof + 1)
    quadrature = sum(w * e.kept.quadrature for w, e in zip(shares, parts, strict=True))
    assert quadrature > 0
    assert whole.kept.quadrature == pytest.approx(quadrature, rel=1e-12)
    both = math.hypot(whole.kept.monte_carlo, quadrature)
    assert float(whole.standard_error) == pytest.approx(both, rel=1e-12)
    assert whole.slope == pytest.approx(shares @ [e.slope for e in parts], rel=1e-12)
    assert whole.slope_error < max(e.slope_error for e in parts)


def test_certified_intervals_are_of_all_probes() -> None:
    A = tk.testing.known_spectrum(np.linspace(1.0, 3.0, 200))
    parts = [tk.logdet(A, 90, rng=s, depth=9, bounds=(1.0, 3.0)) for s in (0, 1)]
    whole = tk.merge([through_json(e) for e in parts])
    low, high = whole.certified_interval()
    assert low < np.log(np.linspace(1.0, 3.0, 200)).sum() < high
    alone = [np.subtract(*e.certified_interval()[::-1]) for e in parts]
    assert high - low < 0.8 * min(alone)
    assert whole.kept.certified.probes == sum(e.kept.certified.probes for e in parts)


def test_one_probe_each_makes_an_error_unless_all_are_equal() -> None:
    whole = tk.merge(runs(tk.hutchinson, SPIKED, *[1] * 5))
    assert whole.dof == 4
    assert 0 < float(whole.standard_error) < math.inf
    equal = runs(tk.hutchinson, np.diag(np.arange(9.0)), *[1] * 20)
    assert math.isinf(float(tk.merge(equal[:5]).standard_error))
    assert float(tk.merge(equal).standard_error) == 0


def test_what_is_not_settled_stays_so() -> None:
    hard = tk.testing.known_spectrum(np.arange(1.0, 301) ** -4)
    parts = [tk.trace_function(hard, tk.functions.inv, 40, rng=s, depth=4) for s in (0, 1)]
    assert all(math.isinf(float(e.standard_error)) for e in parts)
    assert math.isinf(float(tk.merge(parts).standard_error))
    assert not tk.merge(parts).converged
    parts = [replace(parts[0], converged=True), replace(parts[1], reason="it has not settled")]
    for e in (tk.merge(parts), tk.merge([through_json(e) for e in parts])):
        assert not e.converged
        assert math.isinf(float(e.standard_error))
        assert e.reason == "it has not settled; 2 runs merged"


def test_huge_and_tiny_numbers_stay_in_range() -> None:
    for scale in (1e-30, 1e30):
        A = (SHIFTED * scale).astype(np.float32)
        for estimator in (tk.hutchinson, tk.xtrace, tk.hutchpp):
            found = tk.merge(runs(estimator, A, 12, 12))
            plain = tk.merge(runs(estimator, SHIFTED, 12, 12))
            assert found.value.dtype == np.float32
            assert float(found) == pytest.approx(float(plain) * scale, rel=1e-4)
            assert float(found.standard_error) == pytest.approx(
                float(plain.standard_error) * scale, rel=1e-3
            )


COVERED: dict[str, tuple[Callable[..., Any], np.ndarray, int, float]] = {
    "hutchinson": (tk.hutchinson, SPIKED, 20, np.trace(SPIKED)),
    "hutchpp": (tk.hutchpp, SPIKED, 24, np.trace(SPIKED)),
    "xtrace": (tk.xtrace, SPIKED, 16, np.trace(SPIKED)),
    "logdet": (partial(tk.logdet, depth=6), SHIFTED, 48, np.linalg.slogdet(SHIFTED)[1]),
}


@pytest.mark.parametrize("name", COVERED)
def test_intervals_of_merged_runs_hold_the_truth(name: str) -> None:
    estimator, A, budget, truth = COVERED[name]
    pool = [estimator(A, budget, rng=10_000 + seed) for seed in range(1600)]
    for size in (2, 8):
        groups = [pool[g : g + size] for g in range(0, len(pool), size)]
        ends = [tk.merge(group).confidence_interval() for group in groups]
        assert np.mean([low <= truth <= high for low, high in ends]) >= 0.93


def test_weights_by_estimated_errors_would_be_biased() -> None:
    """And those by counts are not: mean and spread of skewed samples go together."""
    groups = [[tk.hutchinson(SPIKED, m, rng=100 * g + m) for m in (6, 10, 20)] for g in range(400)]
    truth = np.trace(SPIKED)

    def by_error(group: list[tk.Estimate]) -> float:
        weights = [float(e.standard_error) ** -2 for e in group]
        return float(np.average([float(e) for e in group], weights=weights))

    ours = [float(tk.merge(group)) for group in groups]
    theirs = [by_error(group) for group in groups]
    spread = np.std(ours) / math.sqrt(len(groups))
    assert abs(np.mean(ours) - truth) < 3 * spread
    assert np.mean(theirs) - truth < -4 * spread


# Where estimates come from ----------------------------------------------------------------------


def generators(lib: Library) -> list[Callable[[int], Any]]:
    found: list[Callable[[int], Any]] = [int, np.int64, np.random.default_rng,
                                         np.random.SeedSequence]  # fmt: skip
    if lib.family == "torch":
        import torch

        found.append(lambda seed: torch.Generator().manual_seed(seed))
    if lib.family == "jax":
        import jax

        found += [jax.random.key, jax.random.PRNGKey]
    return found


@pytest.mark.parametrize("name", ["numpy", "torch", "jax:1"])
def test_runs_of_one_seed_are_refused(name: str) -> None:
    for lib in installed(name):
        A = lib.array(SPIKED)
        for seeded in generators(lib):
            first, again, other = (tk.hutchinson(A, 7, rng=seeded(s)) for s in (3, 3, 4))
            with pytest.raises(ValueError, match="same random numbers"):
                tk.merge([other, first, again])
            assert tk.merge([first, other]).num_matvecs == 14
            more = tk.hutchinson(A, 9, rng=seeded(3))
            with pytest.raises(ValueError, match="same random numbers"):
                tk.merge([first, more])  # its first samples are the same
        rng = np.random.default_rng(0)
        goes_on = [tk.hutchinson(A, 7, rng=rng) for _ in range(3)]
        assert tk.merge(goes_on).dof == 20


def test_an_int_and_its_generator_draw_the_same() -> None:
    with pytest.raises(ValueError, match="same random numbers"):
        tk.merge([tk.xtrace(SPIKED, 12, rng=rng) for rng in (5, np.random.default_rng(5))])


def test_without_a_seed_runs_are_independent() -> None:
    parts = [tk.hutchinson(SPIKED, 8) for _ in range(3)]
    assert tk.merge(parts).num_matvecs == 24
    for twice in ([*parts, parts[1]], [parts[0], replace(parts[0])],
                  [through_json(parts[0]), through_json(parts[0])]):  # fmt: skip
        with pytest.raises(ValueError, match="same random numbers"):
            tk.merge(twice)


def test_merged_runs_remember_all_seeds() -> None:
    parts = runs(tk.xtrace, SPIKED, 12, 12, 12)
    for whole in (tk.merge(parts[:2]), through_json(tk.merge(parts[:2]))):
        with pytest.raises(ValueError, match="same random numbers"):
            tk.merge([whole, parts[1] if whole.samples is not None else through_json(parts[1])])
    assert tk.merge(parts[:1]) is parts[0]


def test_compiled_runs_are_told_apart_by_their_numbers() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    A = jax.numpy.asarray(SPIKED)
    f = jax.jit(lambda key: tk.hutchinson(A, 8, rng=key))
    parts = [f(jax.random.key(s)) for s in (0, 1, 0)]
    assert tk.merge(parts[:2]).num_matvecs == 16
    with pytest.raises(ValueError, match="same random numbers"):
        tk.merge(parts)
    with pytest.raises(TypeError, match=r"jax\.jit hides"):
        jax.jit(lambda: tk.merge(runs(tk.hutchinson, A, 8, 8)).value)()


def test_resumed_runs_are_of_their_seed() -> None:
    A = tk.LinearOperator(SPIKED.shape, lambda X: SPIKED @ X)
    rough = tk.trace(A, rtol=0.0, num_matvecs=16, rng=0)
    fine = tk.resume(A, rough, rtol=0.0, num_matvecs=32)
    with pytest.raises(ValueError, match="same random numbers"):
        tk.merge([replace(rough, method=fine.method), fine])


# What does not add up ---------------------------------------------------------------------------


def test_what_does_not_add_up_is_refused() -> None:
    one, other = tk.hutchinson(SPIKED, 8, rng=0), tk.hutchinson(SPIKED, 8, rng=1)
    single = tk.hutchinson(SPIKED.astype(np.float32), 8, rng=1)
    small = tk.hutchinson(SPIKED[:50, :50], 8, rng=1)
    for pair, match in (
        ([one, tk.xtrace(SPIKED, 8, rng=1)], "differ in method, hutchinson and xtrace"),
        ([one, single], "differ in dtype, float64 and float32"),
        ([one, small], r"shape of the operator, \[60, 60\] and \[50, 50\]"),
        ([tk.diagonal(A, 8, rng=s) for s, A in enumerate((SPIKED, SPIKED[:50, :50]))], "shape"),
        ([one, tk.hutchinson(SPIKED, N, rng=1)], "estimate 1 is exact"),
        ([tk.exact_trace(SPIKED)] * 2, "estimate 0 is exact"),
        ([tk.partial_trace(SHIFTED, (6, 10), a, 3, rng=a) for a in (0, 1)], "shape of the value"),
        ([tk.block_traces(SHIFTED, d, a, 3, rng=a) for d, a in (((6, 10), 1), ((10, 6), 0))],
         "differ in `dims`"),
        ([tk.schatten_norm(SHIFTED, p, 40, rng=p) for p in (3, 4)], "differ in `p`, 3 and 4"),
        ([tk.trace_function(SHIFTED, f, 40, rng=s) for s, f in enumerate((np.exp, np.sqrt))],
         "differ in `f`, exp .* and sqrt"),
        ([tk.effective_dimension(SHIFTED, r, 40, rng=i) for i, r in enumerate((0.1, 0.2))],
         "differ in `ridge`"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            tk.merge(pair)
    for wrong in ([], [3], [one, 3], [one, tk.spectral_run(SPIKED, 40, rng=0)]):
        with pytest.raises(TypeError, match="several Estimates"):
            tk.merge(wrong)
    assert tk.merge(iter([one, other])).num_matvecs == 16
    for lib in installed("torch"):
        with pytest.raises(ValueError, match="differ in library, numpy and torch"):
            tk.merge([one, tk.hutchinson(lib.array(SPIKED), 8, rng=1)])


# JSON -------------------------------------------------------------------------------------------


def test_estimates_come_back_from_json() -> None:
    for lib in installed("numpy", "torch"):
        for A in (SHIFTED, SHIFTED + 0j, SHIFTED.astype(np.float32)):
            made = [tk.hutchinson(lib.array(A), 9, rng=0), tk.hutchinson(lib.array(A), 1, rng=0),
                    tk.diagonal(lib.array(A), 9, rng=0), tk.logdet(lib.array(A), 50, rng=0),
                    tk.exact_trace(lib.array(A))]  # fmt: skip
            for e in made:
                again = through_json(e)
                assert again.to_dict() == e.to_dict()
                np.testing.assert_array_equal(again.value, lib.numpy(e.value))
                np.testing.assert_array_equal(again.standard_error, lib.numpy(e.standard_error))
                assert again.value.dtype == lib.numpy(e.value).dtype
                for a, b in zip(again.confidence_interval(), e.confidence_interval(), strict=True):
                    np.testing.assert_allclose(a, lib.numpy(b), rtol=1e-5)


def test_merging_from_json_is_merging() -> None:
    for estimator, budget in ((tk.hutchinson, 9), (tk.xtrace, 12), (tk.logdet, 50)):
        parts = runs(estimator, SHIFTED, budget, budget)
        direct, told = tk.merge(parts), tk.merge([through_json(e) for e in parts])
        assert float(told) == pytest.approx(float(direct), rel=1e-12)
        np.testing.assert_allclose(told.confidence_interval(0.9), direct.confidence_interval(0.9))


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ({}, "must hold 'value'"),
        (3, "must hold 'value'"),
        ({**tk.exact_trace(np.eye(2)).to_dict(), "dtype": "float7"}, "unreadable"),
        ({**tk.exact_trace(np.eye(2)).to_dict(), "value": "x"}, "unreadable"),
        ({**tk.exact_trace(np.eye(2)).to_dict(), "kept": {"a": 1}}, "unreadable"),
    ],
)
def test_other_dictionaries_are_refused(held: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tk.Estimate.from_dict(held)


def test_other_functions_of_one_name_are_refused():
    A = np.diag(np.linspace(1, 2, 300))

    def run(f, seed):
        return tk.trace_function(A, f, 80, rng=seed)

    whole = tk.merge([run(lambda x: x**2, 0), run(lambda x: x * x, 1)])
    assert whole.num_matvecs > 150
    for one, other in (
        (lambda x: x, lambda x: x**2),
        (tk.functions.power(2), tk.functions.power(3)),
        (tk.functions.ridge(2.0), tk.functions.ridge(3.0)),
    ):
        with pytest.raises(ValueError, match="f"):
            tk.merge([run(one, 0), run(other, 1)])


def test_runs_of_a_diagonal_matrix_whose_signs_tell_nothing():
    A = np.diag(np.linspace(1, 2, 300))
    whole = tk.merge([tk.spectral_run(A, 80, rng=seed) for seed in (0, 1)])
    assert float(whole.logdet()) == pytest.approx(np.log(np.diag(A)).sum(), rel=1e-6)
    with pytest.raises(ValueError, match="share probes"):
        tk.merge([tk.spectral_run(A, 80, rng=0)] * 2)
