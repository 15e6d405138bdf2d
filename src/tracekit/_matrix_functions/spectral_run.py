"""One run of probes, from which the trace of any function is read without further products."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from .._arrays import Array, Probes, Rng, fingerprint, is_traced
from .._estimates import Estimate, SpectralDensity, checked_budget, exact, ratio, with_method
from .._operators import LinearOperator, all_columns_cost, square
from .._sketches import Observed, Quadrature, Spaces, is_independent, most_columns, rules
from ..functions import Function, values
from ..probes import Source, description, distributions
from . import families, run_file
from .density import of_eigenvalues, of_spaces
from .quadrature import read
from .request import eigenvalues, is_affordable

PILOTS = 2  # probes that go on to twice the depth
LEAST_DEPTH = 6
BREADTH = 1.5  # depth over the root of the products


class SpectralRun:
    """Probes, and what a Hermitian operator is on their Krylov spaces; made by `spectral_run`.

    Any function of the operator is read from it without further products, of which it has spent
    ``num_matvecs``. It grows in place.

    Parameters
    ----------
    A : LinearOperator
        That of `spectral_run`.
    source : Source
        Its generator.
    probes : callable
        Its distribution.
    quadrature : Lanczos or Chebyshev
        How it integrates.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(1.0, 3.0, 400))
    >>> run = tk.spectral_run(A, 120, rng=0)
    >>> low, high = run.trace(np.sqrt).confidence_interval(0.99)
    >>> bool(low < np.sum(np.sqrt(np.linspace(1.0, 3.0, 400))) < high)
    True
    """

    def __init__(
        self, A: LinearOperator, source: Source, probes: Probes, quadrature: Quadrature
    ) -> None:
        self.num_matvecs = 0
        self._A, self._source, self._probes, self._quadrature = A, source, probes, quadrature
        self._draw = distributions.stream(probes, source, A.shape[0], A.shape[0])
        self._spaces: Spaces | None = None
        self._eigenvalues: Array | None = None
        self._observed: Observed | None = None
        self._origin: dict[str, Any] = {"run": (run := uuid4().hex[:16]), "draws": [run]}

    family = families.family
    logdet = families.logdet
    effective_dimension = families.effective_dimension
    free_energy = families.free_energy

    @property
    def depth(self) -> int:
        """Products with each probe: steps of Lanczos, or half of the moments."""
        return self._A.shape[0] if self._spaces is None else self._spaces.depth

    @property
    def num_probes(self) -> int:
        """Probes; none where all eigenvalues are known."""
        return 0 if self._spaces is None else self._spaces.groups

    def trace(self, f: Function) -> Estimate:
        """The trace of f(A), or of O f(A) for the observable O of the run.

        Parameters
        ----------
        f : callable
            As for `trace_function`.

        Returns
        -------
        Estimate
            As of `trace_function`. Its products are those of the run.

        Raises
        ------
        ValueError, TypeError
            As for `trace_function`.
        """
        return self._read(f, "trace")

    def ratio(self, f: Function, g: Function) -> Estimate:
        """The ratio of the traces of f(A) and g(A), whose errors cancel in part.

        Parameters
        ----------
        f : callable
            As for `trace_function`.
        g : callable
            The same, with a trace that is not 0.

        Returns
        -------
        Estimate
            With the standard error by the delta method, and its bias of first order removed.

        Raises
        ------
        ValueError, TypeError
            As for `trace_function`.
        """
        return ratio(self._read(f, "ratio"), self._read(g, "ratio"))

    def expectation(self, f: Function) -> Estimate:
        """The mean of the observable O in the state f(A): the trace of O f(A) over that of f(A).

        Parameters
        ----------
        f : callable
            As for `trace_function`, such as ``lambda x: exp(-beta * x)``.

        Returns
        -------
        Estimate
            As of `ratio`.

        Raises
        ------
        ValueError, TypeError
            If the run has no observable; as for `trace_function`.
        """
        if self._observed is None:
            raise ValueError(
                "`expectation` needs an observable, and the run has none; pass observable=O to "
                "spectral_run"
            )
        name = "expectation"
        return with_method(ratio(self._read(f, name), self._read(f, name, plain=True)), name)

    def density(self) -> SpectralDensity:
        """The distribution of the eigenvalues.

        Returns
        -------
        SpectralDensity
            As of `spectral_density`.
        """
        if self._spaces is None:
            assert self._eigenvalues is not None
            return of_eigenvalues(self._eigenvalues, self.num_matvecs)
        return of_spaces(self._spaces.read(), self.num_matvecs)

    def extend(self, num_matvecs: int, *, depth: int | None = None) -> SpectralRun:
        """Grow: in depth, if a greater one is given, and in probes; no product is repeated.

        Parameters
        ----------
        num_matvecs : int
            Products to spend at most. What does not fill a probe is left unspent.
        depth : int, optional
            Lanczos steps that all probes are to have, old and new ones.

        Returns
        -------
        SpectralRun
            The same, grown.

        Raises
        ------
        ValueError
            If all eigenvalues are known already, the budget does not allow the depth, or bases that
            are needed for it were not kept.
        """
        budget, spaces = checked_budget(num_matvecs), self._spaces
        if not self._source.is_seeded:  # who else has drawn from the generator is not known
            self._origin |= {"draws": [uuid4().hex[:16]]}
        if spaces is None:
            raise ValueError(
                "the run knows all eigenvalues, so that every value it gives is exact; there is "
                "nothing to extend"
            )
        if not spaces.kept:
            raise ValueError(
                "a run that was merged, or loaded without its operator, has no probes to go on "
                "with; extend its parts, or load it with A"
            )
        if depth is not None and checked_budget(depth, "depth") > spaces.depth:
            budget -= spaces.deepen(min(depth, self._A.shape[0]), budget)
        self._fill(spaces, budget)
        return self

    def save(self, path: str | Path) -> None:
        """Write the run to a file, whole or not at all.

        Parameters
        ----------
        path : path
            Of a NumPy ``.npz`` file; as large as the bases that are kept.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        run_file.save(self, Path(path))

    @staticmethod
    def load(path: str | Path, A: Any = None, *, rng: Rng = None) -> SpectralRun:
        """Read a run from a file.

        Parameters
        ----------
        path : path
            Of a file that `save` wrote.
        A : LinearOperator or anything that `as_operator` reads, optional
            The operator of the run, so that it can be extended. Without it, the run gives values
            in NumPy.
        rng : generator, optional
            A generator like that of the run, if it was one of PyTorch or CuPy, or a JAX key.

        Returns
        -------
        SpectralRun
            As it was saved.

        Raises
        ------
        ValueError
            If the file holds no run, or that of an operator of another dimension or dtype.
        """
        run: SpectralRun = run_file.load(Path(path), A, rng, SpectralRun)
        return run

    def _begin(self, num_matvecs: int, depth: int | None) -> None:
        """Spend the first products: on all eigenvalues where these are cheaper."""
        A = self._A
        n, m = A.shape[0], num_matvecs
        if is_affordable(A, m):
            self.num_matvecs += all_columns_cost(A)
            if self._observed is None:
                self._eigenvalues = eigenvalues(A)
            else:
                self._eigenvalues = self._observed.eigenvalues(A)
            return
        if depth is None:
            depth = max(LEAST_DEPTH, round(BREADTH * math.sqrt(m)))
            depth = min(depth, m if A.factor is None else (m + 1) // 2)
        depth = min(depth, n)
        each = rules.cost(self._quadrature, A, depth)
        if each > m:
            raise ValueError(
                f"num_matvecs={m} does not pay for one probe of depth {depth}, which takes {each}; "
                "pass more, or a smaller depth"
            )
        pilots = min(PILOTS, m // each)
        X = self._draw(pilots)
        K = rules.begin(self._quadrature, A, X).advance(depth)
        crosses = is_independent(self._probes) and K.held(2) == 2
        self._spaces = Spaces(K, most_columns(A) if crosses else 0, self._observed)
        left = m - pilots * each
        if not is_traced(K.seen):
            left -= self._spaces.look_ahead(left)
        self._fill(self._spaces, left)

    def _fill(self, spaces: Spaces, budget: int) -> None:
        """Spend a budget on probes, and count what was spent."""
        groups = budget // rules.cost(self._quadrature, self._A, spaces.depth)
        spaces.grow(groups, self._draw, partial(rules.begin, self._quadrature, self._A))
        self.num_matvecs = spaces.num_matvecs

    def _read(self, f: Function, method: str, *, plain: bool = False) -> Estimate:
        """What the run says of f; of the plain trace where it has an observable too, if asked."""
        if not callable(f):
            raise TypeError(f"`f` must be a function of an array of eigenvalues, got {f!r}")
        if self._spaces is not None:
            found = read(f, self._spaces, self._probes, self.num_matvecs, method, plain)
            return replace(found, origin={"probes": self._described()} | self._origin)
        x, observed = self._eigenvalues, self._observed
        assert x is not None
        y = values(f, x, squared=self._A.factor is not None)
        y = y if observed is None or plain else y * observed.on_eigenvectors
        found = exact(self._A.xp.sum(y, axis=-1), self.num_matvecs, method)
        return replace(found, origin=dict(self._origin))

    def _described(self) -> list[str]:
        """The probes, as what is made of them is told from others."""
        n, m = self._A.shape[0], self.num_probes
        known = description.of_columns(self._probes, self._source, n, m, n)
        return known or [f"{m} probes of run {self._origin['run']}"]

    def __repr__(self) -> str:
        spent = f"{self.num_matvecs} matvecs"
        if self._spaces is None:
            return f"SpectralRun(all eigenvalues, {spent})"
        return f"SpectralRun({self.num_probes} probes, depth {self.depth}, {spent})"


SpectralRun.__module__ = "tracekit"


def spectral_run(
    A: Any,
    num_matvecs: int,
    *,
    rng: Rng = None,
    observable: Any = None,
    probes: Probes = distributions.rademacher,
    depth: int | None = None,
    quadrature: Any = None,
) -> SpectralRun:
    r"""One run of Lanczos on random probes, from which any number of functions is read.

    Parameters
    ----------
    A : LinearOperator or anything that `as_operator` reads
        Hermitian, of dimension n.
    num_matvecs : int
        Products m to spend at most: `depth` for each probe (``2 depth - 1`` if A was made by
        `gram`), and as many again for each of two that go on to twice the depth. From n products
        on (the lesser dimension of L, if A is ``L L^H``), where n^2 numbers fit in a gigabyte, all
        eigenvalues are computed, and all values are exact.
    rng : None, int, or generator, optional
        As for `hutchinson`.
    observable : LinearOperator or anything that `as_operator` reads, optional
        A Hermitian O of the same dimension: `trace` then gives that of O f(A), `expectation` its
        mean. One product of O for each product of A, which `num_matvecs` does not count.
    probes : callable, optional
        A distribution of `tracekit.probes`.
    depth : int, optional
        Lanczos steps. If not given, one and a half times the root of m, at least 6.
    quadrature : optional
        As for `trace_function`; Chebyshev moments need their interval, and an observable the bases.

    Returns
    -------
    SpectralRun
        Its `trace`, `logdet`, `family`, `ratio`, `expectation` and `density` take no further
        products; `extend` takes more of them.

    Raises
    ------
    ValueError, TypeError
        As for `trace_function`; if the budget does not pay for one probe, or the observable is not
        Hermitian or of another dimension.

    Notes
    -----
    Each function is judged as by `trace_function`: where the depth is not enough for it, the
    estimate is not converged and its error infinite or as large as the whole value, while other
    functions of the same run may be settled. The values of one run share their probes: their errors
    are correlated, which `ratio` and ``Estimate.band`` use.

    With an observable and a positive function, half of it is taken on each side:
    :math:`\mathrm{tr}\, O f(A) = E\, w^H O w` with :math:`w = f^{1/2}(A) \omega`.

    Memory for the bases of all probes, as long as they fit in 64 MB and 640 columns; four columns a
    probe where no bases are kept.

    References
    ----------
    Ubaru, Chen, Saad (2017), SIMAX 38, doi:10.1137/16M1104974; Aichhorn, Daghofer, Evertz, von der
    Linden (2003), Phys. Rev. B 67, doi:10.1103/PhysRevB.67.161103.

    Examples
    --------
    >>> import numpy as np, tracekit as tk
    >>> A = tk.testing.known_spectrum(np.linspace(0.0, 3.0, 300))
    >>> run = tk.spectral_run(A, 150, rng=0)
    >>> heat = run.family(lambda x, t: np.exp(-t * x), [0.1, 1.0, 10.0])
    >>> heat.value.shape, heat.num_matvecs <= 150
    ((3,), True)
    """
    A, m, drawn = square(A, "function"), checked_budget(num_matvecs), fingerprint(rng)
    steps = None if depth is None else checked_budget(depth, "depth")
    seen = None if observable is None else Observed.of(observable, A)
    run = SpectralRun(A, Source(rng, A), probes, rules.of_a_run(quadrature, A, seen is not None))
    run._observed = seen
    run._origin |= {"draws": [drawn]} if drawn else {}
    run._begin(m, steps)
    return run
