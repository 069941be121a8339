"""Models written for this comparison, as people write them: loops, packed sequences, two networks, scans."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.accuracy.unseen.steps import accumulating_step, amp_step, penalized_step
from tests.models.entry import Entry

CLASSES, VOCAB, LENGTH, WIDTH = 7, 50, 12, 32


def points(batch_size):
    return torch.randn(batch_size, WIDTH), torch.randint(CLASSES, (batch_size,))


def sequences(batch_size):
    return torch.randint(VOCAB, (batch_size, LENGTH)), torch.randint(CLASSES, (batch_size,))


def texts(batch_size):
    return torch.randint(VOCAB, (batch_size, LENGTH)), torch.randint(VOCAB, (batch_size, LENGTH))


def pictures(batch_size):
    return torch.rand(batch_size, 3, 32, 32), torch.rand(batch_size)


def classify(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def next_word(model, batch):
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


class Packed(nn.Module):
    """An LSTM or GRU that skips padding."""

    def __init__(self, kind, **options):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = kind(WIDTH, WIDTH, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(WIDTH * (2 if options.get("bidirectional") else 1), CLASSES)

    def forward(self, tokens):
        lengths = torch.arange(LENGTH, LENGTH - len(tokens), -1)
        packed = rnn.pack_padded_sequence(self.embed(tokens), lengths, batch_first=True)
        hidden, _ = rnn.pad_packed_sequence(self.layers(packed)[0], batch_first=True)
        return self.head(hidden.mean(1))


class Attended(nn.Module):
    """A decoder of GRU cells in a Python loop that looks back at an encoder."""

    def __init__(self):
        super().__init__()
        self.embed, self.encoder = nn.Embedding(VOCAB, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.cell, self.query, self.head = (
            nn.GRUCell(2 * WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, VOCAB),
        )

    def forward(self, tokens):
        memory, last = self.encoder(self.embed(tokens))
        hidden, outputs = last[0], []
        for token in self.embed(tokens).unbind(1):
            weights = torch.bmm(memory, self.query(hidden)[:, :, None]).softmax(1)
            hidden = self.cell(torch.cat([token, (weights * memory).sum(1)], -1), hidden)
            outputs.append(self.head(hidden))
        return torch.stack(outputs, 1)


class Scan(nn.Module):
    """A selective state space, step by step, as a reference implementation has it."""

    def __init__(self, states=4):
        super().__init__()
        self.embed, self.inner = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 4, padding=3, groups=WIDTH)
        self.select, self.out = nn.Linear(WIDTH, 2 * states + 1), nn.Linear(WIDTH, VOCAB)
        self.decay = nn.Parameter(torch.rand(WIDTH, states))
        self.states = states

    def forward(self, tokens):
        x, gate = self.inner(self.embed(tokens)).chunk(2, -1)
        x = functional.silu(self.conv(x.mT)[..., : tokens.shape[1]].mT)
        step, into, outof = self.select(x).split([1, self.states, self.states], -1)
        step = functional.softplus(step)
        kept = torch.exp(-step[..., None] * self.decay)
        added = (step * x)[..., None] * into[:, :, None]
        state, outputs = x.new_zeros(len(x), WIDTH, self.states), []
        for i in range(x.shape[1]):
            state = kept[:, i] * state + added[:, i]
            outputs.append((state * outof[:, i, None]).sum(-1))
        return self.out(torch.stack(outputs, 1) * functional.silu(gate))


class Experts(nn.Module):
    """A mixture in which each expert sees all tokens, weighted by a router that keeps two of them."""

    def __init__(self, count=4):
        super().__init__()
        self.embed, self.router = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, count)
        self.up = nn.Parameter(torch.randn(count, WIDTH, 2 * WIDTH) / 8)
        self.down = nn.Parameter(torch.randn(count, 2 * WIDTH, WIDTH) / 8)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens):
        x = self.embed(tokens)
        best, chosen = self.router(x).topk(2, dim=-1)
        weights = torch.zeros_like(self.router(x)).scatter(-1, chosen, best.softmax(-1))
        hidden = torch.einsum("btd,edh->bteh", x, self.up).relu().square()
        return self.head(torch.einsum("bteh,ehd,bte->btd", hidden, self.down, weights) + x)


class Encoder(nn.Module):
    """torch's own encoder layers."""

    def __init__(self, *, recompute=False):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head, self.recompute = nn.Linear(WIDTH, VOCAB), recompute

    def forward(self, tokens):
        x = self.embed(tokens)
        if not self.recompute:
            return self.head(self.blocks(x))
        for block in self.blocks.layers:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


class Denoiser(nn.Module):
    """A U-Net told the noise level, with group norms, attention and skips."""

    def __init__(self, width=16):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.down, self.up = nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ConvTranspose2d(2 * width, width, 4, 2, 1)
        self.norm, self.attend = nn.GroupNorm(4, 2 * width), nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.last = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x, time):
        first = functional.silu(self.first(x) + self.time(time[:, None])[..., None, None])
        low = functional.silu(self.norm(self.down(first)))
        tokens = low.flatten(2).mT
        low = low + self.attend(tokens, tokens, tokens, need_weights=False)[0].mT.reshape(low.shape)
        return self.last(torch.cat([functional.interpolate(self.up(low), size=x.shape[-2:]), first], 1))


