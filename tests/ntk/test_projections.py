"""Projections of gradients, and kernels of them, against gradients and the same vectors."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn
from tracekit_ntk._factors import Dense, Lookup, Outer, dense, stack
from tracekit_ntk._projections import batches, contractions, vectors

Array = Any


class Net(NamedTuple):
    """Shapes of the parameters, a batch, and the function, of a namespace too."""

    shapes: dict[str, tuple[int, ...]]
    x: np.ndarray
    f: Callable[[Any, Any, Any], Any]
    falls_back: bool = False


def tied(xp: Any, p: Any, x: Any) -> Any:
    """A layer read twice, once transposed; a bias; two axes of outputs."""
    h = xp.tanh(x @ p["a"] + p["c"])
    h = xp.tanh(xp.tanh(h @ p["tied"]) @ p["tied"].T)
    return (h @ p["b"]).reshape(-1, 2, 3)


def tokens(xp: Any, p: Any, x: Any) -> Any:
    """An embedding that the head is tied to, and a layer of many positions."""
    h = xp.tanh(p["table"][x] + p["place"])
    h = xp.tanh(h @ p["w"])
    return h.mean(1) @ p["table"].T


def attention(xp: Any, p: Any, x: Any) -> Any:
    """Heads of a parameter of three axes, a scale, and one output without an axis."""
    q, k, v = (xp.einsum("nsd,dhe->nhse", x, p[name]) for name in "qkv")
    scores = xp.exp(xp.tanh(xp.einsum("nhse,nhte->nhst", q, k)))
    y = (scores / scores.sum(-1)[..., None]) @ v
    y = xp.einsum("nhse,hed->nsd", y, p["o"])
    return (xp.tanh(y) * p["scale"]).sum((1, 2))


def formed(xp: Any, p: Any, x: Any) -> Any:
    """A parameter that is read by a function of it, and by a layer."""
    return xp.tanh(x @ p["w"]) @ xp.sin(p["w"] * p["w"].T)


def unread(xp: Any, p: Any, x: Any) -> Any:
    return xp.tanh(x @ p["w"]) + p["zero"]


DRAWN = np.random.default_rng(0)
NETS = {
    "tied": Net(
        {"a": (4, 9), "b": (9, 6), "c": (9,), "tied": (9, 9)}, DRAWN.standard_normal((4, 4)), tied
    ),
    "tokens": Net(
        {"table": (11, 8), "place": (5, 8), "w": (8, 8)}, DRAWN.integers(0, 11, (3, 5)), tokens
    ),
    "attention": Net(
        {"q": (8, 2, 4), "k": (8, 2, 4), "v": (8, 2, 4), "o": (2, 4, 8), "scale": (8,)},
        DRAWN.standard_normal((3, 4, 8)),
        attention,
    ),
    "formed": Net({"w": (8, 8)}, DRAWN.standard_normal((3, 8)), formed, True),
    "unread": Net(
        {"w": (4, 3), "zero": (), "never": (5, 2), "empty": (0, 3)},
        DRAWN.standard_normal((1, 4)),
        unread,
    ),
}


class World:
    """One library, and networks in it."""

    def __init__(self, name: str) -> None:
        self.name, self.lib = name, pytest.importorskip(name)
        self.xp = self.lib if name == "torch" else self.lib.numpy
        self.made: dict[str, Any] = {}

    def array(self, x: Any) -> Array:
        return self.xp.asarray(np.asarray(x))

    def net(self, name: str) -> tuple[Any, Any, Any, Any]:
        """The function, parameters, samples, and the explicit Jacobian (N, O, P) of each leaf."""
        if name not in self.made:
            net, rng = NETS[name], np.random.default_rng(1)
            params = {k: self.array(rng.standard_normal(s) * 0.5) for k, s in net.shapes.items()}
            x = self.array(net.x)

            def f(p: Any, x: Any) -> Any:
                return net.f(self.xp, p, x)

            rev = self.lib.func.jacrev if self.name == "torch" else self.lib.jacrev
            J = rev(lambda p: f(p, x))(params)
            N, M = len(x), math.prod(f(params, x).shape) // len(x)
            J = {k: np.asarray(J[k]).reshape(N, M, math.prod(net.shapes[k])) for k in params}
            self.made[name] = f, params, x, J
        return self.made[name]


@pytest.fixture(params=["torch", "jax"], scope="module")
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def twin(J: dict[str, np.ndarray], params: Any, dim: int, seed: int) -> np.ndarray:
    """The same columns from gradients: ``u^T G v`` with the vectors of each cell."""
    side = 1 if dim < 256 else 2 if dim < 1024 else 4
    cells = -(-dim // side**2)
    shapes = {k: vectors.matrix_of(tuple(params[k].shape)) for k in sorted(params)}
    like = tk.as_operator(np.eye(1))
    height = sum(map(sum, shapes.values()))
    signs = tk.probes.Source(seed, like).signs((height, cells * side))
    total, at = 0.0, 0
    for name, (rows, columns) in shapes.items():
        U = signs[at : at + rows].reshape(rows, cells, side)
        V = signs[at + rows : at + rows + columns].reshape(columns, cells, side)
        at += rows + columns
        N, M, P = J[name].shape
        G = np.zeros((N, M, rows * columns), J[name].dtype)
        G[..., :P] = J[name]
        G = G.reshape(N, M, rows, columns)
        total = total + np.einsum("nmrcb,rca->nmcab", np.einsum("nmrs,scb->nmrcb", G, V), U)
    return total.reshape(N, M, -1)[:, :, :dim] / math.sqrt(dim)


def quietly(call: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """A call whose warning of what falls back is known."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        return call(*given, **options)


