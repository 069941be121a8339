"""A profile as JSON, `dnnmem.profile/1`: the form that other tools read, and the only one that stays stable.

Bytes are integers, times are seconds, what is not known is null. The models below are the format; the published JSON
Schema (`dnnmem/schemas/profile-1.schema.json`) is generated from them. Keys may be added within version 1, so a reader
ignores those it does not know; none is removed or changes its meaning.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.profile import PARTS, Advice, Alive, Layer, Peak, Profile
from dnnmem.estimator.timeline import Timeline
from dnnmem.estimator.trace import Kind

SCHEMA: Literal["dnnmem.profile/1"] = "dnnmem.profile/1"
"""Name and version of the format."""

POINTS = 500
"""Most entries of the downsampled timeline."""

Bytes = Annotated[int, Field(ge=0, description="bytes")]
Flops = Annotated[int, Field(ge=0, description="floating-point operations; a multiply-add is two")]
Seconds = Annotated[float, Field(ge=0, description="seconds")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PeakJson(_Part):
    """The moment the step needs most."""

    allocated_bytes: Bytes
    reserved_bytes: Bytes | None
    phase: str
    module: str
    op: str
    source: str


class PartsJson(_Part):
    """The stack at the peak; null = not known. The known ones sum to `total_bytes`."""

    param: Bytes | None
    grad: Bytes | None
    optimizer: Bytes | None
    activation: Bytes | None
    temp: Bytes | None
    input: Bytes | None
    buffer: Bytes | None
    comm: Bytes | None
    unknown: Bytes | None = None
    workspace: Bytes | None
    fragmentation: Bytes | None
    context: Bytes | None


class LayerJson(_Part):
    """One module's own share, without its children's."""

    module: str
    type: str
    source: str
    param_bytes: Bytes
    grad_bytes: Bytes
    optimizer_bytes: Bytes
    activation_bytes: Bytes
    temp_bytes: Bytes
    peak_bytes: Bytes
    forward_flops: Flops
    backward_flops: Flops
    forward_seconds: Seconds | None
    backward_seconds: Seconds | None


class AliveJson(_Part):
    """A storage, or several alike, alive at the peak."""

    nbytes: Bytes
    count: Annotated[int, Field(ge=1)]
    kind: str
    module: str
    name: str
    shape: list[int]
    dtype: str
    source: str


class TimelineJson(_Part):
    """Memory over the step, thinned out: each entry is the largest moment of the allocator events it stands for."""

    events: Annotated[int, Field(ge=0, description="allocator events of the whole step")]
    index: list[int]
    allocated_bytes: list[Bytes]
    reserved_bytes: list[Bytes] | None = None
    kinds: dict[str, list[Bytes]]
    phases: list[tuple[str, int]]


class AdviceJson(_Part):
    """A change that would lower the peak, and by how much, simulated."""

    name: str
    saves_bytes: int
    text: str


class ProfileJson(_Part):
    """What one training step needs."""

    schema_: Literal["dnnmem.profile/1"] = Field(alias="schema")
    target: str
    device: str
    gpu: str | None
    versions: dict[str, str]
    batch: dict[str, int | str]
    peak: PeakJson
    parts: PartsJson
    total_bytes: Bytes
    usable_bytes: Bytes | None
    fits: bool | None
    step_seconds: Seconds | None
    layers: list[LayerJson]
    alive: list[AliveJson]
    timeline: TimelineJson
    facts: dict[str, float | int | str]
    notes: list[str]
    advice: list[AdviceJson] = Field(default_factory=list)

    @model_validator(mode="after")
    def _adds_up(self) -> ProfileJson:
        known = sum(nbytes for nbytes in self.parts.model_dump().values() if nbytes is not None)
        if known != self.total_bytes:
            raise ValueError(f"the known parts sum to {known}, but total_bytes is {self.total_bytes}")
        return self


def to_json(profile: Profile) -> str:
    """The profile as indented JSON, a newline at its end; raises `ValueError` if it breaks the format's own rules."""
    plain = {name: getattr(profile, name) for name in ProfileJson.model_fields if name not in {"schema_", "timeline"}}
    plain |= {
        "schema": SCHEMA,
        "peak": asdict(profile.peak),
        "parts": {name: profile.parts.get(name) for name in PARTS},
        "layers": [asdict(layer) for layer in profile.layers],
        "alive": [{**asdict(item), "shape": list(item.shape)} for item in profile.alive],
        "timeline": _timeline(profile),
        "versions": dict(profile.versions),
        "batch": dict(profile.batch),
        "facts": dict(profile.facts),
        "notes": list(profile.notes),
        "advice": [asdict(advice) for advice in profile.advice],
    }
    return ProfileJson.model_validate(plain).model_dump_json(by_alias=True, indent=2) + "\n"


def from_json(path: Path) -> Profile:
    """The profile in a file of this format; its timeline has the entries that the file kept.

    Raises `UsageError` if the file is missing, damaged or of another format.
    """
    try:
        read = ProfileJson.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{path} is not a profile ({SCHEMA}): {where}: {first['msg']}",
            hint="write one with dnnmem profile --json FILE",
        ) from None
    plain = read.model_dump()
    curve = plain.pop("timeline")
    allocated = np.array(curve["allocated_bytes"], np.int64)
    kinds = {Kind(name): np.array(line, np.int64) for name, line in curve["kinds"].items() if name in set(Kind)}
    line = Timeline(
        op=np.full(len(allocated), -1, np.int32),
        kinds=kinds,
        allocated=allocated,
        peak=int(allocated.argmax()) if len(allocated) else 0,
        reserved=None if curve["reserved_bytes"] is None else np.array(curve["reserved_bytes"], np.int64),
    )
    plain |= {
        "peak": Peak(**plain["peak"]),
        "layers": tuple(Layer(**layer) for layer in plain["layers"]),
        "alive": tuple(Alive(**{**item, "shape": tuple(item["shape"])}) for item in plain["alive"]),
        "notes": tuple(plain["notes"]),
        "advice": tuple(Advice(**item) for item in plain["advice"]),
        "timeline": line,
    }
    del plain["schema_"]
    return Profile(**plain)


def json_schema() -> str:
    """The JSON Schema of the format, as the file that is published."""
    schema: dict[str, Any] = ProfileJson.model_json_schema(by_alias=True)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": SCHEMA}
    return json.dumps(dialect, indent=2) + "\n"


def _timeline(profile: Profile) -> dict[str, object]:
    curve = profile.timeline
    n = len(curve.allocated)
    edges = np.unique(np.linspace(0, n, min(n, POINTS) + 1).astype(int))
    index = [int(a + curve.allocated[a:b].argmax()) for a, b in pairwise(edges)]
    return {
        "events": n,
        "index": index,
        "allocated_bytes": curve.allocated[index].tolist(),
        "reserved_bytes": None if curve.reserved is None else curve.reserved[index].tolist(),
        "kinds": {kind.value: line[index].tolist() for kind, line in curve.kinds.items()},
        "phases": list(profile.phases),
    }
