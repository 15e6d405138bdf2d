"""Follows the kernel of a network while it is trained: callbacks for training loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tracekit as tk

from .._backend import adapter
from .._derivatives import checks
from .functional import functional
from .jacobian import ntk


def track(
    f: Callable[[Any], Any],
    tracker: tk.Tracker,
    *,
    every: int = 1,
    chunk_size: int | None = None,
) -> Callable[[int, Any], tk.Tracked | None]:
    """A callback that follows the tangent kernel of a function of parameters.

    Parameters
    ----------
    f : callable
        ``f(params) -> array``: the network on inputs that stay the same.
    tracker : tracekit.Tracker
        What spends the products and keeps what it found.
    every : int, optional
        Training steps from one look at the kernel to the next; others cost nothing.
    chunk_size : int, optional
        As for `ntk`.

    Returns
    -------
    callable
        ``callback(step, params)``: a `tracekit.Tracked`, or None at steps between. A loop of JAX
        and optax calls it with the parameters that it has at this step.

    Raises
    ------
    ValueError
        If `every` is no positive int.

    Notes
    -----
    A look costs the tracker's products: reverse-mode passes over all inputs, and forward-mode ones
    at the first look alone.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, tracekit as tk, tracekit_ntk as tkn
    >>> x = jax.random.normal(jax.random.key(0), (30, 3))
    >>> tracker = tk.Tracker(12, rng=0)
    >>> follow = tkn.track(lambda w: jnp.tanh(x @ w), tracker, every=5)
    >>> w = jnp.ones((3, 2))
    >>> for step in range(11):
    ...     found = follow(step, w)  # before or after an update by optax
    ...     w = 0.9 * w
    >>> [point.step for point in tracker.points], bool(0.5 < found.alignment.value < 1)
    ([0, 5, 10], True)
    """
    checks.positive("every", every)

    def callback(step: int, params: Any) -> tk.Tracked | None:
        if step % every:
            return None
        library = adapter(params)
        values = [library.detached(leaf) for _, leaf in library.leaves(params)]
        kernel = ntk(f, library.unflatten(params, values), chunk_size=chunk_size)
        return tracker.update(kernel, step)

    return callback


def track_module(
    module: Any,
    tracker: tk.Tracker,
    *inputs: Any,
    every: int = 1,
    chunk_size: int | None = None,
    trainable: Any = True,
    output: Callable[[Any], Any] | None = None,
) -> Callable[[int], tk.Tracked | None]:
    """A callback that follows the tangent kernel of a torch.nn.Module.

    Parameters
    ----------
    module : torch.nn.Module
        The network that is trained; looked at in eval mode, and left in the mode it was in.
    tracker : tracekit.Tracker
        What spends the products and keeps what it found.
    *inputs : tensors
        Which the module is called with; on its device.
    every, chunk_size : int, optional
        As for `track`.
    trainable : bool, pattern, torch.nn.Module, or list, optional
        With respect to which parameters, as for `functional`; those that require a gradient at the
        time of a look if not given.
    output : callable, optional
        Picks the tensor to follow from what the module returns: ``lambda y: y.logits``.

    Returns
    -------
    callable
        ``callback(step)``: a `tracekit.Tracked`, or None at steps between.

    Raises
    ------
    ValueError
        If `every` is no positive int, or no parameter is chosen.
    TypeError
        If `module` is none.

    Notes
    -----
    Neither the module nor its gradients are touched.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> module, x = torch.nn.Linear(3, 2), torch.randn(30, 3)
    >>> tracker = tk.Tracker(12, rng=0)
    >>> follow = tkn.track_module(module, tracker, x)
    >>> round(float(follow(0).alignment), 6)
    1.0
    """
    functional(module, trainable=trainable)
    checks.positive("every", every)

    def callback(step: int) -> tk.Tracked | None:
        if step % every:
            return None
        with _evaluated(module):
            f, params = functional(module, trainable=trainable)
            pick = output or (lambda y: y)
            kernel = ntk(lambda p: pick(f(p, *inputs)), params, chunk_size=chunk_size)
            return tracker.update(kernel, step)

    return callback


@contextmanager
def _evaluated(module: Any) -> Iterator[None]:
    """The module in eval mode; afterwards each of its parts is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
