"""The floors of the house: who imports whom, and what an import loads."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tracekit

SOURCE = Path(tracekit.__file__).parent
ROOMS = {path.stem: path for path in sorted(SOURCE.glob("*.py"))}

# A room imports only from lower floors. Rooms of one floor never import each other.
FLOORS = {
    "_typing": 0,
    "_xp": 1,
    "_checked": 1.5,
    "_random": 2,
    "_operator": 2,
    "_estimate": 2,
    "_adapt": 2.3,  # as_operator and the operators made of others stand on the record itself
    "_build": 2.6,
    "functions": 3,
    "_lanczos": 3,
    "probes": 3,
    "_sketch": 3,
    "_budget": 3,
    "_leave_one_out": 3,
    "_checkpoint": 3,
    "_moments": 3.3,
    "_axes": 3,
    "_drift": 3.4,
    "_face": 3.5,  # what all estimators share
    "_columns": 3.6,
    "_probing": 3.6,
    "_deflation": 3.7,
    "_quadrature": 3.8,
    "_sampling": 3.9,
    "estimators": 4,
    "exchangeable": 4.5,  # falls back to plain probes where there is nothing to leave out
    "onesided": 4,
    "testing": 4,
    "_moment_samples": 4,
    "zonal": 4.5,
    "density": 4.5,
    "matrix_functions": 4.5,
    "alignment": 5.5,  # several quantities of `spectrum` from one sketch
    "spectrum": 5,
    "partial": 5,
    "diagonal": 5,
    "exchangeable_diagonal": 5.5,  # falls back to plain probes, as `exchangeable` does
    "determinant": 5,
    "named_traces": 5,
    "schatten": 5,
    "_adaptive": 5,
    "auto": 6,
    "sequence": 6,
    "comparison": 6,
    "io": 7,
    "_console": 7,
    "_cli_shared": 7.3,
    "_cli_compare": 7.6,
    "_cli_estimate": 7.6,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}
FORBIDDEN = {
    "_estimate": {"_operator", "_adapt", "_random"},
    "_sketch": {"_random", "probes"},
    "_leave_one_out": {"_random", "probes", "_operator"},
    "probes": {"_operator", "_adapt", "_build"},
    "_budget": {"_sketch", "_operator"},
}
LIGHT = {"numpy", "array_api_compat"} | set(sys.stdlib_module_names)
HEAVY = (
    "torch",
    "jax",
    "cupy",
    "dask",
    "matplotlib",
    "scipy.sparse",
    "scipy.sparse.linalg",
    "scipy.linalg",
    "scipy",
)

rooms = pytest.mark.parametrize("room", [room for room in ROOMS if room in FLOORS])


# The same for tracekit_ntk, which stands on the face of tracekit.
NTK = {path.stem: path for path in sorted((SOURCE.parent / "tracekit_ntk").glob("*.py"))}
NTK_FLOORS = {
    "_checks": 1,
    "_choice": 1,
    "_products": 1,
    "_uses": 1,  # the factored form, and what is made of it
    "factors": 1.2,
    "_products_of_uses": 1.2,
    "_contract": 1.4,
    "_tiles": 1.6,
    "_torch_passes": 1.5,  # products by PyTorch, and how it captures factors
    "_torch": 2,
    "_torch_modules": 2,
    "_torch_cells": 2,
    "_torch_check": 2,
    "_torch_reads": 2,
    "_torch_reverse": 2,
    "_torch_rules": 2.2,
    "_torch_record": 2.4,
    "_torch_capture": 2.6,
    "_jax_programs": 1.5,  # the same by JAX
    "_jax_trials": 1.7,
    "_jax": 2,
    "_jax_views": 2,
    "_jax_rules": 2.1,
    "_jax_places": 2.2,
    "_jax_interpreter": 2.3,
    "_jax_plan": 2.4,
    "_jax_capture": 2.6,
    "_adapter": 2.8,
    "_operators": 2.8,
    "_methods": 3,
    "samples": 5,
    "_exact": 4,
    "_explain": 4,
    "_factored": 4,
    "_jacobian": 5,
    "kernel": 5,
    "tracking": 6,
    "__init__": 9,
}
ADAPTERS = {"torch": "_torch", "jax": "_jax"}  # library, and the prefix of rooms that may load it


def tree(room: str) -> ast.Module:
    return ast.parse(ROOMS[room].read_text(encoding="utf-8"))


def ntk_tree(room: str) -> ast.Module:
    return ast.parse(NTK[room].read_text(encoding="utf-8"))


def imported_rooms(node: ast.AST) -> set[str]:
    """Rooms of this package that are imported anywhere in the tree."""
    found = set()
    for item in ast.walk(node):
        if isinstance(item, ast.ImportFrom) and (
            item.level or (item.module or "").startswith("tracekit")
        ):
            module = (item.module or "").removeprefix("tracekit").lstrip(".")
            found |= {module.partition(".")[0]} if module else {alias.name for alias in item.names}
        if isinstance(item, ast.Import):
            found |= {
                alias.name.split(".")[1]
                for alias in item.names
                if alias.name.startswith("tracekit.")
            }
    return found & set(FLOORS)


def outside_at_import(node: ast.Module) -> set[str]:
    """Top-level packages that are imported when the room is."""
    found = set()
    for item in node.body:
        if isinstance(item, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in item.names}
        if isinstance(item, ast.ImportFrom) and not item.level:
            found.add((item.module or "").partition(".")[0])
    return found


def test_every_room_has_a_floor() -> None:
    assert set(ROOMS) <= set(FLOORS), "give the new room a floor here and in the plan of the house"


@rooms
def test_rooms_import_from_lower_floors_only(room: str) -> None:
    for other in imported_rooms(tree(room)):
        assert FLOORS[other] < FLOORS[room], f"{room} imports {other}"


@rooms
def test_rooms_do_not_see_what_they_have_no_business_with(room: str) -> None:
    assert not imported_rooms(tree(room)) & FORBIDDEN.get(room, set())


@rooms
def test_rooms_load_nothing_heavy(room: str) -> None:
    assert outside_at_import(tree(room)) <= LIGHT


@pytest.mark.parametrize("room", [room for room in ROOMS if FLOORS.get(room, 0) >= 3])
def test_above_the_second_floor_nothing_asks_which_library_it_is_on(room: str) -> None:
    for item in ast.walk(tree(room)):
        names = [getattr(item, "id", None), getattr(item, "attr", None)]
        if isinstance(item, ast.Import | ast.ImportFrom):
            names += [alias.name.partition(".")[0] for alias in item.names] + [
                getattr(item, "module", None)
            ]
        for name in filter(None, names):
            assert not re.match(r"(is_)?(torch|jax|cupy|dask)\b|is_numpy", name), f"{room}: {name}"


def test_every_room_of_tracekit_ntk_has_a_floor() -> None:
    assert set(NTK) == set(NTK_FLOORS), "give the new room a floor here"


@pytest.mark.parametrize("room", NTK)
def test_rooms_of_tracekit_ntk_import_from_lower_floors_only(room: str) -> None:
    for item in ast.walk(ntk_tree(room)):
        if isinstance(item, ast.ImportFrom) and item.level:
            for other in {item.module} if item.module else {alias.name for alias in item.names}:
                assert NTK_FLOORS[other] < NTK_FLOORS[room], f"{room} imports {other}"


@pytest.mark.parametrize("room", NTK)
def test_tracekit_ntk_uses_the_face_of_tracekit_alone(room: str) -> None:
    for item in ast.walk(ntk_tree(room)):
        if isinstance(item, ast.ImportFrom) and not item.level:
            assert not (item.module or "").startswith("tracekit"), room
        if isinstance(item, ast.Import):
            names = {a.name for a in item.names if a.name.startswith("tracekit")}
            assert names <= {"tracekit"}, room


@pytest.mark.parametrize("room", NTK)
def test_adapters_load_their_own_library_alone(room: str) -> None:
    own = {library for library, prefix in ADAPTERS.items() if room.startswith(prefix)}
    assert outside_at_import(ntk_tree(room)) <= LIGHT | {"tracekit"} | own


@pytest.mark.parametrize("path", [*ROOMS.values(), *NTK.values()], ids=lambda path: path.stem)
def test_files_begin_with_their_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(('"""', 'r"""'))
    doc = ast.get_docstring(ast.parse(text)) or ""
    assert doc.splitlines()[0].endswith(".")


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if 4 <= FLOORS.get(room, 0) < 7 and room != "testing"]
)
def test_no_estimator_takes_a_device_or_a_dtype(room: str) -> None:
    for item in tree(room).body:
        if isinstance(item, ast.FunctionDef) and item.name in tracekit.__all__:
            arguments = {a.arg for a in (*item.args.args, *item.args.kwonlyargs)}
            assert not arguments & {"device", "dtype", "backend"}, item.name


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    loaded = run(f"import sys, tracekit; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_import_of_tracekit_ntk_loads_nothing_heavy() -> None:
    loaded = run(f"import sys, tracekit_ntk; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_estimating_a_numpy_matrix_loads_no_other_library() -> None:
    heavy = [name for name in HEAVY if name != "scipy" and name != "scipy.sparse.linalg"]
    loaded = run(
        "import sys, numpy as np, tracekit as tk\n"
        "A = np.diag(np.arange(30.0))\n"
        "for f in (tk.hutchinson, tk.hutchpp, tk.xtrace, tk.xnystrace): print(f(A, 12, rng=0))\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    assert loaded.splitlines()[-1] == "[]"


def test_testing_is_reached_from_the_face() -> None:
    assert run("import tracekit; print(tracekit.testing.known_spectrum([3.0])[0, 0])") == "3.0"
    assert run("from tracekit import testing; print(testing.__name__)") == "tracekit.testing"


def test_the_face_hands_on_what_is_promised() -> None:
    promised = {
        "Estimate",
        "LinearOperator",
        "as_operator",
        "gram",
        "vstack",
        "block_diagonal",
        "counted",
        "probes",
        "exact_trace",
        "hutchinson",
        "hutchpp",
        "xtrace",
        "xnystrace",
    }
    assert promised <= set(tracekit.__all__)
    assert all(hasattr(tracekit, name) for name in tracekit.__all__)
    assert list(tracekit.__all__) == sorted(tracekit.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", tracekit.__version__)
    assert (SOURCE / "py.typed").exists()


def test_the_face_defines_nothing_of_its_own() -> None:
    allowed = {"__getattr__", "__dir__"}
    defined = [
        x.name for x in tree("__init__").body if isinstance(x, ast.FunctionDef | ast.ClassDef)
    ]
    assert set(defined) <= allowed


def test_everything_public_says_what_it_is() -> None:
    for name in tracekit.__all__:
        thing = getattr(tracekit, name)
        assert (thing.__doc__ or "").strip(), name
        if inspect.isfunction(thing):
            for section in ("Parameters", "Returns", "Examples"):
                assert section in thing.__doc__, f"{name} has no {section}"
