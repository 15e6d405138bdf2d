"""The command line prints what the library computes, and ends every mistake with one sentence."""

from __future__ import annotations

import bz2
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import by_products
from scipy import sparse
from scipy.io import mmwrite, savemat

import tracekit as tk
from tracekit import cli
from tracekit.cli import arguments as arguments_module
from tracekit.cli import console
from tracekit.cli import estimate as estimate_module

ESCAPE, RETURN = "\x1b", "\r"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of a graph, positive definite matrices small and large, and a complex matrix."""
    folder = tmp_path_factory.mktemp("matrices")
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((40, 40)) < 0.3, 1)
    mmwrite(folder / "graph.mtx", sparse.coo_array((upper | upper.T).astype(int)))
    factor = rng.standard_normal((40, 40)) / np.arange(1, 41)
    np.save(folder / "psd.npy", factor @ factor.T)
    np.save(folder / "decay.npy", tk.testing.known_spectrum(np.arange(1.0, 301) ** -2))
    np.save(folder / "flat.npy", tk.testing.known_spectrum(np.linspace(1.0, 2.0, 300)))
    matrix = rng.standard_normal((30, 30)) + 1j * rng.standard_normal((30, 30))
    sparse.save_npz(folder / "complex.npz", sparse.csr_array(matrix))
    np.save(folder / "rectangle.npy", np.ones((2, 3)))
    return folder


read_operator = arguments_module.read_operator


@pytest.fixture(autouse=True)
def known_by_products():
    """Let the command estimate: it reads the diagonal of what is in the file otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            arguments_module, "read_operator", lambda path: by_products(read_operator(path))
        )
        yield


@pytest.fixture
def known_by_entries(known_by_products, monkeypatch):
    """Let the command read as it does, but for other tests."""
    monkeypatch.setattr(arguments_module, "read_operator", read_operator)


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run the command in the folder of matrices: exit code, output, errors."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def report(run):
    """Run ``tracekit estimate --json`` and parse what it prints."""

    def report(*arguments):
        code, out, err = run("estimate", *arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out, parse_constant=pytest.fail)

    return report


def environment(**variables):
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "PYTHONWARNINGS")}
    source = Path(tk.__file__).parents[1]
    return kept | {"PYTHONPATH": str(source), "TERM": "xterm"} | variables


def spawn(folder, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize("method", estimate_module.METHODS)
def test_prints_what_the_library_computes(report, folder, method):
    A = np.load(folder / "psd.npy")
    for seed in (0, 7):
        expected = getattr(tk, method)(A, 20, rng=seed)
        printed = report("psd.npy", "--method", method, "--num-matvecs", 20, "--seed", seed)
        assert printed["value"] == pytest.approx(float(expected), rel=1e-9)
        assert printed["standard_error"] == pytest.approx(float(expected.standard_error), rel=1e-6)
        assert printed["num_matvecs"] == expected.num_matvecs <= 20
        assert printed["method"] == expected.method
        assert printed["seed"] == seed


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {}),
        (("--rtol", "1e-3"), {"rtol": 1e-3}),
        (("--atol", "0.02"), {"rtol": 0.0, "atol": 0.02}),
        (("--atol", "0.02", "--rtol", "0.01"), {"atol": 0.02}),
        (("--psd", "--rtol", "1e-3"), {"psd": True, "rtol": 1e-3}),
        (("--num-matvecs", "60"), {"rtol": 0.0, "num_matvecs": 60}),
        (("--num-matvecs", "290", "--rtol", "1e-2", "--method", "auto"), {"num_matvecs": 290}),
        (("--rtol", "0"), {"rtol": 0.0}),
    ],
)
def test_the_automatic_choice_is_that_of_trace(report, folder, arguments, options):
    A = np.load(folder / "decay.npy")
    expected = tk.trace(by_products(A), rng=0, **options)
    printed = report("decay.npy", "--seed", 0, *arguments)
    assert printed["value"] == pytest.approx(float(expected), rel=1e-9)
    assert printed["standard_error"] == pytest.approx(float(expected.standard_error), rel=1e-6)
    for name in ("num_matvecs", "method", "reason"):
        assert printed[name] == getattr(expected, name)
    assert printed["converged"] is True
    assert abs(printed["value"] / np.trace(A) - 1) < 0.02
    assert printed["rtol"] == options.get("rtol", 0.01)


@pytest.mark.usefixtures("known_by_entries")
@pytest.mark.parametrize("file", ["decay.npy", "graph.mtx", "complex.npz"])
def test_a_matrix_is_read_not_estimated(run, report, folder, tmp_path, file):
    from tracekit.io import read_matrix

    exact = complex(read_matrix(folder / file).trace())
    for more in ((), ("--rtol", "1e-9"), ("--num-matvecs", "5"), ("--plot", tmp_path / "a.png")):
        printed = report(file, *more)
        value = printed["value"]
        assert complex(*value if isinstance(value, list) else [value]) == pytest.approx(exact)
        assert (printed["standard_error"], printed["num_matvecs"]) == (0.0, 0)
        assert (printed["method"], printed["seed"]) == ("sum_of_diagonal", None)
        assert printed["converged"] is True
    code, out, _ = run("estimate", file)
    assert code == 0
    assert "sum_of_diagonal, 0 products with A" in out
    assert "none: nothing was drawn" in out
    for more in (("--power", "2"), ("--method", "hutchinson")):
        assert report(file, *more, "--num-matvecs", 5, "--seed", 0)["num_matvecs"] == 5
    assert report(file, "--exact")["method"] == "exact_trace"


