"""LoRA adapters on a Llama; with --bits 4 over quantized weights (QLoRA)."""

import argparse

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, get_linear_schedule_with_warmup


def quantize(model):
    """Replace the layers by 4-bit ones, as from_pretrained(load_in_4bit=True) does."""
    for path, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and path != "lm_head":
            parent, _, name = path.rpartition(".")
            small = Linear4bit(
                linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            small.load_state_dict(linear.state_dict())
            setattr(model.get_submodule(parent), name, small)
    model.is_loaded_in_4bit = True
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    config = LlamaConfig(hidden_size=2048, intermediate_size=5504, num_hidden_layers=4, num_attention_heads=16)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    if arguments.bits == 4:
        model = prepare_model_for_kbit_training(quantize(model).cuda())
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, adapters).cuda()
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    scheduler = get_linear_schedule_with_warmup(optimizer, 2, 10)
    for step in range(5):
        ids = torch.randint(0, config.vocab_size, (arguments.batch, 1024), device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        print(step, loss.item())


if __name__ == "__main__":
    main()
