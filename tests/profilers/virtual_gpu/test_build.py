"""Building the libraries: once, by many at a time, interrupted, without a place to write, without a compiler."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu import build as building
from dnnmem.profilers.virtual_gpu.build import build, find_compiler

BUILD = """
import sys, pathlib
from dnnmem.profilers.virtual_gpu.build import build
print(build(pathlib.Path(sys.argv[1]))[0])
"""
needs_gpu = pytest.mark.usefixtures("cache")  # skips where there is no virtual GPU


def start(cache):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(cache)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_what_is_built_is_not_built_again(cache, monkeypatch):
    # GIVEN libraries in a cache
    before, _ = build(cache)
    stamp = (before / "libcuda.so.1").stat().st_mtime_ns
    # WHEN they are asked for where nothing can be compiled
    monkeypatch.setattr(building, "_run", lambda command: pytest.fail(f"compiles: {command}"))
    after, note = build(cache)
    # THEN they are the same
    assert (after, note, (after / "libcuda.so.1").stat().st_mtime_ns) == (before, "", stamp)


@needs_gpu
def test_a_pynvml_that_comes_later_is_noticed(monkeypatch, tmp_path):
    # GIVEN the place for libraries that know what the installed pynvml asks for, if there is one
    def place():
        key = building._key(building.find_torch(), find_compiler())
        return tmp_path / key

    before = place()
    # WHEN there is one that knows another function
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "pynvml.py").write_text("def f(): return _nvmlGetFunctionPointer('nvmlDeviceGetSomethingNew')")
    spec = building.importlib.util.spec_from_file_location("pynvml", folder / "pynvml.py")
    find = building.importlib.util.find_spec
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: spec if name == "pynvml" else find(name))
    # THEN they have another place
    assert place() != before


def test_a_build_that_is_killed_leaves_nothing_that_counts(cache, tmp_path):
    # GIVEN a build that is killed as soon as it has begun
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("virtual-gpu/.building-*/work/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.glob("virtual-gpu/.building-*"))
    # WHEN another one follows
    folder, note = build(tmp_path)
    # THEN it is complete
    expected, _ = build(cache)
    assert note == ""
    assert {f.name for f in folder.iterdir()} == {f.name for f in expected.iterdir()}


def test_remains_of_dead_builds_are_swept_after_an_hour(tmp_path):
    # GIVEN two remains, one of them old
    old, young = (tmp_path / "virtual-gpu" / f".building-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    # WHEN
    building._sweep(tmp_path / "virtual-gpu")
    # THEN
    assert not old.exists()
    assert young.exists()


@needs_gpu
def test_a_cache_that_cannot_be_written_is_left_for_a_temporary_one(tmp_path, monkeypatch):
    # GIVEN a cache folder that is a file, so that nobody can write into it, root included
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(building.tempfile, "gettempdir", lambda: str(tmp_path))
    # WHEN
    folder, note = build(tmp_path / "cache")
    # THEN the libraries are elsewhere, only this user can write there, and a note says so
    assert (folder / "libcuda.so.1").exists()
    assert (tmp_path / f"dnnmem-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    assert "cannot be written" in note
    assert str(tmp_path / f"dnnmem-{os.getuid()}") in note


def test_a_temporary_folder_that_others_can_write_is_not_trusted(tmp_path, monkeypatch):
    # GIVEN a folder of the expected name, open to all
    monkeypatch.setattr(building.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"dnnmem-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"dnnmem-{os.getuid()}").chmod(0o777)
    # WHEN
    own = building._temporary_cache()
    # THEN
    assert own != tmp_path / f"dnnmem-{os.getuid()}"
    assert own.stat().st_mode & 0o077 == 0
    own.rmdir()


def test_no_compiler_is_said_with_the_way_out(monkeypatch):
    # GIVEN a machine without a compiler
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda _: None)
    # WHEN THEN
    with pytest.raises(UnsupportedError, match="needs a C compiler") as error:
        find_compiler()
    assert "dnnmem[cc]" in error.value.hint


def test_the_package_ziglang_stands_in_for_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: name == "ziglang")
    assert find_compiler() == (sys.executable, "-m", "ziglang", "cc")


@needs_gpu
def test_a_compiler_that_refuses_is_quoted(tmp_path, monkeypatch):
    # GIVEN a compiler that knows no C
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no such thing as C' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(building, "find_compiler", lambda: (str(broken),))
    # WHEN THEN it is told, and nothing is left in the cache
    with pytest.raises(UnsupportedError, match="no such thing as C"):
        build(tmp_path / "cache")
    assert list((tmp_path / "cache" / "virtual-gpu").iterdir()) == []