def test_a_budget_alone_is_spent(report):
    assert report("decay.npy", "--num-matvecs", 60, "--seed", 0)["num_matvecs"] == 60


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace"])
def test_named_methods_take_a_tolerance(report, folder, method):
    A = np.load(folder / "flat.npy")
    expected = getattr(tk, method)(A, 600, rng=0, rtol=0.01)
    printed = report("flat.npy", "--method", method, "--rtol", 0.01, "--seed", 0)
    assert printed["num_matvecs"] == expected.num_matvecs
    assert printed["value"] == pytest.approx(float(expected), rel=1e-9)
    assert printed["converged"] is True


def test_a_function_whose_quadrature_has_not_settled_exits_3(run, tmp_path):
    path = tmp_path / "stiff.npy"
    np.save(path, np.diag(np.r_[np.full(300, 1e-8), np.linspace(1, 1e4, 100)]))
    ask = "estimate", path, "--function", "log", "--num-matvecs", 20, "--seed", 0
    code, out, _ = run(*ask)
    assert code == 3
    assert "has not settled" in out
    assert "one probe" not in out
    code, out, _ = run(*ask, "--json")
    assert code == 3
    assert json.loads(out)["converged"] is False


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xtrace", "xnystrace"])
def test_a_tolerance_that_is_not_met_exits_3_and_prints(run, method):
    arguments = ("estimate", "flat.npy", "--rtol", "1e-6", "--num-matvecs", 64, "--seed", 0)
    code, out, err = run(*arguments, "--method", method)
    assert (code, err) == (3, "")
    assert "0.0001 % of the value: not met" in out
    code, out, _ = run(*arguments, "--method", method, "--json")
    assert code == 3
    assert json.loads(out)["converged"] is False
    assert json.loads(out)["num_matvecs"] <= 64


def test_json_holds_everything(report):
    printed = report("graph.mtx", "--num-matvecs", 20, "--seed", 3, "--level", 0.8)
    assert printed.keys() >= {
        "value", "standard_error", "num_matvecs", "method", "converged", "reason", "level",
        "confidence_interval", "rtol", "atol", "max_matvecs", "file", "shape", "power", "seed",
        "checkpoint", "resumed", "seconds", "plot",
    }  # fmt: skip
    low, high = printed["confidence_interval"]
    assert low < printed["value"] < high
    assert (printed["file"], printed["shape"]) == ("graph.mtx", [40, 40])
    assert (printed["level"], printed["power"]) == (0.8, 1)
    wider = report("graph.mtx", "--num-matvecs", 20, "--seed", 3, "--level", 0.99)
    assert wider["confidence_interval"][0] < low


def test_one_probe_has_no_interval(report, run):
    budget = ("--method", "hutchinson", "--num-matvecs", 1, "--power", 3)
    printed = report("graph.mtx", *budget)
    assert printed["standard_error"] is None
    assert printed["confidence_interval"] == [None, None]
    code, out, _ = run("estimate", "graph.mtx", *budget)
    assert code == 0
    assert "unknown" in out


def test_seeds_make_runs_repeatable(report):
    fresh, other = (report("graph.mtx", "--num-matvecs", 10) for _ in range(2))
    assert fresh["seed"] != other["seed"]
    assert fresh["value"] != other["value"]
    again = report("graph.mtx", "--num-matvecs", 10, "--seed", fresh["seed"])
    assert again["value"] == fresh["value"]


def test_a_fresh_seed_is_printed_with_how_to_repeat_it(run):
    for arguments in (("decay.npy",), ("decay.npy", "--method", "xtrace")):
        _, out, _ = run("estimate", *arguments)
        seed = out.partition("seed ")[2].split()[0]
        assert f"{seed} (fresh; --seed {seed} repeats this run)" in out
        _, again, _ = run("estimate", *arguments, "--seed", seed)
        assert again.splitlines()[0] == out.splitlines()[0]
        assert "fresh" not in again


@pytest.mark.parametrize("power", [1, 2, 3, 5])
def test_power_and_exact(report, folder, power):
    exact = {
        name: complex(np.trace(np.linalg.matrix_power(A, power)))
        for name, A in {
            "graph.mtx": adjacency(folder),
            "complex.npz": sparse.load_npz(folder / "complex.npz").toarray(),
        }.items()
    }
    graph = report("graph.mtx", "--power", power, "--exact")
    assert graph["value"] == pytest.approx(exact["graph.mtx"].real, rel=1e-12, abs=1e-9)
    assert graph["standard_error"] == 0
    assert graph["confidence_interval"] == [graph["value"]] * 2
    assert graph["num_matvecs"] <= 40
    assert graph["seed"] is None

    real, imaginary = report("complex.npz", "--power", power, "--exact")["value"]
    assert complex(real, imaginary) == pytest.approx(exact["complex.npz"], rel=1e-9)

    estimate = report("graph.mtx", "--power", power, "--num-matvecs", 30, "--seed", 1)
    error = abs(estimate["value"] - exact["graph.mtx"].real)
    assert error < 6 * estimate["standard_error"]


