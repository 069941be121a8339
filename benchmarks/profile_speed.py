"""What the recorder costs: `dnnmem profile` of GPT-2 against the bare FakeTensor steps it records, and of a 70B model.

    python benchmarks/profile_speed.py

The bare program below imports the same libraries, builds the same model under FakeTensorMode and runs as many training
steps as `dnnmem profile` does. Whole commands are compared, so that start-up counts on both sides, in turns within one
run, so that both meet the same machine. Limits: twice the bare program; 60 s and 4 GiB for Llama-3-70B (its published
configuration).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import DNNMEM, report, usage

STEPS = 3
"""What `dnnmem profile` runs without `--steps`."""

BARE = f"""
import torch, transformers
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("gpt2"))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, 50257, (8, 1024))
    for _ in range({STEPS}):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
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


def gpt2(repeats: int = 3) -> bool:
    """Print whole-command times of the bare steps and of the profile, and their ratio."""
    profile = [DNNMEM, "profile", "hf:gpt2", "--batch", "8", "--seq", "1024", "--device", "fake", "--json", "-"]
    usage([sys.executable, "-c", BARE])  # warms the disk cache
    turns = [(usage([sys.executable, "-c", BARE]).seconds, usage(profile).seconds) for _ in range(repeats)]
    bare, whole = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"{f'gpt2, {STEPS} bare FakeTensor steps':<58} {bare:8.2f} s\n{'gpt2, dnnmem profile':<58} {whole:8.2f} s")
    return report("gpt2, profile / bare", whole / bare, 2, "x")


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
