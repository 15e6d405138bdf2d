r"""Thermodynamics of a quantum spin chain
=======================================

A chain of L spins in a transverse field, :math:`H = -\sum_j Z_j Z_{j+1} - g \sum_j X_j`, has
:math:`2^L` states. All that thermodynamics asks of it are traces: of :math:`e^{-\beta H}`, and of
that times H and its square. :func:`tracekit.thermodynamics` reads them at all temperatures from one
run of Lanczos, with products of H alone. This chain turns into free fermions, so that the truth is
known for any length.
"""

# %%
# The Hamiltonian is never written down: a product flips spins along one axis of a tensor after
# another.
import matplotlib.pyplot as plt
import numpy as np

import tracekit as tk

L, g, budget = 12, 1.0, 500
spins = 1 - 2.0 * np.indices((2,) * L).reshape(L, -1)  # eigenvalues of every Z_j
bonds = -np.sum(spins[:-1] * spins[1:], axis=0)


def product(X):
    T = X.reshape(*(2,) * L, -1)
    flipped = sum(np.flip(T, axis=j) for j in range(L))
    return bonds[:, None] * X - g * flipped.reshape(X.shape)


H = tk.LinearOperator((2**L, 2**L), product, product, dtype=np.float64, xp=np)

# %%
# Open ends, so that the fermions are free without conditions: their energies are twice the singular
# values of a matrix of dimension L.
energies = 2 * np.linalg.svd(g * np.eye(L) + np.eye(L, k=1), compute_uv=False)
temperatures = np.geomspace(0.15, 10, 40)
betas = 1 / temperatures
half = np.multiply.outer(betas, energies) / 2
log_Z = np.sum(np.logaddexp(half, -half), axis=1)
exact = {
    "energy": -np.sum(energies / 2 * np.tanh(half), axis=1),
    "entropy": log_Z - np.sum(half * np.tanh(half), axis=1),
    "heat_capacity": np.sum((half / np.cosh(half)) ** 2, axis=1),
}

# %%
# Bands hold a whole curve at once in 95 % of runs. They are wide where few states weigh, at low
# temperatures in a small system, and narrow where :math:`e^{-\beta H}` is shared by many: there,
# one random vector is typical of all.
found = tk.thermodynamics(H, betas, budget, rng=0)
print(found.energy.reason)
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
for ax, (name, truth) in zip(axes, exact.items(), strict=True):
    estimate = getattr(found, name)
    low, high = estimate.band(0.95)
    ax.fill_between(temperatures, low / L, high / L, color="C0", alpha=0.3, linewidth=0)
    ax.plot(temperatures, estimate.value / L, color="C0", label=f"{estimate.num_matvecs} products")
    ax.plot(temperatures, truth / L, "k--", linewidth=1, label="free fermions")
    inside = np.mean((low <= truth) & (truth <= high))
    error = np.max(np.abs(estimate.value - truth)) / L
    print(f"{name:<14} largest error {error:.4f} a spin, {inside:.0%} within the band")
    margin = 0.1 * np.ptp(truth) / L
    ax.set(xscale="log", xlabel="temperature")
    ax.set_ylim(truth.min() / L - margin, truth.max() / L + margin)
    ax.set_title(f"{name.replace('_', ' ')}, a spin", loc="left")
axes[0].legend(frameon=False)
plt.show()

# %%
# The values are better than what is claimed of them at the lowest temperature, where the steps of
# Lanczos are too few to be sure: the run says so, by an error of the size of the value, and so
# ``converged`` is False. More products, or a greater ``depth``, settle that.
print("temperature   heat capacity    95 % interval       exact")
low, high = found.heat_capacity.confidence_interval()
for i in range(0, 40, 6):
    print(
        f"{temperatures[i]:>11.2f} {found.heat_capacity.value[i]:>15.3f}"
        f"   {low[i]:>7.3f} to {high[i]:<7.3f} {exact['heat_capacity'][i]:>9.3f}"
    )
