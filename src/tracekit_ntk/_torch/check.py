"""Whether factors give the gradients of plain autograd."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import compress

import torch

from tracekit._arrays import Array

from .._derivatives import checks
from .._factors import Dense, Lookup, Outer, Use
from .cotangents import Cotangents, Plain, largest, largest_of_rows
from .noted import Noted
from .reverse import each


class Check:
    """Holds what was noted of a network to plain gradients."""

    def __init__(self, noted: Noted, cotangents: Cotangents, sizes: Mapping[str, int]) -> None:
        self._noted, self._cotangents, self._sizes = noted, cotangents, sizes

    def wrong(
        self, grads: Sequence[Array | None], plain: Plain, missed: Collection[str]
    ) -> dict[str, str]:
        """Parameters whose factors do not sum up to their gradients, with why."""
        truth, most = plain.gradients, plain.most
        kinds = self._noted.by_kind(each(self._cotangents.summed, grads), missed)
        names = [name for name in truth if name not in missed]
        unseen = [name for name in names if name not in kinds and bool(truth[name].any())]
        made, failed = {}, {}
        for name in (name for name in names if name in kinds):
            try:
                uses = [self._noted.whole_use(parts) for parts in kinds[name]]
                made[name] = _gradient(uses, self._sizes[name]).detach()
            except Exception as error:  # a call that its rule does not foresee
                failed[name] = f"its rule fails: {type(error).__name__}"
        wanted = [truth[name] for name in made]
        far = list(compress(made, self._cotangents.far(wanted, [*made.values()], most)))
        bounds = [
            _bounds([self._noted.whole_use(parts, absolute=True) for parts in kinds[name]],
                    self._sizes[name]).detach()
            for name in far
        ]  # fmt: skip
        wanted, sums = [truth[name] for name in far], [made[name] for name in far]
        differ = self._cotangents.differ(wanted, sums, bounds, most)
        unlike = dict.fromkeys(compress(far, differ), checks.DISAGREES)
        return dict.fromkeys(unseen, "read where nothing was seen") | failed | unlike

    def gradients(self, grads: Sequence[Array | None], missed: Collection[str]) -> dict[str, Array]:
        """What the factors of each parameter sum up to, (rows, size)."""
        return {
            name: _gradient([self._noted.whole_use(parts) for parts in kinds], self._sizes[name])
            for name, kinds in self._noted.by_kind(grads, missed).items()
        }

    def agree(self, truth: Mapping[str, Array], made: Mapping[str, Array]) -> bool:
        """Whether gradients of the same rows are the same up to rounding."""
        wanted = [t.detach() for t in truth.values()]
        found = [made[name].detach() if name in made else torch.zeros_like(t)
                 for name, t in zip(truth, wanted, strict=True)]  # fmt: skip
        most = max(largest(wanted), default=0.0)
        sizes = [largest_of_rows(t) for t in wanted]
        return made.keys() <= truth.keys() and not any(
            self._cotangents.differ(wanted, found, sizes, most)
        )

    def same(self, grads: Sequence[Array | None], alone: Sequence[Array | None]) -> bool:
        """Whether batched reverse passes agree with single ones."""
        if any((a is None) != (b is None) for a, b in zip(grads, alone, strict=True)):
            return False
        batched = [a.reshape(len(a), -1) for a in grads if a is not None]
        single = [b.reshape(len(b), -1) for b in alone if b is not None]
        most = max(largest(single), default=0.0)
        sizes = [largest_of_rows(b) for b in single]
        return not any(self._cotangents.differ(single, batched, sizes, most))


def _gradient(uses: Sequence[Use], size: int) -> Array:
    """What uses of one sample sum up to, (rows, size)."""
    return _joined([(use, _summed(use)) for use in uses], size)


def _bounds(uses: Sequence[Use], size: int) -> Array:
    """The sizes of what is summed in `_gradient`, from uses of absolute values."""
    return _joined([(use, _bound(use)) for use in uses], size)


def _joined(parts: Sequence[tuple[Use, Array]], size: int) -> Array:
    first = parts[0][1]
    if len(parts) == 1 and parts[0][0].size == size:
        return first
    total = first.new_zeros((first.shape[0], size))
    for use, part in parts:
        total[:, use.start : use.start + use.size] += part
    return total


def _summed(use: Use) -> Array:
    if isinstance(use, Dense):
        return use.J[0]
    if isinstance(use, Lookup):
        table = use.G.new_zeros((use.rows, use.G.shape[1], use.G.shape[3]))
        return table.index_add_(0, use.ids[0], use.G[0].transpose(0, 1)).transpose(0, 1).flatten(1)
    X, G = use.X[0], use.G[0]  # g S d, rows g S w
    J = torch.matmul(X.mT, G) if use.input_first else torch.matmul(G.mT, X)
    return J.reshape(len(J), -1)


def _bound(use: Use) -> Array:
    if not isinstance(use, Outer):
        return _summed(use).abs()
    X = torch.linalg.vector_norm(use.X[0], dim=1)  # g d
    G = torch.linalg.vector_norm(use.G[0], dim=2)  # rows g w
    J = X[:, :, None] * G[:, :, None, :] if use.input_first else G[..., None] * X[:, None, :]
    return J.reshape(len(J), -1)
