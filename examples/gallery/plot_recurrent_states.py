"""What a recurrent network can learn at each time
================================================

A network that has to remember two bits is trained by gradient descent. What a step of training can
do to its hidden states is told by their neural tangent kernel, of every sample, time and unit with
every other. It is what the parameters change at each step, carried on by the dynamics: P D D^T P^T.
Partial traces along time and across units show how many directions that leaves, and Lyapunov
exponents how far a change is carried. The view is that of Hazelden et al. (2025),
`arXiv:2507.06381 <https://arxiv.org/abs/2507.06381>`_, on dynamic collapse in training.
"""

# %%
# A flip-flop with two bits: pulses of +1 and -1 set one of them, which the output has to hold until
# the next pulse. A tanh network of 32 units, at first on the edge of chaos.
import matplotlib.pyplot as plt
import numpy as np
import torch

import tracekit as tk
import tracekit_ntk as tkn

steps, units, bits = 40, 32, 2
rng = np.random.default_rng(0)


def flip_flop(samples):
    pulses = rng.choice([-1.0, 0.0, 1.0], (samples, steps, bits), p=[0.05, 0.9, 0.05])
    pulses[:, 0] = rng.choice([-1.0, 1.0], (samples, bits))
    held = np.zeros_like(pulses)
    for t in range(steps):
        held[:, t] = np.where(pulses[:, t] != 0, pulses[:, t], held[:, t - 1])
    return [torch.as_tensor(x, dtype=torch.float32) for x in (pulses, held)]


def drawn(rows, columns, gain):
    W = rng.standard_normal((rows, columns)) * gain / rows**0.5
    return torch.as_tensor(W, dtype=torch.float32)


def cell(params, h, x):
    return torch.tanh(h @ params["recurrent"] + x @ params["input"] + params["bias"])


def run(params, readout, inputs):
    h, states = torch.zeros(len(inputs), units), []
    for x in inputs.unbind(1):
        h = cell(params, h, x)
        states.append(h)
    return torch.stack(states, 1) @ readout


# %%
# The kernel of the states of eight sequences, 10,240 by 10,240, is never formed. Its trace and its
# partial traces are exact: a sum over samples and units leaves time, one over samples and time the
# units.
test, _ = flip_flop(8)


def looked_at(params):
    K = tkn.state_kernel(cell, params, test, torch.zeros(8, units))
    return {
        "trace": float(tk.exact_trace(K.kernel)),
        "of steps": float(tk.exact_trace(K.parameter_kernel)),
        "time": K.partial_trace((0, 2)).numpy(),
        "rank along time": float(K.effective_rank((0, 2))),
        "rank across units": float(K.effective_rank((0, 1))),
        "exponents": K.lyapunov_exponents().mean(0).numpy(),
    }


# %%
# Training by Adam, looked at from time to time.
params = {
    "recurrent": drawn(units, units, 1.5),
    "input": drawn(bits, units, 1.0),
    "bias": torch.zeros(units),
}
readout = drawn(units, bits, 0.1)
learnt = [*params.values(), readout]
for leaf in learnt:
    leaf.requires_grad_()
optimizer = torch.optim.Adam(learnt, lr=5e-3)
looks, losses = {}, []
for iteration in range(401):
    inputs, targets = flip_flop(48)
    loss = torch.mean((run(params, readout, inputs) - targets) ** 2)
    losses.append(float(loss.detach()))
    if iteration % 100 == 0:
        looks[iteration] = looked_at(params)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

print("iteration   loss   trace of P D D' P'   of D D'   rank: time   units   largest exponent")
for iteration, look in looks.items():
    print(
        f"{iteration:>9} {losses[iteration]:>6.2f} {look['trace']:>20.3g} {look['of steps']:>9.3g}"
        f" {look['rank along time']:>12.1f} {look['rank across units']:>7.1f}"
        f" {look['exponents'].max():>18.3f}"
    )

# %%
# The trace of the kernel falls by a factor of 60, while that of D D^T hardly moves: what collapses
# is the propagation. At first a change of the states neither grows nor fades (the largest exponent
# is near zero) and adds up over time, so that the kernel (left, over its largest entry) is large at
# late steps. A trained network holds its bits in fixed points that it falls back to (all exponents
# are negative, right): a change is forgotten after a few steps, and the kernel (middle) looks alike
# at all times but the first.
fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained", width_ratios=(1, 1, 1.3))
first, last = min(looks), max(looks)
for ax, iteration in zip(axes, (first, last), strict=False):
    M = looks[iteration]["time"]
    image = ax.imshow(M / np.abs(M).max(), cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
    ax.set(xlabel="step", ylabel="step")
    ax.set_title(f"iteration {iteration}", loc="left")
fig.colorbar(image, ax=axes[:2], label="kernel / its maximum", shrink=0.8)
for iteration, look in looks.items():
    if iteration in (first, 100, last):
        axes[2].plot(np.arange(1, units + 1), look["exponents"], ".-", label=f"{iteration}")
axes[2].axhline(0, color="0.7", linewidth=1)
axes[2].set(xlabel="direction", ylabel="Lyapunov exponent, per step", ylim=(-2, 0.5))
axes[2].legend(title="iteration", frameon=False)
plt.show()
