"""Traces by the inputs, sample by sample, beside whole Jacobians and Hessians."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Library, library

import tracekit as tk
import tracekit_ntk as tkn
from tracekit import probes
from tracekit_ntk._inputs import derivative as checked
from tracekit_ntk._inputs.probes import for_samples

Array = Any
libraries = pytest.mark.parametrize("lib", ["torch", "jax"], indirect=True)
QUANTITIES = (tkn.divergence, tkn.laplacian)
quantities = pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda q: q.__name__)
SHAPES = ((5, 4), (1, 3), (3, 1), (4, 2, 3), (3, 1, 2, 2))


@pytest.fixture
def lib(request: pytest.FixtureRequest) -> Library:
    return library(request.param)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax", reason="JAX is not installed")


def weights(lib: Library, D: int, *, out: int | None = None) -> tuple[Array, Array]:
    rng = np.random.default_rng(D)
    shapes = (D, 6), (6, D if out is None else out)
    return tuple(lib.array(rng.standard_normal(s)) for s in shapes)  # type: ignore[return-value]


def samples(lib: Library, *shape: int) -> Array:
    return lib.array(np.random.default_rng(7).standard_normal(shape))


def field(lib: Library, D: int) -> Callable[[Array], Array]:
    """A vector field on samples of any shape, whose Jacobian is not symmetric."""
    U, V = weights(lib, D)

    def v(x: Array) -> Array:
        flat = lib.xp.reshape(x, (x.shape[0], D))
        return lib.xp.reshape(lib.xp.tanh(flat @ U) @ V + flat**2, x.shape)

    return v


def function(lib: Library, D: int) -> Callable[[Array], Array]:
    U, V = weights(lib, D, out=1)

    def f(x: Array) -> Array:
        flat = lib.xp.reshape(x, (x.shape[0], D))
        return (lib.xp.tanh(flat @ U) @ V)[:, 0] + lib.xp.sum(flat**3, axis=1)

    return f


def call_of(quantity: Any, lib: Library, D: int) -> Callable[[Array], Array]:
    return (field if quantity is tkn.divergence else function)(lib, D)


def matrices(quantity: Any, lib: Library, f: Callable[[Array], Array], x: Array) -> np.ndarray:
    """The Jacobian or Hessian of every sample by itself, (N, D, D), by plain transforms."""
    D = math.prod(x.shape[1:])
    if lib.family == "torch":
        from torch.func import hessian, jacrev
    else:
        from jax import hessian, jacrev
    transform = jacrev if quantity is tkn.divergence else hessian
    found = [lib.numpy(transform(lambda z: f(z[None])[0])(x[k])) for k in range(len(x))]
    return np.stack(found).reshape(len(x), D, D)


def traces(quantity: Any, lib: Library, f: Callable[[Array], Array], x: Array) -> np.ndarray:
    return np.trace(matrices(quantity, lib, f, x), axis1=1, axis2=2)


def close(found: Any, expected: Any, *, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)


# Exact values -------------------------------------------------------------------------------------


@libraries
@quantities
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_values_are_traces_of_whole_matrices(
    lib: Library, quantity: Any, shape: tuple[int, ...]
) -> None:
    D, x = math.prod(shape[1:]), samples(lib, *shape)
    f = call_of(quantity, lib, D)
    expected = traces(quantity, lib, f, x)
    found = quantity(f, x)
    assert tuple(found.value.shape) == tuple(found.standard_error.shape) == shape[:1]
    assert found.num_matvecs == D
    assert found.method == quantity.__name__
    assert lib.at_home(found.value)
    assert not np.any(lib.numpy(found.standard_error))
    close(lib.numpy(found.value), expected)
    for size in {1, 3, D + 5}:
        close(lib.numpy(quantity(f, x, chunk_size=size).value), expected)
    enough = quantity(f, x, D + 3, rng=0)
    assert enough.num_matvecs == D
    close(lib.numpy(enough.value), expected)


@libraries
def test_laplacians_of_piecewise_linear_and_of_constant_functions_vanish(lib: Library) -> None:
    x, xp = samples(lib, 5, 4), lib.xp
    for f in (
        lambda x: xp.sum(xp.where(x > 0, 3 * x, x), axis=1),
        lambda x: 2 * xp.sum(x, axis=1),
        lambda x: xp.ones_like(x[:, 0]),
    ):
        for m in (None, 2):
            assert not np.any(lib.numpy(tkn.laplacian(f, x, m, rng=0).value))
    assert not np.any(lib.numpy(tkn.divergence(xp.ones_like, x).value))


@libraries
@quantities
def test_single_precision_stays(lib: Library, quantity: Any) -> None:
    single = lib.xp.float32
    x = lib.xp.astype(samples(lib, 5, 4), single)
    xp, W = lib.xp, lib.xp.astype(weights(lib, 4)[0], single)
    f = (lambda x: xp.tanh(x @ W) @ W.T) if quantity is tkn.divergence else (
        lambda x: xp.sum(xp.tanh(x @ W) ** 2, axis=1))  # fmt: skip
    for m in (None, 2):
        found = quantity(f, x, m, rng=0)
        assert found.value.dtype == found.standard_error.dtype == single
    close(lib.numpy(quantity(f, x).value), traces(quantity, lib, f, x), rtol=1e-4)


# Estimates ----------------------------------------------------------------------------------------


@libraries
@quantities
def test_estimates_are_unbiased_over_all_signs(lib: Library, quantity: Any) -> None:
    x = samples(lib, 2, 3)
    f = call_of(quantity, lib, 3)
    signs = lib.array(np.array(list(itertools.product((-1.0, 1.0), repeat=3))).T)
    drawn = [
        quantity(f, x, 1, probes=lambda source, n, m, k=k: lib.xp.stack([signs[:, k]] * m, axis=1))
        for k in range(8)
    ]
    found = np.mean([lib.numpy(e.value) for e in drawn], axis=0)
    close(found, traces(quantity, lib, f, x))
    assert all(np.all(np.isinf(lib.numpy(e.standard_error))) for e in drawn)


KINDS = (probes.hadamard, probes.orthogonal, probes.rademacher, probes.normal, probes.sphere)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@quantities
def test_many_copies_of_a_sample_show_what_errors_are(quantity: Any, kind: Any) -> None:
    """Copies have probes of their own: their spread is the error, and the mean's is a tenth."""
    lib, N, m = library("torch"), 400, 9
    f = call_of(quantity, lib, 13)
    one = samples(lib, 1, 13)
    A = matrices(quantity, lib, f, one)[0]
    found = quantity(f, lib.xp.tile(one, (N, 1)), m, rng=5, probes=kind)
    values, told = lib.numpy(found.value), lib.numpy(found.standard_error)
    error = values.std()
    assert abs(values.mean() - np.trace(A)) < 4 * error / N**0.5
    assert np.sqrt(np.mean(told**2)) == pytest.approx(error, rel=0.12)
    low, high = map(lib.numpy, found.confidence_interval())
    assert np.mean((low <= np.trace(A)) & (np.trace(A) <= high)) > 0.9
    mean = tkn.batch_mean(found)
    assert float(mean.standard_error) == pytest.approx(error / N**0.5, rel=0.12)
    S = (A + A.T) / 2
    rest = np.sum(S**2) - np.sum(np.diag(S) ** 2)
    expected = {
        "hadamard": 2 * (16 - m) / (m * 15) * rest,
        "orthogonal": 2 * 13 / 15 * (13 - m) / (m * 12) * (np.sum(S**2) - np.trace(S) ** 2 / 13),
        "rademacher": 2 / m * rest,
        "normal": 2 / m * np.sum(S**2),
        "sphere": 2 * 13 / (15 * m) * (np.sum(S**2) - np.trace(S) ** 2 / 13),
    }[kind.__name__]
    assert error == pytest.approx(math.sqrt(expected), rel=0.15)


