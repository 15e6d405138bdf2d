"""Which samples, and which classes, a network couples
===================================================

A step of training on one image changes the outputs of all others. How much, the neural tangent
kernel says: it has a row and a column for every image and every output. Two partial traces make
pictures of it. Traced over the outputs it is a kernel between images, as a kernel machine would use
it. Traced over the images it is a small matrix that shows how the outputs pull at each other.
"""

# %%
# A network of one hidden layer that has learnt to read handwritten digits, and 150 of them, sorted.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import tracekit as tk
import tracekit_ntk as tkn

images, labels = load_digits(return_X_y=True)
x = jnp.asarray(images / 16, dtype=jnp.float32)
y = jax.nn.one_hot(labels, 10, dtype=jnp.float32)
chosen = np.concatenate([np.flatnonzero(labels == digit)[:15] for digit in range(10)])


def network(params, x):
    U, V = params
    return jax.nn.relu(x @ U) @ V


def loss(params):
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(network(params, x)), axis=1))


rng = np.random.default_rng(0)
params = [
    jnp.asarray(rng.standard_normal(shape) * (2 / shape[0]) ** 0.5, dtype=jnp.float32)
    for shape in ((64, 48), (48, 10))
]
slope = jax.jit(jax.grad(loss))
for _ in range(200):
    params = [W - 0.5 * G for W, G in zip(params, slope(params), strict=True)]

# %%
# :func:`tracekit_ntk.ntk` knows which rows belong to which image: the kernel's ``dims`` are (150,
# 10), and :func:`tracekit.partial_trace` is told which of the two axes to trace. All of the kernel
# would take 1500 reverse-mode passes, or the structure of the network that
# :func:`tracekit_ntk.kernel` uses, which products do not show. Both are compiled.
n, budget = 1500, 150


@jax.jit
def estimated(params):
    K = tkn.ntk(lambda params: network(params, x[chosen]), params)
    return [tk.partial_trace(K, None, axis, budget, rng=0) for axis in (1, 0)]


@jax.jit
def exactly(params):
    K = tkn.kernel(network, params, x[chosen])  # images, images, outputs, outputs
    return jnp.einsum("abii->ab", K), jnp.einsum("aaij->ij", K)


names = "between images", "between outputs"
estimates = dict(zip(names, estimated(params), strict=True))
exact = dict(zip(names, map(np.asarray, exactly(params)), strict=True))

print("kernel            passes   relative error   its standard error")
for name, estimate in estimates.items():
    size = np.linalg.norm(exact[name])
    error = np.linalg.norm(estimate.value - exact[name]) / size
    claimed = np.linalg.norm(estimate.standard_error) / size
    print(f"{name:<16} {estimate.num_matvecs:>7} {error:>14.2%} {claimed:>18.2%}   (exact: {n})")

# %%
# Images of one digit move together: the blocks on the diagonal. A step on a four moves threes
# least. Outputs pull mostly at themselves; where an entry is negative, as for three and four,
# raising one of them lowers the other.
fig, axes = plt.subplots(2, 2, figsize=(7.6, 6.6), layout="constrained")
for row, (name, estimate) in zip(axes, estimates.items(), strict=True):
    size = {"vmin": exact[name].min(), "vmax": exact[name].max(), "cmap": "magma"}
    row[0].imshow(exact[name], **size)
    row[0].set_title(f"{name}: exact", loc="left")
    image = row[1].imshow(estimate.value, **size)
    row[1].set_title(f"from {estimate.num_matvecs} of {n} passes", loc="left")
    fig.colorbar(image, ax=row, label="kernel, summed")
    for ax in row:
        middle = 7 if len(exact[name]) > 10 else 0
        ax.set_xticks(np.linspace(middle, len(exact[name]) - 1 - middle, 10), range(10))
        ax.set_yticks(ax.get_xticks(), range(10))
        ax.tick_params(length=0)
        ax.set_xlabel("digit" if middle else "output")
plt.show()
