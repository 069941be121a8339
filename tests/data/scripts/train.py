"""A small model, a loader with a worker, gradients cleared at the top; it catches whatever it can."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).cuda()
optimizer = torch.optim.AdamW(model.parameters())
data = TensorDataset(torch.randn(512, 64), torch.randint(0, 10, (512,)))
print("arguments", *sys.argv[1:])
try:
    for _ in range(100):
        for x, y in DataLoader(data, batch_size=32, num_workers=1):
            loss = nn.functional.cross_entropy(model(x.cuda()), y.cuda())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print("peak", torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
except BaseException as error:  # noqa: BLE001 - what some scripts do
    print("swallowed", error)
finally:
    print("tidied up")
