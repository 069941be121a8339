"""What holds of every recorded step, over the whole zoo: fake is real, a trace is the step, bytes are PyTorch's own."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from dnnmem.estimator.layers import layers
from dnnmem.estimator.trace import Kind, Phase
from tests.models.oracle import saved_bytes
from tests.models.zoo import ZOO
from tests.profilers.recorded import BATCH, allocations, bare_allocations, zoo_cpu, zoo_fake, zoo_target

AUTOCAST = {"grad_scaler"}
"""Autocast's cache is a hash map by address: the copies it drops at the end die in an order of no meaning."""

EXPLAINED = {"gpt", "tied_lm", "llama", "bert", "moe", "gru", "gnn", "zeroed_grads"}
"""Where no CPU kernel has a block of its own at the peak. Elsewhere bare steps need more: scratch of convolutions
and of oneDNN's LSTM, views made contiguous for a product, wrapped scalars of 4 bytes."""


@pytest.fixture(params=sorted(ZOO))
def name(request):
    return request.param


def events(trace, *, ordered):
    """Signed bytes and storages of each op; unordered within an op if its frees have no order."""
    mine = [tuple((e.nbytes, e.storage) for e in op.events) for op in trace.ops]
    return mine if ordered else [Counter(some) for some in mine]


def test_a_fake_step_is_the_real_one(name):
    # GIVEN the same model really run and on FakeTensors
    real, fake = zoo_cpu(name).trace, zoo_fake(name).trace
    # THEN operators agree in order, place and the storages they read and write
    what = [[(op.name, op.module, op.phase, op.reads, op.writes) for op in trace.ops] for trace in (real, fake)]
    assert what[1] == what[0]
    # AND so do allocations and frees, and what each storage is
    ordered = name not in AUTOCAST
    assert events(fake, ordered=ordered) == events(real, ordered=ordered)
    assert fake.storages == real.storages
    assert fake.pinned == real.pinned
    assert fake.peak_bytes() == real.peak_bytes()


def test_a_recorded_step_can_follow_itself(name):
    for trace, measured in (zoo_cpu(name), zoo_fake(name)):
        trace.check()
        assert measured.growth_bytes == 0
        # AND its setup is a list of allocations that leaves what is pinned
        live = {}
        for event in trace.setup:
            if event.nbytes > 0:
                assert live.setdefault(event.storage, event.nbytes) == event.nbytes
            else:
                assert live.pop(event.storage) == -event.nbytes
        assert live.keys() == trace.pinned


def test_bare_steps_need_what_the_trace_explains(name):
    trace, measured = zoo_cpu(name)
    assert trace.peak_bytes() <= measured.allocated_bytes <= 1.25 * trace.peak_bytes()
    if name in EXPLAINED:
        assert measured.allocated_bytes == trace.peak_bytes()


def test_phases_follow_each_other(name):
    # GIVEN any step  THEN it starts forward, the update is last, and gradients come from somewhere
    phases = [op.phase for op in zoo_fake(name).trace.ops if op.name != "dnnmem.begin"]
    if name != "zeroed_grads":  # zeroes gradients at the top
        assert phases[0] is Phase.FORWARD
    assert phases[-1] in {Phase.STEP, Phase.FORWARD}
    assert {Phase.FORWARD, Phase.BACKWARD, Phase.STEP} == set(phases)


def test_saved_bytes_are_those_that_autograd_counts(name):
    # GIVEN what saved_tensors_hooks count on a real run; half a batch at a time where gradients are accumulated
    torch.manual_seed(0)
    batch_size = BATCH // 2 if name == "accumulation" else BATCH
    counted = saved_bytes(ZOO[name].make_model(), ZOO[name].make_batch(batch_size), ZOO[name].forward_loss)
    # THEN the layer table sums to it, to the byte
    assert sum(row.activation_bytes for row in layers(zoo_fake(name).trace)) == counted


STATES = {
    "resnet": lambda p: p.numel() * 4,  # momentum
    "mobilenet": lambda p: p.numel() * 4,  # RMSprop's average of squares
    "custom_function": lambda _: 0,  # plain SGD
    "zeroed_grads": lambda p: 2 * p.numel() * 4 + 4,  # fused AdamW keeps its step counters on the device
    "adafactor": lambda p: sum(p.shape) * 4 if p.dim() > 1 else p.numel() * 4,  # rows and columns
}
"""Optimizer states other than AdamW's two averages, whose step counters stay on the host."""


def test_parameters_gradients_and_states_are_exact(name):
    model = ZOO[name].make_model()
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    rows = layers(zoo_fake(name).trace)
    assert sum(row.param_bytes for row in rows) == sum(4 * p.numel() for p in parameters)
    assert sum(row.grad_bytes for row in rows) == sum(4 * p.numel() for p in trained)
    state = STATES.get(name, lambda p: 2 * p.numel() * 4)
    assert sum(row.optimizer_bytes for row in rows) == sum(state(p) for p in trained)


def test_every_module_that_has_parameters_owns_their_bytes(name):
    model, trace = ZOO[name].make_model(), zoo_fake(name).trace
    own = {}
    for path, _ in model.named_parameters():
        module, _, leaf = path.rpartition(".")
        own.setdefault(module, []).append((leaf, model.get_parameter(path).numel() * 4))
    rows = {row.module: row for row in layers(trace)}
    for module, parameters in own.items():
        assert rows[module].param_bytes == sum(nbytes for _, nbytes in parameters)
        assert rows[module].type == type(model.get_submodule(module)).__name__
    named = {(".".join(s.module), s.name) for s in trace.storages.values() if s.kind is Kind.PARAM}
    assert named == {(module, leaf) for module, leaves in own.items() for leaf, _ in leaves}


@pytest.mark.parametrize("name", ["gpt", "bert", "llama", "t5", "gnn", "custom_function", "checkpoint_nonreentrant"])
def test_a_trace_makes_no_block_that_a_bare_run_does_not(name):
    # GIVEN the step run bare, twice so that states exist
    torch.manual_seed(0)
    target = zoo_target(name)
    model, batch = target.make_model(), target.make_batch()
    optimizer = target.make_optimizer(model.parameters())
    bare = bare_allocations({name: lambda: target.train_step(model, batch, optimizer)})[name]
    # THEN each size is made as often, or less often where kernels of the CPU have blocks of their own
    made = allocations(zoo_fake(name).trace)
    assert not made - bare
    assert sum((bare - made).values()) <= 0.1 * sum(bare.values())
