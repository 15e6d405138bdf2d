"""How many columns go through the operator at once changes no number, and is what is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
from capabilities import Case
from rows import SEED, forms, law, positive, run

import tracekit as tk


@law("block size", blocks=True)
@forms()
def test_the_block_size_changes_nothing(case: Case, make: Any) -> None:
    A = positive()
    whole = run(case, A, make)
    for chunk_size in (1, 3, 1000):
        found = run(case, A, make, chunk_size=chunk_size)
        assert found.num_matvecs == whole.num_matvecs
        for part in ("value", "standard_error"):
            np.testing.assert_allclose(
                getattr(found, part), getattr(whole, part), rtol=1e-9, atol=1e-12
            )


@law("block size", blocks=True)
@forms()
def test_blocks_are_no_wider_than_asked(case: Case, make: Any) -> None:
    A, widths = positive(), []

    def product(X: np.ndarray) -> np.ndarray:
        widths.append(X.shape[1])
        return A @ X

    op = make(tk.LinearOperator(A.shape, product, product, dtype=A.dtype))
    if make is tk.as_operator or "factor" not in case.lacks:
        case.run(op, case.budget, rng=SEED, chunk_size=3)
    assert max(widths, default=0) <= 3
