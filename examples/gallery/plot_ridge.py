r"""How much to smooth
==================

Ridge regression has a number to choose, :math:`\lambda`. Generalised cross-validation takes the one
with the least

.. math:: \frac{n\, |R_\lambda y|^2}{(\mathrm{tr}\, R_\lambda)^2}, \qquad
          R_\lambda y = y - \hat y_\lambda ,

restricted likelihood the one that makes the data most probable. Both need a trace or a determinant
of a matrix of dimension n for every :math:`\lambda`. :func:`tracekit.gcv` and :func:`tracekit.reml`
read them for all :math:`\lambda` from one run of products with the kernel.
"""

# %%
# The progression of diabetes in 442 patients, from ten measurements, by kernel ridge regression
# with an intercept. What depends on the targets needs no probes; the traces do, and the band holds
# all of a curve at once. Twenty steps of Lanczos tell about as many large eigenvalues apart.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.metrics.pairwise import rbf_kernel

import tracekit as tk

X, y = load_diabetes(return_X_y=True)
n, budget, steps = len(y), 220, 20
K = rbf_kernel(X / X.std(axis=0), gamma=0.02)
ones = np.ones((n, 1))
ridges = np.geomspace(0.1, 100, 31)
found = {
    name: score(K, y, ridges, budget, fixed=ones, rng=0, depth=steps)
    for name, score in (("cross-validation", tk.gcv), ("restricted likelihood", tk.reml))
}

# %%
# The same from all eigenvalues of the centred kernel.
center = np.eye(n) - 1 / n
w, U = np.linalg.eigh(center @ K @ center)
w, forms = np.maximum(w, 0), (U.T @ (y - y.mean())) ** 2
residual = 1 / (1 + w / ridges[:, None])
exact = {
    "cross-validation": n * (residual**2 @ forms) / (residual.sum(axis=1) - 1) ** 2,
    "restricted likelihood": (n - 1) * np.log(residual @ forms) - np.log(residual).sum(axis=1),
}

# %%
# :func:`tracekit.argmin` tells which points of the grid may be the least, by differences of shared
# probes: their errors cancel in part. It speaks of the numbers of this data set; how much another
# one would move the minimum is more, and shows in how flat the curve is.
fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
for ax, (name, scores) in zip(axes, found.items(), strict=True):
    best, candidates = tk.argmin(scores)
    low, high = scores.band(0.95)
    truth = int(np.argmin(exact[name]))
    print(
        f"{name}: {scores.num_matvecs} products of {n}; least at ridge {ridges[best]:.2f}, "
        f"between {ridges[min(candidates)]:.2f} and {ridges[max(candidates)]:.2f}; "
        f"exactly {ridges[truth]:.2f}"
    )
    ax.fill_between(ridges, low, high, color="C0", alpha=0.3, linewidth=0)
    ax.plot(ridges, scores.value, color="C0", label=f"{scores.num_matvecs} products")
    ax.plot(ridges, exact[name], "k--", linewidth=1, label="exact")
    ax.plot(ridges[candidates], scores.value[candidates], "o", color="C1", label="may be least")
    ax.set(xscale="log", xlabel="ridge")
    ax.set_title(name, loc="left")
axes[0].legend(frameon=False)

# %%
# A smoothing spline penalises the integral of the squared second derivative. On a ring of n equally
# spaced points it has a kernel matrix, too, made of Bernoulli polynomials (Wahba, 1975): products
# are convolutions, and the truth is known by a Fourier transform. Here n is 4096, and a product
# costs two transforms.
size, noise = 4096, 0.5
t = np.arange(size) / size
wave = np.sin(2 * np.pi * t) + 0.5 * np.sin(14 * np.pi * t) * np.exp(-20 * (t - 0.4) ** 2)
data = wave + noise * np.random.default_rng(0).standard_normal(size)
row = -(t**4 - 2 * t**3 + t**2 - 1 / 30) / 24
spectrum = np.fft.rfft(row).real


def product(X):
    return np.fft.irfft(spectrum[:, None] * np.fft.rfft(X, axis=0), n=size, axis=0)


spline = tk.LinearOperator((size, size), product, product, dtype=np.float64, xp=np)
grid = np.geomspace(1e-9, 1e-5, 21) * size
scores = tk.gcv(spline, data, grid, 400, fixed=np.ones((size, 1)), rng=0, depth=40)

values = np.maximum(np.fft.fft(row).real, 0)
values[0] = 0
powers = np.abs(np.fft.fft(data - data.mean())) ** 2 / size
shrunk = 1 / (1 + values / grid[:, None])
truth = size * (shrunk**2 @ powers) / (shrunk.sum(axis=1) - 1) ** 2
best, candidates = tk.argmin(scores)
print(
    f"spline: {scores.num_matvecs} products of {size}; least at {grid[best]:.2e}, exactly at "
    f"{grid[np.argmin(truth)]:.2e}; largest error {np.max(np.abs(scores.value / truth - 1)):.1e}"
)

kept = 1 / (1 + grid[best] / np.maximum(spectrum, 1e-300))
kept[0] = 1
fit = np.fft.irfft(kept * np.fft.rfft(data), n=size)
fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
axes[0].plot(t, data, ".", color="0.8", markersize=1)
axes[0].plot(t, wave, "k--", linewidth=1, label="behind the noise")
axes[0].plot(t, fit, color="C0", label="spline")
axes[0].legend(frameon=False)
axes[0].set_title("4096 observations", loc="left")
low, high = scores.band(0.95)
axes[1].fill_between(grid, low, high, color="C0", alpha=0.3, linewidth=0)
axes[1].plot(grid, scores.value, color="C0")
axes[1].plot(grid, truth, "k--", linewidth=1)
axes[1].plot(grid[candidates], scores.value[candidates], "o", color="C1")
axes[1].axhline(noise**2, color="0.8", zorder=0)
axes[1].set(xscale="log", xlabel="ridge")
axes[1].set_title("score; the line is the noise", loc="left")
plt.show()