@pytest.mark.parametrize("dim", [1, 7, 300, 1030])
@pytest.mark.parametrize("name", NETS)
def test_columns_are_those_of_explicit_gradients(world: World, name: str, dim: int) -> None:
    if world.name == "jax" and dim in (1, 300):
        pytest.skip("every shape is compiled anew")
    f, params, x, J = world.net(name)
    call = quietly if NETS[name].falls_back else (lambda call, *a, **k: call(*a, **k))
    Z = np.asarray(call(tkn.project, f, params, x, dim, rng=3))
    assert Z.shape == (*f(params, x).shape, dim)
    expected = twin(J, params, dim, 3)
    np.testing.assert_allclose(Z.reshape(expected.shape), expected, atol=1e-11)


def test_convolutions(world: World) -> None:
    """Groups, strides, and weights in the layouts of both libraries."""
    rng = np.random.default_rng(0)
    x = world.array(rng.standard_normal((3, 4, 6, 6)))
    if world.name == "torch":
        conv = world.lib.nn.functional.conv2d
        params = {"a": (8, 4, 3, 3), "b": (8, 4, 3, 3), "c": (8, 1, 3, 3)}

        def f(p: Any, x: Any) -> Any:
            h = world.xp.tanh(conv(x, p["a"], padding=1, stride=2))
            h = world.xp.tanh(conv(h, p["b"], padding=1, groups=2))
            return conv(h, p["c"], groups=8).flatten(1)[:, :5]
    else:
        conv, axes = world.lib.lax.conv_general_dilated, ("NCHW", "HWIO", "NCHW")
        params = {"a": (3, 3, 4, 8), "b": (3, 3, 4, 8), "c": (3, 3, 1, 8)}

        def f(p: Any, x: Any) -> Any:
            h = conv(x, p["a"], (2, 2), "SAME", dimension_numbers=axes)
            h = conv(world.xp.tanh(h), p["b"], (1, 1), "SAME", dimension_numbers=axes,
                     feature_group_count=2)  # fmt: skip
            h = conv(world.xp.tanh(h), p["c"], (1, 1), "VALID", dimension_numbers=axes,
                     feature_group_count=8)  # fmt: skip
            return h.reshape(3, -1)[:, :5] if len(h) == 3 else h.reshape(len(h), -1)[:, :5]

    params = {k: world.array(rng.standard_normal(s) * 0.3) for k, s in params.items()}
    rev = world.lib.func.jacrev if world.name == "torch" else world.lib.jacrev
    J = {k: np.asarray(v).reshape(3, 5, -1) for k, v in rev(lambda p: f(p, x))(params).items()}
    for dim in (40, 1030):
        Z = np.asarray(tkn.project(f, params, x, dim, rng=0))
        np.testing.assert_allclose(Z, twin(J, params, dim, 0), atol=1e-11)


