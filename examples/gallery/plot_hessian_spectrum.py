"""The spectrum of a Hessian
=========================

How sharp is the minimum that training has found? The Hessian of the loss answers: its largest
eigenvalue limits the step of gradient descent, its negative ones are ways down that are left, and
where most are near zero the loss is flat in most directions. A network of P parameters has a
Hessian of :math:`P^2` entries, but a product with it costs two gradients.
"""

# %%
# A network of 1,210 parameters for handwritten digits, small enough for the exact Hessian.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

import tracekit as tk

images, labels = load_digits(return_X_y=True)
x = jnp.asarray(images / 16, dtype=jnp.float32)
y = jax.nn.one_hot(labels, 10, dtype=jnp.float32)
rng = np.random.default_rng(0)
tree = [
    {"W": jnp.asarray(rng.standard_normal((a, b)) / a**0.5, "float32"), "b": jnp.zeros(b)}
    for a, b in ((64, 16), (16, 10))
]
start, unravel = ravel_pytree(tree)
P = start.size


def loss(theta):
    first, second = unravel(theta)
    logits = jnp.tanh(x @ first["W"] + first["b"]) @ second["W"] + second["b"]
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), axis=1))


slope = jax.jit(jax.grad(loss))
end = start
for _ in range(300):
    end = end - 0.5 * slope(end)

# %%
# A function is an operator. This one takes blocks of NumPy vectors and gives NumPy back, so that
# JAX does the derivatives and nothing else; the Hessian is its own adjoint.
# :func:`tracekit.spectral_density` takes twenty steps of Lanczos from each of ten random vectors,
# :func:`tracekit.xtrace` has the trace.
budget = 200


@jax.jit
def curvature(theta, V):
    return jax.vmap(lambda v: jax.jvp(jax.grad(loss), (theta,), (v,))[1], 1, 1)(V)


def hessian(theta):
    def product(V):
        return np.asarray(curvature(theta, V))

    return tk.LinearOperator((P, P), product, product, dtype="float32")


print(f"Hessian of {P} parameters: {budget} products for each line, {P} for all of it")
densities, exact = {}, {}
for name, theta in {"before training": start, "after training": end}.items():
    densities[name] = tk.spectral_density(hessian(theta), budget, rng=1, depth=20)
    trace = tk.xtrace(hessian(theta), budget, rng=0)
    exact[name] = np.linalg.eigvalsh(curvature(theta, np.eye(P, dtype="float32")))
    sharpest, (low, high) = np.max(densities[name].nodes), trace.confidence_interval(0.95)
    print(f"{name}: largest eigenvalue {sharpest:.3f} (exactly {exact[name][-1]:.3f})")
    interval, truth = f"{low:.2f} to {high:.2f}", exact[name].sum()
    print(f"{name}: trace {float(trace):.2f}, 95 % interval {interval} (exactly {truth:.2f})")

# %%
# Most eigenvalues are near zero: of 1,210 directions some dozens have any curvature, which is what
# makes sketches of a Hessian work. Training lowers the curvature of the steep ones; what is left of
# negative eigenvalues is small.
fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.6), layout="constrained", sharey=True)
for ax, (name, found) in zip(axes, densities.items(), strict=True):
    grid = np.linspace(exact[name][0] - 0.15, exact[name][-1] + 0.15, 1200)
    width = float(found.resolution(grid)[0])
    true = np.exp(-0.5 * ((grid[:, None] - exact[name]) / width) ** 2).mean(axis=1)
    ax.fill_between(grid, true / (width * (2 * np.pi) ** 0.5), color="0.8", label="exact")
    ax.plot(grid, found.density(grid), label=f"{budget} products")
    ax.plot(exact[name], np.full(P, 3e-4), "k|", markersize=7, label="eigenvalues")
    ax.set(yscale="log", ylim=(2e-4, 60), xlabel="eigenvalue of the Hessian")
    ax.set_title(name, loc="left")
axes[0].set_ylabel("share of eigenvalues per unit")
axes[1].legend(frameon=False)
plt.show()
