"""What a test's process on a virtual GPU has besides: true values of small tensors, fixed choices of compilers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def true_small_values() -> tuple[Any, Any]:
    """In force from now on until the process ends, as in a recorded step (`profilers/virtual.py`)."""
    from dnnmem.profilers.gpu_values import SmallValues
    from dnnmem.profilers.script_compile import FixedChoices

    return FixedChoices(pass_through=True), SmallValues()
