"""Kernels of recurrent states beside the whole Jacobian of the unrolled network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn
from tracekit_ntk._recurrent import transitions

Array = Any
Cell = Callable[[Any, Array, Array], Array]
AXES = list(chain.from_iterable(combinations(range(3), k) for k in range(4)))
every_library = pytest.mark.parametrize("library", ["torch", "jax"])


# Cells --------------------------------------------------------------------------------------------


def sigmoid(z: Array, xp: Any) -> Array:
    return 1 / (1 + xp.exp(-z))


def rnn(xp: Any) -> Cell:
    def cell(p: Any, h: Array, x: Array) -> Array:
        return xp.tanh(h @ p["w"] + x @ p["in"]["u"] + p["in"]["b"])

    return cell


def gru(xp: Any) -> Cell:
    def cell(p: Any, h: Array, x: Array) -> Array:
        U = h.shape[1]
        i, j = x @ p["u"] + p["b_u"], h @ p["w"] + p["bw"]
        r, z = sigmoid(i[:, :U] + j[:, :U], xp), sigmoid(i[:, U : 2 * U] + j[:, U : 2 * U], xp)
        n = xp.tanh(i[:, 2 * U :] + r * j[:, 2 * U :])
        return n + z * (h - n)

    return cell


def lstm(xp: Any) -> Cell:
    """Output and cell side by side in one state."""

    def cell(p: Any, state: Array, x: Array) -> Array:
        U = state.shape[1] // 2
        a = x @ p["u"] + state[:, :U] @ p["w"] + p["b"]
        i, f, g, o = (a[:, k * U : (k + 1) * U] for k in range(4))
        c = sigmoid(f, xp) * state[:, U:] + sigmoid(i, xp) * xp.tanh(g)
        return xp.concatenate([sigmoid(o, xp) * xp.tanh(c), c], 1)

    return cell


def twice(xp: Any) -> Cell:
    """Reads a weight twice, once transposed, and one entry of a table; another is not read."""

    def cell(p: Any, h: Array, x: Array) -> Array:
        return xp.tanh(xp.tanh(h @ p["w"]) @ p["w"].T + p["e"][x[:, 0]])

    return cell


def rotation(xp: Any) -> Cell:
    """A parameter that no rule is known for."""

    def cell(p: Any, h: Array, x: Array) -> Array:
        eye = xp.eye(len(p["s"]), dtype=p["s"].dtype)
        return xp.tanh(h @ xp.linalg.inv(eye + p["s"] - p["s"].T) + x @ p["u"])

    return cell


def without_state(xp: Any) -> Cell:
    return lambda p, h, x: 0 * h + xp.tanh(x @ p["u"])


def holomorphic(xp: Any) -> Cell:
    return lambda p, h, x: 0.3 * (h * p["l"] + xp.sin(h @ p["w"]) + x @ p["u"])


@dataclass(frozen=True)
class Case:
    """A cell, shapes of its parameters, and of samples, steps, units and inputs."""

    make: Callable[[Any], Cell]
    shapes: Callable[[int, int], Any]
    sizes: tuple[int, int, int, int] = (3, 4, 5, 2)
    kind: str = "float64"
    ids: bool = False
    initial: bool = False

    def drawn(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """Parameters, inputs, initial state."""
        rng, (B, T, U, D) = np.random.default_rng(0), self.sizes

        def array(*shape: int) -> np.ndarray:
            z = rng.standard_normal(shape)
            return (z + 1j * rng.standard_normal(shape) if "complex" in self.kind else z).astype(
                self.kind
            )

        def tree(shapes: Any) -> Any:
            if isinstance(shapes, dict):
                return {k: tree(s) for k, s in shapes.items()}
            return array(*shapes) / (1 + len(shapes)) ** 0.5

        x = rng.integers(0, 6, (B, T, D)) if self.ids else array(B, T, D)
        return tree(self.shapes(U, D)), x, array(B, U)


def of_rnn(U: int, D: int) -> Any:
    return {"w": (U, U), "in": {"u": (D, U), "b": (U,)}}


CASES = {
    "rnn": Case(rnn, of_rnn),
    "rnn initial": Case(rnn, of_rnn, initial=True),
    "gru": Case(
        gru, lambda U, D: {"w": (U, 3 * U), "u": (D, 3 * U), "bw": (3 * U,), "b_u": (3 * U,)},
        (2, 5, 3, 2),
    ),
    "lstm": Case(
        lstm, lambda U, D: {"w": (U // 2, 2 * U), "u": (D, 2 * U), "b": (2 * U,)}, (2, 3, 4, 2)
    ),
    "twice": Case(
        twice, lambda U, D: {"w": (U, U), "e": (6, U), "not": (2,)}, (3, 4, 3, 1), ids=True
    ),
    "no rule": Case(rotation, lambda U, D: {"s": (U, U), "u": (D, U)}, (2, 3, 3, 2)),
    "no state": Case(without_state, lambda U, D: {"u": (D, U)}, (2, 3, 2, 2)),
    "one step": Case(rnn, of_rnn, (3, 1, 4, 2), initial=True),
    "one sample, one unit": Case(rnn, of_rnn, (1, 4, 1, 1)),
    "complex": Case(
        holomorphic, lambda U, D: {"l": (U,), "w": (U, U), "u": (D, U)}, (2, 3, 3, 2),
        kind="complex128", initial=True,
    ),
}  # fmt: skip


def placed(library: str, case: Case, dtype: str | None = None) -> tuple[Cell, Any, Array, Array]:
    """The case in a library."""
    xp = namespace(library)

    def array(a: np.ndarray) -> Array:
        return xp.asarray(a.astype(dtype) if dtype and a.dtype.kind == "f" else a)

    def tree(p: Any) -> Any:
        return {k: tree(v) for k, v in p.items()} if isinstance(p, dict) else array(p)

    params, x, h0 = case.drawn()
    return case.make(xp), tree(params), array(x), array(h0)


def namespace(library: str) -> Any:
    if library == "torch":
        return pytest.importorskip("torch", reason="PyTorch is not installed")
    return pytest.importorskip("jax.numpy", reason="JAX is not installed")


def unrolled(cell: Cell, xp: Any) -> Callable[..., Array]:
    """The textbook network."""

    def states(params: Any, h: Array, x: Array) -> Array:
        found = []
        for t in range(x.shape[1]):
            h = cell(params, h, x[:, t])
            found.append(h)
        return xp.stack(found, 1)

    return states


@cache
def brute_force(library: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The states, and their Jacobian by all that is a parameter."""
    case, xp = CASES[name], namespace(library)
    cell, params, x, h0 = placed(library, case)
    f, n = unrolled(cell, xp), x.shape[0] * x.shape[1] * h0.shape[1]
    if library == "torch":
        from torch.func import jacrev
        from torch.utils._pytree import tree_leaves as leaves
    else:
        from jax import jacrev
        from jax.tree_util import tree_leaves as leaves
    complexes = {"holomorphic": True} if "complex" in case.kind and library == "jax" else {}
    if "complex" in case.kind and library == "torch":
        J = _by_real_parts(lambda p, h: f(p, h, x), params, h0)
    else:
        parts = jacrev(lambda p, h: f(p, h, x), (0, 1), **complexes)(params, h0)
        J = [np.asarray(part).reshape(n, -1) for part in leaves(parts)]
    return np.asarray(f(params, h0, x)), np.concatenate(J if case.initial else J[:-1], 1)


