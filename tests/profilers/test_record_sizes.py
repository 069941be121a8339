from __future__ import annotations

import textwrap

import pytest

from dnnmem.estimator.errors import ModelError, UnsupportedError
from dnnmem.estimator.passes.precision import recorded_in
from dnnmem.estimator.trace import Kind, Origin, Trace
from dnnmem.profilers import record_sizes as sizes
from dnnmem.profilers.record_sizes import record_sizes
from dnnmem.profilers.request import Request

MODEL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x):
            assert x.dtype is torch.float32, "the input is to be in float32"
            return self.fc(x).mean()

    def make_model():
        return Net()

    def make_batch(batch_size=4):
        return torch.ones(batch_size, 64)
"""


def test_a_step_is_recorded_in_each_type_that_the_model_takes(tmp_path):
    # GIVEN a model that takes inputs in float32 only
    file = tmp_path / "net.py"
    file.write_text(textwrap.dedent(MODEL))
    asked = Request(target=str(file), batch_size=4, device="fake", gpu="h100-sxm-80gb")
    # WHEN its step is recorded in other types too
    found = record_sizes(asked, ["bf16_amp", "bfloat16"])
    # THEN autocast is one of them, at each micro-batch, with its products in bfloat16
    assert set(found.in_types) == {"bf16_amp"}
    assert set(found.in_types["bf16_amp"]) == set(found.traces) == {4, 2, 1}
    cast = found.trace(4, "bf16_amp")
    assert recorded_in(cast) == "bf16_amp"
    product = next(op for op in cast.ops if "mm" in op.name)
    assert cast.storages[product.writes[0]].dtype == "bfloat16"
    assert {s.dtype for s in cast.storages.values() if s.kind is Kind.PARAM} == {"float32"}
    # AND the other is refused, in the model's words
    with pytest.raises(UnsupportedError, match=r"does not compute in bfloat16.*the input is to be in float32"):
        found.trace(4, "bfloat16")
    # AND what was not asked for starts from the step as it is
    assert found.trace(4, "tf32") is found.trace(4, None) is found.traces[4]


LACKS = UnsupportedError("aten.nonzero.default depends on values that a fake run does not have")


@pytest.mark.parametrize(
    ("error", "virtual_gpu", "devices"),
    [
        (LACKS, True, "fake virtual"),
        (ModelError("make_model failed:\nRuntimeError: Found no NVIDIA driver on your system"), True, "fake virtual"),
        (ModelError("the process that ran the step died with SIGSEGV; its last lines:"), True, "fake virtual"),
        (LACKS, False, "fake"),
        (None, True, "fake"),
    ],
)
def test_values_that_a_fake_run_lacks_are_assumed_on_a_virtual_gpu(monkeypatch, error, virtual_gpu, devices):
    # GIVEN a step that hangs on values, or does not
    asked = []

    def answer(requests, _cache, _say):
        asked.append(requests[0].device)
        fails = error if requests[0].device == "fake" and not requests[0].extrapolate else None
        note = "the order depends on values that nobody knows" if error else "kernels are assumed"
        return [fails or _trace(request.batch_size, note) for request in requests]

    monkeypatch.setattr(sizes, "_answers", answer)
    monkeypatch.setattr(sizes, "unavailable", lambda: None if virtual_gpu else "no compiler")
    # WHEN
    found = record_sizes(Request(target="m.py", batch_size=2, device="fake", gpu="h100-sxm-80gb"))
    # THEN it is recorded again where the values are assumed, and what matters of it is told
    assert " ".join(asked) == devices
    assert len(found.notes) == bool(error)


def _trace(batch: int, note: str) -> Trace:
    return Trace(ops=(), storages={}, batch={"batch_size": batch}, origin=Origin(target="m.py", notes=(note,)))
