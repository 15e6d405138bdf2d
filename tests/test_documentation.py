"""What pages say is true: code runs, commands print what is shown, what is named exists."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk
from tracekit import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
PLAIN = {
    "sh",
    "text",
    "bibtex",
    "{literalinclude}",
}  # read by people; what is named in `sh` is looked up
RUN = {"pycon", "python", "console"}  # by doctest, and below
DIRECTIVES = {"{eval-rst}", "{toctree}", "{include}", "{math}", "{image}", "{figure}"}
BUILT = "generated/"  # what the site's builder writes
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str


def blocks(page: Path, *kinds: str) -> list[Block]:
    """The fenced blocks of a page, of some kinds or all."""
    found, opened, lines = [], None, list[str]()
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = re.match(r"\s*(```+|~~~+)(.*)", line)
        if not fence:
            lines.append(line)
        elif opened is None:
            opened, lines = (fence[1], (fence[2].split() or [""])[0]), []
        elif fence[1] == opened[0]:
            assert not fence[2].strip(), f"a fence within a fence: {line}"
            found.append(Block(opened[1], "\n".join(lines)))
            opened = None
    assert opened is None, f"{page.name} has a block {opened} that does not end"
    return [block for block in found if not kinds or block.kind in kinds]


def prose(page: Path) -> str:
    """What stands outside of fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"(?ms)^\s*(```+).*?^\s*\1\s*$", "", text)


def spans(page: Path) -> list[str]:
    """Code within lines."""
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


# --- blocks -----------------------------------------------------------------------------------


@pages
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    kinds = {block.kind for block in blocks(page)}
    assert kinds <= PLAIN | RUN | DIRECTIVES, f"{kinds - PLAIN - RUN - DIRECTIVES} in {page.name}"


def test_doctest_collects_every_page_with_a_session() -> None:
    paths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["testpaths"]
    for page in PAGES:
        for block in blocks(page, "pycon"):
            assert block.text.lstrip().startswith(">>> "), f"no prompt in {page.name}: {block.text}"
            name = page.relative_to(ROOT).as_posix()
            assert any(fnmatch(name, path) for path in paths), f"{name} is not in testpaths"


@dataclass(frozen=True)
class YourType:
    """Stands for the type that pages tell to register."""

    matrix: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def apply(self, X: Any) -> Any:
        return self.matrix @ X

    def apply_adjoint(self, X: Any) -> Any:
        return self.matrix.conj().T @ X


def with_a_gpu() -> bool:
    try:
        import cupy

        return bool(cupy.cuda.runtime.getDeviceCount())
    except Exception:
        return False