def adjacency(folder):
    from tracekit.io import read_matrix

    return read_matrix(folder / "graph.mtx").toarray()


def test_triangles_of_a_graph(report, folder):
    A = adjacency(folder)
    triangles = sum(
        A[i, j] * A[j, k] * A[k, i] for i in range(40) for j in range(i) for k in range(j)
    )
    assert report("graph.mtx", "--power", 3, "--exact")["value"] / 6 == triangles


def test_a_large_power_composes_without_recursion(report, folder):
    np.save(folder / "half.npy", 0.999 * np.eye(3))
    value = report("half.npy", "--power", 2000, "--exact")["value"]
    assert value == pytest.approx(3 * 0.999**2000, rel=1e-9)


def test_a_budget_above_the_dimension_is_exact(report):
    printed = report("psd.npy", "--num-matvecs", 1000)
    assert printed["standard_error"] == 0
    assert printed["num_matvecs"] <= 40


def test_plain_output(run):
    budget = ("--method", "xtrace", "--num-matvecs", 20, "--seed", 5)
    code, out, err = run("estimate", "graph.mtx", "--power", 3, *budget)
    assert (code, err) == (0, "")
    for row in ("trace of A^3", "95 % interval", "xtrace, 20 products with A^3 (40 x 40)"):
        assert row in out
    assert "seed" in out
    assert ESCAPE not in out
    assert RETURN not in out

    code, out, _ = run("estimate", "complex.npz", "--num-matvecs", 20, "--seed", 5)
    assert code == 0
    assert "i\n" in out
    assert "real part" in out

    _, out, _ = run("estimate", "decay.npy", "--psd", "--atol", 0.01, "--rtol", 0.02, "--seed", 5)
    assert "tolerance       0.01 + 2 % of the value: met\n" in out
    assert "method          xnystrace, " in out
    assert "reason          psd was declared\n" in out


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (228613.7, 1234.0, "228600"),
        (-1.644934, 0.00123, "-1.6449"),
        (3.0, 250.0, "0"),
        (1.23456e-9, 1e-13, "1.23456e-09"),
        (1.23456e20, 1e16, "1.23456e+20"),
        (22180.0, 0.0, "22180"),
        (2.5, None, "2.5"),
        (None, None, "unknown"),
        ([1.25, -2.5], 0.1, "1.25 - 2.50i"),
        ([-1.25, 2.5], 0.1, "-1.25 + 2.50i"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value, error, text):
    assert console.rounded(value, error) == text


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize(
    ("file", "method"),
    [("graph.mtx", "xtrace"), ("complex.npz", "hutchinson"), ("flat.npy", "auto")],
)
def test_plot(run, tmp_path, file, method, suffix):
    path = tmp_path / f"out{suffix}"
    budget = ("--num-matvecs", 25, "--seed", 0)
    code, out, err = run("estimate", file, "--method", method, *budget, "--plot", path)
    assert (code, err) == (0, "")
    assert out.rstrip().endswith(f" {path}")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n" if suffix == ".png" else b"<?xml")


@pytest.mark.parametrize("budget", [1, 1000])
def test_plot_of_the_smallest_and_of_exact_budgets(run, tmp_path, budget):
    code, _, err = run(
        "estimate", "psd.npy", "--num-matvecs", budget, "--plot", tmp_path / "out.svg"
    )
    assert (code, err) == (0, "")


