"""Every public function on a device that is not the default one: the same numbers, and there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from capabilities import CASES, NETWORK_CASES, Case, states
from conftest import Library, library
from test_capabilities import network, positive

import tracekit as tk
import tracekit_ntk as tkn
from tracekit import functions, probes, testing

Array = Any
SEED = 3
# JAX on its second device and array-api-strict on another have the cases in `test_capabilities`.
DEVICES = ("torch:emulated", "torch:cuda", "jax:cuda", "cupy")
ELSEWHERE = ("torch:emulated", "strict:device1", "jax:1", "torch:cuda", "jax:cuda", "cupy")
WITH_DERIVATIVES = tuple(d for d in ELSEWHERE if d.startswith(("torch", "jax")))


# Functions of matrices ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_estimators(case: Case, device: str) -> None:
    lib = library(device)
    found = case.call(lib.array(positive()), SEED)
    assert lib.at_home(found)
    expected = case.call(positive(), SEED)
    np.testing.assert_allclose(lib.numpy(found), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("device", ["torch:emulated", "torch:cuda"])
@pytest.mark.parametrize(
    "case", [c for c in CASES if "gradient" not in c.lacks], ids=lambda case: case.name
)
def test_gradients(case: Case, device: str) -> None:
    there, here = gradient(case, library(device)), gradient(case, library("torch"))
    np.testing.assert_allclose(there, here, rtol=1e-7, atol=1e-9)


def gradient(case: Case, lib: Library) -> np.ndarray:
    """Of the sum of a case's numbers, by PyTorch."""
    A = lib.array(positive()).requires_grad_()
    lib.xp.sum(case.call(A, SEED)).backward()
    assert lib.at_home(A.grad)
    return lib.numpy(A.grad)


def seen(A: Array) -> Array:
    """What a run gives that shows its progress."""
    return tk.hutchinson(A, 9, rng=SEED, callback=tk.progress(lambda line: None)).value


MAKERS = {"Plan", "Probes", "Source", "coloured", "grid", "hierarchical", "kronecker", "tiled"}


def drawn(A: Array) -> tuple[Array, ...]:
    """Products with a block of each kind of probe."""
    source, n = probes.Source(SEED, tk.as_operator(A)), A.shape[0]
    kinds = [getattr(probes, k) for k in sorted(set(probes.__all__) - MAKERS)]
    blocks = [kind(source, n, n if kind is probes.basis else 4) for kind in kinds]
    return tuple(A @ X for X in (*blocks, probes.tiled(probes.sphere, 2)(source, n, 4)))


def applied(A: Array) -> tuple[Array, ...]:
    """Each function of eigenvalues, at positive numbers."""
    x, made = A[0, :] ** 2 + 1, []
    for name in functions.__all__:
        f = getattr(functions, name)
        made.append(f(0.5)(x) if name in ("power", "ridge") else f(x))
    return tuple(made)


def checked(A: Array) -> tuple[Any, ...]:
    """What `testing` says of an operator and an estimator; its benchmark spectra are NumPy's."""
    bias = testing.unbiasedness_test(lambda A, rng: tk.hutchinson(A, 8, rng=rng), A, seeds=range(4))
    spectrum = testing.known_spectrum(A[0, :] ** 2, rng=SEED)
    return spectrum, bias, testing.adjoint_test(A) < 1e-12, *testing.benchmark_spectra(4).values()


def near_range(A: Array) -> Array:
    Q = tk.range_basis(A[:, :5])
    return Q @ Q.T


def near_differences(A: Array) -> Array:
    Q = tk.difference_basis(lambda t: A @ (t * t), A[:, 0], 4, rng=SEED)
    return Q @ Q.T


def stacked(A: Array) -> Array:
    return tk.vstack([tk.as_operator(A), tk.as_operator(A)]) @ A


def compared(A: Array) -> tuple[float, ...]:
    table = tk.compare(
        A, (8,), methods={"hutchinson": tk.hutchinson}, num_seeds=2, exact=2.0
    ).to_dict()
    return tuple(x for x in flat(table) if isinstance(x, float) and np.isfinite(x))


