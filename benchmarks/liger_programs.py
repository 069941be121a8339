"""The eager programs behind the operator times that Liger-Kernel publishes, as modules small enough to record.

Written anew from what its benchmark scripts time (github.com/linkedin/Liger-Kernel, benchmark/scripts): the input's
gradient is dropped before each repetition unless `keeps`, a weight's is added to; a gradient that flows in is made
beforehand unless `draws`. Each class takes the swept value `x` and the row's configuration `c`, and computes what
`forward` returns.
"""

# ruff: noqa: D101, D102, D107, ANN401  (each class is the published program of its name)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Config = dict[str, Any]


class Program(nn.Module):
    """One timed program."""

    draws = False
    """The gradient is drawn inside the timed region."""
    includes_forward = False
    """The published backward time holds a forward pass."""
    waits = False
    """It makes tensors of numbers on the GPU, for which the host waits: nothing is issued ahead."""
    keeps = frozenset[str]()
    """Modes in which the input's gradient is not dropped, so that each repetition adds to the last one's."""

    def leaf(self, *shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
        """An input whose gradient is wanted."""
        return nn.Parameter(torch.randn(*shape, dtype=dtype))

    def put(self, name: str, tensor: Tensor) -> None:
        """A constant."""
        self.register_buffer(name, tensor)


class CrossEntropy(Program):
    keeps = frozenset({"full"})

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["B"] * c["T"], x)
        self.put("labels", torch.zeros(c["B"] * c["T"], dtype=torch.int64))

    def forward(self) -> Tensor:
        return F.cross_entropy(self.x, self.labels)


class Embedding(Program):
    draws = True

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.table = nn.Embedding(x, c["D"], dtype=c["dtype"])
        self.put("tokens", torch.zeros(c["B"], c["T"], dtype=torch.int64))

    def forward(self) -> Tensor:
        return self.table(self.tokens)


class LayerNorm(Program):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["M"], x, dtype=c["dtype"])
        self.norm = nn.LayerNorm(x, dtype=c["dtype"])

    def forward(self) -> Tensor:
        return self.norm(self.x)


class RmsNorm(Program):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["M"], x, dtype=c["dtype"])
        self.weight = nn.Parameter(torch.ones(x))

    def forward(self) -> Tensor:
        return self.norm(self.x)

    def norm(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * h.to(x.dtype)


class AddRmsNorm(RmsNorm):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__(x, c)
        self.x2 = self.leaf(c["M"], x, dtype=c["dtype"])

    def forward(self) -> tuple[Tensor, Tensor]:
        total = self.x.to(torch.float32) + self.x2.to(torch.float32)
        return self.norm(total), total.to(self.x.dtype)


class TorchRmsNorm(Program):
    includes_forward = True
    keeps = frozenset({"full"})

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["S"], c["B"], x, dtype=torch.bfloat16)
        self.norm = nn.RMSNorm(x, dtype=torch.bfloat16)

    def forward(self) -> Tensor:
        return self.norm(self.x)

    def loss(self, y: Tensor) -> Tensor:
        return y.sum()


class Rope(Program):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        tokens, hidden = (x, c["hidden_size"]) if "hidden_size" in c else (c["seq_len"], x)
        width = hidden // c["num_q_heads"]
        self.x = self.leaf(1, tokens, c["num_q_heads"], width, dtype=c["dtype"])
        self.x2 = self.leaf(1, tokens, c["num_kv_heads"], width, dtype=c["dtype"])
        self.put("cos", torch.zeros(1, tokens, width, dtype=c["dtype"]))
        self.put("sin", torch.zeros(1, tokens, width, dtype=c["dtype"]))

    def forward(self) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos.unsqueeze(1), self.sin.unsqueeze(1)
        q, k = self.x.transpose(1, 2), self.x2.transpose(1, 2)
        return q * cos + _half(q) * sin, k * cos + _half(k) * sin


def _half(x: Tensor) -> Tensor:
    middle = x.shape[-1] // 2
    return torch.cat((-x[..., middle:], x[..., :middle]), dim=-1)


class ComplexRope(Rope):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__(x, c)
        self.put("turns", torch.zeros(1, self.x.shape[1], 1, self.x.shape[-1] // 2, dtype=torch.complex64))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self._turned(self.x), self._turned(self.x2)

    def _turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns).flatten(3).type_as(x)


class Mlp(Program):
    draws = True

    def __init__(self, x: int, c: Config, activation: Any = F.silu) -> None:
        super().__init__()
        h, i, dtype = c["hidden_size"], c["intermediate_size"], c["dtype"]
        self.x = self.leaf(c.get("B") or c["bsz"], x, h, dtype=dtype)
        self.gate, self.up = (nn.Linear(h, i, bias=False, dtype=dtype) for _ in range(2))
        self.down = nn.Linear(i, h, bias=False, dtype=dtype)
        self.activation = activation

    def forward(self) -> Tensor:
        return self.down(self.activation(self.gate(self.x)) * self.up(self.x))


class Geglu(Mlp):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__(x, c, lambda y: F.gelu(y, approximate="tanh"))


class HalfSwiglu(Program):
    includes_forward = True

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["S"], c["B"], 2 * x, dtype=torch.bfloat16)

    def forward(self) -> Tensor:
        gate, up = torch.chunk(self.x, 2, -1)
        return F.silu(gate) * up


class Softmax(Program):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["M"], x, dtype=c["dtype"])

    def forward(self) -> Tensor:
        return F.softmax(self.x, -1)


