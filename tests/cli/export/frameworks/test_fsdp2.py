"""The exported script is whole: it runs, on as many virtual GPUs as the plan names, without dnnmem in it."""

import os

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.cli.export.frameworks import FRAMEWORKS, fsdp2
from dnnmem.cli.export.frameworks.ask import Ask
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.profilers.ranks import ScriptRun, run_script
from dnnmem.profilers.request import Request
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.virtual_gpu.launch import unavailable

needs_virtual = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
SMALL = {"layers": "2", "width": "128", "heads": "4", "vocab": "500"}
LLAMA = {
    "num_hidden_layers": "2", "hidden_size": "64", "intermediate_size": "128", "num_attention_heads": "4",
    "num_key_value_heads": "4", "vocab_size": "1000",
}  # fmt: skip
GPT = Request(target="sample_models/gpt.py", args=SMALL, batch_size=2, seq_len=64)
SHARDED = ("mesh.dp_shard=4", "sharding.strategy=zero3", "precision.compute=bfloat16", "precision.param=float32")
WAYS = {
    "fsdp, full, accumulation": (GPT, "Block", (*SHARDED, "remat.policy=full", "batch.accumulation=2")),
    "hsdp, selective": (GPT, "Block", (*SHARDED, "mesh.dp_replicate=2", "remat.policy=selective")),
    "ddp, fp16, every": (
        GPT, "Block",
        ("mesh.dp_replicate=4", "sharding.strategy=ddp", "precision.compute=fp16_amp", "batch.accumulation=2",
         "remat.policy=every", "remat.every=2", "optimizer.kernel=fused"),
    ),
    "one GPU, images": (
        Request(target="torchvision:resnet18", batch_size=2), "BasicBlock", ("precision.compute=bf16_amp",),
    ),
    "fsdp, tokens": (
        Request(target="hf:llama", args=LLAMA, batch_size=2, seq_len=32), "LlamaDecoderLayer", SHARDED,
    ),
}  # fmt: skip


def run_it(made, plan, tmp_path):
    """Result of rank 0, three steps."""
    path = tmp_path / "train.py"
    path.write_text(made.text, "utf-8")
    world = plan.mesh.world_size
    request = ScriptRequest(script=str(path), world_size=world, steps=3)
    job = ScriptRun(request=request, gpu=find_device("h100"), ranks=(0,) if world > 1 else None, world_size=world)
    lines = []
    [ran] = run_script(job, dict(os.environ), cache=cache_folder(os.environ), on_output=lines.append)
    assert (ran.outcome, ran.message) == ("ran", "")
    return ran, lines


@needs_virtual
@pytest.mark.parametrize("way", WAYS)
def test_the_script_runs(way, root, tmp_path, monkeypatch):
    # GIVEN a model and a plan, exported where the model's file is
    request, block, settings = WAYS[way]
    monkeypatch.chdir(root)
    plan = change(Plan(), settings)
    made = FRAMEWORKS["fsdp2"](Ask(plan=plan, request=request, blocks=(block,)))
    # WHEN rank 0 runs it  THEN it makes its steps, and nothing of the plan is left out
    ran, lines = run_it(made, plan, tmp_path)
    assert made.left_out == ()
    assert "dnnmem" not in made.text.partition('"""\n')[2].replace("by dnnmem", "")
    assert len(ran.memory[0].steps) == 3
    assert any(line.startswith("step 3: loss ") for line in lines)


@needs_virtual
def test_a_model_too_large_for_the_host_is_built_without_memory(root, tmp_path, monkeypatch):
    # GIVEN a model whose parameters would not fit the machine once a rank
    monkeypatch.chdir(root)
    plan = change(Plan(), SHARDED)
    ask = Ask(plan=plan, request=GPT, blocks=("Block",), param_bytes=fsdp2.MOST_ON_HOST)
    # WHEN it is exported  THEN the script builds it on `meta`, and still runs
    made = FRAMEWORKS["fsdp2"](ask)
    assert "without_memory(make_model)" in made.text
    run_it(made, plan, tmp_path)


def test_what_only_dnnmem_applies_is_named():
    # GIVEN a plan that offloads
    plan = change(Plan(), ["offload.activations=all"])
    # WHEN it is exported  THEN the script says that it does not
    made = FRAMEWORKS["fsdp2"](Ask(plan=plan, request=GPT))
    assert made.left_out == ("offload.activations=all",)


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (Ask(plan=Plan()), UsageError),
        (Ask(plan=change(Plan(), ["mesh.tp=2"]), request=GPT), UnsupportedError),
        (Ask(plan=Plan(), request=Request(target="torchvision:resnet18")), UsageError),
        (Ask(plan=Plan(), request=Request(target="model.py:Net", batch_size=1)), UnsupportedError),
    ],
)
def test_what_no_script_can_be_written_for_is_refused(ask, error):
    with pytest.raises(error) as raised:
        FRAMEWORKS["fsdp2"](ask)
    assert raised.value.hint
