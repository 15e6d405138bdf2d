"""A network's Jacobian in factored form, and what is computed from it without forming it."""

from __future__ import annotations

from typing import Protocol

from tracekit._arrays import Array

from ._factors import Dense, Head, Lookup, Outer, Use, dense, stack

__all__ = ["Capture", "Dense", "Factored", "Lookup", "Outer", "Use", "dense", "stack"]


class Factored(Protocol):
    """A Jacobian in factors, from which traces, diagonals and kernels are made."""

    samples: int
    outputs: int  # of each sample
    output_shape: tuple[int, ...]  # of one sample; of the batch where that is the sample
    numbers: int  # of all cotangents that one output of one sample has
    bytes_at_once: int  # of cotangents, where no chunk size is asked for
    sizes: dict[str, int]  # entries of every parameter, in the order of the tree

    @property
    def head(self) -> Head | None:
        """The linear map from fewer features that the outputs are, if that is known for certain.

        It has been held to a plain gradient; its body is a capture whose outputs are the features.
        """

    def uses(self, start: int, stop: int) -> dict[str, list[Use]]:
        """All uses of every parameter, for the outputs start to stop of every sample.

        The outputs of a sample are counted in C order. A parameter that these outputs cannot reach
        has an empty list; positions that they cannot reach may be left out.
        """

    def combined(self, V: Array) -> dict[str, list[Use]]:
        """The same for k combinations ``V^H y`` of each sample's own outputs, V (N, O, k).

        Or (1, O, k) of combinations that all samples share.
        """

    @property
    def report(self) -> list[tuple[str, str, int, str]]:
        """Every read: parameter, operation, positions, why its Jacobian is formed (or "")."""


class Capture(Factored, Protocol):
    """What a capture gives: one forward pass of a network, ready for reverse passes.

    With whole=True the batch is one sample: samples == 1, outputs == N * O.
    """

    @property
    def output(self) -> Array:
        """What f gave for the whole batch."""

    def outline(self) -> dict[str, list[Use]]:
        """Uses for all outputs, whose shapes alone are right: no pass, to count costs by."""
