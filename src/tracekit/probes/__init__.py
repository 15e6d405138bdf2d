"""Test vectors: every block Omega of shape (n, m) has ``E[Omega @ Omega^H] / m = I``.

A distribution of probes is a function ``(source, n, m) -> (n, m) array``; estimators take any such
function as ``probes=``. Two attributes may be set on it: ``spherical = True`` if the distribution
of each column does not change under rotation (it lets leave-one-out estimators resphere their
residuals), and ``joint = True`` if the columns of a block are orthogonal to each other by
construction (it gives the finite-population factor to standard errors). One of your own draws by
``source.normal((n, m))`` or ``source.signs((n, m))``; the arrays are of ``source.xp``.

Which one: `rademacher` for plain Girard-Hutchinson, `sphere` for leave-one-out estimators,
`orthogonal` where n * m numbers fit in memory and n is not huge, `hadamard` where n is huge. For a
complex operator each of them draws complex vectors (phases instead of signs). `coloured` and
`hierarchical` are for entries that fall off with the distance, as those of sparse inverses do, and
`kronecker` for tensor products: these come in whole draws, and bring their own error.
"""

from .distributions import (
    basis,
    draw,
    few_valued,
    finite_population,
    hadamard,
    normal,
    orthogonal,
    plan,
    population,
    rademacher,
    sphere,
    stream,
    tiled,
)
from .plans import Plan as Plan
from .probing import coloured, grid, hierarchical, kronecker
from .source import Source

__all__ = [
    "Source",
    "basis",
    "coloured",
    "grid",
    "hadamard",
    "hierarchical",
    "kronecker",
    "normal",
    "orthogonal",
    "rademacher",
    "sphere",
    "tiled",
]
