"""A small GPT under torch.compile: compiled_gpt.py MODE, a mode of torch.compile."""

import sys

import torch
from torch import nn

WORDS, WIDTH, HEADS, LAYERS, BATCH, LENGTH = 8192, 512, 8, 4, 8, 512


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, dim=-1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))

    def forward(self, ids):
        return nn.functional.cross_entropy(self.head(self.blocks(self.embedding(ids))).flatten(0, 1), ids.flatten())


def main():
    model = torch.compile(Model().cuda(), mode=sys.argv[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(8):
        ids = torch.randint(0, WORDS, (BATCH, LENGTH), device="cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(step, loss.item())


if __name__ == "__main__":
    main()
