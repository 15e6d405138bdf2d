"""Control variates from the caller: an operator, and the value of what is asked of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._arrays import (
    Array,
    Probes,
    Product,
    dtype_name,
    eps_of,
    is_array,
    is_complex,
    is_traced,
    magnitude,
    namespace,
    plain,
    to_number,
)
from .._estimates import Estimate
from .._operators import LinearOperator, as_operator, common_dtype
from ..probes import Source, distributions
from .fitting import FEWEST, fitted


class Control(NamedTuple):
    """An operator, the value of what is asked of it, and the standard error of that."""

    operator: LinearOperator
    value: Array
    error: Array | float = 0.0


def read_control(control: Any, A: LinearOperator, quantity: str) -> Control:
    """What the caller gave, if it is one for the trace or the diagonal of A."""
    given = isinstance(control, tuple)
    if given and len(control) != 2:
        raise ValueError(
            f"`control` must be an operator or a pair, got a tuple of {len(control)}; pass "
            f"(operator, {quantity})"
        )
    held: Any = control[0] if given else control
    value: Any = control[1] if given else None
    P = beside_operator(held, A, "control")
    if value is None:
        value = _known(held, P, quantity)
    error: Any = 0.0
    if isinstance(value, Estimate):
        value, error = value.value, value.standard_error
    value = beside_operand(value, A)
    wanted = () if quantity == "trace" else A.shape[:1]
    if tuple(value.shape) != wanted or (is_complex(value) and not is_complex(A)):
        raise ValueError(
            f"the {quantity} of the control must be of shape {wanted} and no more complex than A, "
            f"got {dtype_name(value.dtype)} of shape {tuple(value.shape)}; pass (operator, "
            f"{quantity})"
        )
    require_linear(P, "control")
    value = A.xp.astype(value, A.dtype, copy=False)
    eps = eps_of(A.xp.empty(0, dtype=P.dtype))
    if eps > eps_of(value):  # what is known in a lower precision is known to that
        error = A.xp.hypot(A.xp.abs(value) * (4 * eps), A.xp.abs(0 * value) + error)
    return Control(matched(P, A), value, error)


def beside_operand(value: Any, A: LinearOperator) -> Array:
    """A number, or an array of NumPy or of A's library, in the latter and on A's device."""
    if is_array(value) and plain(namespace(value)) is plain(A.xp):
        return value
    return A.xp.asarray(np.asarray(value), device=A.device)


def require_independent(probes: Probes) -> None:
    """Refuse probes that know of each other: other folds would not be independent."""
    if getattr(probes, "joint", False):
        raise ValueError(
            "`control` needs probes that are independent of each other, for its coefficient; leave "
            "`probes` out, or pass tracekit.probes.sphere"
        )


def beside_operator(P: Any, A: LinearOperator, name: str) -> LinearOperator:
    """An operator of A's shape, library and device."""
    operator: LinearOperator = as_operator(P)
    if operator.shape != A.shape:
        raise ValueError(
            f"`{name}` must be of the shape {A.shape} of the operator, got {operator.shape}; pass "
            "an approximation of the same matrix"
        )
    common_dtype(A, operator)
    if is_complex(operator) and not is_complex(A):
        raise ValueError(
            f"`{name}` must be real as the operator is, got {dtype_name(operator.dtype)}; pass its "
            "real part"
        )
    return operator


def require_linear(P: LinearOperator, name: str) -> None:
    """Refuse what is not linear, such as an inner solver that runs to a tolerance."""
    X = distributions.normal(Source(0, P), P.shape[1], 2)
    Y = P.matmat(P.xp.concat([X, X[:, :1] + X[:, 1:]], axis=1))
    if is_traced(Y):
        return
    defect = to_number(P.xp.max(P.xp.abs(Y[:, 2] - Y[:, 0] - Y[:, 1]))).real
    off = defect / to_number(magnitude(Y)).real
    if not off <= eps_of(Y) ** 0.5:
        raise ValueError(
            f"`{name}` must be linear, but P(x + y) differs from P x + P y by {off:.1g} of its "
            "size, as that of an inner solver with a tolerance does; pass a fixed number of steps"
        )


def matched(P: LinearOperator, A: LinearOperator) -> LinearOperator:
    """The operator P, in A's dtype: what it multiplies is cast to its own."""
    if P.dtype == A.dtype:
        return P

    def cast(product: Product) -> Product:
        def of(X: Array) -> Array:
            return A.xp.astype(product(A.xp.astype(X, P.dtype, copy=False)), A.dtype, copy=False)

        def of_parts(X: Array) -> Array:
            xp = A.xp
            re, im = (product(xp.astype(part(X), P.dtype)) for part in (xp.real, xp.imag))
            return xp.astype(re + 1j * im, A.dtype, copy=False)

        return of_parts if is_complex(A) and not is_complex(P) else of

    adjoint = None if P.rmatmat is None else cast(P.rmatmat)
    made: LinearOperator = A._like(A.shape, cast(P.matmat), adjoint)
    return made


def controlled(
    forms: Array, control: Array, value: Array, error: Array | float
) -> tuple[Array, Array]:
    """Samples ``y - c (p - t)``, from those (rows, m) of A and P, and the coefficients (m,).

    Rows after the first are of other forms of the same probes, of mean 0 where those differ.
    """
    xp = namespace(forms)
    dtype = xp.result_type(forms.dtype, control.dtype, value.dtype)
    forms, control = (xp.astype(x, dtype, copy=False) for x in (forms, control))
    c = fitted(forms[0, :], control[0, :], error * error)
    rows = [forms[0, :] - c * (control[0, :] - value)]
    if min(forms.shape[0], control.shape[0]) > 1:
        rows.append(forms[1, :] - c * control[1, :])
    return xp.stack(rows), c


def told(c: Array, left: Array, whole: Array, count: int) -> str:
    """What the control was worth, where values are known: of errors with it and without."""
    if is_traced(left):
        return "with a control"
    mean = to_number(c).real if not is_complex(c) else to_number(c)
    if mean == 0:
        few = f", of fewer than {FEWEST + 1} probes" if count <= FEWEST else ""
        return f"control times 0: no gain was found{few}"
    ratio = (to_number(left).real / to_number(whole).real) ** 2 if to_number(whole).real else 1.0
    return f"control times {mean:.3g}, {ratio:.2g} of the variance without"


def _known(held: Any, P: LinearOperator, quantity: str) -> Array:
    """What an operator says of itself."""
    known = P.exact or {}
    if quantity in known:
        return known[quantity]()
    if quantity == "trace" and "entries" in known:
        return known["entries"]()
    read = getattr(held, "diagonal", None)
    if quantity == "diagonal" and "entries" in known and callable(read):
        return read()
    raise ValueError(
        f"the {quantity} of `control` is not known; pass the pair (operator, {quantity}), or an "
        f'operator with exact={{"{quantity}": ...}}'
    )
