"""The result of `dnnmem run` as JSON, `dnnmem.run/1`: what each rank needed, and the recorded step as a profile.

Bytes are integers, what is not known is null. The models below are the format; the published JSON Schema
(`dnnmem/schemas/run-1.schema.json`) is generated from them. Keys may be added within version 1, none is removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dnnmem.cli.export.profile_json import Bytes, ProfileJson
from dnnmem.cli.export.profile_json import to_json as profile_to_json

if TYPE_CHECKING:
    from dnnmem.cli.commands.run_record import Profiles
    from dnnmem.profilers.ranks import ScriptRun
    from dnnmem.profilers.script_result import RankResult

SCHEMA: Literal["dnnmem.run/1"] = "dnnmem.run/1"
"""Name and version of the format."""

Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class StepPeakJson(_Part):
    """The most that one training step needed; the first one includes what came before it."""

    allocated_bytes: Bytes
    reserved_bytes: Bytes
    requested_bytes: Bytes


class DeviceMemoryJson(_Part):
    """The caching allocator of one GPU over the whole run."""

    device: Count
    name: str
    allocated_bytes: Bytes
    requested_bytes: Bytes
    reserved_bytes: Bytes
    segments: Count
    alloc_retries: Count
    out_of_memory_errors: Count
    outside_bytes: Annotated[Bytes | None, Field(description="context and NCCL together")]
    nccl_bytes: Bytes | None
    total_bytes: Bytes | None
    steps: list[StepPeakJson]


class OutOfMemoryJson(_Part):
    """The allocation that failed."""

    message: str
    device: Count
    asked_bytes: Bytes | None
    free_bytes: Bytes | None
    step: Annotated[int, Field(ge=1, description="counted from 1")]
    phase: Literal["setup", "forward", "backward", "step"]
    module: str
    source: str


class RankJson(_Part):
    """One process of the run."""

    rank: Count | None
    outcome: Literal["ran", "out_of_memory", "failed", "timed_out", "ended"]
    steps: Count
    stopped: Annotated[bool, Field(description="ended after its steps; false: the script came to its own end")]
    optimizers: dict[str, int]
    memory: list[DeviceMemoryJson]
    oom: OutOfMemoryJson | None
    message: str
    facts: Annotated[
        dict[str, float | int | str], Field(description="of cuDNN's workspaces, NCCL's buffers, bounded shapes")
    ]
    notes: list[str]
    profile: Annotated[ProfileJson | None, Field(description="its last step, recorded")] = None
    seconds: Annotated[float, Field(ge=0, description="wall time here; says nothing of the GPU")]


class RunJson(_Part):
    """What a training script needs."""

    schema_: Literal["dnnmem.run/1"] = Field(alias="schema")
    command: list[str]
    gpu: str
    world_size: Annotated[int, Field(ge=1)]
    usable_bytes: Bytes
    fits: Annotated[bool | None, Field(description="null: the script failed, so that nobody knows")]
    ranks: list[RankJson]
    profile: Annotated[ProfileJson | None, Field(description="that of the first rank that has one")]
    versions: dict[str, str]


def to_json(command: Sequence[str], run: ScriptRun, results: Sequence[RankResult], profiles: Profiles) -> str:
    """The run as indented JSON, a newline at its end."""
    outcomes = {result.outcome for result in results}
    as_json = {rank: json.loads(profile_to_json(profile)) for rank, profile in profiles.items()}
    plain: dict[str, Any] = {
        "schema": SCHEMA,
        "command": list(command),
        "gpu": run.gpu.name,
        "world_size": run.world_size,
        "usable_bytes": run.gpu.usable_bytes,
        "fits": False if "out_of_memory" in outcomes else True if outcomes == {"ran"} else None,
        "ranks": [{**asdict(result), "profile": as_json.get(result.rank)} for result in results],
        "profile": next(iter(as_json.values()), None),
        "versions": dict(results[0].versions),
    }
    return RunJson.model_validate(plain).model_dump_json(by_alias=True, indent=2) + "\n"


def json_schema() -> str:
    """The JSON Schema of the format, as the file that is published."""
    schema: dict[str, Any] = RunJson.model_json_schema(by_alias=True)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": SCHEMA}
    return json.dumps(dialect, indent=2) + "\n"
