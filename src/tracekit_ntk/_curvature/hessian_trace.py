"""The trace of the Hessian of a network's loss, from the exact one of its Gauss-Newton part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tracekit as tk
from tracekit._arrays import Array, is_traced, namespace, to_host

from .._derivatives import checks
from .residual import Residual, refuse_nan

PRIOR = 4  # samples without a slope that are added when one is fitted
CHANCE = 0.02  # of calling samples exact that are equal by chance


def hessian_trace(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    y: Any,
    loss: Any,
    num_matvecs: int | None = None,
    *,
    rng: Any = None,
    chunk_size: int | None = None,
) -> tk.Estimate:
    r"""The trace of the Hessian of a network's loss, with the exact Gauss-Newton trace in it.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of x and of the output, (N, ..., O) or
        (N,), which is real, each of which depends on its own input alone.
    params : tree of arrays
        PyTorch or JAX arrays, real. What is not in the tree is held fixed.
    x : array or tree of arrays
        The samples.
    y : array
        Their targets, as the loss takes them.
    loss : tracekit_ntk.losses.Loss or object with methods
        ``hessian_root`` as for `ggn`, and ``gradient(outputs, y)``, in the outputs' shape. The sum
        over samples is meant, never the mean.
    num_matvecs : int, optional
        Passes through the network along directions of the parameters, of one column each, at most.
        From more than there are parameters on, or if not given, the trace is exact.
    rng : None, int, or generator, optional
        Of the directions.
    chunk_size : int, optional
        Directions at once; as many as 256 MB allow if not given.

    Returns
    -------
    Estimate
        Unbiased. The standard error is that of a mean; infinite while equal samples may be so by
        chance. The `reason` says where the trace is exact.

    Raises
    ------
    TypeError, ValueError
        As for `hessian` and `ggn_trace`; if the loss has no `gradient`, or targets are not those of
        the outputs.

    See Also
    --------
    hessian : The Hessian as an operator, of any loss.
    minibatch_hessian_trace : For data of which each direction sees a part.

    Notes
    -----
    The Hessian is ``G + R``: the Gauss-Newton matrix G, whose trace is exact from factors (see
    `ggn_trace`), and R, the second derivatives of the outputs weighted by the gradient of the loss.
    With signs z, and one forward-mode pass of a forward-mode pass for both numbers,

    .. math:: \mathrm{tr} H = c\, \mathrm{tr} G + E\, z^T (G + R - c\, G) z.

    The coefficient c of each sample is fitted to the others, pulled towards 1 as by four samples,
    so that the estimate stays unbiased. Where the loss is nearly minimal R is small: a tanh network
    after training had half the deviation of signs on H; at initialisation, where R dominates, there
    is no gain.

    Where R has no diagonal block for any parameter, the trace is that of G: a network which is
    linear in each parameter by itself, as of piecewise linear activations without weight sharing,
    normalisation or smooth activations after a parameter. This is looked at first, by a product of
    R with one normal vector for each leaf of the tree, of which all the leaf's own entries must be
    0 exactly: a block that is not 0 has such a product with probability 0. It stops at the first
    leaf that is not. Where there is no forward mode twice, or it disagrees with reverse mode, a
    direction takes a product with R and one with the Jacobian, and counts as two.

    References
    ----------
    Hutchinson (1989), Commun. Stat. Simul. Comput. 18, doi:10.1080/03610918908812806. Schraudolph
    (2002), Neural Comput. 14, doi:10.1162/08997660260028683.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> x, y = torch.ones(5, 3), torch.zeros(5, 2)
    >>> params = {"a": torch.ones(3, 4), "b": torch.ones(4, 2)}
    >>> relu = lambda p, x: torch.relu(x @ p["a"]) @ p["b"]
    >>> tkn.hessian_trace(relu, params, x, y, tkn.losses.squared_error, 20, rng=0)
    Estimate(480.0 +- 0.0, 2 matvecs, hessian_trace, linear in each parameter: that of the GGN)
    """
    budget = None if num_matvecs is None else checks.positive("num_matvecs", num_matvecs)
    found = Residual(f, params, x, y, loss)
    at_once, spent = found.at_once(chunk_size), 0
    if budget is not None and budget < found.cost:
        raise ValueError(
            f"`num_matvecs` must be at least {found.cost} here, where a direction takes a product "
            f"with R and one with the Jacobian, got {budget}; pass more"
        )
    left = budget
    if budget is None or budget >= len(found.sizes) + found.cost:
        if not is_traced(found.known):
            spent, vanish = found.blocks_vanish(at_once)
            if vanish:
                return _exact(found.known, spent, "linear in each parameter: that of the GGN")
        # compiled code takes the directions that are left where the first leaf is curved
        left = None if budget is None else budget - max(spent, 1)
    whole = found.size * found.cost
    if left is None or left >= whole:
        value = found.known + found.total(found.units(at_once))
        return _exact(value, spent + whole, "by all directions")
    m = left // found.cost
    source = tk.probes.Source(rng, found.residual)
    rest, surplus = found.forms(found.signs(source, _widths(m, at_once)))
    return _estimate(found.known + rest, surplus, spent + m * found.cost, "hessian_trace")


def minibatch_hessian_trace(
    f: Callable[[Any, Any], Any],
    params: Any,
    batches: Sequence[tuple[Any, Any]],
    loss: Any,
    num_matvecs: int,
    *,
    rng: Any = None,
    chunk_size: int | None = None,
) -> tk.Estimate:
    """The trace of the Hessian of the loss of all batches, from one batch for each direction.

    Parameters
    ----------
    f : callable
        As for `hessian_trace`.
    params : tree of arrays
        As for `hessian_trace`.
    batches : sequence of pairs
        ``batches[i]`` is ``(x, y)``, of ``len(batches)``: a list, or what loads a batch when it is
        asked for.
    loss : tracekit_ntk.losses.Loss or object with methods
        As for `hessian_trace`.
    num_matvecs : int
        Directions, at least 2 for an error; each goes through one batch that is drawn for it.
    rng : None, int, or generator, optional
        Of directions and batches.
    chunk_size : int, optional
        As for `hessian_trace`.

    Returns
    -------
    Estimate
        Of the sum over all batches, unbiased. Samples are independent, each of a direction and a
        batch: the interval holds both errors, where batches are alike. Of few samples it misses
        what one batch in many has, such as an outlier a thousand times as large as the rest.

    Raises
    ------
    TypeError, ValueError
        As for `hessian_trace`; if `batches` has no length, is empty, or has no entries by number.

    Notes
    -----
    A sample is the number of batches times what `hessian_trace` finds on one: its Gauss-Newton
    trace, exact, and the rest along one direction. For data of which one pass is dear: with B
    batches whose traces deviate by a share s of their mean, m samples are right to about
    ``s / sqrt(m)``, however exact each is, for the price of at most m batches, and the first. Where
    all the data can be gone through B times, ``hessian(loss, params, batches=...)`` has no such
    error. Batches that are drawn several times are taken once, with all their directions.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> batches = [(torch.full((5, 3), s), torch.zeros(5, 2)) for s in (1.0, 1.1, 0.9)]
    >>> f, w = lambda w, x: torch.tanh(x @ w), torch.full((3, 2), 0.1)
    >>> loss = tkn.losses.squared_error
    >>> found = tkn.minibatch_hessian_trace(f, w, batches, loss, 40, rng=0)
    >>> H = tkn.hessian(lambda w, b: loss(f(w, b[0]), b[1]), w, batches=batches)
    >>> low, high = found.confidence_interval()
    >>> bool(low < float(tk.exact_trace(H)) < high)
    True
    """
    m, B = checks.positive("num_matvecs", num_matvecs), _count(batches)
    first = Residual(f, params, *_pair(batches, 0), loss)
    source = tk.probes.Source(rng, first.residual)
    numbers, counts = np.unique(_drawn(source, m, B), return_counts=True)
    at_once, parts = first.at_once(chunk_size), []
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        pair = _pair(batches, number)
        found = Residual(f, params, *pair, loss, direct=first.direct) if number else first
        rest, surplus = found.forms(found.signs(source, _powers(count, at_once)))
        parts.append((B * (found.known + rest), B * surplus))
    samples, surplus = (first.residual.xp.concat(list(each)) for each in zip(*parts, strict=True))
    return _estimate(samples, surplus, m * first.cost, "minibatch_hessian_trace")


def _exact(value: Array, num_matvecs: int, reason: str) -> tk.Estimate:
    refuse_nan(value)
    return tk.Estimate(value, 0 * value, num_matvecs, "hessian_trace", reason=reason)


def _estimate(samples: Array, surplus: Array, num_matvecs: int, method: str) -> tk.Estimate:
    """The mean of samples, less their share of what is known to be 0 on the average.

    The share of each is the slope of the others, which does not depend on it.
    """
    xp, m = namespace(samples), samples.shape[0]
    refuse_nan(samples)
    samples = samples - _slopes_of_others(samples, surplus) * surplus
    value = xp.mean(samples)
    apart = samples - value
    most = xp.max(xp.abs(apart))  # squares of what is large do not fit in single precision
    unit = xp.where(most > 0, most, xp.ones_like(most))
    error = unit * xp.sqrt(xp.sum((apart / unit) ** 2) / max(m * (m - 1), 1))
    tied = xp.max(xp.abs(apart)) <= 64 * float(xp.finfo(samples.dtype).eps) * xp.max(
        xp.abs(samples)
    )
    unsure = m == 1 or 0.75 ** (m - 1) > CHANCE
    error = xp.where(tied, error + math.inf, error) if unsure else error
    return tk.Estimate(value, error, num_matvecs, method, samples, dof=m - 1)


def _slopes_of_others(y: Array, x: Array) -> Array:
    """Slopes of y by x without each of the samples, pulled to 0 as by PRIOR samples more."""
    xp, rest = namespace(x), x.shape[0] - 1
    if rest < 2:
        return xp.zeros_like(x)
    x, y = x - xp.mean(x), y - xp.mean(y)
    less = (rest + 1) / rest
    below = xp.sum(x * x) - less * x * x
    slopes = (xp.sum(x * y) - less * x * y) / xp.where(below > 0, below, xp.ones_like(below))
    return slopes * (rest / (rest + PRIOR))


def _drawn(source: tk.probes.Source, m: int, count: int) -> Any:
    """Numbers below `count`, each with the same probability."""
    drawn = source.normal((m, 1))
    if is_traced(drawn):
        raise TypeError(
            "minibatch_hessian_trace takes the batches that it draws, which a program of jax.jit "
            "cannot choose; call it outside"
        )
    turns = [math.erfc(-z / 2**0.5) / 2 for z in to_host(drawn)[:, 0].tolist()]
    return np.minimum(np.floor(np.asarray(turns) * count), count - 1).astype(int)


def _widths(m: int, at_once: int) -> list[int]:
    return [min(at_once, m - start) for start in range(0, m, at_once)]


def _powers(m: int, at_once: int) -> list[int]:
    """Powers of two that add up to m: few widths for which programs are compiled."""
    widths = []
    while m:
        widths.append(1 << (min(m, at_once).bit_length() - 1))
        m -= widths[-1]
    return widths


def _pair(batches: Any, number: int) -> tuple[Any, Any]:
    try:
        x, y = batches[number]
    except (TypeError, ValueError, KeyError) as error:
        raise TypeError(
            f"batches[{number}] is no pair (x, y); pass a sequence of such pairs, such as "
            "list(loader)"
        ) from error
    return x, y


def _count(batches: Any) -> int:
    if not hasattr(batches, "__len__") or not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"batches, a {type(batches).__name__}, cannot be drawn from; pass a sequence of pairs "
            "(x, y), such as list(loader)"
        )
    if not len(batches):
        raise ValueError("batches is empty; pass at least one pair (x, y)")
    return len(batches)