def test_the_error_of_the_mean_is_seen_over_seeds() -> None:
    lib = library("torch")
    x, v = samples(lib, 30, 6), field(lib, 6)
    exact = traces(tkn.divergence, lib, v, x).mean()
    found = [tkn.batch_mean(tkn.divergence(v, x, 3, rng=seed)) for seed in range(80)]
    z = [(float(e) - exact) / float(e.standard_error) for e in found]
    assert abs(np.mean(z)) < 4 / 80**0.5
    assert 0.75 < np.std(z) < 1.25
    hits = [low <= exact <= high for low, high in (e.confidence_interval(0.9) for e in found)]
    assert np.mean(hits) > 0.8


@libraries
def test_every_sample_has_vectors_of_its_own(lib: Library) -> None:
    A = tk.as_operator(samples(lib, 40, 40))
    X = lib.numpy(for_samples(probes.hadamard, 5)(probes.Source(3, A), 40, 7)).reshape(5, 8, 7)
    assert set(X.flat) == {-1.0, 1.0}
    for own in X:
        close(own.T @ own, 8 * np.eye(7))
    assert len({own.tobytes() for own in X}) == 5
    columns = {tuple(map(tuple, own.T * own[:, 0])) for own in X}  # without the signs of the rows
    assert len(columns) == 5


