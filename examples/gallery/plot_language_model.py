r"""The kernel of a language model
==============================

A language model gives a logit for each of thousands of words, so that its neural tangent kernel has
thousands of rows for every text. But all of them are linear in a few features, by a matrix that is
the table of the embedding too: kernels and traces take one reverse pass for each feature, not one
for each word, and are exact. Here a small model with the shape of GPT-2 reads Python's own manual.
"""

# %%
# The manual's topics come with Python. The most frequent words are the vocabulary, and the texts
# are runs of 24 words from three topics.
import re
import time
from collections import Counter
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from torch import nn

import tracekit as tk
import tracekit_ntk as tkn

torch.manual_seed(0)
length, width, chosen = 24, 48, ("try", "string-methods", "assignment")
words = {name: re.findall(r"[a-z]+|[^\sa-z]", text.lower()) for name, text in topics.items()}
counts = Counter(word for text in words.values() for word in text)
vocabulary = {word: k for k, (word, _) in enumerate(counts.most_common(3000))}


def texts(name, number):
    tokens = torch.tensor([vocabulary.get(word, 0) for word in words[name]])
    return tokens[: number * length].reshape(number, length)


x = torch.cat([texts(name, 8) for name in chosen])
print(f"{len(vocabulary)} words, {len(x)} texts of {length} words from {', '.join(chosen)}")


# %%
# Two layers of causal attention, and a head that is tied to the embedding.
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h):
        q, k, v = self.attention(self.first(h)).chunk(3, -1)
        h = h + self.mixed(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return h + self.fall(nn.functional.gelu(self.rise(self.second(h))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(len(vocabulary), width)
        self.places = nn.Embedding(length, width)
        self.layers = nn.Sequential(Layer(), Layer())
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=width**-0.5)

    def forward(self, tokens):
        h = self.words(tokens) + self.places(torch.arange(length).expand_as(tokens))
        return self.norm(self.layers(h)) @ self.words.weight.T


model = Model()
f, params = tkn.functional(model)


def next_word(params, tokens):
    return f(params, tokens)[:, -1]


print(tkn.explain(next_word, params, x, trace=True).splitlines()[-1])

# %%
# The trace, exact and estimated. The estimate takes one pass for each product, the exact value one
# for each of the 48 features; without the head it would take 3000.
start = time.perf_counter()
exact = tkn.ntk_trace(next_word, params, x)
print(f"exact     {exact:.6g}, {time.perf_counter() - start:.1f} s")
start = time.perf_counter()
J = tkn.jacobian(lambda params: next_word(params, x), params)
estimate = tk.one_sided(J, 16, rng=0)
low, high = estimate.confidence_interval()
print(f"estimate  {estimate}, {low:.6g} to {high:.6g}, {time.perf_counter() - start:.1f} s")

# %%
# The kernel of the texts, summed over all words, before and after a little training on the manual.
# Its cosines tell how far a step on one text moves the others; the topics stand in blocks.
before = tkn.kernel(next_word, params, x, trace_axes=1)
shares = {"before": tkn.ntk_trace(next_word, params, x, per_parameter=True)}
optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
manual = torch.cat([texts(name, len(words[name]) // length) for name in chosen])
for _ in range(150):
    batch = manual[torch.randint(len(manual), (32,))]
    logits = model(batch)[:, :-1].flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, batch[:, 1:].flatten())
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"loss {loss.item():.2f} after training")

_, params = tkn.functional(model)
after = tkn.kernel(next_word, params, x, trace_axes=1)
shares["after"] = tkn.ntk_trace(next_word, params, x, per_parameter=True)

fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for ax, (title, K) in zip(axes, {"before": before, "after": after}.items(), strict=True):
    scale = K.diagonal().sqrt()
    image = ax.imshow((K / (scale[:, None] * scale)).numpy(), vmin=0, vmax=1)
    ax.set_title(f"kernel of {len(x)} texts, {title} training")
    ax.set_xticks([3.5, 11.5, 19.5], chosen)
    ax.set_yticks([])
    cosines = (K / (scale[:, None] * scale)).reshape(3, 8, 3, 8).mean((1, 3))
    own = cosines.diagonal().mean()
    other = (cosines.sum() - cosines.trace()) / 6
    print(f"{title:7} mean cosine within a topic {own:.2f}, between topics {other:.2f}")
_ = fig.colorbar(image, ax=axes, label="cosine", shrink=0.8)

# %%
# Which parameters the trace is of. The tied table has the largest part: each text moves the logits
# of all words by its features, whatever words it is made of.
for name in ("words", "places", "layers.0", "layers.1", "norm"):
    parts = [
        sum(t for key, t in traces.items() if key.startswith(name)) / sum(traces.values())
        for traces in shares.values()
    ]
    print(f"{name:10}" + "".join(f"{float(part):8.1%}" for part in parts))