def flat(x: Any) -> list[Any]:
    if isinstance(x, dict):
        x = list(x.values())
    return [part for item in x for part in flat(item)] if isinstance(x, list | tuple) else [x]


# What has no case of its own: calls that give arrays, or numbers of the host.
def read(A: Array) -> tuple[Array, ...]:
    """What a run says, grown and with an observable."""
    run = tk.spectral_run(A, 9, rng=SEED, depth=3, observable=A)
    more = tk.spectral_run(A, 9, rng=SEED, depth=3).extend(9).extend(10, depth=4)
    family = more.family(lambda x, t: x / (x + t), [0.1, 1.0])
    return (
        run.expectation(lambda x: x * x).value,
        more.ratio(functions.sqrt, functions.log1p).value,
        family.value,
        *family.band(),
        more.density().nodes,
        more.logdet().slope,
    )


def merged(A: Array) -> Array:
    """Two runs as one."""
    runs = [tk.spectral_run(A, 9, rng=seed, depth=3) for seed in (SEED, SEED + 1)]
    return tk.merge(runs).trace(functions.exp).value


def pair(A: Array) -> list[tk.Estimate]:
    """Two estimates from the same probes."""
    return [tk.hutchinson(B, 9, rng=SEED) for B in (A, A @ A)]


def integrated(A: Array) -> tuple[Array, ...]:
    """Determinants by the ways that keep no basis, with bounds, and of no Hermitian operator."""
    light, moments = (
        tk.quadrature.lanczos(reorthogonalise=False),
        tk.quadrature.chebyshev((0.01, 9)),
    )
    certified = tk.logdet(A, 9, rng=SEED, depth=3, bounds=(0.01, 9.0))
    root = tk.function_operator(A, functions.sqrt, 3, quadrature=light)
    return (
        tk.trace_function(A, functions.log1p, 9, rng=SEED, depth=3, quadrature=light).value,
        tk.trace_function(A, functions.log1p, 9, rng=SEED, depth=3, quadrature=moments).value,
        *certified.certified_interval(),
        root @ A[:, :2],
        tk.logdet(A, 9, rng=SEED, depth=3, deflate=0, quadrature=tk.quadrature.chebyshev()).value,
        tk.logdet(A, 9, rng=SEED, depth=3, hermitian=False).value,
        tk.trace_function(A, functions.exp, 9, rng=SEED, depth=3, hermitian=False).value,
        tk.trace_function(A, functions.log1p, 12, rng=SEED, shift=0.0).value,
    )


def by_rows(A: Any) -> tuple[Any, ...]:
    """What one process finds that holds all rows: numbers, and one for each row."""
    B = tk.as_operator(A)
    layout = tk.RowLayout(slice(0, B.shape[0]), lambda x: x, rank=0, size=1)
    C = tk.LinearOperator(
        B.shape, B.matmat, B.rmatmat, dtype=B.dtype, xp=B.xp, device=B.device, layout=layout
    )
    diagonal = tk.xdiag(C, 8, rng=SEED).value.local
    return tk.hutchpp(C, 9, rng=SEED).value, tk.logdet(C, 20, rng=SEED).value, diagonal


def near_low_rank(A: Array) -> tuple[Any, ...]:
    """Columns of A itself, and low rank beside the identity."""
    A = tk.as_operator(A)
    F = tk.pivoted_cholesky(replace(A, exact={"diagonal": lambda: tk.diagonal(A).value}), 3)
    P = tk.low_rank_plus_diagonal(F, 0.5)
    return F, P.logdet, P.trace_inverse, P.inverse @ F


def near_identity(A: Array) -> Array:
    home = tk.as_operator(A)
    return home.xp.eye(24, dtype=home.dtype, device=home.device)


def preconditioned(A: Array) -> tuple[Any, ...]:
    """Values with the identity, and with controls."""
    P = tk.Preconditioner(tk.gram(near_identity(A)), 0.0, 24.0)
    found = [f(A, 12, rng=SEED, depth=2, preconditioner=P).value for f in OF_INVERSES]
    return *found, *controlled(tk.as_operator(A))


OF_INVERSES = (tk.logdet, tk.trace_inverse)


