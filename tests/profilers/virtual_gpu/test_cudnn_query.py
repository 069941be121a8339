"""The real cuDNN, asked for workspaces of GPUs that are not here: known answers, all convolutions, refusals."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import pytest

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.build import build
from dnnmem.profilers.virtual_gpu.cudnn_query import QuestionError, ask, device_text, load_cudnn
from dnnmem.profilers.virtual_gpu.cudnn_service import find_cudnn
from dnnmem.profilers.virtual_gpu.installed import find_torch
from tests.profilers.virtual_gpu.convolutions import (
    BACKWARD_DATA,
    BACKWARD_FILTER,
    BFLOAT16,
    FALLBACK,
    FLOAT,
    FORWARD,
    HALF,
    convolution,
)

DATA = Path(__file__).parent / "data" / "cudnn_9_24.csv"
OPERATIONS = {"forward": FORWARD, "data": BACKWARD_DATA, "filter": BACKWARD_FILTER}
DTYPES = {"float32": FLOAT, "bfloat16": BFLOAT16}
COMPILED_AT_RUN_TIME = 1


@pytest.fixture(scope="module")
def cudnn(cache):
    """The installed one; skips where it cannot be asked."""
    try:
        asked = find_cudnn(find_torch())
    except UnsupportedError as error:
        pytest.skip(error.message)
    return load_cudnn(asked.library, [build(cache)[0] / "libcuda.so.1"])


@pytest.fixture(scope="module")
def h100():
    return device_text(find_device("h100"))


def rows():
    with DATA.open(encoding="utf-8") as file:
        return list(csv.DictReader(itertools.islice(file, 1, None)))


@pytest.mark.parametrize("gpu", ["a100-80gb", "h100-sxm-80gb", "rtx-3060-12gb"])
def test_the_answers_of_9_24_are_known(cudnn, gpu):
    # GIVEN the answers of one version, kept in a file
    if cudnn.version != 92400:
        pytest.skip(f"cuDNN {cudnn.version} may answer otherwise")
    kept = [row for row in rows() if row["gpu"] == gpu]
    # WHEN that version is asked again
    found = {}
    for row in kept:
        channels, kernel, pixels = (int(row[name]) for name in ("channels", "kernel", "pixels"))
        question = convolution(
            OPERATIONS[row["operation"]],
            [32, channels, pixels, pixels],
            [channels, channels, kernel, kernel],
            padding=kernel // 2,
            dtype=DTYPES[row["dtype"]],
            channels_last=row["channels_last"] == "1",
        )
        best = ask(cudnn, question, device_text(find_device(gpu)))[0]
        found[tuple(row.values())[:7]] = (best.number, best.workspace_bytes)
    # THEN it says the same
    assert len(found) == 36
    assert found == {tuple(row.values())[:7]: (int(row["engine"]), int(row["workspace_bytes"])) for row in kept}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ([8, 16, 1, 64], [32, 16, 1, 5], {}),  # one axis, as torch writes it
        ([8, 16, 28, 28], [32, 16, 3, 3], {"padding": 1, "dtype": HALF}),
        ([2, 16, 9, 9, 9], [32, 16, 3, 3, 3], {"padding": 1}),
        ([8, 32, 28, 28], [32, 1, 3, 3], {"padding": 1}),  # each channel for itself
        ([8, 32, 28, 28], [64, 8, 3, 3], {"padding": 1, "stride": 2, "channels_last": True}),
        ([8, 16, 28, 28], [32, 16, 3, 3], {"dilation": 2, "dtype": BFLOAT16}),
        ([8, 16, 28, 28], [32, 16, 3, 3], {"mode": FALLBACK}),
    ],
    ids=["1d", "half", "3d", "depthwise", "groups", "dilated", "fallback"],
)
def test_each_kind_of_convolution_is_answered(cudnn, h100, operation, x, w, options):
    # GIVEN a convolution  WHEN cuDNN is asked
    engines = ask(cudnn, convolution(operation, x, w, **options), h100)
    # THEN it offers engines, and one of them works
    assert any(engine.workspace_bytes >= 0 for engine in engines)


def test_engines_that_are_compiled_at_run_time_are_offered(cudnn, h100):
    # GIVEN a grouped convolution, for which such an engine is the best on an H100
    if cudnn.version < 92400:
        pytest.skip(f"cuDNN {cudnn.version} may answer otherwise")
    question = convolution(FORWARD, [32, 32, 112, 112], [32, 1, 3, 3], padding=1, dtype=BFLOAT16)
    # WHEN cuDNN is asked in a process that has a driver library  THEN it comes first
    assert ask(cudnn, question, h100)[0].behavior & COMPILED_AT_RUN_TIME


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"mode": 0},
        {"mode": 0, "graph": []},
        {"mode": 0, "graph": [[15, []]]},
        {"mode": 0, "graph": [[17, [[901, 1, [0]]]]]},
        {"mode": 0, "graph": [[15, [[801, 15, [7]]]]]},
        {"mode": 0, "graph": [["seventeen", []]]},
        [],
        "graph",
        None,
    ],
    ids=lambda question: json.dumps(question)[:40],
)
def test_what_is_no_question_is_refused(cudnn, h100, question):
    with pytest.raises(QuestionError, match=r"no question|refuses"):
        ask(cudnn, question, h100)
    # and the next one is answered
    assert ask(cudnn, convolution(FORWARD, [1, 8, 4, 4], [8, 8, 3, 3]), h100)


def test_a_gpu_is_written_down_as_cudnn_does():
    facts = json.loads(device_text(find_device("rtx-4090")))
    assert (facts["deviceVer"], facts["multiProcessorCount"], facts["warpSize"]) == (890, 128, 32)
    assert facts["maxSharedMemoryPerBlockOptin"] == 99 * 1024


def test_what_is_no_cudnn_is_refused(tmp_path):
    (tmp_path / "libcudnn.so.9").write_text("nothing")
    with pytest.raises(UnsupportedError, match="cannot be loaded"):
        load_cudnn(tmp_path / "libcudnn.so.9")
