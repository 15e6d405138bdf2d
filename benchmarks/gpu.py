"""The tests and a short benchmark on the GPU of this machine: what `make gpu` runs.

Needs no environment: a Python with NumPy, SciPy and pytest, and PyTorch, JAX or CuPy, of whatever
versions. What it lacks of array-api-compat is taken from the project's own environment, or from a
wheel or folder that ``--compat`` names. At most 8 minutes, in processes that are stopped in time;
the outcome goes to docs/measured/gpu.json. Without a GPU nothing runs, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ROOT = Path(__file__).parents[1]
OUTCOME = ROOT / "docs" / "measured" / "gpu.json"
ROWS = {"torch:cuda": "torch:cpu", "jax:cuda": "jax:cpu", "cupy:cuda": "numpy:cpu"}  # beside which
TESTS = {"torch:cuda": "torch:cuda", "jax:cuda": "jax:cuda", "cupy:cuda": "cupy"}  # names there
FIRST = ("test_devices.py", "test_capabilities.py")  # of every public function
MEASURE_SECONDS, TEST_SECONDS = 40, 220
ABSENT = 3  # exit status of a process that finds no such library or device


def main(arguments: list[str] | None = None) -> int:
    """Measure, test, and write what came out; 0 if all tests passed on a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--compat", type=Path, help="a wheel of array-api-compat, or its folder")
    parser.add_argument("--measure", choices=[*ROWS, *ROWS.values()], help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, default=16, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.measure:
        return measure_here(asked.measure, asked.scale)
    with tempfile.TemporaryDirectory() as folder:
        environment = paths(asked.compat, Path(folder))
        return run(environment, Path(folder), asked.scale)


def run(environment: Mapping[str, str], folder: Path, scale: int, outcome: Path = OUTCOME) -> int:
    """Every row that is here, in processes with this environment."""
    found, absent = {}, []
    for row, plain in ROWS.items():
        made = measured(row, environment, scale)
        if "absent" in made:
            absent.append(f"{row.partition(':')[0]}: {made['absent']}")
        else:
            found[row] = {"gpu": made, "cpu": measured(plain, environment, scale)}
            print(shown(row, found[row]), flush=True)
    if not found:
        print(f"Nothing has run, as no library finds a GPU here ({'; '.join(absent)}).")
        return 1
    results = tests(found, environment, folder)
    for row, result in results.items():
        print(f"{row}: {json.dumps(result)}")
    cards = sorted({made["gpu"]["card"] for made in found.values() if "card" in made["gpu"]})
    text = json.dumps(
        {"cards": cards, "absent": absent, "tests": results, "measured": found}, indent=1
    )
    outcome.write_text(text + "\n", encoding="utf-8")
    print(f"{', '.join(cards)}: written to {outcome}")
    return int(any(result["failed"] or not result["passed"] for result in results.values()))


def paths(compat: Path | None, folder: Path) -> dict[str, str]:
    """The environment in which the sources here and array-api-compat can be imported."""
    where = [str(ROOT / "src"), str(ROOT)]
    own = [] if compat else sorted(ROOT.glob(".venv/lib/python*/site-packages/array_api_compat"))
    if compat is not None:
        where.append(str(compat.resolve()))
    elif find_spec("array_api_compat") is None and own:
        (folder / "array_api_compat").symlink_to(own[0].resolve())  # and nothing else of it
        where.append(str(folder))
    elif find_spec("array_api_compat") is None:
        raise SystemExit(
            "array-api-compat is neither in this Python nor in .venv; pass a wheel of it, or the "
            "folder it is in: make gpu COMPAT=array_api_compat-1.12-py3-none-any.whl"
        )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*where, os.environ.get("PYTHONPATH", "")])}


# Times --------------------------------------------------------------------------------------------


