"""Every function with a tolerance tells its looks, goes on, repeats nothing and loses nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capabilities import CASES, Case
from rows import positive

import tracekit as tk

LOG, FINE = tk.functions.log, 1e-12
CALLS: dict[str, Callable[..., Any]] = {  # of rows whose own call takes no further options
    "trace": lambda A, m, **more: tk.trace(A, num_matvecs=m, **more),
    "spectral_summary": tk.spectral_summary,
    "one_sided_summary": tk.one_sided_summary,
    "partial_trace": lambda A, m, **more: tk.partial_trace(A, (2, 12), 1, m, **more),
    "trace_function": lambda A, m, **more: tk.trace_function(A, LOG, m, depth=3, deflate=0, **more),
    "effective_dimension": lambda A, m, **more: tk.effective_dimension(A, 0.1, m, depth=3, **more),
    "schatten_norm": lambda A, m, **more: tk.schatten_norm(A, 3, m, depth=3, **more),
    "spectral_density": tk.spectral_density,
}
UNITS = {"partial_trace": 2}  # products of a probe, where the budget is of these
MOST = 23  # products: fewer than would make a value of 24 columns exact


WIDER = dict.fromkeys(("inner", "alignment"), 46)  # the same of two operators


class Killed(BaseException):
    """Ends a run where nothing may catch it."""


def takes_tolerances(case: Case) -> bool:
    function = getattr(tk, case.name)
    return inspect.isfunction(function) and "rtol" in inspect.signature(function).parameters


held = [case for case in CASES if takes_tolerances(case)]
law = pytest.mark.parametrize("case", held, ids=lambda case: case.name)


def call(case: Case, operands: Any, most: int = 0, **options: Any) -> Any:
    most = most or WIDER.get(case.name, MOST)
    options = {"rng": 3, "rtol": FINE} | options
    run = CALLS.get(case.name, case.run)
    return run(*operands, most // UNITS.get(case.name, 1), **options)


def first(found: Any) -> tk.Estimate:
    return found if isinstance(found, tk.Estimate) else found[0]


def bits(found: Any) -> tuple[Any, ...]:
    every = [found] if isinstance(found, tk.Estimate) else list(found)
    return tuple(
        (np.asarray(e.value).tobytes(), np.asarray(e.standard_error).tobytes(), e.num_matvecs)
        for e in every
    )


class Watched:
    """The operands of a case, by their products, which are counted; number `at` fails."""

    def __init__(self, case: Case, at: int = 0, error: Any = Killed) -> None:
        self.calls = self.columns = 0
        self._at, self._error = at, error
        self.operands = tuple(
            self._made(X) if X.ndim == 2 else X for X in case.operands(positive())
        )

    def _made(self, A: np.ndarray) -> tk.LinearOperator:
        def watch(M: np.ndarray) -> Callable[[Any], Any]:
            def product(X: Any) -> Any:
                self.calls += 1
                self.columns += X.shape[1]
                if self.calls == self._at and self._error is not None:
                    raise self._error
                return M @ X * (np.nan if self.calls == self._at else 1.0)

            return product

        return tk.LinearOperator(A.shape, watch(A), rmatmat=watch(A.T))


def resumed(case: Case, watched: Watched, found: Any) -> Any:
    """The run that goes on with what an error carried, to where the whole one went."""
    taken = first(found).paused.call.operands
    A = watched.operands[:taken] if taken > 1 else watched.operands[0]
    return tk.resume(
        A, found, rtol=FINE, num_matvecs=WIDER.get(case.name, MOST) // UNITS.get(case.name, 1)
    )


@law
def test_a_callback_sees_it_grow_and_may_end_it(case: Case) -> None:
    seen = list[int]()
    whole = call(case, Watched(case).operands, callback=lambda e: seen.append(first(e).num_matvecs))
    assert seen == sorted(set(seen))
    assert 0 < seen[0] <= seen[-1] <= first(whole).num_matvecs <= WIDER.get(case.name, MOST)
    ended = call(case, Watched(case).operands, callback=lambda e: True)
    assert first(ended).num_matvecs == seen[0]
    assert not first(ended).converged


@law
def test_budgets_are_ceilings_and_spent_is_claimed(case: Case) -> None:
    for most in (12, 17, MOST):
        watched = Watched(case)
        found = first(call(case, watched.operands, most))
        assert found.num_matvecs <= most
        if "cost" not in case.lacks:
            assert found.num_matvecs == watched.columns


@law
def test_checkpoints_go_on_bit_for_bit(case: Case, tmp_path: Path) -> None:
    watched = Watched(case)
    whole = call(case, watched.operands)
    for at in sorted({1, watched.calls // 2, watched.calls} - {0}):
        path = tmp_path / f"{at}.npz"
        with pytest.raises(Killed):
            call(case, Watched(case, at).operands, checkpoint=path)
        again = Watched(case)
        assert bits(call(case, again.operands, checkpoint=path)) == bits(whole)
        assert again.columns <= watched.columns
    assert watched.calls == 1 or again.columns < watched.columns


@law
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError, None])
def test_what_fails_late_loses_nothing(case: Case, error: Any) -> None:
    watched = Watched(case)
    whole = call(case, watched.operands)
    with pytest.raises(error or tk.NotFiniteError) as caught:
        call(case, Watched(case, watched.calls, error).operands)
    paid = caught.value.estimate
    assert paid is not None
    assert not first(paid).converged
    again = Watched(case)
    assert bits(resumed(case, again, paid)) == bits(whole)
    assert again.columns == first(whole).num_matvecs - first(paid).num_matvecs < watched.columns
