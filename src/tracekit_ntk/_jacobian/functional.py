"""Modules and trees as functions of their chosen parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._backend import adapter, refuse_scattered
from .._derivatives import check_name, dotted, matching
from .jacobian import _is_inexact


def functional(
    module: Any, params: Any = None, *, trainable: Any = True
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Split a network in a function of its parameters and inputs, and the parameters.

    Parameters
    ----------
    module : torch.nn.Module, or callable
        A module as it is now: its modes, train or eval, and its buffers stay so in `f`. Or
        ``module(params, *inputs)``, a function of a tree, in PyTorch or JAX. Of a
        DistributedDataParallel, the module in it, whose parameters have names without "module.".
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
        from .._torch import modules

        if hasattr(module, "modules"):
            refuse_scattered(*module.modules(), *module.parameters(), *module.buffers())
        return modules.functional(module, trainable)
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