@libraries
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_draws_do_not_depend_on_chunks(lib: Library, kind: Any) -> None:
    x, v = samples(lib, 3, 8), field(lib, 8)
    whole, cut = (tkn.divergence(v, x, 5, rng=1, probes=kind, chunk_size=k) for k in (None, 2))
    close(lib.numpy(cut.value), lib.numpy(whole.value))
    source = lambda: probes.Source(1, tk.as_operator(samples(lib, 24, 24)))  # noqa: E731
    take = getattr(for_samples(kind, 3), "stream", None)
    if take is not None:
        one, parts = take(source(), 24, 5), take(source(), 24, 5)
        joined = lib.xp.concat([parts(2), parts(3)], axis=1)
        close(lib.numpy(joined), lib.numpy(one(5)))


def test_one_seed_gives_one_answer_in_both_libraries() -> None:
    for quantity, kind in itertools.product(QUANTITIES, (probes.hadamard, probes.orthogonal)):
        values = []
        for lib in map(library, ("torch", "jax")):
            f = call_of(quantity, lib, 5)
            found = quantity(f, samples(lib, 4, 5), 3, rng=11, probes=kind)
            values.append(np.stack([lib.numpy(found.value), lib.numpy(found.standard_error)]))
        close(*values, rtol=1e-9)


def test_generators_of_the_libraries_draw(torch: Any, jax: Any) -> None:
    there, here = library("torch"), library("jax")
    x = samples(there, 4, 5)
    source = torch.Generator().manual_seed(0)
    first, second = (tkn.divergence(field(there, 5), x, 2, rng=source).value for _ in range(2))
    assert not torch.equal(first, second)
    x = samples(here, 4, 5)
    first, second, again = (
        tkn.divergence(field(here, 5), x, 2, rng=jax.random.key(seed)).value for seed in (0, 1, 0)
    )
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)


# Programs of JAX ----------------------------------------------------------------------------------


@quantities
def test_jit_vmap_and_grad_of_jax(jax: Any, quantity: Any) -> None:
    lib = library("jax")
    x = samples(lib, 3, 4)
    f = call_of(quantity, lib, 4)
    for m in (None, 2):

        def value(x: Array, rng: Any, m: int | None = m) -> Array:
            return quantity(f, x, m, rng=rng, chunk_size=2)

        plain = value(x, 3)
        compiled = jax.jit(lambda x: value(x, 3))(x)
        close(compiled.value, plain.value)
        close(compiled.standard_error, plain.standard_error)
        assert compiled.method == quantity.__name__
        both = jax.vmap(lambda x: value(x, 3).value)(jax.numpy.stack([x, 2 * x]))
        close(both, [plain.value, value(2 * x, 3).value])
        slope = jax.grad(lambda t: value(t * x, 3).value.sum())(1.0)
        above, below = (value(t * x, 3).value.sum() for t in (1 + 1e-5, 1 - 1e-5))
        close(slope, (above - below) / 2e-5, rtol=1e-6)


def test_keys_and_means_under_jit(jax: Any) -> None:
    lib = library("jax")
    x, v = samples(lib, 6, 4), field(lib, 4)
    made = jax.jit(lambda key: tkn.divergence(v, x, 2, rng=key))
    found = made(jax.random.key(1))
    close(found.value, tkn.divergence(v, x, 2, rng=jax.random.key(1)).value)
    inside = jax.jit(lambda key: tkn.batch_mean(tkn.divergence(v, x, 2, rng=key)))
    inside, outside = inside(jax.random.key(1)), tkn.batch_mean(found)
    close(inside.value, outside.value)
    close(inside.standard_error, outside.standard_error)
    assert (inside.dof, outside.dof > 1) == (1, True)


