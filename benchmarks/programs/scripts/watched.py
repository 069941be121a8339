"""A training loop that watches its GPU with all that people use for it: nvidia-smi, NVML, wandb, torch's profiler."""

import subprocess
import sys

import pynvml
import torch
import wandb
from torch.utils.collect_env import get_pretty_env_info


def main():
    print(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True).stdout)
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader"]
    print(subprocess.run(query, capture_output=True, text=True, check=True).stdout)
    print(get_pretty_env_info())
    print(torch.cuda.get_device_properties(0), torch.cuda.get_device_capability(), torch.cuda.mem_get_info())
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    print(pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetCount())
    run = wandb.init(project="watched", mode="offline")
    model = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(5):
        loss = model(torch.randn(256, 1024, device="cuda")).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        busy = pynvml.nvmlDeviceGetUtilizationRates(handle)
        peak = torch.cuda.max_memory_allocated()
        run.log({"loss": loss.item(), "used": memory.used, "busy": busy.gpu, "peak": peak})
        torch.cuda.reset_peak_memory_stats()
        print(step, loss.item(), memory.used, file=sys.stderr)
    print(torch.cuda.memory_summary(abbreviated=True))


if __name__ == "__main__":
    main()
