"""The JAX capture: its factors make the explicit Jacobian, for every way to read a parameter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from jax import lax  # noqa: E402

import tracekit as tk  # noqa: E402
import tracekit_ntk as tkn  # noqa: E402
from tracekit_ntk._jax import rules as jax_rules  # noqa: E402
from tracekit_ntk._jax.capture import capture  # noqa: E402
from tracekit_ntk.factors import Lookup, Outer, dense  # noqa: E402

NHWC = ("NHWC", "HWIO", "NHWC")


def numbers(*shape, seed=0, scale=0.7):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) * scale)


def integers(high, *shape):
    return jnp.asarray(np.random.default_rng(0).integers(0, high, shape))


def parameters(**shapes):
    return {name: numbers(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}


def formed(found, chunk=None):
    """The Jacobian of each parameter from the factors, (N, O, P)."""
    chunk = chunk or found.outputs
    parts = {name: [] for name in found.sizes}
    for start in range(0, found.outputs, chunk):
        stop = min(start + chunk, found.outputs)
        for name, uses in found.uses(start, stop).items():
            blank = np.zeros((found.samples, stop - start, found.sizes[name]))
            uses = jax.tree.map(np.asarray, uses)  # nothing more to compile
            parts[name].append(dense(uses, found.sizes[name]) if uses else blank)
    return [np.concatenate(part, axis=1) for part in parts.values()]


def explicit(f, params, x, *, whole=False, transform=jax.jacrev):
    """The Jacobian of each parameter by autodiff of single samples, or of the whole batch."""

    def one(params, sample):
        return f(params, jax.tree.map(lambda part: part[None], sample))[0]

    jacobian = jax.jit(transform(f) if whole else jax.vmap(transform(one), (None, 0)))
    found, shapes = jacobian(params, x), [leaf.shape for leaf in jax.tree.leaves(params)]
    samples = 1 if whole else len(jax.tree.leaves(x)[0])
    return [
        np.asarray(J).reshape(samples, -1, int(np.prod(shape)))
        for J, shape in zip(jax.tree.leaves(found), shapes, strict=True)
    ]


def agrees(f, params, x, *, whole=False, chunk=None, transform=jax.jacrev):
    """The capture, after its Jacobian was found equal to the explicit one."""
    found = capture(f, params, x, whole=whole)
    wanted = explicit(f, params, x, whole=whole, transform=transform)
    for J, reference in zip(formed(found, chunk), wanted, strict=True):
        np.testing.assert_allclose(J, reference, rtol=0, atol=1e-10 * max(1, abs(reference).max()))
    return found


def operations(found):
    return {(path.strip("[']"), operation) for path, operation, *_ in found.report}


def unruled(found):
    return {path.strip("[']") for path, _, _, reason in found.report if reason}


# --- golden networks ------------------------------------------------------------------------------


def test_fully_connected_networks_in_two_parametrisations():
    def f(p, x):
        h = jnp.tanh(x @ p["W"] + p["b"])
        y = jax.nn.relu(x @ (p["w"] / jnp.sqrt(5.0)) + 0.1 * p["c"])
        return h @ p["V"] - y @ -(p["v"] * 0.3)

    shapes = {"W": (5, 6), "b": (6,), "V": (6, 5), "w": (5, 6), "c": (6,), "v": (6, 5)}
    found = agrees(f, parameters(**shapes), numbers(3, 5), chunk=2)
    assert found.outputs == 5
    assert not unruled(found)


def test_convolutions_of_strides_paddings_and_layouts():
    def f(p, x):
        h = lax.conv_general_dilated(x, p["a"], (2, 1), "SAME", dimension_numbers=NHWC)
        h = jax.nn.relu(h + p["b"]).transpose(0, 3, 1, 2)
        h = lax.conv_general_dilated(h, p["c"], (1, 2), [(2, -1), (0, 1)], (1, 1), (1, 2))
        h = lax.conv_general_dilated(h, p["d"], (1, 1), [(0, 0), (1, 0)], (2, 1))
        h = lax.conv_general_dilated(
            h.transpose(1, 2, 3, 0),
            p["e"],
            (2, 1),
            "SAME",
            dimension_numbers=("CHWN", "OHWI", "NHWC"),
        )
        return h.mean((1, 2)) @ p["W"]

    params = parameters(
        a=(3, 2, 2, 3), b=(3,), c=(4, 3, 2, 2), d=(3, 4, 2, 1), e=(2, 1, 2, 3), W=(2, 3)
    )
    assert not unruled(agrees(f, params, numbers(2, 6, 5, 2)))


def test_one_dimensional_and_transposed_convolutions():
    def f(p, x):
        h = jnp.tanh(lax.conv_general_dilated(x, p["a"], (2,), "VALID"))
        return lax.conv_transpose(h, p["t"], (2,), "SAME", dimension_numbers=("NCW", "WIO", "NCW"))

    assert not unruled(agrees(f, parameters(a=(3, 2, 3), t=(3, 3, 2)), numbers(2, 2, 7)))


def test_grouped_and_depthwise_convolutions():
    def f(p, x):
        h = lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", feature_group_count=2)
        h = jnp.tanh(h).transpose(0, 2, 3, 1)
        h = lax.conv_general_dilated(
            h, p["b"], (2, 1), "VALID", feature_group_count=4, dimension_numbers=NHWC
        )
        return h.sum((1, 2))

    params = parameters(a=(4, 2, 2, 2), b=(2, 2, 1, 8))
    assert not unruled(agrees(f, params, numbers(2, 4, 4, 4)))


def test_residual_network_with_pooling():
    def conv(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

    def f(p, x):
        h = jax.nn.relu(conv(x, p["a"]))
        h = h + conv(jax.nn.relu(conv(h, p["b"])), p["c"])
        h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return h.reshape(len(h), -1) @ p["W"]

    params = parameters(a=(3, 3, 1, 2), b=(3, 3, 2, 2), c=(1, 1, 2, 2), W=(8, 3))
    assert not unruled(agrees(f, params, numbers(2, 4, 4, 1)))


def elman(p, h, x):
    return jnp.tanh(h @ p["Wh"] + x @ p["Wx"] + p["b"])


def gru(p, h, x):
    (ir, iz, it), (hr, hz, ht) = (
        jnp.split(a @ w + b, 3, -1) for a, w, b in ((x, p["Wx"], p["b"]), (h, p["Wh"], p["c"]))
    )
    r, z = jax.nn.sigmoid(ir + hr), jax.nn.sigmoid(iz + hz)
    return (1 - z) * jnp.tanh(it + r * ht) + z * h


def lstm(p, state, x):
    h, c = jnp.split(state, 2, -1)
    i, f, g, o = jnp.split(h @ p["Wh"] + x @ p["Wx"] + p["b"], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c), c], -1)


CELLS = {
    "elman": (elman, 3, {"Wh": (3, 3), "Wx": (2, 3), "b": (3,)}),
    "gru": (gru, 2, {"Wh": (2, 6), "Wx": (2, 6), "b": (6,), "c": (6,)}),
    "lstm": (lstm, 4, {"Wh": (2, 8), "Wx": (2, 8), "b": (8,)}),
}


@pytest.mark.parametrize(("cell", "chunk"), [("elman", 5), ("gru", None), ("lstm", None)])
def test_scanned_recurrent_network(cell, chunk):
    step, width, shapes = CELLS[cell]

    def f(p, x):
        start = jnp.zeros((len(x), width), x.dtype)
        step_out = lambda h, t: 2 * (step(p, h, t),)  # noqa: E731
        return jnp.swapaxes(lax.scan(step_out, start, jnp.swapaxes(x, 0, 1))[1], 0, 1)

    found = agrees(f, parameters(**shapes), numbers(2, 4, 2), chunk=chunk)
    assert not unruled(found)
    if chunk:  # outputs of the first two steps: later ones are left out
        assert found.uses(0, chunk)["['Wh']"][0].G.shape == (2, chunk, 1, 2, width)


def test_unrolled_recurrent_network_is_one_use_of_each_weight():
    def f(p, x):
        h = jnp.zeros((len(x), 3), x.dtype)
        for t in range(x.shape[1]):
            h = elman(p, h, x[:, t])
        return h

    found = agrees(f, parameters(Wh=(3, 3), Wx=(2, 3), b=(3,)), numbers(2, 4, 2))
    [use] = found.uses(0, 3)["['Wh']"]
    assert use.G.shape == (2, 3, 1, 4, 3)


def test_recurrent_network_backwards_with_a_learned_start_and_read_out():
    def f(p, x):
        def step(h, t):
            h = elman(p, h, t)
            return h, h @ p["Wo"]

        start = jnp.broadcast_to(p["h"], (len(x), 3))
        h, ys = lax.scan(step, start, jnp.swapaxes(x, 0, 1), reverse=True)
        return jnp.concatenate([h, jnp.swapaxes(ys, 0, 1).reshape(len(x), -1)], 1)

    params = parameters(Wh=(3, 3), Wx=(2, 3), b=(3,), h=(3,), Wo=(3, 2))
    agrees(f, params, numbers(2, 4, 2), chunk=4)


def test_scan_over_layers_reads_them_as_groups():
    def f(p, x):
        def layer(carry, w):
            h, shared = carry
            h = jnp.tanh(h @ w["W"] * w["gain"] + w["b"]) @ shared
            return (h, shared), h.sum(-1)

        (h, shared), sums = lax.scan(layer, (x, p["S"]), p["layers"])
        return h @ shared.T + sums.sum(0)[:, None]

    layers = parameters(W=(2, 3, 3), gain=(2,), b=(2, 3))
    found = agrees(f, {"layers": layers, "S": numbers(3, 3)}, numbers(2, 3))
    [use] = found.uses(0, 3)["['layers']['W']"]
    assert use.X.shape == (2, 2, 1, 3)


def test_nested_scans():
    def f(p, x):
        def row(h, t):
            inner = lambda h, w: (jnp.tanh(h @ w + t @ p["V"] * p["g"]), None)  # noqa: E731
            return lax.scan(inner, h, p["W"])[0], h @ p["V"]

        h, ys = lax.scan(row, jnp.zeros((len(x), 2), x.dtype), jnp.swapaxes(x, 0, 1))
        return h + ys.sum(0)

    agrees(f, parameters(W=(3, 2, 2), V=(2, 2), g=()), numbers(2, 3, 2))


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]


def test_transformer_block():
    def f(p, x):
        h = norm(p["n1"], x)
        q, k, v = jnp.einsum("ntd,cdhe->cnhte", h, p["qkv"])
        a = jax.nn.softmax(q @ k.swapaxes(-1, -2) / jnp.sqrt(2.0))
        x = x + jnp.einsum("nhte,hed->ntd", a @ v, p["out"])
        return x + jax.nn.gelu(norm(p["n2"], x) @ p["up"]) @ p["down"]

    params = parameters(qkv=(3, 4, 2, 2), out=(2, 2, 4), up=(4, 5), down=(5, 4))
    for k, name in enumerate(("n1", "n2")):
        params[name] = {"g": numbers(4, seed=k), "b": numbers(4, seed=9 + k)}
    assert not unruled(agrees(f, params, numbers(2, 3, 4), chunk=5))


def test_embedding_with_tied_read_out():
    def f(p, ids):
        h = jnp.take(p["E"], ids, axis=0) * 2.0 + p["P"][: ids.shape[1]]
        return jnp.tanh(h).mean(1) @ p["E"].T

    found = agrees(f, parameters(E=(6, 3), P=(5, 3)), integers(6, 3, 4))
    kinds = {type(use) for use in found.uses(0, 6)["['E']"]}
    assert kinds == {Lookup, Outer}


def test_tied_autoencoder():
    found = agrees(
        lambda p, x: jnp.tanh(x @ p["W"]) @ p["W"].T, parameters(W=(4, 3)), numbers(3, 4)
    )
    assert {use.input_first for use in found.uses(0, 4)["['W']"]} == {True, False}


def test_scalar_output_and_trees_of_inputs():
    def f(p, x):
        return jnp.sum(jnp.tanh(x["a"] @ p[0] + x["b"][0]) ** 2, -1)

    found = agrees(f, [numbers(3, 4)], {"a": numbers(5, 3), "b": (numbers(5, 1, seed=1),)})
    assert found.output_shape == ()
    assert found.outputs == 1


# --- ways of reading ------------------------------------------------------------------------------


def part(w, s, first, width):
    return lax.dynamic_slice(w, (jnp.argmax(s), first), (4, width))


def branch(w, s):
    return lax.cond(s[0] > 0, lambda w: s @ w, lambda w: s @ w**2, w)


READ = {
    "fused columns": (lambda w, x: (x @ w[:, :2]) * jnp.tanh(x @ w[:, 2:]), (4, 4)),
    "fused rows": (lambda w, x: x[:, :2] @ w[:2] + jnp.tanh(x[:, 2:] @ w[2:]), (4, 3)),
    "overlapping": (lambda w, x: x @ w + jnp.tanh(x[:, :2] @ w[1:3]), (4, 3)),
    "layers by index": (lambda w, x: jnp.tanh(x @ w[0]) @ w[-1], (2, 4, 4)),
    "split": (lambda w, x: jnp.tanh(x @ jnp.split(w, 2, 1)[0]) @ jnp.split(w, 2, 1)[1].T, (4, 6)),
    "reversed": (lambda w, x: x @ w[::-1, ::2], (4, 4)),
    "left operand": (lambda w, x: (w @ x.T).T, (3, 4)),
    "vmapped": (lambda w, x: jax.vmap(lambda s: w @ s)(x), (3, 4)),
    "vector": (lambda w, x: jnp.outer(x @ w, jnp.arange(3.0)), (4,)),
    "permuted axes": (lambda w, x: jnp.einsum("nab,bac->nc", x.reshape(-1, 2, 2), w), (2, 2, 3)),
    "batched": (lambda w, x: jnp.einsum("nab,abc->nac", x.reshape(-1, 2, 2), w), (2, 2, 3)),
    "shared in a batch": (
        lambda w, x: lax.dot_general(
            x.reshape(-1, 2, 2).swapaxes(0, 1), jnp.broadcast_to(w, (2, 2, 3)),
            (((2,), (1,)), ((0,), (0,))),
        ).swapaxes(0, 1),
        (2, 3),
    ),
    "squared": (lambda w, x: x @ (w @ w), (4, 4)),
    "times itself": (lambda w, x: x * w * w, (4,)),
    "through exp": (lambda w, x: x @ jnp.exp(w), (4, 3)),
    "normalised": (lambda w, x: x @ (w / jnp.linalg.norm(w, axis=0)), (4, 3)),
    "masked": (lambda w, x: x @ jnp.where(jnp.arange(3) > 0, w, 0), (4, 3)),
    "concatenated": (lambda w, x: x @ jnp.concatenate([w, 2 * w], 1), (4, 3)),
    "stopped": (lambda w, x: x @ w + x @ lax.stop_gradient(w), (4, 3)),
    "solved": (lambda w, x: jnp.linalg.solve(w + 4 * jnp.eye(4), x.T).T, (4, 4)),
    "returned": (lambda w, x: jnp.broadcast_to(w, (len(x), 3)), (3,)),
    "checkpointed": (lambda w, x: jax.checkpoint(lambda w: jnp.tanh(x @ w))(w), (4, 3)),
    "custom derivative": (lambda w, x: jax.nn.relu(w) * x, (4,)),
    "branches": (lambda w, x: jax.vmap(lambda s: branch(w, s))(x), (4, 3)),
    "map": (lambda w, x: lax.map(lambda s: s @ w, x), (4, 3)),
    "fori": (lambda w, x: lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ w), x), (4, 4)),
    "sliced by a number": (lambda w, x: jax.vmap(lambda s: s * w[jnp.argmax(s)])(x), (4, 4)),
    "part by a number": (lambda w, x: jax.vmap(lambda s: s @ part(w, s, 1, 2))(x), (6, 3)),
    "rows from a number": (lambda w, x: lax.map(lambda s: s @ part(w, s, 0, 3), x), (6, 3)),
    "rows by numbers": (lambda w, x: w[jnp.argsort(x, axis=1), 1], (4, 3)),
    "columns by numbers": (lambda w, x: x[:, :3] @ w[:, jnp.arange(4) // 2], (3, 4)),
    "out of range": (lambda w, x: x @ jnp.take(w, jnp.arange(4), axis=0, mode="clip"), (3, 3)),
    "out of range, filled": (
        lambda w, x: x @ w.at[jnp.array([5, 1, 0, 2])].get(mode="fill", fill_value=0), (3, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("first", range(0, len(READ), 6))
def test_ways_of_reading(first):
    names = list(READ)[first : first + 6]

    def f(p, x):
        ys = [READ[name][0](p[name], x) for name in names]
        return jnp.sin(jnp.concatenate([y.reshape(len(x), -1) for y in ys], 1) + 0.3)

    agrees(f, parameters(**{name: READ[name][1] for name in names}), numbers(2, 4, seed=5))


def test_custom_derivatives_are_kept():
    @jax.custom_vjp
    def f(w, x):
        return x @ w

    f.defvjp(lambda w, x: (x @ w, x), lambda x, g: (3.0 * x.T @ g, jnp.zeros_like(x)))
    x = numbers(3, 4)
    [J] = formed(capture(lambda p, x: f(p, x), numbers(4, 2), x))
    np.testing.assert_allclose(J, 3 * explicit(lambda p, x: x @ p, numbers(4, 2), x)[0])


def test_casts_are_looked_through():
    w, x = numbers(4, 2), numbers(3, 4)
    found = capture(lambda w, x: x @ w.astype(jnp.float32).astype(w.dtype), w, x)
    [J], [wanted] = formed(found), explicit(lambda w, x: x @ w, w, x)
    np.testing.assert_allclose(J, wanted, rtol=1e-7)
    assert found.uses(0, 2)[""][0].G.dtype == w.dtype
    assert not unruled(found)


def test_while_loop_is_served_by_forward_mode():
    def f(w, x):
        w = lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, w))[1]
        return x @ w

    found = agrees(f, numbers(4, 3), numbers(2, 4), transform=jax.jacfwd)
    assert "while loop" in found.report[0][-1]


def test_unread_parameters_are_reported():
    found = agrees(lambda p, x: x @ p["a"], parameters(a=(4, 2), b=(3,)), numbers(2, 4))
    assert found.uses(0, 2)["['b']"] == []
    assert ("b", "none") in operations(found)


# --- complex numbers ------------------------------------------------------------------------------


def test_complex_parameters_of_a_holomorphic_function():
    params = jax.tree.map(lambda a: a + 0.3j * a[::-1], parameters(W=(4, 3), b=(3,)))

    def f(p, x):
        return jnp.log(jnp.cosh(x @ (2j * p["W"]) + p["b"]))

    found = capture(f, params, numbers(3, 4))
    for J, reference in zip(
        formed(found), explicit(f, params, numbers(3, 4), transform=holomorphic), strict=True
    ):
        np.testing.assert_allclose(J, reference, atol=1e-12)


def holomorphic(f):
    return jax.jacrev(f, holomorphic=True)


def test_real_parameters_that_multiply_complex_numbers():
    def f(p, x):
        h = jnp.exp(1j * x) @ p["W"]
        h = jnp.einsum("nd,dk->nk", h, p["V"])
        return jnp.abs(h) ** 2 + jnp.fft.irfft(jnp.fft.rfft(x, axis=1) @ p["V"], 4, axis=1)

    assert not unruled(agrees(f, parameters(W=(4, 3), V=(3, 4)), numbers(3, 4)))


def test_complex_outputs_of_real_parameters():
    params = parameters(W=(4, 3), b=(3,))

    def f(p, x):
        h = jnp.exp(1j * (x @ p["W"])) * jnp.tanh(x @ p["W"] + p["b"])
        return h @ (1j * p["W"].T)

    re = explicit(lambda p, x: f(p, x).real, params, numbers(3, 4))
    im = explicit(lambda p, x: f(p, x).imag, params, numbers(3, 4))
    for J, a, b in zip(formed(capture(f, params, numbers(3, 4))), re, im, strict=True):
        np.testing.assert_allclose(J, a + 1j * b, atol=1e-12)


def test_functions_without_a_complex_derivative_are_refused():
    w, x = numbers(4, 3) + 0j, numbers(2, 4)
    for f in (lambda w, x: (x @ w).real, lambda w, x: abs(x @ w) + 0j):
        with pytest.raises(ValueError, match="not holomorphic"):
            capture(f, w, x)


@pytest.mark.parametrize("compiled", [False, True])
def test_functions_without_a_complex_derivative_are_refused_under_jit(compiled):
    w, x = numbers(4, 3) + 0j, numbers(2, 4)
    run = jax.jit if compiled else lambda f: f
    for f in (lambda w, x: abs(x @ w) + 0j, lambda w, x: jnp.conj(x @ w)):
        for call in (
            lambda w, f=f: tkn.ntk_trace(f, w, x),
            lambda w, f=f: tkn.ntk(lambda w: f(w, x), w) @ jnp.ones((6, 1), complex),
            lambda w, f=f: tkn.sample_ntk(f, w, x) @ jnp.ones((6, 1), complex),
        ):
            with pytest.raises(ValueError, match="not holomorphic"):
                run(call)(w)


# --- samples --------------------------------------------------------------------------------------


def coupled(p, x):
    h = x @ p["W"]
    return (h - h.mean(0)) / (0.1 + h.std(0)) * p["g"]


def test_coupled_samples_are_refused_and_served_whole():
    params = parameters(W=(4, 3), g=(3,))
    with pytest.raises(ValueError, match="whole"):
        capture(coupled, params, numbers(3, 4))
    found = agrees(coupled, params, numbers(3, 4), whole=True, chunk=4)
    assert found.samples == 1
    assert found.output_shape == (3, 3)


def test_weakly_coupled_samples_are_seen():
    def f(w, x):
        h = x @ w
        return h + 1e-10 * h.mean(0)

    with pytest.raises(ValueError, match="batch"):
        capture(f, numbers(4, 3), numbers(3, 4))


def gated(p, x):
    h = jnp.tanh(x @ p["W"])
    return h + p["gate"] * h.mean(0, keepdims=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_samples_that_mix_behind_a_closed_gate_are_seen(compiled):
    params, x = {"W": numbers(4, 3), "gate": jnp.zeros(())}, numbers(3, 4)
    run = jax.jit if compiled else lambda f: f
    for call in (tkn.ntk_trace, lambda *a: tkn.sample_ntk(*a) @ jnp.ones((9, 1))):
        with pytest.raises(ValueError, match="samples"):
            run(lambda p, call=call: call(gated, p, x))(params)


def test_mixed_precision_is_no_mixing():
    def f(w, x):
        h = jax.nn.gelu(x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16))
        return (h @ w.astype(jnp.bfloat16)).astype(jnp.float32)

    w, x = numbers(16, 16).astype(jnp.float32) / 3, numbers(4, 16).astype(jnp.float32)
    wanted = np.sum(np.square(explicit(f, w, x)[0].astype(float)))
    assert float(tkn.ntk_trace(f, w, x)) == pytest.approx(wanted, rel=1e-2)
    assert float(tk.exact_trace(tkn.sample_ntk(f, w, x))) == pytest.approx(wanted, rel=1e-2)


def test_half_precision_does_not_overflow():
    w, x = jnp.ones((300, 4), jnp.float16), jnp.full((200, 300), 1, jnp.float16)
    trace = tkn.ntk_trace(lambda w, x: x @ w, w, x)
    assert (trace.dtype, float(trace)) == (jnp.float32, 240_000)


def test_wrong_factors_are_found_and_formed_instead(monkeypatch):
    real = jax_rules._RULES["dot_general"]

    def wrong(*given):
        rule = real(*given)
        return rule and replace(rule, factor=lambda G, X: rule.factor(2 * G, X))

    monkeypatch.setitem(jax_rules._RULES, "dot_general", wrong)
    with pytest.warns(UserWarning, match=r"\['W'\] .*its factors do not sum up.*right, but slower"):
        found = agrees(lambda p, x: jnp.sin(x @ p["W"]) + p["b"], parameters(W=(4, 3), b=(3,)),
                       numbers(2, 4))  # fmt: skip
    assert unruled(found) == {"W"}


def test_bad_functions_are_refused():
    w, x = numbers(4, 3), numbers(2, 4)
    with pytest.raises(ValueError, match="sample"):
        capture(lambda w, x: (x @ w).T, w, x)
    with pytest.raises(TypeError, match="one array"):
        capture(lambda w, x: (x @ w, x), w, x)
    with pytest.raises(ValueError, match="NaN"):
        capture(lambda w, x: jnp.log(-jnp.abs(x @ w)), w, x)
    with pytest.raises(TypeError, match="dtype"):
        capture(lambda w, x: x @ w, jnp.ones((4, 3), int), x)


# --- transformations ------------------------------------------------------------------------------


def recurrent(p, x):
    return lax.scan(lambda h, _: (jnp.tanh(h @ p["W"] + p["b"]), None), x, None, 2)[0] @ p["U"]


def energy(params, x):
    """|J|^2, of all parameters, by the factors."""
    found = capture(recurrent, params, x)
    uses = found.uses(0, found.outputs)
    return sum(jnp.sum(dense(uses[name], found.sizes[name]) ** 2) for name in found.sizes)


def energy_by_autodiff(params, x):
    def one(params, sample):
        return recurrent(params, sample[None])[0]

    found = jax.vmap(jax.jacrev(one), (None, 0))(params, x)
    return sum(jnp.sum(J**2) for J in jax.tree.leaves(found))


def test_composes_with_jit_grad_and_vmap():
    several = {name: jnp.stack([a, 2 * a]) for name, a in
               parameters(W=(3, 3), b=(3,), U=(3, 2)).items()}  # fmt: skip
    (values, slopes), (wanted, wanted_slopes) = (
        jax.jit(jax.vmap(jax.value_and_grad(e), (0, None)))(several, numbers(2, 3))
        for e in (energy, energy_by_autodiff)
    )
    np.testing.assert_allclose(values, wanted)
    for name in several:
        np.testing.assert_allclose(slopes[name], wanted_slopes[name], rtol=1e-8, atol=1e-10)


def test_what_is_closed_over_is_read_anew_and_compiles_nothing():
    state = {"scale": jnp.ones(3), "rule": 1.0}

    @jax.custom_jvp
    def scaled(h):
        return h

    scaled.defjvps(lambda t, y, h: t * state["rule"])
    w, x = numbers(4, 3), numbers(2, 4)

    def now():
        return capture(lambda w, x: scaled(x @ w) * state["scale"], w, x)

    found = [now(), now()]
    assert found[0]._plan is found[1]._plan
    state["scale"] = jnp.arange(3.0) + 2
    found.append(now())
    assert found[2]._plan is found[0]._plan
    state["rule"] = 3.0  # a number of Python in a rule
    found.append(now())
    assert found[3]._plan is not found[0]._plan
    [J] = formed(found[0])
    for one, factor in zip(found[2:], (1, 3), strict=True):
        np.testing.assert_allclose(formed(one)[0], factor * J * (np.arange(3) + 2)[:, None])


def test_functions_of_traced_values():
    def outer(scale, w, x):
        found = capture(f := lambda w, x: scale * (x @ w), w, x)
        capture(f, w, x)
        return dense(found.uses(0, 3)[""], 12).sum()

    w, x = numbers(4, 3), numbers(2, 4)
    slope = jax.jit(jax.grad(outer))(2.0, w, x)
    np.testing.assert_allclose(slope, 3 * x.sum())


# --- libraries of layers --------------------------------------------------------------------------


def test_flax_modules():
    nn = pytest.importorskip("flax.linen")
    double = {"param_dtype": jnp.float64}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            h = nn.LayerNorm(**double)(nn.Embed(5, 4, **double)(ids))
            h = h + nn.Dense(4, **double)(jax.nn.relu(h))
            return nn.Conv(4, (2,), feature_group_count=2, **double)(h)

    net, ids = Net(), integers(5, 2, 3)
    found = agrees(net.apply, jax.jit(net.init)(jax.random.key(0), ids), ids)
    assert not any(reason for *_, reason in found.report)


def test_equinox_modules():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0))
    net = eqx.nn.Sequential([
        eqx.nn.Conv1d(2, 3, 2, key=keys[0]), eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(9, 4, key=keys[1]), eqx.nn.LayerNorm(4),
    ])  # fmt: skip
    params, static = eqx.partition(net, eqx.is_inexact_array)
    f = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    assert not unruled(agrees(f, params, numbers(2, 2, 4)))


# --- compositions ---------------------------------------------------------------------------------

LAYERS = {
    "linear": lambda p, h: h @ p["W"],
    "tied": lambda p, h: h @ p["W"].T,
    "scaled": lambda p, h: h @ (p["W"] * 0.5) * p["g"],
    "bias": lambda p, h: jnp.tanh(h + p["b"]),
    "norm": lambda p, h: norm({"g": p["g"], "b": p["b"]}, h),
    "mix": lambda p, h: jax.nn.softmax(h @ jnp.swapaxes(h, 1, 2)) @ h,
    "conv": lambda p, h: lax.conv_general_dilated(
        h, p["K"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "depthwise": lambda p, h: lax.conv_general_dilated(
        h, p["K"][:, :1], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=3,
    ),
    "recurrent": lambda p, h: jnp.swapaxes(
        lax.scan(lambda c, t: 2 * (jnp.tanh(c @ p["W"] + t),), h[:, 0], h.swapaxes(0, 1))[1], 0, 1
    ),
    "lookup": lambda p, h: h * p["W"][jnp.argmax(h, -1)],
    "residual": lambda p, h: h + jnp.tanh(h @ p["W"][:, ::-1]),
}  # fmt: skip


@settings(derandomize=True, max_examples=3, deadline=None, database=None)
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=3), st.integers(0, 99))
def test_random_networks(layers, seed):
    def f(p, x):
        for name in layers:
            x = LAYERS[name](p, x)
        return x[:, :2]

    params = parameters(W=(3, 3), b=(3,), g=(3,), K=(2, 3, 3))
    found = agrees(f, params, numbers(2, 3, 3, seed=seed))
    unread = {name for name, operation in operations(found) if operation == "none"}
    assert all((found.uses(0, 6)[f"['{name}']"] == []) == (name in unread) for name in params)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_gradients_that_mix_are_noticed_at_any_scale(scale):
    rng = np.random.default_rng(0)
    x, W = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 4), (4, 2)))

    def f(W, x):
        mean = x.mean(0) @ W
        return jnp.float32(scale) * (x @ W + (mean - lax.stop_gradient(mean)))

    with pytest.raises(ValueError, match="not the sum of those by its samples"):
        tkn.ntk_trace(f, W, x)


def test_keys_as_inputs():
    x = {"x": numbers(3, 4), "key": jax.random.split(jax.random.key(1), 3)}
    W = numbers(4, 2)

    def one(W, x):
        return (x["x"] * jax.random.bernoulli(x["key"], 0.5, (4,))) @ W

    def f(W, x):
        return jax.vmap(one, (None, 0))(W, x)

    J = np.asarray(jax.jacrev(f)(W, x)).reshape(6, -1)
    found = tkn.ntk_trace(f, W, x), jax.jit(lambda W: tkn.ntk_norm(f, W, x))(W)
    np.testing.assert_allclose(found, (np.sum(J**2), np.linalg.norm(J @ J.T)), rtol=1e-12)
    np.testing.assert_allclose(tkn.sample_ntk(f, W, x).exact["trace"](), np.sum(J**2), rtol=1e-12)


@pytest.mark.parametrize("chunk", [None, 2])
def test_traces_through_scans_go_sample_by_sample(chunk):
    def f(p, x):
        def step(h, i):
            h = jnp.tanh(h @ p["W"] + i)
            return h, h @ p["V"]

        start = jnp.zeros((len(x), 3), x.dtype)
        i = jnp.swapaxes(x @ p["U"] + p["b"], 0, 1)
        return jnp.swapaxes(lax.scan(step, start, i)[1], 0, 1)

    params, x = parameters(W=(3, 3), U=(2, 3), b=(3,), V=(3, 2), unread=(2,)), numbers(4, 5, 2)
    wanted = sum(np.sum(np.square(J), axis=2) for J in explicit(f, params, x))
    found = tkn.ntk_diagonal(f, params, x, chunk_size=chunk)
    np.testing.assert_allclose(found.reshape(4, -1), wanted, rtol=1e-10)
    parts = tkn.ntk_trace(f, params, x, chunk_size=chunk, per_parameter=True)
    np.testing.assert_allclose(sum(parts.values()), np.sum(wanted), rtol=1e-10)
    assert parts["unread"] == 0