class ReluSquared(Softmax):
    def forward(self) -> Tensor:
        return torch.square(F.relu(self.x))


class Sparsemax(Program):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["B"] * c["T"], x, dtype=c["dtype"])

    def forward(self) -> Tensor:
        ranked, _ = torch.sort(self.x, dim=-1, descending=True)
        total = torch.cumsum(ranked, -1)
        places = torch.arange(1, self.x.shape[-1] + 1, dtype=self.x.dtype, device=self.x.device).view(1, -1)
        support = 1 + places * ranked > total
        k = support.sum(-1, keepdim=True).clamp(min=1)
        tau = ((ranked * support).sum(-1, keepdim=True) - 1) / k
        return torch.clamp(self.x - tau, min=0)


class GroupNorm(Program):
    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["M"], x, c["H"], dtype=c["dtype"])
        self.norm = nn.GroupNorm(x // c["channels_per_group"], x)

    def forward(self) -> Tensor:
        return self.norm(self.x)


class Divergence(Program):
    """A loss of two distributions, whose first comes out of a softmax that the backward pass goes through."""

    keeps = frozenset({"full", "backward"})
    softmax = staticmethod(F.log_softmax)
    target_softmax = softmax

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        rows, width = (x, c["vocab_size"]) if "vocab_size" in c else (c["B"] * c["T"], x)
        self.x = self.leaf(rows, width)
        self.put("target", self.target_softmax(torch.randn(rows, width), -1))

    def prepare(self) -> Tensor:
        """What is made before the timed region."""
        return self.softmax(self.x, -1)

    def forward(self, p: Tensor) -> Tensor:
        return F.kl_div(p, self.target, reduction="batchmean")


class Tvd(Divergence):
    softmax = staticmethod(F.softmax)
    target_softmax = softmax

    def forward(self, p: Tensor) -> Tensor:
        return torch.sum(torch.abs(p - self.target) / 2.0) / p.shape[0]


class KlDiv(Divergence):
    target_softmax = staticmethod(F.softmax)


class Jsd(Divergence):
    def forward(self, p: Tensor) -> Tensor:
        return _jsd(p, self.target)


def _jsd(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.float(), q.float()
    middle = torch.lerp(torch.exp(p), torch.exp(q), 0.5)
    one = F.kl_div(torch.log(middle), q, reduction="none", log_target=True).sum(-1)
    other = F.kl_div(torch.log(middle), p, reduction="none", log_target=True).sum(-1)
    return ((0.5 * one + 0.5 * other) / p.shape[0]).sum()


class LinearCrossEntropy(Program):
    keeps = frozenset({"full"})

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(x, c["H"], dtype=c["dtype"])
        self.head = nn.Linear(c["H"], c["V"], bias=False, dtype=c["dtype"])
        self.put("labels", torch.zeros(x, dtype=torch.int64))

    def forward(self) -> Tensor:
        return F.cross_entropy(self.head(self.x), self.labels)


class LinearJsd(Program):
    keeps = frozenset({"full"})

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(x, c["H"], dtype=c["dtype"])
        self.put("teacher_x", torch.randn(x, c["H"], dtype=c["dtype"]))
        self.student, self.teacher = (nn.Linear(c["H"], c["V"], bias=False, dtype=c["dtype"]) for _ in range(2))

    def forward(self) -> Tensor:
        student, teacher = self.student(self.x), self.teacher(self.teacher_x)
        return _jsd(torch.log_softmax(student / 1.0, -1), torch.log_softmax(teacher / 1.0, -1)).to(torch.bfloat16)


class MultiTokenAttention(Program):
    waits = True

    def __init__(self, x: int, c: Config) -> None:
        super().__init__()
        self.x = self.leaf(c["B"], c["C_in"], x, x, dtype=c["dtype"])
        k = c["K"]
        self.conv = nn.Conv2d(c["C_in"], c["C_out"], k, padding=k // 2, dtype=c["dtype"])

    def forward(self) -> Tensor:
        length = self.x.shape[-1]
        mask = torch.tril(torch.ones(length, length, dtype=torch.bool, device=self.x.device)).view(1, 1, length, length)
        least, zero = (torch.tensor(y, device=self.x.device, dtype=self.x.dtype) for y in (-1e9, 0.0))
        scores = self.x.masked_fill(~mask, least)
        return self.conv(F.softmax(scores, -1)).masked_fill(~mask, zero)


PROGRAMS: dict[str, Any] = {
    "cross_entropy": CrossEntropy,
    "embedding": Embedding,
    "layer_norm": LayerNorm,
    "rms_norm": RmsNorm,
    "fused_add_rms_norm": AddRmsNorm,
    "megatron_rms_norm": TorchRmsNorm,
    "rope": Rope,
    "llama4_rope": ComplexRope,
    "swiglu": Mlp,
    "geglu": Geglu,
    "tiled_swiglu": Mlp,
    "tiled_geglu": Geglu,
    "megatron_swiglu": HalfSwiglu,
    "softmax": Softmax,
    "relu_squared": ReluSquared,
    "sparsemax": Sparsemax,
    "group_norm": GroupNorm,
    "tvd": Tvd,
    "kl_div": KlDiv,
    "jsd": Jsd,
    "fused_linear_cross_entropy": LinearCrossEntropy,
    "fused_linear_jsd": LinearJsd,
    "multi_token_attention": MultiTokenAttention,
}
"""By the name of the published kernel. The others are loops in Python, need a framework, or read values."""
