"""What the virtual GPU costs: three training steps of GPT-2 small, with the start of Python, torch and transformers.

    python benchmarks/virtual_speed.py

Three programs train the same model (8 x 1024 tokens, bf16 autocast, AdamW) for as many steps, in turns, so that they
meet the same machine:

    bare      a plain script on a virtual GPU: the stub libraries, and nothing of dnnmem besides
    run       `dnnmem run --no-layers` of that script: also steps, peaks, failed allocations and true small values
    tracker   torch's own MemTracker under FakeTensorMode, which needs no GPU either, and knows no reserved memory

Limits: 6 s for the bare program; half of the tracker's time for it. Wall times say as much about what else the machine
does, so the seconds of CPU are printed as well.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from measure import DNNMEM, Usage, report, usage

from dnnmem.cli.cache import cache_folder
from dnnmem.profilers.virtual_gpu.launch import prepare

REPEATS = 3
STEPS = 3

MODEL = """
import torch, transformers
from contextlib import nullcontext
def train(device, tracker=None):
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2"))
    optimizer = torch.optim.AdamW(model.parameters())
    if tracker:
        tracker.track_external(model, optimizer)
    with tracker or nullcontext():
        ids = torch.randint(0, 50257, (8, 1024), device=device)
        for _ in range(STEPS):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if tracker:
                tracker.reset_mod_stats()
"""

BARE = """
train("cuda")
print(torch.cuda.max_memory_allocated())
"""

TRACKER = """
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
with FakeTensorMode():
    tracker = MemTracker()
    train("cpu", tracker)
print(max(sum(of.values()) for of in tracker.get_tracker_snapshot("peak").values()))
"""


def measured(programs: dict[str, tuple[list[str], dict[str, str] | None]]) -> dict[str, Usage]:
    """The run of median wall time of each program; they take turns, and a first round warms the disk cache."""
    rounds = [{name: usage(*program) for name, program in programs.items()} for _ in range(REPEATS + 1)][1:]
    middle = {name: statistics.median_low(turn[name].seconds for turn in rounds) for name in programs}
    return {name: next(t[name] for t in rounds if t[name].seconds == middle[name]) for name in programs}


def main() -> int:
    """Print times and ratios; 1 if any number is over its limit."""
    launch = prepare(None, os.environ, cache=cache_folder(os.environ))
    model = MODEL.replace("STEPS", str(STEPS))
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "train.py")
        script.write_text(model + BARE, encoding="utf-8")
        found = measured({
            "bare": ([sys.executable, str(script)], dict(launch.environment)),
            "run": ([DNNMEM, "run", "--no-layers", "--steps", str(STEPS), "--", str(script)], None),
            "tracker": ([sys.executable, "-c", model + TRACKER], None),
        })  # fmt: skip
    for name, used in found.items():
        print(f"{f'gpt2, {STEPS} steps, {name}':<58} {used.seconds:8.2f} s wall {used.cpu_seconds:8.2f} s of CPU")
    bare = found["bare"]
    for name, used in found.items():
        if name != "bare":
            print(f"{f'{name} / bare':<58} {used.seconds / bare.seconds:8.2f} x wall"
                  f" {used.cpu_seconds / bare.cpu_seconds:8.2f} x CPU")  # fmt: skip
    for name in ("bare", "tracker"):
        print(f"{f'peak allocated, {name}':<58} {int(found[name].output) / 2**20:8.1f} MiB")
    kept = report("gpt2 on a virtual GPU, bare, with import", bare.seconds, 6, "s")
    return 0 if report("bare / tracker", bare.seconds / found["tracker"].seconds, 0.5, "x") and kept else 1


if __name__ == "__main__":
    sys.exit(main())