def test_a_plot_of_the_automatic_choice_shows_every_look_and_costs_nothing(
    run, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(estimate_module, "plot", lambda points, *_: drawn.extend(points))
    code, _, _ = run("estimate", "decay.npy", "--rtol", 1e-3, "--plot", tmp_path / "out.svg")
    products = [point.num_matvecs for point in drawn]
    assert code == 0
    assert products == sorted(set(products))
    assert products[:4] == [8, 16, 32, 48]
    assert len(products) > 4


def test_plot_beside_json_leaves_the_output_one_object(report, tmp_path):
    printed = report("graph.mtx", "--num-matvecs", 20, "--plot", tmp_path / "out.png")
    assert printed["plot"] == str(tmp_path / "out.png")
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("estimate",),
        ("unknown",),
        ("estimate", "graph.mtx", "--unknown"),
        ("estimate", "graph.mtx", "--method", "unknown"),
        ("estimate", "graph.mtx", "--num-matvecs", "0"),
        ("estimate", "graph.mtx", "--num-matvecs", "-3"),
        ("estimate", "graph.mtx", "--num-matvecs", "2.5"),
        ("estimate", "graph.mtx", "--num-matvecs", "many"),
        ("estimate", "graph.mtx", "--num-matvecs", "\u00b2"),
        ("estimate", "graph.mtx", "--num-matvecs", "9" * 5000),
        ("estimate", "graph.mtx", "--seed", "-1"),
        ("estimate", "graph.mtx", "--power", "0"),
        ("estimate", "graph.mtx", "--level", "95"),
        ("estimate", "graph.mtx", "--level", "nan"),
        ("estimate", "graph.mtx", "--level", "high"),
        ("estimate", "graph.mtx", "--exact", "--num-matvecs", "5"),
        ("estimate", "graph.mtx", "--exact", "--method", "xtrace"),
        ("estimate", "graph.mtx", "--exact", "--plot", "out.png"),
        ("estimate", "graph.mtx", "--exact", "--rtol", "0.1"),
        ("estimate", "graph.mtx", "--rtol", "-1"),
        ("estimate", "graph.mtx", "--rtol", "inf"),
        ("estimate", "graph.mtx", "--atol", "small"),
        ("estimate", "graph.mtx", "--rtol", "0.1", "--method", "hutchpp"),
        ("estimate", "graph.mtx", "--atol", "0.1", "--method", "nahutchpp"),
        ("estimate", "graph.mtx", "--checkpoint", "kept.npz", "--method", "xtrace"),
        ("estimate", "graph.mtx", "--checkpoint", "kept.txt"),
        ("estimate", "graph.mtx", "--checkpoint", "complex.npz"),
        ("estimate", "graph.mtx", "--checkpoint", "no/such/folder/kept.npz"),
        ("compare",),
        ("compare", "graph.mtx", "--num-matvecs", "10,"),
        ("compare", "graph.mtx", "--num-matvecs", "10,0"),
        ("compare", "graph.mtx", "--num-matvecs", "10,40"),
        ("compare", "graph.mtx", "--num-seeds", "0"),
        ("compare", "graph.mtx", "--plot", "out.txt"),
        ("compare", "missing.mtx"),
        ("estimate", "graph.mtx", "--plot", "out.txt"),
        ("estimate", "graph.mtx", "--plot", "no/such/folder/out.png"),
    ],
)
def test_wrong_usage_exits_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("file", ["missing.mtx", "rectangle.npy", "graph.csv", ".", "\0.npy"])
def test_a_bad_file_exits_2_with_one_sentence(run, file):
    code, out, err = run("estimate", file)
    assert (code, out) == (2, "")
    assert err.startswith("tracekit: error: ")
    assert err.count("\n") == 1


def test_a_plot_that_cannot_be_written_exits_2_and_keeps_the_result(run, tmp_path):
    (tmp_path / "out.png").mkdir()
    arguments = ("graph.mtx", "--num-matvecs", 10, "--plot", tmp_path / "out.png")
    for command, *more in (("estimate",), ("estimate", "--json"), ("compare", "--json")):
        code, out, err = run(command, *arguments, *more)
        assert code == 2
        assert "hutchinson" in out
        assert err.count("\n") == 1
        if more:
            assert json.loads(out)["plot"] is None


