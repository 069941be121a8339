"""Each sample model trains, has the shapes it documents, and traces at full size without memory."""

from __future__ import annotations

import importlib.util
import inspect

import pytest
import torch
from torch._subclasses import FakeTensorMode

from dnnmem.profilers.step import model_inputs, plain_step

TINY = {
    "mlp": {"inputs": 12, "width": 8, "depth": 2, "classes": 5},
    "resnet": {"blocks": (1, 2), "width": 4, "classes": 5, "image": 32},
    "gpt": {"vocab": 31, "context": 16, "width": 16, "layers": 2, "heads": 2, "seq_len": 8},
    "lstm": {"vocab": 31, "width": 16, "seq_len": 8},
    "moe": {"vocab": 31, "width": 16, "layers": 2, "heads": 2, "experts": 4, "seq_len": 8},
    "unet": {"width": 8, "levels": (1, 2), "image": 16},
    "vit": {"image": 16, "patch": 4, "width": 16, "layers": 2, "heads": 2, "classes": 5},
}

PARAMETERS = {
    "mlp": (784 + 1) * 2048 + 3 * (2048 + 1) * 2048 + (2048 + 1) * 10,
    "resnet": 25_557_032,  # ResNet-50, as published by torchvision
    "moe": 2 * 32000 * 512 + 8 * (2 * 512 + 4 * 512**2 + 8 * 512 + 8 * 2 * 512 * 2048) + 512,
    "lstm": 2 * 10000 * 650 + 10000 + 2 * 4 * (2 * 650**2 + 2 * 650),
    "gpt": 124_439_808,  # GPT-2 small, the output tied to the embedding
    "vit": 86_567_656,  # ViT-B/16, as published by torchvision
}


@pytest.fixture(params=sorted(TINY))
def name(request):
    return request.param