def _by_real_parts(f: Any, params: dict[str, Array], h0: Array) -> list[np.ndarray]:
    """The complex Jacobian of a holomorphic function, by real parts alone."""
    from torch.func import jacrev

    found = []
    given = {**params, "h0": h0}
    for name, z in given.items():

        def of(real: Array, name: str = name, z: Array = z) -> Array:
            values = {**given, name: real + 1j * z.imag}
            h = values.pop("h0")
            y = f(values, h).reshape(-1)
            return namespace("torch").stack([y.real, y.imag])

        J = jacrev(of)(z.real)
        J = J.reshape(2, J.shape[1], -1).numpy()
        found.append(J[0] + 1j * J[1])
    return found


@cache
def made(library: str, name: str) -> tkn.StateKernel:
    case = CASES[name]
    return tkn.state_kernel(*placed(library, case), initial_state=case.initial)


def of_operator(A: tk.LinearOperator) -> np.ndarray:
    return np.asarray(A @ A.xp.eye(A.shape[1], dtype=A.dtype))


def close(found: Any, expected: Any) -> None:
    found = found.value if isinstance(found, tk.Estimate) else found
    size = float(np.max(np.abs(expected), initial=0.0)) or 1.0
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-10, atol=1e-11 * size)


COMPILED = ("rnn initial", "gru", "twice", "one step")  # a few: seconds each
every_case = pytest.mark.parametrize(
    ("library", "name"), [("torch", name) for name in CASES] + [("jax", name) for name in COMPILED]
)


# Beside brute force -------------------------------------------------------------------------------


