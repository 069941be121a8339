"""The rank whose memory is a plan's: ranks of a pipeline hold other stages, those of a ring other halves of a sequence.

    cp 4, ring     ranks 0 | 1 | 2 | 3     halves of queries, both, both, halves of keys     the one that reserves most
    pp 2 x cp 2    the worst stage of 0, 1 and that of 2, 3, by each place in the ring

Ranks that ask for a tenth less than others are not played: fragments of ranks that do nearly the same are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dnnmem.estimator.allocator_settings import AllocatorSettings
from dnnmem.estimator.local_step import LocalStep
from dnnmem.estimator.rank_samples import ring_ranks
from dnnmem.estimator.replay import ReplayResult, replay_on
from dnnmem.estimator.stage_memory import StageMemory, worst_stage
from dnnmem.estimator.trace import Trace

_CLOSE = 0.9
"""Share of the largest peak of requested bytes from which a rank may be the one that reserves most."""


def worst_rank(
    step: LocalStep, settings: AllocatorSettings | None = None, *, play: Callable[[Trace], ReplayResult] | None = None
) -> StageMemory:
    """The rank of the whole plan that reserves most, and what it holds. Raises what passes and schedules raise.

    Args: `play` is how a step of no pipeline is played; None = by an allocator with `settings` on the plan's GPU.
    """
    each = step.plan.mesh.world_size // step.plan.mesh.pp
    found = []
    for first, chunks in _unlike(step):
        if step.plan.mesh.pp > 1:
            stage = worst_stage(chunks, step.plan, step.cluster.device)
            found.append(StageMemory(rank=stage.rank * each + first, held=stage.held))
        else:
            held = play(chunks[0]) if play else replay_on(chunks[0], step.cluster.device, settings)
            found.append(StageMemory(rank=first, held=held))
    return max(found, key=lambda one: (one.held.peak_reserved_bytes, one.held.peak_allocated_bytes))


def _unlike(step: LocalStep) -> list[tuple[int, Sequence[Trace]]]:
    """Ranks of the first stage that differ, with the chunks of all stages as ranks at their place have them."""
    own = [chunk.trace for chunk in step.chunks]
    others = ring_ranks(step.plan)[1:] if step.of_rank is not None else ()
    found = [(0, own), *((rank, step.of_rank(rank)) for rank in others if step.of_rank is not None)]
    if len(found) == 1 or step.plan.mesh.pp > 1:
        return found
    asked = [chunks[0].peak_bytes() for _, chunks in found]
    enough = max(asked) * _CLOSE
    return [one for one, nbytes in zip(found, asked, strict=True) if nbytes >= enough]
