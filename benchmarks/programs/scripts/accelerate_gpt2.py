"""GPT-2 with accelerate: accumulation, clipping, a scheduler, evaluation with gathered metrics, a checkpoint.

accelerate launch --config_file FILE accelerate_gpt2.py
"""

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel, get_linear_schedule_with_warmup

LENGTH = 256


class Tokens(Dataset):
    def __init__(self, count):
        self.ids = torch.randint(0, 50257, (count, LENGTH))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def main():
    accelerator = Accelerator(gradient_accumulation_steps=2)
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=256, n_head=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = get_linear_schedule_with_warmup(optimizer, 2, 8)
    train, test = DataLoader(Tokens(64), batch_size=4, shuffle=True), DataLoader(Tokens(16), batch_size=4)
    model, optimizer, train, test, scheduler = accelerator.prepare(model, optimizer, train, test, scheduler)
    model.train()
    total = torch.zeros((), device=accelerator.device)
    for batch in train:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            total += loss.detach()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    accelerator.print("train", accelerator.reduce(total, "mean").item())
    model.eval()
    losses = []
    for batch in test:
        with torch.no_grad():
            out = model(**batch)
        losses.append(accelerator.gather_for_metrics(out.loss.repeat(4)))
    accelerator.print("test", torch.cat(losses).mean().item())
    with tempfile.TemporaryDirectory() as folder:
        accelerator.wait_for_everyone()
        accelerator.save_state(f"{folder}/state")
        unwrapped = accelerator.unwrap_model(model)
        state = accelerator.get_state_dict(model)
        unwrapped.save_pretrained(folder, is_main_process=accelerator.is_main_process, state_dict=state)
        accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
