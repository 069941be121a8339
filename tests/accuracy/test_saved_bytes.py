"""Saved activations of published architectures, from a fake run, against what PyTorch saves on a real CPU run.

Each goes the way of `dnnmem profile`: named, resolved, traced. Configurations are small, so that they really run; the
architectures are the libraries' own.
"""

from __future__ import annotations

import pytest
import torch

from dnnmem.estimator.layers import layers
from dnnmem.estimator.trace import Origin
from dnnmem.profilers.devices import run_on
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve
from tests.models.oracle import saved_bytes

GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 211}
ENCODER = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
TEXT = {**ENCODER, "vocab_size": 211}
DECODER = {**TEXT, "num_key_value_heads": 2}
EXPERTS = {**DECODER, "num_local_experts": 4, "head_dim": 16, "pad_token_id": 0}
T5 = {"num_layers": 2, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "vocab_size": 211}
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 211,
    "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
IMAGE = {"image_size": 32, "patch_size": 8}

FAMILIES = [
    ("torchvision", "torchvision:resnet18", {"image_size": 64}, 2),
    ("torchvision", "torchvision:mobilenet_v3_small", {"image_size": 64}, 2),
    ("torchvision", "torchvision:squeezenet1_1", {"image_size": 64}, 2),
    ("timm", "timm:vit_tiny_patch16_224", {"img_size": 64}, 2),
    ("timm", "timm:convnext_atto", {"num_classes": 10}, 2),
    ("transformers", "hf:gpt2", GPT2, 2),
    ("transformers", "hf:bert", TEXT, 2),
    ("transformers", "hf:llama", DECODER, 2),
    ("transformers", "hf:qwen3", {**DECODER, "head_dim": 16}, 2),
    ("transformers", "hf:mixtral", EXPERTS, 2),
    ("transformers", "hf:t5", T5, 2),
    ("transformers", "hf:bart", BART, 2),
    ("transformers", "hf:vit", {**ENCODER, **IMAGE}, 2),
]
SEQUENCES = {"hf:gpt2", "hf:bert", "hf:llama", "hf:qwen3", "hf:mixtral", "hf:t5", "hf:bart"}


class _LossFound(Exception):  # noqa: N818  # no error
    """Raised where backward begins, with the loss."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss


def loss_of(target, monkeypatch):
    """`forward_loss(model, batch)` of a target that only has whole steps."""

    def stop(loss, *_, **__):
        raise _LossFound(loss)

    def forward_loss(model, batch):
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "backward", stop)
            try:
                target.train_step(model, batch, target.make_optimizer(model.parameters()))
            except _LossFound as found:
                return found.loss

    return forward_loss


@pytest.mark.parametrize(("library", "name", "args", "batch_size"), FAMILIES, ids=[row[1] for row in FAMILIES])
def test_published_architectures(library, name, args, batch_size, monkeypatch):
    pytest.importorskip(library)
    # GIVEN a small configuration of a published architecture
    request = Request(
        target=name,
        args={key: str(value) for key, value in args.items()},
        batch_size=batch_size,
        seq_len=16 if name in SEQUENCES else None,
        device="fake",
        steps=2,
    )
    torch.manual_seed(0)
    target = resolve(request)
    # WHEN it is traced on FakeTensors
    trace, measured = run_on("fake", target, request, Origin(), lambda _: None)
    # THEN what it keeps for backward is what autograd saves when the step really runs
    counted = saved_bytes(target.make_model(), target.make_batch(), loss_of(target, monkeypatch))
    rows = layers(trace)
    assert counted > 0
    assert sum(row.activation_bytes for row in rows) == pytest.approx(counted, rel=0.01)
    # AND nothing leaks, and AdamW keeps two averages of each trained parameter
    assert measured.growth_bytes == 0
    assert sum(row.optimizer_bytes for row in rows) == 2 * sum(row.grad_bytes for row in rows)
