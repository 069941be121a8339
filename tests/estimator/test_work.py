"""What an op asks of the GPU is told from its name, its flops and the shapes of its storages."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from dnnmem.estimator.op_class import OpClass, kind_of
from dnnmem.estimator.trace import Kind, Lane, Op, Origin, Storage, Trace
from dnnmem.estimator.work import DTYPES, GRAPHS, Work, work_of


def work(op: Op, *storages: Storage, origin: Origin | None = None) -> Work:
    return work_of(Trace(ops=(op,), storages={s.id: s for s in storages}, origin=origin or Origin()))


def tensor(i: int, *shape: int, dtype: str = "float16") -> Storage:
    size = {"float16": 2, "bfloat16": 2, "float32": 4}[dtype]
    return Storage(id=i, nbytes=size * int(np.prod(shape)), kind=Kind.TEMP, shape=shape, dtype=dtype)


def row(found: Work) -> tuple[float, float, float, float]:
    return float(found.m[0]), float(found.n[0]), float(found.k[0]), float(found.batch[0])


@pytest.mark.parametrize(
    ("name", "shape", "flops", "expected"),
    [
        ("aten.mm.default", (64, 48), 2 * 64 * 48 * 32, (64, 48, 32, 1)),
        ("aten.addmm.default", (64, 48), 2 * 64 * 48 * 32, (64, 48, 32, 1)),
        ("aten.bmm.default", (6, 64, 48), 6 * 2 * 64 * 48 * 32, (64, 48, 32, 6)),
        ("aten.mv.default", (64,), 2 * 64 * 32, (64, 1, 32, 1)),
    ],
)
def test_a_product_has_its_output_s_sides_and_its_flops_give_the_third(
    name: str, shape: tuple[int, ...], flops: int, expected: tuple[int, ...]
) -> None:
    """GIVEN a product WHEN its row is made THEN m and n are those of what it writes, and k fits the flops."""
    found = work(Op(name=name, writes=(0,), flops=flops), tensor(0, *shape))
    assert row(found) == expected


def test_a_product_of_heads_split_over_ranks_has_a_rank_s_heads() -> None:
    """GIVEN scores of 2 heads, their product written as 16 of an eighth WHEN its row is made THEN it is of 2 heads."""
    scores, values, attended = tensor(0, 2, 1024, 512), tensor(1, 512, 768), tensor(2, 16, 1024, 16)
    op = Op(name="aten.bmm.default", reads=(0, 1), writes=(2,), flops=2 * 2 * 1024 * 128 * 512)
    found = work(op, scores, values, attended)
    assert row(found) == (1024, 128, 512, 2)


def test_a_product_of_unknown_shape_keeps_its_flops() -> None:
    """GIVEN a product into a storage that says nothing WHEN its row is made THEN 2 m n k are its flops all the same."""
    found = work(Op(name="aten.mm.out", writes=(0,), flops=2 * 8**3), tensor(0, 1))
    m, n, k, batch = row(found)
    assert 2 * m * n * k * batch == pytest.approx(2 * 8**3)


@pytest.mark.parametrize(
    ("channels", "weight", "kind", "expected"),
    [
        (32, (64, 32, 3, 3), OpClass.CONV, (8 * 14 * 14, 64, 288, 1)),
        (32, (64, 4, 3, 3), OpClass.GROUPED_CONV, (8 * 14 * 14, 8, 36, 8)),
        (32, (32, 1, 3, 3), OpClass.DEPTHWISE_CONV, (8 * 14 * 14, 1, 9, 32)),
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_a_convolution_is_a_product_per_group(
    *, channels: int, weight: tuple[int, ...], kind: OpClass, expected: tuple[int, ...], backward: bool
) -> None:
    """GIVEN a convolution, or its gradient WHEN its row is made THEN groups, places, channels and window are told."""
    image, kernel, out = tensor(0, 8, channels, 28, 28), tensor(1, *weight), tensor(2, 8, weight[0], 14, 14)
    if backward:
        grads = tensor(3, 8, channels, 28, 28), tensor(4, *weight)
        op = Op(name="aten.convolution_backward.default", reads=(2, 0, 1), writes=(3, 4), flops=4)
        found = work(op, image, kernel, out, *grads)
    else:
        found = work(Op(name="aten.convolution.default", reads=(0, 1), writes=(2,), flops=2), image, kernel, out)
    assert OpClass(found.kind[0]) is kind
    assert row(found) == expected
    assert found.kernels[0] == (6 if backward else 3)  # images in order and back


def test_what_a_causal_kernel_skips_is_not_work() -> None:
    """GIVEN attention half of which is masked WHEN its row is made THEN only the other half is carried out."""
    name = "aten._scaled_dot_product_flash_attention.default"
    found = work(Op(name=name, writes=(0,), flops=100, masked_flops=48), tensor(0, 2, 4, 16, 64))
    assert (found.flops[0], found.k[0]) == (52, 64)


@pytest.mark.parametrize(
    ("read", "written", "expected"),
    [
        (tensor(0, 64, 512), tensor(1, 64, 512), OpClass.STREAM),
        (tensor(0, 64, 512, dtype="float32"), tensor(1, 64, 512), OpClass.EAGER),
        (tensor(0, 1, 5120), tensor(1, 64, 5120), OpClass.EAGER),
    ],
)
def test_casts_and_broadcasts_compute_addresses(read: Storage, written: Storage, expected: OpClass) -> None:
    """GIVEN an element-wise op WHEN its tensors differ in type or size THEN it is eager, else it streams."""
    found = work(Op(name="aten.mul.Tensor", reads=(0,), writes=(1,), moved_bytes=1), read, written)
    assert OpClass(found.kind[0]) is expected


def test_rows_tell_how_they_are_aligned() -> None:
    """GIVEN a product with a vocabulary of odd size WHEN its row is made THEN its rows are aligned to nothing."""
    odd = work(Op(name="aten.mm.default", writes=(0,), flops=2 * 16 * 50257 * 8), tensor(0, 16, 50257))
    even = work(Op(name="aten.mm.default", writes=(0,), flops=2 * 16 * 50304 * 8), tensor(0, 16, 50304))
    assert (odd.align[0], even.align[0]) == (1, 16)


def test_a_step_of_cuda_graphs_dispatches_nothing() -> None:
    """GIVEN a step that a graph replays WHEN its rows are made THEN the host has no part in them."""
    op = Op(name="aten.mm.default", writes=(0,), flops=2)
    graphs = Origin(versions={GRAPHS: "whole step"})
    assert work(op, tensor(0, 1, 1)).host_ops[0] == 1
    assert work(op, tensor(0, 1, 1), origin=graphs).host_ops[0] == 0


def test_other_lanes_and_empty_ops_launch_nothing() -> None:
    """GIVEN a message, and an op that only makes a tensor WHEN rows are made THEN neither has a kernel."""
    message = work(Op(name="dnnmem.all_reduce.tp", lane=Lane.COMM, moved_bytes=4))
    empty = work(Op(name="aten.empty_like.default", writes=(0,)), tensor(0, 4))
    assert (OpClass(message.kind[0]), message.kernels[0]) == (OpClass.LANE, 0)
    assert (OpClass(empty.kind[0]), empty.kernels[0]) == (OpClass.NONE, 0)


def test_lists_of_tensors_take_several_launches() -> None:
    """GIVEN a foreach op over many tensors WHEN its row is made THEN it launches once for some 36 of them."""
    ids = tuple(range(600))
    found = work(Op(name="aten._foreach_add_.List", reads=ids, writes=ids, moved_bytes=9), *(tensor(i, 8) for i in ids))
    assert found.kernels[0] == 6


def test_nothing_gives_an_empty_table() -> None:
    """GIVEN no ops WHEN the table is made THEN it has no rows."""
    assert work_of(Trace(ops=(), storages={})).kind.size == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arithmetic_runs_in_the_output_s_type(dtype: str) -> None:
    """GIVEN a product WHEN its row is made THEN its rate is that of what it writes."""
    found = work(Op(name="aten.mm.default", writes=(0,), flops=2 * 64), tensor(0, 8, 8, dtype=dtype))
    assert DTYPES[found.dtype[0]] == dtype


def test_every_class_is_named_once() -> None:
    """GIVEN operators of each class WHEN asked THEN backward and forward of attention differ, the unknown stream."""
    assert kind_of("aten._flash_attention_backward.default") is OpClass.ATTENTION_BACKWARD
    assert kind_of("aten._flash_attention_forward.default") is OpClass.ATTENTION_FORWARD
    assert kind_of("dnnmem.begin") is OpClass.NONE
    assert kind_of("dnnmem.fused") is OpClass.STREAM
    assert kind_of("mine.never_heard_of.default") is OpClass.STREAM


def test_convolutions_in_single_precision_run_as_tf32() -> None:
    """GIVEN a convolution and a product in float32 WHEN rows are made THEN torch's defaults let the one round."""
    image, kernel, out = (tensor(i, 4, 8, 8, 8, dtype="float32") for i in range(3))
    conv = work(Op(name="aten.convolution.default", reads=(0, 1), writes=(2,), flops=2), image, kernel, out)
    product = work(Op(name="aten.mm.default", writes=(0,), flops=2 * 64), tensor(0, 8, 8, dtype="float32"))
    assert (DTYPES[conv.dtype[0]], DTYPES[product.dtype[0]]) == ("tf32", "float32")