def test_an_estimate_that_fails_exits_1_with_one_sentence(run, folder):
    np.save(folder / "huge.npy", np.full((20, 20), 1e200))
    np.save(folder / "indefinite.npy", np.diag(np.linspace(-1.0, 1.0, 40)))
    for arguments in (
        ("huge.npy", "--power", 3, "--num-matvecs", 8),
        ("huge.npy", "--power", 3, "--exact"),
        ("indefinite.npy", "--method", "xnystrace", "--num-matvecs", 20),
    ):
        code, out, err = run("estimate", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("tracekit: error: ")
        assert err.count("\n") == 1


@pytest.fixture
def ending(monkeypatch):
    """Let the matrix in the file end the run by `end()` once some columns were multiplied."""
    read = arguments_module.read_operator

    def ending(end, columns):
        spent = 0

        def read_and_watch(path):
            A = read(path)

            def product(X):
                nonlocal spent
                spent += X.shape[1]
                return A.matmat(X) if spent <= columns else end(A.matmat(X))

            return A._like(A.shape, product)

        monkeypatch.setattr(arguments_module, "read_operator", read_and_watch)

    return ending


def interrupt(Y):
    signal.raise_signal(signal.SIGINT)
    return Y


@pytest.mark.parametrize("method", ["auto", "hutchpp"])
def test_interruption_before_anything_is_known_exits_130(run, ending, method):
    ending(interrupt, 0)
    printed = run("estimate", "decay.npy", "--method", method)
    assert printed == (130, "", "tracekit: interrupted\n")


def test_interruption_prints_what_was_paid_for(run, ending):
    ending(interrupt, 50)  # in the second product of a look
    code, out, err = run("estimate", "decay.npy", "--rtol", 1e-4, "--json", "--seed", 0)
    assert (code, err) == (130, "tracekit: interrupted\n")
    printed = json.loads(out)
    assert printed["num_matvecs"] == 48
    assert printed["converged"] is False
    assert printed["reason"].endswith("ended by Ctrl-C")
    assert abs(printed["value"] - 1.64) < 0.1


def test_interruption_of_a_comparison_exits_130(run, ending):
    ending(interrupt, 1000)
    assert run("compare", "decay.npy") == (130, "", "tracekit: interrupted\n")


def test_the_same_command_goes_on_from_a_checkpoint(run, ending, tmp_path, monkeypatch):
    command = ("estimate", "decay.npy", "--rtol", 1e-4, "--json")
    whole = json.loads(run(*command, "--seed", 4)[1])
    for seed in (("--seed", 4), ()):
        kept = tmp_path / f"kept{len(seed)}.npz"
        monkeypatch.setattr(estimate_module.secrets, "randbits", lambda _: 4)
        with monkeypatch.context():
            ending(interrupt, 90)
            code, out, err = run(*command, *seed, "--checkpoint", kept)
        monkeypatch.undo()
        assert code == 130
        assert err == f"tracekit: interrupted: the same command goes on from {kept}\n"
        assert json.loads(out)["resumed"] is False
        code, out, err = run(*command, *seed, "--checkpoint", kept)
        printed = json.loads(out)
        assert (code, err) == (0, "")
        assert printed["resumed"] is True
        assert printed["seed"] in (4, None)
        for name in ("value", "standard_error", "num_matvecs", "method", "reason"):
            assert printed[name] == whole[name]
        again = json.loads(run(*command, *seed, "--checkpoint", kept)[1])
        assert again["value"] == whole["value"]
        assert "seed  " in run(*command[:-1], *seed, "--checkpoint", kept)[1]


def test_a_checkpoint_of_another_matrix_exits_1_with_one_sentence(run, tmp_path):
    kept = tmp_path / "kept.npz"
    assert run("estimate", "decay.npy", "--checkpoint", kept)[0] == 0
    np.save(tmp_path / "other.npy", np.eye(100))
    code, out, err = run("estimate", tmp_path / "other.npy", "--checkpoint", kept)
    assert (code, out) == (1, "")
    assert "dimension 300, not 100" in err


def test_products_that_are_not_finite_end_the_run_with_what_was_paid_for(run, ending):
    for method, first, second in (("auto", 32, 32), ("hutchinson", 32, 40)):
        for columns, paid in ((33, first), (43, second)):  # in two products after a look
            ending(lambda Y: Y * np.nan, columns)
            arguments = ("--method", method, "--rtol", 1e-4, "--json", "--seed", 0)
            code, out, err = run("estimate", "decay.npy", *arguments)
            assert code == 1
            assert err.startswith("tracekit: error: the operator's products contain NaN")
            printed = json.loads(out)
            assert printed["num_matvecs"] == paid
            assert printed["reason"].endswith("ended by products that are not finite")


@pytest.mark.parametrize(("error", "expected"), [(OSError, 2), (MemoryError, 1)])
def test_a_checkpoint_that_cannot_be_written_keeps_the_result(
    run, tmp_path, monkeypatch, error, expected
):
    calls = []

    def save(*_):
        calls.append(1)
        if len(calls) == 3:
            raise error("no room is left")

    monkeypatch.setattr("tracekit._estimates.files.save", save)
    kept = tmp_path / "kept.npz"
    code, out, err = run("estimate", "decay.npy", "--rtol", 1e-4, "--checkpoint", kept, "--json")
    assert (code, err) == (expected, "tracekit: error: no room is left\n")
    assert json.loads(out)["num_matvecs"] == 32  # what was spent is told, saved or not
    assert error.__name__ in json.loads(out)["reason"]


def test_products_that_fail_end_the_run_with_what_was_paid_for(run, ending):
    def fail(_):
        raise MemoryError("no room is left")

    ending(fail, 40)
    code, out, err = run("estimate", "decay.npy", "--rtol", 1e-4, "--json", "--seed", 0)
    assert code == 1
    assert err.startswith("tracekit: error: no room is left")
    assert err.count("\n") == 1
    printed = json.loads(out)
    assert (printed["num_matvecs"], printed["converged"]) == (32, False)
    assert "ended by MemoryError (no room is left)" in printed["reason"]


def test_compare_prints_the_table_of_the_library(run, folder, tmp_path):
    arguments = ("compare", "psd.npy", "--num-matvecs", "24,12", "--num-seeds", 3, "--psd")
    table = tk.compare(np.load(folder / "psd.npy"), (12, 24), num_seeds=3, psd=True)
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    names = [line.split("  ")[0] for line in str(table).splitlines()]
    assert [line.split("  ")[0] for line in out.splitlines()] == names
    code, out, _ = run(*arguments, "--json", "--plot", tmp_path / "out.svg")
    printed = json.loads(out, parse_constant=pytest.fail)
    assert code == 0
    assert printed["methods"].keys() == set(table.methods)
    np.testing.assert_allclose(
        printed["methods"]["xtrace"]["median"],
        table.to_dict()["methods"]["xtrace"]["median"],
        rtol=1e-6,
    )
    assert (printed["shape"], printed["power"], printed["seed"]) == ([40, 40], 1, 0)
    assert (tmp_path / "out.svg").read_bytes().startswith(b"<?xml")
    other = json.loads(run(*arguments, "--json", "--seed", 9)[1])
    assert other["methods"]["xtrace"]["median"] != printed["methods"]["xtrace"]["median"]


def test_compare_of_a_power(run, tmp_path):
    path = tmp_path / "out.png"
    code, out, err = run(
        "compare", "graph.mtx", "--power", 3, "--num-seeds", 2, "--num-matvecs", 12, "--plot", path
    )
    assert (code, err) == (0, "")
    assert out.startswith("relative error of the trace (")
    assert out.rstrip().endswith(f"plot: {path}")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert run("compare", "graph.mtx", "--num-seeds", 1)[1].startswith("error of the trace (0)")


def test_compare_of_an_indefinite_matrix_declared_psd_exits_1(run, folder):
    np.save(folder / "indefinite.npy", np.diag(np.linspace(-1.0, 1.0, 40)))
    code, out, err = run("compare", "indefinite.npy", "--psd", "--num-matvecs", 20)
    assert (code, out) == (1, "")
    assert "semidefinite" in err


def test_version_and_help(run):
    assert run("--version") == (0, f"tracekit {tk.__version__}\n", "")
    for arguments in (("--help",), ("estimate", "--help"), ("compare", "--help")):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert "exit codes" in out
        assert "3    the tolerance is not met" in out


def test_as_a_process(folder):
    done = spawn(folder, "-m", "tracekit", "estimate", "graph.mtx", "--num-matvecs", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert ESCAPE not in done.stdout
    assert RETURN not in done.stdout
    assert spawn(folder, "-m", "tracekit", "estimate", "missing.npy").returncode == 2


def test_help_loads_nothing_heavy(folder):
    script = (
        "import sys; from tracekit.cli import main; assert main(['estimate', '--help']) == 0;"
        "heavy = {'scipy.sparse', 'scipy.sparse.linalg', 'scipy.io', 'matplotlib', 'torch', 'jax'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert spawn(folder, "-c", script).stdout.endswith("[]\n")


def shell(folder, line):
    """Run a line of the shell, where `tracekit` is the command: exit code, output, errors."""
    command = f'tracekit() {{ "{sys.executable}" -W error -m tracekit "$@"; }}; '
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command + line],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED=""),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


UNMET = "tracekit estimate flat.npy --power 2 --rtol 1e-9 --num-matvecs 24 --seed 0"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell and its streams")
@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("tracekit estimate decay.npy | head -1", 0, "^trace of A .*\n$", ""),
        ("tracekit estimate decay.npy | true", 141, "", ""),
        (f"{UNMET} | true", 141, "", ""),
        ("tracekit --help | true", 141, "", ""),
        (UNMET, 3, "not met", ""),
        (f"{UNMET} 2>&-", 3, "not met", ""),
        (f"{UNMET} 2>/dev/full", 3, "not met", ""),
        ("tracekit estimate decay.npy 2>&-", 0, "^trace of A ", ""),
        ("tracekit estimate missing.npy 2>&-", 2, "^$", ""),
        ("tracekit estimate missing.npy 2>/dev/full", 2, "^$", ""),
        ("tracekit estimate --unknown 2>/dev/full", 2, "^$", ""),
        ("tracekit estimate decay.npy >&-", 2, "^$", "standard output.* is closed"),
        ("tracekit estimate decay.npy >&- 2>&-", 2, "^$", ""),
        ("tracekit estimate decay.npy >/dev/full", 2, "^$", "No space left"),
        (f"{UNMET} >/dev/full", 2, "^$", "No space left"),
        ("tracekit --version >/dev/full", 2, "^$", "No space left"),
    ],
)
def test_streams_that_are_closed_or_full(folder, line, code, out, err):
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    ended, printed, told = shell(folder, line)
    assert ended == code
    assert re.search(out, printed)
    assert told.count("\n") == bool(err), told
    assert re.search(err, told)


