"""Jacobians and neural tangent kernels of a network as linear operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

from array_api_compat import array_namespace

import tracekit as tk
from tracekit._arrays import Array, Rows

from .._backend import adapter, kept, shared, with_inputs
from .._derivatives import (
    KnownQuantity,
    agreed,
    check_rows,
    gram_in_chunks,
    held_rows,
    itemsize,
    operator,
    over_batches,
    over_processes,
)
from .._kernel import captured, diagonal_of, fits, kernel_cost, matrix_of, norm_of_one, trace_of
from ..factors import Capture


def jacobian(
    f: Callable[..., Any],
    params: Any,
    *,
    batches: Iterable[Any] | None = None,
    chunk_size: int | None = None,
    layout: Any = None,
) -> tk.LinearOperator:
    """The Jacobian of a function of parameters, as an operator from parameters to outputs.

    Parameters
    ----------
    f : callable
        ``f(params) -> array`` of any shape, real or complex; the inputs are closed over. With
        `batches`, ``f(params, batch)``. See `functional` for a torch.nn.Module.
    params : tree of arrays
        PyTorch or JAX arrays in dicts, lists, or whatever the library knows as a tree. What is not
        in the tree is held fixed, so that frozen parameters are left out of it. All real, or all
        complex where f is holomorphic in them.
    batches : iterable, optional
        Data that does not fit in memory, such as a DataLoader: the Jacobian of all outputs, one
        batch after the other. It is gone through once now and once in every block product (of
        a kernel: twice for each chunk of columns), and must give the same batches each time.
    chunk_size : int, optional
        Columns that go through the network at once, so that memory grows with it rather than with
        the number of products; as many as 256 MB of tangents and cotangents allow if not given.
    layout : tracekit.RowLayout or (DeviceMesh, [Shard(0)]), optional
        Where several processes hold samples: all call this with the same parameters, and f gives
        the outputs of the samples of its process, any number of them. A `RowLayout` names the rows
        of the Jacobian that these are, samples times outputs; over a mesh of PyTorch they follow
        each other by rank.

    Returns
    -------
    LinearOperator
        Of shape (outputs, parameters), both flattened in the order of the tree and of C, in the
        dtype that they promote to, on their device. With `layout`, of the outputs of all processes:
        these lie by rows, in a `tracekit.RowArray`, and the parameters whole in every process.

    Raises
    ------
    TypeError
        If the tree holds something other than floating-point arrays of one library, or f does not
        return one array of floating-point numbers, or a tensor is a DTensor.
    ValueError
        If the tree is empty, f returns NaN, gives something else when it is run again (dropout in
        training mode), is not holomorphic in complex parameters, or the batches cannot be gone
        through again. At the first product with J: if forward and reverse mode disagree about f, as
        where a part of it runs under ``torch.no_grad``.
        With `layout`: if processes have other parameters, or other rows than outputs.
    NotImplementedError
        At the first product with J: if f has no forward mode, nor a second derivative by reverse
        mode; the error says what is left.

    Warns
    -----
    UserWarning
        If the output does not depend on the parameters.

    Notes
    -----
    A column of ``J @ X`` costs one forward-mode pass, of ``J.H @ X`` one reverse-mode pass; the
    forward pass through f is shared by all (in PyTorch, forward mode repeats it for each chunk;
    with `batches` every block product does). Where PyTorch has no forward mode, a column of
    ``J @ X`` costs about two reverse-mode passes; columns of large convolutions on the CPU are
    pulled back one by one, which is faster there and takes less memory. Besides, PyTorch runs f
    twice when the operator is made and a few passes at the first products, to see that they are
    right. The parameters are copied, so that the operator stays what it is while a training loop
    goes on. Products have the graph of parameters that require a gradient, in grad mode;
    `functional` detaches. Memory: the activations, and for each column of a chunk the parameters,
    the outputs and the activations once more. In JAX f is traced at each call, so that what it
    closes over is as it is now, and compiled once for each structure; where it has a reverse rule
    alone (jax.custom_vjp), a column of ``J @ X`` transposes the pullback, at the price of about one
    reverse-mode pass.

    With `layout`, all processes call the same functions with the same seed and budget. They tell
    each other once how many outputs they have and a checksum of their parameters; then products
    with J stay in each process, and those with J.H are summed over processes once for each block,
    P numbers a column. No graph is kept. An error in one process is raised in all. As f sees the
    samples of its process alone, BatchNorm in training mode normalises those.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, params = torch.ones(5, 3), {"w": torch.ones(3, 2), "b": torch.zeros(2)}
    >>> J = tkn.jacobian(lambda p: x @ p["w"] + p["b"], params)
    >>> J.shape, float(tk.exact_trace(J @ J.H))
    ((10, 8), 40.0)

    Process 1 of several would name the rows that follow; here there is one:

    >>> layout = tk.RowLayout(slice(0, 10), lambda x: x, rank=0, size=1)
    >>> J = tkn.jacobian(lambda p: x @ p["w"] + p["b"], params, layout=layout)
    >>> float(tk.exact_trace(J @ J.H))
    40.0
    """
    return _linearised(f, params, batches, chunk_size, layout)[0]


def ntk(
    f: Callable[..., Any],
    params: Any,
    x: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    chunk_size: int | None = None,
    layout: Any = None,
) -> tk.LinearOperator:
    """The empirical neural tangent kernel ``J @ J.H``, on the outputs.

    Parameters
    ----------
    f : callable
        As for `jacobian`.
    params : tree of arrays
        As for `jacobian`.
    x : array, or tree of arrays with one sample axis, optional
        Inputs of N samples, of which a copy is kept: then ``f(params, x)``, and where samples do
        not mix and all that reads the parameters is known (see `explain`), the trace and the
        diagonal are exact from as many products on as a sample has outputs, or as many as it has
        features that more outputs are linear in; norm, effective rank and alignments from the
        counted cost of the whole kernel on, which the ``reason`` of an estimate tells.
    batches : iterable, optional
        As for `jacobian`.
    chunk_size : int, optional
        As for `jacobian`.
    layout : optional
        As for `jacobian`.

    Returns
    -------
    LinearOperator
        Positive semidefinite, (outputs, outputs), with `factor` the Jacobian and `dims` the shape
        of the output: its quadratic form costs one reverse-mode pass and no forward-mode one, and
        budgets are counted in single passes.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> K = tkn.ntk(lambda w: x @ w, w)
    >>> K.dims, float(tk.hutchinson(K, 10, rng=0))
    ((5, 2), 30.0)
    >>> tk.trace(tkn.ntk(lambda w, x: x @ w, w, x))
    Estimate(30.0 +- 0.0, 2 matvecs, ntk_trace, exact for 2 products)
    """
    if x is not None and batches is not None:
        raise ValueError("x and batches are both given; pass x for data that fits in memory")
    J, shape, exact = _linearised(f, params, batches, chunk_size, layout, x)
    return replace(gram_in_chunks(J, chunk_size), dims=shape or None, exact=exact)


def parameter_gram(
    f: Callable[..., Any],
    params: Any,
    *,
    batches: Iterable[Any] | None = None,
    chunk_size: int | None = None,
    layout: Any = None,
) -> tk.LinearOperator:
    """``J.H @ J``, the kernel's twin on the parameters, with the same trace and nonzero spectrum.

    Parameters
    ----------
    f : callable
        As for `jacobian`.
    params : tree of arrays
        As for `jacobian`.
    batches : iterable, optional
        As for `jacobian`.
    chunk_size : int, optional
        As for `jacobian`.
    layout : optional
        As for `jacobian`.

    Returns
    -------
    LinearOperator
        Positive semidefinite, (parameters, parameters); its quadratic form costs one forward-mode
        pass. The Gauss-Newton matrix of half the squared error.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> round(float(tk.exact_trace(tkn.parameter_gram(lambda w: x @ w, w))), 4)
    30.0
    """
    return gram_in_chunks(_linearised(f, params, batches, chunk_size, layout)[0].H, chunk_size)


def cross_ntk(
    f1: Callable[[Any], Any],
    f2: Callable[[Any], Any],
    params: Any,
    params2: Any = None,
    *,
    chunk_size: int | None = None,
) -> tk.LinearOperator:
    """The kernel ``J1 @ J2.H`` between the outputs of two functions of the same parameters.

    Parameters
    ----------
    f1, f2 : callable
        ``f(params) -> array``, such as one network on two sets of inputs.
    params : tree of arrays
        As for `jacobian`.
    params2 : tree of arrays, optional
        Where f2 is linearised, if elsewhere: a tree of the same structure and shapes, such as the
        parameters before training.
    chunk_size : int, optional
        As for `jacobian`.

    Returns
    -------
    LinearOperator
        Of shape (outputs of f1, outputs of f2); a product costs a reverse and a forward pass.

    Raises
    ------
    ValueError
        If the two trees are not of the same structure and shapes.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> a, b, w = torch.ones(5, 3), torch.ones(4, 3), torch.ones(3, 2)
    >>> tkn.cross_ntk(lambda w: a @ w, lambda w: b @ w, w).shape
    (10, 8)
    """
    if params2 is None:
        params2 = params
    one, two = ([(name, tuple(leaf.shape)) for name, leaf in adapter(p).leaves(p)]
                for p in (params, params2))  # fmt: skip
    if one != two:
        differ = next(iter(set(one).symmetric_difference(two)))
        raise ValueError(
            f"a cross-kernel needs two parameter trees of one structure; {differ[0]} of shape "
            f"{differ[1]} is in one of them alone"
        )
    J1 = jacobian(f1, params, chunk_size=chunk_size)
    kernel: tk.LinearOperator = J1 @ jacobian(f2, params2, chunk_size=chunk_size).H
    return kernel


def _linearised(
    f: Callable[..., Any],
    params: Any,
    batches: Iterable[Any] | None,
    chunk_size: int | None,
    layout: Any = None,
    x: Any = None,
) -> tuple[tk.LinearOperator, tuple[int, ...], dict[str, KnownQuantity] | None]:
    """The Jacobian, the shape of the output, and what is known of the kernel in closed form."""
    if layout is None:
        J, shape, found = _of_process(f, params, batches, chunk_size, x)
        exact = _exact(found, params, chunk_size)
        if found is not None and exact is not None:
            exact |= _crossed(found, params, chunk_size, J)
        return J, shape, exact
    params, leaves, processes = shared(params, layout)

    def own() -> tuple[tk.LinearOperator, tuple[int, ...], Capture | None]:
        made = _of_process(f, params, batches, chunk_size, x)
        check_rows(layout, made[0].shape[0])
        return made

    def numbers(made: Any) -> tuple[float, ...]:
        J, shape, found = made
        return J.shape[0], shape[0] if shape else 0, found is not None

    (J, shape, found), told = agreed(processes, own, numbers, leaves)
    counts, samples, factored = told.T[:3].astype(int).tolist()
    rows = held_rows(processes, layout, counts)
    one = math.prod(shape[1:])
    shape = (sum(samples), *shape[1:]) if counts == [one * N for N in samples] else ()
    found = found if shape and all(factored) else None
    return over_processes(J, rows), shape, _exact(found, params, chunk_size, rows)


def _of_process(
    f: Callable[..., Any],
    params: Any,
    batches: Iterable[Any] | None,
    chunk_size: int | None,
    x: Any,
) -> tuple[tk.LinearOperator, tuple[int, ...], Capture | None]:
    """The Jacobian, the shape of the output and the factors of the samples that are held."""
    library = adapter(params)
    if batches is not None:

        def linearise(batch: Any, known: Any = None) -> Any:
            with_inputs(params, batch)
            told = () if known is None else (known,)
            return library.linearise(lambda p: f(p, batch), params, *told)

        return over_batches(linearise, batches, chunk_size), (), None
    of_params: Callable[[Any], Any] = f
    if x is not None:
        f = with_inputs(params, x).on_copies(f)
        x = kept(params, x)
        of_params = lambda p: f(p, x)  # noqa: E731
    lin = library.linearise(of_params, params)
    lin.check()
    found = None
    if x is not None:
        with suppress(ValueError):  # samples mix
            found = captured(f, params, x)
    return operator(lin, chunk_size), tuple(lin.output.shape), found


def _exact(
    found: Capture | None, params: Any, chunk_size: int | None, rows: Rows | None = None
) -> dict[str, KnownQuantity] | None:
    """What is known of the kernel in closed form: of all processes, where they hold rows."""
    if found is None:
        return None
    trace, diagonal = (partial(of, found, params, chunk_size) for of in (trace_of, diagonal_of))

    def total() -> Array:
        return trace() if rows is None else rows.total(agreed(rows, trace)[0])

    def joined() -> Any:
        return diagonal() if rows is None else tk.RowArray(agreed(rows, diagonal)[0], -1, rows)

    columns = (found if found.head is None else found.head.body).outputs
    return {
        "trace": KnownQuantity(total, columns, "ntk_trace"),
        "diagonal": KnownQuantity(joined, found.outputs, "ntk_diagonal"),
    }


def _crossed(
    found: Capture, params: Any, chunk_size: int | None, J: tk.LinearOperator
) -> dict[str, KnownQuantity]:
    """What is known of the kernel between samples, where one process holds them all."""
    cost = cache(partial(kernel_cost, found, chunk_size))
    norm = partial(norm_of_one, found, params, chunk_size)
    known = {"norm": KnownQuantity(norm, cost, "ntk_norm")}
    if fits(found, itemsize(J.dtype, J.xp)):
        matrix = partial(matrix_of, found, params, chunk_size, J.dtype)
        known["matrix"] = KnownQuantity(matrix, cost, "kernel")
    return known


def _is_inexact(leaf: Any) -> bool:
    kinds = ("real floating", "complex floating")
    return hasattr(leaf, "dtype") and bool(array_namespace(leaf).isdtype(leaf.dtype, kinds))
