"""The six floors of both packages: who imports whom, and what an import loads."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tracekit
import tracekit_ntk

SOURCE = Path(tracekit.__file__).parents[1]
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
MOST_LINES = 420

# From the ground up: a folder or file imports only from lines above its own.
FLOORS = {
    "tracekit": """
        _arrays
        _operators probes _estimates functions quadrature
        _sketches _runs testing io
        _trace _diagonal _norm _matrix_functions _tracking
        __init__ cli
        __main__
    """,
    "tracekit_ntk": """
        _factors _derivatives losses
        _torch _jax factors
        _backend
        _kernel
        kernel _jacobian _curvature _inputs _recurrent _projections
        __init__
    """,
}
WITHIN = 4  # floors inside a folder
ENGINES = {"_torch": "torch", "_jax": "jax"}
MAY_NAME_LIBRARIES = ("_arrays", "probes.generators", "_operators.convert")  # what users hand in


def module_of(path: Path) -> str:
    """The dotted name of a file; that of a folder's `__init__` is the folder's."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 2 and parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for name in FLOORS for path in (SOURCE / name).rglob("*.py")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
FACES = {name for name, path in FILES.items() if path.name == "__init__.py"}

files = pytest.mark.parametrize("file", sorted(FILES))


def imported(file: str) -> Iterator[tuple[str, str]]:
    """Every module that a file imports from anywhere in it, with the name that it imports."""
    parts = file.split(".") if FILES[file].name == "__init__.py" else file.split(".")[:-1]
    parts = parts[:1] if file.endswith(".__init__") else parts
    for item in ast.walk(TREES[file]):
        if isinstance(item, ast.ImportFrom):
            base = parts[: len(parts) - item.level + 1] if item.level else []
            base = base + (item.module.split(".") if item.module else [])
            yield from ((".".join(base), alias.name) for alias in item.names)
        if isinstance(item, ast.Import):
            yield from ((alias.name, "") for alias in item.names)


def imports(file: str) -> set[str]:
    """Files and folders that a file imports."""
    found = set()
    for module, name in imported(file):
        whole = f"{module}.{name}"
        found.add(whole if whole in FILES else module)
    return found


def folder_of(file: str) -> tuple[str, str]:
    """The package, and the folder or file at its top."""
    package, _, rest = file.partition(".")
    return package, rest.partition(".")[0] or "__init__"


def floor_of(file: str) -> int:
    package, top = folder_of(file)
    lines = [line.split() for line in FLOORS[package].strip().splitlines()]
    return next(k for k, line in enumerate(lines) if top in line)


def neighbours(file: str) -> set[str]:
    """What a file imports of the files of its own folder."""
    own = {other for other in imports(file) if folder_of(other) == folder_of(file)}
    return {other for other in own if other.count(".") == 2}


def height(file: str, above: tuple[str, ...] = ()) -> int:
    assert file not in above, f"a circle: {' > '.join((*above, file))}"
    return 1 + max((height(other, (*above, file)) for other in neighbours(file)), default=0)


@files
def test_files_import_from_lower_floors_only(file: str) -> None:
    package, top = folder_of(file)
    for other in imports(file):
        if other.partition(".")[0] == package and folder_of(other) != (package, top):
            assert floor_of(other) < floor_of(file), f"{file} imports {other}"


@files
def test_files_import_other_folders_by_their_faces(file: str) -> None:
    for module, _ in imported(file):
        if module.partition(".")[0] in FLOORS and folder_of(module) != folder_of(file):
            assert module.count(".") < 2, f"{file} imports from {module}"


@pytest.mark.parametrize("file", [file for file in sorted(FILES) if file.count(".") == 2])
def test_folders_have_few_floors_and_no_circle(file: str) -> None:
    assert height(file) <= WITHIN


@pytest.mark.parametrize("face", sorted(FACES))
def test_faces_hand_names_on_and_hold_no_code(face: str) -> None:
    for item in TREES[face].body:
        doc = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
        names = isinstance(item, ast.Assign) and all(
            isinstance(x, ast.Name) and x.id in ("__all__", "__version__") for x in item.targets
        )
        assert doc or names or isinstance(item, ast.ImportFrom), ast.unparse(item)


def test_privacy_is_said_once() -> None:
    for file in FILES:
        assert not any(part.startswith("_") for part in file.split(".")[2:]), file


@files
def test_files_begin_with_their_purpose(file: str) -> None:
    text = FILES[file].read_text(encoding="utf-8")
    assert text.startswith(('"""', 'r"""'))
    assert (ast.get_docstring(TREES[file]) or "").splitlines()[0].endswith(".")


