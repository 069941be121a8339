"""Tokens on their way to the experts of other ranks and back: two operators for autograd, each the other's gradient.

    sent      (T, D) --a row for each choice, in the order of experts--> (S, D) --all_to_all--> (R, D)
    returned  (R, D) --all_to_all--> (S, D) --in the order of tokens, summed over the choices--> (T, D)

S = T * k rows leave, R arrive. How many go to whom is known to the host before: once a layer it waits for the router.
With a capacity each rank sends each expert equally many rows, what is beyond is dropped, and nobody waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """Where the rows of one call of a layer go."""

    group: distributed.ProcessGroup
    """The ranks that share the experts."""
    source: Tensor
    """Choice that each row that leaves is for, counted over tokens and their choices; (S,)."""
    place: Tensor
    """Row of each choice, the inverse; (T * k,)."""
    dropped: Tensor | None
    """Choices that have no row, (T * k,); None = each has one."""
    empty: Tensor | None
    """Rows that no choice fills, (S,): they are sent as zeros; None = there are none."""
    sent: list[int]
    """Rows that leave, by rank."""
    received: list[int]
    """Rows that arrive, by rank."""
    chosen: Tensor
    """Expert of each row that arrives, counted among this rank's; (R,)."""


def route(
    chosen: Tensor, experts: int, group: distributed.ProcessGroup, capacity: float | None, busier: float = 1.0
) -> Route:
    """The way of each choice of `chosen` (T, k) to `experts` over the ranks of `group`.

    Args: `busier` is how many times as many rows arrive as are told: where nobody computes what routers choose.
    """
    flat = chosen.reshape(-1)
    order = flat.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    counts = flat.new_zeros(experts).scatter_add_(0, flat, flat.new_ones(1).expand_as(flat))
    if capacity is not None:
        return _with_room(flat, place, counts, group, math.ceil(capacity * flat.numel() / experts))
    ranks = group.size()
    arriving = torch.empty_like(counts)
    distributed.all_to_all_single(arriving, counts, group=group)
    leaving, arrived = torch.stack((counts, arriving)).cpu().view(2, ranks, -1)  # the host waits here
    if busier > 1:
        arrived = with_more(arrived, busier)
    own = torch.arange(experts // ranks).repeat(ranks).repeat_interleave(arrived.reshape(-1))
    return Route(
        group=group, source=order, place=place, dropped=None, empty=None, sent=leaving.sum(1).tolist(),
        received=arrived.sum(1).tolist(), chosen=own.to(flat.device),
    )  # fmt: skip


def with_more(counts: Tensor, times: float) -> Tensor:
    """`counts` of rows on the host, so many `times` as many in all: the first takes what is left over.

    >>> with_more(torch.tensor([[3, 3], [3, 3]]), 1.5).tolist()
    [[6, 4], [4, 4]]
    """
    found = (counts * times).floor().to(counts.dtype)
    found.view(-1)[0] += math.ceil(int(counts.sum()) * times) - int(found.sum())
    return found


def _with_room(flat: Tensor, place: Tensor, counts: Tensor, group: distributed.ProcessGroup, room: int) -> Route:
    """Each expert has `room` rows of this rank: choices beyond have none, and rows without a choice are zeros."""
    experts, ranks = counts.numel(), group.size()
    queue = place - (counts.cumsum(0) - counts)[flat]
    dropped = queue >= room
    place = torch.where(dropped, 0, flat * room + queue)
    source = flat.new_zeros(experts * room + 1)  # the last takes what is dropped
    source[torch.where(dropped, experts * room, place)] = torch.arange(flat.numel(), device=flat.device)
    empty = torch.arange(room, device=flat.device) >= counts[:, None]
    own = torch.arange(experts // ranks, device=flat.device).repeat_interleave(room).repeat(ranks)
    even = [experts // ranks * room] * ranks
    return Route(
        group=group, source=source[:-1], place=place, dropped=dropped, empty=empty.view(-1), sent=even, received=even,
        chosen=own,
    )  # fmt: skip


def send(tokens: Tensor, way: Route, choices: int = 1) -> Tensor:
    """Rows (R, ...) that arrive for this rank's experts, of (T, ...) where each token has so many `choices`."""
    sent: Tensor = _Send.apply(tokens, way, choices)
    return sent


def give_back(rows: Tensor, way: Route, choices: int) -> Tensor:
    """What the experts of all ranks made of each token, summed over its `choices`: (T, ...) of rows (R, ...)."""
    back: Tensor = _GiveBack.apply(rows, way, choices)
    return back


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, way: Route, choices: int) -> Tensor:
        ctx.save_for_backward(way.place, way.dropped)
        ctx.choices, ctx.ranks = choices, (way.received, way.sent, way.group)
        rows = _spread(tokens, way.source, choices)
        if way.empty is not None:
            rows.masked_fill_(_as_wide(way.empty, rows), 0)
        return _exchanged(rows, way.sent, way.received, way.group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        place, dropped = ctx.saved_tensors
        found = _exchanged(grad, *ctx.ranks)[place]  # what arrived goes at once
        return _summed(found, dropped, ctx.choices), None, None


class _GiveBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, way: Route, choices: int) -> Tensor:
        ctx.save_for_backward(way.source)
        ctx.choices, ctx.ranks = choices, (way.sent, way.received, way.group)
        found = _exchanged(rows, way.received, way.sent, way.group)[way.place]
        return _summed(found, way.dropped, choices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (source,) = ctx.saved_tensors
        return _exchanged(_spread(grad, source, ctx.choices), *ctx.ranks), None, None


def _spread(tokens: Tensor, source: Tensor, choices: int) -> Tensor:
    """A row for each choice."""
    return tokens[source // choices if choices > 1 else source]


def _summed(found: Tensor, dropped: Tensor | None, choices: int) -> Tensor:
    """The sum over each token's choices, of rows in their order; what was dropped adds nothing."""
    if dropped is not None:
        found.masked_fill_(_as_wide(dropped, found), 0)
    return found.unflatten(0, (-1, choices)).sum(1) if choices > 1 else found


def _as_wide(mask: Tensor, rows: Tensor) -> Tensor:
    return mask.view(-1, *(1,) * (rows.dim() - 1))


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: distributed.ProcessGroup) -> Tensor:
    made = rows.new_empty(sum(received), *rows.shape[1:])
    distributed.all_to_all_single(made, rows.contiguous(), received, sent, group=group)
    return made
