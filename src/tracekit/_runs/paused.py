"""Runs that can go on: what is kept of one, and the call that goes on with it."""

from __future__ import annotations

import importlib
import math
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from .._arrays import Array, dtype_name, namespace
from .._estimates import Estimate, former_name
from .._operators import LinearOperator
from ..probes import Source
from .records import put_together, taken_apart

P = ParamSpec("P")
T = TypeVar("T")

OF_A_RUN = ("num_matvecs", "num_probes", "rng", "rtol", "atol", "callback", "checkpoint")


class Call(NamedTuple):
    """A function of the package by name, and the arguments that say what was estimated."""

    module: str
    name: str
    operands: int
    arguments: dict[str, Any]
    budget: str | None
    lost: tuple[str, ...] = ()  # arguments that could not be pickled

    @property
    def function(self) -> Callable[..., Any]:
        """What was called."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.name)
        return found


@dataclass(frozen=True)
class Paused:
    """A run that can go on: its state taken apart, how many probes it has, and what draws more.

    `identity` tells operators and libraries apart, `block` how a block of dependent probes was
    drawn: from which state, of how many columns at most, and of which widths.
    """

    arrays: dict[str, Array]
    told: Any
    count: int
    source: Source
    draws: Any
    identity: dict[str, Any]
    block: tuple[Any, int, list[int]] | None = None
    call: Call | None = None

    @classmethod
    def of(
        cls,
        state: Any,
        source: Source,
        operators: Sequence[LinearOperator],
        count: int,
        draws: Any,
        block: tuple[Any, int, list[int]] | None = None,
    ) -> Paused:
        """A run on these operators, whose source goes on from a state of it."""
        arrays, told = taken_apart(state, operators)
        block = block and (*block[:2], list(block[2]))
        here = identity_of(operators[0])
        return cls(arrays, told, count, source, draws, here, block)

    @property
    def num_bytes(self) -> int:
        """Of the arrays that are kept."""
        return sum(_bytes(x) for x in self.arrays.values())

    def read(
        self, *operators: LinearOperator, place: Callable[[Array], Array] = lambda x: x
    ) -> Any:
        """The state, on operators that look like those that it is of; what draws goes on there."""
        here = identity_of(operators[0])
        for name, x in self.identity.items():
            if here[name] != x:
                raise ValueError(
                    f"the run is of an operator with {name} {x}, and this one has {here[name]}; "
                    "pass the operator that it came from"
                )
        self.source.restore(self.draws)
        return put_together(self.arrays, self.told, operators, place)

    def __getstate__(self) -> dict[str, Any]:
        """A function that cannot be pickled is left out, and `resume` then says so."""
        call = self.call
        with suppress(Exception):
            pickle.dumps(call)
            return self.__dict__
        assert call is not None
        held = {name: x for name, x in call.arguments.items() if _pickles(x)}
        lost = tuple(name for name in call.arguments if name not in held)
        return self.__dict__ | {"call": call._replace(arguments=held, lost=lost)}


class Checkpoint(NamedTuple):
    """A file that a run is written to, and what was asked of it."""

    path: Path
    asked: dict[str, str]


def identity_of(A: LinearOperator) -> dict[str, Any]:
    """What has to be the same where a run goes on."""
    return {
        "shape": list(A.shape),
        "dtype": dtype_name(A.dtype),
        "library": A.xp.__name__.removeprefix("array_api_compat."),
        "a factor": A.factor is not None,
    }


def resumable(operands: int = 1) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make what an estimator returns, and what it had when it failed, go on by `resume`.

    The first `operands` arguments are operators; they are not kept. A run is kept by the outermost
    of functions that call each other.
    """

    def decorate(estimator: Callable[P, T]) -> Callable[P, T]:
        names = signature(estimator)
        budget = next((x for x in OF_A_RUN[:2] if x in names.parameters), None)

        @wraps(estimator)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given = names.bind(*args, **kwargs).arguments
            asked = {k: x for k, x in list(given.items())[operands:] if k not in OF_A_RUN}
            made = Call(estimator.__module__, estimator.__name__, operands, asked, budget)
            path = given.get("checkpoint")
            if path is not None and not isinstance(path, Checkpoint):
                told = {"function": made.name} | {k: _told(x) for k, x in asked.items()}
                kwargs["checkpoint"] = Checkpoint(_writable(path), told)
            try:
                found: T = _with_call(estimator(*args, **kwargs), made)
                return found
            except BaseException as error:
                if (paid := getattr(error, "estimate", None)) is not None:
                    with suppress(Exception):
                        error.estimate = _with_call(paid, made)  # type: ignore[attr-defined]
                raise

        return call

    return decorate


