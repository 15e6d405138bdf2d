r"""How clustered is a graph?
=========================

In a social network the friends of a friend are often friends. Network science measures this by the
transitivity: the share of all paths of two edges that a third edge closes to a triangle. A graph
whose edges carry no meaning has next to none, so that it tells whether a graph of nearest
neighbours has found any structure in its data, and how many neighbours that takes.

With the adjacency matrix :math:`A` and degrees :math:`d_i` the transitivity is :math:`\mathrm{tr}
A^3 / \sum_i d_i (d_i - 1)`. The degrees are known; the trace is not, for :math:`A^3` is far denser
than the graph.
"""

# %%
# The graphs: 1797 handwritten digits, each linked to its k nearest neighbours.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph

import tracekit as tk

images = load_digits().data
neighbours = np.array([3, 5, 8, 12, 20, 32, 50, 80])


def graph(k):
    directed = kneighbors_graph(images, k)
    return directed.maximum(directed.T)


# %%
# A SciPy matrix becomes an operator, and a product of operators is one, too. A block of vectors
# goes through :math:`A` three times; :math:`A^3` is never made. It has eigenvalues of both signs,
# so :func:`tracekit.xtrace` is the estimator to take. Sixty products with :math:`A^3` serve each
# graph; all 1797 would give its triangles exactly. Here a sparse product does so as well, for
# comparison.
budget = 60
estimates, intervals, exact, by_chance = [], [], [], []
for k in neighbours:
    A = graph(k)
    degrees = np.asarray(A.sum(axis=1)).ravel()
    paths = np.sum(degrees * (degrees - 1))
    operator = tk.as_operator(A)
    closed = tk.xtrace(operator @ operator @ operator, budget, rng=0)
    estimates.append(float(closed) / paths)
    intervals.append([float(end) / paths for end in closed.confidence_interval(0.95)])
    exact.append((A @ A).multiply(A).sum() / paths)
    by_chance.append(A.nnz / A.shape[0] ** 2)

print("neighbours  transitivity  95 % interval     exact   products")
for k, value, (low, high), truth in zip(neighbours, estimates, intervals, exact, strict=True):
    print(
        f"{k:>10} {value:>13.4f}  {low:.4f} to {high:.4f} {truth:>8.4f}  {budget} of {A.shape[0]}"
    )

# %%
# A third of the paths are closed with five neighbours already, where chance would close one in 250.
# More neighbours make the clusters themselves visible: transitivity levels off at about one half,
# while the density of edges, which is what chance would close, goes on growing.
low, high = np.transpose(intervals)
fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
ax.errorbar(
    neighbours, estimates, (estimates - low, high - estimates),
    fmt="o", capsize=4, label=f"XTrace, {budget} products, 95 % interval",
)  # fmt: skip
ax.plot(neighbours, exact, "k_", markersize=14, label="exact")
ax.plot(neighbours, by_chance, "C1--", label="same number of edges, put at random")
ax.set(xscale="log", ylim=(0, None))
ax.set_xticks(neighbours, [str(k) for k in neighbours])
ax.set_xticks([], minor=True)
ax.set(xlabel="nearest neighbours k of each digit", ylabel="share of paths closed")
ax.set_title("Transitivity of neighbour graphs of handwritten digits", loc="left")
ax.legend(frameon=False, loc="center right")
plt.show()
