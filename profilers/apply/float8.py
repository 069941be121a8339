"""`precision.linear` float8, done by torchao: linear layers of blocks become its `Float8Linear`, scaled dynamically."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.float8 import LEAST_CAPABILITY, check_rows, is_float8_layer
from dnnmem.profilers.found_blocks import blocks_of


def to_float8(model: nn.Module) -> nn.Module:
    """`model` with the linear layers of its blocks multiplying in 8 bits; on the host they are emulated.

    Raises `UnsupportedError` without torchao, without such layers, and on a GPU that cannot.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UnsupportedError(
            "precision.linear float8 is done by torchao, which is not installed", hint="pip install torchao"
        ) from None
    blocks = tuple(f"{name}." for name, _ in blocks_of(model))
    chosen = {
        name for name, m in model.named_modules()
        if type(m) is nn.Linear and f"{name}.".startswith(blocks) and is_float8_layer(m.in_features, m.out_features)
    }  # fmt: skip
    if not chosen:
        raise UnsupportedError(
            f"precision.linear float8 finds no linear layers in blocks of {type(model).__name__}, with sizes in "
            "sixteens",
            hint="leave precision.linear out",
        )
    device = next(model.parameters()).device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        raise UnsupportedError(
            f"precision.linear is float8, but {torch.cuda.get_device_name(device)} has compute capability "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}; products in 8 bits need 8.9 or more",
            hint="leave precision.linear out",
        )
    config: Any = Float8LinearConfig(emulate=device.type != "cuda")
    converted: nn.Module = convert_to_float8_training(
        model, module_filter_fn=lambda _, name: name in chosen, config=config
    )
    for name in chosen:
        converted.get_submodule(name).register_forward_pre_hook(partial(_check_rows, name))
    return converted


def _check_rows(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
    """Before torch does, without a word of what to do."""
    if args and torch.is_grad_enabled():
        check_rows(args[0].numel() // args[0].shape[-1], name)
