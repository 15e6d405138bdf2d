"""Error bars that hold
====================

An estimate with an error bar makes a promise: of a hundred 95 % intervals, about 95 hold the truth.
The truth is rarely known, so that the promise has to be tested where it is. Here it is the trace of
the hat matrix of a kernel regression, the degrees of freedom that the regression spends on its
data.
"""

# %%
# The hat matrix :math:`H = K (K + c I)^{-1}` of 442 patients with diabetes: it maps the measured
# progress of the disease to the fitted one.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.metrics.pairwise import rbf_kernel

import tracekit as tk

patients = load_diabetes(scaled=True).data * 442**0.5  # columns of unit variance
K = rbf_kernel(patients, gamma=0.012)
hat = np.linalg.solve(K + np.eye(len(K)), K)
exact = np.trace(hat)

# %%
# Three estimators, 300 seeds each, 40 products a run. Of every run the intervals of seven levels
# are kept.
methods = {"Hutchinson": tk.hutchinson, "Hutch++": tk.hutchpp, "XTrace": tk.xtrace}
budget, seeds, levels = 40, 300, np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
runs = {
    name: [method(hat, budget, rng=seed) for seed in range(seeds)]
    for name, method in methods.items()
}
intervals = {
    name: np.array([[run.confidence_interval(level) for run in some] for level in levels])
    for name, some in runs.items()
}  # levels, seeds, ends
coverage = {
    name: np.mean((ends[..., 0] <= exact) & (exact <= ends[..., 1]), axis=1)
    for name, ends in intervals.items()
}

print(f"Degrees of freedom: exactly {exact:.2f}, from {len(hat)} products; {budget} a run")
print("method       first run   95 % interval     95 % intervals that hold    rms error")
for name, some in runs.items():
    low, high = some[0].confidence_interval(0.95)
    error = np.sqrt(np.mean([(float(run) - exact) ** 2 for run in some]))
    held = coverage[name][list(levels).index(0.95)]
    print(
        f"{name:<12} {float(some[0]):>8.2f}   {low:.2f} to {high:.2f} {held:>20.1%} {error:>19.2f}"
    )

# %%
# Left: the first 50 runs, those in colour that miss. Right: the share that holds, for all levels,
# with the range that 300 runs of a perfect interval would leave to chance. A better estimator has
# shorter intervals, not truer ones; those of XTrace err a little on the safe side.
fig, axes = plt.subplots(
    1, 4, figsize=(9.6, 4.2), layout="constrained", width_ratios=(1, 1, 1, 2.2)
)
axes[1].sharey(axes[0])
for ax, (name, ends) in zip(axes[:3], intervals.items(), strict=True):
    low, high = ends[5, :50].T
    for seed in range(50):
        holds = low[seed] <= exact <= high[seed]
        ax.plot((low[seed], high[seed]), (seed, seed), color="0.6" if holds else "C1")
        ax.plot(float(runs[name][seed]), seed, ".", markersize=3, color="0.3" if holds else "C1")
    ax.axvline(exact, color="k", linewidth=1)
    ax.set(xlim=(exact - 4, exact + 4), yticks=[], xlabel="degrees of freedom")
    ax.set_title(name, loc="left")
chance = 1.96 * np.sqrt(levels * (1 - levels) / seeds)
axes[3].fill_between(
    levels, levels - chance, levels + chance, color="0.9", label="what chance leaves"
)
for name, marker in zip(methods, "os^", strict=True):
    axes[3].plot(levels, coverage[name], marker, label=name)
axes[3].set(xlabel="nominal level", ylabel="share of intervals that hold the exact value")
axes[3].set_title("300 runs, nominal and true", loc="left")
axes[3].legend(frameon=False)
plt.show()
