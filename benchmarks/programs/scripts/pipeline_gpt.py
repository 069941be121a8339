"""A pipeline by torch.distributed.pipelining: each rank builds its stage; 1F1B, or two stages a rank interleaved.

torchrun --nproc-per-node 4 pipeline_gpt.py
torchrun --nproc-per-node 2 pipeline_gpt.py --schedule Interleaved1F1B
"""

import argparse
import os

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import get_schedule_class

WIDTH, LAYERS, LENGTH, VOCABULARY, BATCH = 512, 8, 256, 32000, 16


class Part(nn.Module):
    def __init__(self, index, count):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH) if index == 0 else None
        layers = [
            nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, 0.0, batch_first=True) for _ in range(LAYERS // count)
        ]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, VOCABULARY) if index == count - 1 else None

    def forward(self, x):
        x = x if self.embedding is None else self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return x if self.head is None else self.head(x)


def loss_of(out, target):
    return nn.functional.cross_entropy(out.flatten(0, 1), target.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedule", default="1F1B")
    schedule_class = get_schedule_class(parser.parse_args().schedule)
    local, rank, world = (int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    torch.cuda.set_device(local)
    distributed.init_process_group("nccl", device_id=torch.device("cuda", local))
    is_many = issubclass(schedule_class, ScheduleInterleaved1F1B)
    count = 2 * world if is_many else world
    mine = range(rank, count, world)
    parts = [Part(index, count).cuda() for index in mine]
    stages = [PipelineStage(part, index, count, torch.device("cuda")) for part, index in zip(parts, mine, strict=True)]
    schedule = schedule_class(stages if is_many else stages[0], n_microbatches=8, loss_fn=loss_of)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-4)
    for step in range(4):
        ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), device="cuda")
        losses = []
        arguments = (ids,) if rank == 0 else ()
        options = {"target": ids, "losses": losses} if rank == world - 1 else {}
        schedule.step(*arguments, **options)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if losses:
            print(f"step {step} loss {torch.stack(losses).mean().item():.3f}")
    distributed.barrier(device_ids=[local])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
