"""The comparison runs each method as its caller would, and shows the quartiles of its errors."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

import tracekit as tk
from tracekit._trace.comparison import Comparison, compare

matplotlib = pytest.importorskip("matplotlib")

ALWAYS = ("hutchinson (signs)", "hutchinson (orthogonal)", "hutchpp", "nahutchpp", "xtrace")


def decaying(n=60):
    return tk.testing.known_spectrum(np.arange(1.0, n + 1) ** -2)


def test_errors_are_those_of_the_single_runs():
    A = decaying()
    table = compare(A, (24, 12), exact=np.trace(A), num_seeds=3, rng=5, psd=True)
    runs = {
        "hutchinson (signs)": tk.hutchinson,
        "hutchinson (orthogonal)": partial(tk.hutchinson, probes=tk.probes.orthogonal),
        "hutchpp": tk.hutchpp,
        "nahutchpp": tk.nahutchpp,
        "xtrace": tk.xtrace,
        "xnystrace": tk.xnystrace,
    }
    assert table.methods == tuple(runs)
    assert table.num_matvecs == (12, 24)
    for i, method in enumerate(runs.values()):
        for j, m in enumerate((12, 24)):
            values = [float(method(A, m, rng=seed)) for seed in (5, 6, 7)]
            expected = np.abs(np.asarray(values) / np.trace(A) - 1)
            np.testing.assert_allclose(table.errors[i, j], expected, rtol=1e-9, atol=1e-14)


def test_the_exact_trace_is_computed_where_it_is_not_given():
    A = decaying()
    given, computed = (compare(A, 12, exact=x, num_seeds=2) for x in (np.trace(A), None))
    assert computed.exact == pytest.approx(given.exact, rel=1e-12)
    np.testing.assert_allclose(computed.errors, given.errors, rtol=1e-6)
    assert compare(A, 12, exact=2 * np.trace(A), num_seeds=2).errors.max() > 0.3


def test_costs_what_it_says():
    A, counter = tk.counted(decaying())
    table = compare(A, (12, 24), num_seeds=3)
    assert table.methods == ALWAYS
    assert counter.total == 60 + 3 * table.spent.sum()
    assert (table.spent <= np.asarray([12, 24])).all()
    A, counter = tk.counted(tk.gram(np.random.default_rng(0).standard_normal((40, 90))))
    table = compare(A, (13,), exact=1.0, num_seeds=2)
    assert counter.total == 2 * table.spent.sum()


def test_methods_that_do_not_apply_are_left_out():
    A = decaying()
    assert compare(A, 12, num_seeds=1).methods == ALWAYS
    assert compare(A, 12, num_seeds=1, psd=True).methods == (*ALWAYS, "xnystrace")
    L = np.random.default_rng(0).standard_normal((30, 50))
    table = compare(tk.gram(L), 12, num_seeds=1)
    assert table.methods == (*ALWAYS, "xnystrace", "one_sided")
    one_way = tk.LinearOperator((60, 60), lambda X: A @ X)
    assert "nahutchpp" not in compare(one_way, 12, num_seeds=1).methods


def test_one_sided_runs_on_the_factor():
    L = np.random.default_rng(0).standard_normal((30, 50))
    table = compare(tk.gram(L), 12, num_seeds=2)
    values = np.asarray([float(tk.one_sided(L, 12, rng=seed)) for seed in (0, 1)])
    np.testing.assert_allclose(table.errors[-1, 0], np.abs(values / np.sum(L * L) - 1), atol=1e-12)


def test_methods_of_the_caller():
    A = decaying()
    table = compare(
        A, 20, methods={"mine": partial(tk.xtrace, probes=tk.probes.normal)}, num_seeds=2
    )
    assert table.methods == ("mine",)


def test_an_operator_whose_trace_is_known_is_estimated_all_the_same():
    A = decaying()
    known = tk.LinearOperator((60, 60), lambda X: A @ X, exact={"trace": lambda: np.trace(A)})
    table = compare(known, 12, num_seeds=2)
    assert table.exact == np.trace(A)
    assert table.errors.min() > 0
    assert (table.spent > 6).all()


def test_complex_and_single_precision():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((40, 40)) + 1j * rng.standard_normal((40, 40)) + 2j * np.eye(40)
    table = compare(A, 20, num_seeds=2)
    assert table.exact == pytest.approx(np.trace(A))
    expected = abs(complex(tk.xtrace(A, 20, rng=1)) / np.trace(A) - 1)
    assert table.errors[table.methods.index("xtrace"), 0, 1] == pytest.approx(expected)
    assert json.loads(json.dumps(table.to_dict()))["exact"] == [table.exact.real, table.exact.imag]
    assert compare(np.eye(30, dtype=np.float32), 6, num_seeds=1).errors.max() < 0.1


def test_any_library(xp):
    A, options = decaying(), {"num_seeds": 2, "methods": {"hutchinson": tk.hutchinson}}
    table = compare(xp.asarray(A.tolist(), dtype=xp.float64), 12, **options)
    np.testing.assert_allclose(table.errors, compare(A, 12, **options).errors, rtol=1e-6)


def test_a_trace_of_zero_has_absolute_errors():
    A = np.diag(np.linspace(-1.0, 1.0, 40))[::-1] + np.eye(40, k=1)
    table = compare(A, 12, exact=0.0, num_seeds=2)
    assert not table.relative
    assert str(table).startswith("error of the trace (0)")
    expected = abs(float(tk.xtrace(A, 12, rng=0)))
    assert table.errors[table.methods.index("xtrace"), 0, 0] == pytest.approx(expected)


def test_the_text_is_a_table():
    table = compare(decaying(), (12, 24), num_seeds=5, psd=True)
    title, header, *rows = str(table).splitlines()
    assert repr(table) == str(table)
    assert title == (
        "relative error of the trace (1.62841): median and quartiles of 5 seeds, * least"
    )
    assert header.split() == ["products", "12", "24"]
    assert len(rows) == 3 * 6
    assert max(map(len, str(table).splitlines())) <= 80
    median = table.quartiles[1]
    for i, name in enumerate(table.methods):
        cells = rows[3 * i].removeprefix(name).replace("*", "").split()
        np.testing.assert_allclose([float(cell) for cell in cells], median[i], rtol=0.05)
    assert str(table).count("*") == 1 + 2
    best = np.argmin(median[:, 0])
    assert rows[3 * best].split()[-2].endswith("*")


def test_to_dict_is_json():
    table = compare(decaying(), (12, 24), num_seeds=5)
    held = json.loads(json.dumps(table.to_dict()))
    assert held["num_matvecs"] == [12, 24]
    assert (held["num_seeds"], held["relative"]) == (5, True)
    assert tuple(held["methods"]) == table.methods
    xtrace = held["methods"]["xtrace"]
    assert xtrace["spent"] == [12, 24]
    for lower, median, upper in zip(
        xtrace["lower_quartile"], xtrace["median"], xtrace["upper_quartile"], strict=True
    ):
        assert 0 <= lower <= median <= upper


def test_quartiles_by_hand():
    errors = np.arange(5.0)[None, None, :]
    table = Comparison(1.0, ("one",), (8,), np.asarray([[8]]), errors, True)
    assert table.quartiles[:, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_plot():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    table = compare(decaying(), (12, 24), num_seeds=5)
    assert table.plot(axes) is axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [line.get_label() for line in axes.get_lines()] == list(table.methods)
    for i, line in enumerate(axes.get_lines()):
        np.testing.assert_allclose(line.get_ydata(), table.quartiles[1, i])
        np.testing.assert_allclose(line.get_xdata(), table.spent[i])
    assert len(axes.collections) == len(table.methods)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_plot_of_errors_that_are_zero(scale):
    from matplotlib.figure import Figure

    errors = scale * np.asarray([[[0.0, 0.0, 0.0], [0.0, 1e-3, 1e-2]]])
    table = Comparison(1.0, ("one",), (8, 16), np.asarray([[8, 16]]), errors, True)
    figure = Figure()
    axes = table.plot(figure.add_subplot())
    figure.canvas.draw()
    assert np.all(axes.get_lines()[0].get_ydata() > 0)


def test_plot_makes_a_figure():
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes = compare(decaying(), 12, num_seeds=2).plot()
    assert axes.figure.number in plt.get_fignums()
    plt.close(axes.figure)


def test_default_budgets_stay_below_the_cost_of_the_exact_trace():
    for n, expected in ((1, (1,)), (8, (4,)), (30, (10, 20)), (200, (10, 20, 40, 80, 160))):
        table = compare(np.eye(n), num_seeds=1, methods={"hutchinson": tk.hutchinson})
        assert table.num_matvecs == expected


def test_a_fresh_seed():
    one, other = (compare(decaying(), 12, num_seeds=2, rng=None).errors for _ in range(2))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("budgets", "options", "error", "words"),
    [
        ((), {}, ValueError, "num_matvecs is empty"),
        (0, {}, ValueError, "must be a positive integer"),
        ((10, 2.5), {}, ValueError, "must be a positive integer"),
        ("30", {}, ValueError, "must be a positive integer"),
        ((10, 60), {}, ValueError, "exact trace, which costs 60 products"),
        (10, {"num_seeds": 0}, ValueError, "name no seeds"),
        (10, {"num_seeds": "many"}, TypeError, "name no seeds"),
        (10, {"rng": -1}, ValueError, "name no seeds"),
        (10, {"rng": np.random.default_rng(0)}, TypeError, "name no seeds"),
        (10, {"exact": "large"}, TypeError, "must be a number"),
        (10, {"exact": np.nan}, ValueError, "is not finite"),
        (10, {"exact": np.ones(3)}, TypeError, "must be a number"),
        (10, {"methods": {}}, TypeError, "must map names to functions"),
        (10, {"methods": ["xtrace"]}, TypeError, "must map names to functions"),
        (10, {"methods": {"xtrace": "xtrace"}}, TypeError, "must map names to functions"),
        (10, {"methods": {"mine": lambda A, m, rng: 1.0}}, TypeError, "returned float"),
    ],
)
def test_bad_input_gets_one_clear_sentence(budgets, options, error, words):
    with pytest.raises(error, match=words) as caught:
        compare(decaying(), budgets, **options)
    assert "\n" not in str(caught.value)


def test_a_rectangle_or_an_indefinite_matrix_is_refused():
    with pytest.raises(ValueError, match="square"):
        compare(np.ones((3, 4)), 2)
    with pytest.raises(ValueError, match="semidefinite"):
        compare(np.diag(np.linspace(-1.0, 1.0, 40)), 20, psd=True, num_seeds=1)
