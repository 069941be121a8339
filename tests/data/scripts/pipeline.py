"""A pipeline whose stages know nothing of each other's shapes: argument 1 is the schedule, 2 how many ranks it has."""

import os
import sys

import torch
from torch import distributed, nn
from torch.distributed import pipelining
from torch.distributed.device_mesh import init_device_mesh

WIDTH = 256
SCHEDULES = {
    "gpipe": (pipelining.ScheduleGPipe, 1),
    "1f1b": (pipelining.Schedule1F1B, 1),
    "interleaved": (pipelining.ScheduleInterleaved1F1B, 2),
    "zbv": (pipelining.ScheduleZBVZeroBubble, 2),
}

how, depth = sys.argv[1], int(sys.argv[2])
world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", local)
torch.cuda.set_device(device)
distributed.init_process_group("nccl")
mesh = init_device_mesh("cuda", (world // depth, depth), mesh_dim_names=("data", "pipe"))
group, place = mesh.get_group("pipe"), mesh.get_local_rank("pipe")
make_schedule, per_rank = SCHEDULES[how]
count = depth * per_rank


def make_stage(number):
    layers = [nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 10 if number == count - 1 else WIDTH)]
    return pipelining.PipelineStage(nn.Sequential(*layers).to(device), number, count, device, group=group)


numbers = [place, count - 1 - place][:per_rank] if how == "zbv" else [place + depth * i for i in range(per_rank)]
stages = [make_stage(number) for number in numbers]
loss = nn.functional.cross_entropy
schedule = make_schedule(stages if per_rank > 1 else stages[0], n_microbatches=2 * depth, loss_fn=loss)
optimizer = torch.optim.AdamW([p for stage in stages for p in stage.submod.parameters()])
x = torch.randn(16 * depth, WIDTH, device=device)
target = torch.randint(0, 10, (16 * depth,), device=device)
for _ in range(10):
    given = [x] if any(stage.is_first for stage in stages) else []
    wanted = {"target": target, "losses": []} if any(stage.is_last for stage in stages) else {}
    schedule.step(*given, **wanted)
    optimizer.step()
    optimizer.zero_grad()