def test_progress_that_nobody_can_read_does_not_end_the_run(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    with console.Progress(60, Full(), seconds_between=0) as progress:
        progress.add(30)
        progress.see(seen(2.0, 0.01, 30))
    assert progress.latest.num_matvecs == 30


@pytest.mark.parametrize("suffix", [".mtx.bz2", ".mat", ".edges"])
def test_every_kind_of_file_is_estimated(run, folder, tmp_path, suffix):
    matrix, path = adjacency(folder), tmp_path / f"graph{suffix}"
    if suffix == ".mat":
        savemat(path, {"A": sparse.csc_array(matrix)})
    elif suffix == ".edges":
        np.savetxt(path, np.argwhere(np.triu(matrix)), fmt="%d")
    else:
        path.write_bytes(bz2.compress((folder / "graph.mtx").read_bytes()))
    code, out, err = run("estimate", path, "--power", 3, "--exact", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["value"] == np.trace(np.linalg.matrix_power(matrix, 3))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_progress_rewrites_one_line_on_a_terminal_and_clears_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with console.Progress(60, stream, seconds_between=0) as progress:
        for _ in range(3):
            progress.add(20)
    text = stream.getvalue()
    assert "\n" not in text
    assert ESCAPE not in text
    shown = [line.split(" products")[0] for line in text.split(RETURN) if line.strip()]
    assert shown == ["0 of 60", "20 of 60", "40 of 60", "60 of 60"]
    assert text.endswith(RETURN)
    assert not text.split(RETURN)[-2].strip()


def seen(value, error, num_matvecs):
    samples = np.asarray([value - error, value + error])
    return tk.Estimate(np.asarray(value), np.asarray(error), num_matvecs, "m", samples, dof=30)


@pytest.mark.parametrize(
    ("total", "at_most", "shown"),
    [(None, False, "30 products, "), (90, True, "30 of at most 90 products, ")],
)
def test_progress_shows_estimate_and_interval(monkeypatch, total, at_most, shown):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with console.Progress(total, stream, 3600, at_most=at_most) as progress:
        progress.add(30)
        progress.see(seen(2.0, 0.01, 30))
    lines = [line.strip() for line in stream.getvalue().split(RETURN) if line.strip()]
    assert lines[-1].startswith(f"{shown}2.000 (1.980 to 2.020), ")
    assert "left" not in lines[-1]


def test_progress_of_a_resumed_run_counts_what_was_paid_for_before():
    stream = io.StringIO()
    with console.Progress(100, stream, 0) as progress:
        progress.see(seen(2.0, math.inf, 60))
        progress.add(20)
        progress.see(seen(2.0, math.inf, 80))
    lines = stream.getvalue().splitlines()
    assert lines[1].startswith("60 of 100 products, 2, 0.0 s")
    assert lines[-1].startswith("80 of 100 products")
    assert "about 0.0 s left" in lines[-1]
    assert [point.num_matvecs for point in progress.seen] == [60]
    assert progress.latest.num_matvecs == 80


def test_progress_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "12")
    stream = Terminal()
    with console.Progress(10**9, stream, seconds_between=0) as progress:
        progress.add(10**6)
    assert max(map(len, stream.getvalue().split(RETURN))) == 11


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO, "xterm"), (Terminal, "dumb")])
def test_progress_is_plain_lines_elsewhere(monkeypatch, stream, term):
    monkeypatch.setenv("TERM", term)
    stream = stream()
    with console.Progress(60, stream, seconds_between=0) as progress:
        progress.add(30)
    lines = stream.getvalue().splitlines(keepends=True)
    assert [line.split(" products")[0] for line in lines] == ["0 of 60", "30 of 60"]
    assert all(line.endswith("\n") and RETURN not in line for line in lines)