def controlled(A: tk.LinearOperator) -> tuple[Any, ...]:
    """A trace and a diagonal with a control."""
    P = 1.1 * A
    value, entries = 1.1 * tk.exact_trace(A).value, 1.1 * tk.diagonal(A).value
    return (
        tk.hutchinson(A, 12, rng=SEED, control=(P, value)).value,
        tk.diagonal(A, 12, rng=SEED, control=(P, entries)).value,
    )


def incompletely(A: Array) -> float:
    """Of SciPy alone, whatever A is."""
    return float(tk.incomplete_cholesky(scipy.sparse.csc_array(positive())).logdet)


def of_states(A: Array) -> tuple[Array, ...]:
    """Of a vector as a pure state."""
    psi = A[0, :]
    rho = tk.reduced_density_matrix(psi, (4, 6), 1)
    return rho, tk.entanglement_entropy(psi, (4, 6), 1)


def least(A: Array) -> tuple[float, ...]:
    """Where a curve is least, which is told on the host."""
    run = tk.spectral_run(A, 9, rng=SEED, depth=3)
    index, candidates = tk.argmin(run.family(lambda x, t: (x - t) ** 2, [0.1, 1.0, 9.0]))
    return float(index), *map(float, candidates)


OTHERS: dict[str, Callable[[Array], Any]] = {
    "SpectralRun": read,
    "LinearOperator": lambda A: tk.as_operator(A).H @ A,
    "argmin": least,
    "as_operator": lambda A: tk.as_operator(A) @ A,
    "block_diagonal": lambda A: tk.block_diagonal([A[:12, :12], A[12:, 12:]]) @ A,
    "centered": lambda A: tk.centered(A) @ A,
    "compare": compared,
    "counted": lambda A: tk.counted(A)[0] @ A,
    "difference": lambda A: tk.difference(*pair(A)).standard_error,
    "difference_basis": near_differences,
    "entanglement_entropy": of_states,
    "functions": applied,
    "gram": lambda A: tk.gram(A) @ A,
    "linear_combination": lambda A: tk.linear_combination((1, 0.5), pair(A)).value,
    "merge": merged,
    "probes": drawn,
    "progress": seen,
    "quadrature": integrated,
    "range_basis": near_range,
    "Preconditioner": preconditioned,
    "incomplete_cholesky": incompletely,
    "low_rank_plus_diagonal": near_low_rank,
    "pivoted_cholesky": near_low_rank,
    "ratio": lambda A: tk.ratio(*pair(A)).value,
    "RowLayout": by_rows,
    "reduced_density_matrix": of_states,
    "resume": lambda A: tk.resume(A, tk.trace(A, rtol=0.5, rng=SEED), rtol=0.05).value,
    "testing": checked,
    "vstack": stacked,
    "with_dims": lambda A: tk.partial_trace(tk.with_dims(A, (4, 6)), None, 0).value,
}
ON_HOST = ("SpectralRun", "argmin", "merge")  # whose bands and seeds are looked at there
# What the functions above give back, or raise.
RECORDS = {
    *("Comparison", "Estimate", "NotFiniteError", "RowArray", "SpectralDensity"),
    *("SpectralSummary", "Thermodynamics", "Tracked"),
}


@pytest.mark.parametrize("device", ELSEWHERE)
@pytest.mark.parametrize("name", OTHERS)
def test_operators_and_the_rest(name: str, device: str) -> None:
    lib = library(device)
    if device == "strict:device1" and name in ON_HOST:
        pytest.skip("this library's arrays on another device cannot be read on the host")
    found, expected = (OTHERS[name](A) for A in (lib.array(positive()), positive()))
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    for here, there in zip(expected, found, strict=True):
        if isinstance(there, bool | float | np.ndarray):
            np.testing.assert_allclose(there, here, rtol=1e-6)
        else:
            assert lib.at_home(there)
            np.testing.assert_allclose(lib.numpy(there), here, rtol=1e-8, atol=1e-10)


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [d for d in WITH_DERIVATIVES if d != "jax:1"])
@pytest.mark.parametrize("field", ["real", "complex"])
@pytest.mark.parametrize("case", NETWORK_CASES, ids=lambda case: case.name)
def test_networks(case: Case, field: str, device: str) -> None:
    lib, plain = library(device), library("torch")
    if field in case.lacks:
        with pytest.raises(TypeError):
            case.call(*network(lib, cplx=True), SEED)
        return
    found = case.call(*network(lib, cplx=field == "complex"), SEED)
    assert lib.at_home(found)
    expected = plain.numpy(case.call(*network(plain, cplx=field == "complex"), SEED))
    np.testing.assert_allclose(lib.numpy(found), expected, rtol=1e-8, atol=1e-10)