def load(root, name):
    spec = importlib.util.spec_from_file_location(f"sample_{name}", root / "sample_models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sample(name, root):
    return load(root, name)


def call(function, *args, **options):
    """The function with those of the options that it takes."""
    taken = inspect.signature(function).parameters
    return function(*args, **{key: value for key, value in options.items() if key in taken})


def optimizer_of(sample, model):
    return getattr(sample, "make_optimizer", torch.optim.AdamW)(model.parameters())


def step_of(sample):
    return getattr(sample, "train_step", None) or plain_step(sample.make_loss)


def output_of(model, batch):
    args, kwargs = model_inputs(model, batch, keeps_labels=True)
    return model(*args, **kwargs)


def test_two_steps_train(sample, name):
    # GIVEN the model at a tiny size
    torch.manual_seed(0)
    model, batch = call(sample.make_model, **TINY[name]), call(sample.make_batch, 4, **TINY[name])
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer, step = optimizer_of(sample, model), step_of(sample)
    # WHEN it takes two steps  THEN every loss is finite, every parameter moves, and no gradient is left
    losses = [step(model, batch, optimizer).item() for _ in range(2)]
    assert all(torch.tensor(losses).isfinite())
    assert not [n for (n, p), old in zip(model.named_parameters(), before, strict=True) if torch.equal(p, old)]
    assert all(parameter.grad is None for parameter in model.parameters())


SHAPES = {
    "mlp": (4, 5), "resnet": (4, 5), "gpt": (4, 8, 31), "lstm": (4, 8, 31), "moe": (4, 8, 31), "unet": (4, 3, 16, 16),
    "vit": (4, 5),
}  # fmt: skip


def test_outputs_have_the_documented_shape(sample, name):
    output = output_of(call(sample.make_model, **TINY[name]), call(sample.make_batch, 4, **TINY[name]))
    assert (output[0] if isinstance(output, tuple) else output).shape == SHAPES[name]


def test_a_step_at_full_size_traces_without_memory(sample, name):
    # GIVEN the default sizes under FakeTensorMode
    with FakeTensorMode():
        model, batch = sample.make_model(), sample.make_batch(2)
        # WHEN a step is taken  THEN no operator needs a value, and known models have their known size
        step_of(sample)(model, batch, optimizer_of(sample, model))
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_checkpointing_changes_no_gradient(root):
    gpt = load(root, "gpt")
    plain = call(gpt.make_model, **TINY["gpt"])
    saving = call(gpt.make_model, **TINY["gpt"], checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    batch = call(gpt.make_batch, 2, **TINY["gpt"])
    for model in (plain, saving):
        gpt.make_loss(model(batch[0]), batch).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_experts_with_room_for_all_give_each_token_its_two_experts(root):
    moe = load(root, "moe")
    torch.manual_seed(0)
    # GIVEN room for every token at every expert
    layer = moe.Experts(8, 16, 4, capacity_factor=4.0)
    x = torch.randn(10, 8)
    # WHEN each token is answered alone, by the formula
    weight, choice = layer.router(x).softmax(-1).topk(2)
    weight = weight / weight.sum(-1, keepdim=True)
    gelu = torch.nn.functional.gelu
    alone = [
        sum(w * (gelu(token @ layer.w_in[e]) @ layer.w_out[e]) for w, e in zip(ws, es, strict=True))
        for token, ws, es in zip(x, weight, choice, strict=True)
    ]
    # THEN the batched answer is the same
    torch.testing.assert_close(layer(x)[0], torch.stack(alone))


def test_experts_without_room_drop_tokens(root):
    moe = load(root, "moe")
    torch.manual_seed(0)
    layer = moe.Experts(8, 16, 4, capacity_factor=0.25)
    answered = (layer(torch.randn(32, 8))[0] != 0).any(-1).sum()
    # THEN at most capacity times experts choices are answered: 4 for each of 4
    assert 0 < answered <= 4 * 4


GPT_KINDS = {
    "megatron": {"bias": True},
    "mpt": {"bias": False, "positions": "none"},
    "llama": {"kv_heads": 1, "ffn": 24, "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": False},
    "qwen": {"kv_heads": 2, "head_dim": 12, "norm": "rms", "mlp": "swiglu", "positions": "rope", "qk_norm": True},
}


@pytest.mark.parametrize("kind", sorted(GPT_KINDS))
def test_written_attention_computes_what_one_kernel_does(root, kind):
    # GIVEN the same weights and tokens  WHEN scores are written out, and when they are not
    gpt = load(root, "gpt")
    tokens = gpt.make_batch(batch_size=3, seq_len=8, vocab=31)[0]
    outputs = []
    for attention in ("sdpa", "math"):
        torch.manual_seed(1)
        outputs.append(call(gpt.make_model, **TINY["gpt"], **GPT_KINDS[kind], attention=attention)(tokens))
    # THEN the logits are alike
    torch.testing.assert_close(*outputs)


def test_llama_and_mpt_have_the_parameters_they_are_published_with(root):
    gpt, bare = load(root, "gpt"), {"bias": False, "context": 1}
    llama = {"kv_heads": 8, "ffn": 14336, "norm": "rms", "mlp": "swiglu", "positions": "rope", "tied": False}
    with torch.device("meta"):
        big = gpt.make_model(vocab=128256, width=4096, layers=32, heads=32, **llama, **bare)
        small = gpt.make_model(vocab=50368, positions="alibi", **bare)
    assert sum(p.numel() for p in big.parameters()) == 8_030_261_248  # Llama 3.1 8B
    assert sum(p.numel() for p in small.parameters()) == 50368 * 768 + 12 * (12 * 768**2 + 2 * 768) + 768  # MPT-125M


def test_parameters_have_the_type_asked_for_and_rotations_stay_complex(root):
    model = call(load(root, "gpt").make_model, **TINY["gpt"], positions="rope", dtype=torch.bfloat16, dropout=0.1)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.rotations.dtype == torch.complex64


def test_a_model_of_timm_trains_in_half_precision_and_the_layout_asked_for(root):
    pytest.importorskip("timm")
    sample = load(root, "timm_classifier")
    # GIVEN a small model, channels last
    model = sample.make_model("resnet10t", channels_last=True)
    batch = sample.make_batch(2, image=32, channels_last=True)
    assert batch[0].is_contiguous(memory_format=torch.channels_last)
    # WHEN it takes two steps  THEN both losses are finite, and its parameters stay float32
    optimizer = optimizer_of(sample, model)
    losses = [sample.train_step(model, batch, optimizer).item() for _ in range(2)]
    assert all(torch.tensor(losses).isfinite())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
