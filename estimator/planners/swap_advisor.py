"""SwapAdvisor: a genetic search over what becomes of each block, priced by the simulated step (Huang, Jin, Li 2020).

    genome    one letter a block: k kept, a computed again, s sent, b both (its input sent)      kkaassbb
    begin     all blocks alike, the first ones alike, and what other planners found              a fixed seed
    then      two parents, a cut, a few letters changed; a generation's best are priced as real steps

Its paper searches the order of ops and the places in memory as well; here the framework decides those. The search does
not see the budget: its front of peak and seconds answers all of them, so that more memory never costs time.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.planners.chain_cost import chain_cost
from dnnmem.estimator.planners.chain_plans import as_found
from dnnmem.estimator.planners.offload_policies import absences, by_free_time, cheap_again
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run

GENERATIONS, CHILDREN, SEED = 60, 48, 2020
"""Of the search; children of each generation."""
FATES = "kasb"
"""Letters of a genome."""


def genomes(problem: Problem) -> list[str]:
    """What the search began with, and the front that it ended with: none found has a smaller peak and fewer seconds."""
    dice, priced = Random(SEED), dict[str, tuple[float, int]]()  # noqa: S311  # no secret comes from it
    begin = _begin(problem)
    front = _front(problem, begin, priced)
    for _ in range(GENERATIONS):
        children = [_child(dice, front) for _ in range(CHILDREN)]
        front = _front(problem, [*front, *children], priced)
    return list(dict.fromkeys((*front, *begin)))


def find(problem: Problem) -> Found:
    """The fastest of the front that fits."""
    tried = problem.once("swap-advisor", lambda: [_found(problem, genome) for genome in genomes(problem)])
    return cheapest(problem, tried, what="activations on the host or computed again")


def _begin(problem: Problem) -> list[str]:
    chain, rate = problem.chain(), copy_bytes_per_s(problem.cluster, problem.model)
    blocks = [item.block for item in absences(chain)]
    alike = [fate * count + "k" * (len(blocks) - count) for fate in FATES for count in range(len(blocks) + 1)]
    rules = [*cheap_again(chain, rate), *by_free_time(chain, rate)]
    return [*alike, *("".join(_fate(block, *rule) for block in blocks) for rule in rules)]


def _fate(block: int, again: Sequence[int], sent: Sequence[int]) -> str:
    if block in again:
        return "b" if block in sent else "a"
    return "s" if block in sent else "k"


def _child(dice: Random, front: Sequence[str]) -> str:
    one, other = dice.choice(front), dice.choice(front)
    cut = dice.randrange(len(one) + 1)
    letters = list(one[:cut] + other[cut:])
    for _ in range(dice.randrange(3)):
        letters[dice.randrange(len(letters))] = dice.choice(FATES)
    return "".join(letters)


def _front(problem: Problem, found: Sequence[str], priced: dict[str, tuple[float, int]]) -> list[str]:
    """Those that nothing beats, the fastest first."""
    chain, rate = problem.chain(), copy_bytes_per_s(problem.cluster, problem.model)
    for genome in found:
        if genome not in priced:
            cost = chain_cost(chain, *_ways(problem, genome), rate)
            priced[genome] = cost.seconds, cost.peak_bytes
    best: list[str] = []
    for genome in sorted(dict.fromkeys(found), key=lambda genome: (priced[genome], genome)):
        if not best or priced[genome][1] < priced[best[-1]][1]:
            best.append(genome)
    return best


def _ways(problem: Problem, genome: str) -> tuple[list[Run], list[int]]:
    pairs = list(zip((item.block for item in absences(problem.chain())), genome, strict=True))
    again = [Run(first=block, last=block) for block, fate in pairs if fate in "ab"]
    return again, [block for block, fate in pairs if fate in "sb"]


def _found(problem: Problem, genome: str) -> Found:
    return as_found(problem, *_ways(problem, genome))


PLANNER = Planner(
    name="swap-advisor", words="genetic search over kept, again, sent (Huang et al. 2020)",
    needs="a chain of blocks, a host", find=find,
)  # fmt: skip
