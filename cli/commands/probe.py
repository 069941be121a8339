"""Run as `python -m dnnmem.cli.commands.probe`: what torch can do here, as one JSON object on stdout.

It is a process of its own, since a broken installation of torch or of a driver may abort it; `doctor` outlives that.
"""

from __future__ import annotations

import json
import sys
import time


def probe() -> dict[str, object]:
    """Facts about torch and its GPUs: versions, a fake operator's success, the error of each thing that failed."""
    start = time.perf_counter()
    import torch

    facts: dict[str, object] = {"torch": torch.__version__, "import_seconds": time.perf_counter() - start}
    facts["cuda_build"] = torch.version.cuda
    facts["hip_build"] = getattr(torch.version, "hip", None)
    facts["fake"] = _fake()
    try:
        facts["gpus"] = [
            {"name": torch.cuda.get_device_name(i), "nbytes": torch.cuda.get_device_properties(i).total_memory}
            for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ]
    except RuntimeError as error:
        facts["gpus"], facts["gpu_error"] = [], str(error).splitlines()[0]
    return facts


def _fake() -> str:
    """Empty if a fake step works, else what went wrong."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            layer = torch.nn.Linear(2, 2)
            layer(torch.ones(3, 2)).sum().backward()
    except Exception as error:  # noqa: BLE001 - whatever it is, doctor reports it
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
