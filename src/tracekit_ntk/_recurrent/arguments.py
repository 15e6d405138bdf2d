"""Cells, inputs and initial states as they have to be, and what they are refused for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit._arrays import Array, is_array, is_traced, namespace

from .._derivatives import Backend, Linearised

Step = Callable[[Any, Any], Array]


def as_step(cell: Callable[[Any, Array, Array], Array]) -> Step:
    """The cell as a function of parameters and (state, input), whose result is looked at."""
    if not callable(cell):
        raise TypeError(
            f"`cell` must be a function (params, h, x) -> h, got a {type(cell).__name__}; for a "
            "torch.nn.Module see functional(module)"
        )

    def step(params: Any, pair: tuple[Array, Array]) -> Array:
        h, x = pair
        new = cell(params, h, x)
        if not is_array(new):
            raise TypeError(
                f"`cell` must return one array, the next state, got a {type(new).__name__}; stack "
                "the parts of a state, such as those of an LSTM, into one array"
            )
        if new.shape != h.shape or new.dtype != h.dtype:
            raise ValueError(
                f"`cell` must return a state like the one before, {tuple(h.shape)} of {h.dtype}, "
                f"got {tuple(new.shape)} of {new.dtype}; stack all parts of the state into h0, in "
                "the dtype of the parameters"
            )
        return new

    return step


def arrays(library: Backend, inputs: Any, h0: Any) -> tuple[Array, Array]:
    """Inputs (B, T, I) and initial states (B, U) as arrays of the library."""
    found = []
    for name, given in (("inputs", inputs), ("h0", h0)):
        try:
            found.append(library.detached(given))
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"`{name}` must be an array of the same library as the parameters, got a "
                f"{type(given).__name__}; convert it"
            ) from error
    inputs, h0 = found
    if inputs.ndim != 3 or 0 in inputs.shape[:2]:
        raise ValueError(
            f"`inputs` must be of shape (samples, steps, inputs), got {tuple(inputs.shape)}; add "
            "an axis, or swap those of time and samples"
        )
    if h0.ndim != 2 or 0 in h0.shape or h0.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"`h0` must be of shape (samples, units), with the {inputs.shape[0]} samples of "
            f"`inputs`, got {tuple(h0.shape)}; repeat it for every sample"
        )
    if not namespace(h0).isdtype(h0.dtype, ("real floating", "complex floating")):
        raise TypeError(
            f"`h0` must be of floating-point numbers, got {h0.dtype}; convert it to the dtype of "
            "the parameters"
        )
    return inputs, h0


def check_finite(states: Array) -> None:
    """Refuse states that have no derivative."""
    if is_traced(states):
        return
    xp = namespace(states)
    good = [bool(x) for x in xp.all(xp.isfinite(states), axis=(0, 2))]
    if not all(good):
        raise ValueError(
            f"the states are NaN or infinite from step {good.index(False) + 1} of {len(good)} on; "
            "look at `inputs`, `h0` and the parameters first"
        )


def run_again(
    library: Backend, step: Step, params: Any, pairs: tuple[Array, Array], samples: int
) -> Array:
    """The states after one step of all pairs at once; of one, where there are no more than that."""
    h, x = pairs
    if h.shape[0] == samples:
        h, x = h[:1, :], x[:1, :]
    try:
        return library.unroll(step, params, x[:, None, :], h)[:, 0, :]
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ValueError(
            f"`cell` runs on {samples} samples, but not on {h.shape[0]} ({reason}); it is run on "
            "those of all steps at once, so pass what belongs to a sample as part of `inputs`"
        ) from error


def check_same(again: Array, states: Array, eps: float) -> None:
    """Refuse cells that give other states beside other samples than step by step."""
    if is_traced(again):
        return
    xp, states = namespace(states), states[: again.shape[0], :]
    off = float(xp.max(xp.abs(again - states)))
    size = float(xp.max(xp.abs(states)))
    if not off <= eps**0.5 * size:
        raise ValueError(
            "`cell` gives other states when it is run again, beside other samples (they differ by "
            f"{off:.1e}, the largest state is {size:.1e}), as with dropout, noise, BatchNorm in "
            "training mode or a counter inside; put the module in eval mode, or pass noise that is "
            "drawn once as part of `inputs`"
        )


def check_holomorphic(linearise: Callable[[], Linearised]) -> Linearised:
    """Refuse cells whose complex states have no complex derivative by the states before."""
    try:
        return linearise()
    except ValueError as error:
        if "holomorphic" not in str(error):
            raise
        raise ValueError(
            "`cell` is not holomorphic in its complex state, so that steps have no complex "
            "derivatives; pass real and imaginary parts side by side, as one real state"
        ) from error


def axes_of(axis: Any) -> tuple[int, ...]:
    """Those of 0 (samples), 1 (steps) and 2 (units) that are named."""
    given = axis if isinstance(axis, tuple | list) else (axis,)
    if not all(isinstance(a, int) and not isinstance(a, bool) and -3 <= a < 3 for a in given):
        raise ValueError(
            "`axis` must name axes of the states, 0 (samples), 1 (steps) or 2 (units), got "
            f"{axis!r}"
        )
    found = tuple(sorted({a % 3 for a in given}))
    if len(found) < len(given):
        raise ValueError(f"`axis` must name each axis once, got {axis!r}")
    return found
