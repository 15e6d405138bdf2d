"""Orthonormalisation of tall blocks: the way that estimators take, and Householder's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tracekit import _arrays

from ._backends import TIMED, NumPy
from ._timed import LIBRARY, Timed

if TYPE_CHECKING:
    from collections.abc import Callable


class Orthonormalise(Timed):
    """32 columns of 100 000 numbers in double precision."""

    params = (TIMED, ("orthonormalise", "householder_qr"))
    param_names = (LIBRARY, "way")

    @staticmethod
    def build(lib: NumPy, way: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        Y = np.random.default_rng(0).standard_normal((100_000, 32))
        return getattr(_arrays, way), (lib.asarray(Y),)

    def time_columns(self, *params: Any) -> None:
        self.run()
