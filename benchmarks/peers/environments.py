"""Makes an environment of pinned packages for each library, and anew when the pins change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINS = Path(__file__).with_name("requirements")
FOLDER = ROOT / ".venv-peers"
NAMES = tuple(sorted(path.stem for path in PINS.glob("*.txt")))
PYTHON = "python3.11"  # the pins are for it, and neural-tangents runs on no newer one


def python(name: str) -> Path:
    """Return the interpreter of a library's environment."""
    return FOLDER / name / "bin" / "python"


def made(name: str) -> bool:
    """Whether the environment is there, with the pins as they are now."""
    stamp = FOLDER / name / "pins.txt"
    return stamp.is_file() and stamp.read_bytes() == (PINS / f"{name}.txt").read_bytes()


def make(name: str) -> None:
    """Make the environment anew; torch first and by itself, as constraints.txt says why."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n", encoding="ascii")
    pins = PINS / f"{name}.txt"
    _run(_base(), "-m", "venv", "--clear", FOLDER / name)
    pip = (python(name), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    pip = (*pip, "--constraint", ROOT / "constraints.txt")
    if "torch==" in pins.read_text(encoding="ascii"):
        _run(*pip, "torch")
    _run(*pip, "--requirement", pins)
    shutil.copyfile(pins, FOLDER / name / "pins.txt")


def _base() -> str:
    """Return the Python that the pins are for, or this one where that is not found."""
    here = sys.version_info[:2] == (3, 11)
    return sys.executable if here else shutil.which(PYTHON) or sys.executable


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    quiet = {**os.environ, "PIP_NO_COLOR": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(words[:4])} ...: {''.join(last)}")
