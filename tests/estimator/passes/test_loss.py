"""A loss by chunks, as ops: nothing of a step is lost, log-probabilities or logits are never whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.draft import lives
from dnnmem.estimator.passes.loss import apply
from dnnmem.estimator.passes.loss_site import find_head, find_sites, logits_share
from dnnmem.estimator.plan import Batch, Loss, Mesh, Plan, Precision, Sharding
from dnnmem.estimator.trace import Kind, Phase, Storage
from tests.estimator.passes.steps import LLAMA, SIZES, gpt
from tests.profilers.recorded import zoo_fake

LOSSES = [Loss(chunks=4), Loss(fused=True), Loss(chunks=4, fused=True)]
TOKENS = 64


def with_classes(trace):
    """Bytes of what ops make with a class in each row, largest first."""
    made = (trace.storages[i] for i in lives(trace.ops))
    shapes = (s for s in made if s.shape and s.shape[-1] == SIZES["vocab"] and s.kind is not Kind.PARAM)
    return sorted((s.nbytes for s in shapes), reverse=True)


def test_the_head_and_its_loss_are_found():
    # GIVEN the sample model, its head tied to the embedding  WHEN its loss is looked for
    trace = gpt()
    known = lives(trace.ops)
    [site] = find_sites(trace, known)
    head = find_head(trace, known, site)
    # THEN logits are of all tokens, and the matrix is the embedding's
    assert trace.storages[site.logits].shape == (TOKENS, SIZES["vocab"])
    assert (trace.storages[head.weight].module, head.bias) == (("tokens",), None)
    assert len(head.gradients) == 2


def test_logits_of_a_frozen_head_that_reads_a_piece_of_each_text_are_found_too():
    # GIVEN a step whose logits a batched product makes, as PyTorch does of texts cut into pieces and a frozen matrix
    trace = gpt()
    [site] = find_sites(trace, lives(trace.ops))
    ops = list(trace.ops)
    ops[site.made] = replace(ops[site.made], name="aten.bmm.default")
    logits = replace(trace.storages[site.logits], shape=(2, TOKENS // 2, SIZES["vocab"]))
    trace = replace(trace, ops=tuple(ops), storages={**trace.storages, site.logits: logits})
    # WHEN its loss is looked for  THEN it goes by chunks, and is not fused with what makes its logits
    assert find_sites(trace, lives(trace.ops)) == [site]
    assert find_head(trace, lives(trace.ops), site) is None
    apply(trace, Plan(loss=Loss(chunks=4))).check()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("compute", [None, "bf16_amp", "bfloat16"])
@pytest.mark.parametrize("arguments", [{}, LLAMA], ids=["tied", "own"])
def test_all_the_work_is_done_piece_by_piece(loss, compute, arguments):
    # GIVEN a step in any type  WHEN its loss is taken by chunks
    precision = Precision(compute=compute)
    [plain] = rewrite(gpt(**arguments), Plan(precision=precision))
    [found] = rewrite(gpt(**arguments), Plan(precision=precision, loss=loss))
    # THEN it is a step that does as many products, and of rows with classes only logits are whole, or a chunk is
    found.check()
    assert sum(op.flops for op in found.ops) == sum(op.flops for op in plain.ops)
    largest = with_classes(found)[0]
    whole = TOKENS * SIZES["vocab"] * (4 if compute is None else 2)
    assert largest == (whole if not loss.fused else TOKENS // loss.chunks * SIZES["vocab"] * 4)
    assert found.pinned == plain.pinned


def test_a_fused_loss_makes_gradients_in_the_forward_pass_that_later_micro_batches_add():
    plan = Plan(loss=Loss(chunks=4, fused=True), batch=Batch(accumulation=2))
    [found] = rewrite(gpt(**LLAMA), plan)
    found.check()
    used = (found.storages[i] for i in lives(found.ops))
    head = next(s.id for s in used if s.kind is Kind.GRAD and s.module == ("head",))
    assert head in found.pinned
    assert any(op.name == "aten.add_.Tensor" and op.phase is Phase.BACKWARD and head in op.writes for op in found.ops)


def test_a_thread_that_multiplies_no_more_has_no_workspace():
    # GIVEN convolutions, whose backward pass multiplies matrices for the head alone, and a model of linear layers
    convolutions, linear = with_workspaces(zoo_fake("resnet").trace), with_workspaces(gpt(**LLAMA))
    # WHEN the head's gradients are made in the forward pass  THEN one thread needs room for products, else two do
    assert count_workspaces(convolutions, Loss(chunks=2)) == 2
    assert count_workspaces(convolutions, Loss(chunks=2, fused=True)) == 1
    assert count_workspaces(linear, Loss(chunks=2, fused=True)) == 2


def with_workspaces(trace):
    """What cuBLAS keeps for the thread of each pass."""
    others = {i: s for i, s in trace.storages.items() if s.name != "workspace"}
    new = (max(others) + 1, max(others) + 2)
    spaces = {i: Storage(id=i, nbytes=2**25, kind=Kind.TEMP, name="workspace") for i in new}
    return replace(trace, storages={**others, **spaces}, pinned=frozenset({*(trace.pinned & others.keys()), *new}))


def count_workspaces(trace, loss):
    [found] = rewrite(trace, Plan(loss=loss))
    found.check()
    return [found.storages[i].name for i in found.pinned].count("workspace")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(loss=Loss(chunks=2), precision=Precision(compute="fp16_amp")), "scale"),
        (Plan(loss=Loss(chunks=2), mesh=Mesh(tp=2)), "tp 2"),
        (Plan(loss=Loss(fused=True), mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero3")), "let go"),
    ],
)
def test_what_does_not_go_together_is_refused(plan, words):
    with pytest.raises(UnsupportedError, match=words):
        apply(gpt(), plan)


def test_logits_that_are_no_product_are_left_alone():
    # GIVEN logits that something was added to, as BART's are
    trace = gpt(3)
    [site] = find_sites(trace, lives(trace.ops))
    ops = list(trace.ops)
    ops[site.made] = replace(ops[site.made], name="aten.add.Tensor")
    # THEN no loss is found, since the model that is not rewritten could not take it by chunks
    with pytest.raises(UnsupportedError, match="find no cross entropy of logits"):
        apply(replace(trace, ops=tuple(ops)), Plan(loss=Loss(chunks=4)))


def test_a_step_without_logits_is_named():
    trace = zoo_fake("lstm").trace
    if not find_sites(trace, lives(trace.ops)):
        with pytest.raises(UnsupportedError, match="no cross entropy"):
            apply(trace, Plan(loss=Loss(chunks=2)))


def test_a_large_vocabulary_has_a_large_share():
    assert logits_share(gpt(layers=1, vocab=320)) > logits_share(gpt(layers=4, vocab=320)) > 0
    assert logits_share(zoo_fake("resnet").trace) < 0.01
