"""Many plans of one small target, run on a virtual GPU one after the other, at the price of starting once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import to_json
from dnnmem.profilers.ranks import ScriptRun, run_script
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import QUIET
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.verify import STEPS

PROGRAM = Path(__file__).parent / "programs" / "many_plans.py"


def run_plans(request: Request, plans: Sequence[Plan], gpu: str) -> list[int | str]:
    """Bytes reserved at the peak of the last step of each plan, or why it did not run; as `verify` measures them."""
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        asked, planned = Path(name, "request.json"), Path(name, "plans.json")
        asked.write_text(replace(request, device="auto", steps=request.steps or STEPS).to_json(), "utf-8")
        planned.write_text(json.dumps([to_json(plan) for plan in plans]), "utf-8")
        script = ScriptRequest(script=str(PROGRAM), arguments=(str(asked), str(planned), name))
        lines: list[str] = []
        run_script(
            ScriptRun(request=script, gpu=find_device(gpu)), {**QUIET, **os.environ},
            cache=cache_folder(os.environ), on_output=lines.append,
        )  # fmt: skip
        return [_read(Path(name, str(number), "rank0.json"), lines) for number in range(len(plans))]


def run_ranks(request: Request, plan: Plan, ranks: Sequence[int], gpu: str) -> list[tuple[int, int]]:
    """Bytes allocated and reserved at the peak of the last step on each of several `ranks` of a plan, run at once."""
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        asked, planned = Path(name, "request.json"), Path(name, "plan.json")
        asked.write_text(request.to_json(), "utf-8")
        planned.write_text(json.dumps(to_json(plan)), "utf-8")
        script = ScriptRequest(
            script="dnnmem.profilers.planned", is_module=True, arguments=(str(asked), str(planned)),
            steps=request.steps or STEPS,
        )  # fmt: skip
        run = ScriptRun(request=script, gpu=find_device(gpu), ranks=tuple(ranks), world_size=plan.mesh.world_size)
        found = run_script(run, {**QUIET, **os.environ}, cache=cache_folder(os.environ), on_output=lambda _: None)
    for result in found:
        assert result.outcome == "ran", result.message
    peaks = [result.memory[0].steps[-1] for result in found]
    return [(peak.allocated_bytes, peak.reserved_bytes) for peak in peaks]


def _read(path: Path, lines: Sequence[str]) -> int | str:
    if not path.exists():
        return "\n".join(lines[-20:]) or "it died"
    found = json.loads(path.read_text("utf-8"))
    return int(found["reserved_bytes"]) if found["outcome"] == "ran" else str(found["message"])
