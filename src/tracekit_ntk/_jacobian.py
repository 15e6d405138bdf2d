"""Jacobians and neural tangent kernels of a network as linear operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from array_api_compat import array_namespace

import tracekit as tk

from . import _checks
from ._adapter import adapter, inputs, refuse_scattered
from ._choice import check_name, dotted, matching
from ._exact import captured, diagonal_of, trace_of
from ._operators import Priced, kernel, operator, over_batches, remembering
from ._products import chunk, cut, in_chunks, itemsize

Array = Any


def jacobian(
    f: Callable[..., Any],
    params: Any,
    *,
    batches: Iterable[Any] | None = None,
    chunk_size: int | None = None,
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

    Returns
    -------
    LinearOperator
        Of shape (outputs, parameters), both flattened in the order of the tree and of C, in the
        dtype that they promote to, on their device.

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
    ``J @ X`` costs about two reverse-mode passes. Besides, PyTorch runs f twice when the operator
    is made and a few passes at the first products, to see that they are right. The parameters are
    copied, so that the operator stays what it is while a training loop goes on. Products have the
    graph of parameters that require a gradient, in grad mode; `functional` detaches. Memory: the
    activations, and for each column of a chunk the parameters, the outputs and the activations
    once more. In JAX f is traced at each call, so that what it closes over is as it is now, and
    compiled once for each structure; where it has a reverse rule alone (jax.custom_vjp), a column
    of ``J @ X`` transposes the pullback, at the price of about one reverse-mode pass.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, params = torch.ones(5, 3), {"w": torch.ones(3, 2), "b": torch.zeros(2)}
    >>> J = tkn.jacobian(lambda p: x @ p["w"] + p["b"], params)
    >>> J.shape, float(tk.exact_trace(J @ J.H))
    ((10, 8), 40.0)
    """
    return _linearised(f, params, batches, chunk_size)[0]


