"""The Hugging Face Trainer on GPT-2; every option of TrainingArguments can be given.

torchrun --nproc-per-node 2 trainer_gpt2.py --bf16 true
torchrun --nproc-per-node 2 trainer_gpt2.py --fsdp "full_shard auto_wrap" --fsdp_config fsdp.json
deepspeed --num_gpus 2 trainer_gpt2.py --deepspeed zero3.json --bf16 true
"""

import sys
import tempfile

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments

LENGTH = 256


class Tokens(Dataset):
    def __init__(self, count):
        self.ids = torch.randint(0, 50257, (count, LENGTH))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def accuracy(prediction):
    return {"accuracy": float(np.mean(prediction.predictions == prediction.label_ids))}


def main():
    with tempfile.TemporaryDirectory() as folder:
        given = ["--output_dir", folder, "--max_steps", "4", "--per_device_train_batch_size", "4"]
        given += ["--gradient_accumulation_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2"]
        given += [
            "--save_steps",
            "4",
            "--logging_steps",
            "1",
            "--report_to",
            "none",
            "--include_num_input_tokens_seen",
            "true",
        ]
        (arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(given + sys.argv[1:])
        model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=256, n_head=4))
        trainer = Trainer(
            model,
            arguments,
            train_dataset=Tokens(64),
            eval_dataset=Tokens(16),
            compute_metrics=accuracy,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        )
        trainer.train()
        trainer.save_model()
        print(trainer.evaluate())


if __name__ == "__main__":
    main()
