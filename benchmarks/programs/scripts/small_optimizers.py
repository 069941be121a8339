"""A GPT whose optimizer keeps little: small_optimizers.py OPTIMIZER."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization: a step up, then the real one from there."""

    def __init__(self, parameters, radius=0.05, **options):
        super().__init__(parameters, {"radius": radius})
        self.base = torch.optim.SGD(self.param_groups, **options)

    @torch.no_grad()
    def climb(self):
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * (self.param_groups[0]["radius"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure):
        closure = torch.enable_grad()(closure)
        self.climb()
        closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    p.copy_(self.state[p]["old"])
        self.base.step()
        self.zero_grad()


def make(name, model):
    parameters = list(model.parameters())
    if name in {"adam8bit", "paged", "paged8bit", "lion8bit"}:
        import bitsandbytes as bnb

        kind = {
            "adam8bit": bnb.optim.AdamW8bit, "paged": bnb.optim.PagedAdamW, "paged8bit": bnb.optim.PagedAdamW8bit,
            "lion8bit": bnb.optim.Lion8bit,
        }[name]  # fmt: skip
        return kind(parameters, lr=1e-4)
    if name in {"ao8bit", "ao4bit"}:
        from torchao.optim import AdamW4bit, AdamW8bit

        return {"ao8bit": AdamW8bit, "ao4bit": AdamW4bit}[name](parameters, lr=1e-4)
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=1e-3)
    if name == "muon":
        wide = [p for n, p in model.named_parameters() if p.ndim == 2 and "transformer.h" in n]
        return torch.optim.Muon(wide, lr=1e-3)
    if name == "galore":
        from galore_torch import GaLoreAdamW

        wide = [p for n, p in model.named_parameters() if p.ndim == 2 and "transformer.h" in n]
        chosen = {id(p) for p in wide}
        rest = [p for p in parameters if id(p) not in chosen]
        low = {"params": wide, "rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
        return GaLoreAdamW([{"params": rest}, low], lr=1e-3)
    return Sam(parameters, lr=0.1, momentum=0.9)


def main():
    model = GPT2LMHeadModel(GPT2Config(n_layer=6)).cuda()
    optimizer = make(sys.argv[1], model)

    def loss_of(ids):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return model(input_ids=ids, labels=ids).loss

    for step in range(5):
        ids = torch.randint(0, 50257, (4, 512), device="cuda")
        loss = loss_of(ids)
        loss.backward()
        if isinstance(optimizer, Sam):
            optimizer.step(lambda ids=ids: loss_of(ids).backward())
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(step, loss.item())


if __name__ == "__main__":
    main()
