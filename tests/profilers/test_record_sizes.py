from __future__ import annotations

import textwrap

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.precision import recorded_in
from dnnmem.estimator.trace import Kind
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
