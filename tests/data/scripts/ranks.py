"""DDP over all ranks; they exchange objects and count what they are. Argument 1 makes it go on for ever."""

import itertools
import os
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

distributed.init_process_group("nccl")
local = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(local)
everyone = [None] * distributed.get_world_size()
distributed.all_gather_object(everyone, f"rank {distributed.get_rank()}")
print("met", *everyone)
model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 8)).cuda(), device_ids=[local])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in itertools.count() if sys.argv[1:] else range(10):
    model(torch.randn(32, 64, device="cuda")).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    print("step", step)
distributed.barrier()
distributed.destroy_process_group()
