"""One call of an estimator: a budget spent whole, or in growing steps until a tolerance is met."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .._arrays import Array, Probes, Rng, is_array, is_finite, is_traced, namespace
from .._estimates import Estimate, checked_budget, checked_tolerance, files
from .._operators import LinearOperator, in_blocks
from ..probes import Plan, Source, distributions
from .paused import Checkpoint, Paused, ended_by, identity_of
from .records import taken_apart
from .tolerance import FIRST, looks, within

LEAST = 3  # probes that leave-one-out samples are made of
KEPT = 2**26  # bytes of a run that an estimate of a plain budget keeps
SHARE = 4  # a step takes at most this part of what was spent: so much a failure loses

Callback = Callable[[Any], Any]
log = logging.getLogger("tracekit")


@dataclass
class Run:
    """One call of an estimator: operators, budget, random source, tolerances, where it stands.

    `count` probes are spent, and `state` is what an estimator made of them; None at the beginning.
    `block` tells how dependent probes are drawn, for `Paused`.
    """

    operators: tuple[LinearOperator, ...]
    budget: float
    rng: Any  # or the source that an earlier run drew from
    rtol: float = 0.0
    atol: float = 0.0
    entrywise: bool = False
    callback: Callback | None = None
    checkpoint: Checkpoint | None = None
    state: Any = None
    count: int = 0
    resumed: bool = False
    block: tuple[Any, int, list[int]] | None = None
    stands: tuple[Any, Any] = (None, None)  # what the source and the block were at `count`
    stopped: bool = False  # by the callback

    @classmethod
    def of(
        cls,
        operators: LinearOperator | tuple[LinearOperator, ...],
        num_matvecs: Any,
        rng: Rng,
        rtol: float = 0.0,
        atol: float = 0.0,
        callback: Callback | None = None,
        checkpoint: Any = None,
        *,
        entrywise: bool = False,
        chunk_size: int | None = None,
    ) -> Run:
        """The call, if all that it was given is usable; where it stood, if it is resumed."""
        checked_tolerance(rtol, atol)
        every = operators if isinstance(operators, tuple) else (operators,)
        every = tuple(in_blocks(A, chunk_size) for A in every)
        if num_matvecs is None and rtol == atol == 0:
            raise ValueError(
                "`num_matvecs` must be a positive integer, got None; pass an int of 1 or more, or "
                "a tolerance such as rtol=1e-2"
            )
        budget = math.inf if num_matvecs is None else checked_budget(num_matvecs)
        if callback is not None and not callable(callback):
            raise TypeError(
                f"`callback` must be a function of an estimate, got {callback!r}; pass one such "
                "as tracekit.progress()"
            )
        drawn = rng.source if isinstance(rng, Paused) else rng
        run = cls(every, budget, drawn, rtol, atol, entrywise, callback, checkpoint)
        if isinstance(rng, Paused):
            run._go_on(rng, resumed=True)
        elif checkpoint is not None:
            run._read()
        return run

    @property
    def A(self) -> LinearOperator:
        """The operator, or the first of them."""
        return self.operators[0]

    @property
    def source(self) -> Source:
        """What random numbers come from; none are asked for where the answer is known."""
        if not isinstance(self.rng, Source):
            self.rng = Source(self.rng, self.A)
        return self.rng

    @property
    def looks(self) -> bool:
        """Whether the budget is spent step by step, with a look at each estimate."""
        return self.rtol > 0 or self.atol > 0 or self.callback is not None or bool(self.checkpoint)

    @property
    def begun(self) -> bool:
        """Whether it goes on with an earlier run."""
        return self.state is not None

    def refuse_looks(self, what: str) -> None:
        """Refuse what is spent whole or not at all."""
        if self.looks or self.begun:
            raise ValueError(
                f"{what} takes neither a tolerance, a callback, a checkpoint nor `resume`; pass "
                "num_matvecs alone"
            )

    def is_short(self, per_probe: int, cost: float = math.inf, least: int = LEAST) -> bool:
        """Whether there are too few probes to leave one out, and the exact answer costs more.

        A run that began so, with samples alone, goes on so.
        """
        if self.begun:
            return is_array(self.state)
        return self.budget // per_probe < least and self.budget < cost

    def draw(self, probes: Probes, count: int, n: int | None = None) -> Array:
        """The next probes, of a law of independent columns."""
        return distributions.draw(probes, self.source, self._rows(n), count)

    def widest(self, n: int) -> int:
        """Columns of the block that dependent probes are of; rows elsewhere."""
        return n if self.block is None else self.block[1]

    def stream(self, probes: Any, most: float, n: int | None = None) -> Callable[[int], Array]:
        """A function ``take(k)`` of the next k columns, of one block where they are dependent.

        A run that goes on draws the blocks before again, so that the block is the same one.
        """
        rows = self._rows(n)
        population = distributions.population(probes, rows) if self.looks else math.inf
        widest = int(min(most, rows, population))
        if not getattr(probes, "joint", False):
            return distributions.stream(probes, self.source, rows, widest)
        first, widest, before = self.block or (self.source.state(), widest, [])
        self.source.restore(first)
        columns = distributions.stream(probes, self.source, rows, widest)
        taken = list[int]()
        self.block = (first, widest, taken)

        def take(k: int) -> Array:
            taken.append(k)
            if sum(taken) > widest and not hasattr(probes, "draws"):
                raise ValueError(
                    f"a block of {widest} dependent probes was begun, for the budget at the "
                    f"beginning, and {sum(taken)} are wanted; merge a run of another seed instead"
                )
            return columns(k)

        for k in before:
            take(k)
        return take

    def draws(
        self, probes: Any, most: float, n: int | None = None
    ) -> tuple[Plan, Callable[[int], Array]] | None:
        """How probes in whole draws are made, and a function of the next columns; None of others.

        With a tolerance, laws that choose their size have to leave a budget for some looks.
        """
        looks = FIRST if getattr(probes, "chooses", False) and self.rtol + self.atol > 0 else 1
        rows = self._rows(n)
        begun = self.block[1] if self.block else max(int(min(most, rows)) // looks, 1)
        plan = distributions.plan(probes, self.source, rows, begun)
        return None if plan is None else (plan, self.stream(plan, begun, n))

    def spend(
        self,
        extend: Callable[[Any, int], Any],
        read: Callable[[Any], Any],
        per_probe: int = 1,
        *,
        cost: float = math.inf,
        exact: Callable[[], Any] | None = None,
    ) -> Any:
        """Spend the budget whole; or, with a tolerance, until the interval is within it.

        ``extend(state, k) -> state`` spends k probes more of `per_probe` products each, the first
        time on None; ``read(state)`` is the estimate, or several, and spends nothing. ``exact()``
        is the answer for `cost` products where it is no more expensive.
        """
        if not self.looks:
            if not self.begun and self.budget >= cost and exact is not None:
                return exact()
            more = int(self.budget) // per_probe - self.count
            if more > 0:
                self._grow(extend, more, None)
            return self._kept(read(self.state), always=False)
        return self._spend_to_tolerance(extend, read, per_probe, cost, exact)

    def _spend_to_tolerance(
        self,
        extend: Callable[[Any, int], Any],
        read: Callable[[Any], Any],
        per_probe: int,
        cost: float,
        exact: Callable[[], Any] | None,
    ) -> Any:
        ends_exact = exact is not None and math.isfinite(cost)
        most = min(self.budget, cost - 1 if ends_exact else math.inf)
        if not math.isfinite(most):
            raise ValueError(
                "`num_matvecs` must be a positive integer here, where no number of products makes "
                "the value exact, got None; pass the most that may be spent"
            )
        most, found, seen = int(most) // per_probe, None, 0
        if exact is not None and self.budget >= cost and most < FIRST and not self.begun:
            return exact()
        targets = list(looks(most))
        try:
            if self.begun and (self.resumed or self.count in targets):
                found, seen = read(self.state), self.count
                if self._ends(found, len(targets)):
                    return self._ended(found)
            for target in targets:
                if target < self.count:  # a run that goes on looks where it would have looked
                    continue
                while self.count < target:
                    k = min(target - self.count, max(FIRST, self.count // SHARE))
                    self._grow(extend, k, read)
                    self._write()
                if seen < self.count:
                    found, seen = read(self.state), self.count
                    if self._ends(found, len(targets)):
                        return self._ended(found)
                left = self.budget - per_probe * self.count
                if ends_exact and left >= cost and per_probe * 2 * self.count > cost:
                    break
            left = self.budget - per_probe * self.count
            if exact is not None and left >= cost:
                log.info("the exact value, for %d products more", cost)
                return _with_products(exact(), per_probe * self.count)
        except BaseException as error:
            self._lose_nothing(error, found, seen, read)
            raise
        finally:
            if close := getattr(self.callback, "close", None):
                close()
        if found is None:
            found = read(self.state)
        if self.rtol == self.atol == 0:
            return self._kept(found)
        return self._kept(_not_converged(found, "the budget is spent"))

    def _grow(
        self,
        extend: Callable[[Any, int], Any],
        k: int,
        read: Callable[[Any], Any] | None,
    ) -> None:
        """Spend k probes more; what fails on the way leaves the run where it stood.

        So do products that are not finite, where `read` tells that they are of no use.
        """
        state = extend(self.state, k)
        if read is not None and not all(
            map(_is_sound, taken_apart(state, self.operators)[0].values())
        ):
            read(state)
        self.state, self.count = state, self.count + k
        block = self.block and (*self.block[:2], list(self.block[2]))
        self.stands = self.source.state(), block

    def _ends(self, found: Any, looks: int) -> bool:
        """Whether the run ends here, by the tolerance or by the callback."""
        inside = (self.rtol > 0 or self.atol > 0) and within(
            found, self.rtol, self.atol, looks, entrywise=self.entrywise
        )
        log.info("%s%s", found, ", within the tolerance" if inside else "")
        if self.callback is not None:
            shown = self._kept(found if inside else _not_converged(found, ""))
            self.stopped = bool(self.callback(shown)) and not inside
        return inside or self.stopped

    def _ended(self, found: Any) -> Any:
        found = _not_converged(found, "ended by the callback") if self.stopped else found
        return self._kept(found)

    def _lose_nothing(
        self, error: BaseException, found: Any, seen: int, read: Callable[[Any], Any]
    ) -> None:
        """Give an error the estimate by all that was paid for."""
        if self.state is not None and seen < self.count:
            with suppress(Exception):
                found = read(self.state)
        if found is None:
            if getattr(error, "estimate", None) is not None:  # of another run
                error.estimate = None  # type: ignore[attr-defined]
            return
        told = ended_by(error)
        log.info("%s, with what %d probes gave", told, self.count)
        with suppress(Exception):
            error.estimate = self._kept(_not_converged(found, told))  # type: ignore[attr-defined]

    def _kept(self, found: Any, *, always: bool = True) -> Any:
        """The estimates, with the run that they are of."""
        first = found if isinstance(found, Estimate) else found[0]
        if self.state is None or is_traced(first.value):
            return found
        paused = Paused.of(self.state, self.source, self.operators, self.count, *self.stands)
        if not always and paused.num_bytes > KEPT:
            return found
        if isinstance(found, Estimate):
            return replace(found, paused=paused)
        return type(found)(*(replace(e, paused=paused) for e in found))

    def _go_on(self, paused: Paused, *, resumed: bool) -> None:
        place = _as_it_is if resumed else partial(_placed, self.A)
        self.state = paused.read(*self.operators, place=place)
        self.count, self.block, self.resumed = paused.count, paused.block, resumed
        self.stands = paused.draws, paused.block

    def _write(self) -> None:
        """Replace the checkpoint."""
        if self.checkpoint is None:
            return
        arrays, told = taken_apart(self.state, self.operators)
        facts = {
            "state": told,
            "count": self.count,
            "draws": self.stands[0],
            "block": self.stands[1],
            "identity": identity_of(self.A) | self.source.identity | self.checkpoint.asked,
        }
        files.save(self.checkpoint.path, arrays, facts)

    def _read(self) -> None:
        """Go on where the checkpoint was written, if there is one."""
        assert self.checkpoint is not None
        path, source = self.checkpoint.path, self.source
        if not source.state():
            raise TypeError("the state of this generator cannot be saved; pass an int to rng")
        found = files.load(path, "checkpoint", ("state", "count", "draws", "identity", "block"))
        if found is None:
            return
        arrays, facts = found
        own = identity_of(self.A)
        here, there = own | source.identity | self.checkpoint.asked, facts["identity"]
        for name in here | there:
            if here.get(name) != there.get(name):
                raise ValueError(
                    f"checkpoint {str(path)!r} is of a run with {name} {there.get(name)}, not "
                    f"{here.get(name)}; pass another file or remove it"
                )
        state, count, draws, block = (facts[x] for x in ("state", "count", "draws", "block"))
        kept = Paused(arrays, state, count, source, draws, own, block)
        try:
            self._go_on(kept, resumed=False)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {str(path)!r} is incompatible with this call ({error}); pass the same "
                "kind of rng, another file, or remove it"
            ) from None

    def _rows(self, n: int | None) -> int:
        return self.A.shape[0] if n is None else n


def _not_converged(found: Any, told: str) -> Any:
    """The estimates, which are not within the tolerance, and why."""
    if not isinstance(found, Estimate):
        return type(found)(*(_not_converged(e, told) for e in found))
    reason = "; ".join(filter(None, (found.reason, told)))
    return replace(found, converged=False, reason=reason)


def _with_products(found: Any, more: int) -> Any:
    if not isinstance(found, Estimate):
        return type(found)(*(_with_products(e, more) for e in found))
    return replace(found, num_matvecs=found.num_matvecs + more)


def _is_sound(x: Array) -> bool:
    """Whether an array has no NaN or infinity in it."""
    kinds = "real floating", "complex floating"
    return not is_array(x) or not namespace(x).isdtype(x.dtype, kinds) or is_finite(x)


def _as_it_is(x: Array) -> Array:
    return x


def _placed(A: LinearOperator, x: Array) -> Array:
    return A.xp.asarray(x, device=A.device)