def followed(f: Any, params: Any, x: Any) -> Array:
    tracker = tk.Tracker(12, rng=SEED)
    tkn.track(lambda p: f(p, x), tracker)(0, params)
    return tracker.points[0].trace.value


def by_difference(f: Any, params: Any, x: Any) -> Array:
    Q = tkn.difference_basis(lambda p: f(p, x), params, 3, rng=SEED)
    return Q @ Q.T


def by_hand(f: Any, params: Any, x: Any) -> Array:
    U = params["U"]
    J = tkn.jacobian_from_pair(
        lambda X: x @ X, lambda X: x.T @ X, x.shape, dtype=x.dtype, xp=tk.as_operator(x).xp,
        device=tk.as_operator(x).device,
    )  # fmt: skip
    return J @ U


def of_module(f: Any, params: Any, x: Any) -> tuple[Array, Array]:
    """A module's kernel, as a function and as it is followed in training."""
    import torch

    linear = torch.nn.Linear(4, 5, bias=False, dtype=x.dtype, device=x.device)
    with torch.no_grad():
        linear.weight.copy_(params["U"].T)
    tracker = tk.Tracker(12, rng=SEED)
    tkn.track_module(linear, tracker, x)(0)
    g, weights = tkn.functional(linear)
    return tkn.ntk_trace(g, weights, x), tracker.points[0].trace.value


def of_states(f: Any, params: Any, x: Any) -> tuple[Array, ...]:
    K = states(f, params, x)
    inverse = K.propagation_inverse @ K.states.reshape(-1)
    return K.states, K.partial_trace((0, 2)), inverse, K.lyapunov_exponents()


OTHERS_OF_NETWORKS: dict[str, Callable[..., Any]] = {
    "StateKernel": of_states,
    "difference_basis": by_difference,
    "explain": lambda f, params, x: tkn.explain(f, params, x),
    "jacobian_from_pair": by_hand,
    "losses": lambda f, params, x: tuple(
        g
        for loss in (tkn.losses.squared_error, tkn.losses.softmax_cross_entropy)
        for y in (f(params, x),)
        for p in (0 * y + 1 / y.shape[-1],)
        for g in (loss(y, p), loss.gradient(y, p), loss.hessian_root(y))
    ),
    "kernel_matrix": lambda f, params, x: tkn.kernel_matrix(tkn.kernel(f, params, x)),
    "structured_derivatives": lambda f, params, x: tkn.kernel(
        f, params, x, implementation=tkn.structured_derivatives
    ),
    "track": followed,
}
OF_MODULES = {"functional": of_module, "track_module": of_module}


@pytest.mark.parametrize("device", WITH_DERIVATIVES)
@pytest.mark.parametrize("name", [*OTHERS_OF_NETWORKS, "functional"])
def test_the_rest_of_networks(name: str, device: str) -> None:
    if name in OF_MODULES and not device.startswith("torch"):
        pytest.skip("modules are PyTorch's")
    call = (OTHERS_OF_NETWORKS | OF_MODULES)[name]
    lib, plain = library(device), library("torch")
    found, expected = call(*network(lib)), call(*network(plain))
    if name == "explain":
        assert str(found) == str(expected) or lib.family == "jax"  # whose operations are others
        return
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    for there, here in zip(found, expected, strict=True):
        assert lib.at_home(there)
        np.testing.assert_allclose(lib.numpy(there), plain.numpy(here), rtol=1e-8, atol=1e-10)


