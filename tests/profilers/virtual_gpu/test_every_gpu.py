"""A GPU of each compute capability runs a training step: torch finds its attributes consistent, and kernels to launch.

`benchmarks/every_gpu.py` has all of the table do so.
"""

from __future__ import annotations

import json

from dnnmem.estimator.devices import load_devices
from dnnmem.profilers.virtual_gpu.build import build
from dnnmem.profilers.virtual_gpu.identity import identity
from dnnmem.profilers.virtual_gpu.installed import find_torch, kernel_targets

# one process imports torch; each GPU is a fork of it, which has not used a GPU yet
STEPS = """
    import ctypes, json, os
    import torch
    identities = json.load(open(os.environ["IDENTITIES"]))
    torch.set_num_threads(1)
    def step():
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(2),
            torch.nn.Linear(36, 64),
        ).cuda()
        for kind in (torch.float32, torch.float16):
            with torch.autocast("cuda", kind, enabled=kind is torch.float16):
                x = model(torch.randn(2, 3, 8, 8, device="cuda")).reshape(2, 8, 1, 64)
                torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
        x.sum().item()
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.step()
        return [torch.cuda.get_device_name(), list(torch.cuda.get_device_capability()),
                torch.cuda.max_memory_allocated() > 0]
    found = {}
    for name, variables in identities.items():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.environ.update(variables)
            ctypes.CDLL(None).vg_read_identity()
            try:
                answer = step()
            except Exception as error:
                answer = str(error)[:200]
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as file:
            text = file.read()
        _, status = os.waitpid(child, 0)
        found[name] = json.loads(text) if text else f"died with status {status}"
    print(json.dumps(found))
"""


def test_every_kind_of_gpu_runs_a_training_step(on_gpu, cache, tmp_path):
    # GIVEN a GPU of NVIDIA for each compute capability in the table, 7.0 to 12.x
    targets = kernel_targets(find_torch())
    nvidia = [(name, device) for name, device in load_devices().items() if device.vendor == "nvidia"]
    devices = dict({device.compute_capability: (name, device) for name, device in nvidia}.values())
    assert 6 < len(devices) < len(nvidia)
    identities = {name: identity(device, targets=targets) for name, device in devices.items()}
    (tmp_path / "identities.json").write_text(json.dumps(identities))
    build(cache)
    # WHEN each runs a convolution, a linear layer and attention, forward and backward, with and without autocast
    done = on_gpu(STEPS, timeout=300, IDENTITIES=str(tmp_path / "identities.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # THEN torch sees what the table says, and nothing fails
    failed = {name: answer for name, answer in found.items() if isinstance(answer, str)}
    assert not failed
    assert {name: answer[1] for name, answer in found.items()} == {
        name: [int(part) for part in device.compute_capability.split(".")] for name, device in devices.items()
    }
    assert all(answer[2] for answer in found.values())
