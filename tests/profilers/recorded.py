"""Recorded steps for tests: any model and loop, really run or on FakeTensors, and what the allocator did when bare."""

from __future__ import annotations

import gc
import inspect
from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.profilers.capture import Built, capture
from dnnmem.profilers.cpu import profile_cpu
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.step import Target
from tests.models.entry import plain_step
from tests.models.zoo import ZOO

BATCH = 4

CLEARED = (
    {"clear_history": True}
    if "clear_history" in inspect.signature(torch.cuda.memory._record_memory_history_impl).parameters
    else {}
)
"""Option that begins the allocator's history anew; an older torch always does."""


class Recorded(NamedTuple):
    """One step, and what was measured beside it."""

    trace: Trace
    measured: Measurement


def target_of(make_model, make_batch, train_step, make_optimizer=None, *, batch_size=BATCH):
    """A target of functions; `make_batch(batch_size)` as in the zoo."""
    return Target(
        name="test",
        make_model=make_model,
        make_batch=lambda: make_batch(batch_size),
        make_optimizer=make_optimizer or partial(torch.optim.AdamW, lr=1e-3),
        train_step=train_step,
        batch={"batch_size": batch_size},
        rescale=lambda size, _: target_of(make_model, make_batch, train_step, make_optimizer, batch_size=size),
    )


def begin():
    """The same weights for all, and what other tests keep is out of sight: a recorder looks for all tensors alive."""
    gc.freeze()  # also saves walking what imports have left, a hundred times
    torch.manual_seed(0)


def on_cpu(target, *, steps=2, repeats=0):
    begin()
    return Recorded(*profile_cpu(target, steps=steps, repeats=repeats, origin=Origin(), on_step=lambda _: None))


def watched(target, *, steps=2):
    """The trace of a real run, nothing measured beside it."""
    begin()
    model = target.make_model()
    built = Built(model=model, batch=target.make_batch(), optimizer=target.make_optimizer(model.parameters()))
    return capture(target, built, device_type="cpu", steps=steps, origin=Origin())[0]


def on_fake(target, *, steps=2):
    begin()
    return Recorded(*profile_fake(target, steps=steps, origin=Origin(), on_step=lambda _: None))


def loss_step(loss):
    """The plain loop around `loss(model, batch)`."""
    return partial(plain_step, loss)


def step_of(make_model, loss, make_batch, make_optimizer=None, *, record=on_fake):
    """The trace of a plain loop."""
    return record(target_of(make_model, make_batch, loss_step(loss), make_optimizer)).trace


def zoo_target(name):
    entry = ZOO[name]
    return target_of(entry.make_model, entry.make_batch, entry.train_step, entry.make_optimizer)


@cache
def zoo_cpu(name) -> Recorded:
    """A model of the zoo, really run; once a session."""
    return on_cpu(zoo_target(name))


@cache
def zoo_fake(name) -> Recorded:
    """The same on FakeTensors."""
    return on_fake(zoo_target(name))


def bare_allocations(runs, *, least=64):
    """Sizes of what the allocator gives during the second call of each of `runs` (by name), nothing watching.

    Blocks under `least` bytes are left out: scalars that torch wraps on the way into an operator.
    """
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profiler:
        for name, run in runs.items():
            run()
            with torch.autograd.profiler.record_function(f"run {name}"):
                run()
    events = list(profiler.kineto_results.events())
    spans = {e.name(): (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name().startswith("run ")}
    given = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.nbytes() >= least]
    return {
        name: Counter(nbytes for moment, nbytes in given if begin <= moment <= end)
        for name in runs
        for begin, end in [spans[f"run {name}"]]
    }


def allocations(trace, *, least=64):
    """The same of a trace."""
    return Counter(event.nbytes for _, event in trace.events() if event.nbytes >= least)


def ops_named(trace, *names) -> list[Any]:
    """Ops of these names (`aten.mm.default`), in order."""
    return [op for op in trace.ops if op.name in names]


def owned(trace, kind):
    """Bytes of the storages of a kind."""
    return sum(storage.nbytes for storage in trace.storages.values() if storage.kind is kind)
