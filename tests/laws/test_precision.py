"""Values are of the operator's library, device and precision, and integers of the default one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from capabilities import Case
from rows import forms, law, libraries, positive, run


@law("dtype")
@forms()
@pytest.mark.parametrize("given", ["float32", "complex64"])
def test_single_precision_stays_single(case: Case, make: Any, given: str) -> None:
    A = positive()
    expected = case.read(run(case, A, make), A)
    for lib in libraries():
        B = lib.array(A, given)
        found = run(case, B, make)
        x = case.read(found, B)
        assert x.dtype in (getattr(lib.xp, given), lib.xp.float32)
        assert lib.at_home(x)
        if given == "float32":
            np.testing.assert_allclose(lib.numpy(x), expected, rtol=2e-3, atol=2e-4)
        if "error" not in case.lacks:
            assert found.standard_error.dtype == lib.xp.float32
            assert lib.at_home(found.standard_error)


@law("integers")
@pytest.mark.parametrize("given", ["int64", "float16"])
def test_what_is_no_dtype_to_compute_in(case: Case, given: str) -> None:
    A = np.round(4 * positive()) + 4 * np.eye(len(positive()))
    for lib in libraries():
        if hasattr(lib.xp, given):
            B = lib.array(A, given)
            x = case.read(run(case, B), B)
            expected = lib.xp.asarray(0.0, device=lib.device).dtype
            assert x.dtype == (lib.xp.float32 if given == "float16" else expected)
