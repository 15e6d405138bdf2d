"""Which layers learn
==================

The neural tangent kernel of a network is a sum over its parameters: each has a kernel of its own,
whose trace is its share in how fast the outputs move. Initialisations and learning rates are chosen
to balance these shares: where weights are drawn too large, gradients grow from layer to layer on
their way back, and the first layers move all the others. Here the shares are looked at in a network
of six layers.
"""

# %%
# A perceptron for handwritten digits. Its weights have the standard deviation :math:`g/\sqrt{d}`
# for d inputs: with g = 1 gradients keep their size, with g = 3 they explode.
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import tracekit as tk
import tracekit_ntk as tkn

x = jnp.asarray(load_digits().data[:100] / 16, dtype=jnp.float32)
widths = 64, 64, 64, 64, 64, 64, 10
layers = [f"layer {i}" for i in range(1, len(widths))]
budget = 40


def network(params, x):
    for name in layers[:-1]:
        x = jnp.tanh(x @ params[name])
    return x @ params[layers[-1]]


def initial(gain):
    rng = np.random.default_rng(0)
    shapes = itertools.pairwise(widths)
    draw = [gain * rng.standard_normal(shape) / shape[0] ** 0.5 for shape in shapes]
    return {name: jnp.asarray(W, "float32") for name, W in zip(layers, draw, strict=True)}


# %%
# :func:`tracekit_ntk.per_parameter` gives the Jacobian of every parameter as an operator of its
# own. Asked for the same columns, they share the reverse-mode passes: 40 of them serve all layers.
# :func:`tracekit.one_sided_summary` reads traces and effective ranks from them.
# :func:`tracekit_ntk.ntk_trace` has the exact traces from the structure of the network, in one pass
# for each of the ten outputs; the exact rank takes the kernels.
@jax.jit
def estimated(params):
    parts = tkn.per_parameter(lambda params: network(params, x), params)
    return {name: tk.one_sided_summary(L, budget, rng=1) for name, L in parts.items()}


@jax.jit
def exactly(params):
    traces = tkn.ntk_trace(network, params, x, per_parameter=True)
    ranks = {}
    for name in layers:
        norm = tkn.ntk_norm(lambda part, x: network(params | part, x), {name: params[name]}, x)
        ranks[name] = traces[name] ** 2 / norm**2
    return traces, ranks


found, exact = {}, {}
for gain in (1, 3):
    params = initial(gain)
    found[gain], exact[gain] = estimated(params), exactly(params)
    print(f"g = {gain}          trace   95 % interval            exact   effective rank (exact)")
    for name in layers:
        trace, _, rank = found[gain][name]
        low, high = (float(end) for end in trace.confidence_interval(0.95))
        (truth, true_rank), interval = (
            (part[name] for part in exact[gain]),
            f"{low:.0f} to {high:.0f}",
        )
        print(f"{name} {float(trace):>11.0f}   {interval:<17} {truth:>11.0f}", end="")
        print(f" {float(rank):>11.1f} ({true_rank:.1f})")
print(f"{budget} passes for each network; its kernel has {len(x) * widths[-1]} columns")

# %%
# With g = 1 the layers have similar shares. With g = 3 the first has ten times that of the last,
# and the kernels have several times as many directions: a network in the chaotic phase tells all
# images apart.
fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.6), layout="constrained")
places = np.arange(len(layers))
for shift, (gain, summaries) in zip((-0.12, 0.12), found.items(), strict=True):
    total = sum(float(truth) for truth in exact[gain][0].values())
    for ax, part, unit in zip(axes, ("trace", "effective_rank"), (100 / total, 1), strict=True):
        estimates = [getattr(summaries[name], part) for name in layers]
        values = np.array([float(estimate) * unit for estimate in estimates])
        ends = np.array([[float(end) * unit for end in e.confidence_interval()] for e in estimates])
        truth = [float(exact[gain][part != "trace"][name]) * unit for name in layers]
        ax.errorbar(
            places + shift, values, np.abs(ends.T - values), fmt="o", capsize=4, label=f"g = {gain}"
        )
        ax.plot(
            places + shift,
            truth,
            "k_",
            markersize=12,
            zorder=3,
            label="exact" if shift > 0 else None,
        )
for ax, what in zip(axes, ("share in the trace, in %", "effective rank"), strict=True):
    ax.set_xticks(places, [name.removeprefix("layer ") for name in layers])
    ax.set(xlabel="layer", ylim=(0, None))
    ax.set_title(f"{what} ({budget} passes)", loc="left")
axes[0].legend(frameon=False)
plt.show()
