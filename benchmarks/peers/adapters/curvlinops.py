"""curvlinops: curvature matrices of networks as operators, and their traces, in PyTorch."""

from __future__ import annotations

import numpy as np

from ..contract import Answer, Counter, Peer, Run
from . import _torch_products
from ._torch_products import MODES, bare  # noqa: F401

PEER = Peer(
    "curvlinops",
    "curvlinops-for-pytorch",
    "3.0.1",
    "https://github.com/f-dangel/curvlinops",
    "PyTorch",
    "Hessian, generalised Gauss-Newton, Fisher, K-FAC and EKFAC operators of a module and a loss, "
    "their inverses and submatrices",
)
METHODS = {
    "trace": ("Hutchinson", "Hutch++", "XTrace"),
    "diagonal": ("Hutchinson", "XDiag"),
    "norm": ("mean of |A x|^2",),
}


def make(
    quantity: str, method: str, matrix: np.ndarray, m: int, mode: str, counter: Counter | None
) -> Run:
    """Return the estimator as a function of a seed."""
    import curvlinops as cl
    import torch

    functions = {
        ("trace", "Hutchinson"): cl.hutchinson_trace,
        ("trace", "Hutch++"): cl.hutchpp_trace,
        ("trace", "XTrace"): cl.xtrace,
        ("diagonal", "Hutchinson"): cl.hutchinson_diag,
        ("diagonal", "XDiag"): cl.xdiag,
        ("norm", "mean of |A x|^2"): cl.hutchinson_squared_fro,
    }
    function = functions[quantity, method]
    A = _torch_products.operator(matrix, counter)

    def run(seed: int) -> Answer:
        torch.manual_seed(seed)
        value = np.asarray(function(A, m))
        return Answer(np.sqrt(value) if quantity == "norm" else value)

    return run