def ntk(
    f: Callable[..., Any],
    params: Any,
    x: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    chunk_size: int | None = None,
) -> tk.LinearOperator:
    """The empirical neural tangent kernel ``J @ J.H``, on the outputs.

    Parameters
    ----------
    f : callable
        As for `jacobian`.
    params : tree of arrays
        As for `jacobian`.
    x : array, or tree of arrays with one sample axis, optional
        Inputs of N samples: then ``f(params, x)``, and where samples do not mix and all that reads
        the parameters is known (see `explain`), the trace and the diagonal are exact from as many
        products on as a sample has outputs.
    batches : iterable, optional
        As for `jacobian`.
    chunk_size : int, optional
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
    if x is None:
        J, shape = _linearised(f, params, batches, chunk_size)
        return replace(kernel(J, chunk_size), dims=shape or None)
    if batches is not None:
        raise ValueError("x and batches are both given; pass x for data that fits in memory")
    inputs(params, x)
    f = adapter(params).on_copies(f)
    K = ntk(lambda p: f(p, x), params, chunk_size=chunk_size)
    try:
        found = captured(f, params, x)
    except ValueError:  # samples mix
        found = None
    if found is None:
        return K
    known = {"trace": (trace_of, "ntk_trace"), "diagonal": (diagonal_of, "ntk_diagonal")}
    exact = {
        what: Priced(partial(of, found, params, chunk_size), found.outputs, method)
        for what, (of, method) in known.items()
    }
    return replace(K, exact=exact)


def parameter_gram(
    f: Callable[..., Any],
    params: Any,
    *,
    batches: Iterable[Any] | None = None,
    chunk_size: int | None = None,
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
    return kernel(jacobian(f, params, batches=batches, chunk_size=chunk_size).H, chunk_size)


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


def jacobian_from_pair(
    pushforward: Callable[[Array], Array],
    pullback: Callable[[Array], Array],
    shape: tuple[int, int],
    *,
    dtype: Any = None,
    xp: Any = None,
    device: Any = None,
    chunk_size: int | None = None,
) -> tk.LinearOperator:
    """The Jacobian of a network in a library that does not differentiate: two products by hand.

    Parameters
    ----------
    pushforward : callable
        ``X -> J @ X`` for a block of columns: (parameters, k) to (outputs, k).
    pullback : callable
        ``U -> J.H @ U``: (outputs, k) to (parameters, k).
    shape : tuple of int
        (outputs, parameters).
    dtype, xp, device : optional
        Of the arrays that they take and give, as for `tracekit.LinearOperator`.
    chunk_size : int, optional
        Columns handed to them at once; as many as 256 MB of parameters and outputs allow if not
        given.

    Returns
    -------
    LinearOperator
        Of that shape. `tracekit.testing.adjoint_test` tells whether the pair is one.

    Examples
    --------
    >>> import numpy as np, tracekit as tk, tracekit_ntk as tkn
    >>> x = np.ones((5, 3))  # a linear layer of one output: J = x
    >>> J = tkn.jacobian_from_pair(lambda T: x @ T, lambda U: x.T @ U, (5, 3))
    >>> float(tk.exact_trace(J @ J.H))
    15.0
    """
    for name, product in (("pushforward", pushforward), ("pullback", pullback)):
        if not callable(product):
            raise TypeError(
                f"{name} is a {type(product).__name__}; pass a function of a block of columns"
            )
    place = {"xp": xp} if xp is not None else {}
    J = tk.LinearOperator(shape, pushforward, pullback, dtype=dtype, device=device, **place)
    size = chunk(chunk_size, sum(J.shape), itemsize(J.dtype, J.xp))
    products = (in_chunks(product, size, J.xp) for product in (pushforward, pullback))
    return tk.LinearOperator(J.shape, *products, dtype=J.dtype, xp=J.xp, device=J.device)


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
    _checks.has_entries(list(zip(names, lin.sizes, strict=True)))
    J = operator(lin, chunk_size)
    rmatmat = remembering(J.H.matmat, J.xp)

    def part(start: int, size: int) -> tk.LinearOperator:
        rows = slice(start, start + size)

        def pushforward(X: Array) -> Array:
            zeros = [J.xp.zeros((k, X.shape[1]), dtype=X.dtype, device=J.device)
                     for k in (start, J.shape[1] - start - size)]  # fmt: skip
            return J.matmat(J.xp.concat([zeros[0], X, zeros[1]], axis=0))

        return tk.LinearOperator(
            (J.shape[0], size), pushforward, lambda U: rmatmat(U)[rows, :],
            dtype=J.dtype, xp=J.xp, device=J.device,
        )  # fmt: skip

    starts = [sum(lin.sizes[:i]) for i in range(len(lin.sizes))]
    return library.unflatten(params, [part(*at) for at in zip(starts, lin.sizes, strict=True)])


def difference_basis(
    f: Callable[[Any], Any],
    params: Any,
    k: int,
    *,
    rng: Any = None,
    step: float | None = None,
) -> Array:
    """A basis for ``one_sided(jacobian(f, params), ..., basis=...)`` from differences of f.

    Parameters
    ----------
    f : callable
        As for `jacobian`.
    params : tree of arrays
        As for `jacobian`.
    k : int
        Directions; ``k + 1`` evaluations of f, and no differentiation.
    rng : None, int, or generator, optional
        Of the directions.
    step : float, optional
        As for `tracekit.difference_basis`.

    Returns
    -------
    array of shape (outputs, k)
        Orthonormal columns close to the range of the Jacobian. An inexact difference costs
        accuracy, never unbiasedness: for networks whose operations have no forward mode.

    Examples
    --------
    >>> import torch, tracekit as tk, tracekit_ntk as tkn
    >>> x, w = torch.ones(5, 3), torch.ones(3, 2)
    >>> Q = tkn.difference_basis(lambda w: x @ w, w, 2, rng=0)
    >>> round(float(tk.one_sided(tkn.jacobian(lambda w: x @ w, w), 6, rng=0, basis=Q)), 3)
    30.0
    """
    library = adapter(params)
    values = [library.detached(leaf) for _, leaf in library.leaves(params)]
    xp = array_namespace(*values)
    sizes = [math.prod(leaf.shape) for leaf in values]

    def outputs(theta: Array) -> Array:
        parts = [part[0, ...] for part in cut(theta[None, :], sizes, values, xp)]
        return xp.reshape(f(library.unflatten(params, parts)), (-1,))

    theta = xp.concat([xp.reshape(leaf, (-1,)) for leaf in values])
    return tk.difference_basis(outputs, theta, k, rng=rng, step=step)


def functional(
    module: Any, params: Any = None, *, trainable: Any = True
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Split a network in a function of its parameters and inputs, and the parameters.

    Parameters
    ----------
    module : torch.nn.Module, or callable
        A module as it is now: its modes, train or eval, and its buffers stay so in `f`. Or
        ``module(params, *inputs)``, a function of a tree, in PyTorch or JAX.
    params : tree of arrays, optional
        The whole tree, for a function.
    trainable : bool, pattern, torch.nn.Module, or list of patterns and modules
        Which parameters are returned. True: those that require a gradient. False: all of them. A
        pattern such as ``"blocks.*.attn.*"``, in which ``*`` stands for anything: those with such
        names, frozen or not. A part of the module: its own, frozen or not. Of a tree, whose leaves
        are named by their keys with dots between them, True and False are all that can be
        differentiated by.

    Returns
    -------
    f : callable
        ``f(params, *inputs)``: the output at these parameters. Those left out of `params` are
        frozen as they are now.
    params : dict of str to array
        Copies of the chosen parameters, detached, by name; tied ones once. Neither f nor they touch
        the module or its gradients.

    Raises
    ------
    TypeError
        If `module` is none and no tree is given, `trainable` is no choice, or the module is sharded
        over devices (FSDP).
    ValueError
        If nothing is chosen: no parameter requires a gradient, or none has such a name.

    Examples
    --------
    >>> import torch, tracekit_ntk as tkn
    >>> f, params = tkn.functional(torch.nn.Linear(3, 2), trainable="w*")
    >>> K = tkn.ntk(lambda p: f(p, torch.ones(5, 3)), params)
    >>> list(params), K.shape
    (['weight'], (10, 10))
    """
    if isinstance(trainable, list | tuple | set) and not trainable:
        raise ValueError(f"trainable={trainable!r} chooses nothing; pass False for all parameters")
    if params is None:
        from . import _torch_modules

        if hasattr(module, "modules"):
            refuse_scattered(*module.modules(), *module.parameters(), *module.buffers())
        return _torch_modules.functional(module, trainable)
    library = adapter(params)
    leaves = {dotted(path): leaf for path, leaf in library.tree_flatten_with_path(params)[0]}
    values = {name: library.detached(leaf) if hasattr(leaf, "dtype") else leaf
              for name, leaf in leaves.items()}  # fmt: skip
    if trainable is True or trainable is False:
        chosen = [name for name, leaf in values.items() if _is_inexact(leaf)]
    else:
        chosen = matching(list(values), trainable)

    def f(some: dict[str, Any], *inputs: Any, **options: Any) -> Any:
        for name in some:
            check_name(name, values)
        whole = library.unflatten(params, {**values, **some}.values())
        return module(whole, *inputs, **options)

    return f, {name: values[name] for name in chosen}


def _linearised(
    f: Callable[..., Any], params: Any, batches: Iterable[Any] | None, chunk_size: int | None
) -> tuple[tk.LinearOperator, tuple[int, ...]]:
    """The Jacobian and the shape of the output."""
    library = adapter(params)
    if batches is not None:

        def linearise(batch: Any, known: Any = None) -> Any:
            inputs(params, batch)
            told = () if known is None else (known,)
            return library.linearise(lambda p: f(p, batch), params, *told)

        return over_batches(linearise, batches, chunk_size), ()
    lin = library.linearise(f, params)
    lin.check()
    return operator(lin, chunk_size), tuple(lin.output.shape)


def _is_inexact(leaf: Any) -> bool:
    kinds = ("real floating", "complex floating")
    return hasattr(leaf, "dtype") and bool(array_namespace(leaf).isdtype(leaf.dtype, kinds))
