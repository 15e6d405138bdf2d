"""Traces of the kernel parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tracekit as tk

from .._backend import adapter
from .._derivatives import checks, memoised, operator
from .._factors import pad


def per_parameter(f: Callable[..., Any], params: Any, *, chunk_size: int | None = None) -> Any:
    """The Jacobians with respect to each parameter, which share their reverse-mode passes.

    Parameters
    ----------
    f : callable
        As for `jacobian`.
    params : tree of arrays
        As for `jacobian`.
    chunk_size : int, optional
        As for `jacobian`.

    Returns
    -------
    tree of LinearOperator
        Like `params`: of shape (outputs, size of the parameter) each. Columns that one of them has
        pulled back are not pulled back again for the others: estimators with the same int seed
        ask all of them for the same columns.

    Notes
    -----
    The kernel is the sum of the parameters' own ``L @ L.H``, and so is its trace. An estimate for
    each costs the passes of one. Memory: pulled back columns are kept while these operators live
    and a block of other columns has not come, (parameters, k) numbers for k columns.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, params = torch.ones(5, 3), {"w": torch.ones(3, 2), "b": torch.zeros(2)}
    >>> layers = tkn.per_parameter(lambda p: x @ p["w"] + p["b"], params)
    >>> {name: round(float(tk.one_sided(L, 10, rng=0)), 3) for name, L in layers.items()}
    {'w': 30.0, 'b': 10.0}
    """
    library = adapter(params)
    lin = library.linearise(f, params)
    lin.check()
    names = [name for name, _ in library.leaves(params)]
    checks.has_entries(list(zip(names, lin.sizes, strict=True)))
    J = operator(lin, chunk_size)
    rmatmat = memoised(J.H.matmat, J.xp)

    def part(start: int, size: int) -> tk.LinearOperator:
        rows = slice(start, start + size)

        return tk.LinearOperator(
            (J.shape[0], size), lambda X: J.matmat(pad(X, start, J.shape[1], axis=0)),
            lambda U: rmatmat(U)[rows, :], dtype=J.dtype, xp=J.xp, device=J.device,
        )  # fmt: skip

    starts = [sum(lin.sizes[:i]) for i in range(len(lin.sizes))]
    return library.unflatten(params, [part(*at) for at in zip(starts, lin.sizes, strict=True)])
