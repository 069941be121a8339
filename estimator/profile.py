"""What one training step needs, in the form that people and files get: `dnnmem profile` is this and its rendering.

The stack adds up by construction: `total_bytes` is the sum of the parts that are known, and a part that is not known is
None, never 0. Layer rows hold a module's *own* bytes, flops and seconds, its children's left out, so rows add up too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dnnmem.estimator.timeline import Timeline

PARTS = (
    "param", "grad", "optimizer", "activation", "temp", "input", "buffer", "comm", "unknown",
    "workspace", "fragmentation", "context",
)  # fmt: skip
"""The stack from bottom to top: the kinds of a trace, then what lies outside the tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One module's own share of the step, without its children's. None = not known."""

    module: str
    """Dotted path; empty for the root, `<loss>` for code outside modules, `<optimizer>` for the update."""
    type: str
    """Class name."""
    source: str = ""
    """Where the class is defined."""
    param_bytes: int = 0
    """Parameters; a shared one counts in the first module that holds it."""
    grad_bytes: int = 0
    """Gradients of its parameters."""
    optimizer_bytes: int = 0
    """Optimizer states of its parameters on the device (step counters that stay on the host are left out)."""
    activation_bytes: int = 0
    """What its forward made and autograd keeps for backward, at the moment the step keeps most."""
    temp_bytes: int = 0
    """Most temporary bytes its ops hold at once."""
    peak_bytes: int = 0
    """Its bytes among those alive at the peak of the step."""
    forward_flops: int = 0
    """Matrix products, convolutions and attention; a multiply-add is two."""
    backward_flops: int = 0
    """The same in backward, recomputation included."""
    forward_seconds: float | None = None
    """Measured."""
    backward_seconds: float | None = None
    """Measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """A storage, or several alike, alive at the peak."""

    nbytes: int
    """Bytes, all of them together."""
    count: int
    """How many storages."""
    kind: str
    """`param`, `activation`, ..."""
    module: str
    """Dotted path of the owner."""
    name: str
    """Parameter name, or the op that made it."""
    shape: tuple[int, ...]
    """Shape of one."""
    dtype: str
    """Element type."""
    source: str = ""
    """User's line that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The moment the step needs most."""

    allocated_bytes: int
    """Bytes in live blocks; from a run that nothing observed, where the device has one."""
    reserved_bytes: int | None
    """What the caching allocator holds, None without one."""
    phase: str
    """`forward`, `backward` or `step`."""
    module: str
    """Dotted path."""
    op: str
    """Operator."""
    source: str
    """User's line, `file:line`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A change that would lower the peak, and by how much, simulated."""

    name: str
    """`expandable_segments`, `fused_optimizer`, ..."""
    saves_bytes: int
    """Reserved bytes at the peak, now less then."""
    text: str
    """What is the matter, and what to do, in a sentence or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a device says of the step beyond its trace; None = it cannot tell."""

    allocated_bytes: int | None = None
    """Peak of live bytes in a run without a recorder."""
    requested_bytes: int | None = None
    """The same before the allocator rounds each block up; None where it does not round."""
    reserved_bytes: int | None = None
    """Peak of bytes held by the caching allocator in that run."""
    step_seconds: float | None = None
    """Median wall time of a step without a recorder."""
    context_bytes: int | None = None
    """Memory in use on the GPU that the allocator does not hold: CUDA context and library buffers."""
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    """Whatever else was read: clocks, temperature, other processes' bytes, repeats."""
    growth_bytes: int = 0
    """Bytes alive after the step beyond those before it: a leak if it repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A step's price."""

    target: str
    """What the user named."""
    device: str
    """`cpu`, `fake`, `virtual` or `cuda`."""
    gpu: str | None
    """GPU that was used or assumed."""
    versions: Mapping[str, str]
    """`dnnmem`, `torch`, `python`, ..."""
    batch: Mapping[str, int | str]
    """`batch_size`, ..."""
    peak: Peak
    """The moment that decides."""
    parts: Mapping[str, int | None]
    """Bytes at the peak for each of `PARTS`."""
    total_bytes: int
    """Sum of the known parts."""
    usable_bytes: int | None
    """What the GPU offers, None without one."""
    fits: bool | None
    """`total_bytes <= usable_bytes`, None without a GPU."""
    step_seconds: float | None
    """Measured."""
    layers: tuple[Layer, ...]
    """One row a module that owns or does something, in definition order."""
    alive: tuple[Alive, ...]
    """What is alive at the peak, largest first."""
    timeline: Timeline
    """Bytes by kind over the step."""
    phases: tuple[tuple[str, int], ...] = ()
    """Phases in the order they run, each with the index of its first entry in `timeline`; empty if not known."""
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    """What else the device said."""
    notes: tuple[str, ...] = ()
    """Assumptions, extrapolations and warnings, in sentences."""
    advice: tuple[Advice, ...] = ()
    """What would lower the peak, most first."""
