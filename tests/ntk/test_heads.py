"""Networks that end in a linear map from fewer features, against explicit Jacobians."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import tracekit_ntk as tkn
from tracekit_ntk._backend import capture
from tracekit_ntk.kernel import (
    explain,
    jacobian_contraction,
    kernel,
    ntk_diagonal,
    ntk_norm,
    ntk_trace,
)

Array = Any
TOKENS, WIDTH = 7, 3


class World:
    """One library, arrays of it, and networks that end in more outputs than features."""

    def __init__(self, name: str) -> None:
        self.lib = pytest.importorskip(name)
        self.xp = self.lib if name == "torch" else self.lib.numpy
        self.rng = np.random.default_rng(0)
        self.known: dict[str, np.ndarray] = {}
        E, M, W, b = ((TOKENS, WIDTH), (WIDTH, WIDTH), (WIDTH, 5), (5,))
        self.small = {"a": self.drawn(4, WIDTH), "W": self.drawn(*W), "b": self.drawn(*b)}
        self.large = {"E": self.drawn(*E), "M": self.drawn(*M), "g": self.drawn(WIDTH)}
        self.large |= {"W": self.drawn(*W), "b": self.drawn(*b)}
        self.x, self.x2 = self.drawn(4, 4), self.drawn(2, 4)
        self.ids, self.ids2 = self.array([[1, 4, 1], [6, 0, 3]]), self.array([[5, 1, 5]])

    def array(self, x: Any) -> Array:
        return self.xp.asarray(np.asarray(x))

    def drawn(self, *shape: int) -> Array:
        return self.array(self.rng.standard_normal(shape))

    def features(self, p: Any, ids: Array) -> Array:
        """Attention, a normalisation and its scale: as in a transformer."""
        h = p["E"][ids]
        scores = self.xp.exp(h @ p["M"] @ self.xp.swapaxes(h, -1, -2) / 4)
        h = h + self.xp.tanh((scores / scores.sum(-1)[..., None]) @ h @ p["M"])
        h = h - h.mean(-1)[..., None]
        return h / (self.xp.mean(h * h, -1)[..., None] + 1e-3) ** 0.5 * p["g"]

    def gradients(self, f: Callable[[Any], Array], params: Any) -> list[np.ndarray]:
        if self.xp is not self.lib:
            return [*map(np.asarray, self.lib.tree.leaves(self.lib.grad(f)(params)))]
        p = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        found = self.lib.autograd.grad(f(p), [p[name] for name in sorted(p)], allow_unused=True)
        return [
            np.zeros(p[k].shape) if g is None else np.asarray(g)
            for k, g in zip(sorted(p), found, strict=True)
        ]


class Network(NamedTuple):
    f: Callable[[Any, Any], Array]
    params: dict[str, Array]
    x: Array
    x2: Array


def networks(world: World) -> dict[str, Network]:
    small, large = world.small, world.large
    tied = {name: large[name] for name in ("E", "M", "g")}
    whole = {**small, **large}

    def mlp(p: Any, x: Array) -> Array:
        y = world.xp.tanh(x @ p["a"]) @ p["W"]
        return y + p["b"] if "b" in p else y

    def language(p: Any, ids: Array) -> Array:
        return world.features(p, ids) @ p["W"] + p["b"]

    z = {name: leaf * (1 + 0.5j) for name, leaf in small.items()}
    return {
        "with a bias": Network(mlp, small, world.x, world.x2),
        "no bias": Network(mlp, {"a": small["a"], "W": small["W"]}, world.x, world.x2),
        "one more output": Network(mlp, {**small, "W": small["W"][:, :4], "b": small["b"][:4]},
                                   world.x, world.x2),
        "one sample": Network(mlp, small, world.x[:1], world.x2),
        "frozen head": Network(lambda p, x: mlp({**small, **p}, x), {"a": small["a"]},
                               world.x, world.x2),
        "frozen body": Network(lambda p, x: mlp({**small, **p}, x),
                               {"W": small["W"], "b": small["b"]}, world.x, world.x2),
        "complex": Network(mlp, z, world.x * (1 + 0j), world.x2 * (1 - 1j)),
        "all positions": Network(language, large, world.ids, world.ids2),
        "last position": Network(lambda p, ids: language(p, ids)[:, -1], large, world.ids,
                                 world.ids2),
        "tied": Network(lambda p, ids: world.features(p, ids) @ p["E"].T, tied, world.ids,
                        world.ids2),
        "tied, last position": Network(
            lambda p, ids: (world.features(p, ids) @ p["E"].T)[:, -1], tied, world.ids, world.ids2),
        "tied, frozen": Network(lambda p, ids: world.features({**whole, **p}, ids) @ whole["E"].T,
                                {"M": large["M"], "g": large["g"]}, world.ids, world.ids2),
    }  # fmt: skip


NAMES = [
    "with a bias", "no bias", "one more output", "one sample", "frozen head", "frozen body",
    "complex", "all positions", "last position", "tied", "tied, last position", "tied, frozen",
]  # fmt: skip


@pytest.fixture(scope="module", params=["torch", "jax"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def close(made: Any, truth: Any) -> None:
    made, truth = np.asarray(made), np.asarray(truth)
    assert made.shape == truth.shape
    np.testing.assert_allclose(made, truth, rtol=0, atol=1e-10 * np.abs(truth).max(initial=1e-300))


def explicit(world: World, name: str, x2: Array = None) -> np.ndarray:
    """The kernel from explicit Jacobians, as (N1, N2, S, O, S, O)."""
    key = f"{name}, {x2 is None}"
    if key not in world.known:
        f, params, x, _ = networks(world)[name]
        K = np.asarray(kernel(f, params, x, x2, implementation=jacobian_contraction))
        half, O = K.shape[2:][: (K.ndim - 2) // 2], K.shape[-1]  # noqa: E741
        world.known[key] = K.reshape(*K.shape[:2], *(*half[:-1], 1)[:1], O, *(*half[:-1], 1)[:1], O)
    return world.known[key]


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_found(world: World, name: str) -> None:
    f, params, x, _ = networks(world)[name]
    found = capture(f, params, x).head
    assert found is not None
    assert found.width == WIDTH < found.outputs
    assert found.body.outputs * found.outputs == capture(f, params, x).outputs * WIDTH


@pytest.mark.parametrize("name", NAMES)
def test_traces_diagonals_and_norms(world: World, name: str) -> None:
    f, params, x, _ = networks(world)[name]
    K, shape = explicit(world, name), f(params, x).shape
    diagonal = np.einsum("nnsoso->nso", K).real
    close(ntk_trace(f, params, x), diagonal.sum())
    close(ntk_diagonal(f, params, x), diagonal.reshape(shape))
    close(ntk_norm(f, params, x), np.linalg.norm(K))


@pytest.mark.parametrize("name", ["with a bias", "all positions", "tied"])
def test_diagonals_by_either_way(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f, params, x, _ = networks(world)[name]
    diagonal = np.einsum("nnsoso->nso", explicit(world, name)).reshape(f(params, x).shape)
    for shorter in (True, False):
        monkeypatch.setattr("tracekit_ntk._kernel.exact.is_shorter", lambda _, it=shorter: it)
        close(ntk_diagonal(f, params, x), diagonal)
    close(ntk_diagonal(f, params, x, chunk_size=1), diagonal)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_of_all_axes(world: World, name: str) -> None:
    f, params, x, x2 = networks(world)[name]
    places = f(params, x).ndim - 2
    for kinds in itertools.product("ctd", repeat=2 + places):
        for other in (None, x2) if kinds[0] == "c" and "d" not in kinds[1:] else (None,):
            K, letters, out = explicit(world, name, other), [], ""
            kind = (kinds[0], *kinds[1 : 1 + places], *"c"[places:], kinds[-1])
            for of, pair in zip(kind, ("nm", "st", "op"), strict=True):
                letters.append(pair if of == "c" else pair[0] * 2)
            (n, m), (s, t), (o, p) = letters
            axes = kinds[0], *([kinds[1]] if places else []), kinds[-1]
            named = "nso" if places else "no"
            out = "nm" if kinds[0] == "c" else "n" if kinds[0] == "d" else ""
            out += "".join(c for c, k in zip(named[1:], axes[1:], strict=True) if k == "d")
            crossed = [c for c, k in zip(named[1:], axes[1:], strict=True) if k == "c"]
            out += "".join(crossed) + "".join({"s": "t", "o": "p"}[c] for c in crossed)
            truth = np.einsum(f"{n}{m}{s}{o}{t}{p}->{out}", K if places else K[:, :, :1, :, :1])
            made = kernel(
                f, params, x, other,
                trace_axes=tuple(k for k, kind in enumerate(kinds) if kind == "t"),
                diagonal_axes=tuple(k for k, kind in enumerate(kinds) if kind == "d"),
            )  # fmt: skip
            close(made, truth)


@pytest.mark.parametrize("name", ["with a bias", "all positions", "tied"])
def test_chunks_and_whole_batches(world: World, name: str) -> None:
    f, params, x, x2 = networks(world)[name]
    K = explicit(world, name)
    diagonal = np.einsum("nnsoso->nso", K)
    close(ntk_trace(f, params, x, chunk_size=2), diagonal.sum())
    close(ntk_norm(f, params, x, chunk_size=2), np.linalg.norm(K))
    made = kernel(f, params, x, x2, trace_axes=1, chunk_size=2)
    close(made, kernel(f, params, x, x2, trace_axes=1))
    close(ntk_trace(f, params, x, whole=True), diagonal.sum())
    close(ntk_norm(f, params, x, whole=True), np.linalg.norm(K))
    close(ntk_diagonal(f, params, x, whole=True), diagonal.reshape(f(params, x).shape))


@pytest.mark.parametrize("name", ["with a bias", "tied"])
def test_parts_of_parameters(world: World, name: str) -> None:
    f, params, x, _ = networks(world)[name]
    traces, diagonals, norms = (
        of(f, params, x, per_parameter=True) for of in (ntk_trace, ntk_diagonal, ntk_norm)
    )
    for part in params:
        one = lambda p, x: f({**params, **p}, x)  # noqa: E731
        K = np.asarray(kernel(one, {part: params[part]}, x, implementation=jacobian_contraction))
        size = int(np.prod(K.shape[2 : 2 + (K.ndim - 2) // 2]))
        K = K.reshape(*K.shape[:2], size, size)
        close(traces[part], np.einsum("nnoo->", K))
        close(norms[part], np.linalg.norm(K))
        close(np.asarray(diagonals[part]).reshape(len(K), -1), np.einsum("nnoo->no", K))


@pytest.fixture
def ordinary(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leave the head's rule out from now on."""
    room = "_torch" if world.xp is world.lib else "_jax"
    where = f"tracekit_ntk.{room}.capture.Capture.head"
    return lambda: monkeypatch.setattr(where, None)


