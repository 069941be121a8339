"""The models, strategies and combinations that `sharding_rows` runs: each way as `--set`, `{}` where GPUs are counted.

GPT-2 XL has 25 heads, which no power of two divides: it is split over 5 ranks. The Llama shape has 8 of keys and
values: at most 8 ranks share a matrix, and 64 GPUs are 8 groups of them, which is a combination. Of the mixture of
experts all 64 experts lie on 8 or 32 ranks; replicas of its 16B parameters fit with few buffers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dnnmem.profilers.request import Request

SAMPLE = str(Path(__file__).parents[1] / "sample_models" / "gpt.py")
_XL = {"layers": "48", "width": "1600", "heads": "25", "context": "1024"}
_LLAMA_8B = {
    "layers": "32", "width": "4096", "heads": "32", "kv_heads": "8", "ffn": "14336", "vocab": "128256",
    "context": "2048", "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": "false", "tied": "false",
    "dtype": "bfloat16",
}  # fmt: skip
XL, LLAMA, MOE = "GPT-2 XL", "Llama-3-8B", "DeepSeek-V2-Lite"
MODELS = {
    XL: (Request(target=SAMPLE, batch_size=1, seq_len=1024, args=_XL), "h100-sxm-80gb"),
    LLAMA: (Request(target=SAMPLE, batch_size=1, seq_len=2048, args=_LLAMA_8B), "h200-sxm-141gb"),
    MOE: (Request(target="hf:deepseek-v2-lite", batch_size=1, seq_len=2048), "h200-sxm-141gb"),
}
"""What is trained, and on which GPU."""

_AMP, _FULL, _MIXED = (
    "precision.compute=bf16_amp",
    "remat.policy=full",
    "precision.param=float32 precision.reduce=float32",
)
_SEQUENCE = "tensor.sequence_parallel=true tensor.keep_gathered=true tensor.loss_parallel=true"
_DDP, _ZERO1 = "mesh.dp_replicate={} sharding.strategy=ddp", "mesh.dp_shard={} sharding.strategy=zero1"
_ZERO2, _FSDP = "mesh.dp_shard={} sharding.strategy=zero2", "mesh.dp_shard={} sharding.strategy=zero3"
_HSDP = "mesh.dp_replicate=2 mesh.dp_shard={half} sharding.strategy=zero3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to train."""

    name: str
    """As the table has it."""
    model: str
    """Key of `MODELS`."""
    settings: str
    """What `--set` gets, with `{}` for the number of GPUs, `{half}` for half of it."""
    gpus: tuple[int, ...]
    """Numbers of GPUs."""
    combined: bool = False
    """True for several strategies at once."""

    def changes(self, gpus: int) -> tuple[str, ...]:
        """The settings for so many GPUs."""
        return tuple(self.settings.format(gpus, half=gpus // 2).split())


def _alone() -> list[Way]:
    found = []
    for model, whole, parts in ((XL, _AMP, _AMP), (LLAMA, _FULL, f"{_MIXED} {_FULL}")):
        for name, way, more in (
            ("DDP", _DDP, whole), ("DDP, views of buckets", f"{_DDP} sharding.bucket_views=true", whole),
            ("ZeRO-1", _ZERO1, whole), ("ZeRO-2", _ZERO2, parts), ("FSDP2", _FSDP, parts),
            ("FSDP2, two ahead", f"{_FSDP} sharding.prefetch=2", parts), ("HSDP", _HSDP, parts),
        ):  # fmt: skip
            found.append(Way(name=name, model=model, settings=f"{way} {more}", gpus=(2, 8, 64)))
    tensor, llama = "mesh.tp={}", (2, 8)
    found.append(Way(name="TP", model=XL, settings=tensor, gpus=(5,)))
    found.append(Way(name="TP", model=LLAMA, settings=tensor, gpus=llama))
    found.append(Way(name="TP, sequence and loss", model=LLAMA, settings=f"{tensor} {_SEQUENCE}", gpus=llama))
    tight = f"sharding.bucket_views=true optimizer.kernel=fused {_FULL}"
    for name, gpus, way in (
        ("DDP, views of buckets", (8,), f"{_DDP} {tight}"), ("ZeRO-1", (8,), f"{_ZERO1} {tight}"),
        ("ZeRO-2", (8,), _ZERO2), ("FSDP2", (2, 8, 64), _FSDP),
        ("EP", (2,), "mesh.dp_shard={} mesh.ep=2 sharding.strategy=zero3"),
        ("EP", (8,), "mesh.dp_shard={} mesh.ep=8 sharding.strategy=zero3"),
        ("EP", (64,), "mesh.dp_shard={} mesh.ep=32 sharding.strategy=zero3"),
        ("CP", (2, 8, 64), f"mesh.cp={{}} context.method=ring sharding.strategy=ddp {tight}"),
        ("CP, Ulysses", (8,), f"mesh.cp={{}} context.method=ulysses sharding.strategy=ddp {tight}"),
    ):  # fmt: skip
        found.append(Way(name=name, model=MOE, settings=way, gpus=gpus))
    return found


_COMBINED = (
    (LLAMA, 64, f"mesh.tp=8 {_SEQUENCE} mesh.dp_shard=8 sharding.strategy=zero3 {_MIXED} {_FULL}"),
    (LLAMA, 8, f"mesh.tp=2 {_SEQUENCE} mesh.dp_shard=4 sharding.strategy=zero3"),
    (LLAMA, 16, f"mesh.tp=4 {_SEQUENCE} mesh.dp_replicate=2 mesh.dp_shard=2 sharding.strategy=zero3 {_MIXED} {_FULL}"),
    (LLAMA, 64, (f"mesh.tp=8 {_SEQUENCE} mesh.dp_replicate=2 mesh.dp_shard=4 sharding.strategy=zero3 {_MIXED} "
                "remat.policy=selective")),
    (LLAMA, 64, f"mesh.tp=8 mesh.dp_shard=8 sharding.strategy=zero3 {_MIXED} batch.accumulation=4"),
    (LLAMA, 64, (f"mesh.tp=8 {_SEQUENCE} mesh.dp_shard=8 sharding.strategy=zero3 sharding.split_root=true "
                f"sharding.prefetch=1 {_MIXED} {_FULL} batch.accumulation=2")),
    (LLAMA, 16, f"mesh.tp=8 {_SEQUENCE} mesh.dp_replicate=2 sharding.strategy=ddp {_FULL}"),
    (LLAMA, 64, f"mesh.tp=8 {_SEQUENCE} mesh.dp_shard=8 sharding.strategy=zero1 sharding.bucket_views=true {_FULL}"),
    (LLAMA, 16, (f"mesh.tp=4 {_SEQUENCE} mesh.dp_shard=4 sharding.strategy=zero3 {_MIXED} {_FULL} "
                "offload.optimizer=true")),
    (LLAMA, 16, (f"mesh.tp=4 {_SEQUENCE} mesh.dp_shard=4 sharding.strategy=zero3 {_MIXED} "
                "offload.activations=every offload.every=2")),
    (LLAMA, 16, ("mesh.tp=8 mesh.dp_replicate=2 sharding.strategy=ddp gradients.compression=bfloat16 "
                f"{_FULL} precision.param=float32")),
    (LLAMA, 16, f"{_FSDP} {_MIXED} {_FULL} offload.optimizer=true batch.accumulation=2"),
    (LLAMA, 8, f"{_FSDP} {_MIXED} offload.activations=all"),
    (LLAMA, 8, f"{_HSDP} {_MIXED} remat.policy=every remat.every=2 batch.accumulation=2"),
    (LLAMA, 8, f"{_ZERO2} {_MIXED} {_FULL} batch.accumulation=2"),
    (LLAMA, 16, f"{_FSDP} {_MIXED} {_FULL} offload.parameters=true offload.optimizer=true"),
    (XL, 8, f"{_DDP} {_AMP} {_FULL} gradients.compression=bfloat16"),
    (XL, 64, f"{_DDP} {_AMP} {_FULL} gradients.compression=powersgd gradients.rank=4"),
    (XL, 8, f"{_DDP} {_AMP} sharding.bucket_views=true batch.accumulation=4"),
    (XL, 8, f"{_ZERO1} {_AMP} {_FULL} offload.optimizer=true"),
    (XL, 64, f"{_HSDP} {_AMP} {_FULL} batch.accumulation=2"),
    (XL, 8, f"{_FSDP} {_AMP} offload.activations=all optimizer.kernel=fused"),
    (XL, 20, (f"mesh.tp=5 mesh.dp_shard=4 sharding.strategy=zero3 precision.compute=bfloat16 {_MIXED} "
             "remat.policy=selective")),
    (XL, 20, "mesh.tp=5 mesh.dp_replicate=4 sharding.strategy=ddp batch.accumulation=2"),
    (MOE, 16, "mesh.dp_shard=8 mesh.ep=8 mesh.cp=2 sharding.strategy=zero3"),
    (MOE, 64, f"mesh.dp_shard=8 mesh.ep=8 mesh.cp=8 context.method=ulysses sharding.strategy=zero3 {_FULL}"),
    (MOE, 16, f"mesh.dp_replicate=2 mesh.dp_shard=8 mesh.ep=8 sharding.strategy=zero3 {_FULL} batch.accumulation=2"),
    (MOE, 8, f"mesh.dp_shard=8 mesh.ep=4 sharding.strategy=zero3 offload.optimizer=true {_FULL}"),
    (MOE, 8, ("mesh.dp_shard=8 mesh.ep=8 sharding.strategy=zero3 experts.capacity=1.25 precision.param=float32 "
             "precision.reduce=float32 precision.compute=bfloat16")),
    (MOE, 32, "mesh.dp_shard=16 mesh.ep=8 mesh.pp=2 sharding.strategy=zero3 batch.accumulation=4"),
)  # fmt: skip

WAYS = [
    *_alone(),
    *(Way(name=f"{n}", model=model, settings=settings, gpus=(gpus,), combined=True)
      for n, (model, gpus, settings) in enumerate(_COMBINED, 1)),
]  # fmt: skip
"""All of them."""
