"""Host code that reads small values back, and shapes that depend on them."""

import torch
from torch import nn

ids = torch.tensor([[3, 1, 0, 0], [2, 2, 2, 0]], device="cuda")
print("vmap", torch.vmap(lambda row: row[row.argmax()] + 1)(ids).shape)
mask = ids != 0
print("lengths", mask.sum(1).tolist(), bool(mask.all()), ids.max().item())
print("positions", mask.nonzero().shape, ids[mask].tolist(), torch.unique(ids).tolist())
print("steps", sum((torch.zeros((), device="cuda").add_(i) for i in range(3)), torch.zeros((), device="cuda")).item())
unknown = torch.randn(64, 4096, device="cuda") @ torch.randn(4096, 4096, device="cuda")
print("bound", unknown[unknown > 0].shape, (unknown > 0).nonzero().shape, bool(torch.isfinite(unknown.sum()).all()))
model = nn.Linear(8, 8).cuda()
scaler = torch.amp.GradScaler()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler.scale(model(torch.randn(4, 8, device="cuda")).sum()).backward()
scaler.step(optimizer)
scaler.update()
print("scale", scaler.get_scale())