@pytest.mark.parametrize("rank", [3, 1, 0])
@pytest.mark.parametrize("name", ["with a bias", "tied"])
def test_gradients_at_every_rank(
    world: World, name: str, rank: int, ordinary: Callable[[], None]
) -> None:
    f, params, x, _ = networks(world)[name]
    key = "W" if "W" in params else "E"
    keep = world.array((np.arange(WIDTH) < rank) * 1.0)
    params = {**params, key: params[key] * keep}
    measures = (
        lambda p: ntk_trace(f, p, x),
        lambda p: (kernel(f, p, x, trace_axes=-1) ** 2).sum() + ntk_norm(f, p, x),
    )
    made = [world.gradients(measure, params) for measure in measures]
    ordinary()
    for some, measure in zip(made, measures, strict=True):
        for g, truth in zip(some, world.gradients(measure, params), strict=True):
            close(g, truth)


def falling_back(world: World) -> dict[str, Network]:
    xp, small, x = world.xp, world.small, world.x
    square = {"a": small["a"], "W": world.drawn(WIDTH, WIDTH)}
    twice = {"a": small["a"], "W": world.drawn(4, WIDTH)}
    scale = {**small, "s": world.drawn(5)}

    def mlp(p: Any, x: Array) -> Array:
        return xp.tanh(x @ p["a"]) @ p["W"]

    def softmax(p: Any, x: Array) -> Array:
        y = xp.exp(mlp(p, x))
        return y / y.sum(-1)[..., None]

    def both(p: Any, x: Array) -> Array:
        return xp.tanh(x @ p["W"]) @ p["W"].T

    return {
        "as many outputs": Network(mlp, square, x, x),
        "scaled": Network(lambda p, x: 2 * mlp(p, x), small, x, x),
        "scaled by a parameter": Network(lambda p, x: mlp(p, x) * p["s"], scale, x, x),
        "softmax": Network(softmax, small, x, x),
        "used twice": Network(both, twice, x, x),
        "some outputs": Network(lambda p, x: mlp(p, x)[:, 1:], small, x, x),
        "outputs turned": Network(lambda p, x: xp.flip(mlp(p, x), (1,)), small, x, x),
        "a sum of two": Network(lambda p, x: mlp(p, x) + x @ p["c"],
                                {**small, "c": world.drawn(4, 5)}, x, x),
        "a weight that is made": Network(lambda p, x: xp.tanh(x @ p["a"]) @ xp.tanh(p["W"]),
                                         small, x, x),
        "one number for a bias": Network(lambda p, x: mlp(p, x) + p["b"][:1], small, x, x),
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "as many outputs", "scaled", "scaled by a parameter", "softmax", "used twice", "some outputs",
    "outputs turned", "a sum of two", "a weight that is made", "one number for a bias",
])  # fmt: skip
def test_other_endings_go_the_ordinary_way(world: World, name: str) -> None:
    f, params, x, _ = falling_back(world)[name]
    assert capture(f, params, x).head is None
    K = np.asarray(kernel(f, params, x, implementation=jacobian_contraction))
    close(ntk_trace(f, params, x), np.einsum("nnoo->", K))


