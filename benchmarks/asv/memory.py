"""Memory: the most that an estimator holds at once."""

from __future__ import annotations

from . import estimators
from ._backends import TIMED, backend
from ._problems import TRACES
from ._timed import LIBRARY


class Peak:
    """Of an operator that holds next to nothing; a block of 60 columns is 96 MB.

    What the process held before is left out, and what compiling takes.
    """

    params = (TIMED, tuple(TRACES))
    param_names = (LIBRARY, "estimator")
    unit = "bytes"
    n, m, timeout = 200_000, 60, 120

    def setup(self, on: str, name: str) -> None:
        self.lib = backend(on)
        f, self.args = estimators.Traces.build(self.lib, name, self.n, self.m)
        self.estimate = self.lib.compiled(f, *self.args)

    def track_peak(self, on: str, name: str) -> float:
        before = self.lib.peak()
        self.lib.wait(self.estimate(*self.args))
        return self.lib.peak() - before