def test_short_runs_print_no_progress_elsewhere():
    stream = io.StringIO()
    with console.Progress(60, stream) as progress:
        progress.add(60)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("variables", "bold"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)]
)
def test_on_a_real_terminal(folder, variables, bold):
    arguments = ("estimate", "decay.npy", "--power", "2", "--rtol", "1e-3")
    code, text = on_a_terminal(folder, *arguments, **variables)
    assert code == 0
    assert "\r0 products" in text
    assert re.search(r"\r8 products, -?[\d.]+ \(-?[\d.]+ to [\d.]+\), [\d.]+ s", text)
    assert re.search(r"\r32 products, 1\.\d+ \(1\.\d+ to 1\.\d+\), [\d.]+ s", text)
    assert (f"{ESCAPE}[1m" in text) == bold
    assert (ESCAPE in text) == bold


def test_interruption_on_a_real_terminal(folder):
    """Ctrl-C is typed once an interval is shown; the product is slow enough to be interrupted."""
    script = (
        "import fcntl, sys, termios, time; from tracekit import cli\n"
        "from tracekit.cli import arguments as shared\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # keys typed there become signals to this process
        "read = shared.read_operator\n"
        "def slow(path):\n"
        "    A = read(path)\n"
        "    return A._like(A.shape, lambda X: (time.sleep(0.01), A.matmat(X))[1])\n"
        "shared.read_operator = slow\n"
        "sys.exit(cli.main(['estimate', 'flat.npy', '--rtol', '1e-6']))"
    )
    code, text = on_a_terminal(folder, script=script, until=" to ", then=b"\x03")
    assert code == 130
    assert "not met" in text
    assert "ended by Ctrl-C" in text
    assert "tracekit: interrupted" in text
    assert "Traceback" not in text


