from __future__ import annotations

import io
import json

import pytest

from dnnmem.cli.app import run
from dnnmem.cli.batch_run import Batches
from dnnmem.cli.render.batch import batch_text
from dnnmem.estimator.batch_size import MOST, Point, knee, largest
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT

MODEL = str(ROOT / "sample_models" / "gpt.py")
SMALL = [w for pair in ("layers=2", "width=256", "heads=4", "vocab=1000", "context=128") for w in ("--arg", pair)]


def told(arguments):
    return run(arguments, stderr=(text := io.StringIO())), text.getvalue()


@pytest.mark.parametrize("step", [1, 7, 64])
@pytest.mark.parametrize("most", [0, 1, 63, 64, 1000, MOST])
def test_the_largest_multiple_that_fits_is_found_in_few_looks(most, step):
    # GIVEN a GPU that takes so many samples  WHEN the largest batch is looked for
    looks = []
    found = largest(lambda size: looks.append(size) or size <= most, step)
    # THEN it is the largest multiple of the step, found by doubling and halving
    assert found == most // step * step
    assert len(looks) <= 2 * 20 + 1


def test_the_knee_is_the_smallest_batch_with_nine_tenths_of_the_throughput():
    points = [
        Point(batch=n, reserved_bytes=n, step_seconds=1.0, samples_per_second=r) for n, r in ((1, 5), (8, 9), (64, 10))
    ]
    assert knee(points).batch == 8
    assert knee([]) is None


def test_where_nothing_fits_the_text_says_so():
    found = Batches(target="m.py", gpu="a10g", limit_bytes=1 << 30, largest=0, knee=None, points=(), confirmed="")
    assert "NOTHING FITS" in batch_text(found)


@pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
def test_the_largest_batch_runs_and_one_step_more_does_not(tmp_path, monkeypatch, capsys):
    # GIVEN a small model on a GPU of 24 GB
    monkeypatch.chdir(tmp_path)
    # WHEN its largest batch is asked for, in steps of one in twenty or so, and run
    arguments = ["batch", MODEL, "--gpu", "a10g", "--seq", "128", "--step", "128", *SMALL, "--json", "-", "-q"]
    assert told(arguments) == (0, "")
    found = json.loads(capsys.readouterr().out)
    # THEN it fits, it runs, and the next one runs out of memory
    assert found["largest"] % 128 == 0
    last = found["points"][-1]
    assert last["batch"] == found["largest"]
    assert last["reserved_bytes"] <= found["limit_bytes"]
    assert found["knee"] <= found["largest"]
    one, more = found["confirmed"].split("; ")
    assert one.startswith(f"batch {found['largest']}: ran")
    assert more.startswith(f"batch {found['largest'] + 128}: out of memory")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(["--step", "0"], "--step is 0"), (["--headroom", "lots"], "--headroom"), (["--gpu", "b9"], "b9")],
)
def test_what_is_no_batch_is_refused_before_anything_runs(wrong, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, error = told(["batch", MODEL, "--gpu", "a10g", *wrong])
    assert code == 2
    assert words in error
