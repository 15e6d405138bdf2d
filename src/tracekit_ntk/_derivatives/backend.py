"""What an engine hands on: the contract between libraries that differentiate and all above them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tracekit._arrays import Array

from .linearised import Linearised, PerSample
from .quadratic import Quadratic


class Backend(Protocol):
    """A library that differentiates, as the folder of its engine offers it.

    Trees, such as `params` and `x`, are what the library takes for one. f is ``f(params)``, or
    ``f(params, x)`` with samples on axis 0 of x and of the output, which is one array.
    """

    def tree_flatten(self, tree: Any, /) -> tuple[list[Any], Any]:
        """The leaves of a tree, and its structure, of which nothing is asked."""

    def tree_flatten_with_path(self, tree: Any, /) -> tuple[list[tuple[Any, Any]], Any]:
        """The same with each leaf's path of keys before it: what `dotted` makes a name of."""

    def leaves(self, params: Any) -> list[tuple[str, Any]]:
        """The parameters with their names.

        Raises ValueError for a tree without any, TypeError for one that is no array of the library,
        that nothing can be differentiated by, or for real and complex ones together.
        """

    def unflatten(self, params: Any, values: Any) -> Any:
        """A tree like `params`, of other leaves."""

    def detached(self, leaf: Any) -> Array:
        """A copy of a parameter that no gradient reaches."""

    def on_copies(self, f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """The same function, which may write into its x."""

    @property
    def linearise(self) -> Callable[..., Linearised]:
        """The derivative of ``f(params)`` at params: ``linearise(f, params)``.

        Takes `Linearised.known` of the same f at other inputs third, where the engine fills it.
        Raises TypeError for an output that is not one inexact array; ValueError for one that is
        empty or not finite, or that is not holomorphic in complex parameters.
        """

    @property
    def quadratic(self) -> Callable[..., Quadratic]:
        """Value and Hessian of ``loss(params)`` at params: ``quadratic(loss, params)``.

        Takes `Quadratic.known` of the same loss on other data third, where the engine fills it.
        Raises TypeError for a loss that is not one real number, or complex parameters; ValueError
        for one that is not finite.
        """

    def second_order(
        self, f: Callable[[Any], Any], params: Any
    ) -> Callable[[Array], tuple[Array, Array]]:
        """First and second derivatives of f along directions: (P, k) to twice (n, k).

        Raises what the library raises where it has no forward mode of forward mode.
        """

    def per_sample(self, f: Callable[[Any, Any], Any], params: Any, x: Any) -> PerSample:
        """The samples' own Jacobians (O, P): N of them, output (N, ...), by batched passes.

        Raises ValueError besides where samples mix, or do not lie on axis 0.
        """

    def independent(self, f: Callable[[Any, Any], Any], params: Any, x: Any) -> None:
        """Refuse samples that mix in derivatives alone, if `capture` does not see them."""

    @property
    def capture(self) -> Callable[..., Any]:
        """The Jacobian in factors, ``capture(f, params, x, whole=False)``: see `factors.Capture`.

        Raises what `per_sample` raises; with `whole` the batch is one sample, and may mix.
        """

    def reduced(
        self, found: Any, start: int, stop: int, reduce: Callable[[Any], dict[str, Array]]
    ) -> dict[str, Array]:
        """``reduce(found.uses(start, stop))`` of a `factors.Factored`: one program where compiled.

        `reduce` gives arrays with samples on axis 0, each made of that sample's uses alone, and is
        hashed: equal ones share a program.
        """

    def samples_at_once(self, found: Any) -> int:
        """How many samples `reduced` holds the cotangents of."""

    def unroll(
        self, f: Callable[[Any, Any], Array], params: Any, inputs: Array, h0: Array
    ) -> Array:
        """The states (B, T, U) that ``h = f(params, (h, x))`` runs through from h0, (B, U).

        x are the steps of inputs, (B, T, I). No gradient reaches the states.
        """

    def propagate(self, A: Array, V: Array) -> Array:
        """``y_t = v_t + A_t y_{t-1}``, of A (T, B, U, U), V (B, T, U, k); none before the first."""

    def propagate_back(self, A: Array, V: Array) -> Array:
        """``c_t = v_t + A_{t+1}^H c_{t+1}`` with none after the last: the adjoint of that."""

    def input_derivative(
        self, v: Callable[[Array], Any], x: Array, *, graph: bool = True
    ) -> tuple[Array, Callable[[Array], Array]]:
        """The value v(x), and its products of rows (k, *x.shape) with the derivative by x.

        Or with its transpose. Derivatives of the products exist where the caller differentiates,
        unless there is to be no `graph`. v returns an array of the shape of x.
        """

    def input_gradient(
        self, f: Callable[[Array], Array], *, checked: bool = False
    ) -> Callable[[Array], Array]:
        """The gradient by x of the sum of f(x), which `input_derivative` takes.

        Raises NotImplementedError, unless `checked` before, where it is seen to have no derivative
        itself, or a wrong one.
        """

    def least_precision(self, v: Callable[[Array], Any], x: Array) -> float:
        """The rounding unit of the least precise numbers that v(x) meets on the way."""

    def add_up(self, term: Callable[[Any], Array], count: int) -> Array:
        """The sum of ``term(0)``, ``term(1)``, ...: one loop in a program that is compiled."""

    def in_turn(self, product: Callable[[Array], Array], T: Array, size: int) -> Array:
        """Products of rows (k, n), `size` of them at a time, as `add_up` goes."""
