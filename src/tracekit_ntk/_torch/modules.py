"""PyTorch modules as functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.func import functional_call

from tracekit._arrays import Array

from .._derivatives import check_name, matching
from .passes import hold, normal


def functional(module: torch.nn.Module, trainable: Any) -> tuple[Callable[..., Any], Any]:
    """A module as a function of parameters, and those of them that are chosen."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"functional got a {type(module).__name__}; pass a torch.nn.Module, or write f(params, "
            "x) yourself"
        )
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):
        module = module.module  # whose forward waits for no other process
    with torch.inference_mode(False):
        state = {name: p.detach().clone() for name, p in module.named_parameters()}
        buffers = {name: normal(b.detach()).clone() for name, b in module.named_buffers()}
    modes = [(part, part.training) for part in module.modules()]
    whole = _Whole(module)

    def f(params: dict[str, Array], *inputs: Any, **options: Any) -> Any:
        for name in params:
            check_name(name, state)
        fresh = {name: b.clone() for name, b in buffers.items()}  # training mode writes into them
        tensors = {f"module.{name}": p for name, p in {**state, **fresh, **params}.items()}

        def inside(run: Callable[[], Any]) -> Any:
            with _in_modes(modes):
                return functional_call(whole, tensors, (run,))

        hold(inside)
        return inside(lambda: module(*inputs, **options))

    return f, {name: state[name] for name in _chosen(module, trainable)}


def _chosen(module: torch.nn.Module, trainable: Any) -> list[str]:
    """Names of parameters; of tied ones the first."""
    own = dict(module.named_parameters())
    if trainable is False:
        return list(own)
    if trainable is True:
        free = [name for name, p in own.items() if p.requires_grad]
        if not free:
            raise ValueError(
                f"no parameter of the {type(module).__name__} requires a gradient; pass "
                "trainable=False for all of them, or a pattern of their names"
            )
        return free
    parts = list(trainable) if isinstance(trainable, list | tuple | set) else [trainable]
    chosen = set()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            inside = {id(p) for p in part.parameters()}
            found = {id(p) for p in own.values()} & inside
            if not found:
                raise ValueError(
                    f"the {type(part).__name__} passed as trainable has no parameter of the "
                    f"{type(module).__name__}; pass one of its submodules"
                )
            chosen |= found
        else:  # tied parameters by any of their names
            every = dict(module.named_parameters(remove_duplicate=False))
            chosen |= {id(every[name]) for name in matching(list(every), part)}
    return [name for name, p in own.items() if id(p) in chosen]


class _Whole(torch.nn.Module):  # type: ignore[misc]
    """Runs something while the parameters of a module are others."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, run: Callable[[], Any]) -> Any:
        """What `run` gives."""
        return run()


@contextmanager
def _in_modes(modes: list[tuple[torch.nn.Module, bool]]) -> Iterator[None]:
    """Every part in the mode it is noted with; afterwards in the one that it was in."""
    before = [(part, part.training) for part, _ in modes]
    for part, training in modes:
        part.training = training
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
