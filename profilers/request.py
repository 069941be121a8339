"""What a person asked to be profiled, as data that crosses the process boundary: parent writes, child reads.

Nothing here imports torch, so that the command line can check a request before it starts anything heavy. The numbers
are checked on creation; whether the target exists is found out by `target.resolve`.

>>> request = Request(target="model.py", args={"width": "64"}, batch_size=8)
>>> Request.from_json(request.to_json()) == request
True
>>> Request(target="model.py", batch_size=0)
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: --batch is 0; a batch has at least 1 sample
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dnnmem.estimator.errors import InternalError, UsageError

STEPS = {"fake": 2, "cpu": 3, "virtual": 3, "cuda": 3}
"""Steps by device. One more where memory or times are real: the second step may still warm something up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of `dnnmem profile`. Raises `UsageError` for numbers that no step can have."""

    target: str
    """What to train: `model.py`, `model.py:symbol`, `package.mod:symbol`, `torchvision:...`, `timm:...`, `hf:...`."""
    args: Mapping[str, str] = field(default_factory=dict)
    """`--arg name=value`, unconverted."""
    batch_size: int | None = None
    """`--batch`, in samples; None leaves it to the target's own default, if it has one."""
    seq_len: int | None = None
    """`--seq`, in tokens; None if the target has no sequence."""
    inputs: tuple[str, ...] = ()
    """`--input SHAPE:DTYPE` or `--input name=SHAPE:DTYPE`, as written."""
    optimizer: str = "adamw"
    """Optimizer for targets that bring none of their own; `sgd:momentum=0.9` sets its options."""
    device: str = "auto"
    """Where to run the step: `auto`, `cpu`, `fake`, `virtual` or `cuda`."""
    gpu: str | None = None
    """Name in `specs/` of the GPU to report against, or None."""
    gpu_file: str | None = None
    """The user's own TOML file that describes `gpu`, absolute; None if it is one of `specs/`."""
    steps: int | None = None
    """Steps to run, 2 or more; the last one is reported, since optimizer state appears in the first. None: `STEPS`."""
    seed: int = 0
    """Seed of weights and inputs."""
    repeats: int = 5
    """Timed repeats of the step on devices with a clock; the median counts."""
    blocks: int | None = None
    """Record so many of the model's equal blocks only, 3 or more, and say how many there are; None = all."""
    compute: str | None = None
    """What the model is made to compute in before it is recorded, as `Precision.compute` has it; None = as it is."""
    extrapolate: bool = True
    """Whether small real runs on a CPU stand for a fake run that depends on values; else that is an error."""
    batch_divisor: int = 1
    """Take the target's batch size by this, at least 1: for those that know their own."""

    def __post_init__(self) -> None:
        """Check the numbers, so that every front door refuses the same ones with the same words."""
        _at_least("--batch", self.batch_size, 1, "a batch has at least 1 sample")
        _at_least("--seq", self.seq_len, 1, "a sequence has at least 1 token")
        _at_least("--steps", self.steps, 2, "optimizer state appears in the first step, so at least 2 are run")
        _at_least("--repeats", self.repeats, 1, "a time needs at least 1 repeat")
        _at_least("--blocks", self.blocks, 3, "the second of 3 is the pattern of all others")

    def to_json(self) -> str:
        """The request as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """The request that `to_json` wrote; raises `InternalError` for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            return cls(**{**fields, "inputs": tuple(fields.get("inputs", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise InternalError(f"a request could not be read back: {error}") from error


def parse_args(pairs: Iterable[str]) -> dict[str, str]:
    """Names and values of `--arg name=value` options; raises `UsageError` for one without a name or given twice.

    >>> parse_args(["width=64", "title=a=b"])
    {'width': '64', 'title': 'a=b'}
    """
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg {pair!r} is not name=value", hint="write --arg width=64")
        if name in parsed:
            raise UsageError(f"--arg {name} is given twice: {parsed[name]!r} and {value!r}", hint="give it once")
        parsed[name] = value
    return parsed


def _at_least(option: str, value: int | None, least: int, rule: str) -> None:
    if value is not None and value < least:
        raise UsageError(f"{option} is {value}; {rule}", hint=f"give {option} {least} or more")
