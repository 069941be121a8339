"""A small language model under torch.compile; the first argument is the mode, or `eager`."""

import sys

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Attention and a perceptron."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, words, width = x.shape
        qkv = self.qkv(self.before(x)).view(batch, words, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, words, width))
        return x + self.down(functional.gelu(self.up(x)))


class Model(nn.Module):
    """Words in, loss out."""

    def __init__(self, vocabulary=1000, width=128):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.block = Block(width, 4)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, words):
        return functional.cross_entropy(self.head(self.block(self.words(words))).flatten(0, 1), words.flatten())


mode = sys.argv[1]
model = Model().cuda()
optimizer = torch.optim.AdamW(model.parameters())
step = model if mode == "eager" else torch.compile(model, mode=mode)
for _ in range(4):
    words = torch.randint(1000, (8, 256), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = step(words)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
pools = {segment["segment_pool_id"] for segment in torch.cuda.memory_snapshot()}
print("private pools", len(pools - {(0, 0)}))
