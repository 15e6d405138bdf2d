"""Probes: the time to draw a block of them, law by law."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace

from tracekit import probes
from tracekit.probes.source import Source

from ._backends import TIMED, NumPy
from ._timed import LIBRARY, Timed

if TYPE_CHECKING:
    from collections.abc import Callable

LAWS = ("rademacher", "normal", "sphere", "orthogonal", "hadamard")


class Probes(Timed):
    """32 columns of 100 000 numbers in double precision, drawn by the library's own generator."""

    params = (TIMED, LAWS)
    param_names = (LIBRARY, "law")
    n, m = 100_000, 32

    @classmethod
    def build(cls, lib: NumPy, law: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        like = lib.asarray(np.zeros(1))
        space = SimpleNamespace(dtype=like.dtype, xp=array_namespace(like), device=lib.device)

        def draw(rng: Any) -> Any:
            return getattr(probes, law)(Source(rng, space), cls.n, cls.m)

        return draw, (lib.generator(0),)

    def time_draw(self, *params: Any) -> None:
        self.run()
