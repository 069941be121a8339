"""What `--input SHAPE:DTYPE` means: tensors made of a shape, an element type and, for integers, the number of values.

    8,3,224,224          float32, normal noise; the first dimension is the batch
    B,3,224,224:bf16     B is --batch
    ids=B,S:int64:50257  keyword `ids` of forward, S is --seq, values in [0, 50257) (without the last part: zeros)
    B,S:bool             ones

>>> spec = parse_input("ids=B,S:int64:50257")
>>> make_inputs((spec,), batch_size=2, seq_len=8)["ids"].shape
torch.Size([2, 8])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.targets.arguments import as_dtype

HINT = "write --input 8,3,224,224:fp32, or with names: --input ids=B,S:int64:50257"

Inputs: TypeAlias = "dict[str, torch.Tensor] | tuple[torch.Tensor, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One `--input`, read."""

    name: str
    """Keyword of forward, or empty for the next position."""
    shape: tuple[int | str, ...]
    """Sizes; `B` stands for the batch size, `S` for the sequence length."""
    dtype: torch.dtype
    """Element type."""
    values: int
    """Integers are drawn below this; 0 makes them all zero."""

    def text(self) -> str:
        """The input as `parse_input` reads it."""
        shape = ",".join(map(str, self.shape))
        named = f"{self.name}={shape}" if self.name else shape
        return f"{named}:{str(self.dtype).removeprefix('torch.')}:{self.values}"


def parse_input(text: str) -> InputSpec:
    """The input that `text` describes; raises `UsageError` for anything that is not `[name=]SHAPE[:DTYPE[:VALUES]]`."""
    name, equals, rest = text.rpartition("=")
    fields = rest.split(":")
    if (equals and not name.isidentifier()) or len(fields) > 3:
        raise UsageError(f"--input {text!r} is not [name=]SHAPE[:DTYPE[:VALUES]]", hint=HINT)
    shape = tuple(_size(text, part.strip()) for part in fields[0].split(","))
    try:
        dtype = as_dtype(fields[1]) if len(fields) > 1 else torch.float32
    except ValueError as error:
        raise UsageError(f"--input {text!r}: {fields[1]!r} is no element type of torch", hint=HINT) from error
    values = fields[2] if len(fields) > 2 else "0"
    if not values.isdecimal():
        raise UsageError(f"--input {text!r}: {values!r} is no number of values", hint=HINT)
    assert isinstance(dtype, torch.dtype)  # noqa: S101  # as_dtype returns nothing else; for the type checker
    return InputSpec(name=name, shape=shape, dtype=dtype, values=int(values))


def check_inputs(specs: Sequence[InputSpec], *, batch_size: int | None, seq_len: int | None) -> int:
    """The batch size of the inputs; `UsageError` if they disagree with each other, `--batch` or `--seq`."""
    if len({bool(spec.name) for spec in specs}) > 1:
        raise UsageError("some --input have a name and some have none", hint="name all of them, or none")
    names = [spec.name for spec in specs if spec.name]
    if len(set(names)) < len(names):
        raise UsageError(f"--input names repeat: {', '.join(names)}", hint="give each name once")
    if seq_len is None and any("S" in spec.shape for spec in specs):
        raise UsageError("an --input has S for the sequence length, and --seq is not given", hint="give --seq 1024")
    if seq_len is not None and not any("S" in spec.shape for spec in specs):
        raise UsageError(f"--seq {seq_len} is given, but no --input has S in its shape", hint="write --input B,S:int64")
    first = specs[0].shape[0]
    if not isinstance(first, int):
        if batch_size is None:
            raise UsageError("an --input has B for the batch size, and --batch is not given", hint="give --batch 8")
        return batch_size
    if batch_size is not None and batch_size != first:
        raise UsageError(
            f"--batch is {batch_size}, but the first --input has {first} samples",
            hint="write B for the batch dimension: --input B,3,224,224:fp32",
        )
    return first


def with_batch_dimension(specs: Sequence[InputSpec], batch_size: int) -> tuple[InputSpec, ...]:
    """The inputs with `B` where the first dimension equals the batch size, so that they can be made at another."""
    return tuple(
        InputSpec(name=s.name, shape=("B", *s.shape[1:]), dtype=s.dtype, values=s.values)
        if s.shape[0] == batch_size
        else s
        for s in specs
    )


def make_inputs(specs: Sequence[InputSpec], *, batch_size: int, seq_len: int | None) -> Inputs:
    """The tensors, in a dict if they have names, else in a tuple."""
    sizes = {"B": batch_size, "S": seq_len}
    tensors = [
        _tensor(spec, [size if isinstance(size, int) else sizes[size] or 1 for size in spec.shape]) for spec in specs
    ]
    return {spec.name: t for spec, t in zip(specs, tensors, strict=True)} if specs[0].name else tuple(tensors)


def _tensor(spec: InputSpec, shape: list[int]) -> torch.Tensor:
    if spec.dtype == torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        return torch.randn(shape, dtype=spec.dtype)
    return (
        torch.randint(0, spec.values, shape, dtype=spec.dtype) if spec.values else torch.zeros(shape, dtype=spec.dtype)
    )


def _size(text: str, part: str) -> int | str:
    if part in {"B", "S"}:
        return part
    if not part.isdecimal() or int(part) < 1:
        raise UsageError(f"--input {text!r}: {part!r} is no size; sizes are 1 or more, B or S", hint=HINT)
    return int(part)
