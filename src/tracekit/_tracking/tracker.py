"""Trace, norm and alignment with the start of an operator that changes a little each step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numpy.typing import NDArray

from .._arrays import Array, Rng, beside, namespace, real_dtype, to_number
from .._estimates import Estimate, NotFiniteError, checked_budget, plot_band
from .._operators import LinearOperator, square
from . import control_variates
from .compression import ProbeBasis, compression


class Tracked(NamedTuple):
    """Three numbers about an operator at one step of its way.

    Parameters
    ----------
    step : float
        Where on the way, as `Tracker.update` was told.
    trace : Estimate
        Of the trace; ``num_matvecs`` of each of the three is what the step cost altogether.
    frobenius_norm : Estimate
        Of the Frobenius norm.
    alignment : Estimate
        Of the cosine of the angle to the first operator; 1 at the first step.
    anchored : bool
        Whether the products of an anchor were spent at this step.
    """

    step: float
    trace: Estimate
    frobenius_norm: Estimate
    alignment: Estimate
    anchored: bool


Tracked.__module__ = "tracekit"


class Tracker:
    r"""Follows the trace, norm and alignment with the start of a Hermitian operator that drifts.

    Parameters
    ----------
    num_matvecs : int
        Products m of every step, at least 8: columns through the operator, or through ``L^H`` alone
        where it was made by `gram`.
    anchor_matvecs : int, optional
        Products of the same kind that an anchor costs besides; ``3 m`` if not given.
    rtol : float, optional
        A step becomes an anchor where the standard error that the change since the anchors leaves
        in the trace is above ``rtol |trace|``.
    every : int, optional
        A step becomes an anchor, too, where the last one is so many steps ago.
    basis : array of shape (n, k), optional
        Orthonormal columns, ``k <= m - 4``, to put in the place of those that the first step finds,
        such as `difference_basis` where there are products with ``L^H`` alone.
    rng : None, int, or generator, optional
        As for `hutchinson`; drawn from at the first step alone.

    Raises
    ------
    ValueError
        If an argument makes no sense.

    Notes
    -----
    The first step looks for m / 2 leading eigenvectors Q by block Krylov and Rayleigh-Ritz, for 3 m
    columns (m of them through L), or 2 m products if A has no factor. They and random orthonormal V
    beyond them, m columns together, are the probes of all steps. What A is on Q is known exactly.
    On the complement, of dimension n', an anchor a compares the s columns V with u fresh ones; what
    is learnt of the error of V there corrects later steps:

    .. math:: t_j = \mathrm{tr}\, Q^H A_j Q + \tfrac{n'}{s} \mathrm{tr}\, V^H A_j V
              - \sum_a c_a n' \left(\tfrac{1}{s} \mathrm{tr}\, V^H A_a V
              - \tfrac{1}{u} \mathrm{tr}\, U_a^H A_a U_a\right)

    with the :math:`c_a` of least variance, which the Gram matrices of the products show: for an
    operator that has not changed, that is the mean over V and U. The norm is corrected by the
    anchor that suits it best; the alignment is a quotient in which errors of V cancel. The trace is
    unbiased but for the choice of the :math:`c_a`, the others as those of `one_sided_summary`.

    A step costs m products, an anchor `anchor_matvecs` more, the first step all of that and the
    search for Q; `num_matvecs` is what it came to. Neither old operators nor old parameters are
    needed: a step leaves m^2 numbers.

    Neighbouring steps share their probes, so that their errors are nearly equal: curves are smooth,
    differences are better than values, and the band is *one* band, not a row of independent bars.
    At each step it holds the truth in about the share of runs that it claims (calibrated by
    experiment); where it fails, it does so for a stretch of steps.

    Memory: m columns of n rows; during a step m columns of as many rows as L has columns, during an
    anchor ``anchor_matvecs`` more. Further arithmetic is done on the host. Operators have to be
    known, not traced by `jax.jit`. A tracker can be pickled along with a training run.

    References
    ----------
    Dharangutte, Musco (2021), arXiv:2106.03521, and Matti, He, Kressner, Lam (2025),
    arXiv:2502.18626, on traces of operators that change.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> L = np.random.default_rng(0).standard_normal((200, 300)) * np.arange(1, 301) ** -0.5
    >>> tracker = tk.Tracker(12, rng=0)
    >>> for j in range(4):
    ...     now = tracker.update(tk.gram(L * (1 + 0.1 * j)))
    >>> low, high = now.trace.confidence_interval()
    >>> bool(low < np.sum((1.3 * L) ** 2) < high), round(float(now.alignment), 6)
    (True, 1.0)
    >>> [point.trace.num_matvecs for point in tracker.points], tracker.num_matvecs
    ([84, 12, 12, 12], 120)
    """

    def __init__(
        self,
        num_matvecs: int,
        *,
        anchor_matvecs: int | None = None,
        rtol: float = 1e-2,
        every: int | None = None,
        basis: Array | None = None,
        rng: Rng = None,
    ) -> None:
        m = checked_budget(num_matvecs)
        if m < 8:
            raise ValueError(
                f"`num_matvecs` must be at least 8, got {m}; with fewer no drift is seen"
            )
        u = 3 * m if anchor_matvecs is None else checked_budget(anchor_matvecs, "anchor_matvecs")
        if u < 3:
            raise ValueError(
                f"`anchor_matvecs` must be at least 3, got {u}; fewer have no error of their own"
            )
        if not rtol > 0:
            raise ValueError(
                f"`rtol` must be a positive number, got {rtol!r}; pass one such as 0.1"
            )
        self._rtol = rtol
        self._every = math.inf if every is None else checked_budget(every, "every")
        self._basis = ProbeBasis(m, u, basis, rng)
        self._first: NDArray[Any] | None = None
        self._anchors: list[control_variates.Calibration] = []
        self._since = 0
        self._points: list[Tracked] = []

    @property
    def points(self) -> tuple[Tracked, ...]:
        """What was found at every step so far.

        Returns
        -------
        tuple of Tracked
            One for each `update` that came to an end.
        """
        return tuple(self._points)

    @property
    def num_matvecs(self) -> int:
        """Products spent so far.

        Returns
        -------
        int
            On all steps and anchors, those of failed updates included.
        """
        return self._basis.spent

    def update(self, A: Any, step: float | None = None) -> Tracked:
        """Spend the products of one step on the operator as it is now.

        Parameters
        ----------
        A : LinearOperator or anything that `as_operator` reads
            Hermitian; of the same dimension, library, dtype and device at every step.
        step : float, optional
            Where on the way this is, such as the number of training steps; for tables and plots.
            The number of updates before this one if not given.

        Returns
        -------
        Tracked
            Trace, norm and alignment with the first operator.

        Raises
        ------
        NotFiniteError
            If A returns NaN or infinity; it carries the trace of the step before, and the tracker
            goes on as if this step had not been.
        ValueError, TypeError
            If A does not go with the operators before, is not Hermitian, is zero, or is traced.

        Notes
        -----
        Ctrl-C during an anchor records the step without it, with a wider band, before it goes on to
        the caller; the next step is an anchor again if it needs to be.
        """
        A, basis, anchor, stopped = square(A), self._basis, None, None
        before = basis.spent
        try:
            if basis.W is None:
                basis.start(A)
            basis.check(A)
            sizes = basis.sizes
            left, right = basis.products(A, basis.W)
            K = compression(left, right)
            first = K if self._first is None else self._first
            now, anchors = control_variates.evaluate(sizes, K, first), self._anchors
            trace, drift = control_variates.trace(sizes, now, anchors)
            due = not anchors or self._since + 1 >= self._every
            if sizes.rest > 0 and (due or drift > self._rtol * abs(trace.value)):
                anchor, stopped = self._calibrated(A, left, right, now)
            if anchor is not None:
                anchors = [*anchors, anchor][-max(sizes.numbers // 4, 1) :]
                trace, _ = control_variates.trace(sizes, now, anchors)
        except NotFiniteError as error:
            last = self._points[-1].trace if self._points else None
            raise NotFiniteError(str(error), last) from None
        self._first, self._anchors = first, anchors
        self._since = self._since + 1 if anchor is None else 0
        norm, unit = control_variates.norm(sizes, now, anchors), basis.root
        point = Tracked(
            len(self._points) if step is None else step,
            _estimate(left, trace, basis.spent - before, unit, A.dtype),
            _estimate(left, norm, basis.spent - before, unit),
            _estimate(left, now.alignment, basis.spent - before),
            anchor is not None,
        )
        self._points.append(point)
        if stopped is not None:
            raise stopped
        return point

    def _calibrated(
        self, A: LinearOperator, left: Array, right: Array, now: control_variates.Readings
    ) -> tuple[control_variates.Calibration | None, KeyboardInterrupt | None]:
        """A calibration, or what stopped it."""
        try:
            return self._basis.calibrate(A, left, right, now, len(self._points)), None
        except KeyboardInterrupt as stop:
            return None, stop

    def plot(self, ax: Any = None, *, quantity: str = "trace", level: float = 0.95) -> Any:
        """Draw one quantity with its band along the way; dots where anchors are.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure if not given.
        quantity : str, optional
            A field of `Tracked`: "trace", "frobenius_norm" or "alignment".
        level : float, optional
            Of the band, at each step.

        Returns
        -------
        matplotlib Axes
            The axes drawn on.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is nothing to draw, or no such quantity.
        """
        names = Tracked._fields[1:4]
        if quantity not in names or not self._points:
            raise ValueError(
                f"there is no {quantity!r} of {len(self._points)} steps to draw; update the "
                f"tracker, and pass one of {', '.join(names)}"
            )
        estimates = [getattr(point, quantity) for point in self._points]
        steps = [point.step for point in self._points]
        values = [to_number(estimate.value).real for estimate in estimates]
        ends = [estimate.confidence_interval(level) for estimate in estimates]
        low, high = ([to_number(end[i]).real for end in ends] for i in (0, 1))
        at = [i for i, point in enumerate(self._points) if point.anchored]
        label, band = quantity.replace("_", " "), f"{level:.0%} band"
        return plot_band(ax, steps, values, (low, high), at, label, band, "anchors")

    def __repr__(self) -> str:
        count = sum(point.anchored for point in self._points)
        title = (
            f"Tracker of {len(self._points)} steps, {self.num_matvecs} products, {count} anchors"
        )
        heads = ("step", "trace", "+-", "norm", "+-", "alignment", "+-", "products")
        rows = ["".join(f"{head:>11}" for head in heads)]
        shown = self._points[-12:]
        for point in shown:
            cells = [f"{point.step:g}"]
            for estimate in point[1:4]:
                error = to_number(estimate.standard_error).real
                cells += [f"{to_number(estimate.value).real:.5g}", f"{error:.1e}"]
            rows.append("".join(f"{cell:>11}" for cell in (*cells, point.trace.num_matvecs)))
        rows += ["..."] if len(shown) < len(self._points) else []
        return "\n".join((title, *rows)) if shown else title


Tracker.__module__ = "tracekit"


def _estimate(
    like: Array, reading: control_variates.Reading, spent: int, root: float = 1.0, dtype: Any = None
) -> Estimate:
    """A reading, in units of the square of a root, as an estimate where an array is."""
    real = real_dtype(like.dtype, namespace(like))
    value, error = (x * root * root for x in (reading.value, math.sqrt(reading.variance)))
    return Estimate(
        beside(like, value, real if dtype is None else dtype),
        beside(like, error, real),
        spent,
        "tracker",
        dof=reading.dof if reading.variance > 0 else 0,
    )
