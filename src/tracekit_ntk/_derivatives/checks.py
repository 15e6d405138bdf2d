"""What functions and parameters must be like to have a Jacobian, said in one sentence each."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Sequence
from typing import Any

NO_BATCHES = "batches is empty; pass at least one batch"


def positive(name: str, value: Any) -> int:
    """An argument that counts something, as an int of 1 or more."""
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(
            f"`{name}` must be a positive integer, got {value!r}; pass an int of 1 or more"
        )
    return count


def parameters(named: Sequence[tuple[str, Any]], is_array: Any, is_inexact: Any) -> None:
    """Refuse parameter trees that nothing can be differentiated by."""
    if not named:
        raise ValueError("the parameter tree is empty; pass at least one array")
    for name, leaf in named:
        if not is_array(leaf):
            raise TypeError(
                f"parameter {name} is a {type(leaf).__name__}, not an array of the same library as "
                "the others; convert it, or keep it out of the tree (close over it)"
            )
        if not is_inexact(leaf):
            raise TypeError(
                f"parameter {name} has dtype {leaf.dtype}, which nothing can be differentiated by; "
                "keep it out of the tree (close over it)"
            )


def no_library(params: Any) -> str:
    """What to pass where no library known here differentiates by the parameters."""
    return (
        f"params, a {type(params).__name__}, holds no PyTorch or JAX array, and no other library "
        "differentiates; pass a tree of such arrays (a dict, list, ...; for a torch.nn.Module see "
        "functional(module)), or both products to jacobian_from_pair"
    )


_SHARDED = (
    "the module is sharded (FSDP), so that its parameters lie on several devices, which is not "
    "supported; pass the module without fully_shard, with the parameters that get_model_state_dict"
    "(module, options=StateDictOptions(full_state_dict=True)) of "
    "torch.distributed.checkpoint.state_dict gives"
)
_SCATTERED = {
    "DTensor": "a DTensor is among the parameters or inputs, whose parts lie on several devices, "
    "which is not supported; pass tensors on one device, as x.full_tensor() is",
    "FSDPModule": _SHARDED,
    "FullyShardedDataParallel": _SHARDED,
}


def scattered(kind: type) -> None:
    """Refuse PyTorch's tensors and modules whose parts lie on several devices."""
    for base in kind.__mro__:
        if base.__name__ in _SCATTERED and base.__module__.startswith("torch.distributed"):
            raise TypeError(_SCATTERED[base.__name__])


def output(y: Any, is_array: Any, is_inexact: Any) -> None:
    """Refuse outputs that are not one array of real or complex numbers."""
    if not is_array(y):
        made = f"{type(y).__name__} of {len(y)}" if isinstance(y, tuple | list | dict) else type(y)
        raise TypeError(
            f"f returned a {made}, not one array; return one, such as the logits, or several "
            "flattened and concatenated"
        )
    if not is_inexact(y):
        raise TypeError(
            f"f returned dtype {y.dtype}, which has no derivative; return the scores before any "
            "argmax or rounding"
        )
    if 0 in y.shape:
        raise ValueError(f"f returned an empty array of shape {tuple(y.shape)}")


def depends(does: bool) -> None:
    """Say that a kernel is zero."""
    if not does:
        warnings.warn(
            "the output of f does not depend on the parameters: its Jacobian, the kernel and the "
            "trace are 0",
            stacklevel=_outside(),
        )


def finite(all_finite: bool) -> None:
    """Refuse a forward pass that has already failed."""
    if not all_finite:
        raise ValueError(
            "f returned NaN or infinity at these parameters, where it has no Jacobian; look at its "
            "inputs and parameters first"
        )


def finite_gradient(all_finite: bool, name: str) -> None:
    """Refuse a point where a derivative does not exist."""
    if not all_finite:
        raise ValueError(
            f"the gradient by {name or 'params'} is NaN or infinite at this point, where f has no "
            "Jacobian, as a square root or a norm at zero; add a small number inside it"
        )


def reentrant(names: set[str]) -> None:
    """Refuse graphs that hide what they read."""
    if "CheckpointFunctionBackward" in names:
        raise NotImplementedError(
            "f runs torch.utils.checkpoint with use_reentrant=True, which hides the parameters "
            "that it reads from torch.autograd.grad; pass use_reentrant=False"
        )


