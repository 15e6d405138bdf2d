"""Estimators: their time as n and m grow, and their overhead over the bare products."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

import tracekit as tk

from ._backends import ALL, TIMED, NumPy, backend
from ._problems import ESTIMATORS, QUANTITIES, TRACES, dense, numbers, operator
from ._timed import LIBRARY, Timed

if TYPE_CHECKING:
    from collections.abc import Callable


class Traces(Timed):
    """Of an operator whose products cost next to nothing, in double precision."""

    params = (TIMED, tuple(TRACES), (10_000, 100_000), (30, 120))
    param_names = (LIBRARY, "estimator", "n", "m")

    @staticmethod
    def build(lib: NumPy, name: str, n: int, m: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        def estimate(d: Any, U: Any, rng: Any) -> tk.Estimate:
            return ESTIMATORS[name](operator(lib, d, U), m, rng=rng)

        return estimate, (*numbers(lib, n), lib.generator(0))

    def time_estimate(self, *params: Any) -> None:
        self.run()


class Quantities(Traces):
    """What is not a trace, on the same operator."""

    params = (TIMED, tuple(QUANTITIES), (10_000,), (60,))


class Overhead:
    """Of a dense matrix: what an estimator takes, over its products in blocks of the same widths.

    CPU time on the CPU, wall time on a GPU; the median of pairs that were taken in turn.
    """

    params = (ALL, tuple(TRACES))
    param_names = (LIBRARY, "estimator")
    unit = "times the bare products"
    n, m, pairs, timeout = 2000, 60, 15, 120

    def setup(self, on: str, name: str) -> None:
        """Note the widths of the blocks as the run is compiled, or done once."""
        self.lib = lib = backend(on)
        widths: list[int] = []

        def estimate(A: Any, rng: Any) -> tk.Estimate:
            def product(X: Any) -> Any:
                widths.append(X.shape[1])
                return A @ X

            like = {"dtype": A.dtype, "xp": lib.xp, "device": lib.device}
            return TRACES[name](
                tk.LinearOperator(A.shape, product, product, **like), self.m, rng=rng
            )

        def products(A: Any, *blocks: Any) -> list[Any]:
            return [A @ X for X in blocks]

        ours = self.warm(estimate, lib.asarray(dense(self.n)), lib.generator(0))
        draw = np.random.default_rng(0).standard_normal
        blocks = [lib.asarray(draw((self.n, k))) for k in widths]
        self.both = ours, self.warm(products, lib.asarray(dense(self.n)), *blocks)

    def warm(self, f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        made = self.lib.compiled(f, *args)
        self.lib.wait(made(*args))
        return lambda: self.lib.wait(made(*args))

    def track_overhead(self, on: str, name: str) -> float:
        ours, bare = self.both
        pairs = (self.seconds(ours) / self.seconds(bare) for _ in range(self.pairs))
        return statistics.median(pairs)

    def seconds(self, run: Callable[[], Any]) -> float:
        start = self.lib.clock()
        run()
        return self.lib.clock() - start
