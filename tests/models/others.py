"""Recurrent networks, a graph network by scatter, and a custom autograd function."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from tests.models.entry import Entry

STEPS, FEATURES, CLASSES, NODES, EDGES = 10, 8, 5, 20, 60


def sequences(batch_size):
    return torch.randn(batch_size, STEPS, FEATURES), torch.randint(CLASSES, (batch_size,))


def graphs(batch_size):
    """Nodes of all graphs in one list, edges as two rows of node numbers, and a class for each node."""
    nodes, edges = batch_size * NODES, batch_size * EDGES
    return torch.randn(nodes, FEATURES), torch.randint(nodes, (2, edges)), torch.randint(CLASSES, (nodes,))


def points(batch_size):
    return torch.randn(batch_size, FEATURES), torch.randint(CLASSES, (batch_size,))


def cross_entropy(model, batch):
    *inputs, labels = batch
    return functional.cross_entropy(model(*inputs), labels)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layers = kind(FEATURES, 16, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, CLASSES)

    def forward(self, x):
        return self.head(self.layers(x)[0][:, -1])


class GraphLayer(nn.Module):
    """Messages along edges, added up at their targets, and scaled by the number of them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.message, self.own = nn.Linear(2 * inputs, outputs), nn.Linear(inputs, outputs)

    def forward(self, x, edges):
        source, target = edges
        message = functional.relu(self.message(torch.cat([x[source], x.index_select(0, target)], dim=-1)))
        total = torch.zeros(len(x), message.shape[-1], device=x.device).index_add_(0, target, message)
        count = torch.zeros(len(x), device=x.device).scatter_add_(0, target, torch.ones_like(message[:, 0]))
        return self.own(x) + total / count.clamp(min=1)[:, None]


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GraphLayer(FEATURES, 32), GraphLayer(32, CLASSES)

    def forward(self, x, edges):
        return self.second(functional.elu(self.first(x, edges)), edges)


class Swish(torch.autograd.Function):
    """x sigmoid(x) that keeps only x, as hand-written kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        gate = x.sigmoid()
        return grad * gate * (1 + x * (1 - gate))


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(FEATURES, 32), nn.Linear(32, 32)])
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            x = Swish.apply(layer(x))
        return self.head(x)


def entry(make_model, make_batch, **options):
    return Entry(make_model=make_model, make_batch=make_batch, forward_loss=cross_entropy, **options)


OTHERS = {
    "lstm": entry(partial(Recurrent, nn.LSTM), sequences),
    "gru": entry(partial(Recurrent, nn.GRU, bidirectional=True, dropout=0.1), sequences),
    "gnn": entry(Graph, graphs),
    "custom_function": entry(Custom, points, make_optimizer=partial(torch.optim.SGD, lr=0.1)),
}
