"""The error of every method against the products it spends, over many seeds."""

from __future__ import annotations

import cmath
import operator
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .._arrays import to_number
from .._estimates import Estimate, checked_budget, plot_errors
from .._operators import LinearOperator, exact_trace_cost, square
from ..probes import distributions
from .hutchinson import hutchinson
from .hutchpp import hutchpp, nahutchpp
from .one_sided import one_sided
from .sums import exact_trace_of
from .xtrace import xnystrace, xtrace

BUDGETS = 10, 20, 40, 80, 160

Method = Callable[..., Estimate]


def _one_sided(A: LinearOperator, num_matvecs: int, *, rng: Any) -> Estimate:
    return one_sided(A.factor, num_matvecs, rng=rng)


# What a comparison and the command line offer; what a method needs of an operator, which may be
# known to be semidefinite; and what it is compared as, where that is several.
METHODS: dict[str, Method] = {
    "hutchinson": hutchinson,
    "hutchpp": hutchpp,
    "nahutchpp": nahutchpp,
    "xtrace": xtrace,
    "xnystrace": xnystrace,
    "one_sided": _one_sided,
}
NEEDS: dict[str, Callable[[LinearOperator, bool], bool]] = {
    "nahutchpp": lambda A, known: known or A.rmatmat is not None,
    "xnystrace": lambda A, known: known,
    "one_sided": lambda A, known: A.factor is not None and A.factor.rmatmat is not None,
}
VARIANTS: dict[str, dict[str, Method]] = {
    "hutchinson": {
        "hutchinson (signs)": hutchinson,
        "hutchinson (orthogonal)": partial(hutchinson, probes=distributions.orthogonal),
    },
}


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Errors of several methods at several budgets, over seeds; its text is a table.

    Parameters
    ----------
    exact : float or complex
        The trace that the errors are measured from.
    methods : tuple of str
        Names of the methods.
    num_matvecs : tuple of int
        The budgets, ascending.
    spent : (methods, budgets) array of int
        Products that were spent, which may be a few less than the budget.
    errors : (methods, budgets, seeds) array of float64
        Distances from `exact`, divided by its absolute value where `relative`.
    relative : bool
        False where the exact trace is 0, to which nothing is relative.

    Notes
    -----
    Every parameter is an attribute. `compare` makes it; ``print(comparison)`` shows the table.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> comparison = tk.compare(np.ones((50, 50)), (12, 24), num_seeds=5)
    >>> comparison.errors.shape == (len(comparison.methods), 2, 5)
    True
    """

    exact: float | complex
    methods: tuple[str, ...]
    num_matvecs: tuple[int, ...]
    spent: Any
    errors: Any
    relative: bool

    @property
    def quartiles(self) -> Any:
        """Lower quartiles, medians and upper quartiles of the errors over the seeds.

        Returns
        -------
        (3, methods, budgets) array of float64
            In this order.
        """
        return np.quantile(self.errors, (0.25, 0.5, 0.75), axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """The table as values that JSON can hold.

        Returns
        -------
        dict
            With the keys exact, relative, num_matvecs, num_seeds and methods; the last maps each
            name to its lists spent, lower_quartile, median and upper_quartile, one entry a budget.

        Examples
        --------
        >>> import numpy as np, tracekit as tk
        >>> table = tk.compare(np.ones((50, 50)), (12, 24), num_seeds=5).to_dict()
        >>> table["exact"], table["num_matvecs"], table["methods"]["xtrace"]["spent"]
        (50.0, [12, 24], [12, 24])
        """
        lower, median, upper = self.quartiles.tolist()
        z = self.exact
        return {
            "exact": [z.real, z.imag] if isinstance(z, complex) else z,
            "relative": self.relative,
            "num_matvecs": list(self.num_matvecs),
            "num_seeds": self.errors.shape[-1],
            "methods": {
                name: {
                    "spent": self.spent[i].tolist(),
                    "lower_quartile": lower[i],
                    "median": median[i],
                    "upper_quartile": upper[i],
                }
                for i, name in enumerate(self.methods)
            },
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw median errors against products, with bands from quartile to quartile.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure if not given.

        Returns
        -------
        matplotlib Axes
            The axes drawn on, both logarithmic. Errors of 0 are drawn as the smallest that is not.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        positive = self.errors[self.errors > 0]
        least = positive.min() if positive.size else float(np.finfo(np.float64).eps)
        title = f"median and quartiles of {self.errors.shape[-1]} seeds"
        return plot_errors(
            ax,
            self.methods,
            self.spent,
            np.maximum(self.quartiles, least),
            self.num_matvecs,
            self._what,
            title,
        )

    @property
    def _what(self) -> str:
        return "relative error of the trace" if self.relative else "error of the trace"

    def __repr__(self) -> str:
        lower, median, upper = self.quartiles
        best = median.min(axis=0)
        rows = [("products", *(f"{m} " for m in self.num_matvecs))]
        for i, name in enumerate(self.methods):
            marks = ("*" if x == least else " " for x, least in zip(median[i], best, strict=True))
            rows.append((name, *(f"{x:.1e}{m}" for x, m in zip(median[i], marks, strict=True))))
            for label, values in (("  25 %", lower[i]), ("  75 %", upper[i])):
                rows.append((label, *(f"{x:.1e} " for x in values)))
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
        seeds = self.errors.shape[-1]
        title = f"{self._what} ({self.exact:.6g}): median and quartiles of {seeds} seeds, * least"
        return "\n".join(line.rstrip() for line in (title, *lines))


Comparison.__module__ = "tracekit"


def compare(
    A: Any,
    num_matvecs: int | Iterable[int] | None = None,
    *,
    exact: Any = None,
    num_seeds: int = 20,
    methods: Mapping[str, Method] | None = None,
    rng: int | None = 0,
    psd: bool | None = None,
) -> Comparison:
    """Errors of all methods that apply to an operator, at several budgets.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Square, of dimension n; of a kind that is cheap enough to run many times.
    num_matvecs : int or iterable of int, optional
        Budgets, each below what the exact trace costs; 10, 20, 40, 80 and 160 as far as they are
        if not given.
    exact : number, optional
        The trace, if you know it; computed from n products if not given.
    num_seeds : int, optional
        Runs of each method at each budget.
    methods : mapping of str to callable, optional
        Methods by the names they get in the table; each is called as ``method(A, m, rng=seed)`` and
        returns an `Estimate`. All that apply if not given: `hutchinson` with signs and with
        orthogonal probes, `hutchpp`, `xtrace`, `nahutchpp` (if A has an adjoint product or is
        positive semidefinite), `xnystrace` (if A is positive semidefinite) and `one_sided` (if A
        was made by `gram`).
    rng : int, optional
        The first seed; the others follow it. Every method gets the same. A fresh one if None.
    psd : bool, optional
        True if A is Hermitian positive semidefinite. Known without it of operators made by `gram`.

    Returns
    -------
    Comparison
        The table; it prints, plots, and turns into JSON.

    Raises
    ------
    ValueError, TypeError
        If A is not square or returns something unusable, or an argument is unusable.

    Notes
    -----
    Costs ``num_seeds * sum(num_matvecs)`` products a method, and n for the exact trace: 31000 for
    five methods with everything left to itself. Memory is that of the method that takes most.

    A method whose error is least here is best for this spectrum and these budgets; `trace` chooses
    without knowing the answer.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = np.diag(np.arange(1.0, 101.0) ** -2)
    >>> comparison = tk.compare(A, (20, 40), num_seeds=5, psd=True)
    >>> comparison.methods
    ('hutchinson (signs)', 'hutchinson (orthogonal)', 'hutchpp', 'nahutchpp', 'xtrace', 'xnystrace')
    >>> lower, median, upper = comparison.quartiles
    >>> bool(median[5, 1] < median[1, 1])
    True
    """
    A = square(A)
    truth = _checked_exact(A, exact)
    A = replace(A, exact=None)  # its methods shall estimate what is known in closed form
    budgets = checked_budgets(num_matvecs, exact_trace_cost(A))
    seeds = _checked_seeds(rng, num_seeds)
    methods = applicable_methods(A, psd) if methods is None else _checked_methods(methods)
    errors = np.empty((len(methods), len(budgets), len(seeds)))
    spent = np.empty((len(methods), len(budgets)), dtype=int)
    size = abs(truth) or 1.0
    for i, (name, method) in enumerate(methods.items()):
        for j, m in enumerate(budgets):
            runs = [method(A, m, rng=seed) for seed in seeds]
            if not all(isinstance(run, Estimate) for run in runs):
                raise TypeError(
                    f"method {name!r} returned {type(runs[0]).__name__}; pass functions that "
                    "return an Estimate, as those of tracekit do"
                )
            errors[i, j] = [abs(to_number(run.value) - truth) / size for run in runs]
            spent[i, j] = round(np.median([run.num_matvecs for run in runs]))
    return Comparison(truth, tuple(methods), budgets, spent, errors, truth != 0)


def applicable_methods(A: LinearOperator, psd: bool | None = None) -> dict[str, Method]:
    """The methods that apply to an operator, by name."""
    known = bool(psd) or A.factor is not None
    methods: dict[str, Method] = {}
    for name, method in METHODS.items():
        if name not in NEEDS or NEEDS[name](A, known):
            methods |= VARIANTS.get(name, {name: method})
    return methods


def checked_budgets(num_matvecs: Any, cost: int) -> tuple[int, ...]:
    """The budgets, ascending and each once, if all are below what the exact trace costs."""
    if num_matvecs is None:
        return tuple(m for m in BUDGETS if m < cost) or (max(cost // 2, 1),)
    given = num_matvecs if isinstance(num_matvecs, Iterable) else (num_matvecs,)
    budgets = tuple(sorted({checked_budget(m) for m in given}))
    if not budgets:
        raise ValueError("num_matvecs is empty; pass at least one budget, such as (30, 60, 120)")
    if budgets[-1] >= cost > 1:
        raise ValueError(
            f"num_matvecs={budgets[-1]} is enough for the exact trace, which costs {cost} products "
            "and leaves no errors to compare; pass less"
        )
    return budgets


def _checked_exact(A: LinearOperator, exact: Any) -> float | complex:
    if exact is None:
        value = to_number(exact_trace_of(A).value)
    else:
        try:
            value = to_number(exact)
        except (TypeError, ValueError):
            raise TypeError(f"`exact` must be a number, got {exact!r}; pass the trace") from None
        if not cmath.isfinite(value):
            raise ValueError(f"exact={exact!r} is not finite; pass the trace, or leave it out")
    return value if value.imag else value.real


def _checked_seeds(rng: Any, num_seeds: Any) -> range:
    try:
        first = secrets.randbits(32) if rng is None else operator.index(rng)
        count = operator.index(num_seeds)
    except TypeError:
        raise TypeError(
            f"rng={rng!r} and num_seeds={num_seeds!r} name no seeds; pass ints: the first seed, "
            "and how many"
        ) from None
    if first < 0 or count < 1:
        raise ValueError(
            f"rng={first} and num_seeds={count} name no seeds; pass rng of 0 or more and "
            "num_seeds of 1 or more"
        )
    return range(first, first + count)


def _checked_methods(methods: Any) -> dict[str, Method]:
    usable = isinstance(methods, Mapping) and all(callable(method) for method in methods.values())
    if not usable or not methods:
        raise TypeError(
            f"`methods` must map names to functions, got {methods!r}; pass a mapping such as "
            "{'xtrace': tracekit.xtrace}"
        )
    return dict(methods)