def test_one_seed_is_one_projection(world: World) -> None:
    """Of other samples, of fewer columns in a cell of the same kind, and in the other library."""
    f, params, x, _ = world.net("tied")
    Z = np.asarray(tkn.project(f, params, x, 300, rng=5))
    some = np.asarray(tkn.project(f, params, x[1:3], 300, rng=5))
    np.testing.assert_allclose(some, Z[1:3], atol=1e-12)
    fewer = np.asarray(tkn.project(f, params, x, 257, rng=5))
    np.testing.assert_allclose(fewer * math.sqrt(257 / 300), Z[..., :257], atol=1e-12)
    other = np.asarray(tkn.project(f, params, x, 300, rng=6))
    assert np.abs(other - Z).max() > 0.1
    assert np.abs(Z - np.asarray(tkn.project(f, params, x, 300))).max() > 0.1


def test_both_libraries_project_alike() -> None:
    found = []
    for name in ("torch", "jax"):
        world = World(name)
        f, params, x, _ = world.net("tokens")
        found.append(np.asarray(tkn.project(f, params, x, 64, rng=2)))
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)


def test_chunks_of_samples_cells_and_outputs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    f, params, x, J = world.net("tokens")
    expected = twin(J, params, 300, 0)
    monkeypatch.setattr(contractions, "NUMBERS_AT_ONCE", 10_000 if world.name == "jax" else 2000)
    monkeypatch.setattr(vectors, "NUMBERS_DRAWN", 3000)
    monkeypatch.setattr(batches, "chunk_of", lambda found, asked: 6)
    Z = tkn.project(f, params, x, 300, rng=0)
    np.testing.assert_allclose(np.asarray(Z), expected, atol=1e-11)


AXES = [
    ({}, "nabc,mdec->nmabde"),
    ({"trace_axes": 1}, "nabc,madc->nmbd"),
    ({"trace_axes": (1, 2)}, "nabc,mabc->nm"),
    ({"diagonal_axes": 2}, "nabc,mdbc->nmbad"),
    ({"trace_axes": 2, "diagonal_axes": 1}, "nabc,mabc->nma"),
    ({"diagonal_axes": 0}, "nabc,ndec->nabde"),
    ({"trace_axes": 0}, "nabc,ndec->abde"),
    ({"trace_axes": (0, 1, 2)}, "nabc,nabc->"),
]


@pytest.mark.parametrize(("axes", "spec"), AXES)
def test_kernels_and_errors_are_those_of_projections(
    world: World, axes: dict[str, Any], spec: str
) -> None:
    """In the shapes of `kernel`; errors by the spread of 16 groups of cells."""
    if world.name == "jax" and spec not in (AXES[4][1], AXES[6][1]):
        pytest.skip("every shape is compiled anew")
    f, params, x, _ = world.net("tied")
    Z = np.asarray(tkn.project(f, params, x, 300, rng=5)) * math.sqrt(300)
    cuts = 75 * np.arange(17) // 16 * 4  # 75 cells of four columns
    parts = [np.einsum(spec, Z[..., i:j], Z[..., i:j]) for i, j in itertools.pairwise(cuts)]
    K = tkn.projected_kernel(f, params, x, dim=300, rng=5, **axes)
    np.testing.assert_allclose(np.asarray(K.value), sum(parts) / 300, atol=1e-10)
    weights = np.diff(cuts) / 300
    means = [part / 300 / w for w, part in zip(weights, parts, strict=True)]
    spread = sum(w * (mean - sum(parts) / 300) ** 2 for w, mean in zip(weights, means, strict=True))
    np.testing.assert_allclose(np.asarray(K.standard_error), np.sqrt(spread / 15), atol=1e-9)
    assert tuple(K.value.shape) == tuple(tkn.kernel(f, params, x, **axes).shape)
    assert (K.num_matvecs, K.dof, K.converged) == (300, 15, True)


