"""Control variates of traces: unbiased whatever they are, and never much worse than none."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit as tk
from tracekit._controls import fitted

n = 60


def symmetric(rng: np.random.Generator, size: int = n) -> np.ndarray:
    B = rng.standard_normal((size, size))
    return B + B.T


def black_box(A: np.ndarray, **more: Any) -> tk.LinearOperator:
    return tk.LinearOperator(
        A.shape, lambda X: A @ X, lambda X: A.conj().T @ X, dtype=A.dtype, **more
    )


@pytest.mark.parametrize("complex_", [False, True])
def test_samples_are_unbiased_for_any_control_over_all_signs(complex_: bool) -> None:
    rng = np.random.default_rng(1)
    A, P = rng.standard_normal((2, 3, 3)) + 0j * complex_
    P = 0.97 * A + 0.02 * P
    if complex_:
        A, P = A * (1 + 0.3j), P * (0.5 - 2j)
    signs = [np.array([1.0, a, b]) for a in (-1, 1) for b in (-1, 1)]
    forms = np.array([(x @ A @ x, x @ P @ x) for x in signs])
    values, used = [], 0
    for chosen in product(range(4), repeat=6):
        y, p = forms[list(chosen)].T
        c = fitted(y, p)
        used += bool(np.any(c != 0))
        values.append(np.mean(y - c * (p - np.trace(P))))
    assert used / 4**6 > 0.05  # not by leaving the control out
    assert np.mean(values) == pytest.approx(np.trace(A), rel=1e-12)


def test_coefficients_of_a_fold_do_not_depend_on_its_samples() -> None:
    y, p = np.random.default_rng(0).standard_normal((2, 40))
    y = y + 2 * p
    before = fitted(y, p)
    y[8], p[8] = 100.0, -3.0
    after = fitted(y, p)
    assert np.all(after[::8] == pytest.approx(before[::8], rel=1e-12))
    assert np.all(after[1::8] != before[1::8])


def test_coefficients_are_those_of_a_fit_to_the_other_folds() -> None:
    y, p = np.random.default_rng(0).standard_normal((2, 24))
    y = y + 2 * p
    for j, c in enumerate(fitted(y, p)):
        others = np.arange(24) % 8 != j % 8
        assert c == pytest.approx(np.polyfit(p[others], y[others], 1)[0])


def test_a_close_control_leaves_the_variance_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    A = symmetric(rng)
    P = A + 0.05 * symmetric(rng)
    found = tk.hutchinson(black_box(A), 50, rng=0, control=P)
    plain = tk.hutchinson(black_box(A), 50, rng=0)
    assert float(found.standard_error) < 0.1 * float(plain.standard_error)
    assert "of the variance without" in found.reason
    low, high = found.confidence_interval(0.999)
    assert low < np.trace(A) < high


@pytest.mark.parametrize("kind", ["other", "ones", "corner", "diagonal", "opposite", "close"])
def test_no_control_is_much_worse_than_none(kind: str) -> None:
    rng = np.random.default_rng(0)
    A, corner = symmetric(rng), np.zeros((n, n))
    corner[:3, :3] = 1
    P = {
        "other": symmetric(rng),
        "ones": np.ones((n, n)),
        "corner": corner,
        "diagonal": np.diag(np.arange(n)),
        "opposite": -A - 0.3 * symmetric(rng),
        "close": A + 0.3 * symmetric(rng),
    }[kind]
    X = rng.choice([-1.0, 1.0], (400, 24, n))
    y, p = (np.einsum("rmi,ij,rmj->rm", X, M, X, optimize=True) for M in (A, P))
    off = [
        np.mean(a - fitted(a, b) * (b - np.trace(P))) - np.trace(A)
        for a, b in zip(y, p, strict=True)
    ]
    plain = y.mean(axis=1) - np.trace(A)
    most = 0.5 if kind in ("opposite", "close") else 1.1
    assert np.mean(np.square(off)) < most * np.mean(np.square(plain))


def test_intervals_hold() -> None:
    rng = np.random.default_rng(0)
    A = symmetric(rng)
    P, held = A + 0.3 * symmetric(rng), 0
    for seed in range(200):
        found = tk.hutchinson(black_box(A), 30, rng=seed, control=P)
        low, high = found.confidence_interval()
        held += low < np.trace(A) < high
    assert held >= 180


def test_fewer_than_six_probes_are_not_fitted() -> None:
    A = symmetric(np.random.default_rng(0))
    for m in range(1, 6):
        found = tk.hutchinson(black_box(A), m, rng=0, control=2 * A)
        assert float(found) == float(tk.hutchinson(black_box(A), m, rng=0))
        assert "fewer than 6" in found.reason


def test_a_multiple_of_the_operator_gives_the_trace() -> None:
    A = symmetric(np.random.default_rng(0)) + 0j
    A[0, 1] += 3j
    found = tk.hutchinson(black_box(A), 20, rng=0, control=(2 - 1j) * A)
    assert complex(found) == pytest.approx(np.trace(A), abs=1e-10)
    assert abs(complex(found) - np.trace(A)) <= 1e-10


def test_values_are_known_in_three_ways() -> None:
    rng = np.random.default_rng(0)
    A = symmetric(rng)
    P = A + 0.1 * symmetric(rng)
    ways = (
        P,
        (black_box(P), float(np.trace(P))),
        black_box(P, exact={"trace": lambda: np.asarray(np.trace(P))}),
    )
    first, *others = (tk.hutchinson(black_box(A), 30, rng=0, control=way) for way in ways)
    assert all(float(other) == pytest.approx(float(first)) for other in others)


def test_an_estimated_value_has_its_part_of_the_error() -> None:
    rng = np.random.default_rng(0)
    A = symmetric(rng)
    P = A + 0.01 * symmetric(rng)
    value = tk.hutchinson(black_box(P), 50, rng=1)
    found = tk.hutchinson(black_box(A), 30, rng=0, control=(P, value))
    exactly = tk.hutchinson(black_box(A), 30, rng=0, control=P)
    whole = np.hypot(float(exactly.standard_error), float(value.standard_error))
    assert float(found.standard_error) == pytest.approx(whole, rel=0.5)
    useless = tk.hutchinson(black_box(P), 2, rng=1)  # would be worse than no control
    found = tk.hutchinson(black_box(A), 30, rng=0, control=(P, useless))
    plain = tk.hutchinson(black_box(A), 30, rng=0)
    assert float(found.standard_error) <= 1.05 * float(plain.standard_error)


def test_low_precision_products_are_a_control() -> None:
    A = symmetric(np.random.default_rng(0))
    found = tk.hutchinson(black_box(A), 20, rng=0, control=A.astype(np.float32))
    off = abs(float(found) - np.trace(A))
    assert off < 1e-4
    assert off < 4 * float(found.standard_error)  # what the low precision leaves is said


def test_products_with_the_control_are_not_counted() -> None:
    A = symmetric(np.random.default_rng(0))
    operator, counter = tk.counted(black_box(A))
    found = tk.hutchinson(operator, 25, rng=0, control=A)
    assert found.num_matvecs == counter.total == 25


def test_a_trace_goes_to_its_tolerance_with_a_control() -> None:
    A = tk.testing.known_spectrum(np.arange(1.0, 401) ** -0.5)
    rng = np.random.default_rng(0)
    P = A + 1e-3 * symmetric(rng, 400) / 20
    operator, counter = tk.counted(black_box(A))
    found = tk.trace(operator, rtol=1e-3, rng=0, control=P)
    assert found.converged
    assert found.num_matvecs == counter.total <= 64
    assert abs(float(found) / np.trace(A) - 1) < 1e-3


def test_a_trace_leaves_a_useless_control_out() -> None:
    A = tk.testing.known_spectrum(np.arange(1.0, 401) ** -2)
    operator, counter = tk.counted(black_box(A))
    found = tk.trace(operator, rtol=1e-2, rng=0, control=np.ones((400, 400)))
    assert found.converged
    assert found.method == "xtrace"
    assert "whose gain is small" in found.reason
    assert found.num_matvecs == counter.total
    assert abs(float(found) / np.trace(A) - 1) < 1e-2


def test_a_trace_ends_exactly_where_that_is_cheaper() -> None:
    rng = np.random.default_rng(0)
    A = symmetric(rng, 100)
    operator, counter = tk.counted(black_box(A))
    found = tk.trace(operator, rtol=1e-9, rng=0, control=A + 0.2 * symmetric(rng, 100))
    assert float(found) == pytest.approx(np.trace(A))
    assert float(found.standard_error) == 0
    assert found.num_matvecs == counter.total


def test_a_callback_ends_the_run() -> None:
    rng = np.random.default_rng(0)
    A = symmetric(rng, 200)
    P = A + 0.2 * symmetric(rng, 200)
    told: list[int] = []
    found = tk.trace(
        black_box(A), rtol=1e-9, rng=0, control=P,
        callback=lambda estimate: told.append(estimate.num_matvecs) or len(told) == 3,
    )  # fmt: skip
    assert told == [16, 32, 64]
    assert not found.converged


def test_runs_with_a_control_go_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    A = symmetric(rng, 300)
    P = A + 0.2 * symmetric(rng, 300)
    operator, counter = tk.counted(black_box(A))
    for f in (tk.trace, tk.hutchinson):
        options = {"rng": 0, "control": P}
        whole = f(black_box(A), rtol=0.0, num_matvecs=64, **options)
        first = f(operator, rtol=0.0, num_matvecs=32, **options)
        before = counter.total
        second = tk.resume(operator, first, rtol=0.0, num_matvecs=64)
        assert counter.total - before == 32
        assert float(second) == pytest.approx(float(whole))
        assert second.reason == whole.reason
    path = tmp_path / "run.npz"
    tk.trace(black_box(A), rtol=1e-9, num_matvecs=32, checkpoint=path, **options)
    again = tk.trace(black_box(A), rtol=1e-9, num_matvecs=64, checkpoint=path, **options)
    assert float(again) == pytest.approx(float(whole))


def test_a_trace_that_left_its_control_out_goes_on() -> None:
    A = tk.testing.known_spectrum(np.arange(1.0, 401) ** -1)
    operator, counter = tk.counted(black_box(A))
    rough = tk.trace(operator, rtol=3e-2, rng=0, control=np.ones((400, 400)))
    fine = tk.resume(operator, rough, rtol=1e-2)
    assert fine.converged
    assert fine.num_matvecs == counter.total > rough.num_matvecs


def test_what_fails_keeps_what_was_paid_for() -> None:
    rng, calls = np.random.default_rng(0), []
    A = symmetric(rng, 300)

    def product(X: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return A @ X

    operator = tk.LinearOperator(A.shape, product)
    with pytest.raises(KeyboardInterrupt) as failed:
        tk.trace(operator, rtol=1e-9, rng=0, control=A + 0.2 * symmetric(rng, 300))
    assert failed.value.estimate.num_matvecs >= 16  # type: ignore[attr-defined]


def test_budgets_are_kept() -> None:
    A = symmetric(np.random.default_rng(0), 200)
    for m in (1, 5, 9, 16, 20, 50):
        operator, counter = tk.counted(black_box(A))
        found = tk.trace(operator, rtol=1e-9, num_matvecs=m, rng=0, control=A + np.eye(200))
        assert found.num_matvecs == counter.total <= m


def sign(X: np.ndarray) -> np.ndarray:
    return np.sign(X)


A0 = symmetric(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("control", "told"),
    [
        (black_box(A0), "is not known"),
        ((A0, 1.0, 2.0), "a pair"),
        (A0[:5, :5], "of the shape"),
        ((A0, 1j), "no more complex"),
        ((A0, np.ones(3)), "of shape"),
        (A0 + 1j, "real as the operator"),
        ((tk.LinearOperator((n, n), sign), 0.0), "must be linear"),
        ("A", "has no shape"),
    ],
)
def test_what_is_no_control_is_refused(control: Any, told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        tk.hutchinson(black_box(A0), 20, rng=0, control=control)
    larger = np.kron(np.eye(2), A0)
    with pytest.raises((ValueError, TypeError)):
        tk.trace(black_box(larger), rtol=0.1, rng=0, control=control)


def test_probes_that_know_of_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="independent of each other"):
        tk.hutchinson(black_box(A0), 20, control=A0, probes=tk.probes.orthogonal)


def test_spherical_probes_take_a_control() -> None:
    found = tk.hutchinson(black_box(A0), 20, rng=0, control=A0 * 2, probes=tk.probes.sphere)
    assert float(found) == pytest.approx(np.trace(A0))
