"""A kernel followed through training
==================================

In the lazy regime the neural tangent kernel of a network stays what it was at the start; where it
turns towards the data, features are learnt. To see which it is, one looks at the kernel again and
again while the network trains: at its trace, which sets the speed of learning, and at its alignment
with the kernel of the start. A :class:`tracekit.Tracker` keeps its probes from one look to the
next, so that a few reverse-mode passes each time are enough.
"""

# %%
# A network with two hidden layers, trained on handwritten digits; of 120 of them the kernel is
# looked at: 1200 rows and columns, one for each image and output.
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
seen = x[:120]


def network(params, x):
    for W in params[:-1]:
        x = jnp.tanh(x @ W)
    return x @ params[-1]


def loss(params):
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(network(params, x)), axis=1))


@jax.jit
def train(params):
    return [W - 0.5 * slope for W, slope in zip(params, jax.grad(loss)(params), strict=True)]


# %%
# :func:`tracekit_ntk.track` makes a callback for the training loop. At every 25th step it spends 24
# passes, and three times as many besides whenever the kernel has changed too much for the old ones.
# :func:`tracekit_ntk.kernel` gives the exact kernel of this small network, for comparison.
rng = np.random.default_rng(0)
params = [
    jnp.asarray(rng.standard_normal((a, b)) / a**0.5, dtype=jnp.float32)
    for a, b in ((64, 64), (64, 64), (64, 10))
]
exactly = jax.jit(lambda params: tkn.kernel_matrix(tkn.kernel(network, params, seen)))
start = np.asarray(exactly(params))
traces, alignments = [], []

tracker = tk.Tracker(24, rng=0)
follow = tkn.track(lambda params: network(params, seen), tracker, every=25)
for step in range(401):
    if follow(step, params):
        K = np.asarray(exactly(params))
        traces.append(np.trace(K))
        alignments.append(np.vdot(start, K) / np.linalg.norm(start) / np.linalg.norm(K))
    params = train(params)

# %%
# Steps share their probes, so that the curves are smooth where the truth is. The kernel grows, and
# turns away from where it was: this network does not train lazily.
steps = [point.step for point in tracker.points]
last = tracker.points[-1]
print(f"step {last.step}     estimate   95 % interval        exact")
for name, exact, digits in (("trace", traces, 0), ("alignment", alignments, 3)):
    estimate = getattr(last, name)
    low, high = (float(end) for end in estimate.confidence_interval(0.95))
    interval = f"{low:.{digits}f} to {high:.{digits}f}"
    print(f"{name:<10} {float(estimate):>10.{digits}f}   {interval:<16} {exact[-1]:>9.{digits}f}")
print(f"{len(steps)} looks: {tracker.num_matvecs} passes; one exact kernel: {len(start)} columns")

fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
for ax, name, exact in zip(axes, ("trace", "alignment"), (traces, alignments), strict=True):
    points = [getattr(point, name) for point in tracker.points]
    ends = [[float(end) for end in point.confidence_interval(0.95)] for point in points]
    unit = 1e3 if name == "trace" else 1
    ax.fill_between(steps, *np.transpose(ends) / unit, alpha=0.25, linewidth=0, label="95 % band")
    ax.plot(steps, np.array([float(point) for point in points]) / unit, label="tracked")
    ax.plot(steps, np.array(exact) / unit, "k.", markersize=4, label="exact")
    ax.set_xlabel("step of training")
axes[0].set_title("trace of the kernel, in thousands", loc="left")
axes[1].set_title("alignment with the kernel of the start", loc="left")
axes[0].legend(frameon=False)
plt.show()
