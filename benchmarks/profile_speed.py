"""What the recorder costs: `dnnmem profile` of GPT-2 against the bare FakeTensor steps it records, and of a 70B model.

    python benchmarks/profile_speed.py

The bare program below imports the same libraries, builds the same model under FakeTensorMode and runs as many training
steps as `dnnmem profile` does. Both take turns within one run, so that they meet the same machine. Two ratios come of
it: of a recorded step to a bare step, and of the whole commands, with the start-up of Python and torch on both sides.
Limits: twice the bare program; 60 s and 4 GiB for Llama-3-70B (its published configuration).
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import DNNMEM, report, usage

STEPS = 2
"""What `dnnmem profile` runs without `--steps`."""

BARE = """
import json, sys, time, torch, transformers
from torch._subclasses.fake_tensor import FakeTensorMode
marks = []
with FakeTensorMode():
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2"))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 50257, (8, 1024))
    for _ in range(int(sys.argv[1])):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
print(json.dumps(marks))
"""

RECORDED = """
import json, sys, time
from dnnmem.profilers.request import Request
from dnnmem.profilers.worker import profile
marks = []
request = Request(target="hf:gpt2", batch_size=8, seq_len=1024, device="fake", steps=int(sys.argv[1]))
profile(request, lambda done: marks.append(time.perf_counter()))
print(json.dumps(marks))
"""

LLAMA_3_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def step_seconds(program: str, steps: int = 7) -> float:
    """Median seconds between the marks that a program prints after each of its steps; the first step is left out."""
    marks = json.loads(usage([sys.executable, "-c", program, str(steps)]).output)
    return statistics.median(after - before for before, after in itertools.pairwise(marks))


def compare(name: str, turns: list[tuple[float, float]]) -> bool:
    """Print the medians of bare and recorded seconds, and their ratio against its limit."""
    bare, recorded = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"{name + ', bare':<58} {bare:8.2f} s\n{name + ', recorded':<58} {recorded:8.2f} s")
    return report(f"{name}, recorded / bare", recorded / bare, 2, "x")


def gpt2(repeats: int = 3) -> bool:
    """Print how much longer a step and a whole command take when dnnmem records them."""
    bare = [sys.executable, "-c", BARE, str(STEPS)]
    profile = [DNNMEM, "profile", "hf:gpt2", "--batch", "8", "--seq", "1024", "--device", "fake", "--json", "-"]
    usage(bare)  # warms the disk cache
    steps = compare("gpt2, one step", [(step_seconds(BARE), step_seconds(RECORDED)) for _ in range(repeats)])
    whole = compare("gpt2, command", [(usage(bare).seconds, usage(profile).seconds) for _ in range(repeats)])
    return steps and whole


def llama() -> bool:
    """Print time and memory of a profile of Llama-3-70B."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(LLAMA_3_70B), encoding="utf-8")
        command = [
            DNNMEM,
            "profile",
            f"hf:{config}",
            "--batch",
            "1",
            "--seq",
            "8192",
            "--device",
            "fake",
            "--json",
            "-",
        ]
        used = usage(command)
    total = json.loads(used.output)["total_bytes"]
    print(f"{'llama-3-70b, batch 1 of 8192 tokens: total':<58} {total / 2**30:8.1f} GiB")
    kept = report("llama-3-70b, dnnmem profile", used.seconds, 60, "s")
    return report("llama-3-70b, largest process", used.rss_bytes / 2**30, 4, "GiB") and kept


def main() -> int:
    """1 if any number is over its limit."""
    return 0 if all([gpt2(), llama()]) else 1


if __name__ == "__main__":
    sys.exit(main())
