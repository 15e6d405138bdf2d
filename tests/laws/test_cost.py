"""The products that are claimed are those that were spent, and never more than allowed."""

from __future__ import annotations

from typing import Any

from capabilities import Case, N
from rows import SEED, forms, law, operands, positive

import tracekit as tk


@law("cost")
@forms()
def test_spent_is_claimed_and_never_above_the_budget(case: Case, make: Any) -> None:
    for budget in (*range(case.budget, case.budget + 4), 3 * N):
        counters = []

        def watched(X: Any) -> Any:
            A, counter = tk.counted(make(X))
            counters.append(counter)  # noqa: B023
            return A

        operands(case, positive(), make)  # skips what has no factor
        found = case.run(*operands(case, positive(), watched), budget, rng=SEED)
        spent = sum(counter.total for counter in counters)
        assert found.num_matvecs == spent > 0
        assert spent <= budget or "budget" in case.lacks