def test_a_flow_in_a_scan_keeps_its_probe(jax: Any) -> None:
    """Of a linear field whose matrix is its own transpose, on samples that start as its axes."""
    lib, steps = library("jax"), 8
    x, v = samples(lib, 5, 3), field(lib, 3)

    def solve(trace: Callable[[Array], Array]) -> Array:
        def step(state: Any, _: Any) -> Any:
            x, logdet = state
            return (x + v(x) / 80, logdet + trace(x) / 80), None

        return jax.lax.scan(step, (x, jax.numpy.zeros(5)), None, length=steps)[0][1]

    exact = jax.jit(lambda: solve(lambda x: tkn.divergence(v, x).value))()
    by_key = jax.jit(lambda key: solve(lambda x: tkn.divergence(v, x, 2, rng=key).value))
    found = np.array([by_key(jax.random.key(seed)) for seed in range(60)])
    z = (found.mean(axis=0) - exact) / (found.std(axis=0) / 60**0.5)
    assert np.max(np.abs(z)) < 4
    close(by_key(jax.random.key(0)), found[0])


def test_reverse_rules_alone_will_do_in_jax(jax: Any) -> None:
    @jax.custom_vjp
    def cube(x: Array) -> Array:
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    x = samples(library("jax"), 4, 3)
    close(tkn.divergence(cube, x).value, 3 * (x**2).sum(1))
    close(tkn.laplacian(lambda x: cube(x).sum(1), x).value, 6 * x.sum(1))


def test_arrays_of_numpy_are_read_by_jax(jax: Any) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3))
    close(tkn.divergence(lambda x: jax.numpy.sin(x), x).value, np.cos(x).sum(1))


# Graphs of PyTorch --------------------------------------------------------------------------------


@quantities
def test_graphs_reach_samples_and_what_is_closed_over(torch: Any, quantity: Any) -> None:
    lib = library("torch")
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = samples(lib, 4, 3).requires_grad_()
    f = call_of(quantity, lib, 3)
    for m in (None, 2):
        g = lambda x: f(a * x)  # noqa: E731
        total = lambda: quantity(g, x, m, rng=0).value.sum()  # noqa: B023, E731
        by_a, by_x = torch.autograd.grad(total(), (a, x))
        with torch.no_grad():
            assert not total().requires_grad
            by_step = []
            for t in (a, x):
                ends = []
                for sign in (1, -1, -1):
                    t += sign * 1e-5
                    ends.append(total())
                t += 1e-5
                by_step.append((ends[0] - ends[2]) / 2e-5)
        close(by_a, by_step[0], rtol=1e-6)
        close(by_x.sum(), by_step[1], rtol=1e-6)
        only = torch.autograd.grad(quantity(g, x.detach(), m, rng=0).value.sum(), a)[0]
        close(only, by_a)
        alone = torch.autograd.grad(quantity(f, x, m, rng=0).value.sum(), x)[0]
        assert alone.shape == x.shape
    assert not quantity(f, x.detach(), rng=0).value.requires_grad
    assert a.grad is None
    assert x.grad is None


def test_what_v_is_given_besides_is_held_fixed(torch: Any) -> None:
    """Though its graph goes back to the samples."""
    x = samples(library("torch"), 4, 3).requires_grad_()
    h = x**2
    close(tkn.divergence(lambda z: z * h, x).value.detach(), h.sum(1).detach())


def test_transforms_of_torch(torch: Any) -> None:
    lib = library("torch")
    x = samples(lib, 2, 4, 3)
    for quantity, m in itertools.product(QUANTITIES, (None, 2)):
        f = call_of(quantity, lib, 3)
        value = lambda x: quantity(f, x, m, rng=0, chunk_size=2).value  # noqa: B023, E731
        expected = torch.stack([value(x[0]), value(x[1])])
        close(torch.func.vmap(value)(x), expected)
        a = torch.tensor(1.0, dtype=torch.float64)
        found = torch.func.grad(lambda a: value(a * x[0]).sum())(a)  # noqa: B023
        closed = lambda a: quantity(lambda x: f(a * x), x[0], m, rng=0).value.sum()  # noqa: B023, E731
        by_step = (closed(a + 1e-5) - closed(a - 1e-5)) / 2e-5
        close(torch.func.grad(closed)(a), by_step, rtol=1e-6)
        by_step = (value((1 + 1e-5) * x[0]) - value((1 - 1e-5) * x[0])).sum() / 2e-5
        close(found, by_step, rtol=1e-6)


