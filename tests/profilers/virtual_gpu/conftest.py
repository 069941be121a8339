"""Virtual GPUs for tests: libraries built once, and child processes that run on them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from dnnmem.profilers.virtual_gpu.build import build
from dnnmem.profilers.virtual_gpu.launch import prepare, unavailable


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder that holds the built libraries; skips where there can be none."""
    if reason := unavailable():
        pytest.skip(f"no virtual GPU: {reason}")
    folder = tmp_path_factory.mktemp("cache")
    build(folder)
    return folder


@pytest.fixture
def on_gpu(cache, root):
    """`on_gpu(code, gpu, count, **variables)` runs Python on virtual GPUs and returns the finished process."""

    def run(code, gpu="h100-sxm-80gb", *, count=1, arguments=(), timeout=90, **variables):
        base = {**os.environ, "PYTHONPATH": str(root), **variables}
        launch = prepare(gpu, base, count=count, cache=cache)
        command = [sys.executable, *(arguments or ("-W", "ignore", "-c", textwrap.dedent(code)))]
        return subprocess.run(
            command, env=launch.environment, capture_output=True, text=True, check=False, timeout=timeout, cwd=root
        )

    return run
