"""Networks that end in a linear map from fewer features, against explicit Jacobians."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import tracekit as tk
import tracekit_ntk as tkn
from tracekit_ntk._backend import capture
from tracekit_ntk._factors import Head, Seen
from tracekit_ntk._kernel import trace_of_seen
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

    def run(self, calls: Callable[..., Any], *given: Any) -> Any:
        """Calls of the library under test, in JAX one program of them all."""
        return (calls if self.xp is self.lib else self.lib.jit(calls))(*given)

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
            found = self.lib.jit(self.lib.grad(f))(params)
            return [*map(np.asarray, self.lib.tree.leaves(found))]
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
        "complex, tied": Network(lambda p, ids: world.features(p, ids) @ p["E"].T,
                                 {name: leaf * (1 + 0.3j) for name, leaf in tied.items()},
                                 world.ids, world.ids2),
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
    "complex", "complex, tied", "all positions", "last position", "tied", "tied, last position",
    "tied, frozen",
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
        one = (*((1,) if K.ndim == 4 else ()), *K.shape[2 : 2 + (K.ndim - 2) // 2])
        world.known[key] = K.reshape(*K.shape[:2], *one, *one)
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


def reductions(world: World, name: str) -> Iterator[tuple[dict[str, Any], bool, np.ndarray]]:
    """Axes to trace, or to take the diagonal of, whether of two batches, and what is to come."""
    f, params, x, x2 = networks(world)[name]
    places = f(params, x).ndim - 2
    named = "nso" if places else "no"
    for kinds in itertools.product("ctd", repeat=2 + places):
        options = {
            "trace_axes": tuple(k for k, kind in enumerate(kinds) if kind == "t"),
            "diagonal_axes": tuple(k for k, kind in enumerate(kinds) if kind == "d"),
        }
        of = dict(zip(named, kinds, strict=True))
        other = {c: {"n": "m", "s": "t", "o": "p"}[c] if of.get(c) == "c" else c for c in "nso"}
        kept = "".join(c for c in named[1:] if of[c] == "d")
        crossed = "".join(c for c in named[1:] if of[c] == "c")
        out = {"c": "nm", "d": "n", "t": ""}[kinds[0]] + kept
        out += crossed + "".join(other[c] for c in crossed)
        form = f"n{other['n']}so{other['s']}{other['o']}->{out}"
        yield options, False, np.einsum(form, explicit(world, name))
        if kinds[0] == "c" and "d" not in kinds:
            yield options, True, np.einsum(form, explicit(world, name, x2))


@pytest.mark.parametrize("name", NAMES)
def test_kernels_of_all_axes(world: World, name: str) -> None:
    f, params, x, x2 = networks(world)[name]
    if world.xp is not world.lib and name not in ("with a bias", "complex", "tied"):
        pytest.skip("compiles for long, and is seen in PyTorch")
    every = [*reductions(world, name)]

    def calls(params: Any) -> list[Array]:
        return [kernel(f, params, x, x2 if two else None, **options) for options, two, _ in every]

    for made, (_, _, truth) in zip(world.run(calls, params), every, strict=True):
        close(made, truth)


def test_outputs_seen_through_roots(world: World) -> None:
    for name in ("with a bias", "tied"):
        f, params, x, _ = networks(world)[name]
        K, found = explicit(world, name), capture(f, params, x)
        N, _, S, O = K.shape[:4]  # noqa: E741
        root = np.random.default_rng(1).standard_normal((N, S, O, 2))
        truth = np.einsum("nsor,nnsosp,nspr->", root, K, root)
        W = np.asarray(found.head.weight)
        H = root @ root.swapaxes(-1, -2)
        seen = Seen(*map(world.array, (W.T @ H @ W, (root**2).sum((-1, -2)), H @ W)))
        close(trace_of_seen(found, params, None, seen), truth)
        close(trace_of_seen(found, params, 2, seen), truth)
        parts = trace_of_seen(found, params, None, seen, per_parameter=True)
        close(sum(np.asarray(part) for part in parts.values()), truth)


@pytest.mark.parametrize("name", ["with a bias", "all positions", "tied"])
def test_chunks_and_whole_batches(world: World, name: str) -> None:
    f, params, x, x2 = networks(world)[name]
    K = explicit(world, name)
    diagonal = np.einsum("nnsoso->nso", K)
    close(ntk_trace(f, params, x, chunk_size=2), diagonal.sum())
    close(ntk_norm(f, params, x, chunk_size=2), np.linalg.norm(K))
    made = kernel(f, params, x, x2, trace_axes=1, chunk_size=2)
    close(made, kernel(f, params, x, x2, trace_axes=1))
    close(kernel(f, params, x, whole=True).reshape(K.shape), K)
    close(ntk_trace(f, params, x, whole=True), diagonal.sum())
    close(ntk_norm(f, params, x, whole=True), np.linalg.norm(K))
    close(ntk_diagonal(f, params, x, whole=True), diagonal.reshape(f(params, x).shape))


@pytest.mark.parametrize("loss", [tkn.losses.softmax_cross_entropy, tkn.losses.squared_error])
@pytest.mark.parametrize("name", [name for name in NAMES if "complex" not in name])
def test_traces_of_gauss_newton_matrices(world: World, name: str, loss: tkn.losses.Loss) -> None:
    f, params, x, _ = networks(world)[name]
    K, y = explicit(world, name), np.asarray(f(params, x))
    p = np.exp(y - y.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).reshape(K.shape[0], K.shape[2], -1)
    H = np.broadcast_to(np.eye(y.shape[-1]), (*p.shape, y.shape[-1]))
    if loss is tkn.losses.softmax_cross_entropy:
        H = p[..., None] * H - p[..., None] * p[..., None, :]
    K = np.einsum("nnsosp->nsop", K)
    close(tkn.ggn_trace(f, params, x, loss), np.sum(K * H))
    known = tkn.ggn(f, params, x, loss).exact
    assert known is not None
    close(known["trace"](), np.sum(K * H))


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
    engine = importlib.import_module(f"tracekit_ntk.{room}.capture")
    return lambda: monkeypatch.setattr(engine.Capture, "head", None)


@pytest.mark.parametrize(
    ("name", "rank"), [("with a bias", 0), ("with a bias", 1), ("tied", 1), ("tied", 3)]
)
def test_gradients_at_every_rank(
    world: World, name: str, rank: int, ordinary: Callable[[], None]
) -> None:
    f, params, x, _ = networks(world)[name]
    key = "W" if "W" in params else "E"
    keep = world.array((np.arange(WIDTH) < rank) * 1.0)
    params = {**params, key: params[key] * (keep[:, None] if key == "W" else keep)}
    if world.xp is not world.lib and (name, rank) not in (("with a bias", 0), ("tied", 1)):
        pytest.skip("compiles for long, and is seen in PyTorch")
    measures = (
        lambda p: ntk_trace(f, p, x),
        lambda p: (kernel(f, p, x, trace_axes=-1) ** 2).sum() + ntk_norm(f, p, x),
    )
    measures = measures if world.xp is world.lib else measures[:1]
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


@pytest.mark.filterwarnings("ignore:.*slower")
@pytest.mark.parametrize("name", [
    "as many outputs", "scaled", "scaled by a parameter", "softmax", "used twice", "some outputs",
    "outputs turned", "a sum of two", "a weight that is made", "one number for a bias",
])  # fmt: skip
def test_other_endings_go_the_ordinary_way(world: World, name: str) -> None:
    f, params, x, _ = falling_back(world)[name]
    assert capture(f, params, x).head is None
    K = np.asarray(kernel(f, params, x, implementation=jacobian_contraction))
    close(ntk_trace(f, params, x), np.einsum("nnoo->", K))


@pytest.mark.filterwarnings("ignore:.*slower")
def test_a_parameter_without_a_rule_keeps_the_head(world: World) -> None:
    f, params, x, _ = networks(world)["tied"]
    params = {**params, "s": world.drawn(WIDTH)}

    def g(p: Any, ids: Array) -> Array:  # read before any sample is; no rule for it
        return f({**p, "g": p["g"] * world.xp.tanh(p["s"])}, ids)

    assert capture(g, params, x).head is not None
    K = np.asarray(kernel(g, params, x, implementation=jacobian_contraction))
    close(kernel(g, params, x), K)
    close(ntk_trace(g, params, x), np.einsum("nnsoso->", K))


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
    right = Head.direct
    for part in (lambda p, ids: f(p, ids)[:, :2], lambda p, ids: f(p, ids)[:, 1:]):
        monkeypatch.setattr(Head, "direct", right)
        assert capture(part, params, x).head is not None
        monkeypatch.setattr(Head, "direct", lambda self, V: right(self, 2 * V))
        other = lambda p, ids: part(p, ids)[:, :1]  # noqa: B023, E731
        assert capture(other, params, x).head is None


def spellings(world: World) -> dict[str, Callable[[Any, Any], Array]]:
    xp, lib = world.xp, world.lib

    def body(p: Any, ids: Array) -> Array:
        return xp.tanh(p["E"][ids] @ p["M"])

    if xp is not lib:
        return {
            "mapped": lib.vmap(lambda p, ids: p["W"].T @ body(p, ids)[0] + p["b"], (None, 0)),
            "einsum": lambda p, ids: xp.einsum("nsd,do->nso", body(p, ids), p["W"]) + p["b"],
            "compiled": lib.jit(lambda p, ids: (body(p, ids) @ p["W"] + p["b"])[:, 0]),
            "turned": lambda p, ids: xp.swapaxes(xp.swapaxes(body(p, ids), 0, 1) @ p["W"], 0, 1),
            "reversed": lambda p, ids: (body(p, ids) @ p["W"])[:, ::-1] + p["b"],
        }
    F = lib.nn.functional

    def flat(p: Any, ids: Array) -> Array:
        return F.linear(body(p, ids).flatten(0, 1), p["W"].t()).unflatten(0, (len(ids), -1))

    return {
        "linear": lambda p, ids: F.linear(body(p, ids), p["W"].t(), p["b"]),
        "addmm": lambda p, ids: lib.addmm(p["b"], body(p, ids)[:, 0], p["W"], beta=2, alpha=3),
        "in place": lambda p, ids: (body(p, ids) @ (p["W"] * 2)).add_(p["b"]),
        "chosen": lambda p, ids: (body(p, ids) @ p["W"] + p["b"])[
            lib.arange(len(ids)), ids[:, 0] % 3
        ],
        "turned": lambda p, ids: (body(p, ids).transpose(0, 1) @ p["W"]).transpose(0, 1),
        "flat": flat,
    }


def test_other_spellings(world: World) -> None:
    params = {name: world.large[name] for name in ("E", "M", "W", "b")}
    for name, f in spellings(world).items():
        assert capture(f, params, world.ids).head is not None, name
        K = np.asarray(kernel(f, params, world.ids, implementation=jacobian_contraction))
        close(kernel(f, params, world.ids), K)
        size = int(np.prod(K.shape[2 : 2 + (K.ndim - 2) // 2]))
        close(ntk_trace(f, params, world.ids), np.einsum("nnoo->", K.reshape(2, 2, size, size)))


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
    close(tk.exact_trace(operator).value, truth)
