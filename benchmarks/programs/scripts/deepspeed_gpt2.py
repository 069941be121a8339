"""GPT-2 with DeepSpeed's own engine: a configuration file says the stage; a checkpoint is saved at the end.

deepspeed --num_gpus 2 deepspeed_gpt2.py --deepspeed_config zero3.json
"""

import argparse
import json
import tempfile

import deepspeed
import torch
from torch import distributed
from transformers import GPT2Config, GPT2LMHeadModel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=-1)
    parser = deepspeed.add_config_arguments(parser)
    arguments = parser.parse_args()
    with open(arguments.deepspeed_config) as file:
        config = json.load(file)
    deepspeed.init_distributed()
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=config["zero_optimization"]["stage"] == 3):
        model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=256, n_head=4))
    model.gradient_checkpointing_enable()
    engine, _, _, _ = deepspeed.initialize(args=arguments, model=model, model_parameters=model.parameters())
    for step in range(4 * engine.gradient_accumulation_steps()):
        ids = torch.randint(0, 50257, (engine.train_micro_batch_size_per_gpu(), 256), device=engine.device)
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        shown = loss.detach().clone()
        distributed.all_reduce(shown, op=distributed.ReduceOp.AVG)
        if engine.global_rank == 0:
            print(f"micro step {step} loss {shown.item():.3f} norm {engine.get_global_grad_norm()}")
    engine.eval()
    with torch.no_grad():
        engine(input_ids=ids, labels=ids)
    folder = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(folder, src=0)
    engine.save_checkpoint(folder[0])
    distributed.barrier(device_ids=[engine.local_rank])


if __name__ == "__main__":
    main()
