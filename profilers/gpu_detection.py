"""Which proposals of a detector match an object, where nobody knows the boxes: every second one does.

torchvision's samplers then draw as many positive and negative ones as they are configured to, as they do once a
detector has learned something; with all or none matched they would draw fewer, or train on everything.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.gpu_twins import Twins

MODULE = "torchvision.models.detection._utils"
"""Where torchvision matches."""
_TOLD = "torchvision's Matcher: which proposals match an object is not known; every second one does"


def assume_matches(twins: Twins) -> None:
    """Change the matcher of the loaded torchvision."""
    matcher: Any = sys.modules[MODULE].Matcher
    real = matcher.__call__

    def match(self: Any, quality: Tensor) -> Tensor:
        matches: Tensor = real(self, quality)
        if matches.is_cuda and matches.numel() and not twins.worth([matches]):
            order = torch.arange(matches.numel(), device="cpu")
            found = torch.where(order % 2 == 0, order // 2 % len(quality), self.BELOW_LOW_THRESHOLD)
            twins.assume(matches, found, _TOLD)
        return matches

    matcher.__call__ = match