@every_case
def test_states_kernel_and_factor_are_those_of_the_unrolled_network(library, name) -> None:
    states, J = brute_force(library, name)
    K = made(library, name)
    close(K.states, states)
    close(of_operator(K.kernel), J @ J.conj().T)
    close(of_operator(K.kernel.factor.H), J.conj().T)
    if library == "torch":
        close(of_operator(K.kernel.factor), J)
    assert K.kernel.dims == states.shape


@every_case
def test_the_kernel_is_the_product_of_its_parts(library, name) -> None:
    K = made(library, name)
    P, own = of_operator(K.propagation), of_operator(K.parameter_kernel)
    close(of_operator(K.kernel), P @ own @ P.conj().T)
    close(of_operator(K.propagation.H), P.conj().T)
    close(of_operator(K.propagation_inverse), np.linalg.inv(P))
    close(of_operator(K.propagation_inverse.H), np.linalg.inv(P).conj().T)
    close(tk.exact_trace(K.parameter_kernel), np.trace(own).real)
    close(tk.diagonal(K.parameter_kernel), np.diag(own).real)


@every_case
def test_exact_numbers_are_those_of_the_unrolled_network(library, name) -> None:
    (B, T, U), J = brute_force(library, name)[0].shape, brute_force(library, name)[1]
    K, N = made(library, name), J @ J.conj().T
    trace = tk.exact_trace(K.kernel)
    close(trace, np.trace(N).real)
    if name != "no rule":
        assert trace.num_matvecs == T * U
        close(tk.diagonal(K.kernel), np.diag(N).real)
    for axis in AXES if library == "torch" else ((0, 2), (1,)) if name == "twice" else ():
        M = np.asarray(tk.partial_trace(N, (B, T, U), axis).value)
        close(K.partial_trace(axis), M)
        close(K.frobenius_norm(axis), np.linalg.norm(M))
        close(K.effective_rank(axis), np.trace(M).real ** 2 / np.linalg.norm(M) ** 2)


@pytest.mark.parametrize("name", ["rnn initial", "twice", "complex"])
def test_few_cotangents_at_a_time_change_nothing(name) -> None:
    case, K = CASES[name], made("torch", name)
    few = tkn.state_kernel(
        *placed("torch", case), initial_state=case.initial, chunk_size=case.sizes[2] - 1
    )
    close(of_operator(few.kernel), of_operator(K.kernel))
    close(tk.exact_trace(few.kernel), float(tk.exact_trace(K.kernel)))
    close(tk.diagonal(few.kernel), np.asarray(tk.diagonal(K.kernel).value))
    for axis in AXES:
        close(few.partial_trace(axis), np.asarray(K.partial_trace(axis)))


@every_library
def test_derivatives_that_do_not_fit_are_made_by_passes(library, monkeypatch) -> None:
    name = "rnn initial"
    monkeypatch.setattr(transitions, "BYTES_FORMED", 0)
    K = tkn.state_kernel(*placed(library, CASES[name]), initial_state=True)
    J = brute_force(library, name)[1]
    close(of_operator(K.kernel), J @ J.T)
    close(of_operator(K.propagation_inverse), of_operator(made(library, name).propagation_inverse))
    close(K.partial_trace((0, 1)), np.asarray(made(library, name).partial_trace((0, 1))))
    close(K.lyapunov_exponents(), np.asarray(made(library, name).lyapunov_exponents()))
    assert K.kernel.exact is None


def test_ntk_of_the_unrolled_network() -> None:
    xp = namespace("torch")
    cell, params, x, h0 = placed("torch", CASES["gru"])
    f, K = unrolled(cell, xp), made("torch", "gru")
    trace = tkn.ntk_trace(lambda p, hx: f(p, *hx), params, (h0, x))
    close(tk.exact_trace(K.kernel), float(trace))
    V = xp.asarray(np.random.default_rng(1).standard_normal((K.kernel.shape[0], 3)))
    close(K.kernel @ V, np.asarray(tkn.ntk(lambda p: f(p, h0, x), params) @ V))


def test_modules_of_cells() -> None:
    torch = namespace("torch")
    torch.manual_seed(0)
    x, h0 = torch.randn(3, 4, 2, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)
    for module in (torch.nn.GRUCell(2, 5), torch.nn.RNNCell(2, 5)):
        f, params = tkn.functional(module.double())
        K = tkn.state_kernel(lambda p, h, x: f(p, x, h), params, x, h0)  # noqa: B023
        states = unrolled(lambda p, h, x: f(p, x, h), torch)  # noqa: B023
        N = tkn.ntk(lambda p: states(p, h0, x), params)  # noqa: B023
        close(of_operator(K.kernel), of_operator(N))
        close(tk.exact_trace(K.kernel), np.trace(of_operator(N)))


