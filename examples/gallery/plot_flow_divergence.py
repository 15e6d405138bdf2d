"""The density of a flow
=====================

How likely does a diffusion model, or a continuous normalising flow, find an image? Its samples move
by :math:`dx/dt = v(x, t)`, and the logarithm of the density along the way falls by the divergence
of v. The divergence of an image of D pixels takes D products with the Jacobian, which nobody spends
at every step of a solver: it is estimated. Here the density is known, so that one can look.
"""

# %%
# A model that is right: 300 handwritten digits, each blurred by normal noise of width s, have the
# field :math:`dx / d\log s = x - \mu_s(x)`, where :math:`\mu_s(x)` is what a perfect denoiser
# returns. At s = 0.3 the density is a mixture whose logarithm can be written down, at s = 10 it is
# normal to the eye.
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import tracekit_ntk as tkn

images = jnp.asarray(load_digits().data / 16, dtype="float32")
centres, x = images[:300], images[300:348]
narrow, wide, steps = 0.3, 10.0, 36
N, D = x.shape
x = x + 0.1 * jnp.asarray(np.random.default_rng(0).standard_normal((N, D)), dtype="float32")


def exponents(x, s):
    square = (x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
    return -square / (2 * s**2)


def field(x, s):
    return x - jax.nn.softmax(exponents(x, s), axis=1) @ centres


def log_density(x, s):
    norm = jnp.log(len(centres)) + D * jnp.log(s * (2 * jnp.pi) ** 0.5)
    return jax.nn.logsumexp(exponents(x, s), axis=1) - norm


def log_prior(x):
    """Normal, with the mean and covariance of what the digits have become."""
    off, cov = x - centres.mean(0), jnp.cov(centres.T, bias=True) + wide**2 * jnp.eye(D)
    square = (off * jnp.linalg.solve(cov, off.T).T).sum(1)
    return -(square + jnp.linalg.slogdet(2 * jnp.pi * cov)[1]) / 2


# %%
# Steps of Runge and Kutta carry image, integral and the sums of standard errors, of every image and
# of the mean. One key for all stages draws one set of probes, other ones for every image: what is
# solved is a smooth equation. Errors at different times go together then, and their standard errors
# add up, at most.
@partial(jax.jit, static_argnames="num_matvecs")
def flow(x, key, num_matvecs):
    def slope(x, t):
        s = jnp.exp(t)
        estimate = tkn.divergence(lambda x: field(x, s), x, num_matvecs, rng=key)
        mean = tkn.batch_mean(estimate)
        return field(x, s), estimate.value, estimate.standard_error, mean.standard_error

    def step(state, t):
        a = slope(state[0], t)
        b = slope(state[0] + h / 2 * a[0], t + h / 2)
        c = slope(state[0] + h / 2 * b[0], t + h / 2)
        d = slope(state[0] + h * c[0], t + h)
        moved = [
            y + h / 6 * (p + 2 * q + 2 * r + z)
            for y, p, q, r, z in zip(state, a, b, c, d, strict=True)
        ]
        return tuple(moved), None

    times = jnp.linspace(jnp.log(narrow), jnp.log(wide), steps + 1)
    h = times[1] - times[0]
    start = x, jnp.zeros(N), jnp.zeros(N), jnp.zeros(())
    (x, integral, bars, bar), _ = jax.lax.scan(step, start, times[:-1])
    return log_prior(x) + integral, bars, bar


truth = log_density(x, narrow)
budgets = (2, 4, 8, 16, None)
found = {m: tuple(map(np.asarray, flow(x, jax.random.key(1), m))) for m in budgets}
print(f"log-density of {N} images, mean {truth.mean():.2f}; {4 * steps} divergences each")
print("products     mean     bar   error   error of one image")
for m, (values, _, bar) in found.items():
    off = values - np.asarray(truth)
    spread = np.sqrt(np.mean(off**2))
    print(f"{m or D:8} {values.mean():8.2f} {bar:7.2f} {off.mean():7.2f} {spread:8.2f}")

# %%
# With all 64 products the flow returns the density, up to the error of the solver. Eight products
# leave an image an error of some units, but the mean over the batch, which training looks at, is
# known to a fraction of one.
fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.6), layout="constrained")
values, bars, _ = found[8]
left.errorbar(truth, values, 2 * bars, fmt="o", ms=3, lw=0.8, label="8 products")
left.plot(truth, found[None][0], "k.", ms=4, label="64 products, exact divergence")
ends = [float(truth.min()), float(truth.max())]
left.plot(ends, ends, color="0.6", lw=1)
left.set(xlabel="log-density in closed form", ylabel="log-density by the flow")
left.legend(frameon=False)
some = [m for m in budgets if m]
off = {m: found[m][0] - np.asarray(truth) for m in some}
right.loglog(some, [np.sqrt(np.mean(off[m] ** 2)) for m in some], "o-", label="error of an image")
right.loglog(some, [abs(off[m].mean()) for m in some], "s-", label="error of the mean")
right.loglog(some, [found[m][2] for m in some], "k--", label="bar of the mean")
right.set(xlabel="products at every stage", xticks=some, xticklabels=some)
right.minorticks_off()
right.legend(frameon=False)
plt.show()