def test_modes_of_torch_do_not_matter(torch: Any) -> None:
    lib = library("torch")
    x, v, f = samples(lib, 4, 3), field(lib, 3), function(lib, 3)
    expected = tkn.divergence(v, x).value, tkn.laplacian(f, x).value
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            close(tkn.divergence(v, x.clone()).value, expected[0])
            close(tkn.laplacian(f, x.clone()).value, expected[1])


def test_functions_may_write_into_their_samples(torch: Any) -> None:
    x = samples(library("torch"), 4, 3)
    before = x.clone()
    close(tkn.divergence(lambda x: x.mul_(3), x).value, 9 * np.ones(4))
    close(tkn.laplacian(lambda x: x.pow_(3).sum(1), x).value, 6 * x.sum(1))
    assert torch.equal(x, before)


def test_low_precision_is_met_and_kept_apart(torch: Any) -> None:
    W = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    inside = tkn.divergence(lambda x: torch.tanh(x.bfloat16() @ W.bfloat16()).float(), x, 3, rng=0)
    plain = tkn.divergence(lambda x: torch.tanh(x @ W), x, 3, rng=0)
    assert float((inside.value - plain.value).abs().max()) < 0.3
    half = tkn.divergence(lambda x: torch.tanh(x @ W.bfloat16()), x.bfloat16())
    assert half.value.dtype == torch.float32


def test_operations_without_a_rule_for_batches_go_one_by_one(torch: Any) -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Array) -> Array:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, g: Array) -> Array:
            return 3 * ctx.saved_tensors[0] ** 2 * torch.tensor(g.tolist(), dtype=g.dtype)

    x = samples(library("torch"), 4, 3)
    close(tkn.divergence(Cube.apply, x).value, 3 * (x**2).sum(1))


@libraries
def test_products_that_are_wrong_together_go_one_by_one(lib: Library) -> None:
    def wrong(v: Any, x: Array, *, graph: bool = True) -> Any:
        return v(x), lambda T: (2 * T if len(T) > 1 else T) * x

    backend: Any = SimpleNamespace(
        input_derivative=wrong, least_precision=lambda v, x: float(lib.xp.finfo(x.dtype).eps)
    )
    x, half = samples(lib, 4, 3), lambda x: x**2 / 2
    J = checked.Derivative(backend, half, half, x, "v")
    T = samples(lib, 5, 4, 3)
    close(lib.numpy(J.rows(T)), lib.numpy(T * x))
    close(lib.numpy(J.rows(2 * T)), lib.numpy(2 * T * x))


class _Own:
    """Sines by rules of their own, of which the first alone has a second derivative."""

    @staticmethod
    def made(torch: Any) -> dict[str, Callable[[Array], Array]]:
        from torch.autograd.function import once_differentiable

        class Right(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Array) -> Array:
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            def backward(ctx: Any, g: Array) -> Array:
                return g * ctx.saved_tensors[0].cos()

        class Once(Right):
            backward = staticmethod(once_differentiable(Right.backward))

        class Lost(Right):
            @staticmethod
            def forward(ctx: Any, x: Array) -> Array:
                ctx.save_for_backward(x + torch.pi / 2)
                ctx.slope = x.cos()
                return x.sin()

            @staticmethod
            def backward(ctx: Any, g: Array) -> Array:
                return g * ctx.slope

        class Leaves(Right):
            @staticmethod
            def backward(ctx: Any, g: Array) -> Array:
                return torch.tensor(g.tolist(), dtype=g.dtype) * ctx.saved_tensors[0].detach().cos()

        compiled = torch.compile(lambda x: x.sin(), backend="aot_eager")
        rules = {kind.__name__: kind.apply for kind in (Right, Once, Lost, Leaves)}
        return {**rules, "compiled": compiled}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_second_derivatives_that_own_rules_lose_are_refused(torch: Any) -> None:
    x = samples(library("torch"), 4, 3)
    for name, sin in _Own.made(torch).items():
        for f, expected in (
            (lambda x: sin(x).sum(1), -x.sin().sum(1)),  # noqa: B023
            (lambda x: (sin(x) + x**3).sum(1), (6 * x - x.sin()).sum(1)),  # noqa: B023
        ):
            for dtype, m in ((torch.float64, None), (torch.float32, 2)):
                if name == "Right":
                    found = tkn.laplacian(f, x.to(dtype), m, rng=0)
                    assert m or np.allclose(found.value, expected)
                    continue
                with pytest.raises(NotImplementedError, match="has no second derivative"):
                    tkn.laplacian(f, x.to(dtype), m, rng=0)


