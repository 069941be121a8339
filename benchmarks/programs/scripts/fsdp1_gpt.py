"""PyTorch's FSDP1 by hand: mixed precision, accumulation without synchronisation, clipping, EMA, both kinds of state.

torchrun --nproc-per-node 2 fsdp1_gpt.py
"""

import functools
import os

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, MixedPrecision, StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

WIDTH, LAYERS, LENGTH, VOCABULARY, BATCH = 512, 6, 256, 32000, 4


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layers = [nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, 0.0, batch_first=True) for _ in range(LAYERS)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def main():
    distributed.init_process_group("nccl")
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    torch.manual_seed(0)
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={nn.TransformerEncoderLayer})
    half = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, buffer_dtype=torch.bfloat16)
    model = FullyShardedDataParallel(
        Model(), auto_wrap_policy=policy, mixed_precision=half, device_id=local, use_orig_params=True,
        sync_module_states=True, limit_all_gathers=True,
    )  # fmt: skip
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    for step in range(4):
        ids = torch.randint(0, VOCABULARY, (2, BATCH, LENGTH), device="cuda")
        with model.no_sync():
            nn.functional.cross_entropy(model(ids[0]).flatten(0, 1), ids[0].flatten()).backward()
        loss = nn.functional.cross_entropy(model(ids[1]).flatten(0, 1), ids[1].flatten())
        loss.backward()
        norm = model.clip_grad_norm_(1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [parameter.detach() for parameter in model.parameters()], 0.01)
        shown = loss.detach().clone()
        distributed.all_reduce(shown, op=distributed.ReduceOp.AVG)
        if distributed.get_rank() == 0:
            print(f"step {step} loss {shown.item():.3f} norm {norm.item():.3f}")
    model.eval()
    with torch.no_grad():
        model(ids[0])
    distributed.barrier(device_ids=[local])
    whole = FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, whole):
        state = model.state_dict()
    moments = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    print("saved", len(state), len(moments["state"]))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
