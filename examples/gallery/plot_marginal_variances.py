r"""How sure a random field is of itself
====================================

A Gaussian Markov random field is known by its precision matrix Q, which is sparse: an entry for
every pair of neighbours. The variance of each variable is a diagonal entry of :math:`Q^{-1}`, which
is dense. :func:`tracekit.marginal_variances` estimates all of them at once from products with Q.
"""

# %%
# First a field on a lattice with periodic ends, where each of 10,000 sites is tied to its four
# neighbours. All sites have the same variance, which a Fourier transform tells.
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse import diags_array, eye_array, kron

import tracekit as tk

side, own = 100, 1.0
step = eye_array(side, k=1) + eye_array(side, k=1 - side)
ring = 2 * eye_array(side) - step - step.T
Q = (kron(ring, eye_array(side)) + kron(eye_array(side), ring) + own * eye_array(side**2)).tocsr()
waves = 2 - 2 * np.cos(2 * np.pi * np.arange(side) / side)
truth = np.mean(1 / (waves[:, None] + waves + own))

budgets = 150, 300, 600, 1200
runs = [tk.marginal_variances(Q, budget, rng=0, depth=15) for budget in budgets]
print("products   probes   error of a site   its standard error   of the mean")
for run in runs:
    error = np.sqrt(np.mean((run.value - truth) ** 2))
    claimed = np.sqrt(np.mean(run.standard_error**2))
    print(
        f"{run.num_matvecs:>8} {run.dof + 1:>8} {error / truth:>17.2%} {claimed / truth:>20.2%}"
        f" {run.value.mean() / truth - 1:>13.2%}"
    )

# %%
# What each site is off by is what it has in common with all others: the errors fall with the root
# of the probes, and sites far apart have errors of their own, so that the mean over the lattice is
# better by far.
#
# Then a time series, an autoregression of first order, :math:`x_{t+1} = \varphi x_t + e_t`, that is
# observed with noise on some days. The precision is tridiagonal; what observations add lies on
# its diagonal. Here two recursions tell the truth.
days, phi, noise = 4000, 0.6, 0.5
seen = np.zeros(days)
seen[::12] = 1
seen[600:650] = 1
own = np.full(days, 1 + phi**2) + seen / noise**2
own[[0, -1]] -= phi**2
A = diags_array([own, *[np.full(days - 1, -phi)] * 2], offsets=[0, 1, -1]).tocsr()
series = tk.marginal_variances(A, 1800, rng=0, depth=18)


def pivots(diagonal):
    found = [diagonal[0]]
    for entry in diagonal[1:]:
        found.append(entry - phi**2 / found[-1])
    return np.array(found)


exact = 1 / (pivots(own) + pivots(own[::-1])[::-1] - own)
low, high = series.confidence_interval(0.95)
print(
    f"{series.num_matvecs} products: {np.mean((low <= exact) & (exact <= high)):.1%} of days held"
)

fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.4), width_ratios=(1, 2), layout="constrained")
image = axes[0].imshow(
    runs[-1].value.reshape(side, side) / truth - 1, cmap="RdBu", vmin=-0.2, vmax=0.2
)
fig.colorbar(image, ax=axes[0], shrink=0.8)
axes[0].set_title("lattice: relative error", loc="left")
shown = slice(565, 690)
t = np.arange(days)[shown]
axes[1].fill_between(t, low[shown], high[shown], color="C0", alpha=0.3, linewidth=0)
axes[1].plot(
    t, series.value[shown], color="C0", linewidth=1, label=f"{series.num_matvecs} products"
)
axes[1].plot(t, exact[shown], "k--", linewidth=1, label="exact")
axes[1].plot(t[seen[shown] > 0], 0 * t[seen[shown] > 0], "|", color="C1", label="observed")
axes[1].set(xlabel="day", ylim=(-0.1, 2.5))
axes[1].legend(frameon=False, ncols=3)
axes[1].set_title("series: variance given the observations", loc="left")
plt.show()
