"""The spectrum of a Hessian
=========================

How sharp is the minimum that training has found? The Hessian of the loss answers: its largest
eigenvalue limits the step of gradient descent, its negative ones are ways down that are left, and
where most are near zero the loss is flat in most directions. A network of P parameters has a
Hessian of :math:`P^2` entries, but a product with it costs two gradients.
"""

# %%
# A network of 1,210 parameters for handwritten digits in PyTorch, small enough for the exact
# Hessian. :func:`tracekit_ntk.functional` makes a function of its parameters.
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import tracekit as tk
import tracekit_ntk as tkn

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10))
f, start = tkn.functional(module)


def loss(params):
    return torch.nn.functional.cross_entropy(f(params, x), y)


optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
for _ in range(300):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()
_, end = tkn.functional(module)

# %%
# :func:`tracekit_ntk.hessian` is the operator. :func:`tracekit.spectral_density` takes twenty steps
# of Lanczos from each of fifteen random vectors. :func:`tracekit_ntk.hessian_trace` starts from the
# exact trace of the Gauss-Newton matrix, and needs probes for the rest alone; its loss is a sum
# over samples, where ours is a mean.
budget, entropy = 300, tkn.losses.softmax_cross_entropy
print(f"Hessian of {sum(p.numel() for p in start.values())} parameters: {budget} products each")
densities, exact, traces = {}, {}, {}
for name, params in {"before training": start, "after training": end}.items():
    H = tkn.hessian(loss, params)
    densities[name] = tk.spectral_density(H, budget, rng=1, depth=20)
    traces[name] = tkn.hessian_trace(f, params, x, y, entropy, budget, rng=0)
    plain = tk.hutchinson(H, budget, rng=0)
    exact[name] = np.linalg.eigvalsh((H @ torch.eye(H.shape[0])).numpy())
    sharpest = float(densities[name].nodes.max())
    print(f"{name}: largest eigenvalue {sharpest:.3f} (exactly {exact[name][-1]:.3f})")
    for method, estimate, scale in (("", traces[name], len(x)), (" by signs alone", plain, 1)):
        low, high = (float(edge) / scale for edge in estimate.confidence_interval(0.95))
        truth = f"(exactly {exact[name].sum():.2f})"
        print(f"{name}: trace{method}, 95 % interval {low:.2f} to {high:.2f} {truth}")

# %%
# Most eigenvalues are near zero: of 1,210 directions some dozens have any curvature, which is what
# makes sketches of a Hessian work. Training lets a few steep directions stand out; what is left of
# negative eigenvalues is small, and so is the part of the trace that has to be estimated.
fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.6), layout="constrained", sharey=True)
for ax, (name, found) in zip(axes, densities.items(), strict=True):
    truth = exact[name]
    grid = np.linspace(truth[0] - 0.15, truth[-1] + 0.15, 1200)
    at = torch.tensor(grid, dtype=torch.float32)
    width, curve = float(found.resolution(at)[0]), found.density(at).numpy()
    error = np.where(curve > 0, 2 * curve * found.relative_error(at).numpy(), 0)
    true = np.exp(-0.5 * ((grid[:, None] - truth) / width) ** 2).mean(axis=1)
    ax.fill_between(grid, true / (width * (2 * np.pi) ** 0.5), color="0.85", label="exact")
    ax.plot(grid, curve, label=f"{budget} products")
    ax.fill_between(grid, curve - error, curve + error, alpha=0.4, label="two standard errors")
    ax.plot(truth, np.full(len(truth), 3e-4), "k|", markersize=7, label="eigenvalues")
    ax.set(yscale="log", ylim=(2e-4, 60), xlabel="eigenvalue of the Hessian")
    ax.set_title(name, loc="left")
axes[0].set_ylabel("share of eigenvalues per unit")
axes[1].legend(frameon=False)
plt.show()
