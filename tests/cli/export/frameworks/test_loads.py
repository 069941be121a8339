"""Each fragment is read by the real library, on as many virtual GPUs as the plan names, where the library is there."""

import importlib.util
import os
from pathlib import Path

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.cli.export.frameworks import FRAMEWORKS
from dnnmem.cli.export.frameworks.ask import Ask
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.profilers.ranks import ScriptRun, run_script
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.cli.export.frameworks.test_frameworks import SHARDED

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
NEEDS = {"accelerate": "accelerate", "deepspeed": "deepspeed", "lightning": "lightning", "hf-trainer": "accelerate"}
SCRIPT = Path(__file__).with_name("loads.py")


@pytest.mark.parametrize("name", NEEDS)
def test_the_library_reads_it(name, tmp_path):
    if importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    # GIVEN a plan for 2 x 8 GPUs, exported
    made = FRAMEWORKS[name](Ask(plan=change(Plan(), SHARDED), blocks=("Block",)))
    path = tmp_path / "fragment"
    path.write_text(made.text, "utf-8")
    # WHEN rank 0 of 16 reads it
    request = ScriptRequest(script=str(SCRIPT), arguments=(name, str(path)), world_size=16)
    job = ScriptRun(request=request, gpu=find_device("h100"), ranks=(0,), world_size=16)
    [ran] = run_script(job, dict(os.environ), cache=cache_folder(os.environ))
    # THEN it finds in it what the plan says
    assert (ran.outcome, ran.message) == ("ran", "")
