r"""Losses of a network's outputs: values, gradients and roots of their Hessians.

All are sums over samples, never means: divide by the number of samples for those of a mean. What is
needed of a loss of your own is said in `tracekit_ntk.ggn`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit._arrays import Array, constant, device_of, is_array, is_traced, namespace

__all__ = ["Loss", "logistic", "softmax_cross_entropy", "squared_error"]


@dataclass(frozen=True, eq=False)
class HessianRoot:
    """Roots of the Hessian by samples, ``S = diag(scale) - left right^T``, that are not formed.

    Parameters
    ----------
    scale : (N, O) array
        The diagonal part.
    left, right : (N, O) array, optional
        The part of rank one; none if not given.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit_ntk.losses import HessianRoot
    >>> HessianRoot(np.asarray([[1.0, 2.0]])).columns(1, 2)[0]
    array([[0.],
           [2.]])
    """

    scale: Array
    left: Array | None = None
    right: Array | None = None

    @property
    def count(self) -> int:
        """Columns of each sample's root, R."""
        return int(self.scale.shape[1])

    @property
    def squares(self) -> Array:
        """Squared Frobenius norms of the roots, which are traces of the Hessians, (N,)."""
        xp, scale = namespace(self.scale), self.scale
        if self.left is None or self.right is None:
            return xp.sum(scale * scale, axis=1)
        left, right = self.left**2, self.right**2
        others = xp.sum(right, axis=1, keepdims=True) - right
        on = scale - self.left * self.right
        return xp.sum(on * on + left * xp.where(others > 0, others, 0.0), axis=1)

    def take(self, rows: slice) -> HessianRoot:
        """The roots of some samples."""
        scale, left, right = (
            a if a is None else a[rows, :] for a in (self.scale, self.left, self.right)
        )
        return HessianRoot(scale, left, right)

    def columns(self, start: int, stop: int) -> Array:
        """Columns start to stop of every sample's root, (N, O, stop - start)."""
        xp = namespace(self.scale)
        numbers = xp.arange(self.count, device=device_of(self.scale))
        here = numbers[:, None] == numbers[start:stop]
        S = xp.astype(here, self.scale.dtype) * self.scale[:, :, None]
        if self.left is None or self.right is None:
            return S
        return S - self.left[:, :, None] * self.right[:, None, start:stop]

    def product(self, V: Array) -> Array:
        """``S V``, (N, R, k) to (N, O, k)."""
        return self._product(V, self.left, self.right)

    def adjoint_product(self, U: Array) -> Array:
        """``S^T U``, (N, O, k) to (N, R, k)."""
        return self._product(U, self.right, self.left)

    def _product(self, V: Array, left: Array | None, right: Array | None) -> Array:
        scaled = self.scale[:, :, None] * V
        if left is None or right is None:
            return scaled
        xp = namespace(V)
        return scaled - left[:, :, None] * xp.sum(right[:, :, None] * V, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss of outputs (N, ..., O) and targets, a sum over all axes but the last.

    Parameters
    ----------
    value : callable
        ``value(outputs, y)``, a 0-d array, which calling the record gives.
    gradient : callable
        ``gradient(outputs, y)``, the gradient by the outputs, of their shape.
    root : callable
        ``root(outputs)``, the `HessianRoot` by each row of outputs (N, O), of which `hessian_root`
        gives all columns.

    Notes
    -----
    Outputs are real; half precisions are computed with in float32. Everything can be
    differentiated, also where probabilities are 0 or 1 to rounding. What of targets is not allowed
    is refused where their values are known, and gives NaN in code that JAX compiles.

    Examples
    --------
    >>> import numpy as np
    >>> from tracekit_ntk.losses import softmax_cross_entropy
    >>> outputs = np.zeros((1, 2))
    >>> round(float(softmax_cross_entropy(outputs, np.asarray([1]))), 4)
    0.6931
    >>> S = softmax_cross_entropy.hessian_root(outputs)
    >>> (S @ S.swapaxes(1, 2))[0].round(4)
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """

    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    root: Callable[[Array], HessianRoot]

    def __call__(self, outputs: Array, y: Array) -> Array:
        """The loss, a 0-d array, summed over samples."""
        return self.value(outputs, y)

    def hessian_root(self, outputs: Array) -> Array:
        """Roots of the Hessian by each sample's outputs.

        Parameters
        ----------
        outputs : (N, O) array
            Of N samples, or of all positions of all samples.

        Returns
        -------
        (N, O, R) array
            S, where ``S S^T`` is the Hessian. Here R is O.
        """
        root = self.root(outputs)
        return root.columns(0, root.count)


def _squared_value(outputs: Array, y: Array) -> Array:
    difference = _squared_gradient(outputs, y)
    return namespace(difference).sum(difference * difference) / 2


def _squared_gradient(outputs: Array, y: Array) -> Array:
    outputs = _wide(outputs)
    return outputs - _elementwise(outputs, y)


def _squared_root(outputs: Array) -> HessianRoot:
    outputs = _wide(outputs)
    return HessianRoot(namespace(outputs).ones_like(outputs))


def _softmax_value(outputs: Array, y: Array) -> Array:
    outputs = _wide(outputs)
    return -namespace(outputs).sum(_probabilities(outputs, y) * _log_softmax(outputs))


def _softmax_gradient(outputs: Array, y: Array) -> Array:
    outputs = _wide(outputs)
    y = _probabilities(outputs, y)
    xp = namespace(outputs)
    return xp.exp(_log_softmax(outputs)) * xp.sum(y, axis=-1, keepdims=True) - y


def _softmax_root(outputs: Array) -> HessianRoot:
    log_p = _log_softmax(_wide(outputs))
    xp = namespace(log_p)
    root = xp.exp(log_p / 2)  # the derivative of a root of exp(log_p) is infinite at 0
    return HessianRoot(root, xp.exp(log_p), root)


def _logistic_value(outputs: Array, y: Array) -> Array:
    outputs = _wide(outputs)
    y = _elementwise(outputs, y)
    return namespace(outputs).sum(_softplus(outputs) - y * outputs)


def _logistic_gradient(outputs: Array, y: Array) -> Array:
    outputs = _wide(outputs)
    return namespace(outputs).exp(-_softplus(-outputs)) - _elementwise(outputs, y)


def _logistic_root(outputs: Array) -> HessianRoot:
    outputs = _wide(outputs)
    logarithm = _softplus(outputs) + _softplus(-outputs)
    return HessianRoot(namespace(outputs).exp(-logarithm / 2))


squared_error = Loss(_squared_value, _squared_gradient, _squared_root)
softmax_cross_entropy = Loss(_softmax_value, _softmax_gradient, _softmax_root)
logistic = Loss(_logistic_value, _logistic_gradient, _logistic_root)


def _softplus(z: Array) -> Array:
    """``log(1 + exp z)``, all of whose derivatives are right and finite, at 0 and far from it."""
    xp = namespace(z)
    m = xp.where(constant(z) > 0, constant(z), xp.zeros_like(z))
    return m + xp.log1p(xp.exp(z - m) + xp.expm1(-m))


def _log_softmax(z: Array) -> Array:
    xp = namespace(z)
    z = z - xp.max(constant(z), axis=-1, keepdims=True)
    return z - xp.log(xp.sum(xp.exp(z), axis=-1, keepdims=True))


def _wide(outputs: Array) -> Array:
    """Real outputs, in single precision at least."""
    xp = namespace(outputs)
    if not xp.isdtype(outputs.dtype, "real floating"):
        raise TypeError(
            f"`outputs` must be real floating-point numbers, got {outputs.dtype}; convert them, "
            "complex ones to their real and imaginary parts"
        )
    return xp.astype(outputs, xp.float32) if xp.finfo(outputs.dtype).bits < 32 else outputs


def _elementwise(outputs: Array, y: Any) -> Array:
    """Targets, one for each output."""
    y = _beside(outputs, y)
    if y.shape != outputs.shape:
        raise ValueError(
            f"`y` must be of the outputs' shape {tuple(outputs.shape)}, got {tuple(y.shape)}; "
            "reshape one of them"
        )
    return namespace(outputs).astype(y, outputs.dtype, copy=False)


def _probabilities(outputs: Array, y: Any) -> Array:
    """Probabilities of classes, of labels 1 for the class and 0 for the others."""
    y = _beside(outputs, y)
    xp = namespace(outputs)
    if outputs.ndim < 2:
        raise ValueError(
            f"`outputs` must have an axis of classes last, got {tuple(outputs.shape)}; "
            "for one logit of each sample use tracekit_ntk.losses.logistic"
        )
    if not xp.isdtype(y.dtype, "integral"):
        return _summing_to_one(_elementwise(outputs, y))
    if y.shape != outputs.shape[:-1]:
        raise ValueError(
            f"`y` must hold one class for each row of outputs {tuple(outputs.shape)}, got integers "
            f"of shape {tuple(y.shape)}; classes are on the last axis of outputs"
        )
    O = outputs.shape[-1]  # noqa: E741
    allowed = (y >= 0) & (y < O)
    if not is_traced(allowed) and not bool(xp.all(allowed)):
        raise ValueError(
            f"`y` must hold classes from 0 to {O - 1}, got {int(xp.min(y))} to {int(xp.max(y))}; "
            "leave samples without a class out"
        )
    here = y[..., None] == xp.arange(O, device=device_of(outputs))
    return xp.where(allowed[..., None], xp.astype(here, outputs.dtype), xp.nan)


def _summing_to_one(y: Array) -> Array:
    """Probabilities themselves, after a look at their rows; NaN in compiled code."""
    xp = namespace(y)
    off = xp.abs(xp.sum(y, axis=-1) - 1)
    allowed = off <= float(xp.finfo(y.dtype).eps) ** 0.5
    if not is_traced(allowed) and not bool(xp.all(allowed)):
        raise ValueError(
            "`y` must hold rows of probabilities, each with the sum 1, got a sum that is off by "
            f"{float(xp.max(off)):.3g}; leave samples without a class out, weight others by "
            "a loss of your own"
        )
    return xp.where(allowed[..., None], y, xp.nan)


def _beside(outputs: Array, y: Any) -> Array:
    y = y if is_array(y) else np.asarray(y)
    return namespace(outputs).asarray(y, device=device_of(outputs))
