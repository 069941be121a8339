"""Predicts training steps on this very CPU and measures them: the whole chain against the truth, no GPU needed.

    python benchmarks/cpu_check.py machine.toml            after  OMP_NUM_THREADS=1 dnnmem calibrate --device cpu
    python benchmarks/cpu_check.py machine.toml gpt vit    some of the models only
    python benchmarks/cpu_check.py machine.toml unseen     the second eight

Eight models at three batches, with which the curves' cases were chosen; and eight that were named before any of them
had run. Predicted: the step recorded on the fake device, priced by the file's curves. Measured:
the least CPU time of a step of one thread (wall time of several threads), after the warm-up in which malloc settles;
all of them in turn, and then once more: a core whose other thread is busy is up to a fifth slower, for minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.time_model import load
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODELS = {
    "gpt": (f"{SAMPLES}/gpt.py", "width=256 layers=4 heads=4 vocab=8192 context=128", 128, (1, 4, 16)),
    "mlp": (f"{SAMPLES}/mlp.py", "", None, (8, 64, 512)),
    "moe": (f"{SAMPLES}/moe.py", "width=128 layers=2 heads=4 vocab=4096", 64, (2, 8, 32)),
    "resnet": (f"{SAMPLES}/resnet.py", "blocks=(1,1,1,1) width=32 image=96", None, (2, 8, 32)),
    "unet": (f"{SAMPLES}/unet.py", "width=32 image=32", None, (1, 4, 16)),
    "vit": (f"{SAMPLES}/vit.py", "image=64 patch=8 width=192 layers=6 heads=3 precision=float32", None, (2, 8, 32)),
    "mobilenet": ("timm:mobilenetv3_small_100", "", None, (1, 4, 16)),
    "distilbert": ("hf:distilbert", "", 64, (1, 4, 8)),
}
"""Name: target, arguments, tokens, batches."""
UNSEEN = {
    "squeezenet": ("torchvision:squeezenet1_1", "", None, (1, 4, 16)),
    "shufflenet": ("torchvision:shufflenet_v2_x1_0", "", None, (1, 4, 16)),
    "resnet18": ("torchvision:resnet18", "", None, (1, 4, 16)),
    "deit": ("timm:deit_tiny_patch16_224", "", None, (1, 4, 16)),
    "mixer": ("timm:mixer_s32_224", "", None, (1, 4, 16)),
    "convnext": ("timm:convnext_atto", "", None, (1, 4, 16)),
    "electra": ("hf:electra", "", 64, (1, 4, 8)),
    "opt": ("hf:opt", "", 64, (1, 2, 4)),
}
"""The same, for models that nothing was chosen by."""
ROUNDS = 2
"""Times that all steps are measured in turn."""
WARM_UP, LEAST_STEPS, SECONDS = 8, 5, 3.0
"""Steps before the measured ones, least of these, and about how long they go on."""


def request(name: str, batch: int, device: str) -> Request:
    """One step of a model."""
    target, args, seq, _ = {**MODELS, **UNSEEN}[name]
    known = dict(pair.split("=", 1) for pair in args.split())
    return Request(target=target, args=known, batch_size=batch, seq_len=seq, device=device)


def measure(name: str, batch: int) -> float:
    """Least seconds of a step in this process."""
    import torch

    from dnnmem.profilers.target import resolve

    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    target = resolve(request(name, batch, "cpu"))
    model, data = target.make_model(), target.make_batch()
    optimizer = target.make_optimizer(model.parameters())
    seconds: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(seconds) < WARM_UP + LEAST_STEPS or time.perf_counter() < end:
        before = now()
        target.train_step(model, data, optimizer)
        seconds.append(now() - before)
    return min(seconds[WARM_UP:])


def measured(name: str, batch: int) -> float:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(batch)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(told.stdout.splitlines()[-1])


def predict(name: str, batch: int, machine: str) -> tuple[float, dict[str, float]]:
    """Seconds of a step by the calibration, and by class."""
    trace, _ = run(request(name, batch, "fake"))
    where = find_cluster(machine)
    found = price(local_step(trace, Plan(), where), load(where.device, Path(machine)), memory=False)
    return found.step_seconds, dict(found.classes)


def main() -> None:
    """Print the table and the median error."""
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
        return
    names = UNSEEN if sys.argv[2:] == ["unseen"] else sys.argv[2:] or MODELS
    cases = [(name, batch) for name in names for batch in {**MODELS, **UNSEEN}[name][3]]
    rounds = [[measured(name, batch) for name, batch in cases] for _ in range(ROUNDS)]
    errors = []
    print("| model | batch | measured ms | predicted ms | error |\n|---|---|---|---|---|")
    for (name, batch), *seconds in zip(cases, *rounds, strict=True):
        least = min(seconds)
        predicted, _ = predict(name, batch, sys.argv[1])
        errors.append(abs(predicted / least - 1))
        times = f"{1e3 * least:.1f} | {1e3 * predicted:.1f} | {predicted / least - 1:+.1%}"
        print(f"| {name} | {batch} | {times} |", flush=True)
    errors.sort()
    print(f"\nmedian {errors[len(errors) // 2]:.1%}, mean {sum(errors) / len(errors):.1%}, worst {errors[-1]:.1%}")


if __name__ == "__main__":
    main()
