"""What `make gpu` does without a GPU, and its times and tests on the CPU in a GPU's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu

HERE = {**os.environ, "PYTHONPATH": os.pathsep.join((str(gpu.ROOT / "src"), str(gpu.ROOT)))}


def test_without_a_gpu_nothing_runs_and_one_sentence_says_why() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=gpu.ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if "written to" in done.stdout:
        pytest.skip("there is a GPU")
    assert done.returncode == 1
    assert done.stdout.startswith("Nothing has run, as no library finds a GPU here (")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_times_and_tests_of_the_cpu_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "ROWS", {"numpy:cpu": "numpy:cpu", "cupy:cuda": "numpy:cpu"})
    monkeypatch.setattr(gpu, "TESTS", {"numpy:cpu": "numpy and not readonly"})
    monkeypatch.setattr(gpu, "importable", lambda: [gpu.ROOT / "tests" / "test_arrays.py"])
    outcome = tmp_path / "gpu.json"
    assert gpu.run(HERE, tmp_path, 1, outcome) == 0
    found = json.loads(outcome.read_text(encoding="utf-8"))
    times = found["measured"]["numpy:cpu"]
    assert set(times["gpu"]["seconds"]) == set(times["cpu"]["seconds"])
    assert all(seconds > 0 for seconds in times["gpu"]["seconds"].values())
    assert found["tests"]["numpy:cpu"]["passed"] > 3
    assert found["tests"]["numpy:cpu"]["finished"]
    assert found["cards"] == [times["gpu"]["card"]]
    assert len(found["absent"]) == 1


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_networks_are_timed_too(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(library)
    lib = gpu_of_the_cpu(library)
    found = gpu.problems(lib, f"{library}:cpu", 1)
    assert [name.partition(",")[0] for name in found][-3:] == ["ntk_trace", "ntk_norm", "kernel"]
    f, args = found[next(name for name in found if name.startswith("ntk_trace"))]
    assert gpu.best(lib, f, args, rounds=1) > 0


def gpu_of_the_cpu(library: str) -> Any:
    from benchmarks.asv._backends import CLASSES

    return CLASSES[library]("cpu")


def test_what_is_not_there_is_not_collected(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text("import no_such_package.part\nfrom numpy import linalg\n", encoding="utf-8")
    assert gpu.imported(path) == {"no_such_package", "numpy"}
    assert not gpu.is_here("no_such_package")
    assert all(map(gpu.is_here, ("numpy", "conftest", "examples", "tracekit", "array_api_compat")))
    assert {path.name for path in gpu.importable()[:2]} == set(gpu.FIRST)


def test_array_api_compat_is_brought_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = tmp_path / "array_api_compat-1.12-py3-none-any.whl"
    assert str(wheel) in gpu.paths(wheel, tmp_path)["PYTHONPATH"].split(os.pathsep)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    package = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "array_api_compat"
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="COMPAT="):
        gpu.paths(None, tmp_path)
    package.mkdir(parents=True)
    folder = tmp_path / "paths"
    folder.mkdir()
    assert str(folder) in gpu.paths(None, folder)["PYTHONPATH"].split(os.pathsep)
    assert (folder / "array_api_compat").resolve() == package
    assert [path.name for path in folder.iterdir()] == ["array_api_compat"]