def slow(reasons: dict[str, str], unbatched: bool = False) -> None:
    """Warn of parameters whose Jacobians are formed, and of reverse passes one by one."""
    told = []
    if reasons:
        few = [f"{name or 'params'} ({why})" for name, why in list(reasons.items())[:5]]
        more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        told.append(
            f"{', '.join(few)}{more}: differentiated apart from the rest, by a reverse pass for "
            "each output of each sample, which is right, but slower; explain(...) lists all"
        )
    if unbatched:
        told.append(
            "PyTorch's batched reverse passes through f are wrong, so that all go one by one"
        )
    if told:
        warnings.warn("; ".join(told), stacklevel=_outside())


def one_field(complex_parameters: Sequence[bool]) -> None:
    """Refuse trees of real and complex parameters."""
    if any(complex_parameters) and not all(complex_parameters):
        raise TypeError(
            "the tree mixes real and complex parameters, between which no linear map over one "
            "field exists; pass complex ones as their real and imaginary parts"
        )


def holomorphic(holds: bool) -> None:
    """Refuse functions of complex parameters without a complex derivative."""
    if not holds:
        raise ValueError(
            "f is not holomorphic in its complex parameters, so that no complex Jacobian exists; "
            "pass their real and imaginary parts as real parameters"
        )


def samples(shapes: Sequence[tuple[int, ...]], output_shape: tuple[int, ...]) -> None:
    """Refuse inputs whose sample axis is not that of the output."""
    if len({shape[:1] for shape in (*shapes, output_shape)}) != 1 or not shapes or not output_shape:
        given = " and ".join(map(str, dict.fromkeys(shapes))) or "none"
        raise ValueError(
            f"x of shape {given} and an output of shape {output_shape} are incompatible; axis 0 "
            "of both must run over the same samples"
        )


def independent(deviation: float, allowed: float) -> None:
    """Refuse functions that mix samples."""
    if not deviation <= allowed:
        raise ValueError(
            f"f treats samples differently in a batch than one by one (outputs differ by "
            f"{deviation:.1e} of the largest), so that samples have no kernels of their own, "
            "as with BatchNorm or dropout in training mode; put the module in eval mode, or use "
            "ntk(...) on the whole batch"
        )


def coupled() -> str:
    """Why samples that mix in derivatives alone are refused."""
    return (
        "samples are coupled: gradients of a sample's outputs depend on what the other samples "
        "are, though its outputs do not (a gate of zeros, or what is detached), so that samples "
        "have no kernels of their own; use ntk(...) on the whole batch"
    )


DISAGREES = "its factors do not sum up to its gradient"
MIXED_GRADIENTS = (
    "gradients of f by a batch are not the sum of those by its samples, so that samples have no "
    "kernels of their own, as with BatchNorm in training mode; put the module in eval mode, or "
    "use ntk(...) on the whole batch"
)


def alone(error: Exception) -> ValueError:
    """The error of a function that does not run on single samples."""
    reason = (str(error).strip() or "no message").splitlines()[0]
    return ValueError(
        f"f could not be run sample by sample ({type(error).__name__}: {reason}), so that samples "
        "have no kernels of their own, as with BatchNorm or dropout in training mode; put the "
        "module in eval mode, or use ntk(...) on the whole batch"
    )


def modes_differ() -> str:
    """What makes forward and reverse mode disagree."""
    return (
        "forward and reverse mode disagree about the derivative of f: a part of it runs under "
        "torch.no_grad, which forward mode sees through, or is random, or a rule of its own is "
        "wrong; use .detach() there, keep the parameters that it reads out of the tree, or use "
        "what needs reverse mode alone, such as hutchinson(ntk(...))"
    )


def repeatable(deviation: float, allowed: float) -> None:
    """Refuse functions that give something else each time."""
    if not deviation <= allowed:
        raise ValueError(
            f"two runs of f at the same parameters differ (by {deviation:.1e} of the largest "
            "output), so that it has no one Jacobian, as with dropout in training mode or noise; "
            "put the module in eval mode, or draw the noise once and close over it"
        )


def inputs(x: Any, found: bool) -> None:
    """Refuse samples that are no arrays."""
    if not found:
        raise no_arrays(x)


def no_arrays(x: Any) -> Exception:
    """The error of samples that are no arrays."""
    nothing = x is None or (isinstance(x, list | tuple | dict) and not x)
    return (ValueError if nothing else TypeError)(
        f"x is {'empty' if nothing else f'a {type(x).__name__}'}, not an array or a tree of "
        "arrays; pass inputs with the samples on axis 0, of a DataLoader one batch"
    )