def test_own_rules_for_kinks_have_laplacians(torch: Any) -> None:
    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Array) -> Array:
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx: Any, g: Array) -> Array:
            return g * (ctx.saved_tensors[0] > 0)

    draw = torch.Generator().manual_seed(0)
    W, w = torch.randn(8, 100, generator=draw), torch.randn(100, generator=draw)
    for N in (1, 200):
        x = torch.randn(N, 8, generator=draw)
        assert not tkn.laplacian(lambda x: Relu.apply(x @ W) @ w, x, 2).value.any()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_divergences_whose_gradients_would_lack_a_part_refuse_them(torch: Any) -> None:
    lib = library("torch")
    x, a = samples(lib, 4, 3), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for name, sin in _Own.made(torch).items():
        if name in ("Lost", "Leaves"):
            continue  # a graph does not tell
        for m in (None, 1):
            value = tkn.divergence(lambda x: sin(a * x) + a * x**2, x, m, rng=0).value  # noqa: B023
            close(value.detach(), (a * (a * x).cos() + 2 * a * x).sum(1).detach())
            if name == "Right":
                (by_a,) = torch.autograd.grad(value.sum(), a)
                close(by_a, ((a * x).cos() - a * x * (a * x).sin() + 2 * x).sum().detach())
            else:
                with pytest.raises(NotImplementedError, match="v has no second derivative"):
                    value.sum().backward()


