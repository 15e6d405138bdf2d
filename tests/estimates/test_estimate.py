"""What an estimate says of itself, and how samples become one."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import twins
from conftest import Library, installed, matrix

import tracekit as tk
from tracekit._estimates import jackknife, require_finite, samples

STOCHASTIC = (tk.hutchinson, tk.hutchpp, tk.xtrace, tk.xnystrace)


def make(value: complex = 2.0, error: float = 0.5, **more: object) -> tk.Estimate:
    fields = {"num_matvecs": 10, "method": "hutchinson", "dof": 9} | more
    return tk.Estimate(np.asarray(value), np.asarray(error), **fields)  # type: ignore[arg-type]


def test_estimates_are_frozen_values() -> None:
    estimate = make()
    with pytest.raises(FrozenInstanceError):
        estimate.value = 3.0  # type: ignore[misc]
    assert replace(estimate, converged=False).converged is False
    assert estimate.converged is True
    assert estimate.samples is None


@pytest.mark.parametrize("cplx", [False, True], ids=["real", "complex"])
def test_mean_and_standard_error_are_the_textbook_ones(lib: Library, cplx: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(7) + (1j * rng.standard_normal(7) if cplx else 0)
    for scale in (1.0, 1e-30, 1e30):
        estimate = lib.call(lambda s: samples.mean(s, 7, "hutchinson"), lib.array(x * scale))
        assert complex(estimate.value) / scale == pytest.approx(
            complex(x.mean()), rel=20 * lib.eps, abs=20 * lib.eps
        )
        expected = twins.standard_error(x)
        assert float(estimate.standard_error) / scale == pytest.approx(expected, rel=20 * lib.eps)
        assert estimate.standard_error.dtype == lib.real
        assert lib.at_home(estimate.standard_error)


def test_errors_of_equal_and_of_single_samples(lib: Library) -> None:
    same = lib.call(lambda s: samples.mean(s, 4, ""), lib.array(np.full(4, 2.5)))
    assert float(same.standard_error) == 0
    one = lib.call(lambda s: samples.mean(s, 1, ""), lib.array(np.full(1, 2.5)))
    assert float(one.value) == 2.5
    assert float(one.standard_error) == np.inf


@pytest.mark.parametrize(("level", "dof"), [(0.95, 1), (0.95, 9), (0.5, 3), (0.99, 200)])
def test_intervals_are_those_of_student(level: float, dof: int) -> None:
    from scipy.stats import t

    low, high = make(2.0, 0.5, dof=dof).confidence_interval(level)
    assert float(low) == pytest.approx(2.0 - 0.5 * t.ppf((1 + level) / 2, dof), rel=1e-12)
    assert float(high) == pytest.approx(2.0 + 0.5 * t.ppf((1 + level) / 2, dof), rel=1e-12)


def test_intervals_at_the_edges() -> None:
    exact = tk.exact_trace(np.diag([1.0, 2.0]))
    assert [float(end) for end in exact.confidence_interval()] == [3.0, 3.0]
    one = tk.hutchinson(np.ones((3, 3)), 1, rng=0)
    assert [float(end) for end in one.confidence_interval()] == [-np.inf, np.inf]
    for level in (0, 1, -0.5, 95, float("nan")):
        with pytest.raises(ValueError, match="level"):
            make().confidence_interval(level)
    narrow, wide = (make().confidence_interval(level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_numbers_come_out(eager: Library) -> None:
    A = matrix("real", 8)
    estimate = tk.hutchinson(eager.array(A), 5, rng=0)
    assert isinstance(float(estimate), float)
    assert float(estimate) == float(estimate.value)
    assert complex(estimate) == complex(float(estimate))
    low, high = estimate.confidence_interval()
    assert float(low) < float(estimate) < float(high)


def test_complex_values_do_not_turn_real_silently() -> None:
    estimate = tk.exact_trace(np.diag([1.0, 2.0 + 3.0j]))
    assert complex(estimate) == 3 + 3j
    with pytest.raises(TypeError, match="complex"):
        float(estimate)
    hermitian = tk.hutchinson(matrix("hermitian", 8), 5, rng=0)
    assert float(hermitian) == pytest.approx(complex(hermitian).real)


@pytest.mark.parametrize("estimator", STOCHASTIC, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_dictionaries_are_json(estimator: object, kind: str) -> None:
    for budget in (1, 5, 8):
        for lib in installed("numpy", "strict:device1", "torch"):
            estimate = estimator(lib.array(matrix(kind, 8)), budget, rng=0)  # type: ignore[operator]
            told = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
            assert list(told)[:6] == [
                "value",
                "standard_error",
                "num_matvecs",
                "method",
                "converged",
                "reason",
            ]
            value = complex(*told["value"]) if kind == "complex psd" else told["value"]
            assert value == complex(estimate.value)
            assert told["standard_error"] == (
                None if budget == 1 else float(estimate.standard_error)
            )
            assert told["num_matvecs"] == estimate.num_matvecs <= budget
            assert told["converged"] is True


def test_repr_shows_as_many_digits_as_the_error_allows() -> None:
    assert (
        repr(make(1.644934, 0.0012, num_matvecs=60, method="xtrace"))
        == "Estimate(1.6449 +- 0.0012, 60 matvecs, xtrace)"
    )
    assert repr(make(0.0, 0.5)) == "Estimate(0 +- 0.5, 10 matvecs, hutchinson)"
    for value, error in (
        (1e-160, 1e-163),
        (1e150, 1e148),
        (-3.0, 0.0),
        (3.0, np.inf),
        (1e-3, 10.0),
        (1 + 2j, 0.1),
    ):
        shown = repr(make(value, error))
        assert shown.startswith("Estimate(")
        assert "10 matvecs" in shown
        assert "+-" in shown
    assert "not converged" in repr(make(converged=False))
    assert "psd" in repr(make(reason="chosen since psd=True"))


def test_repr_shows_exact_values_whole() -> None:
    assert (
        repr(tk.exact_trace(np.diag([1.0, 2.0, 3.0])))
        == "Estimate(6.0 +- 0.0, 3 matvecs, exact_trace)"
    )
    assert "123456789.125" in repr(tk.exact_trace(np.diag([123456789.125])))


def test_every_estimate_can_be_printed_in_every_library(eager: Library) -> None:
    for A in (np.zeros((8, 8)), matrix("complex psd", 8)):
        for budget in (1, 4, 8):
            assert "matvecs" in repr(tk.hutchinson(eager.array(A), budget, rng=0))
            if eager.family != "jax":  # compiled for each shape
                assert "matvecs" in repr(tk.xnystrace(eager.array(A), budget, rng=0))


def test_plot_draws_on_the_axes_it_is_given() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    try:
        for budget in (1, 5, 8):
            assert tk.xtrace(matrix("complex psd", 8), budget, rng=0).plot(ax) is ax
        assert ax.get_lines()
        assert ax.get_ylabel()
        own = tk.hutchinson(matrix("psd", 8), 5, rng=0).plot()
        assert own is not ax
    finally:
        plt.close("all")


def products_of(lib: Library) -> tk.LinearOperator:
    """An operator of a library that cannot be pickled: its product is a closure."""
    A = lib.array(matrix("psd", 70))
    return tk.LinearOperator((70, 70), lambda X: A @ X, xp=lib.xp, device=lib.device, dtype=A.dtype)


def own_generator(lib: Library) -> object:
    """A generator of the library itself, or a seed."""
    if lib.family == "torch":
        import torch

        return torch.Generator().manual_seed(3)
    if lib.family == "jax":
        import jax

        return jax.random.key(3)
    return 3


def test_estimates_of_trace_are_pickled_copied_and_resumed() -> None:
    """Of an operator that cannot be: they hold its products, and no operator."""
    import copy
    import pickle

    for lib in installed("numpy", "strict:device1", "torch"):
        A = products_of(lib)
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(A)
        for rng in (3, own_generator(lib)):
            estimate = tk.trace(A, rng=rng, rtol=0.0, num_matvecs=24)
            more = tk.resume(A, estimate, rtol=0.0, num_matvecs=32)
            for again in (pickle.loads(pickle.dumps(estimate)), copy.deepcopy(estimate)):
                assert again.to_dict() == estimate.to_dict()
                assert lib.at_home(again.value)
                resumed = tk.resume(A, again, rtol=0.0, num_matvecs=32)
                assert resumed.to_dict() == more.to_dict()
    for lib in installed("jax"):  # every new shape of array is compiled: only what draws is tried
        estimate = tk.trace(products_of(lib), rng=own_generator(lib), rtol=9.0)
        again = pickle.loads(pickle.dumps(estimate))
        assert again.to_dict() == estimate.to_dict()
        drawn, expected = (lib.numpy(e.paused.source.signs((70, 2))) for e in (again, estimate))
        np.testing.assert_array_equal(drawn, expected)


def test_estimates_of_trace_come_back_from_other_processes() -> None:
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        [estimate] = pool.map(twins.estimated_elsewhere, [0])
    here = twins.estimated_elsewhere(0)
    assert estimate.to_dict() == here.to_dict()
    A = tk.LinearOperator((500, 500), twins.decaying_rows)
    fine = tk.resume(A, estimate, rtol=1e-3)
    assert float(fine) == float(tk.resume(A, here, rtol=1e-3))


# Values that are not finite -------------------------------------------------------------------


def with_nan_in(column: int) -> tk.LinearOperator:
    """Of dimension 60, one column of whose products is not finite."""

    def product(X: np.ndarray) -> np.ndarray:
        where = np.arange(X.shape[1]) == column
        return np.where(where, np.nan, X)

    return tk.LinearOperator((60, 60), product, product)


@pytest.mark.parametrize(
    ("estimator", "quantity"),
    [(tk.hutchinson, "trace"), (tk.one_sided, "trace"), (tk.frobenius_norm, "norm")],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_an_error_for_nan_names_the_quantity_and_the_column(estimator: Any, quantity: str) -> None:
    with pytest.raises(tk.NotFiniteError, match=r"\(first in column 3 of \d+\)") as error:
        estimator(with_nan_in(3), 20, rng=0)
    assert f"so that its {quantity} cannot be estimated; " in str(error.value)
    assert "\n" not in str(error.value)


def test_an_error_for_nan_in_one_number_names_no_column() -> None:
    with pytest.raises(tk.NotFiniteError, match="infinity, so that nothing can be estimated; "):
        require_finite(np.asarray(np.inf))
    with pytest.raises(tk.NotFiniteError, match=r"\(first in column 0 of 2\), so that its norm"):
        require_finite(np.asarray(np.nan), "norm", columns=np.asarray([[np.inf, 0.0]]))


def test_the_jackknife_is_that_of_the_textbook() -> None:
    """Of a square of a mean, whose bias it takes off."""
    x = np.random.default_rng(0).standard_normal(9)
    whole = np.mean(x) ** 2
    replicates = np.asarray([np.mean(np.delete(x, i)) ** 2 for i in range(9)])
    corrected, deviation, share = jackknife(whole, replicates)
    assert corrected == pytest.approx(9 * whole - 8 * np.mean(replicates))
    assert np.sum(deviation**2) * share == pytest.approx(
        8 / 9 * np.sum((replicates - np.mean(replicates)) ** 2)
    )
    assert corrected == pytest.approx(whole - np.var(x, ddof=1) / 9)