def test_kernels_between_two_batches(world: World) -> None:
    f, params, x, _ = world.net("tied")
    whole = tkn.projected_kernel(f, params, x, dim=70, rng=1, trace_axes=1)
    part = tkn.projected_kernel(f, params, x[:1], x[1:], dim=70, rng=1, trace_axes=1)
    for name in ("value", "standard_error"):
        mine, all_ = (np.asarray(getattr(K, name)) for K in (part, whole))
        np.testing.assert_allclose(mine, all_[:1, 1:], atol=1e-10)


@pytest.mark.parametrize("dim", [60, 300, 1030])
def test_errors_cover_and_values_are_unbiased(dim: int) -> None:
    """Of all entries over seeds: intervals of 95 % hold 90 to 99, and z-scores are small."""
    world = World("torch")
    f, params, x, J = world.net("tokens")
    flat = np.concatenate([J[k] for k in J], axis=2).reshape(33, -1)
    truth, runs = flat @ flat.T, 40 if dim < 1000 else 20
    held, values, errors = [], [], []
    for seed in range(runs):
        K = tkn.projected_kernel(f, params, x, dim=dim, rng=seed)
        low, high = (tkn.kernel_matrix(end).numpy() for end in K.confidence_interval())
        held.append((low <= truth) & (truth <= high))
        values.append(tkn.kernel_matrix(K.value).numpy())
        errors.append(tkn.kernel_matrix(K.standard_error).numpy())
    assert 0.9 < np.mean(held) < 0.99
    deviation = np.std(values, axis=0, ddof=1)
    z = (np.mean(values, axis=0) - truth) / (deviation / math.sqrt(runs))
    assert 0.7 < np.sqrt(np.mean(z**2)) < 1.3
    assert np.abs(z).max() < 5
    ratio = np.sqrt(np.mean(np.square(errors)) / np.mean(np.square(deviation)))
    assert 0.85 < ratio < 1.15


def test_single_outer_products_have_the_error_that_is_told() -> None:
    """Of one layer and one position, column by column: up to sqrt(8 / dim) on the diagonal."""
    rng, runs, dim = np.random.default_rng(0), 400, 128
    use = Outer(rng.standard_normal((1, 1, 1, 60)), rng.standard_normal((1, 1, 1, 1, 50)), True)
    signs = {"p": tuple(np.sign(rng.standard_normal((n, runs * dim))) for n in (60, 50))}
    Z = contractions.projected({"p": [use]}, signs, 1)
    found = np.mean(np.reshape(Z, (runs, dim)) ** 2, axis=1)
    assert np.std(found) / np.sum(dense([use], 3000) ** 2) == pytest.approx((8 / dim) ** 0.5, 0.15)