def test_what_is_changed_in_place_is_no_head() -> None:
    torch = pytest.importorskip("torch")
    W, x = torch.eye(2, 3, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)

    def doubled(p: Any, x: Array) -> Array:
        return (x.tanh() @ p).mul_(2)

    def moved(p: Any, x: Array) -> Array:
        h = x * p[0, 0]
        y = h @ W
        h.add_(p[0, 1])  # after it was read
        return y

    for f in (doubled, moved):
        assert capture(f, W, x).head is None
    assert float(ntk_trace(doubled, W, x)) == pytest.approx(24 * np.tanh(1) ** 2 * 2)


def test_a_head_that_is_told_wrongly_is_not_believed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, params, x, _ = networks(world)["tied"]
    room = "_torch" if world.xp is world.lib else "_jax"
    where = f"tracekit_ntk.{room}.capture.Head.direct"
    from tracekit_ntk._factors import Head

    right = Head.direct
    monkeypatch.setattr(where, lambda self, V: right(self, 2 * V))
    g = lambda p, ids: f(p, ids)  # noqa: E731
    turned = {**params, "g": params["g"] * 2}
    if world.xp is not world.lib:
        world.lib.clear_caches()
        g = lambda p, ids: f(p, ids)[:, :2]  # noqa: E731
    assert capture(g, turned, x).head is None


def test_it_compiles(world: World) -> None:
    if world.xp is world.lib:
        pytest.skip("of JAX")
    f, params, x, x2 = networks(world)["tied"]
    calls = world.lib.jit(
        lambda p: (ntk_trace(f, p, x), kernel(f, p, x, x2, trace_axes=2), ntk_norm(f, p, x))
    )
    trace, K, norm = calls(params)
    close(trace, ntk_trace(f, params, x))
    close(K, kernel(f, params, x, x2, trace_axes=2))
    close(norm, ntk_norm(f, params, x))


def test_explain_tells_of_the_head(world: World) -> None:
    f, params, x, _ = networks(world)["tied"]
    for trace in (True, False):
        told = explain(f, params, x, trace=trace)
        assert "7 outputs are linear in 3 features" in told
        assert "which the body reads too" in told
        assert "3 for 7" in told


def test_estimators_know_the_trace_by_it(world: World) -> None:
    f, params, x, _ = networks(world)["tied"]
    truth = np.einsum("nnsoso->", explicit(world, "tied"))
    operator = tkn.sample_ntk(f, params, x)
    close(operator.exact["trace"].value(), truth)
