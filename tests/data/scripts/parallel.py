"""A small model trained in parallel: argument 1 says how."""

import os
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

WIDTH, BATCH, LAYERS = 512, 32, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def shard_all(model, mesh):
    for block in model:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def split_all(model, mesh):
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def make_parallel(how, model, local):
    size = distributed.get_world_size()
    if how == "ddp":
        return DistributedDataParallel(model, device_ids=[local])
    if how == "fsdp":
        return shard_all(model, init_device_mesh("cuda", (size,)))
    if how == "hsdp":
        return shard_all(model, init_device_mesh("cuda", (2, size // 2), mesh_dim_names=("replicate", "shard")))
    if how == "tp":
        return split_all(model, init_device_mesh("cuda", (size,)))
    mesh = init_device_mesh("cuda", (size // 2, 2), mesh_dim_names=("data", "tensor"))
    return shard_all(split_all(model, mesh["tensor"]), mesh["data"])


def main(how):
    distributed.init_process_group("cpu:gloo,cuda:nccl")
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    model = make_parallel(how, nn.Sequential(*(Block() for _ in range(LAYERS))).cuda(), local)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    for _ in range(10):
        loss = model(torch.randn(BATCH, WIDTH, device="cuda")).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        shown = loss.detach().clone()
        distributed.all_reduce(shown, op=distributed.ReduceOp.AVG)
        print("loss", shown.item())


def spread_sequence():
    """Context parallel: each rank has a part of the sequence."""
    from torch.distributed.tensor.experimental import context_parallel

    distributed.init_process_group("nccl")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh("cuda", (distributed.get_world_size(),))
    project = nn.Linear(64, 3 * 64).cuda().bfloat16()
    optimizer = torch.optim.SGD(project.parameters())
    for _ in range(10):
        x = torch.randn(2, 4096, 64, device="cuda", dtype=torch.bfloat16)
        with context_parallel(mesh, buffers=[x], buffer_seq_dims=[1]):
            parts = project(x).chunk(3, dim=-1)
            q, k, v = (part.unflatten(-1, (1, 64)).transpose(1, 2) for part in parts)
            with nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION):
                out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    spread_sequence() if sys.argv[1] == "cp" else main(sys.argv[1])
