"""Runs that are ready to be timed: built, compiled and warm before the clock starts."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ._backends import backend

if TYPE_CHECKING:
    from collections.abc import Callable


LIBRARY = "library:device"  # name of the parameter that all share


class Timed:
    """A benchmark of times: `build(lib, ...)` gives a function and its arguments.

    asv calls `setup` before every sample, so what it makes is made once a process.
    """

    repeat = (3, 15, 0.4)  # samples at least, at most, and seconds after which they are enough
    rounds = 1
    number = 1
    warmup_time = 0
    timeout = 120
    compiled = True  # by the library's compiler, where it has one

    def setup(self, *params: Any) -> None:
        """Skip libraries that are not here; make the others' run ready."""
        self.run = _ready(type(self), *params)

    @staticmethod
    def build(lib: Any, *params: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return a function, and the arguments that it is timed on."""
        raise NotImplementedError


@cache
def _ready(benchmark: type[Timed], on: str, *params: Any) -> Callable[[], Any]:
    lib = backend(on)
    f, args = benchmark.build(lib, *params)
    f = lib.compiled(f, *args) if benchmark.compiled else f

    def run() -> Any:
        return lib.wait(f(*args))

    run()
    return run
