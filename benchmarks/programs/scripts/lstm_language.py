"""A language model of LSTM layers, with a state that is carried over and truncated back-propagation."""

import torch
from torch import nn

WORDS, WIDTH, LAYERS, BATCH, LENGTH = 10000, 1024, 3, 64, 128


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, LAYERS, dropout=0.2)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids, state):
        out, state = self.lstm(self.embedding(ids), state)
        return self.head(out), state


def main():
    model = Model().cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    text = torch.randint(0, WORDS, (LENGTH * 6 + 1, BATCH), device="cuda")
    state = tuple(torch.zeros(LAYERS, BATCH, WIDTH, device="cuda") for _ in range(2))
    for step in range(5):
        part = text[step * LENGTH : (step + 1) * LENGTH + 1]
        state = tuple(s.detach() for s in state)
        logits, state = model(part[:-1], state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), part[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        print(step, loss.item())


if __name__ == "__main__":
    main()
