r"""Which pixels of an image are resolved
=====================================

Sharpening a blurred image with gaps is an inverse problem like those of seismics and tomography: of
data :math:`d = G m + e` the model m is estimated by damped least squares. What the estimate has of
the truth is :math:`R m`, with the resolution matrix

.. math:: R = G^T G \, (G^T G + \lambda I)^{-1} .

An entry of its diagonal is 1 where the data determine a pixel, and 0 where nothing but the damping
does. Its trace is the number of parameters that the data resolve. R has a row for every pixel, and
is dense.
"""

# %%
# The image is a slice of a head by magnetic resonance, which comes with Matplotlib. An operator of
# PyLops sees it: its focus is lost from left to right, some columns are dead, and so is a patch.
import matplotlib.pyplot as plt
import numpy as np
import pylops
from matplotlib.cbook import get_sample_data
from scipy.sparse.linalg import lsqr

import tracekit as tk

with get_sample_data("s1045.ima.gz") as file:
    scan = np.frombuffer(file.read(), np.uint16).reshape(256, 256)
model = scan[18:234:4, 36:228:4] / scan.max()
rows, columns = shape = model.shape
alive = np.ones(shape, dtype=bool)
alive[:, 6::11] = alive[30:42, 26:36] = False
focus = np.broadcast_to(np.linspace(1, 0, columns), shape)
x = np.arange(-3, 4)
spot = np.exp(-0.5 * (x[:, None] ** 2 + x**2) / 1.2**2)

blur = pylops.signalprocessing.Convolve2D(shape, spot / spot.sum(), offset=(3, 3))
lens = pylops.Diagonal(focus.ravel()) + pylops.Diagonal(1 - focus.ravel()) @ blur
G = pylops.Restriction(model.size, np.flatnonzero(alive)) @ lens

noise = 0.06
data = G @ model.ravel() + noise * np.random.default_rng(0).standard_normal(G.shape[0])
damping = (noise / model.std()) ** 2
restored = lsqr(G, data, damp=damping**0.5)[0].reshape(shape)

# %%
# :func:`tracekit.gram` of the adjoint is :math:`G^T G`; :func:`tracekit.function_operator` makes R
# of it, each column of which takes some steps of Lanczos, and :func:`tracekit.diagonal` is that of
# any operator. The trace alone is :func:`tracekit.effective_dimension`, for far less.
normal = tk.gram(tk.as_operator(G).H)
probes, depth = 60, 16
R = tk.function_operator(normal, tk.functions.ridge(damping), depth)
resolution = tk.diagonal(R, probes, rng=0)
resolved = tk.effective_dimension(normal, damping, 400, rng=0)

# %%
# All of G gives R, for this small image: one product with every pixel.
dense = G.todense()
exact = np.diag(np.linalg.solve(dense.T @ dense + damping * np.eye(model.size), dense.T @ dense))
low, high = (float(end) for end in resolved.confidence_interval(0.95))
held = np.mean(np.abs(resolution.value - exact) <= 1.96 * resolution.standard_error)
error = np.std(resolution.value - exact)
print(f"parameters resolved: {float(resolved):.0f} ({low:.0f} to {high:.0f}), ", end="")
print(f"exactly {exact.sum():.0f} of {model.size}; {resolved.num_matvecs} products with G")
print(
    f"resolution: root mean square error {error:.3f}, 95 % intervals hold {held:.0%} of the pixels;"
)
print(f"{probes} columns of R, {probes * (2 * depth - 1)} products; {model.size} for all of G")

# %%
# Where the focus is good, a pixel is resolved unless it is dead. Where it is bad, the neighbours of
# a dead pixel have seen a little of it, and nothing is resolved well. The intervals are about the
# probes; they know nothing of Lanczos, whose steps have to be enough: with ten they would hold 76 %
# of the pixels.
fig, axes = plt.subplots(2, 3, figsize=(8.8, 6.4), layout="constrained")
seen = np.full(model.size, np.nan)
seen[alive.ravel()] = data
for ax, what, picture in zip(
    axes[0],
    ("the slice", "as seen", "restored"),
    (model, seen.reshape(shape), restored),
    strict=True,
):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=model.max())
    ax.set_title(what, loc="left")
for ax, what, picture in zip(
    axes[1],
    (f"resolution, {probes} columns", "resolution, exact"),
    (resolution.value, exact),
    strict=False,
):
    shown = ax.imshow(picture.reshape(shape), cmap="cividis", vmin=0, vmax=1)
    ax.set_title(what, loc="left")
fig.colorbar(shown, ax=axes[1, :2], location="bottom", shrink=0.6, label="diagonal of R")
for ax in axes.flat[:5]:
    ax.set_axis_off()
line = np.s_[10 * columns : 11 * columns]
axes[1, 2].errorbar(
    np.arange(columns), resolution.value[line], 1.96 * resolution.standard_error[line], fmt="o",
    markersize=3, capsize=2, linewidth=1, label="95 % interval",
)  # fmt: skip
axes[1, 2].plot(exact[line], color="0.4", zorder=3, label="exact")
axes[1, 2].set(xlabel="column", ylim=(-0.1, 1.25))
axes[1, 2].set_title("resolution along row 10", loc="left")
axes[1, 2].legend(frameon=False, ncols=2, loc="upper center")
plt.show()
