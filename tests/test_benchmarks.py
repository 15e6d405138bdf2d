"""The benchmarks: each runs, and the gate on them sees what is worse."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import math
import re
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import check, measure, networks
from benchmarks.asv import _backends, tracked
from benchmarks.targets import __main__ as targets
from benchmarks.targets import norms, tolerances
from benchmarks.targets.table import Row, Table, figure, seeds

FOLDER = Path(_backends.__file__).parent
MODULES = {
    path.stem: importlib.import_module(f"benchmarks.asv.{path.stem}")
    for path in sorted(FOLDER.glob("[a-z]*.py"))
}
HERE = "numpy:cpu"
DERIVATIVES = "torch:cpu" if find_spec("torch") else "jax:cpu"
CLASSES = [
    value
    for module in MODULES.values()
    for value in vars(module).values()
    if inspect.isclass(value) and value.__module__ == module.__name__ and hasattr(value, "params")
]
ROW = "hutchpp i^-2 m=24"
EXPECTED = {"error": 1e-2, "coverage": 0.95, "products": 24}
FOUND = {**EXPECTED, "claimed": 24}


def smallest(benchmark: type) -> tuple:
    """The first of all parameters, on a library that can run it."""
    params = benchmark.params if isinstance(benchmark.params[0], tuple) else (benchmark.params,)
    first = [values[0] for values in params]
    if benchmark.param_names[0] == "library:device":
        first[0] = HERE if HERE in params[0] else DERIVATIVES
    return tuple(first)


@pytest.mark.parametrize("benchmark", CLASSES, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_benchmark_runs_at_its_first_parameters(benchmark, monkeypatch):
    monkeypatch.setattr(tracked, "SEEDS", 3)
    monkeypatch.setattr(benchmark, "pairs", 2, raising=False)
    made, params = benchmark(), smallest(benchmark)
    runs = [name for name in dir(made) if re.match("(time|timeraw|track)_", name)]
    assert runs
    if hasattr(made, "setup"):
        try:
            made.setup(*params)
        except NotImplementedError as why:  # as asv skips it
            pytest.skip(str(why))
    before = (dict(tracked.tracked([params])),) if hasattr(made, "setup_cache") else ()
    for name in runs:
        result = getattr(made, name)(*before, *params)
        if name.startswith("track_"):
            assert math.isfinite(result)
        if name.startswith("timeraw_"):
            compile(result, name, "exec")


def test_modules_of_benchmarks_hold_no_other_modules_benchmarks():
    """Or asv would run them twice."""
    for module in MODULES.values():
        for value in vars(module).values():
            if inspect.isclass(value) and value in CLASSES:
                assert value.__module__ == module.__name__


@pytest.mark.parametrize("on", _backends.ALL)
def test_a_library_is_loaded_or_the_reason_is_told(on):
    library, device = on.split(":")
    if device == "cpu" and find_spec(library):
        lib = _backends.backend(on)
        x = lib.asarray(tracked.SPECTRA["1+U"]())
        assert float(lib.wait(lib.xp.sum(x))) == pytest.approx(float(sum(x)), rel=1e-12)
    elif find_spec(library) is None:
        with pytest.raises(NotImplementedError, match=f"{library} is not installed"):
            _backends.backend(on)


def test_without_a_gpu_that_is_the_reason(monkeypatch):
    monkeypatch.setattr(_backends, "GPU_NODES", ())
    monkeypatch.setattr(_backends, "find_spec", bool)
    with pytest.raises(NotImplementedError, match="no GPU"):
        _backends.backend.__wrapped__("cupy:cuda")


def test_libraries_give_the_same_estimates():
    ours = tracked.traces(HERE)
    strict = tracked.traces("array_api_strict:cpu")
    assert tracked.difference(strict, ours) < check.APART
    assert [spent for _, spent in strict.values()] == [spent for _, spent in ours.values()]


# --- the gate -------------------------------------------------------------------------------------


def test_what_is_as_expected_passes():
    assert check.regressions(ROW, FOUND, EXPECTED) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"error": 1.06e-2}, "median relative error 0.0106"),
        ({"error": math.nan}, "median relative error nan"),
        ({"coverage": 0.92}, "92.0% of the intervals cover"),
        ({"products": 25, "claimed": 25}, "25 products, expected 24"),
        ({"products": 23, "claimed": 23}, "23 products, expected 24"),
        ({"claimed": 20}, "the estimates claim 20"),
    ],
)
def test_what_is_worse_or_counts_otherwise_is_one_sentence(change, says):
    (sentence,) = check.regressions(ROW, FOUND | change, EXPECTED)
    assert sentence.startswith(ROW)
    assert says in sentence


@pytest.mark.parametrize(
    "change", [{"error": 1.04e-2}, {"error": 1e-5}, {"coverage": 0.93}, {"coverage": 1.0}]
)
def test_what_is_better_or_within_the_allowance_passes(change):
    assert check.regressions(ROW, FOUND | change, EXPECTED) == []


def test_rounding_is_no_regression():
    exact = EXPECTED | {"error": 1e-17}
    assert check.regressions(ROW, FOUND | {"error": 60 * 2.0**-52}, exact) == []
    assert len(check.regressions(ROW, FOUND | {"error": 70 * 2.0**-52}, exact)) == 1


def test_a_row_that_nobody_expects_is_a_fault():
    (sentence,) = check.regressions(ROW, FOUND, None)
    assert "--update" in sentence


def gate(monkeypatch, tmp_path, rows, *arguments):
    """Run the gate with some rows found, on figures of its own."""
    monkeypatch.setattr(check, "EXPECTED", tmp_path / "expected.json")
    monkeypatch.setattr(check, "measured", lambda: iter(rows.items()))
    monkeypatch.setattr(check, "disagreements", lambda: iter([("torch:cpu", "0.0e+00  ok", [])]))
    return check.main(list(arguments))


def test_the_gate_closes_and_opens_again(monkeypatch, tmp_path, capsys):
    assert gate(monkeypatch, tmp_path, {ROW: FOUND}, "--update") == 0
    assert json.loads((tmp_path / "expected.json").read_text()) == {ROW: EXPECTED}
    assert gate(monkeypatch, tmp_path, {ROW: FOUND}) == 0
    capsys.readouterr()
    assert gate(monkeypatch, tmp_path, {ROW: FOUND | {"error": 2e-2}}) == 1
    printed = capsys.readouterr().out
    assert "WORSE" in printed
    assert printed.endswith("1 rows, 1 regressions\n")
    assert gate(monkeypatch, tmp_path, {}) == 1
    assert "no longer measured" in capsys.readouterr().out


def test_everything_measured_is_expected_and_nothing_else():
    expected = json.loads(check.EXPECTED.read_text(encoding="utf-8"))
    cells = itertools.product(*tracked.Accuracy.params)
    assert list(expected) == [f"{name} {spectrum} m={m}" for name, spectrum, m in cells]


def test_some_expected_figures_are_found_here():
    expected = json.loads(check.EXPECTED.read_text(encoding="utf-8"))
    for cell, found in tracked.tracked([("hutchpp", "i^-2", 24), ("xnystrace", "1+U", 96)]):
        row = f"{cell[0]} {cell[1]} m={cell[2]}"
        assert check.regressions(row, found._asdict(), expected[row]) == []


# --- clocks, memory, processes --------------------------------------------------------------------


def test_work_in_a_process_of_its_own_returns_what_json_knows():
    assert measure.apart(math.hypot, 3, 4) == 5.0
    with pytest.raises(RuntimeError, match="ValueError"):
        measure.apart(math.sqrt, -1)
    with pytest.raises(RuntimeError, match=r"no answer in 0\.01 s"):
        measure.apart(math.hypot, 3, 4, patience=0.01)


def test_clocks_tell_the_slower_from_the_faster():
    fast, slow = measure.least([lambda: sum(range(100)), lambda: sum(range(100_000))], 3)
    assert 0 <= fast < slow
    work = lambda turn=0: sum(range(20_000))  # noqa: E731
    mine, plain, ratio = measure.in_turn(lambda turn: [work() for _ in range(10)], work, 5)
    assert mine > plain
    assert ratio > 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone knows it")
def test_the_peak_of_a_block_is_what_it_holds_at_most():
    assert 2e7 < measure.peak_above(lambda: bytearray(b"x" * 20_000_000)) < 8e7


# --- targets --------------------------------------------------------------------------------------


def test_a_table_prints_its_rows_and_what_falls_short(capsys):
    rows = [
        Row(("a", 1.234), {"error": True, "count": True}),
        Row(("b", math.nan), {"error": False, "count": True}),
        Row(("c", None)),
    ]
    assert Table("T", {"name": "<6", "x": ">6.1f"}, rows).show() == [True, True, False, True]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-4:] == [
        "name       x",
        "a        1.2  ok",
        "b          -  SHORT error",
        "c          -",
    ]


def test_figures_have_bounds():
    assert figure("f", 1.0, least=1.0).holds == {"": True}
    assert figure("f", 1.1, most=1.0).holds == {"": False}
    assert figure("f", math.nan, most=1.0).holds == {"": False}
    assert figure("f", 1.0).holds == {}


def test_fewer_seeds_are_asked_for_by_the_environment(monkeypatch):
    monkeypatch.delenv("SEEDS", raising=False)
    assert seeds(30) == 30
    monkeypatch.setenv("SEEDS", "2")
    assert (seeds(30), seeds(1)) == (2, 1)


@pytest.mark.parametrize("good", [True, False])
def test_the_exit_status_says_whether_all_holds(good, monkeypatch, capsys):
    for name, value in measure.ONE_THREAD.items():
        monkeypatch.setenv(name, value)  # and back again
    subject = types.ModuleType("subject", "What it is.")
    subject.tables = lambda: [
        Table("T", {"x": ">3"}, [Row((1,), {"": True}), Row((2,), {"": good})])
    ]
    monkeypatch.setitem(sys.modules, "benchmarks.targets.memory", subject)
    assert targets.main(["memory"]) == int(not good)
    printed = capsys.readouterr().out
    assert "memory: What it is." in printed
    assert f"2 figures, {int(not good):3} fall short" in printed


def test_an_unknown_subject_is_refused(capsys):
    with pytest.raises(SystemExit):
        targets.main(["speed"])
    assert "no subject is called speed" in capsys.readouterr().err


REDUCED = {  # a subject, and what is made smaller of it
    "accuracy": {"N": 64, "SEEDS": 2, "REPETITIONS": {60: 1, 300: 1}},
    "calibration": {"N": 300, "SEEDS": 2, "GRID": [4, 16]},
    "norms": {"SEEDS": 2, "MANY_SEEDS": 2, "CASES": norms.CASES[:1], "TASKS": norms.TASKS[:1]},
    "memory": {"N": 1000},
    "tolerances": {
        "SEEDS": 2,
        "ORACLES": 2,
        "PARTS": (),
        "FUNCTIONS": {name: tolerances.FUNCTIONS[name] for name in ("hutchinson", "inner")},
    },
}


@pytest.mark.parametrize("subject", targets.SUBJECTS)
def test_every_subject_has_tables(subject):
    module = importlib.import_module(f"benchmarks.targets.{subject}")
    assert module.__doc__
    assert inspect.isgeneratorfunction(module.tables)


@pytest.mark.parametrize("subject", REDUCED)
def test_targets_run_when_they_are_made_small(subject, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.targets.{subject}")
    for name, value in REDUCED[subject].items():
        monkeypatch.setattr(module, name, value)
    if hasattr(module, "in_two_processes"):  # which would not know of the smaller numbers
        monkeypatch.setattr(module, "in_two_processes", map)
    held = [good for table in module.tables() for good in table.show()]
    assert len(held) > 5
    assert any(held)
    assert "  ok\n" in capsys.readouterr().out


@pytest.mark.parametrize("library", networks.LIBRARIES)
@pytest.mark.parametrize("name", ["mlp", "cnn", "embedding"])
def test_networks_run_in_both_frameworks(name, library):
    pytest.importorskip(library)
    f, params, x = getattr(networks, name)(networks.LIBRARIES[library]())
    y = f(params, x)
    assert tuple(y.shape) == {"mlp": (50, 64), "cnn": (4, 10), "embedding": (4, 4)}[name]
    assert str(y.dtype).endswith("float32")


# --- the dashboard --------------------------------------------------------------------------------


def test_the_dashboards_page_loads_nothing_from_afar():
    asv = pytest.importorskip("asv", reason="asv is not installed")
    from tools import asv_plugin

    page = Path(asv.__file__).with_name("www") / "index.html"
    text, names = asv_plugin.localised(page.read_text(encoding="utf-8"))
    assert set(names) == set(asv_plugin.FILES)
    assert not re.search(r'<(?:script|link|img)\b[^>]*(?:src|href)="https?:', text)
    assert "integrity" not in text


def test_a_script_that_is_not_vendored_is_named():
    pytest.importorskip("asv", reason="asv is not installed")
    from tools import asv_plugin

    with pytest.raises(RuntimeError, match=r"page loads new\.js"):
        asv_plugin.localised('<script src="https://example.org/new.js"></script>')
