"""The tests that are marked `gpu`, run on a virtual one: that is how they run where there is no GPU."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("gpu", ["h100-sxm-80gb"])
def test_gpu_tests_pass_on_a_virtual_gpu(on_gpu, gpu):
    # GIVEN a virtual GPU  WHEN pytest runs there
    names = ("virtual", "labels", "gpu_values")
    files = [f"tests/profilers/test_{name}.py" for name in names] + [
        f"tests/accuracy/test_{name}.py" for name in ("unseen", "course_transformer")
    ]
    done = on_gpu("", gpu, arguments=("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files), timeout=600)
    # THEN all pass, and some there are
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