def test_images_in_half_precision_are_turned_unless_their_channels_come_last() -> None:
    """GIVEN one convolution over images of either layout WHEN rows are made THEN cuDNN copies the one."""

    def turned(*, last: bool, dtype: str = "float16") -> bool:
        image, kernel, out = (replace(tensor(i, 4, 8, 8, 8, dtype=dtype), channels_last=last) for i in range(3))
        op = Op(name="aten.convolution.default", reads=(0, 1), writes=(2,), flops=2)
        return bool(work(op, image, kernel, out).turned[0])

    assert (turned(last=False), turned(last=True), turned(last=False, dtype="float32")) == (True, False, False)


def test_a_part_of_an_image_is_no_group() -> None:
    """GIVEN a dense convolution over a quarter of the channels WHEN priced THEN bytes or its gradient tell."""
    image, kernel, out, grad = (
        tensor(0, 2, 32, 8, 8),
        tensor(1, 8, 8, 3, 3),
        tensor(2, 2, 8, 8, 8),
        tensor(3, 2, 8, 8, 8),
    )
    moved = image.nbytes // 4 + kernel.nbytes + out.nbytes
    forward = Op(name="aten.convolution.default", reads=(0, 1), writes=(2,), flops=2, moved_bytes=moved)
    backward = Op(name="aten.convolution_backward.default", reads=(2, 0, 1), writes=(3, 1), flops=4, moved_bytes=moved)
    for op in (forward, backward):
        assert OpClass(work(op, image, kernel, out, grad).kind[0]) is OpClass.CONV


