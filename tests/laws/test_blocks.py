"""How many columns go through the operator at once changes no number, and is what is asked."""

from __future__ import annotations

import numpy as np
from capabilities import Case
from rows import law, positive, run

import tracekit as tk


@law("block size", blocks=True)
def test_the_block_size_changes_nothing(case: Case) -> None:
    A = positive()
    whole = run(case, A)
    for block_size in (1, 3, 1000):
        found = run(case, A, block_size=block_size)
        assert found.num_matvecs == whole.num_matvecs
        for part in ("value", "standard_error"):
            np.testing.assert_allclose(
                getattr(found, part), getattr(whole, part), rtol=1e-9, atol=1e-12
            )


@law("block size", blocks=True)
def test_blocks_are_no_wider_than_asked(case: Case) -> None:
    A, widths = positive(), []

    def product(X: np.ndarray) -> np.ndarray:
        widths.append(X.shape[1])
        return A @ X

    run(case, tk.LinearOperator(A.shape, product, product, dtype=A.dtype), block_size=3)
    assert max(widths) <= 3
