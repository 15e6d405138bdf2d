"""JAX functions drawn at random, each with its parameters, its inputs and a change from outside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = Any
SAMPLES, WIDTH = 3, 4


@jax.custom_jvp
def bent(h: Array) -> Array:
    return jnp.where(h > 0, h, 0.1 * h)


bent.defjvps(lambda t, y, h: jnp.where(h > 0, t, 0.1 * t))


@jax.custom_vjp
def straight(h: Array) -> Array:
    return jnp.round(4 * h) / 4


straight.defvjp(
    lambda h: (straight(h), h), lambda h, g: (jnp.where(jnp.abs(h) < 2, g * jnp.cos(h), 0),)
)


def rows(h: Array) -> Array:
    """One more axis, of two positions."""
    return jnp.stack([h, jnp.sin(h)], axis=1)


# Each takes parameters, the hidden values of all samples (N, 4), and what f closes over.
LAYERS: dict[str, Callable[[Any, Array, Any], Array]] = {
    "linear": lambda p, h, s: jnp.tanh(h @ p["W"] + p["b"]),
    "tied": lambda p, h, s: jnp.sin(h @ p["W"]) @ p["W"].T,
    "scalar": lambda p, h, s: h * p["scale"] + p["one"],
    "one number": lambda p, h, s: h * p["one"] + h @ p["W"] * jnp.exp(p["scale"]),
    "gate": lambda p, h, s: h + p["gate"] * jnp.tanh(h @ p["W"]),
    "scan": lambda p, h, s: lax.scan(
        lambda c, t: (jnp.tanh(c @ p["W"] + t * p["b"]), c.sum()), h, jnp.arange(3.0) / 3
    )[0],
    "scan over layers": lambda p, h, s: lax.scan(
        lambda c, w: (jnp.tanh(c @ w) + c * s["scale"], None), h, p["stack"]
    )[0],
    "fori": lambda p, h, s: lax.fori_loop(0, 2, lambda i, c: c + jnp.sin(c @ p["W"]) * i, h),
    "while": lambda p, h, s: h * lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sqrt(c[1] + 1)), (0, jnp.abs(s["scale"]))
    )[1],
    "cond": lambda p, h, s: lax.cond(
        p["b"].sum() > 0, lambda h: jnp.tanh(h @ p["W"]), lambda h: h * p["b"], h
    ),
    "switch": lambda p, h, s: jax.vmap(
        lambda r: lax.switch(
            jnp.argmax(r) % 3, [lambda r: r @ p["W"], lambda r: r * p["b"], jnp.sin], r
        )
    )(h),
    "remat": lambda p, h, s: jax.checkpoint(lambda W, h: jnp.tanh(h @ W) ** 2)(p["W"], h),
    "custom_jvp": lambda p, h, s: bent(h @ p["W"] + p["b"]),
    "custom_vjp": lambda p, h, s: h + straight(h @ p["W"]) * p["b"],
    "own rule": lambda p, h, s: jax.nn.relu(h @ p["W"]) + jax.nn.softplus(h),
    "closure": lambda p, h, s: (h @ p["W"] - s["mean"]) * s["scale"],
    "mask": lambda p, h, s: jnp.where(s["mask"], h @ p["W"], h),
    "complex": lambda p, h, s: (jnp.exp(1j * h) @ p["W"]).real * p["b"],
    "complex power": lambda p, h, s: jnp.abs((h + 1j * jnp.cos(h)) @ p["W"]) ** 2 / 4,
    "phase": lambda p, h, s: jnp.imag(jnp.exp(1j * p["b"]) * (h * (1 + 2j))),
    "fft": lambda p, h, s: jnp.fft.irfft(jnp.fft.rfft(h, axis=1) @ p["W"][:3, :3], 4, axis=1),
    "cast": lambda p, h, s: ((h + 0j) @ p["W"].astype(complex)).real,
    "vmap": lambda p, h, s: jax.vmap(lambda r: jnp.tanh(p["W"] @ r) + p["b"])(h),
    "einsum": lambda p, h, s: jnp.einsum(
        "nia,abc,nic->nb", h.reshape(-1, 2, 2), p["K"][..., :2], h.reshape(-1, 2, 2)
    ) @ p["W"][:2],
    "outer": lambda p, h, s: jnp.einsum("na,ab,nb->n", h, p["W"], h)[:, None] * h / 4,
    "conv": lambda p, h, s: lax.conv_general_dilated(
        rows(h), p["K"], (1,), "SAME"
    ).sum(1),
    "depthwise": lambda p, h, s: lax.conv_general_dilated(
        rows(h), p["K"][:, :1], (1,), "SAME", feature_group_count=2
    )[:, 1],
    "gather": lambda p, h, s: h * p["table"][jnp.argmax(h, 1)],
    "take": lambda p, h, s: h + jnp.take(p["table"], jnp.argsort(h, axis=1)[:, 0], axis=0),
    "at set": lambda p, h, s: h.at[:, 1].set(h @ p["b"]).at[:, 0].add(p["scale"] * h[:, 2]),
    "at parameter": lambda p, h, s: h @ p["W"].at[0].multiply(2.0).at[1, 2].set(0.3),
    "concatenated": lambda p, h, s: h @ jnp.concatenate([p["W"][:2], p["W"][2:] * p["scale"]]),
    "low rank": lambda p, h, s: h @ (p["W"] + p["W"][:, :1] @ p["b"][None]),
    "weight norm": lambda p, h, s: h @ (p["W"] / jnp.linalg.norm(p["W"], axis=0)),
    "attention": lambda p, h, s: jnp.mean(
        jax.nn.softmax(rows(h) @ p["W"] @ jnp.swapaxes(rows(h), 1, 2)) @ rows(h), 1
    ),
    "norm": lambda p, h, s: (h - h.mean(1, keepdims=True)) / (1 + h.std(1, keepdims=True))
    * p["b"],
    "force": lambda p, h, s: jax.grad(lambda h: jnp.sum(jnp.tanh(h @ p["W"]) @ p["b"]))(h),
    "tangent": lambda p, h, s: jax.jvp(lambda h: jnp.sin(h @ p["W"]), (h,), (h + 1,))[1],
    "solve": lambda p, h, s: jnp.linalg.solve(p["W"] + 4 * jnp.eye(4), h.T).T,
    "map": lambda p, h, s: lax.map(lambda r: jnp.cos(r @ p["W"]), h),
    "sorted": lambda p, h, s: jnp.sort(h, axis=1) * p["b"],
    "cumulative": lambda p, h, s: jnp.cumsum(h * p["b"], axis=1),
    "stopped": lambda p, h, s: h * lax.stop_gradient(p["b"]) + h @ p["W"] * 0.3,
    "constant": lambda p, h, s: h + jnp.eye(4)[1] * np.arange(4.0) @ p["W"],
}  # fmt: skip
HEADS: dict[str, Callable[[Any, Array, Any], Array]] = {
    "linear": lambda p, h, s: h @ p["W"][:, :2],
    "itself": lambda p, h, s: h[:, :2] * h[:, 2:],
    "complex": lambda p, h, s: (jnp.exp(1j * h) @ p["W"])[:, :2],
}
SHAPES: dict[str, tuple[int, ...]] = {
    "W": (4, 4), "b": (4,), "scale": (), "gate": (), "one": (1,), "stack": (2, 4, 4),
    "K": (2, 2, 3), "table": (4, 4),
}  # fmt: skip


class Drawn:
    """A function of that seed: `f(params, x)`, and `change()` for what it closes over."""

    def __init__(self, seed: int, most: int = 4) -> None:
        rng = np.random.default_rng(seed)
        layers = rng.choice(sorted(LAYERS), rng.integers(1, most + 1))
        head = rng.choice(sorted(HEADS))
        self.names = [*map(str, layers), str(head)]
        self.rng = rng
        self.params = {
            name: jnp.asarray(rng.standard_normal(shape) / max(1, len(shape)) ** 0.5)
            for name, shape in SHAPES.items()
        }
        self.params["gate"] = jnp.zeros(())
        self.x = jnp.asarray(rng.standard_normal((SAMPLES, WIDTH)))
        self.state: dict[str, Array] = {}
        self.change()

    def change(self) -> None:
        """Other values of what f closes over."""
        self.state["scale"] = jnp.asarray(self.rng.uniform(0.5, 1.5))
        self.state["mean"] = jnp.asarray(self.rng.standard_normal(WIDTH))
        self.state["mask"] = jnp.asarray(self.rng.random(WIDTH) > 0.5)

    def f(self, p: Any, x: Array) -> Array:
        return self._of(p, x, self.state)

    def jacobian(self) -> np.ndarray:
        """(N O, P), complex where the outputs are."""
        parts = self._columns(self.params, self.x, self.state)
        return sum(unit * np.asarray(J) for unit, J in zip((1, 1j), parts, strict=False))

    def _of(self, p: Any, x: Array, state: dict[str, Array]) -> Array:
        for name in self.names[:-1]:
            x = LAYERS[name](p, x, state)
        return HEADS[self.names[-1]](p, x, state)

    @cached_property
    def _columns(self) -> Callable[..., list[Array]]:
        """Compiled once, whatever f closes over."""

        def of(part: Callable[[Array], Array], params: Any, x: Array, state: Any) -> Array:
            J = jax.jacrev(lambda p: jnp.ravel(part(self._of(p, x, state))))(params)
            return jnp.concatenate([j.reshape(j.shape[0], -1) for j in jax.tree.leaves(J)], axis=1)

        parts = [jnp.real, jnp.imag] if self.names[-1] == "complex" else [jnp.real]
        return jax.jit(lambda *given: [of(part, *given) for part in parts])
