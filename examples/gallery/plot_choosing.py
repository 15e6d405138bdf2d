"""Choosing an estimator, or a tolerance
=====================================

What an estimate of a trace costs depends on the spectrum of the matrix. Where eigenvalues decay,
the few that matter can be found, and only the rest is left to chance; where they do not, every
product spent on looking for them is lost. Three matrices made of the same digits show both ends and
what is between. If one does not want to know, one asks for a tolerance.
"""

# %%
# A kernel of broad similarity, whose eigenvalues decay quickly; a narrow one; and the Laplacian of
# a graph of neighbours, as spectral clustering has it, whose eigenvalues are nearly equal.
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.csgraph import laplacian
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import kneighbors_graph

import tracekit as tk

images = load_digits().data[:500] / 16
n = len(images)
neighbours = kneighbors_graph(images, 10)
matrices = {
    "broad kernel": rbf_kernel(images, gamma=0.02),
    "narrow kernel": rbf_kernel(images, gamma=0.3),
    "graph Laplacian": laplacian(neighbours.maximum(neighbours.T).toarray(), normed=True),
}

# %%
# :func:`tracekit.compare` runs every estimator that suits a matrix, here over fifteen seeds. Plain
# probes (Hutchinson) do not notice the spectrum. Sketching ones gain a factor of a hundred and more
# where it decays, and lose up to a factor of two where it does not.
methods = {
    "Hutchinson": tk.hutchinson,
    "Hutch++": tk.hutchpp,
    "XTrace": tk.xtrace,
    "XNysTrace": tk.xnystrace,
}
budgets = 12, 24, 48, 96, 192
fig, axes = plt.subplots(2, 3, figsize=(9.2, 6), layout="constrained", sharey="row")
for (top, bottom), (name, A) in zip(axes.T, matrices.items(), strict=True):
    top.semilogy(np.arange(1, n + 1), np.maximum(np.linalg.eigvalsh(A)[::-1], 1e-3))
    top.set_title(f"{name}: eigenvalues", loc="left")
    top.set(xlabel="index", ylim=(5e-4, 1e3))
    comparison = tk.compare(A, budgets, methods=methods, num_seeds=15)
    for label, median, marker in zip(methods, comparison.quartiles[1], "osv^", strict=True):
        bottom.loglog(budgets, median, marker=marker, label=label)
    bottom.set_title("median error", loc="left")
    bottom.set(xlabel=f"products (exact: {n})")
    bottom.set_xticks(budgets, [str(m) for m in budgets])
    bottom.set_xticks([], minor=True)
axes[1, 0].set_ylabel("relative error of the trace")
axes[1, 1].legend(frameon=False, loc="lower left")

# %%
# :func:`tracekit.trace` spends what a tolerance takes, and says by which method. It stops when the
# 95 % interval is within the tolerance, so that about one error in twenty may be larger. That the
# matrices are positive semidefinite, as kernels and Laplacians are, saves it half of the products.
# If the tolerance turns out to need them all, the trace is exact, and what was spent before is
# lost.
print("matrix             asked    got   products  method")
tolerances, seeds = (0.1, 0.03, 0.01, 0.003), 10
found = {}
for name, A in matrices.items():
    exact = np.trace(A)
    K = tk.LinearOperator(A.shape, lambda X, A=A: A @ X)  # the diagonal of A would be read instead
    found[name] = [
        [tk.trace(K, rtol=rtol, psd=True, rng=seed) for seed in range(seeds)] for rtol in tolerances
    ]
    for rtol, runs in zip(tolerances, found[name], strict=True):
        error = abs(float(runs[0]) / exact - 1)
        print(
            f"{name:<16} {rtol:>7} {error:>8.1e} {runs[0].num_matvecs:>6} of {n}  {runs[0].method}"
        )

fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
for i, (name, rows) in enumerate(found.items()):
    exact = np.trace(matrices[name])
    errors = np.array([[abs(float(run) / exact - 1) for run in runs] for runs in rows])
    shifted = np.array(tolerances) * 1.15 ** (i - 1)
    axes[0].loglog(
        np.repeat(shifted, seeds), np.maximum(errors, 1e-6).ravel(), "osv"[i], markersize=3
    )
    spent = np.median([[run.num_matvecs for run in runs] for runs in rows], axis=1)
    axes[1].loglog(tolerances, spent, marker="osv"[i], label=name)
axes[0].plot([2e-3, 0.15], [2e-3, 0.15], color="0.5")
axes[0].annotate(
    "the tolerance", (0.02, 0.02), (4e-3, 0.1), arrowprops={"arrowstyle": "-", "color": "0.5"}
)
axes[0].set(xlabel="tolerance asked for", ylabel=f"relative error, {seeds} seeds each")
axes[1].axhline(n, color="0.5", linestyle="--", label=f"exact: {n} products")
axes[1].set(xlabel="tolerance asked for", ylabel="products spent, median")
axes[1].legend(frameon=False, loc="lower left")
plt.show()