@every_library
def test_single_precision(library) -> None:
    name = "one sample, one unit"
    K = tkn.state_kernel(*placed(library, CASES[name], "float32"))
    J = brute_force(library, name)[1]
    for found in (K.kernel @ K.kernel.xp.eye(4, dtype=K.kernel.dtype), K.partial_trace(())):
        assert "float32" in str(found.dtype)
        np.testing.assert_allclose(np.asarray(found), J @ J.T, rtol=1e-4, atol=1e-5)
    assert "float32" in str(tk.exact_trace(K.kernel).value.dtype)
    assert "float32" in str(K.lyapunov_exponents().dtype)


# Lyapunov exponents -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "name"), [("torch", "gru"), ("torch", "complex"), ("jax", "gru")]
)
def test_exponents_add_up_to_the_log_determinant(library, name) -> None:
    """And the first is the rate of the largest singular value, where steps are many."""
    K, (B, T, U, _) = made(library, name), CASES[name].sizes
    found = np.asarray(K.lyapunov_exponents())
    assert found.shape == (B, U)
    ways = K._network.transitions
    for b in range(B):
        logs = [np.linalg.slogdet(np.asarray(ways.A)[t, b])[1] for t in range(T)]
        np.testing.assert_allclose(found[b].sum(), np.mean(logs), rtol=1e-9, atol=1e-12)


def test_exponents_of_a_linear_network_are_logs_of_its_eigenvalues() -> None:
    torch = namespace("torch")
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64,
                                    generator=torch.Generator().manual_seed(0)))[0]  # fmt: skip
    rates = torch.tensor([0.3, -0.2, -1.0], dtype=torch.float64)
    w, T = Q @ torch.diag(rates.exp()) @ Q.T, 400
    K = tkn.state_kernel(
        lambda w, h, x: h @ w + x, w, torch.zeros(2, T, 3).double(), torch.zeros(2, 3).double()
    )
    np.testing.assert_allclose(K.lyapunov_exponents(), rates.expand(2, 3), atol=1e-2)


def test_directions_that_vanish_have_no_rate() -> None:
    K = made("torch", "no state")
    assert np.all(np.asarray(K.lyapunov_exponents()) == -np.inf)


# Bad input ----------------------------------------------------------------------------------------


def refused(kind: type[Exception], match: str, *given: Any) -> None:
    """One sentence."""
    with pytest.raises(kind, match=match) as caught:
        tkn.state_kernel(*given)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert not message.endswith(".")
    assert len(re.findall(r"[a-z]\. [A-Z]", message)) == 0


@every_library
def test_what_is_no_cell(library) -> None:
    cell, params, x, h0 = placed(library, CASES["rnn"])
    refused(TypeError, "must be a function", None, params, x, h0)
    refused(TypeError, "must return one array.*tuple", lambda p, h, x: (h, h), params, x, h0)
    wider = lambda p, h, x: cell(p, h, x)[:, :3]  # noqa: E731
    refused(ValueError, r"state like the one before, \(3, 5\).*got \(3, 3\)", wider, params, x, h0)
    xp = namespace(library)
    narrow = xp.asarray(np.asarray(h0).astype("float32"))
    fixed = lambda p, h, x: h @ p["w"] if h.dtype == p["w"].dtype else h + h0  # noqa: E731
    refused(ValueError, "state like the one before", fixed, params, x, narrow)


@every_library
def test_inputs_and_initial_states_of_other_shapes(library) -> None:
    cell, params, x, h0 = placed(library, CASES["rnn"])
    refused(ValueError, r"`inputs` must be of shape.*got \(3, 4\)", cell, params, x[:, :, 0], h0)
    refused(ValueError, r"`inputs` must be of shape.*\(3, 0, 2\)", cell, params, x[:, :0], h0)
    refused(ValueError, "`h0` must be of shape.*3 samples", cell, params, x, h0[:2])
    refused(ValueError, r"`h0` must be of shape.*got \(5,\)", cell, params, x, h0[0])
    refused(TypeError, "`h0` must be of floating-point", cell, params, x, x[:, 0] > 0)
    refused(TypeError, "`inputs` must be an array|not an array", cell, params, "inputs", h0)