def uses_of(kind: str, rng: np.random.Generator) -> Any:
    """A use of a 2 x 2 parameter by two samples, two outputs and three positions."""

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    if kind == "dense":
        return Dense(drawn(2, 2, 3), start=1)
    if kind == "lookup":
        return Lookup(np.asarray([[0, 1, 1], [1, 1, 1]]), drawn(2, 2, 3, 2), 2)
    if kind == "groups":
        return Outer(drawn(2, 2, 3, 2), drawn(2, 2, 2, 3, 1), input_first=False)
    if kind == "slice":
        return Outer(drawn(2, 1, 3, 2), drawn(2, 2, 1, 3, 1), input_first=False, start=2)
    return Outer(drawn(2, 1, 3, 2), drawn(2, 2, 1, 3, 2), input_first=kind == "input first")


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize(
    "kind", ["input first", "output first", "groups", "slice", "lookup", "dense"]
)
def test_unbiased_over_all_signs(kind: str, side: int) -> None:
    """Every choice of signs of a 2 x 2 parameter, complex factors: the mean is the kernel."""
    use = uses_of(kind, np.random.default_rng(0))
    J = dense([use], 4)
    truth = np.einsum("nap,mbp->nmab", J, J.conj())
    total = 0.0
    choices = list(itertools.product([-1.0, 1.0], repeat=4 * side))
    for choice in choices:
        U, V = np.reshape(choice, (2, 2, side))
        Z = contractions.projected({"p": [use]}, {"p": (U, V)}, side)
        assert Z is not None
        expected = np.einsum("ra,nmrs,sb->nmab", U, J.reshape(2, 2, 2, 2), V).reshape(Z.shape)
        np.testing.assert_allclose(Z, expected, atol=1e-12)
        total = total + np.einsum("nak,mbk->nmab", Z, Z.conj()) / side**2
    np.testing.assert_allclose(total / len(choices), truth, atol=1e-10)


def test_uses_that_are_stacked_project_alike() -> None:
    rng = np.random.default_rng(0)
    uses = [uses_of(k, rng) for k in ("input first", "output first", "lookup", "lookup", "dense")]
    signs = {"p": (np.sign(rng.standard_normal((2, 4))), np.sign(rng.standard_normal((2, 4))))}
    apart, joined = (contractions.projected({"p": some}, signs, 2) for some in (uses, stack(uses)))
    np.testing.assert_allclose(apart, joined, atol=1e-12)


def test_gradients_that_are_formed_or_not_project_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    use = Outer(rng.standard_normal((3, 1, 9, 5)), rng.standard_normal((3, 2, 1, 9, 4)), True)
    signs = {"p": tuple(np.sign(rng.standard_normal((n, 8))) for n in (5, 4))}
    found = []
    for form in (True, False):
        monkeypatch.setattr(contractions, "_is_formed", lambda *_, form=form: form)
        found.append(contractions.projected({"p": [use]}, signs, 2))
    np.testing.assert_allclose(*found, atol=1e-12)


def test_matrices_of_parameters() -> None:
    shapes = {
        (): (1, 1), (7,): (4, 2), (0, 3): (0, 1), (64, 32): (64, 32), (1, 100): (10, 10),
        (64, 16, 3, 3): (64, 144), (3, 3, 16, 64): (144, 64), (50000, 4): (50000, 4),
        (512, 8, 64): (512, 512), (8, 64, 512): (512, 512),
    }  # fmt: skip
    assert {shape: vectors.matrix_of(shape) for shape in shapes} == shapes


# --- combinations of outputs ----------------------------------------------------------------------


def test_cotangents_combine_outputs(world: World) -> None:
    """Of one combination, or one for each sample: what all outputs give, combined."""
    f, params, x, _ = world.net("tied")
    rng = np.random.default_rng(0)
    Z, K = (np.asarray(call(f, params, x, **more)) for call, more in (
        (tkn.project, {"dim": 40, "rng": 1}), (tkn.kernel, {})))  # fmt: skip
    for shape in ((2, 3), (4, 2, 3)):
        c = rng.standard_normal(shape)
        every = np.broadcast_to(c, (4, 2, 3))
        mine = tkn.project(f, params, x, 40, rng=1, cotangent=world.array(c))
        np.testing.assert_allclose(mine, np.einsum("nab,nabk->nk", every, Z), atol=1e-11)
        pseudo = tkn.kernel(f, params, x, cotangent=world.array(c))
        truth = np.einsum("nab,mcd,nmabcd->nm", every, every, K)
        np.testing.assert_allclose(pseudo, truth, atol=1e-10)
        own = tkn.kernel(f, params, x, cotangent=world.array(c), diagonal_axes=0)
        np.testing.assert_allclose(own, np.diag(truth), atol=1e-10)
    two = world.array(c[:1]), world.array(c[1:])
    block = tkn.kernel(f, params, x[:1], x[1:], cotangent=two)
    np.testing.assert_allclose(block, truth[:1, 1:], atol=1e-10)
    found = tkn.projected_kernel(f, params, x[:1], x[1:], dim=40, rng=1, cotangent=two)
    mine = np.asarray(mine)
    np.testing.assert_allclose(found.value, mine[:1] @ mine[1:].T, atol=1e-10)