@pytest.mark.parametrize(("part", "kind"), [(False, OpClass.EAGER), (True, OpClass.INDEX)])
def test_joining_parts_of_tensors_divides_out_each_place(*, part: bool, kind: OpClass) -> None:
    """GIVEN tensors joined, and the half of one WHEN their row is made THEN only the half lies in pieces."""
    halves, out = (tensor(0, 80, 64), tensor(1, 80, 128 if part else 32)), tensor(2, 80, 128 if part else 96)
    moved = 2 * out.nbytes
    found = work(Op(name="aten.cat.default", reads=(0, 1), writes=(2,), moved_bytes=moved), *halves, out)
    assert OpClass(found.kind[0]) is kind


def test_a_group_norm_adds_up_groups_and_backward_channels() -> None:
    """GIVEN a group norm and its gradient WHEN their rows are made THEN a row is a group, and a channel."""
    image, sums = tensor(0, 4, 32, 100), tensor(1, 4, 8)
    forward = Op(name="aten.native_group_norm.default", reads=(0,), writes=(2, 1))
    backward = Op(name="aten.native_group_norm_backward.default", reads=(0, 2, 1), writes=(3,))
    out, grad = tensor(2, 4, 32, 100), tensor(3, 4, 32, 100)
    assert work(forward, image, sums, out).n[0] == 400
    assert work(backward, image, sums, out, grad).n[0] == 100


def test_an_embedding_s_gradient_adds_up_rows_that_differ() -> None:
    """GIVEN as many tokens as a table has rows WHEN the row is made THEN 63 % of the table's rows are summed up too."""
    op = Op(name="aten.embedding_dense_backward.default", reads=(0,), writes=(1,), moved_bytes=0)
    found = work(op, tensor(0, 1000, 8), tensor(1, 1000, 8))
    assert found.m[0] == pytest.approx(8000 * 1.632, rel=1e-3)


def test_an_update_in_place_of_many_tensors_takes_as_long_as_it_has() -> None:
    """GIVEN an update of 40,000 tensors in place WHEN its row is made THEN no tensor is looked for among all others."""
    ids = tuple(range(40_000))
    storages = {i: tensor(i, 8) for i in ids}
    op = Op(name="aten._foreach_add_.Scalar", reads=ids, writes=ids, moved_bytes=64)
    began = time.process_time()
    work_of(Trace(ops=(op,), storages=storages))
    assert time.process_time() - began < 2  # a look at all for each takes ten times that