def modules() -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Modules of several kinds, made by `torch.nn`, and the shape of a batch for each."""

    def first(cell: Any, nn: Any) -> Any:
        class First(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell = cell

            def forward(self, x: Any) -> Any:
                return self.cell(x)[0].flatten(1)

        return First()

    def convolutions(nn: Any) -> Any:
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2),
            nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip

    return {
        "convolutions": (convolutions, (3, 2, 4, 4)),
        "LSTM": (lambda nn: first(nn.LSTM(3, 4, batch_first=True), nn), (3, 2, 3)),
        "GRU": (lambda nn: first(nn.GRU(3, 4, batch_first=True), nn), (3, 2, 3)),
        "attention": (
            lambda nn: nn.Sequential(
                nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), nn.Flatten()
            ),
            (3, 2, 4),
        ),
    }


@pytest.mark.parametrize("device", ["torch:emulated", "torch:cuda"])
@pytest.mark.parametrize("name", ["convolutions", "LSTM", "GRU", "attention"])
def test_modules(name: str, device: str) -> None:
    """Exact numbers and one reverse product, as on the CPU."""
    torch, lib = pytest.importorskip("torch"), library(device)
    make, shape = modules()[name]
    torch.manual_seed(0)
    here = make(torch.nn).double().eval()
    there = copy.deepcopy(here).to(lib.device)
    batch = np.random.default_rng(0).standard_normal(shape)
    numbers = []
    for module, where in ((here, library("torch")), (there, lib)):
        f, params = tkn.functional(module)
        x = where.array(batch)
        J = tkn.jacobian(lambda p, f=f, x=x: f(p, x), params)
        made = (
            tkn.ntk_trace(f, params, x),
            tkn.ntk_norm(f, params, x),
            tkn.ntk_diagonal(f, params, x),
            tkn.kernel(f, params, x),
            J.H @ J.xp.eye(J.shape[0], 2, dtype=J.dtype, device=J.device),
        )
        assert all(map(where.at_home, made))
        numbers.append([where.numpy(y) for y in made])
    for mine, other in zip(*numbers, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-8, atol=1e-10)


def test_no_function_is_left_out() -> None:
    assert {case.name for case in CASES} | set(OTHERS) | RECORDS == set(tk.__all__)
    covered = {case.name for case in NETWORK_CASES} | set(OTHERS_OF_NETWORKS) | set(OF_MODULES)
    assert covered == set(tkn.__all__)


# The emulation itself -----------------------------------------------------------------------------


def test_the_emulated_device_refuses_what_cuda_refuses() -> None:
    lib, torch = library("torch:emulated"), pytest.importorskip("torch")
    from accelerator import Generator

    a, b = lib.array(np.eye(3)), torch.ones(3, 3, dtype=torch.float64)
    for mix in (lambda: a + b, lambda: a @ b, lambda: torch.where(b > 0, a, a), lambda: b[a > 0]):
        with pytest.raises(RuntimeError, match=r"same device|be on"):
            mix()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=lib.device, generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        a.numpy()
    for allowed in (a + torch.tensor(2.0), a[torch.tensor([0, 1])], a.clone().copy_(b), 2 * a):
        assert lib.at_home(allowed)
    assert lib.at_home(torch.randn(3, device=lib.device, generator=Generator().manual_seed(0)))
    assert (a + b.to(lib.device)).sum().item() == 12.0


def test_the_emulated_device_rounds_as_the_cpu() -> None:
    """Views, writes, conjugates, batched and forward derivatives."""
    lib, torch = library("torch:emulated"), pytest.importorskip("torch")

    def run(A: Array) -> list[Array]:
        def f(w: Array) -> Array:
            return torch.tanh(w @ w.T).sum(0)

        B = A.clone()
        B[1:, 0] = 0
        B.T.mul_(2)
        C = (A + 1j * A.T).conj()
        return [B, C.mH @ C, torch.func.jacrev(f)(A), torch.func.jacfwd(f)(A), A[A > 0].flip(0)]

    A = np.random.default_rng(0).standard_normal((4, 4))
    for here, there in zip(run(library("torch").array(A)), run(lib.array(A)), strict=True):
        assert lib.at_home(there)
        np.testing.assert_array_equal(lib.numpy(there), library("torch").numpy(here))