def test_complex_networks() -> None:
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        return jax.numpy.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))

    def f(p: Any, x: Any) -> Any:
        return ((x @ p["a"]) ** 2) @ p["b"]

    params, x, c = {"a": drawn(3, 9), "b": drawn(9, 2)}, drawn(3, 3), drawn(2)
    J = jax.jacrev(f, holomorphic=True)(params, x)
    J = {k: np.asarray(v).reshape(3, 2, -1) for k, v in J.items()}
    Z = np.asarray(tkn.project(f, params, x, 40, rng=0))
    np.testing.assert_allclose(Z, twin(J, params, 40, 0), atol=1e-10)
    combined = tkn.project(f, params, x, 40, rng=0, cotangent=c)
    np.testing.assert_allclose(combined, np.einsum("o,nok->nk", np.conj(c), Z), atol=1e-10)
    K = tkn.kernel(f, params, x)
    pseudo = np.einsum("o,nmop,p->nm", np.conj(c), K, c)
    np.testing.assert_allclose(tkn.kernel(f, params, x, cotangent=c), pseudo, atol=1e-9)
    found = tkn.projected_kernel(f, params, x, dim=1030, rng=0)
    low, high = np.asarray(found.value), np.asarray(found.standard_error)
    assert np.abs((low - np.asarray(K)) / high).max() < 6
    with pytest.raises(ValueError, match="must be real where the parameters are"):
        tkn.project(lambda w, x: x @ w, jax.numpy.ones((2, 2)), jax.numpy.ones((1, 2)), 4,
                    cotangent=jax.numpy.ones(2) * 1j)  # fmt: skip


# --- tolerances, and what is refused --------------------------------------------------------------


def test_columns_are_added_until_the_tolerance_is_met(world: World) -> None:
    f, params, x, J = world.net("tied")
    K = tkn.projected_kernel(f, params, x, dim=20_000, rtol=0.05, rng=0)
    assert K.converged
    assert 400 <= K.num_matvecs < 4000
    flat = np.concatenate([J[k] for k in J], axis=2).reshape(24, -1)
    truth, scale = flat @ flat.T, np.mean(np.sum(flat**2, axis=1))
    error = np.sqrt(np.mean(np.asarray(K.standard_error) ** 2)) / scale
    assert error <= 0.05
    miss = np.asarray(tkn.kernel_matrix(K.value)) - truth
    assert np.sqrt(np.mean(miss**2)) / scale < 0.1
    few = tkn.projected_kernel(f, params, x, dim=100, rtol=0.05, rng=0)
    assert (few.converged, few.num_matvecs) == (False, 100)
    trace = tkn.projected_kernel(f, params, x, dim=20_000, rtol=0.05, rng=0, trace_axes=(0, 1, 2))
    assert float(trace.standard_error) <= 0.05 * float(trace)
    assert trace.num_matvecs < K.num_matvecs


def test_errors_of_few_columns_are_infinite(world: World) -> None:
    f, params, x, _ = world.net("unread")
    one = tkn.projected_kernel(f, params, x, dim=1, rng=0)
    assert np.isinf(np.asarray(one.standard_error)).all()
    w = world.array(np.ones((1, 1)))
    few = tkn.projected_kernel(lambda w, x: x @ w, w, w, dim=3, rng=0)  # exact, by chance for all
    assert np.isinf(np.asarray(few.standard_error)).all()
    more = tkn.projected_kernel(lambda w, x: x @ w, w, w, dim=40, rng=0)
    assert float(more.value[0, 0, 0, 0]) == pytest.approx(1.0)
    assert float(more.standard_error[0, 0, 0, 0]) == 0.0


