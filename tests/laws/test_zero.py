"""Of the zero operator: zero, without a doubt, and nothing that is not a number."""

from __future__ import annotations

from typing import Any

import numpy as np
from capabilities import Case, N
from rows import forms, law, libraries, run


@law("zero")
@forms()
def test_zero_operator(case: Case, make: Any) -> None:
    for lib in libraries():
        zero = lib.array(np.zeros((N, N)))
        found = run(case, zero, make, budget=max(case.budget, 18))
        np.testing.assert_array_equal(lib.numpy(case.read(found, zero)), 0.0)
        if "error" not in case.lacks:
            np.testing.assert_array_equal(lib.numpy(found.standard_error), 0.0)
