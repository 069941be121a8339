"""Full checkpointing is what a model with checkpoints records; the other policies do what they are named for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.remat import PRODUCTS, apply
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.trace import Origin, Phase
from dnnmem.profilers.fake import profile_fake
from tests.estimator.passes.steps import LLAMA, WRITTEN, gpt, passes_peak, reserved
from tests.profilers.recorded import loss_step, target_of

MODELS = pytest.mark.parametrize("arguments", [{}, LLAMA, WRITTEN], ids=["gpt", "llama", "written scores"])


def remat(trace, policy, **options):
    found = apply(trace, Plan(remat=Remat(policy=policy, **options)))
    found.check()
    return found


def what(trace):
    return Counter((op.name, op.module, op.phase, op.flops, op.moved_bytes) for op in trace.ops)


def again(trace, found):
    """Ops that run once more than recorded."""
    names = Counter((op.name, op.module) for op in found.ops)
    return names - Counter((op.name, op.module) for op in trace.ops)


@MODELS
def test_full_recomputation_is_what_checkpoints_record(arguments):
    # GIVEN a model, and the same with its blocks under torch.utils.checkpoint
    bare, checkpointed = (gpt(3, batch=16, checkpointing=on, **arguments) for on in (False, True))
    # WHEN the pass rewrites the first
    found = remat(bare, "full")
    # THEN it runs the second's ops, and needs its memory
    assert what(found) == what(checkpointed)
    assert passes_peak(found) < 0.6 * passes_peak(bare)
    assert passes_peak(found) == pytest.approx(passes_peak(checkpointed), rel=0.02)
    assert reserved(found) == pytest.approx(reserved(checkpointed), rel=0.03)


def test_every_second_block_is_computed_again():
    found = again(gpt(4), remat(gpt(4), "every", every=2))
    assert {module[1] for _, module in found} == {"1", "3"}


def test_recomputation_that_does_not_stop_early_runs_blocks_whole():
    trace = gpt(3)
    forward = Counter(
        (op.name, op.module) for op in trace.ops if op.phase is Phase.FORWARD and op.module[:1] == ("blocks",)
    )
    assert again(trace, remat(trace, "full", early_stop=False)) == forward


@MODELS
def test_selective_recomputation_keeps_attention_and_every_second_product(arguments):
    # GIVEN a step with recomputation by op
    trace = gpt(3, **arguments)
    found = again(trace, remat(trace, "selective", early_stop=False))
    # THEN half of the products of a block run again (the smaller half), and no fused attention
    products = [
        op for op in trace.ops if op.name in PRODUCTS and op.phase is Phase.FORWARD and op.module[0] == "blocks"
    ]
    assert sum(n for (name, _), n in found.items() if name in PRODUCTS) == 3 * (len(products) // 3 // 2)
    assert not any("scaled_dot_product" in name for name, _ in found)


@pytest.mark.parametrize("arguments", [{}, WRITTEN], ids=["fused", "written"])
def test_attention_alone_is_computed_again(arguments):
    # GIVEN attention by one kernel, or scores written out
    trace = gpt(3, batch=16, **arguments)
    found = remat(trace, "attention", early_stop=False)
    modules = {module for _, module in again(trace, found)}
    # THEN nothing outside of it runs twice
    assert modules == {("blocks", str(i), "attention") for i in range(3)}
    if arguments:  # the scores are what this saves
        assert passes_peak(found) < passes_peak(trace)
    else:
        assert sum(is_attention(op.name) and op.phase is Phase.BACKWARD for op in found.ops) == 6


@pytest.mark.parametrize("policy", ["full", "every", "selective", "attention"])
def test_memory_never_rises_and_work_never_falls(policy):
    trace = gpt(3, batch=16)
    found = remat(trace, policy)
    assert passes_peak(found) <= passes_peak(trace)
    assert sum(op.flops for op in found.ops) > sum(op.flops for op in trace.ops)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UnsupportedError, match="finds nothing to compute again"):
        remat(replace(gpt(3), modules=()), "full")


def test_a_run_with_something_between_its_blocks_is_refused():
    # GIVEN a step of which something that is kept lies between two blocks
    trace = gpt()
    first = next(
        k for k, op in enumerate(trace.ops)
        if op.module[:2] == ("blocks", "1") and any(trace.storages[i].saved for i in op.writes)
    )  # fmt: skip
    ops = [replace(op, module=("between",)) if k == first else op for k, op in enumerate(trace.ops)]
    # WHEN both are to be computed again as one  THEN it is said what lies between; each alone can be
    changed = replace(trace, ops=tuple(ops))
    with pytest.raises(UnsupportedError, match="between runs between its blocks"):
        remat(changed, "segments", segments="0-1")
    assert remat(changed, "segments", segments="0")


def test_ops_run_again_that_are_not_kept():
    # GIVEN a step whose blocks keep some of their ops, one of them all, and one its input
    trace = gpt(3, batch=16)
    found = remat(trace, "ops", keep="0:addmm.0.2,attention/2:input", early_stop=False)
    forward = Counter(
        (op.name, op.module[1]) for op in trace.ops if op.phase is Phase.FORWARD and op.module[:1] == ("blocks",)
    )
    repeated = Counter()
    for (name, module), n in again(trace, found).items():
        repeated[name, module[1]] += n
    # THEN block 1 runs once, block 2 twice, block 0 but for what it keeps
    kept = Counter({("aten.addmm.default", "0"): 2, ("aten._scaled_dot_product_efficient_attention.default", "0"): 1})
    assert repeated == Counter({key: n for key, n in (forward - kept).items() if key[1] != "1"})


def test_the_more_is_kept_the_more_it_takes():
    trace = gpt(3, batch=16)
    peaks = [
        passes_peak(remat(trace, "ops", keep=keep))
        for keep in ("input", "attention", "addmm.0,attention", "addmm.0.2,attention", "all")
    ]
    assert peaks == sorted(peaks)
    assert peaks[0] == passes_peak(remat(trace, "full"))
    assert peaks[-1] == passes_peak(trace)


def test_selective_is_a_rule_for_ops():
    trace = gpt(3, batch=16)
    assert passes_peak(remat(trace, "ops", keep="addmm.0.2,attention")) == passes_peak(remat(trace, "selective"))


@pytest.mark.parametrize(
    ("keep", "said"), [("bmm", "block 0 has no such op"), ("1:addmm.4", r"addmm\.4"), ("3:all", "has 3 blocks")]
)
def test_ops_that_blocks_lack_are_told(keep, said):
    with pytest.raises(UsageError, match=said):
        remat(gpt(3), "ops", keep=keep)


class Blocks(nn.Module):
    """Blocks of which the first makes what all read, as T5's position bias is made."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.bias = nn.Linear(8, 8), nn.Embedding(4, 8)

        def forward(self, x, bias=None):
            bias = self.bias(torch.arange(4, device=x.device)) if bias is None else bias
            return self.line(x + bias).tanh(), bias

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x):
        bias = None
        for block in self.blocks:
            x, bias = block(x, bias)
        return x


