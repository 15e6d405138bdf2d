"""Builds the wheel and the sdist, installs each in a clean environment, and uses it as others do.

It needs build, twine, mypy and pyright beside it, which ``make dist-check`` installs. What is
installed sees nothing of this checkout: it runs in a folder of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENT = Path(__file__).with_name("typed_client.py")
PACKAGES = ("tracekit", "tracekit_ntk")
DIST = "tracekit_linalg"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
        [wheel], [sdist] = ([*(folder / "dist").glob(end)] for end in ("*.whl", "*.tar.gz"))
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        check_contents(wheel, sdist)
        shutil.copy(CLIENT, folder / "client.py")
        python = None
        for package in (sdist, wheel):
            python = installed(package, folder / package.suffix[1:])
            use(python, folder)
        check_types(python, folder)
    print("the wheel and the sdist install, run and are typed")


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a command and return what it printed; its own message and an end if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_contents(wheel: Path, sdist: Path) -> None:
    """Hold that the wheel has both packages and nothing else, and that the sdist can be tested."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == set(PACKAGES), f"the wheel holds {sorted(tops)}"
    for package in PACKAGES:
        sources = {f"{package}/{p.name}" for p in (ROOT / "src" / package).glob("*.py")}
        missing = (sources | {f"{package}/py.typed"}) - set(names)
        assert not missing, f"the wheel lacks {sorted(missing)}"
    assert any(name.endswith("licenses/LICENSE") for name in names), "the wheel has no licence"
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[-1] for name in archive.getnames()}
    needed = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "Makefile",
              "tests/conftest.py", "examples/triangles.py"}  # fmt: skip
    assert needed <= held, f"the sdist lacks {sorted(needed - held)}"


def installed(package: Path, folder: Path) -> Path:
    """Make an environment with a package and what it asks for; return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", package)
    run(sys.executable, "-m", "pip", "--python", python, "check")
    return python


def use(python: Path, folder: Path) -> None:
    """Import, estimate and call the command, where nothing but the installed package is found."""
    version = run(python, "-m", "tracekit", "--version", cwd=folder).split()[-1]
    told = run(
        python, "-c", f"from importlib.metadata import version; print(version('{DIST}'))",
        cwd=folder,
    ).strip()  # fmt: skip
    assert version == told, f"--version says {version}, the package's metadata {told}"
    assert run(python.with_name("tracekit"), "--version", cwd=folder).split()[-1] == version
    lines = run(python, "-W", "error", "client.py", cwd=folder).splitlines()
    assert lines[-1] == "Estimate(40.0 +- 0.0, 5 matvecs, exact_trace)", lines[-1]
    run(python, "-c", "import numpy; numpy.save('A.npy', numpy.eye(40))", cwd=folder)
    shown = run(python.with_name("tracekit"), "estimate", "A.npy", "--seed", "0", cwd=folder)
    assert "40" in shown.splitlines()[0], shown
    print(f"{DIST} {version} in a clean environment: {lines[-1]}")


def check_types(python: Path, folder: Path) -> None:
    """Hold that a typed program passes both checkers, and that they see its marked mistakes."""
    strict = ("--strict", "--no-incremental", "--python-executable", python)
    print("mypy:", run(sys.executable, "-m", "mypy", *strict, "client.py", cwd=folder).strip())
    settings = '{"typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error"}'
    (folder / "pyrightconfig.json").write_text(settings, encoding="utf-8")
    command = (sys.executable, "-m", "pyright", "--pythonpath", python, "client.py")
    print("pyright:", run(*command, cwd=folder).strip().splitlines()[-1])


if __name__ == "__main__":
    main()
