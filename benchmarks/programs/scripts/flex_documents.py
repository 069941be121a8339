"""A transformer block over packed documents: compiled flex attention with a block mask."""

import torch
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

HEADS, WIDTH, LENGTH = 12, 768, 4096
attend = torch.compile(flex_attention)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x, mask):
        batch = x.shape[0]
        heads = self.qkv(self.norm(x)).view(batch, LENGTH, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        x = x + self.out(attend(*heads, block_mask=mask).transpose(1, 2).reshape(batch, LENGTH, WIDTH))
        return x + self.mlp(x)


def main():
    blocks = nn.ModuleList(Block() for _ in range(4)).cuda().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(blocks.parameters(), lr=1e-4, fused=True)
    for step in range(5):
        documents = (torch.rand(LENGTH, device="cuda") < 0.002).cumsum(0)

        def visible(_batch, _head, query, key, documents=documents):
            return (query >= key) & (documents[query] == documents[key])

        mask = create_block_mask(visible, None, None, LENGTH, LENGTH, device="cuda")
        x = torch.randn(2, LENGTH, WIDTH, device="cuda", dtype=torch.bfloat16)
        for block in blocks:
            x = block(x, mask)
        loss = x.float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(step, loss.item())


if __name__ == "__main__":
    main()
