"""One seed gives one answer, bit for bit; another seed another one; no seed draws afresh."""

from __future__ import annotations

import numpy as np
from capabilities import Case
from rows import SEED, law, numbers, positive, run


@law("seed")
def test_one_seed_one_answer(case: Case) -> None:
    A = positive()
    first, again, other, fresh = (
        numbers(case, run(case, A, rng=rng), A) for rng in (SEED, SEED, SEED + 1, None)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, fresh)


@law("seed")
def test_a_generator_goes_on(case: Case) -> None:
    A, rng = positive(), np.random.default_rng(SEED)
    first, second = (numbers(case, run(case, A, rng=rng), A) for _ in range(2))
    np.testing.assert_array_equal(first, numbers(case, run(case, A), A))
    assert not np.array_equal(first, second)
