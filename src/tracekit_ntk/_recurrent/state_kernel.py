"""The kernel of all hidden states, as propagation times parameter kernel times its adjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, NamedTuple

import tracekit as tk
from tracekit._arrays import (
    Array,
    Product,
    eps_of,
    magnitude,
    matrix_diagonal,
    namespace,
    norm2,
    real,
)

from .._backend import with_inputs
from .._derivatives import KnownQuantity, chunk, gram_in_chunks, in_chunks, itemsize, operator
from .._kernel import OutputAxes, captured, chunk_of, diagonal_of, trace_of
from .._kernel import in_chunks as kernel_in_chunks
from ..factors import Factored
from .arguments import arrays, as_step, axes_of, check_finite, check_same, run_again
from .transitions import (
    Formed,
    Transitions,
    backward_differences,
    by_initial_state,
    forward_differences,
    transitions,
)
from .unrolled import Unrolled


class _Network(NamedTuple):
    """What a record of states asks for exact numbers."""

    transitions: Transitions
    unrolled: Unrolled | None
    params: Any
    chunk_size: int | None
    traces: dict[tuple[int, ...], Array]  # that have been asked for


@dataclass(frozen=True, eq=False, repr=False)
class StateKernel:
    """The kernel of hidden states and its parts; what `state_kernel` returns.

    Parameters
    ----------
    states : (B, T, U) array
        The states after every step, for B samples, T steps and U units.
    kernel : LinearOperator
        ``propagation @ parameter_kernel @ propagation.H``, of all states, with `dims` (B, T, U),
        `factor` their Jacobian, and `exact` its trace and diagonal where all that reads parameters
        is known.
    parameter_kernel : LinearOperator
        ``D @ D.H``, D the derivative of every state by the parameters alone, with the state before
        it held fixed.
    propagation : LinearOperator
        P, from changes made at each step to what they come to in all states.
    propagation_inverse : LinearOperator
        Its inverse: what of a change of all states is not explained by the step before.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> def cell(w, h, x):
    ...     return h @ w + x
    >>> K = tkn.state_kernel(cell, torch.eye(2), torch.ones(3, 4, 2), torch.zeros(3, 2))
    >>> K
    <StateKernel of 3 samples, 4 steps, 2 units; 4 parameters>
    """

    states: Array
    kernel: tk.LinearOperator
    parameter_kernel: tk.LinearOperator
    propagation: tk.LinearOperator
    propagation_inverse: tk.LinearOperator
    _network: _Network = field(init=False)

    def __repr__(self) -> str:
        B, T, U = self.states.shape
        P = self.parameter_kernel.factor.shape[1]  # type: ignore[union-attr]
        return f"<StateKernel of {B} samples, {T} steps, {U} units; {P} parameters>"

    def partial_trace(self, axis: int | tuple[int, ...]) -> Array:
        """The kernel summed over the diagonal of some axes of the states, exact.

        Parameters
        ----------
        axis : int or tuple of int
            What to trace over: 0 (samples), 1 (steps), 2 (units), or several of them.

        Returns
        -------
        (K, K) array
            On the entries of the axes that are kept, in C order; a sum, never a mean. The kernel
            itself without any axis, its trace with all.

        Raises
        ------
        ValueError
            If an axis does not exist or is named twice.

        Notes
        -----
        As many cotangents for each sample as there are states, T U, go back through the steps, for
        all samples at once, of whose gradients only the factors are made: for T = 50 and U = 64,
        3,200 sweeps in place of 3,200 B. What samples have between them counts where they are kept,
        as all samples share their parameters. Over samples, the array of each sample is made before
        they are summed. Where a parameter is read in a way that no rule is known for, or the
        derivatives by states are not formed, by products with the kernel's factor. Results are
        kept.

        Examples
        --------
        >>> import torch, tracekit_ntk as tkn
        >>> def cell(w, h, x):
        ...     return h @ w + x
        >>> K = tkn.state_kernel(cell, torch.eye(2), torch.ones(3, 4, 2), torch.zeros(3, 2))
        >>> K.partial_trace((0, 2)).diagonal().tolist()  # of steps: the first reads a state of 0
        [0.0, 12.0, 108.0, 432.0]
        """
        over = axes_of(axis)
        traces = self._network.traces
        if over not in traces:
            traces[over] = self._partial_trace(over)
        return traces[over]

    def frobenius_norm(self, axis: int | tuple[int, ...]) -> Array:
        """The Frobenius norm of a partial trace.

        Parameters
        ----------
        axis : int or tuple of int
            What to trace over, as for `partial_trace`. Of the whole kernel, for which all of it
            would be made, `tracekit.frobenius_norm` gives an estimate.

        Returns
        -------
        0-d array
            Real.

        Examples
        --------
        >>> import torch, tracekit_ntk as tkn
        >>> def cell(w, h, x):
        ...     return h @ w + x
        >>> K = tkn.state_kernel(cell, torch.eye(2), torch.ones(1, 2, 2), torch.ones(1, 2))
        >>> float(K.frobenius_norm((0, 1)))  # of units
        20.0
        """
        M = self.partial_trace(axis)
        unit = magnitude(M)
        return namespace(M).sqrt(norm2(M / unit)) * unit

    def effective_rank(self, axis: int | tuple[int, ...]) -> Array:
        """The effective rank of a partial trace, its squared trace over its squared norm.

        Parameters
        ----------
        axis : int or tuple of int
            What to trace over, as for `partial_trace`: (0, 2) leaves the rank along time, (0, 1)
            that across units, (1, 2) that over samples.

        Returns
        -------
        0-d array
            Real, from 1 to the number of entries that are kept; NaN for a kernel of zeros.

        Examples
        --------
        >>> import torch, tracekit_ntk as tkn
        >>> def cell(w, h, x):
        ...     return h @ w + x
        >>> K = tkn.state_kernel(cell, torch.eye(2), torch.ones(3, 4, 2), torch.zeros(3, 2))
        >>> round(float(K.effective_rank((1, 2))), 6)  # samples that are all alike
        1.0
        """
        M = self.partial_trace(axis)
        xp, M = namespace(M), M / magnitude(M)
        return xp.sum(real(matrix_diagonal(M))) ** 2 / norm2(M)

    def lyapunov_exponents(self) -> Array:
        """Rates at which small changes of the initial state grow or decay, for each sample.

        Returns
        -------
        (B, U) array
            Real, in units of one step, the fastest first up to what a finite time leaves to the
            directions it begins with; minus infinity for directions that vanish to the last bit.
            What vanishes up to rounding has the exponent of its rounding.

        Notes
        -----
        The mean over all T steps of the logarithms of the diagonal of R, of a QR decomposition of
        the product of derivatives at every step (Benettin et al. 1980): T products of U columns for
        each sample. They are those of the sequence as it was run, inputs included.

        References
        ----------
        Benettin, Galgani, Giorgilli, Strelcyn (1980), "Lyapunov characteristic exponents for smooth
        dynamical systems", doi:10.1007/BF02128236. Vogt, Puelma Touzel, Shlizerman, Lajoie (2022),
        "On Lyapunov exponents for RNNs", arXiv:2006.14123.

        Examples
        --------
        >>> import math, torch, tracekit_ntk as tkn
        >>> w = torch.diag(torch.tensor([math.e, 1 / math.e]))
        >>> def cell(w, h, x):
        ...     return h @ w + x
        >>> K = tkn.state_kernel(cell, w, torch.zeros(1, 5, 2), torch.ones(1, 2))
        >>> [round(float(rate), 4) for rate in K.lyapunov_exponents()[0]]
        [1.0, -1.0]
        """
        B, T, U = self.states.shape
        K = self.kernel
        xp = K.xp
        Q = xp.broadcast_to(xp.eye(U, dtype=K.dtype, device=K.device), (B, U, U))
        total = None
        for t in range(T):
            Q, R = xp.linalg.qr(self._network.transitions.at(t, Q))
            rates = xp.log(xp.abs(xp.linalg.diagonal(R)))
            total = rates if total is None else total + rates
        return total / T

    def _partial_trace(self, over: tuple[int, ...]) -> Array:
        found, params, chunk_size = self._network[1:4]
        if found is None:
            return tk.partial_trace(self.kernel, None, over).value
        traced = tuple(a - 1 for a in over if a)
        crossed = tuple(a for a in (0, 1) if a not in traced)
        found = found.unit_by_unit() if traced == (1,) else found
        axes = OutputAxes(self.states.shape[1:], (), traced, crossed, paired=0 in over)
        K = kernel_in_chunks(found, found, axes, chunk_of(found, chunk_size), params)
        xp, R = namespace(K), K.shape[-1]
        if axes.paired:
            return xp.sum(K[:, 0, 0, :, :], axis=0)
        B = K.shape[0]
        return xp.reshape(xp.permute_dims(K[:, :, 0, :, :], (0, 2, 1, 3)), (B * R, B * R))


StateKernel.__module__ = "tracekit_ntk"


def state_kernel(
    cell: Callable[[Any, Array, Array], Array],
    params: Any,
    inputs: Array,
    h0: Array,
    *,
    initial_state: bool = False,
    chunk_size: int | None = None,
) -> StateKernel:
    r"""The kernel of all hidden states of a recurrent network, taken apart as P D D^H P^H.

    Parameters
    ----------
    cell : callable
        ``cell(params, h, x) -> h``: the next states (N, U) from states and inputs (N, I), of any
        number of samples, each of which depends on its own state and input alone. A state of
        several parts, such as that of an LSTM, is one array of U entries, which the cell cuts.
    params : tree of arrays
        PyTorch or JAX arrays, as for `jacobian`; the same at every step.
    inputs : (B, T, I) array
        Of B samples at T steps, integers too.
    h0 : (B, U) array
        The states before the first step, in the dtype of the states.
    initial_state : bool
        Whether the entries of `h0` are parameters too, after those of `params`: B U of them.
    chunk_size : int, optional
        Columns of products that are held at once, and states of a sample that are pulled back at
        once where numbers are exact; as many as fit in 256 MB and 128 MB if not given.

    Returns
    -------
    StateKernel
        With `kernel`, `parameter_kernel`, `propagation` and `propagation_inverse` as operators, the
        `states`, exact partial traces, and Lyapunov exponents. No gradient reaches it.

    Raises
    ------
    TypeError
        If the cell does not return one array, or inputs or h0 are no such arrays.
    ValueError
        If the cell returns another shape or dtype than that of its state, or other states for all
        samples and steps at once than step by step (dropout, noise, BatchNorm in training mode,
        samples that mix); if inputs or h0 are of another shape; if a state is NaN or infinite.

    Notes
    -----
    With :math:`h_t = c(\theta, h_{t-1}, x_t)`, the Jacobian of all states by the parameters is
    :math:`(I - S)^{-1} D = P D`: D are the derivatives of the steps, each of its own state, and S
    holds :math:`A_t = \partial h_t / \partial h_{t-1}` below the diagonal of blocks. A product
    with P is :math:`y_t = v_t + A_t y_{t-1}`, one with its adjoint :math:`c_t = v_t + A_{t+1}^H
    c_{t+1}`, one with its inverse needs no recursion. D sees all samples of all steps as a batch of
    one layer, in one pass. The kernel is not block diagonal over time or samples, as all share
    their parameters.

    Cost: T steps of the cell, and U reverse passes through one step for all samples and steps. A
    column of a product with `kernel` costs a reverse and a forward pass through one step, and
    ``4 B T U^2`` FLOPs of recursions. Memory: the B T U^2 entries of all :math:`A_t`, where these
    take no more than 256 MB; else products with them are passes through the cell, step by step.
    Exact numbers keep besides the factors of a step for U outputs, of B T samples.

    References
    ----------
    Hazelden, Driscoll, Shlizerman, Shea-Brown (2025), "KPFlow: an operator perspective on dynamic
    collapse under gradient descent training of recurrent networks", arXiv:2507.06381, whose
    operators K and P are `parameter_kernel` and `propagation`.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> def cell(w, h, x):
    ...     return torch.tanh(h @ w + x)
    >>> inputs, h0 = torch.ones(3, 4, 2), torch.zeros(3, 2)
    >>> K = tkn.state_kernel(cell, torch.eye(2), inputs, h0)
    >>> K.kernel.dims, K.kernel.shape
    ((3, 4, 2), (24, 24))
    >>> v = torch.ones(24)
    >>> P = K.propagation
    >>> bool(torch.allclose(K.kernel @ v, P @ (K.parameter_kernel @ (P.H @ v))))
    True
    >>> tk.exact_trace(K.kernel).num_matvecs  # 4 steps of 2 units
    8
    """
    library = with_inputs(params, (inputs, h0))
    step = library.on_copies(as_step(cell))
    leaves = [library.detached(leaf) for _, leaf in library.leaves(params)]
    params = library.unflatten(params, leaves)
    inputs, h0 = arrays(library, inputs, h0)
    if initial_state:
        library.leaves({"params": params, "h0": h0})  # parameters of one field
    states = library.unroll(step, params, inputs, h0)
    check_finite(states)
    xp, (B, T, U) = namespace(states), states.shape
    before = xp.concat([h0[:, None, :], states[:, :-1, :]], axis=1)
    pairs = tuple(xp.reshape(x, (B * T, x.shape[2])) for x in (before, inputs))

    again = run_again(library, step, params, pairs, B)
    lin = library.linearise(lambda p: step(p, pairs), params)
    lin.check()
    eps = max(eps_of(states), getattr(lin.known, "eps", 0.0))
    check_same(again, xp.reshape(states, (B * T, U)), eps)
    library.independent(step, params, pairs)
    D = operator(lin, chunk_size)
    ways = transitions(library, step, params, before, inputs, D.dtype)
    one = captured(step, params, pairs) if isinstance(ways, Formed) else None
    unrolled = None
    if one is not None and isinstance(ways, Formed):
        of_step = cache(lambda: one.uses(0, one.outputs))
        unrolled = Unrolled(one, of_step, ways, initial_state)
    if initial_state:
        D = tk.vstack([D.H, by_initial_state(ways, D, (B, T, U)).H]).H

    def over_states(product: Product) -> Product:
        def run(X: Array) -> Array:
            Y = xp.reshape(xp.astype(X, D.dtype, copy=False), (B, T, U, X.shape[1]))
            return xp.reshape(product(Y), X.shape)

        return in_chunks(run, chunk(chunk_size, 4 * B * T * U, itemsize(D.dtype, xp)), xp)

    def of_states(product: Product, adjoint: Product) -> tk.LinearOperator:
        n, both = B * T * U, map(over_states, (product, adjoint))
        return tk.LinearOperator(
            (n, n), *both, dtype=D.dtype, xp=D.xp, device=D.device, dims=(B, T, U)
        )

    P = of_states(ways.forward, ways.backward)
    inverse = of_states(partial(backward_differences, ways), partial(forward_differences, ways))
    K, own = gram_in_chunks(P @ D, chunk_size), gram_in_chunks(D, chunk_size)
    made = StateKernel(
        states,
        replace(K, dims=(B, T, U), exact=_known(unrolled, params, chunk_size)),
        replace(
            own, dims=(B, T, U), exact=None if initial_state else _known(one, params, chunk_size)
        ),
        P,
        inverse,
    )
    object.__setattr__(made, "_network", _Network(ways, unrolled, params, chunk_size, {}))
    return made


def _known(
    found: Factored | None, params: Any, chunk_size: int | None
) -> dict[str, KnownQuantity] | None:
    """What is known of a kernel in closed form, where all that reads parameters is known."""
    if found is None:
        return None

    def diagonal() -> Array:
        return diagonal_of(found, params, chunk_size)

    return {
        "trace": KnownQuantity(lambda: trace_of(found, params, chunk_size), found.outputs),
        "diagonal": KnownQuantity(diagonal, found.outputs),
    }
