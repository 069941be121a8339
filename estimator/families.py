"""Which ranked plans differ in nothing that a person would choose by: they are told in one line.

    1  ZeRO-2, offload                2.60 s  65 GiB     1  ZeRO-2, offload               2.60 s  65 GiB   also: 3
    2  FSDP2, offload                 2.60 s  51 GiB     2  FSDP2, offload                2.60 s  51 GiB   also: 4
    3  ZeRO-2, offload, fused update  2.59 s  65 GiB
    4  FSDP2, offload, fused update   2.59 s  51 GiB

The time model cannot tell them apart, they need the same memory on as many GPUs, and train the same. The first one has
the fewest techniques: that is how ties are ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.estimator.report import Candidate

SAME_MEMORY = 0.02
"""Of what a GPU offers: less is no reason to choose another plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Plans that are told in one line."""

    first: Candidate
    """The best ranked."""
    alike: tuple[Candidate, ...] = ()
    """The others, in their order."""


def families(candidates: Sequence[Candidate]) -> tuple[Family, ...]:
    """`candidates` by families, in the order of their first ones; what was run has a line of its own."""
    found: list[list[Candidate]] = []
    for candidate in candidates:
        mine = next((some for some in found if _are_alike(some[0], candidate)), None)
        if mine is None:
            found.append([candidate])
        else:
            mine.append(candidate)
    return tuple(Family(first=first, alike=tuple(others)) for first, *others in found)


def _are_alike(first: Candidate, other: Candidate) -> bool:
    if other.verified is not None or other.rank not in first.tied_with or not other.rank:
        return False
    mine, theirs = first.estimate, other.estimate
    apart = abs((mine.peak_reserved_bytes or 0) - (theirs.peak_reserved_bytes or 0))
    return (
        mine.plan.mesh.world_size == theirs.plan.mesh.world_size
        and first.alters_training == other.alters_training
        and apart <= SAME_MEMORY * mine.cluster.device.usable_bytes
    )
