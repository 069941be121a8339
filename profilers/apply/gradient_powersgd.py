"""PowerSGD: the matrices of a bucket are sent as products of narrow ones, P Q'; what they miss waits for the next step.

    M += what waits | P = M Q | sum P over ranks, make its columns orthogonal | Q = M' P | average Q | M = P Q'

Matrices whose two narrow ones are not smaller are sent whole, as vectors are. Q is that of the step before (Vogels et
al. 2019). PyTorch's `powerSGD_hook` does the same on up to 32 streams in turn, each of which needs a workspace of
cuBLAS, 32 MiB on an H100; this one stays on the stream of its hook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from dnnmem.estimator.gradient_sizes import narrow_columns

_TINY = 1e-30
"""Smallest length of a column."""


def new_memory(gradients: Sequence[Tensor], rank: int, seed: int) -> list[Tensor]:
    """What a bucket keeps: zeros for what waits, P, and Q, which is the same on all ranks."""
    like = gradients[0]
    sizes = [(*_matrix(g).shape, narrow_columns(g.shape, rank)) for g in gradients]
    drawn = torch.Generator(like.device)
    drawn.manual_seed(seed)
    q = torch.randn(sum(m * r for _, m, r in sizes), generator=drawn, dtype=like.dtype, device=like.device)
    return [like.new_zeros(sum(g.numel() for g in gradients)), like.new_empty(sum(n * r for n, _, r in sizes)), q]


def send(
    buffer: Tensor, gradients: Sequence[Tensor], memory: Sequence[Tensor], rank: int, group: distributed.ProcessGroup
) -> None:
    """Average the gradients, which view `buffer`, over `group`; `memory` is what `new_memory` made."""
    waiting, all_p, all_q = memory
    columns = [narrow_columns(g.shape, rank) for g in gradients]
    matrices = [_matrix(g) for g, r in zip(gradients, columns, strict=True) if r]
    whole = [g for g, r in zip(gradients, columns, strict=True) if not r]
    narrow = [r for r in columns if r]
    ps = _views(all_p, [(m.shape[0], r) for m, r in zip(matrices, narrow, strict=True)])
    qs = _views(all_q, [(m.shape[1], r) for m, r in zip(matrices, narrow, strict=True)])
    waiting.add_(buffer)
    buffer.copy_(waiting)
    for matrix, p, q in zip(matrices, ps, qs, strict=True):
        _make_orthogonal(q)
        torch.mm(matrix, q, out=p)
    if whole:
        _average_whole(whole, group)
    if matrices:
        distributed.all_reduce(all_p, group=group)
        for matrix, p, q in zip(matrices, ps, qs, strict=True):
            _make_orthogonal(p)
            torch.mm(matrix.t(), p, out=q)
        distributed.all_reduce(all_q.div_(group.size()), group=group)
        for matrix, p, q in zip(matrices, ps, qs, strict=True):
            torch.mm(p, q.t(), out=matrix)
    waiting.sub_(buffer)


def _matrix(gradient: Tensor) -> Tensor:
    rows = gradient.shape[0] if gradient.dim() > 1 else 1
    return gradient.as_strided((rows, gradient.numel() // rows), (gradient.numel() // rows, 1))  # however its rows lie


def _views(memory: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    parts = memory.split([n * r for n, r in shapes]) if shapes else ()
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _average_whole(gradients: Sequence[Tensor], group: distributed.ProcessGroup) -> None:
    flat = torch.cat([g.reshape(-1) for g in gradients]).div_(group.size())
    distributed.all_reduce(flat, group=group)
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


def _make_orthogonal(matrix: Tensor) -> None:
    """Its columns, of length one, one after the other (Gram and Schmidt)."""
    for i in range(matrix.shape[1]):
        column, rest = matrix[:, i], matrix[:, i + 1 :]
        column.div_(torch.linalg.vector_norm(column).clamp_(min=_TINY))
        if rest.shape[1]:
            rest.addr_(column, column @ rest, alpha=-1)
