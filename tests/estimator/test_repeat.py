"""Repeated blocks are what a longer model records: events, lists of the update, set-up and modules."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.repeat import repeat
from tests.estimator.passes.steps import LLAMA, WRITTEN, gpt, plain, reserved
from tests.profilers.recorded import step_of

HOST = "aten._foreach_add_.Tensor"
"""Counts steps on the host, one number a parameter: its few bytes stay as recorded."""


def moved(trace):
    return [(op.name, op.moved_bytes) for op in trace.ops if op.name != HOST]


@pytest.mark.parametrize(
    ("recorded", "arguments"),
    [(2, {}), (3, {}), (3, LLAMA), (3, {"checkpointing": True}), (3, WRITTEN)],
    ids=["of two", "of three", "llama", "checkpointing", "written scores"],
)
def test_a_repeated_step_is_the_longer_models(recorded, arguments):
    # GIVEN a model with 2 or 3 blocks, and the same with 6
    short, long = gpt(recorded, **arguments), gpt(6, **arguments)
    # WHEN the blocks are repeated
    found = repeat(short, 6)
    # THEN nothing tells the two steps apart
    found.check()
    assert plain(found) == plain(long)
    assert moved(found) == moved(long)
    assert found.peak_bytes() == long.peak_bytes()
    assert reserved(found) == reserved(long)


class Block(nn.Module):
    """Its output is not what autograd keeps of it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64, dtype=torch.bfloat16)

    def forward(self, x):
        return x + self.linear(x.bfloat16()).float()


class Keeping(nn.Module):
    """A model that keeps what its blocks make until all have run, as those do that can return all hidden states."""

    def __init__(self, count):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x):
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states[-1].bfloat16()


def test_what_all_blocks_leave_in_a_list_goes_with_the_list():
    # GIVEN a step whose last block lets go of the outputs of all before, of 3 blocks and of 7
    def keeping(count):
        loss, batch = (lambda model, x: model(x).float().pow(2).mean()), (lambda n: torch.randn(n, 64))
        return step_of(lambda: Keeping(count), loss, batch, partial(torch.optim.SGD, lr=1e-3))

    short, long = keeping(3), keeping(7)
    # WHEN its blocks are repeated  THEN that is the longer model's step, set-up and all
    found = repeat(short, 7)
    found.check()
    assert plain(found) == plain(long)
    assert found.peak_bytes() == long.peak_bytes()
    assert reserved(found) == reserved(long)


class FirstIsOther(Keeping):
    """Its first block does more."""

    def __init__(self, count):
        super().__init__(count)
        self.blocks[0].linear = nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16), nn.Tanh())


def test_blocks_after_a_first_one_that_is_another_are_repeated():
    # GIVEN models whose first block is another one, of 3 and of 6 blocks
    loss, batch = (lambda model, x: model(x).float().pow(2).mean()), (lambda n: torch.randn(n, 64))
    short, long = (step_of(partial(FirstIsOther, n), loss, batch, partial(torch.optim.SGD, lr=1e-3)) for n in (3, 6))
    # THEN the shorter one's second is what the longer one has more of
    found = repeat(short, 6)
    found.check()
    assert plain(found) == plain(long)


def test_states_of_copies_are_made_in_their_places(monkeypatch):
    # GIVEN steps whose set-up has parameters alone, so that the first step makes the optimizer's states
    short, long = (rewrite(gpt(n, **LLAMA), Plan(remat=Remat(policy="full")))[0] for n in (3, 6))
    asked, malloc = [], CachingAllocator.malloc
    monkeypatch.setattr(CachingAllocator, "malloc", lambda self, *size: asked.append(size[0]) or malloc(self, *size))
    # WHEN the shorter one's blocks are repeated  THEN the allocator is asked for the same sizes in the same order
    reserved(long)
    wanted = asked.copy()
    asked.clear()
    reserved(repeat(short, 6))
    assert asked == wanted


def test_as_many_blocks_as_recorded_are_the_trace_itself():
    assert repeat(gpt(3), 3) is gpt(3)


def test_fewer_blocks_are_refused():
    with pytest.raises(UsageError, match="2 blocks are wanted, but 3 are recorded"):
        repeat(gpt(3), 2)


def test_a_model_without_a_list_is_refused():
    with pytest.raises(UsageError, match="no list of 2 or more equal blocks"):
        repeat(replace(gpt(3), modules=()), 6)


def test_blocks_that_differ_are_refused():
    # GIVEN a step whose last block lacks an op
    trace = gpt(3)
    last = next(
        k for k, op in enumerate(trace.ops) if op.module[:2] == ("blocks", "2") and op.name == "aten.gelu.default"
    )
    broken = replace(trace, ops=(*trace.ops[:last], *trace.ops[last + 1 :]))
    # THEN the message says which blocks
    with pytest.raises(UnsupportedError, match="blocks 1 and 2 of blocks are not alike"):
        repeat(broken, 6)