def no_forward_mode(error: Exception) -> str:
    """What to do where no product with J can be had."""
    reason = (str(error).strip() or "no message").splitlines()[0][:120]
    return (
        f"forward mode is missing for an operation of f ({reason}); use what needs the pullback "
        "alone: hutchinson(ntk(...)), one_sided_summary(jacobian(...)), one_sided(jacobian(...)) "
        "with a basis from difference_basis; or what needs no product: factored_ntk, ntk_trace, "
        "ntk_norm, kernel"
    )


def scalar(y: Any, is_array: bool, is_complex: bool) -> None:
    """Refuse losses that are not one real number."""
    if not is_array or tuple(y.shape) != ():
        made = f"an array of shape {tuple(y.shape)}" if is_array else f"a {type(y).__name__}"
        raise TypeError(
            f"loss returned {made}, not one number as an array without axes; return the sum, or "
            "the mean, over samples"
        )
    if is_complex:
        raise TypeError(
            f"loss returned dtype {y.dtype}, and complex numbers have no order; return a real one, "
            "such as the sum of squared absolute values"
        )


def real_parameters(are_complex: bool) -> None:
    """Refuse Hessians by complex parameters."""
    if are_complex:
        raise TypeError(
            "a real loss has no complex Hessian by complex parameters; pass their real and "
            "imaginary parts as real parameters"
        )


def flat(depends: bool) -> None:
    """Say that a Hessian is zero."""
    if not depends:
        warnings.warn(
            "the loss does not depend on the parameters: its Hessian is 0", stacklevel=_outside()
        )


def same_loss(deviation: float, allowed: float) -> None:
    """Refuse losses that are something else each time."""
    if not deviation <= allowed:
        raise ValueError(
            f"two runs of loss at the same parameters differ (by {deviation:.1e} of its value), so "
            "that it has no one Hessian, as with dropout in training mode or noise; put the module "
            "in eval mode, or draw the noise once and close over it"
        )


def finite_loss(all_finite: bool) -> None:
    """Refuse losses that have failed already."""
    if not all_finite:
        raise ValueError(
            "loss returned NaN or infinity at these parameters, where it has no Hessian; look at "
            "its inputs and parameters first"
        )


def differenced(reason: str, deviation: float, allowed: float) -> None:
    """Tell of Hessians by differences of gradients; refuse those that are not smooth."""
    if not deviation <= allowed:
        raise NotImplementedError(
            f"loss has no second derivative here ({reason}), and differences of its gradients are "
            f"none either: two that should agree are {deviation:.1g} of their size apart; replace "
            "the operation, or pass parameters in higher precision"
        )
    warnings.warn(
        f"products with the Hessian are differences of gradients, column by column, right to about "
        f"{deviation:.1g}: {reason}",
        stacklevel=_outside(),
    )


def reason_of(error: Exception | None) -> str:
    """Why there is no second derivative."""
    if error is None:
        return "a rule of its own has none"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def no_second_derivative(name: str, reason: str) -> str:
    """What to do where a rule of a function has no derivative."""
    return (
        f"{name} has no second derivative in PyTorch ({reason}); write the backward of its "
        "torch.autograd.Function in operations on tensors that forward saved, inputs or outputs, "
        "without once_differentiable, and pass what torch.compile compiled as it was before"
    )


def no_gradient() -> str:
    """What to do where nothing can be differentiated twice."""
    return (
        "loss runs a while loop, through which JAX has no reverse mode; use lax.scan, or "
        "lax.fori_loop with static bounds"
    )


def no_reverse_mode() -> str:
    """What to do where no pullback can be had."""
    return (
        "f runs a while loop, through which JAX has no reverse mode; use lax.scan, or "
        "lax.fori_loop with static bounds, or what takes forward mode here: ntk_trace, "
        "ntk_diagonal, ntk_norm, kernel, factored_ntk"
    )


def has_entries(sizes: Sequence[tuple[str, int]]) -> None:
    """Refuse parameters of which there is no operator."""
    for name, size in sizes:
        if size == 0:
            raise ValueError(
                f"parameter {name} has no entries, and so no Jacobian of its own; leave it out of "
                "the tree (close over it)"
            )


def _outside() -> int:
    """How many frames up the caller of this package is, for warnings."""
    own, level, frame = __name__.partition(".")[0], 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == own:
        level, frame = level + 1, frame.f_back
    return level