SCRIPTS = [(page, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), SCRIPTS, ids=[page.stem for page, _ in SCRIPTS])
def test_scripts_run(
    page: Path, block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks without prompts, with NumPy for CuPy where there is no GPU."""
    monkeypatch.chdir(tmp_path)
    A = np.diag(1 / np.arange(1.0, 501) ** 2)
    names = {"np": np, "tk": tk, "A": A, "YourType": YourType, "LinearOperator": tk.LinearOperator,
             "as_operator": tk.as_operator}  # fmt: skip
    source = block.text
    if not with_a_gpu():
        source = re.sub(r"\bimport cupy\b", "import numpy as cupy", source)
    exec(compile(source, page.name, "exec"), names)
    if "YourType" in source:
        matrix = np.random.default_rng(0).standard_normal((5, 4))
        assert tk.testing.adjoint_test(YourType(matrix)) < 1e-14


# --- commands ---------------------------------------------------------------------------------


def commands(page: Path) -> list[tuple[str, str]]:
    """Commands of console blocks, and what is shown to be printed."""
    found = []
    for block in blocks(page, "console"):
        for part in re.split(r"(?m)^\$ ", block.text)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


SESSIONS = [(page, *session) for page in PAGES for session in commands(page)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that pages hand to the command."""
    from scipy.io import mmwrite

    from examples.triangles import neighbour_graph

    folder = tmp_path_factory.mktemp("files")
    mmwrite(folder / "graph.mtx", neighbour_graph())
    return folder


def timeless(output: str) -> list[str]:
    return [line.rstrip() for line in output.strip().splitlines() if not line.startswith("time ")]


@pytest.mark.parametrize(
    ("page", "command", "output"), SESSIONS, ids=[command for _, command, _ in SESSIONS]
)
def test_commands_print_what_is_shown(
    page: Path,
    command: str,
    output: str,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program, *arguments = command.split()
    assert program == "tracekit", f"{page.name} shows the output of {program}, which no test runs"
    monkeypatch.chdir(files)
    cli.main(arguments)
    assert timeless(capsys.readouterr().out) == timeless(output)


@pages
def test_commands_have_the_options_that_are_named(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for block in blocks(page, "sh", "console") for line in block.text.splitlines()]
    for line in lines + spans(page):
        words = line.partition("#")[0].removeprefix("$ ").split()
        if words[:1] == ["tracekit"] and len(words) > 1 and not words[1].startswith("-"):
            assert cli.main([words[1], "--help"]) == 0, line
            known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
            assert {word for word in words if word.startswith("--")} <= known, line


TARGETS = set(re.findall(r"(?m)^([a-z][a-z-]*):", (ROOT / "Makefile").read_text()))


@pages
def test_targets_exist(page: Path) -> None:
    lines = [line for block in blocks(page, "sh", "console") for line in block.text.splitlines()]
    for line in lines + spans(page):
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", line.partition("#")[0]):
            assert target in TARGETS, f"{page.name} names 'make {target}'"


@pages
def test_modules_and_files_exist(page: Path) -> None:
    """Paths in code, and what ``python -m`` is told to run."""
    lines = [line for block in blocks(page, "sh", "console") for line in block.text.splitlines()]
    folders = tuple(f"{folder}/" for folder in ("benchmarks", "docs", "examples", "src", "tests"))
    for line in lines + spans(page):
        code = line.partition("#")[0]
        for module in re.findall(r"python -m ((?:examples|benchmarks|tracekit)[\w.]*)", code):
            path = ROOT / module.replace(".", "/")
            where = (path, path.with_suffix(".py"), ROOT / "src" / path.relative_to(ROOT))
            assert any(place.exists() for place in where), f"{page.name} names {module}"
        for word in code.split():
            if word.startswith(folders) and not re.search(r"[{*<]|_yours|_build", word):
                assert (ROOT / word.rstrip(",.;:")).exists(), f"{page.name} names {word}"


# --- links ------------------------------------------------------------------------------------


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures, other than addresses of the web."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?://|mailto:", target):
            yield target


def drawn(picture: str) -> bool:
    """Whether a module names the picture, if need be after a prefix that is the module's own."""
    for path in (DOCS / "_draw").glob("*.py"):
        prefix = path.stem + "_"
        if re.search(rf'"({picture}|{picture.removeprefix(prefix)})\b', path.read_text()):
            return True
    return False


@pages
def test_relative_links_lead_somewhere(page: Path) -> None:
    configured = (DOCS / "conf.py").read_text()
    for target in links(page):
        path = target.partition("#")[0]
        if path.startswith(f"{BUILT}pictures/"):
            assert drawn(Path(path).stem), f"no module draws {path} of {page.name}"
        elif path.startswith(BUILT):
            assert "/".join(path.split("/")[:2]) in configured, f"nothing makes {path}"
        elif path:
            assert (page.parent / path).exists(), f"{page.name} links {target}"


def entries(page: Path) -> list[str]:
    """Pages that the tables of contents of a page name."""
    lines = [line for block in blocks(page, "{toctree}") for line in block.text.splitlines()]
    named = (re.sub(r".*<(.*)>", r"\1", line.strip()) for line in lines)
    return [name for name in named if name and not name.startswith(":")]


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = [name for page in DOCS.glob("*.md") for name in entries(page)]
    assert len(listed) == len(set(listed))
    written = {name for name in listed if not name.startswith(BUILT)}
    assert written == {page.stem for page in DOCS.glob("*.md")} - {"index"}


@pytest.mark.parametrize("package", [tk, tracekit_ntk], ids=lambda package: package.__name__)
def test_the_page_of_the_api_lists_every_public_name(package: ModuleType) -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^   (\w+)$", page)
    modules = {name for name in package.__all__ if inspect.ismodule(getattr(package, name))}
    assert set(package.__all__) - modules <= set(listed)
