"""Laws of checkpoints: whatever kills a run, the same call ends with the same result, all bits."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Library, by_products, installed, matrix

import tracekit as tk
from tracekit.testing import benchmark_spectra, known_spectrum

N = 100


def dense(spectrum: str, n: int = N) -> np.ndarray:
    return known_spectrum(benchmark_spectra(n)[spectrum])


def trace(A: Any, **options: Any) -> tk.Estimate:
    """Of a matrix that is known by its products alone: it would not be estimated otherwise."""
    return tk.trace(by_products(A), **options)


class Killed(BaseException):
    """Ends a run where nothing may catch it."""


def dying(A: Any, at: int) -> Any:
    """The operator, which kills its run at call number `at`; 0 for never."""
    A, calls = tk.as_operator(A), 0

    def product(X: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return A.matmat(X)

    return A._like(A.shape, product)


def bits(estimate: tk.Estimate) -> tuple[str, str, int, str]:
    """All of a result, to the last bit."""
    value, error = complex(estimate.value), float(estimate.standard_error)
    return (
        f"{value.real.hex()} {value.imag.hex()}",
        error.hex(),
        estimate.num_matvecs,
        repr(estimate),
    )


def run_to_the_end(call: Callable[[Any], tk.Estimate], A: Any, schedule: Any) -> tuple[Any, int]:
    """Run, be killed by the schedule again and again, and go on; the result, and the deaths."""
    deaths = 0
    for at in schedule:
        try:
            return call(dying(A, at)), deaths
        except Killed:
            deaths += 1
    return call(dying(A, 0)), deaths


# Killed and resumed ---------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import numpy as np
import tracekit as tk
from tracekit.testing import benchmark_spectra, known_spectrum

path, at, psd, rtol, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "psd", *sys.argv[4:]
M, calls = known_spectrum(benchmark_spectra(300)["i^-0.5"]), 0

def die(*anything):
    os.kill(os.getpid(), signal.SIGKILL)

def product(X):
    global calls
    calls += 1
    if calls == at and mode == "in a product":
        die()
    return M @ X

if mode == "while writing":
    replace, writes = os.replace, 0
    def replacing(*paths):
        global writes
        writes += 1
        if writes == at:
            die()
        return replace(*paths)
    os.replace = os.rename = replacing
    import pathlib
    pathlib.Path.replace = lambda self, target: replacing(self, target)

A = tk.LinearOperator((300, 300), product)
e = tk.trace(A, rtol=float(rtol), rng=3, psd=psd or None, checkpoint=None if path == "-" else path)
print(float(e).hex(), float(e.standard_error).hex(), e.num_matvecs, calls, repr(e), sep=";")
"""


AGAIN = """
import json, os, sys
import numpy as np
import tracekit as tk

code, path, calls, *rest = sys.argv[1:]
for at in calls.split():
    child = os.fork()
    if not child:
        sys.argv = ["", path, at, *rest]
        exec(code)
        os._exit(0)
    status, spent = os.waitpid(child, 0)[1], 0
    if os.path.exists(path):
        with np.load(path) as file:
            spent = json.loads(str(file["facts"]))["spent"]
    print(os.WTERMSIG(status), spent, flush=True)
"""


def killed_again(path: Path, calls: Any, *arguments: str) -> list[tuple[int, int]]:
    """Runs in processes one after the other, of an interpreter that has imported all they need.

    For each, the signal that ended it and the products that the file then tells of.
    """
    done = interpreted(AGAIN, KILLED, path, " ".join(map(str, calls)), *arguments)
    assert done.returncode == 0, done.stderr
    signals, spent = np.loadtxt(io.StringIO(done.stdout), dtype=int, ndmin=2).T
    return list(zip(signals.tolist(), spent.tolist(), strict=True))


def in_a_process(path: Any, at: int, psd: str, rtol: float, mode: str) -> list[str] | None:
    """A run in an interpreter of its own; None if it was killed."""
    done = interpreted(KILLED, path, at, psd, rtol, mode)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split(";", 4)


