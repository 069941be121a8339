"""Another optimizer in the place of the recorded one: the ops and allocations that torch's own have when recorded."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cache, partial
from unittest.mock import patch

import pytest
import torch

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes import optimizer_galore, optimizer_shampoo, optimizer_soap, rewrite
from dnnmem.estimator.passes.optimizer import apply
from dnnmem.estimator.passes.optimizer_recorded import recorded_update
from dnnmem.estimator.passes.optimizer_rules import RULES
from dnnmem.estimator.plan import Batch, Mesh, Optimizer, Pipeline, Plan, Precision, Sharding
from dnnmem.estimator.plan_check import OPTIMIZERS
from dnnmem.estimator.trace import Kind, Origin, Phase
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.optimizers.galore import GaLore
from dnnmem.profilers.optimizers.layerwise import Lamb, Lars
from dnnmem.profilers.optimizers.lion import Lion
from dnnmem.profilers.optimizers.muon import Muon
from dnnmem.profilers.optimizers.shampoo import Shampoo
from dnnmem.profilers.optimizers.soap import Soap
from tests.estimator.passes.steps import gpt
from tests.profilers.recorded import loss_step, target_of


def hidden_apart(cls, parameters, **options):
    """The optimizer with the matrix inside of the model below in a group of its own."""
    inside, rest = [], []
    for p in parameters:
        (inside if p.shape == (24, 288) else rest).append(p)
    return cls([{"params": inside, "hidden": True}, {"params": rest}], **options)


MAKERS = {
    ("sgd", "foreach"): partial(torch.optim.SGD, lr=0.1),
    ("sgd", "for_loop"): partial(torch.optim.SGD, lr=0.1, foreach=False),
    ("sgd", "fused"): partial(torch.optim.SGD, lr=0.1, fused=True),
    ("adamw", "foreach"): torch.optim.AdamW,
    ("adamw", "for_loop"): partial(torch.optim.AdamW, foreach=False),
    ("adamw", "fused"): partial(torch.optim.AdamW, fused=True),
    ("momentum", "foreach"): partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    ("momentum", "for_loop"): partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=False),
    ("lion", "foreach"): Lion,
    ("lamb", "foreach"): Lamb,
    ("lars", "foreach"): Lars,
    ("muon", "for_loop"): partial(hidden_apart, Muon),
    ("shampoo", "for_loop"): partial(Shampoo, every=1),
    ("soap", "for_loop"): partial(Soap, every=1),
    ("galore", "for_loop"): partial(hidden_apart, GaLore, every=1, rank=4, weight_decay=0.1),
    ("adafactor", "for_loop"): partial(torch.optim.Adafactor, weight_decay=0.1),
    ("adafactor", "foreach"): partial(torch.optim.Adafactor, weight_decay=0.1, foreach=True),
}


@contextmanager
def renewed_always():
    """Roots, bases and projections of each step, not of every 10th or 200th; a rank that is less than the matrix's."""
    with ExitStack() as stack:
        for module in (optimizer_shampoo, optimizer_soap, optimizer_galore):
            stack.enter_context(patch.object(module, "EVERY", 1))
        stack.enter_context(patch.object(optimizer_galore, "RANK", 4))
        yield


@cache
def recorded(maker):
    """A convolution, a normalization and two matrices, with their biases, under an optimizer."""
    nn = torch.nn
    target = target_of(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 24), nn.Linear(24, 16)
        ),
        lambda size: torch.randn(size, 3, 8, 8),
        loss_step(lambda model, batch: model(batch).mean()),
        maker,
    )
    return profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]


@cache
def recorded_with_frozen():
    """The same model, of which the last matrix and its bias are trained."""
    nn = torch.nn

    def make():
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 24), nn.Linear(24, 16)
        )
        model[:4].requires_grad_(requires_grad=False)
        return model

    step = loss_step(lambda model, batch: model(batch).mean())
    target = target_of(make, lambda size: torch.randn(size, 3, 8, 8), step, torch.optim.AdamW)
    return profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]


def is_solved(op):
    """What cuSOLVER does: its work and its flops are not recorded."""
    return op.name.startswith(("aten._linalg_", "aten.linalg_qr"))


def allocations(trace):
    """In order; what torch counts its steps with is on the host, and left out."""
    return [
        event.nbytes
        for op in trace.ops
        for event in op.events
        if abs(event.nbytes) > 4 and not (is_solved(op) and event.storage < 0)
    ]


def update(trace):
    """Ops of the update; what foreach counts its steps with has no storages here."""
    ops = [op for op in trace.ops if op.phase is Phase.STEP and op.name != "aten._foreach_add_.Tensor"]
    return [(op.name, len(op.reads), 0 if is_solved(op) else op.flops, op.moved_bytes) for op in ops]


def states(trace):
    return sorted((s.name, s.shape) for i, s in trace.storages.items() if i in trace.pinned)


