"""skerch: sketched decompositions, diagonals and norms of large operators, in PyTorch."""

from __future__ import annotations

import numpy as np

from ..contract import Answer, Counter, Peer, Run
from . import _torch_products
from ._torch_products import MODES, bare  # noqa: F401

PEER = Peer(
    "skerch",
    "skerch",
    "1.2.0",
    "https://github.com/andres-fr/skerch",
    "PyTorch",
    "sketched SVD and eigendecompositions; triangles of operators; measurements distributed over "
    "processes through HDF5",
)
METHODS = {
    "trace": ("Hutchinson", "XTrace"),
    "diagonal": ("Hutchinson", "XDiag"),
    "norm": ("snorm",),
}
APART = 10_007  # between the seeds of runs: the seeds of columns follow one another


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed."""
    from skerch import algorithms

    A = _torch_products.operator(matrix, counter)
    whole = {"return_diag": quantity == "diagonal"}
    if np.iscomplexobj(matrix):
        whole["noise_type"] = "phase"

    def run(seed: int) -> Answer:
        seed = APART * (seed + 1)
        if quantity == "norm":
            found, _ = algorithms.snorm(A, "cpu", A.dtype, m // 2, seed=seed, norm_types=("fro",))
            return Answer(np.asarray(found["fro"]))
        if method == "Hutchinson":
            found = algorithms.hutch(A, "cpu", A.dtype, m, seed=seed, **whole)
        else:
            found = algorithms.xhutchpp(A, "cpu", A.dtype, m // 2, m % 2, seed=seed, **whole)
        return Answer(np.asarray(found["diag" if quantity == "diagonal" else "tr"]))

    return run