def measured(row: str, environment: Mapping[str, str], scale: int) -> dict[str, Any]:
    """The times of one library on one device, or why there are none, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", row, "--scale", str(scale)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=MEASURE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {MEASURE_SECONDS} s"}
    last = (done.stdout if done.returncode in (0, ABSENT) else done.stderr).strip().split("\n")[-1]
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(last)
        return found
    return {"absent" if done.returncode == ABSENT else "failed": last}


def measure_here(row: str, scale: int) -> int:
    """Print the times of one library on one device, as JSON in the last line."""
    from benchmarks.asv._backends import backend

    try:
        lib = backend(row)
    except NotImplementedError as why:
        print(why)
        return ABSENT
    seconds = {name: best(lib, f, args) for name, (f, args) in problems(lib, row, scale).items()}
    print(json.dumps({"card": card(row), "versions": versions(row), "seconds": seconds}))
    return 0


def problems(lib: Any, row: str, scale: int) -> dict[str, tuple[Callable[..., Any], tuple]]:
    """Functions and their arguments: estimators, and exact numbers of a network."""
    import numpy as np

    import tracekit as tk
    import tracekit_ntk as tkn

    def draw(*shape: int) -> Any:
        values = np.random.default_rng([0, *shape]).standard_normal(shape, dtype=np.float32)
        return lib.asarray(values / shape[0] ** 0.5)

    n, m = 512 * scale, 96
    X = draw(n, n // 8)
    A = X @ X.T + lib.asarray(np.eye(n, dtype=np.float32))
    found: dict[str, tuple[Callable[..., Any], tuple]] = {
        f"product, n={n}, m={m}": (lambda A, B: A @ B, (A, draw(n, m)))
    }
    for estimator in (tk.hutchinson, tk.xtrace, tk.xnystrace, tk.logdet):

        def estimate(A: Any, estimator: Any = estimator) -> Any:
            return estimator(A, m, rng=lib.generator(0)).value

        found[f"{estimator.__name__}, n={n}, m={m}"] = estimate, (A,)
    if not row.startswith(("torch", "jax")):
        return found
    width, samples = 64 * scale, 16 * scale
    params = {"a": draw(32, width), "b": draw(width, width), "c": draw(width, 10)}

    def f(p: Any, x: Any) -> Any:
        h = lib.xp.tanh(lib.xp.tanh(x @ p["a"]) @ p["b"])
        return h @ p["c"]

    x, size = draw(samples, 32), f"{samples} samples, width {width}"
    for exact in (tkn.ntk_trace, tkn.ntk_norm, tkn.kernel):
        found[f"{exact.__name__}, {size}"] = (lambda p, x, exact=exact: exact(f, p, x)), (params, x)
    return found


def best(lib: Any, f: Callable[..., Any], args: tuple, rounds: int = 5) -> float:
    """Seconds of the fastest run after the first, until its result is there."""
    run, taken = lib.compiled(f, *args), []
    lib.wait(run(*args))
    for _ in range(rounds):
        start = time.perf_counter()
        lib.wait(run(*args))
        taken.append(time.perf_counter() - start)
    return float(f"{min(taken):.3g}")


def card(row: str) -> str:
    """What the device is called."""
    library, device = row.split(":")
    if device == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    if library == "torch":
        import torch

        return str(torch.cuda.get_device_name(0))
    if library == "jax":
        import jax

        return str(jax.devices("cuda")[0].device_kind)
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())


def versions(row: str) -> str:
    """Of Python and what is measured."""
    found = [f"Python {'.'.join(map(str, sys.version_info[:3]))}"]
    for name in dict.fromkeys(("numpy", row.partition(":")[0], "array_api_compat")):
        module = importlib.import_module(name)
        found.append(f"{name} {module.__version__}")
    return ", ".join(found)


def shown(row: str, made: Mapping[str, Any]) -> str:
    """A table of the times of one library."""
    gpu, cpu = (made[where].get("seconds", {}) for where in ("gpu", "cpu"))
    lines = [f"{row} on {made['gpu'].get('card', made['gpu'].get('failed'))}"]
    for name, seconds in gpu.items():
        beside = f"{cpu[name]:.3g} s on the CPU" if name in cpu else "no time on the CPU"
        lines.append(f"  {name:40}{seconds:10.3g} s, {beside}")
    return "\n".join(lines)


# Tests --------------------------------------------------------------------------------------------


def tests(
    rows: Iterable[str], environment: Mapping[str, str], folder: Path
) -> dict[str, dict[str, Any]]:
    """The tests of every row, side by side; what is not done in time is interrupted."""
    settings = folder / "pytest.ini"  # not ours, which asks for plugins and for a version
    settings.write_text("[pytest]\n", encoding="utf-8")
    running = {}
    for row in rows:
        command = [
            *(sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(ROOT), "-q"),
            *("-p", "no:cacheprovider", "-k", TESTS[row]),
            *("--junitxml", str(folder / f"{TESTS[row]}.xml"), *map(str, importable())),
        ]
        with (folder / f"{TESTS[row]}.log").open("w") as log:
            running[row] = subprocess.Popen(
                command, cwd=ROOT, env={**environment}, stdout=log, stderr=subprocess.STDOUT
            )
    end, results = time.monotonic() + TEST_SECONDS, {}
    for row, process in running.items():
        finished = ended(process, end - time.monotonic(), signal.SIGINT)
        if not finished and not ended(process, 20, signal.SIGKILL):
            process.wait()
        results[row] = counted(folder / f"{TESTS[row]}.xml", folder / f"{TESTS[row]}.log", finished)
    return results


def ended(process: subprocess.Popen[bytes], seconds: float, otherwise: int) -> bool:
    """Whether a process ends in time; it gets a signal otherwise."""
    try:
        process.wait(max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        process.send_signal(otherwise)
        return False
    return True


def importable() -> list[Path]:
    """The files of tests whose imports are here, those of every public function first."""
    found = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: path.name not in FIRST)
    return [path for path in found if all(map(is_here, imported(path)))]


def imported(path: Path) -> set[str]:
    """The packages that a file imports when it is loaded."""
    names: set[str] = set()
    for item in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(item, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module:
            names.add(item.module.partition(".")[0])
    return names


def is_here(name: str) -> bool:
    """Whether a package can be imported, from this Python or from this repository."""
    ours = (ROOT / "tests" / f"{name}.py", ROOT / name, ROOT / "src" / name)
    return name == "array_api_compat" or any(map(Path.exists, ours)) or find_spec(name) is not None


def counted(report: Path, log: Path, finished: bool) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and the names of those that failed."""
    if not report.exists():
        tail = log.read_text(encoding="utf-8").strip().split("\n")[-3:]
        return {"passed": 0, "failed": [], "skipped": 0, "finished": finished, "why": tail}
    [suite] = ET.parse(report).getroot().iter("testsuite")
    cases = list(suite.iter("testcase"))
    bad = [c.get("name") for c in cases if {"failure", "error"} & {part.tag for part in c}]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return {
        "passed": len(cases) - len(bad) - skipped,
        "failed": bad,
        "skipped": skipped,
        "seconds": float(suite.get("time", "nan")),
        "finished": finished,
    }


if __name__ == "__main__":
    sys.exit(main())
