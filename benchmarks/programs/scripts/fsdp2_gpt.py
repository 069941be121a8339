"""PyTorch's FSDP2 by hand: one mesh axis, or two (HSDP), accumulation, clipping over DTensors, EMA, a checkpoint.

torchrun --nproc-per-node 2 fsdp2_gpt.py
torchrun --nproc-per-node 4 fsdp2_gpt.py --replicate 2
"""

import argparse
import os
import tempfile

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

WIDTH, LAYERS, LENGTH, VOCABULARY, BATCH = 512, 6, 256, 32000, 4


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layers = [nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, 0.0, batch_first=True) for _ in range(LAYERS)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicate", type=int, default=1)
    replicate = parser.parse_args().replicate
    local, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(local)
    distributed.init_process_group("cuda:nccl,cpu:gloo")
    names = ("replicate", "shard") if replicate > 1 else ("shard",)
    shape = (replicate, world // replicate) if replicate > 1 else (world,)
    mesh = init_device_mesh("cuda", shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with torch.device("meta"):
        model = Model()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cuda")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    for step in range(4):
        ids = torch.randint(0, VOCABULARY, (2, BATCH, LENGTH), device="cuda")
        for micro in range(2):
            model.set_requires_gradient_sync(micro == 1)
            loss = nn.functional.cross_entropy(model(ids[micro]).flatten(0, 1).float(), ids[micro].flatten())
            loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for kept, parameter in zip(average, model.parameters(), strict=True):
                kept.lerp_(parameter, 0.01)
        shown = loss.detach().clone()
        distributed.all_reduce(shown, op=distributed.ReduceOp.AVG)
        if distributed.get_rank() == 0:
            print(f"step {step} loss {shown.item():.3f} norm {norm.item():.3f}")
    model.eval()
    with torch.no_grad():
        model(ids[0])
    folder = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(folder, src=0)
    weights, moments = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=folder[0])
    distributed.barrier(device_ids=[local])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
