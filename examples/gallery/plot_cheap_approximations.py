r"""A preconditioner for a Gaussian process
=======================================

The evidence of a Gaussian process takes :math:`\log\det (K + c I)`, K the kernel matrix of all
samples. Much of a smooth kernel is in a few of its columns: the partial Cholesky factor F with
pivots, :math:`K \approx F F^T`, costs r columns, and the determinant of :math:`P = F F^T + c I` is
a small one. What is left of the logarithm, :math:`\mathrm{tr} \log(L^{-1} (K + c I) L^{-T})` for
:math:`P = L L^T`, is estimated from products.
"""

# %%
# The digits again, with a kernel twice as wide as the median distance between two of them. A
# product with K takes 3.2 million multiplications, a column no more than 1797 values of the kernel.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import euclidean_distances

import tracekit as tk

images = load_digits().data
squares = euclidean_distances(images, squared=True)
noise, budget, ranks = 1e-2, 120, (0, 10, 30, 100, 300)
K = np.exp(-0.125 * squares / np.median(squares)) + noise * np.eye(len(images))
exact = np.linalg.slogdet(K)[1]

# %%
# :func:`tracekit.pivoted_cholesky` takes the columns, :func:`tracekit.low_rank_plus_diagonal` makes
# the preconditioner of them. What F leaves of K is positive semidefinite, so that the eigenvalues
# of :math:`L^{-1} (K + c I) L^{-T}` are 1 or more: ``shift=1`` says so.
estimates = []
for rank in ranks:
    if rank:
        F = tk.pivoted_cholesky(K, rank, shift=noise)
        options = {"preconditioner": tk.low_rank_plus_diagonal(F, noise), "shift": 1.0}
    else:
        options = {"shift": noise}
    estimates.append(tk.logdet(K, budget, rng=0, **options))

print(f"{budget} products, exactly {exact:.1f}")
for rank, estimate in zip(ranks, estimates, strict=True):
    low, high = estimate.confidence_interval(0.95)
    print(f"rank {rank:>3}: {float(estimate):>9.1f}   {low:>9.1f} to {high:>9.1f}")

# %%
# A rank of the order of the number of eigenvalues above the noise is what helps: below that, the
# columns know little that the products do not find by themselves.
eigenvalues = np.linalg.eigvalsh(K)[::-1]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.semilogy(eigenvalues[:400])
left.axhline(noise, color="0.6", label="noise")
left.vlines(ranks[1:], noise, eigenvalues[0], color="C1", linewidth=0.8, label="ranks")
left.set(xlabel="number", ylabel="eigenvalue of the kernel")
left.legend()
ends = np.array([estimate.confidence_interval(0.95) for estimate in estimates])
middle = np.array([float(estimate) for estimate in estimates])
right.errorbar(
    range(len(ranks)), middle, (middle - ends[:, 0], ends[:, 1] - middle), fmt="o", capsize=4
)
right.axhline(exact, color="0.6", label="exact")
right.set_xticks(range(len(ranks)), ranks)
right.set(xlabel="rank of the preconditioner", ylabel="log-determinant")
right.legend()
plt.show()
