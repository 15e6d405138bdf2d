"""Neural tangent kernels: products with a network's Jacobian, exact kernels, traces, diagonals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit as tk
import tracekit_ntk

from ._backends import NETWORKS, NumPy
from ._problems import perceptron, recurrence
from ._timed import LIBRARY, Timed

if TYPE_CHECKING:
    from collections.abc import Callable


class Products(Timed):
    """32 columns through the Jacobian of 15 layers of width 64 on 50 inputs, as users run them."""

    params = (NETWORKS, ("J.H @ U", "J @ X", "J @ J.H @ U"))
    param_names = (LIBRARY, "product")
    compiled = False  # operators compile their own products

    @staticmethod
    def build(lib: NumPy, which: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        f, params, x = perceptron(lib, [100, *15 * [64]], samples=50)
        J = tracekit_ntk.jacobian(lambda p: f(p, x), params)
        A = {"J.H @ U": J.H, "J @ X": J, "J @ J.H @ U": tk.gram(J)}[which]
        draw = np.random.default_rng(0).standard_normal
        return A.matmat, (lib.asarray(draw((A.shape[1], 32), dtype=np.float32)),)

    def time_product(self, *params: Any) -> None:
        self.run()


class Exact(Timed):
    """From factors: 8 samples, 16 outputs; layers of width 256, or a recurrence of 12 steps."""

    params = (NETWORKS, ("perceptron", "recurrence"), ("kernel", "ntk_trace", "ntk_diagonal"))
    param_names = (LIBRARY, "network", "quantity")

    @staticmethod
    def build(
        lib: NumPy, network: str, quantity: str
    ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        f, params, x = (
            perceptron(lib, [64, *5 * [256], 16], samples=8)
            if network == "perceptron"
            else recurrence(lib, (16, 64, 16), steps=12, samples=8)
        )
        exactly = getattr(tracekit_ntk, quantity)
        return lambda params, x: exactly(f, params, x), (params, x)

    def time_exact(self, *params: Any) -> None:
        self.run()
