"""Generalized Gauss-Newton and Fisher matrices as operators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import tracekit as tk
from tracekit._arrays import Array, namespace

from .._backend import adapter, kept, with_inputs
from .._derivatives import KnownQuantity, gram_in_chunks, operator
from .._kernel import captured
from .exact import flat_diagonals, weighted_trace
from .roots import SampleRoots, Weighted, label_roots, roots_of


def ggn(
    f: Callable[[Any, Any], Any], params: Any, x: Any, loss: Any, *, chunk_size: int | None = None
) -> tk.LinearOperator:
    """The generalized Gauss-Newton matrix ``J^T H J`` of a loss, on the parameters.

    Parameters
    ----------
    f : callable
        ``f(params, x) -> array`` with samples on axis 0 of the output, (N, ..., O) or (N,), which
        is real.
    params : tree of arrays
        PyTorch or JAX arrays, real. What is not in the tree is held fixed.
    x : array or tree of arrays
        The samples, of which a copy is kept.
    loss : tracekit_ntk.losses.Loss or object with a method hessian_root
        ``loss.hessian_root(outputs)`` takes rows of outputs (N, O) to S (N, O, R), where ``S S^T``
        is the Hessian of a row's loss by its outputs. Outputs (N,) are handed over as (N, 1), and
        those with more axes as rows of the last one in C order, (N T, O): the loss is a sum over
        them, such as a cross-entropy over positions with classes on the last axis.
    chunk_size : int, optional
        As for `jacobian`.

    Returns
    -------
    LinearOperator
        Positive semidefinite, (parameters, parameters), flat in the order of the tree: the sum over
        samples, never the mean. With `factor` ``J^T S``, of which one product is a reverse-mode
        pass, and one with its adjoint a forward-mode pass. Where samples do not mix and all that
        reads the parameters is known (see `explain`), the trace and the diagonal are exact from as
        many products on as a sample has columns in S.

    Raises
    ------
    TypeError
        As for `jacobian`; if outputs or parameters are complex, or the loss has no `hessian_root`.
    ValueError
        As for `jacobian`; if `hessian_root` gives something of another shape.
    NotImplementedError
        As for `jacobian`.

    See Also
    --------
    ggn_trace : The trace alone, exact.
    ggn_diagonal : The diagonal alone, exact.
    fisher : The same matrix by its other name, and the empirical Fisher matrix.

    Notes
    -----
    The Hessian of the loss without the part that comes from second derivatives of f. Products are
    those of `jacobian`, with S between them, which the losses of this package do not form. S is
    that of the outputs when the operator is made. Samples may mix, as with BatchNorm in training
    mode: the matrix is that of the whole batch. Products have the graph of parameters that require
    a gradient, in grad mode.

    References
    ----------
    N. N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
    Neural Computation 14 (2002), doi:10.1162/08997660260028683. J. Martens, "New insights and
    perspectives on the natural gradient method", JMLR 21 (2020), arXiv:1412.1193.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.ones(5, 3), torch.zeros(3, 2)
    >>> G = tkn.ggn(lambda w, x: x @ w, w, x, tkn.losses.softmax_cross_entropy)
    >>> G.shape, G.factor.shape
    ((6, 6), (6, 10))
    >>> estimate = tk.trace(G)
    >>> round(float(estimate), 4), estimate.num_matvecs, estimate.method
    (7.5, 2, 'ggn_trace')
    """
    return _operator(f, params, x, partial(roots_of, loss), chunk_size)


def fisher(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    loss: Any,
    y: Any = None,
    *,
    chunk_size: int | None = None,
) -> tk.LinearOperator:
    """The Fisher information matrix of a network's parameters, or with labels the empirical one.

    Parameters
    ----------
    f : callable
        As for `ggn`.
    params : tree of arrays
        As for `ggn`.
    x : array or tree of arrays
        The samples.
    loss : tracekit_ntk.losses.Loss or object with methods
        Of minus the logarithm of a likelihood. Without labels as for `ggn`. With labels
        ``loss.gradient(outputs, y)`` gives the gradient by f's outputs, in their shape.
    y : array, optional
        Labels of the samples, as the loss takes them: then the matrix is the empirical Fisher.
    chunk_size : int, optional
        As for `jacobian`.

    Returns
    -------
    LinearOperator
        Positive semidefinite, (parameters, parameters), the sum over samples, with `factor`.
        Without labels `ggn` itself; with labels ``sum_n g_n g_n^T`` for the gradients g_n of the
        samples' losses, whose `factor` has a column for each sample.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As for `ggn`, of `gradient` too; the losses of this package refuse labels of another shape
        than theirs, and classes that outputs do not have.

    Notes
    -----
    The Fisher matrix is the mean of ``g g^T`` over labels drawn from the network's own
    probabilities. It is the Gauss-Newton matrix where the Hessian of the loss by the outputs does
    not depend on the labels, as for the losses of this package: normal with variance 1,
    categorical, Bernoulli. The empirical Fisher matrix has the true labels in their place. It is
    another matrix, which says nothing of the curvature where the model is wrong or has fitted its
    labels, though often called by the same name (arXiv:1905.12558). Of outputs with more than one
    axis besides that of samples, such as positions of a sequence, a sample's gradient is the sum
    over all.

    References
    ----------
    F. Kunstner, L. Balles, P. Hennig, "Limitations of the empirical Fisher approximation for
    natural gradient descent", NeurIPS 2019, arXiv:1905.12558.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.ones(5, 3), torch.zeros(3, 2)
    >>> loss, y = tkn.losses.softmax_cross_entropy, torch.tensor([0, 1, 1, 1, 0])
    >>> f = lambda w, x: x @ w
    >>> tkn.fisher(f, w, x, loss).factor.shape, tkn.fisher(f, w, x, loss, y).factor.shape
    ((6, 10), (6, 5))
    """
    if y is None:
        return ggn(f, params, x, loss, chunk_size=chunk_size)
    return _operator(f, params, x, partial(label_roots, loss, y), chunk_size)


def _operator(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    roots: Callable[[Array, int], SampleRoots],
    chunk_size: int | None,
) -> tk.LinearOperator:
    """``J^T S S^T J``, and what is known of it in closed form."""
    f = with_inputs(params, x).on_copies(f)
    x = kept(params, x)
    lin = adapter(params).linearise(lambda p: f(p, x), params)
    lin.check()
    outputs = lin.output
    S = roots(outputs, outputs.shape[0] if outputs.ndim else 1)
    J = operator(lin, chunk_size)
    xp = namespace(outputs)

    def pullback(V: Array) -> Array:
        return J.rmatmat(xp.astype(S.product(V), J.dtype, copy=False))  # type: ignore[misc]

    def pushforward(X: Array) -> Array:
        return xp.astype(S.adjoint_product(J.matmat(X)), J.dtype, copy=False)

    shape = J.shape[1], S.samples * S.count
    L = tk.LinearOperator(shape, pullback, pushforward, dtype=J.dtype, xp=J.xp, device=J.device)
    G = gram_in_chunks(L, chunk_size)
    with suppress(ValueError):  # samples mix
        found = captured(f, params, x)
        if found is not None:
            return replace(G, exact=_exact(Weighted(found, S), params, chunk_size, J.dtype))
    return G


def _exact(
    found: Weighted, params: Any, chunk_size: int | None, dtype: Any
) -> dict[str, KnownQuantity]:
    leaves = [leaf for _, leaf in adapter(params).leaves(params)]

    def diagonal() -> Array:
        xp, parts = namespace(leaves[0]), flat_diagonals(found, leaves, chunk_size)
        return xp.concat([xp.astype(part, dtype, copy=False) for part in parts])

    trace = partial(weighted_trace, found, params, chunk_size)
    head = found.network.head
    columns = found.outputs if head is None or found.seen is None else head.body.outputs
    return {
        "trace": KnownQuantity(trace, columns, "ggn_trace"),
        "diagonal": KnownQuantity(diagonal, found.outputs, "ggn_diagonal"),
    }
