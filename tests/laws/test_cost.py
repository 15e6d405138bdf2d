"""The products that are claimed are those that were spent, and never more than allowed."""

from __future__ import annotations

from typing import Any

from capabilities import Case, N
from rows import SEED, law, positive

import tracekit as tk


def counted(case: Case, make: Any) -> tuple[list[Any], list[Any]]:
    """The operands of a case, counted; what is no operator is handed on."""
    operands, counters = [], []
    for X in case.operands(positive()):
        if X.ndim == 2:
            X, counter = tk.counted(make(X))
            counters.append(counter)
        operands.append(X)
    return operands, counters


@law("cost")
def test_spent_is_claimed_and_never_above_the_budget(case: Case) -> None:
    hold(case, tk.as_operator)


@law("factor")
def test_the_same_in_products_with_a_factor(case: Case) -> None:
    if "cost" not in case.lacks:
        hold(case, tk.gram)


def hold(case: Case, make: Any) -> None:
    for budget in (*range(case.budget, case.budget + 4), 3 * N):
        operands, counters = counted(case, make)
        found = case.run(*operands, budget, rng=SEED)
        spent = sum(counter.total for counter in counters)
        assert found.num_matvecs == spent > 0
        assert spent <= budget or "budget" in case.lacks
