"""What runs leave behind and need of a machine: a cache that others fill, no home, no room, another compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dnnmem.cli.app import run
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu import build as building
from dnnmem.profilers.virtual_gpu.build import build

DNNMEM = [sys.executable, "-m", "dnnmem"]
SCRIPT = """
import torch
model = torch.nn.Linear(8, 8).cuda()
optimizer = torch.optim.SGD(model.parameters())
model(torch.ones(2, 8, device="cuda")).sum().backward()
optimizer.step()
"""
MODEL = """
import torch
def make_model():
    return torch.nn.Linear(8, 8)
def make_batch(batch_size):
    return torch.ones(batch_size, 8)
def make_loss(output, batch):
    return output.sum()
"""
pytestmark = pytest.mark.usefixtures("cache")  # skips where there is no virtual GPU


@pytest.fixture(name="work")
def _work(tmp_path):
    """A folder with a script and a model."""
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def start(words, work, **changes):
    """dnnmem as its own process; a variable that is None is taken away."""
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    return subprocess.Popen(
        [*DNNMEM, *words], cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


RUN = ["run", "--no-layers", "--steps", "1", "--", "train.py"]
PROFILE = ["profile", "model.py", "--batch", "2", "--device", "virtual"]


def test_a_run_and_a_profile_begin_with_one_empty_cache(work, cache):
    # GIVEN an empty cache, whose name has what a shell or a linker could take apart
    place = work / "a cache, für zwei"
    # WHEN two commands need it at the same time
    both = [start(words, work, DNNMEM_CACHE=str(place)) for words in (RUN, PROFILE)]
    told = [process.communicate(timeout=300) for process in both]
    # THEN both end well, and one complete folder is left of the two builds
    assert [process.returncode for process in both] == [0, 0], told
    (left,) = (place / "virtual-gpu").iterdir()
    expected, _ = build(cache)
    assert {f.name for f in left.iterdir()} == {f.name for f in expected.iterdir()}


def test_no_home_is_no_hindrance_where_a_cache_is_named(work, cache):
    # GIVEN an environment without HOME  WHEN a script runs  THEN it ends well
    process = start(RUN, work, HOME=None, DNNMEM_CACHE=str(cache))
    assert process.wait(120) == 0, process.communicate()


def test_a_user_without_a_home_is_told_what_to_set(work, monkeypatch, capsys):
    # GIVEN a user without a home folder  WHEN nothing names a cache
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("DNNMEM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.chdir(work)
    # THEN
    assert run(RUN) == 4
    assert "DNNMEM_CACHE" in capsys.readouterr().err


def test_a_disk_without_room_gives_one_clear_error(work, cache):
    # GIVEN a process that can write no byte into any file, whatever TMPDIR says
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nfrom dnnmem.__main__ import main; main()"
    )
    environment = {**os.environ, "DNNMEM_CACHE": str(cache), "TMPDIR": str(work / "nowhere")}
    # WHEN a script is to run there
    done = subprocess.run(
        [sys.executable, "-c", code, *RUN], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    # THEN it is told, with the way out, and no fault of dnnmem
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("error:") == 1
    assert "could not be written" in done.stderr
    assert "TMPDIR" in done.stderr
    assert "fault of dnnmem" not in done.stderr


def test_a_build_without_room_anywhere_says_where_it_looked(tmp_path, monkeypatch):
    # GIVEN a compiler that finds no room, in the cache and in the temporary folder
    full = tmp_path / "cc"
    full.write_text('#!/bin/sh\necho "cannot write $0: No space left on device" >&2\nexit 1\n')
    full.chmod(0o755)
    monkeypatch.setattr(building, "find_compiler", lambda: (str(full),))
    monkeypatch.setattr(building.tempfile, "gettempdir", lambda: str(tmp_path))
    # WHEN THEN
    with pytest.raises(UnsupportedError, match="No space left") as caught:
        build(tmp_path / "cache")
    assert str(tmp_path / "cache") in caught.value.message
    assert "DNNMEM_CACHE" in caught.value.hint
    # and no half of a build is left
    assert not list(tmp_path.glob("**/.building-*"))


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="needs the extra dnnmem[cc]")
def test_the_compiler_of_the_package_index_builds_what_runs(work, monkeypatch):
    # GIVEN a machine without a compiler of its own
    monkeypatch.setattr(shutil, "which", lambda _: None)
    # WHEN the libraries are built with ziglang's
    folder, note = build(work / "cache")
    # THEN a script runs with them
    assert note == ""
    assert (folder / "libcuda.so.1").stat().st_size
    process = start(RUN, work, DNNMEM_CACHE=str(work / "cache"), PATH="/nowhere")
    assert process.wait(120) == 0, process.communicate()