@pytest.mark.parametrize("wanted", MAKERS, ids="-".join)
@pytest.mark.parametrize("given", [("sgd", "foreach"), ("adamw", "for_loop"), ("adafactor", "foreach")], ids="-".join)
def test_an_update_is_what_torch_records_of_it(given, wanted):
    # GIVEN a step recorded with one optimizer  WHEN another is asked for
    name, kernel = wanted
    with renewed_always():
        found = apply(recorded(MAKERS[given]), Plan(optimizer=Optimizer(name=name, kernel=kernel)))
    found.check()
    # THEN the ops, what they make and let go, and the states are those of the other one's own record
    truth = recorded(MAKERS[wanted])
    assert update(found) == update(truth)
    assert allocations(found) == allocations(truth)
    assert states(found) == states(truth)


@pytest.mark.parametrize("kernel", ["for_loop", "foreach", "fused"])
@pytest.mark.parametrize("maker", [partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD, torch.optim.Adam])
def test_momentum_and_decay_stay_under_another_kernel(maker, kernel):
    # GIVEN a buffer, and weight decay that is added to gradients
    maker = partial(maker, lr=0.1, weight_decay=0.1)
    chosen = {"for_loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[kernel]
    found = apply(recorded(partial(maker, foreach=kernel == "for_loop")), Plan(optimizer=Optimizer(kernel=kernel)))
    truth = recorded(partial(maker, **chosen))
    if maker.func is torch.optim.Adam and kernel == "fused":
        truth = recorded(partial(torch.optim.AdamW, fused=True))
    assert (update(found), allocations(found), states(found)) == (update(truth), allocations(truth), states(truth))


def test_what_is_recorded_already_stays():
    trace = recorded(MAKERS["adamw", "fused"])
    for wanted in (Optimizer(name="adamw"), Optimizer(kernel="fused"), Optimizer(name="adamw", kernel="fused")):
        assert apply(trace, Plan(optimizer=wanted)) is trace


def test_groups_stay_lists_of_their_own():
    # GIVEN matrices and vectors in two groups, as scripts have them for weight decay
    def maker(parameters):
        some = list(parameters)
        groups = [{"params": [p for p in some if (p.ndim > 1) is matrix]} for matrix in (True, False)]
        return torch.optim.AdamW(groups)

    trace = recorded(maker)
    assert [len(group) for group in recorded_update(trace).groups] == [3, 5]
    # THEN they are lists under another kernel too
    found = apply(trace, Plan(optimizer=Optimizer(kernel="fused")))
    assert [len(op.reads) for op in found.ops if "_fused_adamw_" in op.name] == [15, 25]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_have_no_states(name):
    # GIVEN a step that trains the last matrix alone
    found = apply(recorded_with_frozen(), Plan(optimizer=Optimizer(name=name)))
    found.check()
    owners = {s.module for s in found.storages.values() if s.kind is Kind.OPTIMIZER}
    assert owners <= {("4",)}
    assert owners or name == "sgd"


@pytest.mark.parametrize("name", [None, "lion", "adafactor", "muon"])
@pytest.mark.parametrize("state", [None, "float16"])
def test_gradients_never_live_together_where_updates_come_with_them(name, state):
    if name == "adafactor" and state:
        return
    trace = gpt(3)
    found = apply(trace, Plan(optimizer=Optimizer(name=name, state=state, in_backward=True)))
    found.check()
    # THEN a gradient is gone before another one is complete, nothing is left to do at the end
    live, most = 0, 0
    for op in found.ops:
        for event in op.events:
            if event.storage >= 0 and found.storages[event.storage].kind is Kind.GRAD:
                live += event.nbytes
                most = max(most, live)
    total = sum(s.nbytes for s in found.storages.values() if s.kind is Kind.GRAD)
    assert live == 0
    assert most < 0.4 * total
    assert not any(op.writes for op in found.ops if op.phase is Phase.STEP)


def test_moments_of_16_bits_are_half_as_large():
    trace = gpt(3)
    params = sum(s.nbytes for i, s in trace.storages.items() if s.kind is Kind.PARAM and i in trace.pinned)
    for state, scales in (("bfloat16", 0), ("float16", 4)):
        found = apply(trace, Plan(optimizer=Optimizer(state=state)))
        found.check()
        states = [s for i, s in found.storages.items() if s.kind is Kind.OPTIMIZER and i in found.pinned]
        assert sum(s.nbytes for s in states if s.shape) == params
        assert sum(s.nbytes for s in states if not s.shape) == scales * sum(1 for s in states if s.shape)


def test_states_of_8_bit():
    # GIVEN torchao's rule: 4,096 elements and more, in whole blocks of 256, are quantized
    trace = gpt(3)
    found = apply(trace, Plan(optimizer=Optimizer(name="adamw8bit")))
    found.check()
    made = {(s.module, s.name): s for i, s in found.storages.items() if s.kind is Kind.OPTIMIZER}
    for s in (s for i, s in trace.storages.items() if s.kind is Kind.PARAM and i in trace.pinned):
        count = s.nbytes // 4
        if count < 4096:
            assert made[s.module, f"{s.name}.exp_avg"].nbytes == s.nbytes
        else:
            parts = [made[s.module, f"{s.name}.exp_avg.{part}"].nbytes for part in ("codes", "scale", "qmap")]
            assert parts == [count, count // 256 * 4, 1024]
    # AND nothing is made in the update
    assert not any(e.nbytes > 0 for op in found.ops if op.phase is Phase.STEP for e in op.events)


def test_states_of_bitsandbytes():
    # GIVEN its rule: 4,096 elements and more are quantized, the last block whole or not
    trace = gpt(3)
    found = apply(trace, Plan(optimizer=Optimizer(name="adamw8bit_bnb")))
    found.check()
    made = {(s.module, s.name): s for i, s in found.storages.items() if s.kind is Kind.OPTIMIZER}
    for s in (s for i, s in trace.storages.items() if s.kind is Kind.PARAM and i in trace.pinned):
        count = s.nbytes // 4
        assert made[s.module, f"{s.name}.state1"].nbytes == (count if count >= 4096 else s.nbytes)
        assert (s.module, f"{s.name}.absmax2") in made or count < 4096
    # AND nothing is made in the update, which ranks with parts of parameters cannot have
    assert not any(e.nbytes > 0 for op in found.ops if op.phase is Phase.STEP for e in op.events)
    with pytest.raises(UnsupportedError, match="blocks of elements"):
        apply(trace, Plan(optimizer=Optimizer(name="adamw8bit_bnb"), mesh=Mesh(tp=2)))


def test_a_fused_update_makes_nothing():
    # GIVEN an update by lists, with temporaries as large as the parameters
    trace = gpt(3)
    found = apply(trace, Plan(optimizer=Optimizer(kernel="fused")))
    found.check()
    last = [op for op in found.ops if op.phase is Phase.STEP][-1]
    assert not any(e.nbytes > 0 for op in found.ops if op.phase is Phase.STEP for e in op.events)
    # THEN it reads parameters, gradients and two states, and writes all but gradients
    params = sum(s.nbytes for i, s in trace.storages.items() if s.kind is Kind.PARAM and i in trace.pinned)
    assert 7 * params <= last.moved_bytes < 7.1 * params


def test_master_weights_are_what_is_updated():
    # GIVEN parameters in bfloat16 with master weights, and fused kernels, which cast them back themselves
    plan = Plan(precision=Precision(param="float32"), optimizer=Optimizer(kernel="fused"))
    [found] = rewrite(gpt(3, dtype="bfloat16"), plan)
    found.check()
    params = sum(s.nbytes for i, s in found.storages.items() if s.kind is Kind.PARAM and i in found.pinned)
    last = [op for op in found.ops if op.phase is Phase.STEP][-1]
    # THEN master weights, moments and gradients have 4 bytes an element: read 4 * 4, write 3 * 4 + 2
    assert 15 * params <= last.moved_bytes < 15.1 * params
    assert "_fused_adamw_" in last.name


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layers", [None, 6])
@pytest.mark.parametrize(
    "others",
    [
        {"mesh": Mesh(dp_shard=2), "sharding": Sharding(strategy="zero3")},
        {"mesh": Mesh(dp_shard=2), "sharding": Sharding(strategy="zero1"), "batch": Batch(accumulation=2)},
        {"mesh": Mesh(pp=2), "pipeline": Pipeline()},
    ],
    ids=["zero3", "zero1", "pp"],
)
def test_other_fields_take_any_update(name, layers, others):
    if "zero3" in str(others) and RULES[name].needs != "elements":
        with pytest.raises(UnsupportedError, match=f"{name} works on whole parameters"):
            rewrite(gpt(3), Plan(optimizer=Optimizer(name=name), **others), layers=layers)
        return
    for kernel in RULES[name].kernels:
        plan = Plan(optimizer=Optimizer(name=name, kernel=kernel), **others)
        for chunk in rewrite(gpt(3), plan, layers=layers):
            chunk.check()


def test_what_cannot_be_is_said():
    with pytest.raises(UsageError, match="adafactor has no kernel fused; it has for_loop, foreach"):
        apply(gpt(3), Plan(optimizer=Optimizer(name="adafactor", kernel="fused")))
    adagrad = recorded(torch.optim.RMSprop)
    with pytest.raises(UnsupportedError, match="the recorded optimizer is none of sgd, momentum, adamw"):
        apply(adagrad, Plan(optimizer=Optimizer(kernel="fused")))
    assert apply(adagrad, Plan(optimizer=Optimizer(name="sgd"))).peak_bytes() < adagrad.peak_bytes()
