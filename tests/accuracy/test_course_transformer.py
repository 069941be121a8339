"""A model of the kind whose histories were recorded on real GPUs, run on this one: the same allocations and frees.

On a machine without a GPU, `profilers/virtual_gpu/test_gpu_tests.py` runs this file on a virtual one.
"""

from __future__ import annotations

import gc

import pytest
import torch

from tests.accuracy.course_transformer import inference_history, training_history
from tests.accuracy.histories import FOLDER, read

pytestmark = pytest.mark.gpu

SIGNS = {"alloc": 1, "free_completed": -1}
RUNS = {
    "transformer_128_training": lambda: training_history(128),
    "transformer_512_inference": lambda: inference_history(512, torch.bfloat16),
}


@pytest.fixture(autouse=True)
def _empty_gpu():
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", RUNS)
def test_a_model_of_the_same_kind_has_the_history_of_a_real_gpu(name):
    # GIVEN what the allocator of a real GPU did during a step of 24 layers
    calls = read(FOLDER / f"{name}.json.gz").calls
    there = [call.nbytes * SIGNS[call.action] for call in calls if call.action in SIGNS]
    # WHEN a model with the same operators runs here
    here = RUNS[name]()
    # THEN every allocation and free has the same size, in the same order
    differing = [index for index, (a, b) in enumerate(zip(there, here, strict=False)) if a != b]
    assert (len(here), differing[:1]) == (len(there), [])
