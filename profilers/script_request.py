"""One process of a training script, as data that crosses the process boundary: parent writes, child reads.

Nothing here imports torch: the script decides when that happens, since what it sets before counts.

>>> request = ScriptRequest(script="train.py", arguments=("--lr", "1e-3"), rank=1, world_size=8)
>>> ScriptRequest.from_json(request.to_json()) == request
True
>>> ScriptRequest(script="train.py", rank=8, world_size=8)
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: rank 8 is not one of 8 ranks; they count from 0
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dnnmem.estimator.errors import InternalError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRequest:
    """What one child process runs. Raises `UsageError` for numbers that no run can have."""

    script: str
    """Path of the script, or dotted name of the module."""
    is_module: bool = False
    """True for `python -m script`."""
    arguments: tuple[str, ...] = ()
    """What the script finds in `sys.argv[1:]`."""
    steps: int = 3
    """Training steps after which the run is ended."""
    rank: int | None = None
    """Rank of this process; None = the script is not started as one of several."""
    world_size: int = 1
    """Ranks of the job."""
    alone: bool = True
    """True if no other rank's process exists: whatever would come from one is made up (`script_groups.py`)."""
    record: bool = False
    """True to record the last step, operator by operator; its peaks are then not those of a plain run."""
    values: bool = True
    """True to keep the values of small tensors true on a virtual GPU (`gpu_values.py`)."""
    timeout_seconds: float | None = None
    """When the process gives up by itself; None = never."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.steps < 1:
            raise UsageError(f"--steps is {self.steps}; a run has at least 1 step", hint="give --steps 1 or more")
        if self.world_size < 1:
            raise UsageError(f"--gpus is {self.world_size}; a run needs at least 1", hint="give --gpus 1 or more")
        if self.rank is not None and not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"rank {self.rank} is not one of {self.world_size} ranks; they count from 0",
                hint=f"give --rank 0 to {self.world_size - 1}, first,last or all",
            )

    def to_json(self) -> str:
        """The request as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ScriptRequest:
        """The request that `to_json` wrote; raises `InternalError` for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            return cls(**{**fields, "arguments": tuple(fields.get("arguments", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise InternalError(f"a request could not be read back: {error}") from error