@former_name("max_matvecs", "num_matvecs")
def resume(
    A: Any,
    estimate: Any,
    *,
    rtol: float = 1e-2,
    atol: float = 0.0,
    num_matvecs: int | None = None,
    callback: Callable[[Any], Any] | None = None,
    checkpoint: str | Path | None = None,
) -> Any:
    """Spend more products on an estimate, repeating none.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        The operator of the estimate; a tuple of both, where it was made of two.
    estimate : Estimate, or a record of several
        What an estimator returned, converged or not, or the `estimate` of an error that ended it.
    rtol, atol : float, optional
        As for `trace`: the interval of 95 % is to be within ``atol + rtol |value|``; if both are 0,
        `num_matvecs` are spent.
    num_matvecs : int, optional
        Products to spend at the most, those of `estimate` included.
    callback : callable, optional
        As for `trace`.
    checkpoint : path, optional
        As for `trace`.

    Returns
    -------
    Estimate
        To the new tolerance, of the same function with the same arguments. Runs are looked at when
        they have doubled, so that one that was ended early may end elsewhere, and after more
        products, than one that had the fine tolerance from the start.

    Raises
    ------
    ValueError, TypeError
        As for the function that made the estimate, and if the estimate cannot be continued, or is
        not of this operator as far as shape, dtype and library tell.

    Notes
    -----
    An estimate keeps its run, the arrays that further products need, where it was made with a
    tolerance, a callback or a checkpoint, or where they take at most 64 MB. That the operator is
    the same one cannot be seen of its shape, dtype and library, which are all that is compared.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> M = tk.testing.known_spectrum(np.arange(1.0, 1001.0) ** -2)
    >>> A = tk.LinearOperator(M.shape, lambda X: M @ X)
    >>> rough = tk.trace(A, rtol=0.1, rng=0)
    >>> fine = tk.resume(A, rough, rtol=1e-3)
    >>> rough.num_matvecs < fine.num_matvecs
    True
    """
    first = estimate if isinstance(estimate, Estimate) else _first(estimate)
    paused = first.paused
    if not isinstance(paused, Paused) or paused.call is None:
        if _is_exact(first.standard_error):
            return estimate  # exact
        raise ValueError(
            f"{first!r} keeps no products to go on from; pass an estimate of this package that was "
            "made with a tolerance, a callback or a checkpoint"
        )
    call = paused.call
    operators = A if call.operands > 1 and isinstance(A, tuple) else (A,)
    if len(operators) != call.operands:
        raise ValueError(
            f"{call.name} is of {call.operands} operators, got {len(operators)}; pass a tuple of "
            "them"
        )
    if call.lost:
        raise ValueError(
            f"the estimate was pickled without {', '.join(call.lost)} of {call.name}, which cannot "
            "be pickled; define functions in a module, or use a checkpoint"
        )
    options = call.arguments | {"rng": paused, "rtol": rtol, "atol": atol, "callback": callback}
    options["checkpoint"] = checkpoint
    if call.budget is not None:
        options[call.budget] = num_matvecs
    found = call.function(*operators, **options)
    return _each(found, lambda e: replace(e, origin=first.origin))


def _is_exact(error: Any) -> bool:
    return bool(namespace(error).all(error == 0))


def ended_by(error: BaseException) -> str:
    """What ended a run before its time."""
    told = str(error).partition("\n")[0]
    return f"ended by {type(error).__name__}" + (f" ({told})" if told else "")


def _with_call(found: Any, call: Call) -> Any:
    """The estimates, which go on by this call."""

    def told(e: Estimate) -> Estimate:
        if isinstance(e.paused, Paused):
            return replace(e, paused=replace(e.paused, call=call))
        return e

    return _each(found, told)


def _each(found: Any, change: Callable[[Estimate], Estimate]) -> Any:
    if isinstance(found, Estimate):
        return change(found)
    if isinstance(found, tuple):
        return type(found)(*(_each(x, change) for x in found))
    return found


def _first(found: Any) -> Estimate:
    if isinstance(found, tuple) and found and isinstance(found[0], Estimate):
        return found[0]
    raise TypeError(f"`estimate` must be an Estimate, got {found!r}; pass what an estimator gave")


def _writable(given: Any) -> Path:
    path = Path(given)
    if not path.parent.is_dir():
        raise ValueError(
            f"checkpoint {str(path)!r} is in a folder that does not exist; make it first"
        )
    return path


def _bytes(x: Array) -> int:
    size: int = math.prod(x.shape) * getattr(getattr(x, "dtype", None), "itemsize", 8)
    return size


def _told(x: Any) -> str:
    """What tells arguments apart from run to run."""
    name = getattr(x, "__name__", None)
    if name is None and callable(x):
        name = type(x).__name__
    if name is None and getattr(x, "shape", None):
        name = f"array of shape {tuple(x.shape)}"
    return str(x) if name is None else str(name)


def _pickles(x: Any) -> bool:
    try:
        pickle.dumps(x)
    except Exception:
        return False
    return True
