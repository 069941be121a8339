"""A fragment read by the library it is for, on the GPUs that it names: loads.py FRAMEWORK FILE."""

import json
import sys
from pathlib import Path


def deepspeed(text):
    """Its configuration class checks names and sizes against the job's ranks."""
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    deepspeed.init_distributed()
    config = DeepSpeedConfig(json.loads(text))
    assert (config.zero_optimization_stage, config.train_batch_size) == (3, 128)


def lightning(text):
    """The trainer is made."""
    import torch

    names = {"Block": torch.nn.Linear}
    exec(text, names)  # noqa: S102 - the fragment is ours
    trainer = names["trainer"]
    assert type(trainer.strategy).__name__ == "FSDPStrategy"
    assert (trainer.world_size, trainer.precision, trainer.accumulate_grad_batches) == (16, "bf16-mixed", 2)


def hf_trainer(text):
    """The arguments are taken, and meet as many ranks."""
    from transformers import TrainingArguments

    names = {}
    exec(text, names)  # noqa: S102 - the fragment is ours
    arguments = TrainingArguments(output_dir="unused", **names["arguments"])
    assert (arguments.world_size, arguments.bf16, arguments.gradient_accumulation_steps) == (16, True, 2)
    assert arguments.fsdp_config["activation_checkpointing"]


def accelerate(text):
    """`accelerate launch` reads it."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(sys.argv[2])
    assert text
    assert (config.num_processes, config.fsdp_config["fsdp_version"]) == (16, 2)


globals()[sys.argv[1].replace("-", "_")](Path(sys.argv[2]).read_text("utf-8"))
