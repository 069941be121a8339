"""Exports say the whole plan, or name what they do not say."""

import ast
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.cli.export.frameworks import FRAMEWORKS
from dnnmem.cli.export.frameworks.ask import Ask
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change, settings

SHARDED = (
    "mesh.dp_shard=8", "mesh.dp_replicate=2", "sharding.strategy=zero3", "precision.compute=bfloat16",
    "precision.param=float32", "remat.policy=full", "batch.micro_batch=4", "batch.accumulation=2",
)  # fmt: skip
CHOICES = {
    "mesh": ("mesh.dp_replicate=8", "mesh.dp_shard=8", "mesh.dp_shard=4"),
    "sharding.strategy": tuple(f"sharding.strategy={name}" for name in ("ddp", "zero1", "zero2", "zero3")),
    "batch": ("batch.accumulation=4", "batch.micro_batch=2"),
    "precision": tuple(f"precision.compute={name}" for name in ("bf16_amp", "fp16_amp", "tf32", "bfloat16", "float32")),
    "optimizer": ("optimizer.name=sgd", "optimizer.kernel=fused"),
    "remat": ("remat.policy=full", "remat.policy=every", "remat.policy=selective"),
    "offload": ("offload.optimizer=true", "offload.activations=all"),
}


def plans():
    """Plans with any of the choices that go together."""
    lists = [st.sampled_from((None, *values)) for values in CHOICES.values()]

    def build(chosen):
        try:
            return change(Plan(), [setting for setting in chosen if setting])
        except DnnmemError:
            return None

    return st.tuples(*lists).map(build).filter(lambda plan: plan is not None)


PARTS = tuple(name for name in FRAMEWORKS if name != "fsdp2")
"""Those that write a fragment; the whole script has its own tests."""


@pytest.mark.parametrize("name", PARTS)
def test_a_plan_that_changes_nothing_leaves_nothing_out(name):
    # WHEN the plain step is exported
    made = FRAMEWORKS[name](Ask(plan=Plan()))
    # THEN all of it is said
    assert made.left_out == ()
    assert "NOT said" not in made.text


@given(plan=plans(), name=st.sampled_from(PARTS))
def test_what_is_left_out_is_named_in_the_file(plan, name):
    # WHEN any plan is exported
    try:
        made = FRAMEWORKS[name](Ask(plan=plan, blocks=("Block",)))
    except DnnmemError:
        assert name in {"deepspeed", "torchtitan"}  # those that lack a way to shard
        return
    # THEN the file is of its kind, tells the plan, and names what it leaves out
    if name == "deepspeed":
        json.loads(made.text)
    elif name == "accelerate":
        yaml.safe_load(made.text)
    elif name not in {"torchrun", "megatron"}:
        ast.parse(made.text)
    assert set(made.left_out) <= set(settings(plan))
    assert all(setting in made.text for setting in settings(plan))
    assert made.text.count("NOT said here: ") == len(made.left_out)


def test_offloading_is_never_dropped_in_silence():
    # GIVEN a plan that fits only because states live on the host
    plan = change(Plan(), ["offload.optimizer=true"])
    # WHEN it is exported to each framework
    left = {name: FRAMEWORKS[name](Ask(plan=plan)).left_out for name in PARTS}
    # THEN those that have a word for it say it, the others tell
    assert {name for name, settings_ in left.items() if not settings_} == {"deepspeed", "megatron"}


def test_accelerate_shards_over_two_machines():
    # WHEN 2 x 8 ranks are exported
    made = FRAMEWORKS["accelerate"](Ask(plan=change(Plan(), SHARDED), blocks=("Block",)))
    found = yaml.safe_load(made.text)
    # THEN FSDP2 wraps the blocks, computes in bfloat16 and recomputes
    assert made.left_out == ()
    assert found["distributed_type"] == "FSDP"
    assert (found["num_machines"], found["num_processes"], found["mixed_precision"]) == (2, 16, "bf16")
    assert found["fsdp_config"] == {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_transformer_layer_cls_to_wrap": "Block",
        "fsdp_activation_checkpointing": True,
    }
    assert found["parallelism_config"]["parallelism_config_dp_replicate_size"] == 2


def test_deepspeed_counts_the_global_batch():
    # WHEN 16 ranks with 4 samples and 2 micro-batches each are exported
    found = json.loads(FRAMEWORKS["deepspeed"](Ask(plan=change(Plan(), SHARDED))).text)
    # THEN the three sizes agree
    sizes = found["train_batch_size"], found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]
    assert sizes == (128, 4, 2)
    assert found["zero_optimization"]["stage"] == 3


def test_megatron_names_its_arguments():
    # WHEN the same is exported
    text = FRAMEWORKS["megatron"](Ask(plan=change(Plan(), SHARDED))).text
    # THEN sizes, sharding and recomputation are there
    for argument in ("--micro-batch-size 4", "--global-batch-size 128", "--use-megatron-fsdp", "--bf16"):
        assert argument in text
    assert "--recompute-granularity full" in text


def test_one_machine_needs_no_meeting_place():
    # WHEN 8 ranks of one machine are exported
    text = FRAMEWORKS["torchrun"](Ask(plan=change(Plan(), ["mesh.dp_replicate=8", "sharding.strategy=ddp"]))).text
    # THEN the command stands alone
    assert text.endswith("torchrun --standalone --nproc-per-node 8 train.py\n")
