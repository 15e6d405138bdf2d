"""Marginal variances by colours
=============================

A Gaussian Markov random field is known by its precision matrix Q, which is sparse: given its
neighbours, a point knows nothing of the others. What is wanted is the diagonal of the inverse, the
variance of each point. The inverse is full, but falls off with the distance on the grid, and random
signs on well separated points see the diagonal and little else.
"""

# %%
# A field on a grid of 48 x 48, observed with noise at 180 points: the precision of the prior is a
# Laplacian with a small shift, and each observation adds to its point.
import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

import tracekit as tk

side = 48
T = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(side, side))
laplacian = sp.kron(T, sp.eye_array(side)) + sp.kron(sp.eye_array(side), T)
n = side**2
observed = np.random.default_rng(0).choice(n, 180, replace=False)
noise = np.zeros(n)
noise[observed] = 1 / 0.3**2
Q = sp.csc_array(laplacian + sp.diags_array(0.2 + noise))
covariance = tk.LinearOperator(Q.shape, splu(Q).solve)
exact = np.diag(np.linalg.inv(Q.toarray()))

# %%
# Half of the products are colours, and all are spent twice with other signs. As many plain signs
# have an error many times larger. The trace, the total variance, comes with an interval.
coloured = tk.probes.coloured(tk.probes.grid((side, side)))
budgets = [10, 26, 50, 100]
errors, variances = {"colours": [], "plain signs": []}, {}
for name, probes in (("colours", coloured), ("plain signs", tk.probes.rademacher)):
    for m in budgets:
        found = tk.diagonal(covariance, m, rng=0, probes=probes)
        errors[name].append(np.linalg.norm(found.value - exact) / np.linalg.norm(exact))
    variances[name] = found.value
total = tk.hutchinson(covariance, 26, rng=0, probes=coloured)
low, high = total.confidence_interval()
print(f"Total variance {exact.sum():.2f}; from 26 products {low:.2f} to {high:.2f}")
print(f"({total.reason})")
print("products     " + "".join(f"{m:>10}" for m in budgets))
for name, found in errors.items():
    print(f"{name:<12} " + "".join(f"{error:>10.1%}" for error in found))

# %%
# Left: the colours of a corner of the grid, a lattice of thirteen; points of one colour are at
# least five steps apart, and one of them is marked. Middle: the standard deviations from 100
# products, small where the field was observed. Right: the errors.
law = coloured.plan(n, 26, tk.probes.Source(0, covariance))
colours = law.colours.reshape(side, side)[:14, :14]
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.3), layout="constrained")
axes[0].imshow(colours, cmap="tab20", interpolation="none")
axes[0].plot(*np.nonzero(colours == colours[6, 6])[::-1], "ko", markersize=5)
axes[0].set_title(f"{law.size} colours", loc="left")
image = axes[1].imshow(np.sqrt(np.maximum(variances["colours"], 0)).reshape(side, side))
axes[1].set_title("standard deviations, 100 products", loc="left")
fig.colorbar(image, ax=axes[1])
for ax in axes[:2]:
    ax.set(xticks=[], yticks=[])
for (name, found), marker in zip(errors.items(), "os", strict=True):
    axes[2].loglog(budgets, found, f"{marker}-", label=name)
axes[2].set(xlabel="products with the inverse", ylabel="relative error of the variances")
axes[2].set_xticks(budgets, budgets, minor=False)
axes[2].minorticks_off()
axes[2].legend(frameon=False)
plt.show()
