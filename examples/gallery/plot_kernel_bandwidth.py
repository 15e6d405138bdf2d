r"""Choosing the bandwidth of a kernel
==================================

A Gaussian kernel has one number that matters: its bandwidth. Too narrow, and every sample is like
itself alone; too wide, and all are alike. Two numbers say where between these ends a kernel is,
before any classifier is trained. The effective rank :math:`(\mathrm{tr} K)^2 / \|K\|_F^2` counts
the directions that the kernel tells apart. The alignment :math:`\langle K, y y^T \rangle / (\|K\|_F
\|y y^T\|_F)` is the cosine of the angle to the kernel that one would want, which has samples alike
where their labels are.
"""

# %%
# The kernel of 1797 digits has 3.2 million entries. It is made here for the sake of exact values;
# the estimates see its products only, which for ten or a hundred times the data would be computed
# block by block.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel

import tracekit as tk

images, labels = load_digits(return_X_y=True)
images = images / 16  # black is 0, white is 1
classes = np.eye(10)[labels]
targets = classes - classes.mean(axis=0)
bandwidths = np.geomspace(0.3, 10, 11)
budget = 120

# %%
# :func:`tracekit.spectral_summary` reads trace, norm and effective rank from the same products.
# :func:`tracekit.centered` takes the mean out of the kernel, as the targets are without theirs.
found = {"effective rank": [], "Frobenius norm": [], "alignment with the labels": []}
exact = {name: [] for name in found}
for bandwidth in bandwidths:
    K = rbf_kernel(images, gamma=0.5 / bandwidth**2)
    _, norm, rank = tk.spectral_summary(K, budget, rng=0)
    alignment = tk.target_alignment(tk.centered(K), targets, budget, rng=0)
    C = K - K.mean(axis=0) - K.mean(axis=1, keepdims=True) + K.mean()
    size = np.linalg.norm(K)
    overlap = np.sum(targets * (C @ targets))
    for name, estimate, truth in zip(
        found,
        (rank, norm, alignment),
        (
            len(K) ** 2 / size**2,
            size,
            overlap / np.linalg.norm(C) / np.linalg.norm(targets.T @ targets),
        ),
        strict=True,
    ):
        found[name].append((float(estimate), *map(float, estimate.confidence_interval(0.95))))
        exact[name].append(truth)

best = int(np.argmax([value for value, *_ in found["alignment with the labels"]]))
print(f"Of bandwidths the best is {bandwidths[best]:.2f}, from {budget} products of {len(K)}:")
for name, rows in found.items():
    value, low, high = rows[best]
    print(f"{name:<26} {value:>8.4g}   {low:.4g} to {high:.4g}   exact {exact[name][best]:.4g}")

# %%
# The effective rank falls from the number of samples to one. The alignment has its maximum between,
# with a kernel of few directions; at the narrow end there is nothing to estimate but the identity.
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
for ax, (name, rows) in zip(axes, found.items(), strict=True):
    values, low, high = np.transpose(rows)
    ax.plot(bandwidths, exact[name], color="0.5", label="exact")
    ax.errorbar(
        bandwidths, values, (values - low, high - values), fmt="o", markersize=4, capsize=3,
        label=f"{budget} products",
    )  # fmt: skip
    ax.set(xscale="log", xlabel="bandwidth (white = 1)")
    ax.set_title(name, loc="left")
for ax in axes[:2]:
    ax.set_yscale("log")
axes[2].set_ylim(0, None)
axes[0].legend(frameon=False)
plt.show()
