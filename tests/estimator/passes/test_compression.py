"""Compression of what is saved: what is encoded, when, and for how long it is there as it was."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Compression, Plan, Remat
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.work import work_of
from tests.estimator.passes.steps import gpt, passes_peak


def compressed(remat=None, **options):
    [found] = rewrite(gpt(3, batch=32), Plan(compression=Compression(**options), remat=remat or Remat()))
    found.check()
    return found


def ops(trace, name):
    return [op for op in trace.ops if op.name.startswith(f"dnnmem.{name}.")]


def test_fewer_bits_need_less():
    # GIVEN a language model's step
    peaks = [passes_peak(gpt(3, batch=32)), *(passes_peak(compressed(bits=bits)) for bits in (8, 4, 2))]
    assert peaks == sorted(peaks, reverse=True)


def test_what_is_encoded_is_decoded_for_each_gradient_and_then_goes():
    found = compressed(bits=4)
    made = {i for op in ops(found, "encode") for i in op.writes}
    # THEN each part is read by decodings only, in the backward pass
    readers = [op for op in found.ops if made & {*op.reads}]
    assert readers == ops(found, "decode")
    assert {op.phase for op in readers} == {Phase.BACKWARD}
    # AND nothing that the plain step saved and is encoded lives on as it was
    for op in ops(found, "encode"):
        [tensor] = op.reads
        assert not any(tensor in later.reads for later in found.ops if later.phase is Phase.BACKWARD)


def test_statistics_and_the_loss_stay_exact():
    found = compressed(bits=2)
    encoded = [found.storages[i] for op in ops(found, "encode") for i in op.reads]
    assert encoded
    assert all(storage.shape[-1] > 1 for storage in encoded)
    assert all(op.module != ("<loss>",) for op in ops(found, "encode"))


@pytest.mark.parametrize(("name", "encoded"), [("aten.bmm.default", 1), ("aten.div.Tensor", 0)])
def test_what_einsum_copies_for_a_product_is_no_statistic(name, encoded):
    # GIVEN something saved whose last dimension is 1: a product's operand as einsum lays it out, or a row's statistic
    saved = Storage(id=1, nbytes=2**20, kind=Kind.ACTIVATION, shape=(8, 64, 512, 1), dtype="float32", saved=True)
    storages = {1: saved, **{i: Storage(id=i, nbytes=512, kind=Kind.TEMP, dtype="float32") for i in (2, 3)}}
    trace = Trace(
        ops=(
            Op(name="aten.clone.default", writes=(1,), events=(Event(2**20, 0, 1),)),
            Op(name=name, reads=(1,), writes=(2,), events=(Event(512, 0, 2),)),
            Op(
                name=name, phase=Phase.BACKWARD, reads=(1, 2), writes=(3,),
                events=(Event(512, 0, 3), Event(-(2**20), 0, 1), Event(-512, 0, 2), Event(-512, 0, 3)),
            ),
        ),
        storages=storages,
    )  # fmt: skip
    [found] = rewrite(trace, Plan(compression=Compression(bits=4)))
    assert len(ops(found, "encode")) == encoded


def test_linear_layers_alone_are_projected():
    found = compressed(projection=0.25)
    assert {op.name for op in ops(found, "encode")} == {"dnnmem.encode.rows"}
    kept = sum(found.storages[i].nbytes for op in ops(found, "encode") for i in op.writes)
    whole = sum(found.storages[i].nbytes for op in ops(found, "encode") for i in op.reads)
    assert kept == pytest.approx(0.25 * whole, rel=0.05)


def test_inputs_of_blocks_are_encoded_once():
    # GIVEN blocks that are computed again  THEN their inputs are encoded, and each is made again once
    found = compressed(Remat(policy="full"), bits=8)
    inside = [op for op in ops(found, "decode") if "blocks" in op.module]
    assert len(inside) == 3


def test_each_kernel_of_a_code_takes_time():
    found = compressed(bits=4)
    work = work_of(found)
    at = next(k for k, op in enumerate(found.ops) if op.name == "dnnmem.encode.codes")
    assert work.kernels[at] == work.host_ops[at] > 5


def test_what_it_does_not_go_with_is_refused():
    with pytest.raises(UnsupportedError, match=r"cannot be had with remat\.policy selective"):
        compressed(Remat(policy="selective"), bits=8)
    with pytest.raises(UnsupportedError, match=r"projection is for inputs of linear layers"):
        compressed(Remat(policy="full"), projection=0.5)
    for wrong in ("compression.bits=3", "compression.group=4", "compression.projection=1.5"):
        with pytest.raises(UsageError):
            change(Plan(), [wrong])
