"""What the recorder notes of single operators: reads, writes, births and deaths, on the device that counts."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dnnmem.estimator.trace import Kind, Phase
from dnnmem.profilers.holds import saved_hooks
from dnnmem.profilers.modules import ModuleTracker
from dnnmem.profilers.record import Recorder


def record(program, **options):
    """The log of `program(recorder)`."""
    recorder = Recorder(ModuleTracker(nn.Module()), **{"device_type": "cpu", **options})
    recorder.start_step()
    with recorder:
        program(recorder)
    return recorder.log


def names(log):
    return [entry.name for entry in log.entries]


def test_reads_writes_and_lives():
    # GIVEN x = ones; y = x * 2 in place; z = x + x
    def program(_):
        x = torch.ones(4)
        x.mul_(2)
        z = x + x
        del x
        z.sum()

    log = record(program)
    assert [(e.name, e.reads, e.writes) for e in log.entries] == [
        ("aten.ones.default", (), (0,)),
        ("aten.mul_.Tensor", (0,), (0,)),
        ("aten.add.Tensor", (0,), (1,)),
        ("aten.sum.default", (1,), (2,)),
    ]
    # THEN events are in program order, each with its operator's interval
    assert log.events == [(16, 0), (16, 1), (-16, 0), (4, 2), (-4, 2), (-16, 1)]
    assert [e.start for e in log.entries] == [0, 1, 1, 3]
    assert log.blocks[0].died < log.blocks[2].died


def test_views_are_the_storage_that_they_show():
    def program(_):
        x = torch.ones(2, 8)
        y = x.t()[0].view(2).detach()
        del x
        y.add_(1)

    log = record(program)
    assert names(log) == ["aten.ones.default", "aten.add_.Tensor"]
    assert log.events == [(64, 0), (-64, 0)]


def test_a_resized_storage_is_another_block():
    # GIVEN FSDP's way to free a parameter: resize its storage
    def program(_):
        x = torch.ones(8)
        x.untyped_storage().resize_(0)
        x[:0].add(1)  # reads nothing
        x.untyped_storage().resize_(64)
        x.sum()

    sizes = [nbytes for nbytes, _ in record(program).events if abs(nbytes) > 4]
    assert sizes == [32, -32, 64, -64]


def test_out_arguments_are_written():
    def program(_):
        x, y = torch.ones(4), torch.empty(4)
        torch.add(x, 1, out=y)

    entry = record(program).entries[-1]
    assert entry.name == "aten.add.out"
    assert entry.writes == (1,)


def test_lists_are_read_and_written():
    def program(_):
        x = [torch.ones(2), torch.ones(3)]
        torch._foreach_mul_(x, 2.0)
        torch.cat(x)

    log = record(program)
    assert [(e.reads, e.writes) for e in log.entries[2:]] == [((0, 1), (0, 1)), ((0, 1), (2,))]


def test_a_sparse_gradient_is_its_indices_and_values():
    # GIVEN a table of 100 rows of 4, of which 3 are looked up
    def program(_recorder):
        rows = torch.nn.functional.embedding(torch.tensor([1, 5, 1]), torch.ones(100, 4).requires_grad_(), sparse=True)
        (rows * 2).sum().backward()

    log = record(program)
    (used,) = [e.reads for e in log.entries if "sparse" in e.name]
    assert [log.blocks[n].nbytes for n in used] == [3 * 8, 3 * 4 * 4]


def test_what_lies_elsewhere_does_not_count():
    def program(recorder):
        meta, sparse = torch.ones(4, device="meta"), torch.ones(2, 2).to_sparse()
        assert not recorder.tracks(meta)
        assert not recorder.tracks(sparse)
        assert recorder.tracks(torch.ones(1))
        (meta * 2).sum()

    assert "aten.mul.Tensor" not in names(record(program))


def test_a_fake_recorder_counts_the_tensors_of_its_mode_alone():
    # GIVEN a real tensor, and one that another fake run has left
    real, mode = torch.ones(2), FakeTensorMode(allow_non_fake_inputs=True)
    with FakeTensorMode():
        stranger = torch.ones(3)

    def program(recorder):
        with mode:
            fake = torch.ones(10**12)
            assert recorder.tracks(fake)
        assert not recorder.tracks(real)
        assert not recorder.tracks(stranger)

    log = record(program, fake=mode)
    assert [nbytes for nbytes, _ in log.events] == [4 * 10**12, -4 * 10**12]


def test_empty_tensors_have_no_block():
    log = record(lambda _: torch.empty(0).add(1))
    assert log.events == []
    assert log.blocks == {}


def test_the_first_name_of_a_storage_stays():
    weight = torch.ones(4)

    def program(recorder):
        recorder.watch(weight, Kind.PARAM, ("fc",), "weight")
        recorder.watch(weight.view(2, 2), Kind.BUFFER, ("other",), "copy")

    (block,) = record(program).blocks.values()
    assert (block.kind, block.module, block.name, block.entry) == (Kind.PARAM, ("fc",), "weight", -1)


def test_saved_tensors_are_marked_and_handed_through():
    x = torch.ones(4, requires_grad=True)

    def program(recorder):
        with saved_hooks(recorder):
            y = (x * 2).exp()
            (y * 3).sum().backward()

    log = record(program)
    saved = {log.entries[b.entry].name for b in log.blocks.values() if b.saved and b.entry >= 0}
    assert saved == {"aten.exp.default"}
    assert x.grad.tolist() == pytest.approx([6 * torch.e**2] * 4)


def test_a_clock_and_a_label_frame_each_operator():
    said, ticks = [], iter(range(100))
    log = record(lambda _: torch.ones(2).mul(2).view(1, 2), clock=lambda: next(ticks), label=said.append)
    # THEN views have neither; a label is undone after its operator
    assert [entry.times for entry in log.entries] == [(0, 1), (2, 3)]
    first, second = (str(entry.tick) for entry in log.entries)
    assert said == ["~1", first, f"~{first}", second, f"~{second}"]


def test_a_label_is_undone_after_an_error():
    said = []
    with pytest.raises(RuntimeError):
        record(lambda _: torch.ones(2) @ torch.ones(3), label=said.append)
    assert said[-1].startswith("~")


def test_steps_are_marked():
    recorder = Recorder(ModuleTracker(nn.Module()), device_type="cpu")
    for _ in range(3):
        recorder.start_step()
        with recorder:
            torch.ones(1)
    log = recorder.log
    assert log.steps == [(0, 0), (1, 2), (2, 4)]
    assert log.ticks == [1, 3, 5]


def test_a_subclass_is_taken_apart_first():
    # GIVEN a subclass that wraps a plain tensor
    class Wrapped(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, _types, args=(), kwargs=None):
            plain = [a.inner if isinstance(a, Wrapped) else a for a in args]
            return cls(func(*plain, **(kwargs or {})))

    log = record(lambda _: Wrapped(torch.ones(4)).mul(2))
    assert names(log) == ["aten.ones.default", "aten.mul.Tensor"]
    assert [nbytes for nbytes, _ in log.events] == [16, 16, -16, -16]


def test_phases_without_modules():
    weight = torch.ones(4, requires_grad=True)
    log = record(lambda _: (weight * 2).sum().backward())
    phases = [(entry.name, entry.place.phase) for entry in log.entries]
    assert phases[0] == ("aten.mul.Tensor", Phase.FORWARD)
    assert phases[-1][1] is Phase.BACKWARD
    gc.collect()
    assert all(block.died >= 0 for block in log.blocks.values() if block.entry >= 0 and block.nbytes == 4)
