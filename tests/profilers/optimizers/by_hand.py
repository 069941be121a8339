"""What the tests of optimizers share: parameters with given gradients, and the steps of an optimizer over them."""

from __future__ import annotations

import torch
from torch import nn

SHAPES = ((6, 4), (3, 5), (4, 2, 3), (5,))
"""A standing and a lying matrix, a kernel of a convolution, and a vector."""


def values(shape, seed):
    """Numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(make, shapes=SHAPES, steps=3, dtype=torch.float64):
    """Parameters after some steps of `make(parameters)`, gradients being numbers of their own."""
    params = [nn.Parameter(values(shape, n).to(dtype)) for n, shape in enumerate(shapes)]
    optimizer = make(params)
    for step in range(steps):
        for n, p in enumerate(params):
            p.grad = values(p.shape, 100 * step + n + 10).to(dtype)
        optimizer.step()
    return [p.detach() for p in params]


def expected(update, shapes=SHAPES, steps=3):
    """The same by `update(w, g, states, t)`, which returns new weights and may keep what it likes in `states`."""
    results = []
    for n, shape in enumerate(shapes):
        w, states = values(shape, n), {}
        for step in range(steps):
            w = update(w, values(shape, 100 * step + n + 10), states, step + 1)
        results.append(w)
    return results


def check(found, wanted, rtol=1e-9):
    """All alike."""
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-9)