def on_a_terminal(folder, *arguments, script=None, until=None, then=b"", **variables):
    """Run on a terminal, and type something there once a text is seen: exit code and text."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    code = ["-c", script] if script else ["-m", "tracekit", *arguments]
    with subprocess.Popen(
        [sys.executable, "-W", "error", *code],
        cwd=folder,
        env=environment(**variables),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        text = ""
        while chunk := read(master):
            text += chunk
            if until and until in text:
                os.write(master, then)
                until = None
    os.close(master)
    return process.returncode, text


def read(descriptor):
    """Read from a terminal, until the process on its other side is gone."""
    try:
        return os.read(descriptor, 4096).decode()
    except OSError:
        return ""


@pytest.mark.parametrize("name", estimate_module.FUNCTIONS)
def test_functions_print_what_the_library_computes(report, run, folder, name):
    A = np.load(folder / "flat.npy")
    f = getattr(tk.functions, name)
    expected = tk.trace_function(A, f, 60, rng=3)
    printed = report("flat.npy", "--function", name, "--num-matvecs", 60, "--seed", 3)
    assert printed["value"] == pytest.approx(float(expected), rel=1e-9)
    assert printed["standard_error"] == pytest.approx(float(expected.standard_error), rel=1e-6)
    for field in ("num_matvecs", "method", "reason"):
        assert printed[field] == getattr(expected, field)
    assert (printed["function"], printed["converged"]) == (name, True)
    code, out, _ = run("estimate", "flat.npy", "--function", name, "--seed", 3)
    assert code == 0
    assert out.startswith(f"trace of {name}(A)")


def test_a_function_exactly_of_a_power_and_with_a_plot(report, folder, tmp_path):
    sign, exact = np.linalg.slogdet(np.load(folder / "flat.npy"))
    printed = report("flat.npy", "--function", "log", "--exact")
    assert sign * printed["value"] == pytest.approx(exact, rel=1e-10)
    assert (printed["standard_error"], printed["num_matvecs"]) == (0.0, 300)
    squared = report("flat.npy", "--function", "log", "--exact", "--power", 2)
    assert squared["value"] == pytest.approx(2 * exact, rel=1e-10)
    path = tmp_path / "log.png"
    assert report("flat.npy", "--function", "log", "--seed", 0, "--plot", path)["plot"] == str(path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    "more", [("--rtol", "0.1"), ("--method", "xtrace"), ("--psd",), ("--checkpoint", "kept.npz")]
)
def test_functions_refuse_what_they_have_no_use_for(run, more):
    code, _, err = run("estimate", "flat.npy", "--function", "log", *more)
    assert code == 2
    assert f"is incompatible with {more[0]}" in err


@pytest.mark.parametrize(("file", "reason"), [("decay.npy", None), ("graph.mtx", "0 or more")])
def test_a_logarithm_that_does_not_exist_exits_1_with_the_reason(run, file, reason):
    code, _, err = run("estimate", file, "--function", "log", "--seed", 0)
    assert code == (0 if reason is None else 1)
    assert reason is None or reason in err


# Runs that add up ---------------------------------------------------------------------------------


@pytest.fixture
def printed(run, tmp_path):
    """Run ``tracekit estimate --json`` into a file."""

    def printed(name, *arguments):
        path = tmp_path / name
        path.write_text(run("estimate", *arguments, "--json")[1], encoding="utf-8")
        return path

    return printed


@pytest.mark.parametrize(
    "asked",
    [
        ("decay.npy", "--method", "xtrace", "--num-matvecs", 20),
        ("graph.mtx", "--power", 3, "--method", "hutchinson", "--num-matvecs", 12),
        ("complex.npz", "--method", "hutchinson", "--num-matvecs", 12),
        ("flat.npy", "--function", "log", "--num-matvecs", 120),
    ],
)
def test_printed_runs_add_up(report, run, printed, asked):
    paths = [printed(f"{seed}.json", *asked, "--seed", seed) for seed in (1, 2, 3)]
    parts = [tk.Estimate.from_dict(json.loads(path.read_text())) for path in paths]
    whole, together = tk.merge(parts), report("--merge", *paths, "--level", 0.8)
    assert together["value"] == whole.to_dict()["value"]
    assert together["confidence_interval"] == list(whole.confidence_interval(0.8))
    assert together["num_matvecs"] == sum(e.num_matvecs for e in parts)
    assert together["seed"] == [1, 2, 3]
    assert together["merged"] == [str(path) for path in paths]
    code, out, err = run("estimate", "--merge", *paths)
    assert (code, err) == (0, "")
    assert "3 runs merged" in out
    assert "1, 2, 3" in out


def test_printed_runs_that_do_not_add_up_are_refused(run, printed, tmp_path):
    ask = ("--method", "hutchinson", "--num-matvecs", 9)
    first = printed("a.json", "decay.npy", *ask, "--seed", 1)
    for name, *other in (
        ("same random numbers", "decay.npy", *ask, "--seed", 1),
        ("differ in `file`, decay.npy and flat.npy", "flat.npy", *ask, "--seed", 2),
        ("differ in `power`, 1 and 2", "decay.npy", *ask, "--seed", 2, "--power", 2),
        ("differ in method", "decay.npy", "--method", "xtrace", "--num-matvecs", 9),
        ("differ in method", "flat.npy", "--function", "log", "--num-matvecs", 60),
    ):
        code, out, err = run("estimate", "--merge", first, printed("b.json", *other))
        assert (code, out) == (2, "")
        assert name in err
    (tmp_path / "c.json").write_text('{"value": 3}', encoding="utf-8")
    for wrong in ("decay.npy", "nowhere.json", tmp_path / "c.json"):
        code, _, err = run("estimate", "--merge", first, wrong)
        assert code == 2
        assert "no result that can be merged" in err
    for more in (("--seed", 3), ("--exact",), ("--function", "log"), ("--power", 2)):
        code, _, err = run("estimate", "--merge", first, *more)
        assert code == 2
        assert f"--merge is incompatible with {more[0]}" in err
    assert "incompatible with FILE" in run("estimate", "decay.npy", "--merge", first)[2]


def test_runs_that_missed_their_tolerance_are_merged_with_their_exit_code(run, printed):
    ask = ("flat.npy", "--method", "hutchinson", "--rtol", 1e-6, "--num-matvecs", 16)
    paths = [printed(f"{seed}.json", *ask, "--seed", seed) for seed in (1, 2)]
    assert run("estimate", "--merge", *paths)[0] == 3
