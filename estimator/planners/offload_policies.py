"""Which activations go to the host, by the rules of the systems that did it first: each ranks blocks in its own way.

    vdnn          the inputs of convolutions, or what all blocks save, whichever is faster and fits (vDNN's `dyn`)
    tflms         what is not read again for longest
    autoswap      by how long and how much it is absent: four scores
    superneurons  what is cheap is computed again, the rest goes to the host; the nearest to the loss stay
    capuchin      what has most time for both copies; once no copy hides, whichever costs less: a copy or a second run

A rule answers with plans that send ever more; the fastest that fits is taken. Nothing waits at the end of a layer (as
vDNN++ has it): copies run beside the ops, and what is left of them shows where the plan is priced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.plan import Offload
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.chain_plans import as_found
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """What a block saves, between its forward and its backward pass."""

    block: int
    """Its number over the model."""
    nbytes: int
    """What would travel."""
    seconds: float
    """From the end of its forward pass to the beginning of its backward pass."""
    again_seconds: float
    """Of its forward pass."""
    first: int
    """Number of its stage."""


def absences(chain: Chain) -> tuple[Absence, ...]:
    """Of the blocks that can send something, in the order of the model; the last block keeps what it saves."""
    stages = chain.stages
    both = [stage.forward_seconds + stage.backward_seconds for stage in stages]
    after = [*accumulate(reversed(both), initial=0.0)][::-1][1:]
    last = max((stage.block for stage in stages if stage.block is not None), default=-1)
    return tuple(
        Absence(
            block=stage.block, nbytes=stage.sent_bytes, seconds=after[s], again_seconds=stage.forward_seconds, first=s
        )
        for s, stage in enumerate(stages)
        if stage.block is not None and stage.block < last and stage.sent_bytes
    )  # fmt: skip


def by_distance(chain: Chain) -> list[list[int]]:
    """TFLMS (Le et al. 2018): first what is not read again for longest."""
    return [_order(absences(chain), lambda item: item.seconds)]


def by_scores(chain: Chain) -> list[list[int]]:
    """AutoSwap (Zhang et al. 2019): by duration of absence, area, load while absent, and what is left of that load."""
    items, load = absences(chain), _load(chain)
    heavy = {item.block: sum(load[item.first :]) * item.nbytes for item in items}
    return [
        _order(items, lambda item: item.seconds),
        _order(items, lambda item: item.seconds * item.nbytes),
        _order(items, lambda item: heavy[item.block]),
        _submodular(items, load),
    ]


def _order(items: Sequence[Absence], score: Callable[[Absence], float]) -> list[int]:
    return [item.block for item in sorted(items, key=lambda item: (-score(item), item.block))]


def _load(chain: Chain) -> list[float]:
    """Byte-seconds that wait while each stage runs, in either pass."""
    waiting = [*accumulate(stage.saved_bytes for stage in chain.stages)]
    return [
        nbytes * (stage.forward_seconds + stage.backward_seconds)
        for nbytes, stage in zip(waiting, chain.stages, strict=True)
    ]


def _submodular(items: Sequence[Absence], load: Sequence[float]) -> list[int]:
    """By load while absent, of what those before have left of it."""
    left, load_left, found = list(items), list(load), []
    while left:
        best = max(left, key=lambda item: (item.nbytes * sum(load_left[item.first :]), -item.block))
        left.remove(best)
        found.append(best.block)
        share = best.nbytes / sum(item.nbytes for item in items)
        load_left = [value * (1 - share) if s >= best.first else value for s, value in enumerate(load_left)]
    return found


def cheap_again(chain: Chain, bytes_per_s: float) -> list[tuple[list[int], list[int]]]:
    """SuperNeurons (Wang et al. 2018): of the blocks before each, what is computed again and what is sent.

    A block is cheap if running it again takes less than fetching what it saves.
    """
    items = absences(chain)
    cheap = {item.block for item in items if item.again_seconds < item.nbytes / bytes_per_s}
    found = []
    for count in range(1, len(items) + 1):
        blocks = [item.block for item in items[:count]]
        again = [block for block in blocks if block in cheap]
        found.append((again, [block for block in blocks if block not in cheap]))
        found.append((blocks, blocks))  # checkpoints on the host, and all between them computed again
    return found


def by_free_time(chain: Chain, bytes_per_s: float) -> list[tuple[list[int], list[int]]]:
    """Capuchin (Peng et al. 2020): what is computed again and what is sent, as ever more memory is wanted.

    Free time is what an absence leaves of both copies, which queue on the link. Where it is used up, a copy costs what
    is missing; a second run, its seconds, and those of most bytes saved per second (MSPS) come first.
    """
    items, again, sent, busy = list(absences(chain)), list[int](), list[int](), 0.0
    found = []
    while items:
        item = max(items, key=lambda item: (item.seconds - 2 * item.nbytes / bytes_per_s, -item.block))
        copy = item.nbytes / bytes_per_s
        missing = busy + 2 * copy - item.seconds
        if missing > 0:
            dense = max(items, key=lambda item: item.nbytes / item.again_seconds if item.again_seconds else 0.0)
            item = dense if dense.again_seconds < missing else item
        if missing > 0 and item.again_seconds < missing:
            again.append(item.block)
        else:
            sent.append(item.block)
            busy += copy
        items.remove(item)
        found.append((sorted(again), sorted(sent)))
    return found


def _vdnn(problem: Problem) -> list[Found]:
    found = []
    for way in ("conv", "all"):
        with suppress(UnsupportedError):
            one = Found(offload=Offload(activations=way))
            problem.cost(one)
            found.append(one)
    if not found:
        raise UnsupportedError(
            f"{problem.recorded.origin.target or 'the step'} has neither large inputs of convolutions nor blocks in a "
            "list to send from"
        )
    return found


def _prefixes(problem: Problem, orders: Sequence[Sequence[int]]) -> list[Found]:
    sets = dict.fromkeys(tuple(sorted(order[:count])) for order in orders for count in range(1, len(order) + 1))
    return [as_found(problem, (), sent) for sent in sets]


def _mixed(problem: Problem, ways: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Found]:
    pairs = dict.fromkeys((tuple(again), tuple(sent)) for again, sent in ways)
    return [as_found(problem, [Run(first=k, last=k) for k in again], sent) for again, sent in pairs]


def _rate(problem: Problem) -> float:
    return copy_bytes_per_s(problem.cluster, problem.model)


def _planner(
    name: str, words: str, tried: Callable[[Problem], list[Found]], needs: str = "a chain of blocks"
) -> Planner:
    def find(problem: Problem) -> Found:
        return cheapest(problem, problem.once(name, lambda: tried(problem)), what="activations on the host")

    return Planner(name=name, words=words, needs=f"{needs}, a host", find=find)


PLANNERS = (
    _planner(
        "vdnn", "inputs of convolutions, or all that blocks save, to the host (Rhu et al. 2016)", _vdnn,
        "convolutions or blocks",
    ),
    _planner(
        "tflms", "what is read again last goes to the host (Le et al. 2018)",
        lambda problem: _prefixes(problem, by_distance(problem.chain())),
    ),
    _planner(
        "autoswap", "what is absent longest and largest goes to the host (Zhang et al. 2019)",
        lambda problem: _prefixes(problem, by_scores(problem.chain())),
    ),
    _planner(
        "superneurons", "cheap blocks run again, the others go to the host (Wang et al. 2018)",
        lambda problem: _mixed(problem, cheap_again(problem.chain(), _rate(problem))),
    ),
    _planner(
        "capuchin", "to the host while copies hide, then the cheaper of both (Peng et al. 2020)",
        lambda problem: _mixed(problem, by_free_time(problem.chain(), _rate(problem))),
    ),
)  # fmt: skip
