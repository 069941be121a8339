"""What passes predict, really applied: the sample language model under FSDP2, recomputation and tensor parallelism.

sharded.py FSDP RECOMPUTE TP        FSDP: `root` or `split`; RECOMPUTE: `none` or `full`; sizes are in sizes.py
"""

import sys
from contextlib import nullcontext

import torch
from torch import distributed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from sample_models import gpt
from tests.laws.programs.sizes import BATCH, MODEL, SEQ

STREAM, WHOLE = Shard(1), Replicate()


def split(model, mesh):
    """Matrices by columns, then rows; the stream along the sequence."""
    head = ColwiseParallel(input_layouts=STREAM, output_layouts=Shard(-1), use_local_output=False)
    table = RowwiseParallel(input_layouts=WHOLE, output_layouts=STREAM)
    parallelize_module(model, mesh, {"tokens": table, "norm": SequenceParallel(), "head": head})
    back = RowwiseParallel(output_layouts=STREAM)
    for block in model.blocks:
        plan = {
            "attention_norm": SequenceParallel(), "attention.out": back,
            "mlp_norm": SequenceParallel(), "mlp.down": back,
            "attention": PrepareModuleInput(input_layouts=(STREAM, None), desired_input_layouts=(WHOLE, None)),
            "mlp": PrepareModuleInput(input_layouts=(STREAM,), desired_input_layouts=(WHOLE,)),
            **{f"attention.{name}": ColwiseParallel() for name in "qkv"},
            **{f"mlp.{name}": ColwiseParallel() for name in ("gate", "up")},
        }  # fmt: skip
        parallelize_module(block, mesh, plan)
        config = block.attention.config
        block.attention.config = config._replace(heads=config.heads // mesh.size())


def shard(model, mesh, *, root):
    """Each block by itself; the last group of the forward pass stays."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if not root:
        fully_shard(model.tokens, mesh=mesh, mp_policy=policy)
    for number, block in enumerate(model.blocks, 1):
        kept = root and number == len(model.blocks)
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not kept)
    if not root:
        fully_shard([model.norm, model.head], mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def main(way, recompute, tp):
    """Three steps."""
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl")
    ranks = distributed.get_world_size()
    mesh = init_device_mesh("cuda", (ranks // tp, tp), mesh_dim_names=("dp", "tp"))
    with torch.device("meta"):
        model = gpt.make_model(**MODEL)
    if tp > 1:
        split(model, mesh["tp"])
    if recompute == "full":
        for number, block in enumerate(model.blocks):
            model.blocks[number] = checkpoint_wrapper(block, preserve_rng_state=False)
    shard(model, mesh["dp"], root=way == "root")
    model.to_empty(device="cuda")
    optimizer = gpt.make_optimizer(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        text = torch.zeros(BATCH, SEQ, dtype=torch.long, device="cuda")
        with loss_parallel() if tp > 1 else nullcontext():
            gpt.make_loss(model(text), (text, text)).backward()
        optimizer.step()


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
