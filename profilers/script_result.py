"""What one rank of a script's run needed, and how it ended; the child writes it as JSON, the parent reads it.

>>> result = RankResult(outcome="ran", steps=3, memory=(DeviceMemory(device=0, allocated_bytes=1024),))
>>> RankResult.from_json(result.to_json()) == result
True
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dnnmem.estimator.errors import InternalError

OUTCOMES = ("ran", "out_of_memory", "failed", "timed_out", "ended")
"""How a run ends. `ran`: it made its steps, or came to its own end; `ended`: another rank had failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPeak:
    """The most that one step needed; the first one includes all that came before it."""

    allocated_bytes: int
    """Bytes in live blocks."""
    reserved_bytes: int
    """Bytes in the caching allocator's segments."""
    requested_bytes: int = 0
    """Bytes as the program asked for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The caching allocator of one GPU, from the start of the process to its end; script's resets do not count."""

    device: int
    """Index of the GPU in this process."""
    name: str = ""
    """What the GPU calls itself."""
    allocated_bytes: int = 0
    """Peak of live blocks (`torch.cuda.max_memory_allocated`)."""
    requested_bytes: int = 0
    """The same as the program asked for them, before rounding."""
    reserved_bytes: int = 0
    """Peak of segments (`torch.cuda.max_memory_reserved`)."""
    segments: int = 0
    """Segments at their most."""
    alloc_retries: int = 0
    """How often the GPU had no room and the cache was emptied: each one stalls it."""
    out_of_memory_errors: int = 0
    """How often an allocation failed for good; the script may have gone on with less."""
    outside_bytes: int | None = None
    """Most in use at the end of a step or the run, not in the allocator: CUDA context and NCCL; None = not known."""
    nccl_bytes: int | None = None
    """What of it is NCCL's; None = not known."""
    total_bytes: int | None = None
    """What the GPU has."""
    steps: tuple[StepPeak, ...] = ()
    """One for each training step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """The allocation that failed."""

    message: str
    """What torch says; empty if the script caught the error and kept it to itself."""
    device: int = 0
    """GPU that had no room."""
    asked_bytes: int | None = None
    """Size of the allocation."""
    free_bytes: int | None = None
    """Free on the GPU then."""
    step: int = 1
    """Training step in which it happened, counted from 1."""
    phase: str = "setup"
    """`setup` before the first forward, `forward`, `backward` or `step`."""
    module: str = ""
    """Dotted path of the module that ran; empty where none did, or where it is not known."""
    source: str = ""
    """The user's line, `file:line`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """One process of a run."""

    outcome: str
    """A name of `OUTCOMES`."""
    rank: int | None = None
    """Rank in the job; None for a script that was not started as one of several."""
    world_size: int = 1
    """Ranks of the job."""
    steps: int = 0
    """Training steps done."""
    stopped: bool = False
    """True if the run was ended after its steps; False if the script came to its own end."""
    optimizers: Mapping[str, int] = field(default_factory=dict)
    """Steps by kind of optimizer; two of a kind have their steps added."""
    memory: tuple[DeviceMemory, ...] = ()
    """One for each GPU that the process used, by index."""
    oom: OutOfMemory | None = None
    """Set if the run ended with it."""
    message: str = ""
    """What a person should hear of a failure; with the script's own frames."""
    graphs: int = 0
    """Graphs that torch.compile made; a recorder sees none of their operators."""
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    """How certain the memory is that is not the tensors': cuDNN's workspaces, NCCL."""
    notes: tuple[str, ...] = ()
    """Assumptions, in sentences."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """`python`, `torch` and the other libraries that the script loaded."""
    seconds: float = 0.0
    """Wall time of the process on this machine; says nothing of the GPU."""

    @property
    def device(self) -> DeviceMemory | None:
        """The GPU that needed most; None if none was used."""
        return max(self.memory, key=lambda gpu: gpu.reserved_bytes, default=None)

    def to_json(self) -> str:
        """The result as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RankResult:
        """The result that `to_json` wrote; raises `InternalError` for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            memory = tuple(
                DeviceMemory(**{**gpu, "steps": tuple(StepPeak(**step) for step in gpu["steps"])})
                for gpu in fields.pop("memory")
            )
            oom = fields.pop("oom")
            fields["notes"] = tuple(fields["notes"])
            return cls(**fields, memory=memory, oom=OutOfMemory(**oom) if oom else None)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InternalError(f"a result could not be read back: {error}") from error
