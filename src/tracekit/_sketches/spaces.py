"""The Krylov spaces of a run's probes: how they grow, and by what each probe is deflated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._arrays import Array, Probes
from .._operators import LinearOperator, blocks, columns_that_fit, itemsize
from . import cross_fitting
from .chebyshev import Space
from .cross_fitting import Fold
from .observable import Observed

MEGABYTES = 128  # of bases at a time
MOST_COLUMNS, MOST_MEGABYTES = 640, 64  # of bases that are kept
LEAST_COLUMNS = 30  # of all spaces, for probes to have others worth being deflated by
FEWEST = 3  # probes: two, each deflated by the other's space, may err alike and show no spread
LOOK_AHEAD = 0.5  # of what is left, that twice the depth may cost


def most_columns(A: LinearOperator) -> int:
    """Columns of bases that may be kept."""
    return min(MOST_COLUMNS, MOST_MEGABYTES * 2**20 // (max(A.shape[0], 1) * itemsize(A)))


def is_independent(probes: Probes) -> bool:
    """Whether probes know nothing of one another, as deflation by each other asks."""
    return not getattr(probes, "joint", False)


def joined(spaces: Sequence[Space]) -> Space:
    """Spaces of one kind and depth as one."""
    return type(spaces[0]).joined(list(spaces))  # type: ignore[arg-type]


class Spaces:
    """Krylov spaces of one depth, with the bases of the first of them, as many as fit.

    Probes whose bases are kept are deflated by those of each other, in folds; every further probe
    by all of them.
    """

    def __init__(
        self, K: Space, most: int, observed: Observed | None = None, *, crosses: bool = True
    ) -> None:
        self.depth, self._most, self.observed = K.depth, most, observed
        self._crosses = crosses and most > 0  # whether kept bases deflate other probes
        self.num_matvecs = K.groups * K.block * K.cost(K.depth)
        self.deep: Space | None = None  # those of the first spaces that go on to twice the depth
        self.kept, self._further = [K], list[Space]()
        self._dealt: tuple[list[Fold], cross_fitting.Whole | None] | None = None
        self._met: list[Fold] = []
        if observed is not None:
            observed.add(K)

    @classmethod
    def read_only(cls, K: Space, folds: list[Fold], deep: Space | None) -> Spaces:
        """Spaces without bases, and what their probes are deflated by."""
        self = cls.__new__(cls)
        self.depth, self._most, self.deep, self.observed = K.depth, 0, deep, None
        self._crosses = False
        self.kept, self._further, self._dealt, self._met = [], [K], ([], None), folds
        return self

    def add(self, kept: list[Space], further: list[Space], met: list[Fold]) -> None:
        """Take spaces as they were before."""
        self.kept, self._further, self._met = [*self.kept, *kept], further, met

    @property
    def groups(self) -> int:
        """Spaces."""
        return sum(K.groups for K in (*self.kept, *self._further))

    def grow(
        self,
        groups: int,
        draw: Callable[[int], Array],
        begin: Callable[[Array], Space],
        each: Callable[[Space, Array], None] | None = None,
    ) -> None:
        """Add the spaces of so many groups of probes, as many at a time as fit."""
        first, b = self.kept[0], self.kept[0].block
        A, held = first.operator, first.held(self.depth)
        size = columns_that_fit(A.shape[0], itemsize(A) * held * b, None, megabytes=MEGABYTES)
        for count in blocks(groups, size):
            X = draw(count * b)
            K = begin(X).advance(self.depth)
            if each is not None:
                each(K, X)
            if self.observed is not None:
                self.observed.add(K)
            self.num_matvecs += count * b * K.cost(self.depth)
            self._take(K, X)

    @property
    def all_kept(self) -> bool:
        """Whether all of them can go deeper."""
        return not self._further

    def let_go(self) -> None:
        """Leave out those that cannot go deeper."""
        self._further, self._met = [], []

    def ahead(self, depth: int) -> int:
        """What it costs to let the first spaces go on to a depth."""
        return _further(self.deep or self.kept[0], depth)

    def deeper(self, depth: int) -> int:
        """What it costs to let all spaces go on to a depth."""
        return sum(_further(K, depth) for K in (self.deep or self.kept[0], *self.kept[1:]))

    def look_ahead(self, budget: int, depth: int | None = None) -> int:
        """Let the first spaces go on to twice the depth, if half of a budget pays; what that cost.

        Their change tells whether the depth is enough. Another depth if one is given, for which a
        whole budget may be spent.
        """
        deep = self.deep or self.kept[0]
        twice = depth or min(2 * self.depth, deep.operator.shape[0])
        cost = self.ahead(twice)
        if cost > (LOOK_AHEAD if depth is None else 1) * budget:
            return 0
        self.deep = deep.advance(twice)
        if self.observed is not None:
            self.observed.set_deep(self.deep)
        self.num_matvecs += cost
        return cost

    def deepen(self, depth: int, budget: int) -> int:
        """Let all spaces have so many steps, if a budget pays for them; what that cost."""
        if self._further:
            raise ValueError(
                "the bases of so many probes did not fit in memory, so that they cannot go deeper; "
                "extend without `depth`, or begin a run with it"
            )
        cost = self.deeper(depth)
        if cost > budget:
            raise ValueError(
                f"a depth of {depth} costs {cost} products for {self.groups} probes, and "
                f"num_matvecs={budget} does not allow that; pass more, or a smaller depth"
            )
        self.kept = [K.advance(depth) for K in self.kept[self.deep is not None :]]
        if self.deep is not None:  # these may have had more steps
            self.deep = self.deep.advance(depth)
            self.kept = [self.deep.shortened(depth), *self.kept]
        self.depth, self._dealt = depth, None
        if self.observed is not None:
            self.observed.renew(self.kept, self.deep)
        self.num_matvecs += cost
        return cost + self.look_ahead(budget - cost)

    def folds(self) -> list[Fold]:
        """By what each probe is deflated; nothing where no bases are to be kept."""
        if not self._crosses:
            return self._met
        columns = self.groups * self.depth * self.kept[0].block
        if self.groups < FEWEST or columns < LEAST_COLUMNS:
            return []
        return [*self._deal()[0], *self._met]

    def read(self) -> Space:
        """What A is on all spaces, without their bases."""
        return joined([K.without_basis() for K in (*self.kept, *self._further)])

    def _take(self, K: Space, X: Array) -> None:
        columns = sum(k.groups for k in (*self.kept, K)) * self.depth * K.block
        if not self._further and columns <= self._most:
            self.kept.append(K)
            self._dealt = None
            return
        if self._crosses:
            whole = self._deal()[1]
            first = self.groups * K.block
            self._met += [] if whole is None else [cross_fitting.met(whole, X, first)]
        self._further.append(K.without_basis())

    def _deal(self) -> tuple[list[Fold], cross_fitting.Whole | None]:
        if self._dealt is None:
            self._dealt = cross_fitting.dealt(joined(self.kept))
        return self._dealt


def _further(K: Space, depth: int) -> int:
    """Products that spaces cost up to a depth."""
    steps = K.cost(depth) - K.cost(K.depth)
    return int(K.groups) * K.block * max(steps, 0)