def denoise(model, batch):
    image, level = batch
    noise = torch.randn_like(image)
    return functional.mse_loss(model(image + level[:, None, None, None] * noise, level), noise)


class Variational(nn.Module):
    """Encoder, sample, decoder; the loss has two parts."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(3 * 1024, WIDTH), nn.ELU(), nn.Linear(WIDTH, 16))
        self.decode = nn.Sequential(nn.Linear(8, WIDTH), nn.ELU(), nn.Linear(WIDTH, 3 * 1024), nn.Sigmoid())

    def forward(self, x):
        mean, spread = self.encode(x).chunk(2, -1)
        return self.decode(mean + torch.randn_like(mean) * (spread / 2).exp()), mean, spread


def evidence(model, batch):
    image, mean, spread = model(batch[0])
    fit = functional.binary_cross_entropy(image, batch[0].flatten(1), reduction="sum")
    return (fit - 0.5 * (1 + spread - mean.square() - spread.exp()).sum()) / len(image)


class Adversaries(nn.Module):
    """A generator and a critic, each with its own optimizer: the critic's is made at the first step."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(8, 16, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 4), nn.Tanh()
        )
        self.critic = nn.Sequential(
            nn.utils.spectral_norm(nn.Conv2d(3, 16, 4, 4)), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(),
            nn.Linear(16 * 64, 1),
        )  # fmt: skip


def duel(model, batch, optimizer):
    if not hasattr(model, "other"):
        model.other = torch.optim.Adam(model.critic.parameters(), lr=1e-4)
    real, fake = batch[0], model.generator(torch.randn(len(batch[0]), 8, 1, 1, device=batch[0].device))
    wrong = functional.softplus(model.critic(fake.detach())).mean() + functional.softplus(-model.critic(real)).mean()
    wrong.backward()
    model.other.step()
    model.other.zero_grad()
    functional.softplus(-model.critic(fake)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


class Twins(nn.Module):
    """Two encoders and the cosine of what they see."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, WIDTH))
        self.text, self.scale = nn.EmbeddingBag(VOCAB, WIDTH), nn.Parameter(torch.tensor(2.0))

    def forward(self, image, tokens):
        a, b = functional.normalize(self.image(image), dim=-1), functional.normalize(self.text(tokens), dim=-1)
        return self.scale.exp() * a @ b.T


def agree(model, batch):
    scores = model(*batch)
    labels = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2


def image_texts(batch_size):
    return torch.rand(batch_size, 3, 32, 32), torch.randint(VOCAB, (batch_size, LENGTH))


def chain(depth=6):
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Mish()) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, CLASSES))


def chain_in_segments(model, batch):
    return functional.cross_entropy(checkpoint_sequential(model, 3, batch[0], use_reentrant=False), batch[1])


class Extremes(nn.Module):
    """Whole reductions, sorting and gathering, whose backward formulas write into what they have made."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.layer(x)
        x = x.cumsum(-1) + x.max() - x.median() + x.amin() + x.amax(-1, keepdim=True) + x[:, :1].trace()
        return self.head(x.cummax(-1).values + x.sort(-1).values + x.logcumsumexp(-1))


def soft_targets(model, batch):
    """A loss whose target learns too."""
    scores = model(batch[0]).sigmoid()
    return functional.binary_cross_entropy(scores, scores.flip(0).clamp(0.1, 0.9))


def entry(make_model, make_batch, forward_loss, **options):
    return Entry(make_model=make_model, make_batch=make_batch, forward_loss=forward_loss, **options)


WRITTEN = {
    "lstm_packed": entry(partial(Packed, nn.LSTM), sequences, classify),
    "gru_packed": entry(partial(Packed, nn.GRU, bidirectional=True), sequences, classify, step=amp_step(classify)),
    "gru_attention": entry(Attended, texts, next_word, make_optimizer=partial(torch.optim.Adamax, lr=1e-3)),
    "state_space": entry(Scan, texts, next_word),
    "dense_experts": entry(Experts, texts, next_word, make_optimizer=partial(torch.optim.Adafactor, lr=1e-3)),
    "encoder": entry(Encoder, texts, next_word, step=accumulating_step(next_word, 2)),
    "encoder_checkpointed": entry(partial(Encoder, recompute=True), texts, next_word),
    "chain_checkpointed": entry(chain, points, chain_in_segments),
    "denoiser": entry(Denoiser, pictures, denoise, step=amp_step(denoise, torch.float16)),
    "variational": entry(Variational, pictures, evidence, make_optimizer=partial(torch.optim.Adadelta, lr=0.1)),
    "adversaries": entry(
        Adversaries, pictures, classify, step=duel,
        make_optimizer=lambda ps: torch.optim.Adam(ps, lr=1e-4, foreach=False),
    ),
    "twins": entry(Twins, image_texts, agree, make_optimizer=partial(torch.optim.SGD, lr=0.1, foreach=True)),
    "gradient_penalty": entry(chain, points, classify, step=penalized_step(classify)),
    "extremes": entry(Extremes, points, classify, make_optimizer=partial(torch.optim.ASGD, lr=1e-3)),
    "soft_targets": entry(partial(chain, 2), points, soft_targets),
}  # fmt: skip
"""By name."""
