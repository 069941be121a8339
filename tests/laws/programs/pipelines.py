"""Ranks of a pipeline that train one model by each of several schedules: what comes of it, written by each.

pipelines.py RANK WORLD_SIZE FOLDER        FOLDER/rank0.pt: schedule -> losses, gradients, weights
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy, gelu

from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan, Remat, Sharding
from dnnmem.profilers.apply import apply_to_model, sharding
from dnnmem.profilers.apply.device_mesh import device_mesh
from dnnmem.profilers.apply.pipeline import Pipelined
from dnnmem.profilers.apply.pipeline_api import pipeline as applied
from dnnmem.profilers.step import plain_step

MICRO, STEPS, WIDTH, WORDS, BLOCKS = 8, 2, 16, 40, 8
WAYS = {
    "1f1b": Pipeline(),
    "1f1b, uneven": Pipeline(),
    "1f1b, tied": Pipeline(schedule="dapple"),
    "1f1b, run again": Pipeline(),
    "gpipe": Pipeline(schedule="gpipe"),
    "gpipe, run again, tied, one call": Pipeline(schedule="gpipe"),
    "interleaved": Pipeline(schedule="interleaved", chunks=2),
    "zb_h1": Pipeline(schedule="zb_h1"),
    "zbv": Pipeline(schedule="zbv", chunks=2),
    "zbv, tied": Pipeline(schedule="zbv", chunks=2),
    "dualpipev": Pipeline(schedule="dualpipev", chunks=2),
}
SHARDED = {
    "1f1b, sharded, run again, tied": Pipeline(),
    "interleaved, sharded": Pipeline(schedule="interleaved", chunks=2),
    "1f1b, ddp, tied": Pipeline(),
    "interleaved, ddp": Pipeline(schedule="interleaved", chunks=2),
    "gpipe, zero1": Pipeline(schedule="gpipe"),
    "1f1b, tp, tied": Pipeline(),
    "zbv, tp": Pipeline(schedule="zbv", chunks=2),
}
"""Four ranks: two stages of two each. They take half of the samples (FSDP2, DDP, ZeRO-1), or have half of matrices."""
CUTS = {2: "3", 4: "1,3,6"}


class Block(nn.Module):
    """A residual block that is told a mask."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, mask=None):
        return x + self.down(gelu(self.up(self.norm(x)))) * mask


class Words(nn.Module):
    """Embeddings, blocks, a head."""

    def __init__(self, tied):
        super().__init__()
        self.tokens = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(8, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, words):
        x = self.tokens(words) + self.places(torch.arange(words.shape[1]))
        mask = torch.ones(words.shape[1], 1)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.head(self.norm(x))


def batches():
    """The micro-batches of each step."""
    make = torch.Generator().manual_seed(1)
    return [[tuple(torch.randint(0, WORDS, (2, 2, 5), generator=make)) for _ in range(MICRO)] for _ in range(STEPS)]


def loss_of(output, batch):
    """Of a micro-batch: words and those to be told."""
    return cross_entropy(output.flatten(0, 1), batch[1].flatten())


def build(way):
    """The model of a way."""
    torch.manual_seed(0)
    return Words("tied" in way)


def noting(optimizer, model, grads):
    """`optimizer`, whose first step notes the gradients."""
    step = optimizer.step

    def noted():
        if not grads:
            grads.update({name: p.grad.clone() for name, p in model.named_parameters()})
        step()

    optimizer.step = noted
    return optimizer


def train(way, ranks):
    """Some steps of a rank."""
    pipeline = replace({**WAYS, **SHARDED}[way], cuts=CUTS[ranks] if way == "1f1b, uneven" else "")
    model = build(way)
    if "run again" in way:
        model = apply_to_model(model, Plan(remat=Remat(policy="full")))
    plan = Plan(mesh=Mesh(pp=ranks), batch=Batch(accumulation=MICRO), pipeline=pipeline)
    steps = batches()
    split = way in SHARDED and "tp" not in way
    if way in SHARDED and not split:
        plan = replace(plan, mesh=Mesh(pp=ranks // 2, tp=2))
    if split:
        strategy = next((name for name in ("ddp", "zero1") if name in way), "zero3")
        axis = "dp_replicate" if strategy == "ddp" else "dp_shard"
        plan = replace(plan, mesh=Mesh(pp=ranks // 2, **{axis: 2}), sharding=Sharding(strategy=strategy))
        mine = device_mesh(plan)[axis].get_local_rank()
        steps = [[tuple(tensor[mine : mine + 1] for tensor in batch) for batch in step] for step in steps]
    grads = {}
    if "one call" in way:
        again, model = replace(plan, remat=Remat(policy="full")), build(way)
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
        rank = applied(model, adamw, again, step=plain_step(loss_of), batch=steps[0][0])
        noting(rank.optimizer, model, grads)
        losses = [rank.step(step) for step in steps]
        return {"losses": losses, "grads": grads, "weights": {name: p.detach() for name, p in model.named_parameters()}}
    rank = Pipelined(model, plan, plain_step(loss_of), steps[0][0])
    made = sharding.to_optimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), model, plan)
    optimizer = noting(made, model, grads)
    losses = [rank.step(step, optimizer) for step in steps]
    if split and losses[0] is not None:
        losses = [loss / 2 for loss in losses]
        for loss in losses:
            distributed.all_reduce(loss, group=device_mesh(plan)[axis].get_group())
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return {"losses": losses, "grads": whole(grads), "weights": whole(weights)}


def whole(tensors):
    """Tensors that lie on this rank alone."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def main(rank, ranks, folder):
    """Each schedule by itself."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    found = {way: train(way, ranks) for way in (WAYS if ranks < 4 else {**WAYS, **SHARDED})}
    torch.save(found, Path(folder, f"rank{rank}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
