"""What DDP's communication hook does to a bucket of gradients: sums it over the ranks by sending less than all of it.

    sums      whole gradients, averaged                                            first steps
    halves    rounded to 16 bits                                                   float16, bfloat16
    largest   the largest of what waits, from each rank to all; the others wait    topk, dgc
    codes     a part to each rank, which averages it; then the parts to all        qsgd, terngrad, signsgd, onebit
    products  narrow matrices (`gradient_powersgd`)                                powersgd

It runs on a stream of its own, as sums do without it: ranks send while the backward pass goes on. All ranks add in one
order, so that replicas stay alike.

After Stich et al. 2018 and Lin et al. 2018 (top-k with memory, DGC), Alistarh et al. 2017 (QSGD), Wen et al. 2017
(TernGrad), Karimireddy et al. 2019 and Zheng et al. 2019 (signs with memory, both ways), Tang et al. 2021 (1-bit Adam).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from dnnmem.estimator.gradient_sizes import GROUP, MOMENTUM, bits_of, part_of
from dnnmem.estimator.plan import Gradients
from dnnmem.profilers.apply import gradient_powersgd
from dnnmem.profilers.apply.gradient_codes import decode, encode_levels, encode_signs

Group = distributed.ProcessGroup
_gather: Any = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
"""Its name since torch 2.14, and before."""


class Hook:
    """What a model's buckets keep between steps, and how they are sent."""

    def __init__(self, wanted: Gradients, group: Group) -> None:
        """`group`: the ranks that average their gradients."""
        self.wanted, self.group, self.ranks = wanted, group, group.size()
        self.steps = 0
        """Steps that are over."""
        self.optimizer: Optimizer | None = None
        """Whose first moments `onebit` sends."""
        self.kept: dict[int, list[Tensor]] = {}
        """By number of a bucket: what was not sent, and other memories."""
        self._stream: torch.cuda.Stream | None = None
        self._generator: torch.Generator | None = None

    @property
    def is_warm(self) -> bool:
        """Whether the first steps, which send whole gradients, are over."""
        return self.steps >= self.wanted.warmup

    def send(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """The averaged gradients of a `GradBucket`, in its own memory."""
        buffer: Tensor = bucket.buffer()
        future: Any = torch.futures.Future(devices=[buffer.device] if buffer.is_cuda else None)
        rounds = self.wanted.compression in ("float16", "bfloat16")
        kept = self._kept(bucket, buffer) if self.is_warm and not rounds else []
        with self._beside(buffer):
            if rounds:
                self._halves(buffer)
            elif not self.is_warm:
                self._sums(buffer)
            elif self.wanted.compression in ("topk", "dgc"):
                self._largest(buffer, *kept)
            elif self.wanted.compression == "powersgd":
                gradient_powersgd.send(buffer, bucket.gradients(), kept, self.wanted.rank, self.group)
            else:
                self._codes(buffer, bucket, kept)
            future.set_result(buffer)
        if bucket.is_last():
            self.steps += 1
        return future  # type: ignore[no-any-return]

    def _beside(self, buffer: Tensor) -> AbstractContextManager[object]:
        """The stream of all buckets, from where the caller's is."""
        if not buffer.is_cuda:
            return nullcontext()
        self._stream = self._stream or torch.cuda.Stream(buffer.device)
        self._stream.wait_stream(torch.cuda.current_stream(buffer.device))
        return torch.cuda.stream(self._stream)

    def _kept(self, bucket: Any, buffer: Tensor) -> list[Tensor]:
        """What a bucket keeps: zeros at first."""
        index = bucket.index()
        if index not in self.kept and self.wanted.compression == "powersgd":
            self.kept[index] = gradient_powersgd.new_memory(bucket.gradients(), self.wanted.rank, index)
        if index not in self.kept:
            n, part = buffer.numel(), self._part(buffer.numel())
            sizes = {"topk": [n], "dgc": [n, n], "signsgd": [self.ranks * part, part]}
            sizes["onebit"] = sizes["signsgd"]
            self.kept[index] = [buffer.new_zeros(size) for size in sizes.get(self.wanted.compression, [])]
        return self.kept[index]

    def _part(self, elements: int) -> int:
        return part_of(self.wanted, elements, self.ranks)

    def _sums(self, buffer: Tensor) -> None:
        distributed.all_reduce(buffer.div_(self.ranks), group=self.group)

    def _halves(self, buffer: Tensor) -> None:
        half = buffer.to(getattr(torch, self.wanted.compression)).div_(self.ranks)
        distributed.all_reduce(half, group=self.group)
        buffer.copy_(half)

    def _largest(self, buffer: Tensor, waiting: Tensor, velocity: Tensor | None = None) -> None:
        """Send the largest of what waits; with `velocity`, momentum is what waits (DGC)."""
        waiting.add_(buffer if velocity is None else velocity.mul_(MOMENTUM).add_(buffer))
        count = ceil(self.wanted.density * buffer.numel())
        places = waiting.abs().topk(count, sorted=False).indices
        values, short = waiting[places], places.to(torch.int32)
        for memory in (waiting, velocity):
            if memory is not None:
                memory.index_fill_(0, places, 0)
        del places
        all_values, all_places = self._gathered(values), self._gathered(short)
        buffer.zero_()
        for own, where in zip(all_values.view(self.ranks, -1), all_places.view(self.ranks, -1), strict=True):
            buffer.index_add_(0, where, own, alpha=1 / self.ranks)

    def _codes(self, buffer: Tensor, bucket: Any, kept: list[Tensor]) -> None:
        """Send codes of each rank's part to it, average them there, and send codes of that to all."""
        part = self._part(buffer.numel())
        whole = kept[0] if kept else buffer.new_zeros(self.ranks * part)
        if self.wanted.compression == "onebit":
            self._to_moments(bucket)
        whole[: buffer.numel()].add_(buffer)
        codes, scale = self._encoded(whole.view(self.ranks, part), kept[:1])
        got = [self._exchanged(codes), self._exchanged(scale)]
        del codes, scale
        mean = self._decoded(*got).mean(0, keepdim=True)
        del got
        if kept:
            mean = kept[1].add_(mean[0]).view(1, part)
        codes, scale = self._encoded(mean, kept[1:])
        del mean
        all_codes, all_scales = self._gathered(codes), self._gathered(scale)
        found = self._decoded(all_codes.view(self.ranks, -1), all_scales.view(self.ranks, -1))
        buffer.copy_(found.view(-1)[: buffer.numel()])

    def _encoded(self, rows: Tensor, memory: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Codes and scales; what they miss stays in the memory, which is what `rows` views."""
        if memory:
            codes, scale = encode_signs(rows)
            rows.sub_(self._decoded(codes, scale))
            return codes, scale
        group = GROUP if self.wanted.compression == "qsgd" else rows.shape[1]
        if self._generator is None:
            self._generator = torch.Generator(rows.device)
            self._generator.manual_seed(distributed.get_rank())
        return encode_levels(rows, self._bits, group, self._generator)

    @property
    def _bits(self) -> int:
        return bits_of(self.wanted)

    def _decoded(self, codes: Tensor, scale: Tensor) -> Tensor:
        return decode(codes, scale, self._bits)

    def _exchanged(self, rows: Tensor) -> Tensor:
        """Row i to rank i."""
        found = torch.empty_like(rows)
        distributed.all_to_all_single(found, rows, group=self.group)
        return found

    def _gathered(self, some: Tensor) -> Tensor:
        """Those of all ranks."""
        found = some.new_empty(self.ranks * some.numel())
        _gather(found, some.view(-1), group=self.group)
        return found

    def _to_moments(self, bucket: Any) -> None:
        """First moments with this rank's gradients, in the place of the gradients."""
        optimizer = self.optimizer
        if optimizer is None:
            return
        gradients, moments = bucket.gradients(), [optimizer.state[p]["exp_avg"] for p in bucket.parameters()]
        beta = optimizer.param_groups[0]["betas"][0]
        torch._foreach_lerp_(gradients, moments, beta)