@every_library
def test_states_that_are_not_finite(library) -> None:
    cell, params, x, h0 = placed(library, CASES["rnn"])
    xp = namespace(library)
    hole = xp.where(xp.asarray(np.arange(4) == 2)[None, :, None], xp.nan, x)
    refused(ValueError, "NaN or infinite from step 3 of 4 on", cell, params, hole, h0)
    refused(ValueError, "NaN or infinite from step 1 of 4", cell, params, x, h0 * xp.inf)


@every_library
def test_samples_that_mix(library) -> None:
    cell, params, x, h0 = placed(library, CASES["rnn"])
    mixed = lambda p, h, x: cell(p, h - h.mean(0), x)  # noqa: E731
    refused(ValueError, "other states when it is run again", mixed, params, x, h0)
    refused(ValueError, "other states when it is run again", mixed, params, x[:, :1], h0)
    tied = lambda p, h, x: cell(p, h, x) + 0 * h0  # noqa: E731
    refused(ValueError, "runs on 3 samples, but not on 12", tied, params, x, h0)


def test_noise() -> None:
    torch = namespace("torch")
    cell, params, x, h0 = placed("torch", CASES["rnn"])
    noisy = lambda p, h, x: torch.dropout(cell(p, h, x), 0.5, True)  # noqa: E731
    refused(ValueError, "dropout", noisy, params, x, h0)


def test_complex_states_without_a_complex_derivative() -> None:
    torch = namespace("torch")
    _, params, x, h0 = placed("torch", CASES["complex"])
    cell = lambda w, h, x: torch.conj(h) * w + x[:, :1]  # noqa: E731
    refused(ValueError, "not holomorphic in its complex state", cell, params["l"], x, h0)
    real = {"w": params["w"].real.clone()}
    turned = lambda p, h, x: 0.3 * torch.sin(h @ p["w"].to(h.dtype)) + x[:, :1]  # noqa: E731
    K = tkn.state_kernel(turned, real, x, h0).kernel
    N = tkn.ntk(lambda p: unrolled(turned, torch)(p, h0, x), real)
    close(of_operator(K), of_operator(N))
    with pytest.raises(TypeError, match="mixes real and complex"):
        tkn.state_kernel(turned, real, x, h0, initial_state=True)


def test_axes_that_there_are_not() -> None:
    K = made("torch", "rnn")
    close(K.partial_trace([-1, 0]), np.asarray(K.partial_trace((0, 2))))
    for axis in (3, "time", 1.0, True):
        with pytest.raises(ValueError, match="must name axes of the states"):
            K.partial_trace(axis)
    with pytest.raises(ValueError, match="each axis once"):
        K.partial_trace((0, -3))


# Habits -------------------------------------------------------------------------------------------


def test_parameters_are_left_alone() -> None:
    cell, params, x, h0 = placed("torch", CASES["rnn"])
    params["w"].requires_grad_()
    K = tkn.state_kernel(cell, params, x, h0)
    before = of_operator(K.kernel)
    assert not K.states.requires_grad
    assert not (K.kernel @ K.kernel.xp.ones(60, dtype=K.kernel.dtype)).requires_grad
    with namespace("torch").no_grad():
        params["w"] *= 2
    close(of_operator(K.kernel), before)


def test_tensors_of_inference_mode() -> None:
    torch = namespace("torch")
    with torch.inference_mode():
        K = tkn.state_kernel(*placed("torch", CASES["gru"]))
        close(K.kernel @ torch.eye(30).double(), of_operator(made("torch", "gru").kernel))
        close(tk.exact_trace(K.kernel), float(tk.exact_trace(made("torch", "gru").kernel)))


def test_states_that_are_written_into() -> None:
    cell, params, x, h0 = placed("torch", CASES["rnn"])
    K = tkn.state_kernel(lambda p, h, x: cell(p, h.mul_(1), x.add_(0)), params, x, h0)
    close(of_operator(K.kernel), of_operator(made("torch", "rnn").kernel))


def test_programs_of_jax() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    cell, params, x, h0 = placed("jax", CASES["gru"])

    @jax.jit
    def numbers(params: Any) -> tuple[Array, Array]:
        K = tkn.state_kernel(cell, params, x, h0)
        return tk.exact_trace(K.kernel).value, K.kernel @ jax.numpy.ones(30)

    trace, product = numbers(params)
    K = made("jax", "gru")
    close(trace, float(tk.exact_trace(K.kernel)))
    close(product, np.asarray(K.kernel @ jax.numpy.ones(30)))


def test_repr() -> None:
    assert repr(made("torch", "rnn initial")) == (
        "<StateKernel of 3 samples, 4 steps, 5 units; 55 parameters>"
    )
