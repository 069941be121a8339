"""docs/pipelines.md: every schedule drawn, with what it holds and how long it waits; all of it from the code.

python benchmarks/pipeline_page.py            writes the page
"""

from __future__ import annotations

from pathlib import Path

from dnnmem.estimator.pipeline_timing import in_flight, pipeline_seconds
from dnnmem.estimator.plan_pipeline import CHUNKS, TORCH
from dnnmem.estimator.schedules import ALTERS, SCHEDULES
from dnnmem.estimator.schedules.grid import Grid, draw

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"
RANKS, MICRO_BATCHES = 4, 8
ABOUT = {
    "1f1b": ("1F1B with a flush", "PipeDream-Flush and DAPPLE: `dapple` is another name of it."),
    "gpipe": ("GPipe", "All forwards, then all backwards."),
    "interleaved": ("Interleaved 1F1B", "Several chunks a rank: a smaller bubble, more messages. Here with two."),
    "zb_h1": ("ZB-H1", "The gradients of weights (`W`) wait, those of inputs (`I`) do not."),
    "zbv": ("ZB-V", "Two chunks a rank, down and up again; no rank waits between its first step and its last."),
    "dualpipe": ("DualPipe", "Two replicas in opposite directions, a forward beside a backward."),
    "dualpipev": ("DualPipeV", "DualPipe cut in half: one replica, two chunks a rank."),
    "chimera": ("Chimera", "Two replicas in opposite directions, 1F1B in each."),
    "gems": ("GEMS", "Two replicas, one micro-batch a rank."),
    "varuna": ("Varuna", "Stages keep inputs and run forwards again (`R`) just in time."),
    "terapipe": ("TeraPipe", "What follows each other are slices of a sequence; drawn, not priced."),
    "pipedream": ("PipeDream", "No flush; a version of the weights for each micro-batch in flight."),
    "2bw": ("PipeDream-2BW", "No flush; two versions of the weights."),
    "pipemare": ("PipeMare", "No flush, one version; a running average of each weight's changes."),
    "hetpipe": ("HetPipe", "A worker of a cluster of unlike GPUs; steps are waves."),
}
"""Title and a sentence, in the order of the page."""
HEAD = """# Pipelines

A model that no GPU holds can be cut into stages: `pp` ranks, each with a run of its blocks. Micro-batches go through
them, forward and back, in the order of a schedule, `--set pipeline.schedule=...`:

{table}

Four ranks and eight micro-batches; a forward (`F`) takes 1, a backward (`B`) 2, each of its parts (`I`, `W`) 1; chunks
of two a rank half of it. *Bubble*: share of the time that a rank waits, the average of all. *In flight*: micro-batches
whose activations the ranks hold at most (chunks of them, where a rank has two). *Weights*: copies of its stages'
weights that a rank holds.

`dnnmem estimate` prices all but TeraPipe: the grid is simulated with the seconds of each stage, and each rank's
allocations are played in the order of its row. PyTorch has those marked so, and dnnmem does them to a model as it is:
a stage runs the model's own code, with the blocks of other stages left out. What a rank sends is not free when the
program lets go of it: its memory waits until the GPU is past the send, about 1,024 kernels behind the host. Where a
whole step is shorter than that (a few small blocks a rank), that may be a step sooner or later than predicted: reserved
memory is then within 5 %, what is allocated is not in doubt.

| beside stages | with |
|---|---|
| precision | all |
| recomputation | all but `zb_h1`, `zbv`, `dualpipev` |
| tensor parallel | all, `tensor.sequence_parallel` off |
| FSDP2 (`zero2`, `zero3`), DDP, ZeRO-1 | `1f1b`, `gpipe`, `interleaved` |

`zb_h1`, `zbv` and `dualpipev` take a backward pass apart: PyTorch would run a block again for each part, and what sends
gradients would not see them. Matrices are split before the model is cut, stages are sharded after that. Under FSDP2 a
stage's gradients are whole until the last micro-batch, and its parameters from a backward pass to the next forward;
`interleaved` gathers whole chunks ahead. DDP sends gradients beside the last backward pass.

In your own training script:

```python
rank = dnnmem.pipeline(model, optimizer, "plan.json", step=train_step, batch=batch)
for batches in loader:  # as many micro-batches as the plan accumulates
    loss = rank.step(batches)
```

`train_step(model, batch, optimizer)` is the body of the loop as it is without a plan.

## Where the model is cut

`pipeline.cuts=8,16,24` names the first block of each stage but the first; without it blocks are dealt out evenly.
`dnnmem.estimator.planners.stage_units.balanced` finds the cuts that take least time among those that fit, exactly, with
embeddings and head counted as work of their stage, for GPUs of unlike speed and memory too:

{balance}

## Unlike GPUs

```sh
dnnmem estimate gpt.py --cluster a100-80gb:4+h100:4 --set mesh.pp=2 --set mesh.dp_shard=4 --set sharding.strategy=zero3
```

Ranks fill the kinds in the order of their names. Stages are cut as above, by what each kind needs for this model and
has room for; cuts that the plan names stay. Without stages, replicas (`ddp`, `zero1`) take micro-batches as fast as
they are, `batch.accumulation` being the mean; where parameters are gathered (`zero2`, `zero3`) all take as many. The
estimate tells each stage or kind, and its bytes are those of the rank that has least room left.

## The schedules
"""
BALANCE = """```python
from dnnmem.estimator.planners.stage_units import balanced

plan = balanced(trace, plan, cluster, rooms=[80e9, 80e9, 40e9, 40e9], speeds=[1, 1, 0.5, 0.5])
```"""


def grid_of(name: str) -> Grid:
    """The example of a schedule."""
    return SCHEDULES[name](RANKS, MICRO_BATCHES, 2 if name == "interleaved" else CHUNKS.get(name, 1))


def page() -> str:
    """The page's text."""
    parts = [HEAD.format(table=_table(), balance=BALANCE).rstrip()]
    for name, (title, words) in ABOUT.items():
        alters = f" Alters training: {ALTERS[name]}." if name in ALTERS else ""
        parts.append(f"### {title}: `{name}`\n\n{words}{alters}\n\n```text\n{draw(grid_of(name))}\n```")
    return "\n\n".join(parts) + "\n"


def _table() -> str:
    rows = ["| schedule | bubble | in flight, by rank | weights | PyTorch has it |", "|---|---|---|---|---|"]
    for name in ABOUT:
        grid = grid_of(name)
        chunks = CHUNKS.get(name, 2 if name == "interleaved" else 1)
        forward = [[1 / chunks] * len(row) for row in grid.stages]
        backward = [[(3 if name == "varuna" else 2) / chunks] * len(row) for row in grid.stages]
        timing = pipeline_seconds(grid, forward, backward)
        bubble = sum(timing.bubble) / len(timing.bubble) / timing.seconds
        held = ", ".join(str(in_flight(row)) for row in grid.ranks)
        weights = ", ".join(str(grid.replicas + grid.extra_copies(r)) for r in range(RANKS))
        weights = weights.split(",")[0] if len(set(weights.split(", "))) == 1 else weights
        rows.append(f"| `{name}` | {bubble:.1%} | {held} | {weights} | {'yes' if name in TORCH else ''} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