def test_compiled_programs_project_alike() -> None:
    world = World("jax")
    f, params, x, _ = world.net("tied")
    jax = world.lib

    def call(p: Any, x: Any, key: Any) -> Any:
        K = tkn.projected_kernel(f, p, x, dim=40, rng=key, trace_axes=(1, 2))
        return tkn.project(f, p, x, 40, rng=0), K

    key = jax.random.key(0)
    made, eager = jax.jit(call)(params, x, key), call(params, x, key)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-10)
    with pytest.raises(TypeError, match=r"jax\.jit"):
        jax.jit(lambda p: tkn.projected_kernel(f, p, x, dim=200, rtol=0.1, rng=0).value)(params)


def test_projections_keep_dtypes_and_gradients(world: World) -> None:
    xp = array_api_compat.array_namespace(world.array(1.0))
    rng = np.random.default_rng(0)
    shapes = ((2, 9), (9, 8))
    x, w = (xp.astype(world.array(rng.standard_normal(s)), xp.float32) for s in shapes)
    K = tkn.projected_kernel(lambda w, x: xp.tanh(x @ w / 9), w, x, dim=300, rng=0)
    assert K.value.dtype == K.standard_error.dtype == xp.float32
    assert tkn.project(lambda w, x: x @ w, w, x, 5).dtype == xp.float32
    tiny = tkn.projected_kernel(lambda w, x: 1e-12 * xp.tanh(x @ w / 9), w, x, dim=300, rng=0)
    shares = tiny.standard_error * 1e24 / K.standard_error  # of squares that are no numbers
    np.testing.assert_allclose(np.asarray(shares), 1, rtol=1e-3)

    def size(w: Any) -> Any:
        return (tkn.project(lambda w, x: xp.tanh(x @ w / 9), w, x, 5, rng=0) ** 2).sum()

    if world.name == "torch":
        leaf = w.clone().requires_grad_()
        [slope] = world.lib.autograd.grad(size(leaf), leaf)
    else:
        slope = world.lib.grad(size)(w)
    step = 1e-2
    change = (float(size(w + step)) - float(size(w - step))) / (2 * step)
    assert float(slope.sum()) == pytest.approx(change, rel=1e-2)


def test_what_is_refused(world: World) -> None:
    f, params, x, _ = world.net("tied")
    ones = world.array(np.ones((4, 2, 3)))
    for dim in (0, 2.5, True):
        with pytest.raises(ValueError, match="`dim` must be a positive integer"):
            tkn.project(f, params, x, dim)
    with pytest.raises(ValueError, match="`rtol` must be 0 or"):
        tkn.projected_kernel(f, params, x, dim=4, rtol=-0.1)
    with pytest.raises(ValueError, match="`cotangent` must be of the output's shape"):
        tkn.project(f, params, x, 4, cotangent=ones[0, 0])
    with pytest.raises(ValueError, match="names samples, but not whose"):
        tkn.projected_kernel(f, params, x, x, dim=4, cotangent=ones)
    with pytest.raises(ValueError, match="must be two, of x1 and of x2"):
        tkn.kernel(f, params, x, cotangent=(ones, ones))
    with pytest.raises(ValueError, match="structured derivatives only"):
        tkn.kernel(f, params, x, cotangent=ones, whole=True)
    with pytest.raises(ValueError, match="output has 1 axes"):
        tkn.projected_kernel(f, params, x, dim=4, cotangent=ones, trace_axes=1)
    with pytest.raises(ValueError, match="x2 is given"):
        tkn.projected_kernel(f, params, x, x, dim=4, trace_axes=0)
