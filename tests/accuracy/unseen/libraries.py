"""Models of torchvision, timm and transformers that the recorder was not tuned on, from configurations alone.

Sizes are small in depth and width, since what counts is the order of allocations, not how many there are.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional

from tests.accuracy.unseen.steps import amp_step, channels_last_step, scaled_step
from tests.models.entry import Entry

CLASSES, VOCAB = 10, 128


def images(batch_size, size=64):
    return torch.randn(batch_size, 3, size, size), torch.randint(CLASSES, (batch_size,))


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def torchvision(name, **options):
    models = pytest.importorskip("torchvision").models
    return models.get_model(name, weights=None, num_classes=CLASSES, **options)


def timm(name, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=CLASSES, **options)


def checkpointed_timm(name):
    model = timm(name)
    model.set_grad_checkpointing()
    return model


def vision(make, name, size=64, **options):
    facts = {key: options.pop(key) for key in ("step", "make_optimizer") if key in options}
    return Entry(
        make_model=partial(make, name, **options),
        make_batch=partial(images, size=size),
        forward_loss=cross_entropy,
        **facts,
    )


def transformer(kind, head, **sizes):
    """A model of transformers with labels in its batch, so that its own loss is the loss."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **sizes)
    return getattr(transformers, head).from_config(config)


def words(batch_size, length=32):
    return torch.randint(1, VOCAB, (batch_size, length)), torch.randint(1, VOCAB, (batch_size, length))


def own_loss(model, batch):
    return model(input_ids=batch[0], labels=batch[1]).loss


def pairs(batch_size, length=16, size=32):
    return torch.randint(1, VOCAB, (batch_size, length)), torch.randn(batch_size, 3, size, size)


def contrast(model, batch):
    return model(input_ids=batch[0], pixel_values=batch[1], return_loss=True).loss


def spectrograms(batch_size, bins=16, frames=64):
    return torch.randn(batch_size, bins, frames), torch.randint(VOCAB, (batch_size, 12))


def transcribe(model, batch):
    return model(input_features=batch[0], labels=batch[1]).loss


def causal(kind, **sizes):
    return partial(transformer, kind, "AutoModelForCausalLM", vocab_size=VOCAB, **sizes)


def written(make_model, make_batch=words, loss=own_loss, **options):
    return Entry(make_model=make_model, make_batch=make_batch, forward_loss=loss, **options)


def checkpointed(make, **options):
    """The model with transformers' own checkpointing of its blocks."""
    model = make()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    return model


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, **options)


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
CLIP = {
    "text_config": {**SMALL, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2},
    "vision_config": {**SMALL, "image_size": 32, "patch_size": 8},
    "projection_dim": 32,
}
WHISPER = {
    "vocab_size": VOCAB, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 16, "d_model": 64,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "pad_token_id": 0, "decoder_start_token_id": 1,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NEOX = causal("gpt_neox", **SMALL)
QWEN = causal("qwen3", **SMALL, num_key_value_heads=2, head_dim=16)

LIBRARIES = {
    "densenet121": vision(torchvision, "densenet121", make_optimizer=sgd),
    "densenet_checkpointed": vision(torchvision, "densenet121", memory_efficient=True),
    "efficientnet_b0": vision(torchvision, "efficientnet_b0", make_optimizer=partial(torch.optim.RMSprop, lr=1e-3)),
    "mobilenet_v3": vision(torchvision, "mobilenet_v3_small", step=amp_step(cross_entropy, torch.bfloat16)),
    "convnext_tiny": vision(torchvision, "convnext_tiny", step=channels_last_step(cross_entropy)),
    "swin_t": vision(torchvision, "swin_t"),
    "googlenet": vision(torchvision, "googlenet", aux_logits=False, init_weights=False),
    "shufflenet": vision(torchvision, "shufflenet_v2_x0_5", make_optimizer=partial(torch.optim.NAdam, lr=1e-3)),
    "resnext50": vision(torchvision, "resnext50_32x4d", step=scaled_step(cross_entropy)),
    "mlp_mixer": vision(timm, "mixer_s32_224", 224, make_optimizer=partial(torch.optim.Adagrad, lr=1e-3)),
    "maxvit": vision(timm, "maxvit_pico_rw_256", 256),
    "xcit": vision(timm, "xcit_nano_12_p16_224", 224, make_optimizer=partial(torch.optim.RAdam, lr=1e-3)),
    "deit_checkpointed": vision(checkpointed_timm, "deit_tiny_patch16_224", 224),
    "roberta": written(partial(transformer, "roberta", "AutoModelForMaskedLM", **SMALL, vocab_size=VOCAB)),
    "deberta": written(partial(transformer, "deberta-v2", "AutoModelForMaskedLM", **SMALL, vocab_size=VOCAB)),
    "gpt_neox": written(NEOX, step=amp_step(own_loss, torch.bfloat16)),
    "gpt_neox_checkpointed": written(partial(checkpointed, NEOX, use_reentrant=True)),
    "qwen3": written(QWEN, make_optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=True)),
    "qwen3_checkpointed": written(partial(checkpointed, QWEN, use_reentrant=False), step=amp_step(own_loss)),
    "gemma2": written(causal("gemma2", **SMALL, num_key_value_heads=2, head_dim=16)),
    "mamba": written(causal("mamba", hidden_size=32, num_hidden_layers=2, state_size=8)),
    "bart": written(
        partial(
            transformer, "bart", "AutoModelForSeq2SeqLM", vocab_size=VOCAB, d_model=64, encoder_layers=2,
            decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
            decoder_ffn_dim=128,
        )
    ),
    "clip": written(partial(transformer, "clip", "AutoModel", **CLIP), pairs, contrast),
    "whisper": written(
        partial(transformer, "whisper", "AutoModelForSpeechSeq2Seq", **WHISPER), spectrograms, transcribe
    ),
}  # fmt: skip
"""By name."""