@pytest.mark.parametrize(
    "keep", ["input", "0:embedding/1:input", "0:embedding/1-2:input", "0:embedding,addmm/1-2:tanh"]
)
def test_what_a_kept_op_makes_for_others_too_is_freed_once(keep):
    target = target_of(
        Blocks, lambda size: torch.ones(size, 4, 8), loss_step(lambda model, batch: model(batch).sum()),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1), batch_size=2,
    )  # fmt: skip
    trace = profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]
    remat(trace, "ops", keep=keep)


class Residuals(nn.Module):
    """Blocks that autograd keeps a copy of their input of, and not the input."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(8, 8, dtype=torch.bfloat16)

        def forward(self, x):
            return x + self.line(x.float().tanh().bfloat16())

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_an_input_that_only_a_checkpoint_keeps_counts_as_saved():
    # GIVEN blocks whose inputs are gone after the forward pass
    target = target_of(
        Residuals, lambda size: torch.ones(size, 4, 8, dtype=torch.bfloat16),
        loss_step(lambda model, batch: model(batch).sum()), lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=2,
    )  # fmt: skip
    trace = profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]
    sums = [op.writes[0] for op in trace.ops if op.name == "aten.add.Tensor" and op.phase is Phase.FORWARD]
    assert not any(trace.storages[i].saved for i in sums)
    # WHEN they are computed again  THEN what goes into the second and the third is saved
    found = remat(trace, "full")
    assert [found.storages[i].saved for i in sums] == [True, True, False]
