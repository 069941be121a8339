"""A step of torchtune's recipes for one GPU: its own model and loss, in bfloat16, full or with adapters (LoRA).

`torchtune` is imported, so a checkout of the commit that the table names is on PYTHONPATH; of what it imports,
what makes no tensor may be absent, and is replaced. Texts are packed to `seq_len` tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from copy import copy
from importlib.util import find_spec
from unittest.mock import MagicMock

import torch
from torch import nn

ABSENT = {
    "datasets": ("datasets", "datasets.distributed"), "tiktoken": ("tiktoken", "tiktoken.load"),
    "sentencepiece": ("sentencepiece",), "psutil": ("psutil",),
}  # fmt: skip
for library, names in ABSENT.items():
    if library not in sys.modules and find_spec(library) is None:
        sys.modules.update((name, MagicMock(__spec__=None)) for name in names)

from torchtune.models import llama3_2  # noqa: E402
from torchtune.models.llama3_1 import Llama3ScaledRoPE  # noqa: E402
from torchtune.modules.loss import CEWithChunkedOutputLoss  # noqa: E402
from torchtune.modules.peft import get_adapter_params, set_trainable_params  # noqa: E402

Llama3ScaledRoPE.apply_scaling = lambda _, freqs, *__: freqs  # asks for values, which decide no bytes
VOCAB = 128_256
LORA = {"lora_attn_modules": ["q_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True, "lora_rank": 64}
"""As the recipes' configurations have it."""


def make_model(*, lora: bool = False, chunked: bool = False) -> nn.Module:
    """Llama 3.2 3B."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = llama3_2.lora_llama3_2_3b(**LORA, lora_alpha=128, lora_dropout=0.0) if lora else llama3_2.llama3_2_3b()
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in model.layers:  # all share one; blocks are told apart by their modules
        layer.attn.pos_embeddings = copy(layer.attn.pos_embeddings)
        layer.mlp.activation = copy(layer.mlp.activation)
    if lora:
        set_trainable_params(model, get_adapter_params(model))
    if chunked:
        model.set_num_output_chunks(CEWithChunkedOutputLoss().num_output_chunks)
    found: nn.Module = model
    return found


def make_batch(batch_size: int = 2, seq_len: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, both (batch, seq_len)."""
    text = torch.randint(VOCAB, (batch_size, seq_len + 1))
    return text[:, :-1], text[:, 1:]


def make_loss(output: torch.Tensor | list[torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy, in parts where the model answers in parts."""
    if isinstance(output, list):
        loss: torch.Tensor = CEWithChunkedOutputLoss()(output, batch[1])
        output.clear()  # the recipe lets go of its logits before the backward pass
        return loss
    return nn.functional.cross_entropy(output.flatten(0, 1), batch[1].flatten())


def make_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW in one kernel, over what learns."""
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=2e-5, fused=True)
