"""Whether every GPU of NVIDIA in the table runs a training step under the installed torch.

    python benchmarks/every_gpu.py

A convolution, a linear layer and attention, forward and backward, with and without autocast, then AdamW, each GPU in a
process of its own. Prints what torch sees of it; 1 if one fails or torch sees another compute capability.
"""

from __future__ import annotations

import os
import subprocess
import sys

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import load_devices
from dnnmem.profilers.virtual_gpu.launch import prepare

STEP = """
import torch
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(2), torch.nn.Linear(36, 64),
).cuda()
for kind in (torch.float32, torch.float16):
    with torch.autocast("cuda", kind, enabled=kind is torch.float16):
        x = model(torch.randn(2, 3, 8, 8, device="cuda")).reshape(2, 8, 1, 64)
        torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
torch.optim.AdamW(model.parameters()).step()
print(".".join(map(str, torch.cuda.get_device_capability())), torch.cuda.max_memory_allocated())
"""


def main() -> int:
    """A line for each GPU; 1 if one is not as it should be."""
    failed = 0
    for name, device in load_devices().items():
        if device.vendor != "nvidia":
            continue
        launch = prepare(name, os.environ, cache=cache_folder(os.environ))
        command = [sys.executable, "-W", "ignore", "-c", STEP]
        done = subprocess.run(command, env=dict(launch.environment), capture_output=True, text=True, check=False)
        words = done.stdout.split() or ["failed:", *done.stderr.splitlines()[-1:]]
        failed += words[0] != device.compute_capability
        print(f"{name:<32} {device.compute_capability:<6} {' '.join(words)}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
