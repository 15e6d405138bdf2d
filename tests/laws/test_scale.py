"""An estimate of c A is what its function says of an estimate of A: units do not matter."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from capabilities import Case, squared
from rows import forms, law, libraries, numbers, positive, run

import tracekit as tk


@law("scale")
@forms()
@pytest.mark.parametrize("sign", [-1, 1], ids=["small", "large"])
def test_units_do_not_matter(case: Case, make: Any, sign: int) -> None:
    most = {operator.mul: 480, squared: 240}.get(case.scaled, 140)  # what comes of c A is finite
    A, c = positive(), 2.0 ** (sign * most // (1 if make is tk.as_operator else 2))
    plain, unit = run(case, A, make), c if make is tk.as_operator else c * c
    expected = case.scaled(numbers(case, plain, A), unit)
    for lib in libraries():
        scaled = lib.array(c * A)
        found = run(case, scaled, make)
        np.testing.assert_allclose(lib.numpy(case.read(found, scaled)), expected, rtol=1e-9)
        if "error" not in case.lacks:
            error = case.scaled(np.asarray(plain.standard_error), unit) - case.scaled(0.0, unit)
            np.testing.assert_allclose(
                lib.numpy(found.standard_error), error, rtol=1e-5, atol=1e-9 * abs(np.max(expected))
            )
