"""One seed gives one answer, in every library; another seed another one; none draws afresh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from capabilities import Case
from rows import SEED, forms, law, libraries, numbers, positive, run


@law("seed")
def test_one_seed_one_answer(case: Case) -> None:
    A = positive()

    def drawn(rng: int | None) -> Any:
        return numbers(case, run(case, A, rng=rng), A)

    first = drawn(SEED)
    np.testing.assert_array_equal(first, drawn(SEED))
    assert not np.array_equal(first, drawn(SEED + 1))
    # Two fresh draws of a few signs may agree by chance; thirty in a row do not.
    assert any(not np.array_equal(first, drawn(None)) for _ in range(30))


@law("seed")
def test_a_generator_goes_on(case: Case) -> None:
    A, rng = positive(), np.random.default_rng(SEED)
    first, second = (numbers(case, run(case, A, rng=rng), A) for _ in range(2))
    again = numbers(case, run(case, A, rng=np.random.default_rng(SEED)), A)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)


@law("libraries")
@forms()
@pytest.mark.parametrize("kind", ["psd", "complex psd"])
def test_one_seed_one_answer_in_every_library(case: Case, make: Any, kind: str) -> None:
    A = positive(kind)
    expected = run(case, A, make)
    for lib in libraries():
        B = lib.array(A)
        found = run(case, B, make)
        x = case.read(found, B)
        assert lib.at_home(x)
        np.testing.assert_allclose(lib.numpy(x), numbers(case, expected, A), rtol=1e-8, atol=1e-10)
        if "error" not in case.lacks:
            np.testing.assert_allclose(
                lib.numpy(found.standard_error), expected.standard_error, rtol=1e-5, atol=1e-10
            )
            assert found.num_matvecs == expected.num_matvecs
