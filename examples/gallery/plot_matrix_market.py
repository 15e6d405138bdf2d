r"""Resistance of a landscape, from a Matrix Market file
====================================================

How hard is it for an animal to get across the Cumberland Mountains? Landscape ecology sees the land
as an electric circuit: cells are nodes, neighbours are linked by resistors, and climbing costs
resistance. The resistance between two cells takes all ways between them into account, and its mean
over all pairs, the Kirchhoff index in another unit, says how well connected the land is. With the
graph Laplacian L of n cells

.. math:: \bar R = \frac{2}{n - 1}\, \mathrm{tr}\, L^+ ,

the trace of a pseudo-inverse: of a matrix that is dense where L is sparse.
"""

# %%
# The elevation model has a cell every 130 m and comes with Matplotlib. Each link has the resistance
# of one, and of one more for every ten metres of climb.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cbook import get_sample_data
from scipy.io import mmwrite
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import LinearOperator, splu

import tracekit as tk
from tracekit.io import read_matrix

height = get_sample_data("jacksboro_fault_dem.npz")["elevation"][::2, ::2].astype(float)  # m
cells = np.arange(height.size).reshape(height.shape)
here = np.concatenate([cells[:, :-1].ravel(), cells[:-1].ravel()])
there = np.concatenate([cells[:, 1:].ravel(), cells[1:].ravel()])
climb = np.abs(height.ravel()[here] - height.ravel()[there])
links = coo_array((1 / (1 + climb / 10), (here, there)), shape=(height.size, height.size))
links = links + links.T

# %%
# Graphs travel as Matrix Market files. :func:`tracekit.io.read_matrix` reads them, and so does the
# command ``tracekit estimate``.
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "landscape.mtx")
    mmwrite(file, diags_array(links.sum(axis=1)) - links, symmetry="symmetric")
    L = read_matrix(file)
    print(f"{file.name}: {L.shape[0]} cells, {L.nnz} entries, {file.stat().st_size / 1e6:.1f} MB")

# %%
# A product with :math:`L^+` is the answer to a current: of L with one cell grounded there is a
# sparse factorisation, and the mean is taken out before and after. The operator is positive
# semidefinite and its eigenvalues decay, which is what :func:`tracekit.xnystrace` is made for.
factors = splu(L[1:, 1:].tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})


def potentials(currents):
    currents = currents - currents.mean(axis=0)
    voltages = np.zeros_like(currents)
    voltages[1:] = factors.solve(currents[1:])
    return voltages - voltages.mean(axis=0)


n = L.shape[0]
inverse = LinearOperator(
    L.shape,
    matvec=potentials,
    rmatvec=potentials,
    matmat=potentials,
    rmatmat=potentials,
    dtype=float,
)
mean = 2 / (n - 1)
exact = mean * 128055.949  # from 34,744 solves, done once: two minutes
budgets = 15, 30, 60, 120, 240
runs = [tk.xnystrace(inverse, m, rng=0) for m in budgets]
values = np.array([mean * float(run) for run in runs])
ends = np.array([[mean * float(end) for end in run.confidence_interval(0.95)] for run in runs])

print(f"solves   mean resistance   95 % interval     (exact, from {n} solves: {exact:.3f})")
for m, value, (low, high) in zip(budgets, values, ends, strict=True):
    print(f"{m:>6} {value:>17.3f}   {low:.3f} to {high:.3f}")

# %%
# Sixty solves come within one per cent of what 34,744 would give: 580 times as many.
fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.6), layout="constrained", width_ratios=(1.25, 1))
image = axes[0].imshow(height, cmap="cividis")
fig.colorbar(image, ax=axes[0], label="elevation in m", shrink=0.9)
axes[0].set(xticks=[], yticks=[])
axes[0].set_title("the landscape near Jacksboro, Tennessee", loc="left")
axes[1].axhline(exact, color="0.5", label=f"exact, {n:,} solves")
axes[1].errorbar(
    budgets, values, np.abs(ends.T - values), fmt="o", capsize=4, label="XNysTrace, 95 % interval"
)
axes[1].set(xscale="log", xlabel="solves", ylabel="mean resistance between two cells")
axes[1].set_xticks(budgets, [str(m) for m in budgets])
axes[1].set_xticks([], minor=True)
axes[1].legend(frameon=False)
plt.show()
