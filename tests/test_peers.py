"""The comparison with other libraries: how it counts, judges and tells what was measured."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import environments, judgement, results, tables, verdicts
from benchmarks.peers.contract import Counted, Counter, Peer
from benchmarks.peers.judgement import Cell

ROOT = Path(__file__).parents[1]
NAMES = environments.NAMES


def adapter(name):
    return importlib.import_module(f"benchmarks.peers.adapters.{name}")


@pytest.fixture(scope="module")
def measured():
    return results.load()


# --- counting -----------------------------------------------------------------------------------


def test_columns_are_counted_on_both_sides_and_through_the_adjoint():
    A, counter = np.arange(9.0).reshape(3, 3), Counter()
    operator = Counted(A, counter)
    assert np.array_equal(operator @ np.eye(3)[:, :2], A[:, :2])
    assert np.array_equal(np.ones((4, 3)) @ operator, np.ones((4, 3)) @ A)
    assert np.array_equal(operator.T @ np.ones(3), A.T @ np.ones(3))
    assert np.array_equal(operator.adjoint() @ np.eye(3), A.T)
    assert np.array_equal(operator.H.T @ np.ones((3, 1)), A @ np.ones((3, 1)))
    assert counter.products == 2 + 4 + 1 + 3 + 1


def test_our_estimators_spend_what_the_counter_sees():
    A = np.diag(1.0 / np.arange(1.0, 81.0))
    ours = adapter("tracekit")
    for quantity, methods in ours.METHODS.items():
        for method in methods:
            counter = Counter()
            ours.make(quantity, method, A, 24, "NumPy", counter)(0)
            assert 0 < counter.products <= 24, (quantity, method)


# --- judging ------------------------------------------------------------------------------------


def test_a_median_comes_with_the_noise_of_its_logarithm():
    errors = np.random.default_rng(0).exponential(size=400)
    found = judgement.cell(errors, products=60)
    assert found.median == np.median(errors)
    assert found.seeds == 400
    several = [np.median(np.random.default_rng(k).exponential(size=400)) for k in range(200)]
    assert found.noise == pytest.approx(np.std(np.log(several)), rel=0.35)


def test_runs_without_a_number_are_the_worst_there_can_be():
    assert judgement.cell([1.0, np.nan, np.nan], 1).median == np.inf


@pytest.mark.parametrize(
    ("ours", "theirs", "good"),
    [
        (1.0, 1.0, True),
        (1.5, 1.0, True),  # exp(2.33 sqrt(2) 0.2) = 1.93
        (2.0, 1.0, False),
        (1e-15, 1e-17, True),  # both are rounding
        (1e-12, 1e-17, False),
    ],
)
def test_errors_hold_within_the_noise_of_both(ours, theirs, good):
    a, b = (Cell(median, 0.2, 30, 60) for median in (ours, theirs))
    assert judgement.holds(a, b) is good


def test_pooling_sees_a_loss_that_single_cells_hide():
    pairs = [(Cell(1.3, 0.2, 30, 60), Cell(1.0, 0.2, 30, 60))] * 30
    assert all(judgement.holds(*pair) for pair in pairs)
    ratio, allowed = judgement.pooled(pairs)
    assert ratio == pytest.approx(1.3)
    assert allowed < 1.3


def test_a_time_holds_within_a_tenth():
    assert judgement.fast_enough(1.09, 1.0)
    assert not judgement.fast_enough(1.11, 1.0)


def test_what_exceeds_the_budget_or_fails_is_not_compared():
    made = {
        "errors": {
            "tracekit": {"trace": {"p": {"60": {"XTrace": [0.1, 0.2, 30, 60, 1.0]}}}},
            "greedy": {"trace": {"p": {"60": {"XTrace": [0.001, 0.2, 30, 61, 1.0]}}}},
            "broken": {"trace": {"p": {"60": {"XTrace": "error: ValueError: no"}}}},
            "plain": {"trace": {"p": {"60": {"XTrace": [0.01, 0.2, 30, 60, 1.0]}}}},
        }
    }
    (verdict,) = verdicts.errors(made, "trace")
    assert (verdict.peer, verdict.good) == ("plain", False)
    assert verdict.ratio == pytest.approx(10)


def test_times_are_compared_on_the_same_arrays():
    key = [2000, 300]
    made = {
        "times": {
            "tracekit": [
                [*key, "NumPy", "XTrace", 9.0, 90.0, 50.0, 1.8],
                [*key, "JAX, jitted", "XTrace", 9.0, 80.0, 50.0, 1.6],
            ],
            "one": [
                [*key, "NumPy", "XTrace", 9.0, 95.0, 60.0, 1.6],
                [*key, "JAX, jitted", "XTrace", 9.0, 40.0, 50.0, 0.8],
                [*key, "NumPy", "Hutch++", "error: ValueError: no"],
            ],
        }
    }
    numpy, jitted = verdicts.times(made)
    assert not numpy.good
    assert numpy.ratio == pytest.approx(1.8 / 1.6)  # of the ratios to the bare product
    assert verdicts.judged(numpy)
    assert not verdicts.judged(jitted)


# --- adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_names_its_library_its_version_and_its_home(name):
    module = adapter(name)
    peer = module.PEER
    assert isinstance(peer, Peer)
    assert module.MODES
    assert isinstance(module.METHODS, dict)
    pins = (environments.PINS / f"{name}.txt").read_text(encoding="ascii").split()
    assert all("==" in pin for pin in pins)
    if name == verdicts.OURS:
        assert "torch==2.13.0" in pins
        return
    assert f"{peer.distribution}=={peer.version}" in pins
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+", peer.homepage)
    assert peer.arrays
    assert peer.beyond


def test_each_adapter_has_its_pins_and_each_list_its_adapter():
    folder = environments.PINS.with_name("adapters")
    adapters = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert adapters == set(NAMES)


def test_torch_is_pinned_alike_everywhere():
    constraints = (ROOT / "constraints.txt").read_text(encoding="ascii")
    for path in environments.PINS.glob("*.txt"):
        for pin in re.findall(r"^torch==\S+$", path.read_text(encoding="ascii"), re.MULTILINE):
            assert pin in constraints


# --- telling ------------------------------------------------------------------------------------


def test_what_was_measured_is_kept_small_and_survives_a_round_trip(measured, tmp_path):
    assert results.PATH.stat().st_size < 80_000
    copy = tmp_path / "peers.json"
    results.save(measured, copy)
    assert copy.read_bytes() == results.PATH.read_bytes()


def test_versions_measured_are_those_pinned(measured):
    for name in NAMES:
        if name != verdicts.OURS:
            assert measured["peers"][name]["version"] == adapter(name).PEER.version


@pytest.mark.parametrize("name", tables.RENDERED)
def test_tables_have_as_many_cells_in_every_row(measured, name):
    lines = tables.RENDERED[name](measured)
    assert lines
    if lines[0].startswith("|"):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(widths) == 1
        assert len(lines) > 2


def test_the_pages_show_what_was_measured(measured):
    whole, short = (page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert set(re.findall(r"<!-- table: (\w+) -->", whole)) == set(tables.RENDERED)
    assert re.findall(r"<!-- table: (\w+) -->", short) == ["summary"]
    assert tables.page(measured, whole) == whole
    assert tables.page(measured, short) == short


def test_the_rows_that_fall_short_are_those_that_the_rule_finds(measured):
    marked = sum(
        line.rstrip(" |").endswith("SHORT")
        for name in ("trace", "diagonal", "norm", "logdet", "times")
        for line in tables.RENDERED[name](measured)
    )
    of_kernels = sum(not verdict.good for verdict in verdicts.kernels(measured))
    assert len(verdicts.short(measured)) == marked + of_kernels


def test_the_comparison_is_printed_whole(measured):
    text = tables.printed(measured)
    for peer in measured["peers"].values():
        assert peer["called"] in text


def test_libraries_not_measured_anew_keep_their_figures(measured):
    rows = [["i^-2", "trace", 30, 1.0, 24.0]]
    found = {"tracekit": {"tolerance": {"version": "", "rows": rows, "seconds": 1.0}}}
    before = json.loads(json.dumps(measured))
    reduced = results.reduce(found, before)
    assert reduced["tolerance"]["tracekit"] == rows
    assert reduced["errors"]["matfree"] == measured["errors"]["matfree"]