def interpreted(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    paths = [str(Path(tk.__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_twenty_times_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    """At random calls; the run sketches, and then sums exactly."""
    whole = in_a_process("-", 0, "general", 1e-3, "in a product")
    assert whole is not None
    assert "exact" in whole[4]
    path = tmp_path / "run.npz"
    calls = np.random.default_rng(1).choice([1, 2, 3, 3], size=20)
    ends = killed_again(path, calls, "general", "1e-3", "in a product")
    last = in_a_process(path, 0, "general", 1e-3, "in a product")
    assert last is not None
    assert last[:3] == whole[:3]
    assert last[4] == whole[4]
    assert [end for end, _ in ends] == [signal.SIGKILL] * 20
    assert len({spent for _, spent in ends}) >= 8  # died at many different places
    assert int(last[3]) < int(whole[3])  # the last process did not do it all
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_while_writing_leaves_the_step_before(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    assert in_a_process(path, 3, "psd", 1e-2, "while writing") is None
    with np.load(path) as file:
        assert file["Omega"].shape[1] == 16  # what the second of three writes held
    last = in_a_process(path, 0, "psd", 1e-2, "in a product")
    whole = in_a_process("-", 0, "psd", 1e-2, "in a product")
    assert last is not None
    assert whole is not None
    assert last[:3] == whole[:3]


CASES = {
    "xtrace": ("i^-2", {"rtol": 1e-3}),
    "flat": ("1+U", {"rtol": 0.0, "num_matvecs": 90}),
    "exact": ("i^-0.5", {"rtol": 1e-6}),
    "psd": ("i^-2", {"rtol": 1e-3, "psd": True}),
    "psd exact": ("i^-0.5", {"rtol": 1e-6, "psd": True}),
    "hermitian": ("0.7^i", {"rtol": 1e-8, "hermitian": True}),
}


@pytest.mark.parametrize(("case", "library"), [(case, "numpy") for case in CASES]
                         + [("flat", "torch"), ("psd exact", "torch")])  # fmt: skip
def test_killed_at_every_call(case: str, library: str, tmp_path: Path) -> None:
    """Once at each call of a run, and again and again at each second and third call."""
    spectrum, options = CASES[case]
    for lib in installed(library):
        A = lib.array(dense(spectrum))
        whole = trace(A, rng=3, **options)
        calls = 0
        while True:
            path = tmp_path / f"at {calls + 1}.npz"
            end, deaths = run_to_the_end(
                lambda A, path=path: trace(A, rng=3, checkpoint=path, **options), A, [calls + 1]
            )
            assert bits(end) == bits(whole)
            if deaths == 0:
                break
            calls += 1
        assert calls >= (4 if options.get("psd") else 5)
        for every in (2, 3):
            if every == 2 and not options.get("psd"):
                continue  # a step of XTrace takes two calls: such a run would never get on
            path = tmp_path / f"every {every}.npz"
            end, deaths = run_to_the_end(
                lambda A, path=path: trace(A, rng=3, checkpoint=path, **options), A, [every] * 99
            )
            assert bits(end) == bits(whole)
            assert deaths >= 2
        assert not [file for file in tmp_path.iterdir() if file.suffix != ".npz"]


@pytest.mark.parametrize("kind", ["complex", "complex psd"])
def test_complex_and_single_precision(kind: str, tmp_path: Path) -> None:
    for dtype in ("complex128", "complex64"):
        A, path = matrix(kind, N).astype(dtype), tmp_path / f"{dtype}.npz"
        options = {"rtol": 1e-5, "rng": 0, "psd": True if kind == "complex psd" else None}
        whole = trace(A, **options)
        end, deaths = run_to_the_end(
            lambda A, path=path, options=options: trace(A, checkpoint=path, **options),
            A, [3] * 99,
        )  # fmt: skip
        assert bits(end) == bits(whole)
        assert deaths >= 4


def test_factors(tmp_path: Path) -> None:
    """The calls that die are those of the factor."""
    L = np.linalg.cholesky(dense("i^-0.5"))
    whole = trace(tk.gram(L), rtol=1e-6, rng=0)
    path, calls = tmp_path / "run.npz", 0

    def product(M: np.ndarray, X: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise Killed
        return M @ X

    factor = tk.LinearOperator(L.shape, lambda X: product(L, X), lambda X: product(L.T, X))
    for _ in range(99):
        try:
            end = trace(tk.gram(factor), rtol=1e-6, rng=0, checkpoint=path)
            break
        except Killed:
            continue
    assert bits(end) == bits(whole)
    assert calls > 12


def torch_generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def jax_key(seed: int) -> Any:
    import jax

    return jax.random.key(seed)


GENERATORS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "numpy Generator": ("numpy", np.random.default_rng),
    "SeedSequence": ("numpy", np.random.SeedSequence),
    "MT19937": ("numpy", lambda seed: np.random.Generator(np.random.MT19937(seed))),
    "torch.Generator": ("torch", torch_generator),
    "JAX key": ("jax", jax_key),
    "JAX, host seed": ("jax", int),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_goes_on_where_it_was(name: str, tmp_path: Path) -> None:
    """Fresh generators of the same seed, as a new process would make them."""
    library, make = GENERATORS[name]
    for lib in installed(library):
        A, path = lib.array(dense("i^-2")), tmp_path / "run.npz"
        steps = 2 if lib.family == "jax" else 3  # each is compiled anew
        options = {"rtol": 0.0, "num_matvecs": 8 * steps, "psd": True}
        whole = trace(A, rng=make(5), **options)
        other = trace(A, rng=make(6), **options)
        assert float(whole) != float(other)
        call = partial(trace, checkpoint=path, **options)
        end, deaths = run_to_the_end(lambda A, f=call: f(A, rng=make(5)), A, [2] * 9)
        assert bits(end) == bits(whole)
        assert deaths == steps - 1


# What the file is -----------------------------------------------------------------------------


def test_written_after_each_step_and_complete(tmp_path: Path) -> None:
    """At each callback the file holds all that the estimate was read from."""
    path, held = tmp_path / "run.npz", []

    def look(state: tk.Estimate) -> None:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            held.append((facts["spent"], file["Omega"].shape[1]))
        assert facts["spent"] == state.num_matvecs
        assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]

    trace(dense("i^-0.5", 300), rtol=1e-9, rng=0, callback=look, checkpoint=path)
    assert len(held) > 10
    assert held == sorted(held)
    assert held[:2] == [(8, 8), (16, 8)]


def test_the_end_is_kept_too(tmp_path: Path) -> None:
    """The same call on a finished run gives its result again, and spends nothing."""
    for case, (spectrum, options) in CASES.items():
        path = tmp_path / f"{case}.npz"
        first = trace(dense(spectrum), rng=3, checkpoint=path, **options)
        A, counter = tk.counted(dense(spectrum))
        assert bits(trace(A, rng=3, checkpoint=str(path), **options)) == bits(first)
        assert counter.total == 0


def test_a_run_that_ended_goes_on_with_a_finer_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    rough = trace(dense("0.7^i"), rtol=1e-1, rng=0, checkpoint=path)
    A, counter = tk.counted(dense("0.7^i"))
    fine = trace(A, rtol=1e-4, rng=0, checkpoint=path)
    assert bits(fine) == bits(trace(dense("0.7^i"), rtol=1e-4, rng=0))
    assert counter.total == fine.num_matvecs - rough.num_matvecs > 0


def test_ended_by_a_callback_and_by_ctrl_c(tmp_path: Path) -> None:
    A, options = dense("i^-0.5"), {"rtol": 1e-9, "rng": 0}
    whole, path = trace(A, **options), tmp_path / "run.npz"
    spent = []
    for _ in range(99):
        estimate = trace(A, callback=lambda _: True, checkpoint=path, **options)
        spent.append(estimate.num_matvecs)
        if estimate.converged:
            break
        with contextlib.suppress(Killed):  # ends after one step more, or two
            trace(dying(A, 3), checkpoint=path, **options)
    assert bits(estimate) == bits(whole)
    assert len(spent) > 3
    path.unlink()

    def interrupt(X: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return A @ X

    calls = 0
    with pytest.raises(KeyboardInterrupt) as caught:
        trace(tk.LinearOperator((N, N), interrupt), checkpoint=path, **options)
    stopped = caught.value.estimate
    assert not stopped.converged
    counted, counter = tk.counted(A)
    assert bits(trace(counted, checkpoint=path, **options)) == bits(whole)
    assert counter.total == whole.num_matvecs - stopped.num_matvecs


def test_resume_writes_what_trace_reads(tmp_path: Path) -> None:
    A, path = dense("i^-2", 300), tmp_path / "run.npz"
    rough = trace(A, rtol=0.1, rng=0)
    with pytest.raises(Killed):
        tk.resume(dying(A, 5), rough, rtol=1e-3, checkpoint=path)
    counted, counter = tk.counted(A)
    end = trace(counted, rtol=1e-3, rng=0, checkpoint=path)
    whole = trace(A, rtol=1e-3, rng=0)
    assert bits(end) == bits(whole)
    assert counter.total < whole.num_matvecs - rough.num_matvecs


def test_nan_is_never_kept(tmp_path: Path) -> None:
    """After the operator is mended, the run goes on as if nothing had been."""
    A, options = dense("i^-2"), {"rtol": 1e-3, "rng": 0}
    whole = trace(A, **options)
    for at in range(1, 7):
        path, calls = tmp_path / f"{at}.npz", 0

        def sick(X: np.ndarray, at: int = at) -> np.ndarray:
            nonlocal calls
            calls += 1
            return (A @ X) * (np.nan if calls == at else 1.0)

        with pytest.raises(tk.NotFiniteError):
            trace(tk.LinearOperator((N, N), sick), checkpoint=path, **options)
        assert bits(trace(A, checkpoint=path, **options)) == bits(whole), at


# Files that are no checkpoint of this run -----------------------------------------------------


def saved(tmp_path: Path) -> tuple[Path, bytes]:
    path = tmp_path / "run.npz"
    trace(dense("i^-2"), rtol=0.0, num_matvecs=40, rng=0, checkpoint=path)
    return path, path.read_bytes()


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def refused(path: Any, A: Any = None, **options: Any) -> None:
    """One ValueError of one sentence that names the file, and no product spent."""
    A, counter = tk.counted(dense("i^-2") if A is None else A)
    with pytest.raises(ValueError, match="checkpoint") as caught:
        trace(A, **({"rng": 0} | options), checkpoint=path)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    assert Path(path).name in str(caught.value)
    assert counter.total == 0


def test_foreign_and_broken_files(tmp_path: Path) -> None:
    path, good = saved(tmp_path)
    row = io.BytesIO()
    np.save(row, np.ones(3))
    facts = {"dimension": N, "dtype": "float64", "psd": False}
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 255
    broken = [b"", b"text" * 99, good[: len(good) // 2], good[:-10], good[100:], bytes(flipped),
              row.getvalue(), archive(a=np.ones(3)), archive(facts=np.array("[1]")),
              archive(facts=np.array("{")), archive(facts=np.array(1.0)),
              archive(facts=np.array(json.dumps(facts))),
              archive(facts=np.array([{}], dtype=object))]  # fmt: skip
    for content in broken:
        path.write_bytes(content)
        refused(path)
        assert path.read_bytes() == content, "a file that is not ours is left alone"
    refused(tmp_path)
    refused(tmp_path / "no such folder" / "run.npz")


def test_checkpoints_of_other_runs(tmp_path: Path) -> None:
    path, good = saved(tmp_path)
    A = dense("i^-2")
    refused(path, A[:99, :99])
    refused(path, A.astype(np.float32))
    refused(path, A.astype(complex))
    refused(path, psd=True)
    refused(path, rng=1)
    refused(path, tk.gram(np.linalg.cholesky(A)))
    for lib in installed("torch"):
        refused(path, lib.array(A), rng=torch_generator(0))
    for lib in installed("jax"):
        refused(path, lib.array(A), rng=jax_key(0))
    assert path.read_bytes() == good


def test_a_checkpoint_says_what_drew_for_it_and_is_refused_by_another(tmp_path: Path) -> None:
    """Kinds of generators, algorithms of NumPy's, and keys of JAX."""
    options = {"rtol": 0.0, "num_matvecs": 8, "psd": True}
    kinds: dict[str, tuple[Any, Any]] = {  # as the message names them; what makes them
        "int": (None, lambda: 5),
        "None": (None, lambda: None),
        "SeedSequence": (None, lambda: np.random.SeedSequence(5)),
        "numpy Generator (PCG64)": (None, lambda: np.random.default_rng(5)),
        "numpy Generator (MT19937)": (None, lambda: np.random.Generator(np.random.MT19937(5))),
    }
    for lib in installed("torch"):
        kinds["torch.Generator on cpu"] = lib, lambda: torch_generator(5)
    for lib in installed("jax"):
        kinds["JAX key"] = lib, lambda: jax_key(5)
    A, paths = dense("i^-2"), {}
    for number, (kind, (lib, make)) in enumerate(kinds.items()):
        paths[kind] = tmp_path / f"{number}.npz"
        trace(lib.array(A) if lib else A, rng=make(), checkpoint=paths[kind], **options)
        with np.load(paths[kind]) as file:
            assert json.loads(str(file["facts"]))["rng"] == kind
    for kind, (lib, make) in kinds.items():
        for other in kinds.keys() - {kind}:
            counted, counter = tk.counted(by_products(lib.array(A) if lib else A))
            with pytest.raises(ValueError, match=f"rng {re.escape(other)}, not {re.escape(kind)}"):
                tk.trace(counted, rng=make(), checkpoint=paths[other], **options)
            assert counter.total == 0
    for lib in installed("jax"):
        with pytest.raises(ValueError, match="with key"):
            trace(lib.array(A), rng=jax_key(6), checkpoint=paths["JAX key"], **options)


def test_seeds_of_any_integer_type_are_one_seed(tmp_path: Path) -> None:
    options = {"rtol": 0.0, "num_matvecs": 40}
    first = trace(dense("i^-2"), rng=0, checkpoint=tmp_path / "run.npz", **options)
    again = trace(dense("i^-2"), rng=np.int64(0), checkpoint=tmp_path / "run.npz", **options)
    assert bits(again) == bits(first)


def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, good = saved(tmp_path)

    def full(handle: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            trace(dense("i^-2"), rtol=0.0, num_matvecs=60, rng=0, checkpoint=path)
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


def test_exact_and_tiny_runs_need_no_file(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    assert float(trace(np.eye(5), checkpoint=path)) == 5.0
    assert trace(dense("i^-2"), num_matvecs=7, rng=0, checkpoint=path).num_matvecs == 7


def test_libraries_do_not_share_the_file_silently(tmp_path: Path) -> None:
    """Either the other library gives the same number, or it refuses."""
    libs: list[Library] = list(installed("numpy", "torch", "strict:CPU_DEVICE"))
    path = tmp_path / "run.npz"
    first = trace(dense("i^-2"), rtol=0.0, num_matvecs=40, rng=0, checkpoint=path)
    for lib in libs:
        A, again = lib.array(dense("i^-2")), first
        with contextlib.suppress(ValueError):
            again = trace(A, rtol=0.0, num_matvecs=40, rng=0, checkpoint=path)
        assert float(again) == pytest.approx(float(first), rel=1e-9)
