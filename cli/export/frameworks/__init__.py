"""Exports: a plan in the words of a training framework, one file each.

Each is a function `Ask -> Fragment`. What a framework cannot say is listed in the fragment and on the screen; nothing
of a plan is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dnnmem.cli.export.frameworks import (
    accelerate,
    deepspeed,
    fsdp2,
    hf_trainer,
    lightning,
    megatron,
    torchrun,
    torchtitan,
)
from dnnmem.cli.export.frameworks.ask import Ask, Fragment

FRAMEWORKS: Mapping[str, Callable[[Ask], Fragment]] = {
    "fsdp2": fsdp2.render,
    "torchrun": torchrun.render,
    "accelerate": accelerate.render,
    "deepspeed": deepspeed.render,
    "hf-trainer": hf_trainer.render,
    "lightning": lightning.render,
    "megatron": megatron.render,
    "torchtitan": torchtitan.render,
}
"""What `--to` takes."""
