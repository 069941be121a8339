"""Hugging Face configurations become models that train, without weights and without a network."""

from __future__ import annotations

import json
import socket
import sys

import pytest
import torch

from dnnmem.estimator.errors import DnnmemError
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve
from dnnmem.profilers.targets.hf import known_models
from dnnmem.profilers.targets.hf_tasks import IGNORED

pytest.importorskip("transformers")

SMALL = {
    "hidden_size": "32",
    "num_hidden_layers": "2",
    "num_attention_heads": "4",
    "intermediate_size": "64",
    "vocab_size": "100",
}
IMAGES = {**{k: v for k, v in SMALL.items() if k != "vocab_size"}, "image_size": "32", "num_labels": "10"}
T5 = {"d_model": "32", "d_ff": "64", "d_kv": "8", "num_layers": "2", "num_heads": "4", "vocab_size": "100"}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a target reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def target_of(name, seq_len=16, batch_size=2, **args):
    return resolve(Request(target=name, batch_size=batch_size, seq_len=seq_len, args=args))


@pytest.mark.parametrize(
    ("name", "seq_len", "args", "model_class", "shapes"),
    [
        (
            "hf:gpt2",
            16,
            SMALL | {"intermediate_size": None},
            "GPT2LMHeadModel",
            {"input_ids": (2, 16), "labels": (2, 16)},
        ),
        ("hf:bert", 16, SMALL, "BertForMaskedLM", {"input_ids": (2, 16), "labels": (2, 16)}),
        (
            "hf:llama",
            16,
            SMALL | {"num_key_value_heads": "2"},
            "LlamaForCausalLM",
            {"input_ids": (2, 16), "labels": (2, 16)},
        ),
        (
            "hf:mixtral",
            16,
            SMALL | {"num_key_value_heads": "2", "num_local_experts": "4"},
            "MixtralForCausalLM",
            {"input_ids": (2, 16), "labels": (2, 16)},
        ),
        ("hf:t5", 16, T5, "T5ForConditionalGeneration", {"input_ids": (2, 16), "labels": (2, 16)}),
        ("hf:t5", 16, T5 | {"target_len": "5"}, "T5ForConditionalGeneration", {"input_ids": (2, 16), "labels": (2, 5)}),
        ("hf:vit", None, IMAGES, "ViTForImageClassification", {"pixel_values": (2, 3, 32, 32), "labels": (2,)}),
        (
            "hf:resnet",
            None,
            {"depths": "[1, 1, 1, 1]", "image_size": "48", "num_labels": "4"},
            "ResNetForImageClassification",
            {"pixel_values": (2, 3, 48, 48), "labels": (2,)},
        ),
    ],
)
def test_a_configuration_trains_in_its_task(name, seq_len, args, model_class, shapes):
    given = {k: v for k, v in args.items() if v is not None}
    target = target_of(name, seq_len, **given)
    model, batch = target.make_model(), target.make_batch()
    assert type(model).__name__ == model_class
    assert {key: tuple(tensor.shape) for key, tensor in batch.items()} == shapes
    assert model.training
    assert not getattr(model.config, "use_cache", False)
    before = [p.detach().clone() for p in model.parameters()]
    target.train_step(model, batch, target.make_optimizer(model.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_masked_labels_are_mostly_left_out_and_never_all():
    labels = target_of("hf:bert", seq_len=64, **SMALL).make_batch()["labels"]
    share = (labels != IGNORED).float().mean().item()
    assert 0.1 < share < 0.2
    assert (target_of("hf:bert", seq_len=1, **SMALL).make_batch()["labels"] != IGNORED).all()


@pytest.mark.parametrize("name", sorted(known_models()))
def test_a_known_model_has_its_published_number_of_parameters(name):
    # GIVEN an entry of the table  WHEN it is built without memory
    entry = known_models()[name]
    image = entry["config"]["model_type"] == "vit"
    target = target_of(f"hf:{name}", None if image else 8)
    with torch.device("meta"):
        model = target.make_model()
    # THEN it has as many parameters as its authors publish, and says where its sizes are from
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
    assert entry["source"] in target.notes[0]


@pytest.mark.parametrize("name", ["llama-3-8b", "Meta-Llama-3-8B", "meta-llama/meta-llama-3-8b"])
def test_a_known_model_has_short_names(name):
    target = target_of(f"hf:{name}", num_hidden_layers="1", hidden_size="64", intermediate_size="64")
    with torch.device("meta"):
        model = target.make_model()
    assert model.config.vocab_size == 128256
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_folder_and_a_file_are_read_and_changed(tmp_path):
    # GIVEN a config.json with class names
    config = {
        "model_type": "vit",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
    }
    config |= {"id2label": {"0": "cat", "1": "dog", "2": "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    # WHEN it is named by file and by folder, with and without changes
    same = target_of(f"hf:{tmp_path}/config.json", None).make_model()
    changed = target_of(f"hf:{tmp_path}", None, num_labels="7", image_size="64", dtype="bf16")
    model = changed.make_model()
    # THEN both follow
    assert same.config.num_labels == 3
    assert model.config.num_labels == 7
    assert changed.make_batch()["pixel_values"].shape == (2, 3, 64, 64)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("architectures", "args", "model_class"),
    [
        (["BertForMaskedLM"], {}, "BertForMaskedLM"),
        (["BertLMHeadModel"], {}, "BertLMHeadModel"),
        (["BertForQuestionAnswering"], {"task": "masked-lm"}, "BertForMaskedLM"),
    ],
)
def test_the_configurations_own_architecture_decides_the_task(tmp_path, architectures, args, model_class):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": architectures}))
    target = target_of(f"hf:{tmp_path}", **SMALL, **args)
    assert type(target.make_model()).__name__ == model_class


def test_a_target_is_rescaled_in_both_sizes():
    target = target_of("hf:gpt2", 16, n_layer="1", n_embd="8", n_head="2")
    assert target.rescale(1, 4).make_batch()["input_ids"].shape == (1, 4)
    assert target.rescale(5, None).make_batch()["input_ids"].shape == (5, 16)


BAD = [
    ("hf:gpt2-medum", {}, 2, "nothing is downloaded", "did you mean gpt2-medium"),
    ("hf:some-org/some-net", {}, 2, "nothing is downloaded", "hf:path/to/config.json"),
    ("hf:gpt2", {"seq_len": None}, 2, "--seq is not given", "--seq 1024"),
    ("hf:gpt2", {"seq_len": 2048}, 2, "has max_position_embeddings 1024", "--arg max_position_embeddings=2048"),
    ("hf:vit", {}, 2, "takes images", "leave --seq out"),
    ("hf:resnet", {"seq_len": None}, 2, "has no image_size", "image_size=224"),
    ("hf:gpt2", {"n_layr": "2"}, 2, "--arg n_layr is not known", "did you mean n_layer"),
    ("hf:gpt2", {"n_layer": "two"}, 2, "n_layer=two: hf:gpt2 wants int", "n_layer as int"),
    ("hf:gpt2", {"dtype": "float99"}, 2, "dtype=float99", "dtype"),
    ("hf:gpt2", {"task": "masked-lm"}, 2, "hf:gpt2 has causal-lm", "task=causal-lm"),
    ("hf:gpt2", {"target_len": "3"}, 2, "is a causal-lm model", "leave it out"),
    ("hf:gpt2", {"image_size": "3"}, 2, "takes tokens", "leave it out"),
    ("hf:t5", {"target_len": "0"}, 2, "is no number of tokens", "target_len=128"),
    ("hf:llama", {"num_attention_heads": "7"}, 2, "transformers refuses the configuration", "change its values"),
    ("hf:llava", {}, 4, "which transformers has for none of", "dnnmem init"),
]


@pytest.mark.parametrize(("name", "args", "exit_code", "said", "hint"), BAD)
def test_a_bad_configuration_is_one_message(name, args, exit_code, said, hint):
    with pytest.raises(DnnmemError) as caught:
        target_of(name, **args)
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == exit_code


def test_another_task_is_refused_with_the_way_to_choose_one(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]})
    )
    with pytest.raises(DnnmemError, match="is a BertForQuestionAnswering") as caught:
        target_of(f"hf:{tmp_path}")
    assert caught.value.exit_code == 4
    assert "--arg task=masked-lm" in caught.value.hint


def test_transformers_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DnnmemError) as caught:
        target_of("hf:gpt2")
    assert caught.value.message == "transformers is not installed"
    assert 'pip install "dnnmem[hf]"' in caught.value.hint
