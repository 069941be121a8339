"""The Hugging Face Trainer on one of several models, random weights, random data: trainer_models.py MODEL."""

import sys

import torch
import transformers
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

LENGTH = 512


class Examples(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return self.make()


def words(vocabulary, length=LENGTH):
    return torch.randint(0, vocabulary, (length,))


def causal(vocabulary):
    ids = words(vocabulary)
    return {"input_ids": ids, "labels": ids.clone()}


def masked(vocabulary):
    ids, hidden = words(vocabulary), torch.rand(LENGTH) < 0.15
    return {"input_ids": ids.masked_fill(hidden, 103), "labels": ids.masked_fill(~hidden, -100)}


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config()), lambda: causal(50257), {"bf16": True}


def llama():
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=4,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    return model, lambda: causal(32000), {"bf16": True, "gradient_checkpointing": True}


def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, num_local_experts=8, output_router_logits=True,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config), lambda: causal(32000), {"bf16": True}


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig()), lambda: masked(30522), {"fp16": True}


def t5():
    config = transformers.T5Config(decoder_start_token_id=0)
    pair = lambda: {"input_ids": words(32128), "labels": words(32128, 128)}
    return transformers.T5ForConditionalGeneration(config), pair, {"optim": "adafactor"}


def whisper():
    config = transformers.WhisperConfig(
        d_model=768, encoder_layers=12, decoder_layers=12, encoder_attention_heads=12, decoder_attention_heads=12,
        encoder_ffn_dim=3072, decoder_ffn_dim=3072,
    )  # fmt: skip
    heard = lambda: {"input_features": torch.randn(80, 3000), "labels": words(51865, 64)}
    return transformers.WhisperForConditionalGeneration(config), heard, {"fp16": True}


def main():
    model, make, options = globals()[sys.argv[1]]()
    arguments = TrainingArguments(
        output_dir="out", max_steps=4, per_device_train_batch_size=4, logging_steps=1, save_strategy="no",
        report_to="none", **options,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Examples(make)).train()


if __name__ == "__main__":
    main()
