"""How long planners plan: Rotor on 200 unlike blocks, Checkmate on a graph of 60 works, a whole plan of a 70B model.

    python benchmarks/planner_speed.py [rotor] [checkmate] [llama] [--time-limit 55]

Limits: 5 s, 60 s and 30 s. Seconds are the processor's, but for Checkmate, whose time limit is by the clock.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from measure import DNNMEM, report, usage
from profile_speed import LLAMA_3_70B

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.planners.checkmate import schedule
from dnnmem.estimator.planners.graph_schedule import peak_of, plain, seconds_of
from dnnmem.estimator.planners.op_graph import Graph, Work
from dnnmem.estimator.planners.rotor import solve

MIB = 2**20
SHARES = (0.8, 0.6, 0.5)
"""Budgets of the graph, of what its plain schedule needs."""
BUDGET = "685GiB"
"""Of the 70B model: half of what blocks can spare of 700 GiB; parameters, gradients and states take 564."""


def blocks(count: int) -> Chain:
    """Blocks none of which is like another, and the loss."""
    draw = random.Random(0)  # noqa: S311
    stages = []
    for k in range(count):
        entering, saved, seconds = draw.randint(1, 40) * MIB, draw.randint(20, 400) * MIB, draw.uniform(1e-3, 1e-2)
        stages.append(
            Stage(
                block=k, follows=k > 0, forward_seconds=seconds, backward_seconds=2 * seconds, input_bytes=entering,
                saved_bytes=saved, gradient_bytes=entering, left_bytes=draw.randint(1, 30) * MIB,
                light_bytes=saved // 2, forward_bytes=saved + 10 * MIB, backward_bytes=2 * saved,
            )
        )  # fmt: skip
    loss = Stage(
        forward_seconds=1e-3, backward_seconds=2e-3, input_bytes=MIB, saved_bytes=MIB, gradient_bytes=MIB, left_bytes=0,
        light_bytes=MIB, forward_bytes=MIB, backward_bytes=2 * MIB,
    )  # fmt: skip
    return Chain(stages=(*stages, loss), base_bytes=0)


def works(count: int) -> Graph:
    """A forward pass with a few skips, and its backward pass: `count` works in all, no two of which are alike."""
    draw = random.Random(0)  # noqa: S311
    found, nbytes = list[Work](), list[int]()
    for k in range(count // 2):
        reads = tuple(v for v in range(k) if v == k - 1 or (v >= k - 6 and draw.random() < 0.15))
        nbytes.append(draw.randint(1, 20) * MIB)
        found.append(Work(name="f", number=k, reads=reads, makes=(k,), seconds=draw.random()))
    for k in reversed(range(count // 2)):
        gradient = () if k == count // 2 - 1 else (len(nbytes) - 1,)
        nbytes.append(draw.randint(1, 20) * MIB)
        reads = (*dict.fromkeys((*found[k].reads, k)), *gradient)
        found.append(Work(name="b", number=k, reads=reads, makes=(len(nbytes) - 1,), seconds=1.0, backward=True))
    return Graph(works=tuple(found), nbytes=tuple(nbytes), stays=frozenset({len(nbytes) - 1}))


def rotor() -> bool:
    """All budgets of 200 blocks, in 500 slots of memory."""
    chain = blocks(200)
    most = float(sum(stage.saved_bytes for stage in chain.stages))
    began = time.process_time()
    table = solve(chain, most, slot_bytes=most / 500)
    seconds = time.process_time() - began
    fits = table.seconds_at(most / 2) < float("inf")
    return report(f"rotor, 200 blocks, {table.rows - 1} slots", seconds, 5, "s") and fits


def checkmate(time_limit: float) -> bool:
    """Budgets that are easy to prove, and one that is not; what it costs, and how far from the best it may be."""
    graph, kept = works(60), []
    whole = plain(graph)
    peak, once = peak_of(graph, whole), seconds_of(graph, whole)
    for share in SHARES:
        began = time.perf_counter()
        try:
            found = schedule(graph, share * peak, time_limit)
        except InfeasibleError as error:
            print(error.message)
            kept.append(False)
            continue
        name = f"checkmate, 60 works, {share:g} of the peak: +{found.seconds / once - 1:.2%}, gap {found.gap:.2%}"
        kept.append(report(name, time.perf_counter() - began, 60, "s"))
    return all(kept)


def llama() -> bool:
    """`dnnmem plan` of Llama-3-70B as its configuration has it, recording and pricing included."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(LLAMA_3_70B), encoding="utf-8")
        command = [DNNMEM, "plan", f"hf:{config}", "--batch", "1", "--seq", "8192", "--gpu", "h200"]
        used = usage([*command, "--budget", BUDGET, "--no-compare", "--json", "-", "-q"])
    found = json.loads(used.output)
    chosen = found["chosen"]
    print(f"llama-3-70b: {chosen['planner']}, {chosen['why']}; +{chosen['extra_seconds'] / chosen['step_seconds']:.2%}")
    return report("llama-3-70b, dnnmem plan", used.cpu_seconds, 30, "s")


def main() -> int:
    """1 if any number is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["rotor", "checkmate", "llama"], metavar="PART")
    parser.add_argument("--time-limit", type=float, default=55.0)
    asked = parser.parse_args()
    parts = {"rotor": rotor, "checkmate": lambda: checkmate(asked.time_limit), "llama": llama}
    kept = [parts[name]() for name in asked.parts]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