@files
def test_files_can_be_read_in_one_sitting(file: str) -> None:
    assert len(FILES[file].read_text(encoding="utf-8").splitlines()) < MOST_LINES


def test_no_folder_is_past_a_fifth_of_the_core() -> None:
    sizes: dict[str, int] = {}
    for file, path in FILES.items():
        if file.startswith("tracekit."):
            top = folder_of(file)[1]
            sizes[top] = sizes.get(top, 0) + len(path.read_text(encoding="utf-8").splitlines())
    assert max(sizes.values()) < sum(sizes.values()) / 5


@files
def test_files_load_nothing_heavy(file: str) -> None:
    own = {ENGINES[folder_of(file)[1]]} if folder_of(file)[1] in ENGINES else set()
    found = set()
    for item in TREES[file].body:
        if isinstance(item, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in item.names}
        if isinstance(item, ast.ImportFrom) and not item.level:
            found.add((item.module or "").partition(".")[0])
    assert found <= LIGHT | {"tracekit"} | own


@pytest.mark.parametrize("file", [file for file in sorted(FILES) if file.startswith("tracekit.")])
def test_formulas_never_ask_which_library_they_are_on(file: str) -> None:
    if file.removeprefix("tracekit.").startswith(MAY_NAME_LIBRARIES):
        return
    for item in ast.walk(TREES[file]):
        names = [getattr(item, "id", None), getattr(item, "attr", None)]
        if isinstance(item, ast.Import | ast.ImportFrom):
            names += [alias.name.partition(".")[0] for alias in item.names]
            names += [getattr(item, "module", None)]
        for name in filter(None, names):
            assert not re.match(r"(is_)?(torch|jax|cupy|dask)\b|is_numpy", name), name


@pytest.mark.parametrize("file", [f for f in sorted(FILES) if f.startswith("tracekit_ntk.")])
def test_tracekit_ntk_stands_on_the_face_of_tracekit_and_its_arrays(file: str) -> None:
    for other in imports(file):
        if other.partition(".")[0] == "tracekit":
            assert other in ("tracekit", "tracekit._arrays"), other


@pytest.mark.parametrize("package", [tracekit, tracekit_ntk], ids=lambda x: x.__name__)
def test_public_classes_are_at_home_in_the_package(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        thing = getattr(package, name)
        if inspect.isclass(thing):
            assert thing.__module__ == package.__name__, name  # type: ignore[attr-defined]


def test_no_estimator_takes_a_device_or_a_dtype() -> None:
    for name in tracekit.__all__:
        thing = getattr(tracekit, name)
        if inspect.isfunction(thing) and name != "as_operator":
            assert not set(inspect.signature(thing).parameters) & {"device", "dtype", "backend"}


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


@pytest.mark.parametrize("package", FLOORS)
def test_import_loads_nothing_heavy(package: str) -> None:
    loaded = run(f"import sys, {package}; print([m for m in {HEAVY!r} if m in sys.modules])")
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


def test_public_modules_are_reached_from_the_package() -> None:
    assert run("import tracekit; print(tracekit.testing.known_spectrum([3.0])[0, 0])") == "3.0"
    assert run("from tracekit import testing; print(testing.__name__)") == "tracekit.testing"


@pytest.mark.parametrize("package", [tracekit, tracekit_ntk], ids=lambda x: x.__name__)
def test_names_are_those_of_things_not_of_their_files(package: object) -> None:
    names = set(package.__all__) - {"functions", "losses", "probes", "quadrature", "testing"}  # type: ignore[attr-defined]
    assert not [name for name in names if inspect.ismodule(getattr(package, name))]


def test_the_kernel_is_a_function_and_has_what_its_module_has() -> None:
    import tracekit_ntk.kernel as module

    assert module.ntk_trace is tracekit_ntk.ntk_trace
    assert inspect.isfunction(tracekit_ntk.kernel)
    assert module.kernel is tracekit_ntk.kernel


def test_the_package_hands_on_what_is_promised() -> None:
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
    assert (SOURCE / "tracekit" / "py.typed").exists()


def test_everything_public_says_what_it_is() -> None:
    for name in tracekit.__all__:
        thing = getattr(tracekit, name)
        assert (thing.__doc__ or "").strip(), name
        if inspect.isfunction(thing):
            for section in ("Parameters", "Returns", "Examples"):
                assert section in thing.__doc__, f"{name} has no {section}"
