"""pylops: linear operators for inverse problems, and traces of them, in NumPy."""

from __future__ import annotations

import numpy as np

from ..contract import Answer, Counted, Counter, Peer, Run
from ._numpy_products import MODES, bare  # noqa: F401

PEER = Peer(
    "pylops",
    "pylops",
    "2.8.0",
    "https://github.com/PyLops/pylops",
    "NumPy, CuPy, JAX",
    "some hundred operators of signal and wave processing; solvers of inverse problems (tracekit "
    "takes its operators as they are)",
)
METHODS = {"trace": ("Hutchinson", "Hutch++", "NA-Hutch++")}


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed."""
    from pylops import MatrixMult
    from pylops.utils import estimators

    functions = {
        "Hutchinson": estimators.trace_hutchinson,
        "Hutch++": estimators.trace_hutchpp,
        "NA-Hutch++": estimators.trace_nahutchpp,
    }
    A = MatrixMult(matrix, dtype=matrix.dtype) if counter is None else Counted(matrix, counter)

    def run(seed: int) -> Answer:
        np.random.seed(seed)  # noqa: NPY002 - the library draws from the global generator
        return Answer(np.asarray(functions[method](A, neval=m)))

    return run
