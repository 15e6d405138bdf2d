r"""Entanglement, and what heat leaves of it
========================================

Two halves of a quantum system know of each other what neither knows alone. In a pure state the
entropy of a half measures that: :func:`tracekit.entanglement_entropy`, by a singular value
decomposition of the state as a matrix. In a warm state a part has a density matrix of its own,
:func:`tracekit.reduced_density_matrix` of a pure state and :func:`tracekit.gibbs_density_matrix`
of a Gibbs state.
"""

# %%
# A chain of L spins in a transverse field, as free fermions and as a vector of :math:`2^L` numbers
# that is found by SciPy.
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.linalg import eigsh
from scipy.special import entr

import tracekit as tk

L = 12
dims = (2,) * L
spins = 1 - 2.0 * np.indices(dims).reshape(L, -1)
bonds = -np.sum(spins[:-1] * spins[1:], axis=0)


def chain(g):
    def product(X):
        T = X.reshape(*dims, -1)
        flipped = sum(np.flip(T, axis=j) for j in range(L))
        return bonds[:, None] * X - g * flipped.reshape(X.shape)

    return tk.LinearOperator((2**L, 2**L), product, product, dtype=np.float64, xp=np)


def correlations(g, beta=np.inf):
    """Between the fermions of each pair of sites; on the diagonal the mean of X."""
    U, s, Vh = np.linalg.svd(g * np.eye(L) + np.eye(L, k=1))
    return (U * np.tanh(beta * s)) @ Vh


# %%
# The entropy of the first l spins: it saturates where the chain has a gap, and grows like
# :math:`\tfrac16 \log` of the length where the gap closes, at g = 1. The truth comes from the
# correlations of free fermions, of which there are l squared.
fields, cuts = (0.7, 1.0, 1.5), np.arange(1, L)
found, exact = {}, {}
for g in fields:
    _, vectors = eigsh(chain(g), k=1, which="SA", tol=1e-12, v0=np.ones(2**L))
    psi = vectors[:, 0]
    found[g] = [tk.entanglement_entropy(psi, dims, tuple(range(cut))) for cut in cuts]
    G = correlations(g)
    exact[g] = []
    for cut in cuts:
        p = (1 + np.minimum(np.linalg.svd(G[:cut, :cut], compute_uv=False), 1)) / 2
        exact[g].append(np.sum(entr(p) + entr(1 - p)))
    error = np.max(np.abs(np.array(found[g]) - exact[g]))
    print(
        f"g = {g}: {float(found[g][L // 2 - 1]):.4f} nats in the middle, largest error {error:.0e}"
    )

# %%
# A spin in the middle of a warm chain: its density matrix is :math:`(1 + \langle X \rangle X) / 2`,
# polarised by the field, and becomes that of a coin as temperature rises. Two hundred products with
# H are a few random states; one of them would nearly do, as almost all states of the energy look
# alike to a single spin.
g, middle = 1.0, L // 2
others = tuple(j for j in range(L) if j != middle)
temperatures = np.geomspace(0.2, 5, 12)
states = [tk.gibbs_density_matrix(chain(g), 1 / T, dims, others, 200, rng=0) for T in temperatures]
truth = [correlations(g, 1 / T)[middle, middle] for T in temperatures]
polarised = np.array([2 * state.value[0, 1] for state in states])
bars = np.array([2 * state.standard_error[0, 1] for state in states])
print("temperature   <X>      standard error   exact")
for row in zip(temperatures[::3], polarised[::3], bars[::3], truth[::3], strict=True):
    print("{:>11.2f} {:>7.4f} {:>16.4f} {:>9.4f}".format(*row))

fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
for k, field in enumerate(fields):
    axes[0].plot(cuts, exact[field], color=f"C{k}", linewidth=1)
    axes[0].plot(cuts, found[field], "o", color=f"C{k}", label=f"g = {field}")
axes[0].set(xlabel="spins on the left")
axes[0].set_title("entanglement entropy, in nats", loc="left")
axes[0].legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.45))
axes[1].plot(temperatures, truth, "k--", linewidth=1, label="free fermions")
axes[1].errorbar(temperatures, polarised, 2 * bars, fmt="o", capsize=3, label="200 products")
axes[1].set(xscale="log", xlabel="temperature")
axes[1].set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
axes[1].set_xticks([], minor=True)
axes[1].set_title("polarisation of the middle spin", loc="left")
axes[1].legend(frameon=False)
plt.show()