def test_a_loss_trains(torch: Any) -> None:
    """A field that is made free of divergence, where the samples are."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    x, optimiser = torch.randn(64, 3), torch.optim.Adam(net.parameters(), 0.02)
    before = tkn.divergence(net, x).value.square().mean().item()
    for step in range(40):
        optimiser.zero_grad()
        (tkn.divergence(net, x, 2, rng=step).value.square().mean()).backward()
        optimiser.step()
    assert tkn.divergence(net, x).value.square().mean().item() < 0.1 * before


# What cannot be right is refused ------------------------------------------------------------------


def _guided(xp: Any, x: Array) -> Array:
    """Two halves of a batch, with and without a condition, that are made one."""
    half = x.shape[0] // 2
    c, u = x[:half, :], x[half:, :]
    g = u + 2 * (c - u)
    return xp.tanh(xp.concat([g, g]))


def mixing(lib: Library) -> dict[str, Callable[[Array], Array]]:
    xp = lib.xp
    return {
        "the mean is taken off": lambda x: x - xp.mean(x, axis=0),
        "neighbours": lambda x: x + xp.roll(x, 1, axis=0),
        "two apart": lambda x: x * xp.roll(x, 2, axis=0),
        "reversed": lambda x: xp.flip(x, axis=0),
        "the last to all others": lambda x: x + x[-1:, :],
        "guidance": lambda x: _guided(xp, x),
        "partners": lambda x: xp.tanh(x) * xp.take(x, xp.asarray([2, 3, 0, 1, 6, 7, 4, 5]), axis=0),
        "one pair": lambda x: xp.concat([x[:1, :] * x[1:2, :], x[1:, :]]),
        "one pair, a little": lambda x: xp.concat([x[:1, :] + x[5:6, :] / 1e3, x[1:, :]]),
        "of other sizes": lambda x: xp.concat([x[:1, :] + x[1:2, :], 1e4 * x[1:, :]]),
        "attention": lambda x: xp.tanh(x @ x.T) @ x,
    }


@libraries
@pytest.mark.parametrize("name", mixing(library("numpy")))
def test_samples_that_mix_are_refused(lib: Library, name: str) -> None:
    v, x = mixing(lib)[name], samples(lib, 8, 4)
    for m in (None, 1, 3):
        with pytest.raises(ValueError, match="depends on what the other samples are"):
            tkn.divergence(v, x, m, rng=0)
        with pytest.raises(ValueError, match="depends on what the other samples are"):
            tkn.laplacian(lambda x: lib.xp.sum(v(x) ** 2, axis=1), x, m, rng=0)


@libraries
def test_mixing_that_cancels_in_the_sum_is_refused(lib: Library) -> None:
    x = samples(lib, 6, 3)

    def f(x: Array) -> Array:
        y = lib.xp.sum(x**2, axis=1)
        return y - lib.xp.mean(y)

    with pytest.raises(ValueError, match="depends on what the other samples are"):
        tkn.laplacian(f, x)


def test_mixing_in_derivatives_alone_is_refused(torch: Any) -> None:
    x = samples(library("torch"), 6, 3)
    with pytest.raises(ValueError, match="depends on what the other samples are"):
        tkn.divergence(lambda x: x + x.mean(0) - x.mean(0).detach(), x)


@libraries
def test_pairs_that_mix_are_refused_in_batches_of_any_size(lib: Library) -> None:
    xp = lib.xp
    for N, at in ((2, 1), (4, 1), (6, 1), (8, 7)):
        x = samples(lib, N, 3)
        with pytest.raises(ValueError, match="depends on what the other samples are"):
            tkn.divergence(
                lambda x: xp.concat([x[:1, :] * x[at : at + 1, :], x[1:, :]]),  # noqa: B023
                x, 1, rng=0,
            )  # fmt: skip
    x = samples(lib, 4, 3)

    def linear(x: Array) -> Array:  # in another sample, so that no second derivative shows it
        y = xp.sum(x**2, axis=1)
        return xp.concat([y[:1] + x[1:2, 0], y[1:]])

    def alone(x: Array) -> Array:  # whose gradients vanish at 0
        y = xp.sum(x**2, axis=1)
        return xp.concat([y[:1] + x[1:2, 0] * x[2:3, 0], y[1:]])

    for f, at in ((linear, x), (alone, x), (alone, 0 * x)):
        with pytest.raises(ValueError, match="depends on what the other samples are"):
            tkn.laplacian(f, at)


@libraries
def test_rounding_is_no_mixing(lib: Library) -> None:
    """Of derivatives that cancel, all or those of some samples."""
    xp, x = lib.xp, lib.xp.astype(samples(lib, 6, 4), lib.xp.float32)
    Q = lib.array(np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0])
    Q = xp.astype(Q, xp.float32)
    scale = xp.astype(lib.array(np.array([0.0, 1, 0, 1, 0, 1])), xp.float32)[:, None]
    for v in (lambda x: (x @ Q) @ Q.T - x, lambda x: (x @ Q) @ Q.T - x + scale * x):
        found = lib.numpy(tkn.divergence(v, x).value)
        assert np.all(np.abs(found - np.round(found)) < 1e-5)
    twice = lambda x: xp.sum((x @ Q) ** 2 - x**2 + x, axis=1)  # noqa: E731
    assert np.all(np.abs(lib.numpy(tkn.laplacian(twice, x).value)) < 1e-4)


@libraries
def test_products_that_are_not_linear_are_refused(lib: Library) -> None:
    def clipped(v: Any, x: Array, *, graph: bool = True) -> Any:
        return v(x), lambda T: lib.xp.clip(T * x, min=-0.1, max=0.1)

    backend: Any = SimpleNamespace(input_derivative=clipped, least_precision=lambda v, x: 1e-16)
    x, half = samples(lib, 4, 3), lambda x: x**2 / 2
    with pytest.raises(ValueError, match="depends on"):
        checked.Derivative(backend, half, half, x, "v").rows(samples(lib, 1, 4, 3))


def test_the_dtype_of_a_value_is_that_of_v(torch: Any) -> None:
    x = samples(library("torch"), 4, 3).float()
    assert tkn.divergence(lambda x: x.double() ** 2, x).value.dtype == torch.float64


def test_modules_in_training_mode_are_refused(torch: Any) -> None:
    x = torch.randn(6, 4)
    for layer in (torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)):
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), layer)
        for N, m in ((6, None), (6, 2), (1, 2)):
            if N > 1 or isinstance(layer, torch.nn.Dropout):
                with pytest.raises(ValueError, match="eval mode"):
                    tkn.divergence(net, x[:N], m, rng=0)
        net.eval()
        assert tkn.divergence(net, x).value.shape == (6,)


@libraries
def test_conditions_of_each_sample_are_no_mixing(lib: Library) -> None:
    x, t, xp = samples(lib, 6, 3), lib.array(np.linspace(0.1, 1, 6))[:, None], lib.xp
    expected = 3 * lib.numpy(t[:, 0])
    close(lib.numpy(tkn.divergence(lambda x: t * x, x).value), expected)
    scaled = tkn.laplacian(lambda x: xp.sum(t * x**2, axis=1) / 2, x)
    close(lib.numpy(scaled.value), expected)
    big = lib.array(10.0 ** np.arange(6))[:, None]
    close(lib.numpy(tkn.divergence(lambda x: big * x, x).value), 3 * lib.numpy(big[:, 0]))


@libraries
def test_what_has_no_trace_is_refused(lib: Library) -> None:
    xp, x, v = lib.xp, samples(lib, 4, 3), field(lib, 3)
    f = function(lib, 3)
    for bad, error, match in (
        (lambda: tkn.divergence(v, x[0, :]), ValueError, r"x\[None\]"),
        (lambda: tkn.divergence(v, x[:0, :]), ValueError, "must be of shape"),
        (lambda: tkn.divergence(v, {"x": x}), TypeError, "one array"),
        (lambda: tkn.divergence(v, xp.astype(x, xp.int64)), TypeError, "real floating-point"),
        (lambda: tkn.divergence(v, x + 0j), TypeError, "imaginary"),
        (lambda: tkn.divergence(lambda x: x + 0j, x), TypeError, "v returned dtype"),
        (lambda: tkn.divergence(lambda x: x[:, :2], x), ValueError, r"returned shape \(4, 2\)"),
        (lambda: tkn.divergence(lambda x: (x, x), x), TypeError, "not one array"),
        (lambda: tkn.divergence(lambda x: x / 0, x), ValueError, "NaN or infinite"),
        (lambda: tkn.laplacian(lambda x: xp.sum(x / 0, axis=1), x), ValueError, "NaN or inf"),
        (lambda: tkn.laplacian(v, x), ValueError, "one number for every sample"),
        (lambda: tkn.laplacian(lambda x: f(x)[:, None], x), ValueError, r"where \(4,\) is needed"),
        (lambda: tkn.divergence(v, x, 0), ValueError, "`num_matvecs` must be a positive"),
        (lambda: tkn.divergence(v, x, 1.5), ValueError, "`num_matvecs` must be a positive"),
        (lambda: tkn.divergence(v, x, True), ValueError, "`num_matvecs` must be a positive"),
        (lambda: tkn.divergence(v, x, 2, chunk_size=0), ValueError, "`chunk_size`"),
        (lambda: tkn.divergence(v, x, 2, probes="signs"), TypeError, "pass a function"),
        (lambda: tkn.divergence(v, x, 2, rng="seed"), TypeError, "rng"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            bad()  # type: ignore[no-untyped-call]


@libraries
def test_derivatives_that_are_not_finite_are_refused(lib: Library) -> None:
    x = lib.array(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        tkn.divergence(lambda x: lib.xp.sqrt(lib.xp.abs(x)), x)


# Means --------------------------------------------------------------------------------------------


@libraries
def test_means_of_a_batch(lib: Library) -> None:
    x, v = samples(lib, 5, 6), field(lib, 6)
    found = tkn.divergence(v, x, 3, rng=0)
    values, errors = lib.numpy(found.value), lib.numpy(found.standard_error)
    mean = tkn.batch_mean(found)
    assert lib.at_home(mean.value)
    close(float(mean), values.mean())
    close(float(mean.standard_error), np.sqrt(np.sum(errors**2)) / 5)
    assert mean.dof == int(2 * np.sum(errors**2) ** 2 / np.sum(errors**4))
    assert (mean.num_matvecs, mean.method) == (3, "divergence")
    exact = tkn.batch_mean(tkn.divergence(v, x))
    assert (float(exact.standard_error), exact.dof) == (0.0, 0)
    unknown = tkn.batch_mean(tkn.divergence(v, x, 1, rng=0))
    assert np.isinf(float(unknown.standard_error))
    single = tkn.batch_mean(tkn.divergence(v, x[:1, :], 3, rng=0))
    assert single.dof == 2
    for bad in (tk.diagonal(np.eye(3)), mean):
        with pytest.raises(ValueError, match="must be one of divergence or laplacian"):
            tkn.batch_mean(bad)
