"""Fused kernels read and write what somebody outside has, and hold nothing else in memory."""

from __future__ import annotations

from dnnmem.estimator.passes.kernels import CAST, NAME, apply
from dnnmem.estimator.plan import Kernels, Plan
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.work import GRAPHS
from tests.estimator.passes.steps import gpt

FUSED = Plan(kernels=Kernels(fusion="pointwise"))


def storage(i: int, *shape: int, kind: Kind = Kind.TEMP) -> Storage:
    nbytes = 4
    for side in shape:
        nbytes *= side
    return Storage(id=i, nbytes=nbytes, kind=kind, shape=shape, dtype="float32")


def norm_like() -> Trace:
    """x (pinned) -> mm a -> squared b -> mean c -> a * c = d -> mm e, with b and c used nowhere else."""
    held = {0: storage(0, 8, 16), 1: storage(1, 8, 16), 2: storage(2, 8, 16), 3: storage(3, 8, 1), 4: storage(4, 8, 16)}
    held[5] = storage(5, 8, 4)
    new = {i: Event(s.nbytes, 0, i) for i, s in held.items()}
    gone = {i: Event(-s.nbytes, 0, i) for i, s in held.items()}
    ops = (
        Op(name="aten.mm.default", reads=(0,), writes=(1,), events=(new[1],), flops=8, moved_bytes=9),
        Op(name="aten.pow.Tensor_Scalar", reads=(1,), writes=(2,), events=(new[2],), moved_bytes=1024),
        Op(name="aten.mean.dim", reads=(2,), writes=(3,), events=(new[3], gone[2]), moved_bytes=544),
        Op(name="aten.mul.Tensor", reads=(1, 3), writes=(4,), events=(new[4], gone[3]), moved_bytes=1056),
        Op(name="aten.mm.default", reads=(4,), writes=(5,), events=(new[5],), flops=8, moved_bytes=9),
        Op(name="aten.relu_.default", reads=(5,), writes=(5,), events=(gone[1], gone[4], gone[5]), moved_bytes=256),
    )
    trace = Trace(ops=ops, storages=held, pinned=frozenset({0}))
    trace.check()
    return trace


def test_neighbours_become_one_kernel_that_moves_what_goes_out_and_in() -> None:
    """GIVEN a norm made of three ops WHEN fused THEN one kernel reads its input and writes its output once each."""
    fused = apply(norm_like(), FUSED)
    assert [op.name for op in fused.ops] == ["aten.mm.default", NAME, "aten.mm.default", "aten.relu_.default"]
    kernel = fused.ops[1]
    assert (kernel.reads, kernel.writes, kernel.moved_bytes) == ((1,), (4,), 512 + 512)


def test_what_lives_inside_is_never_in_memory() -> None:
    """GIVEN temporaries of fused ops WHEN fused THEN they and their events are gone, and a trace's rules hold."""
    trace = norm_like()
    fused = apply(trace, FUSED)
    fused.check()
    assert {2, 3}.isdisjoint(fused.storages)
    assert {event.storage for _, event in fused.events()} == {1, 4, 5}
    assert fused.peak_bytes() <= trace.peak_bytes()


def test_what_is_read_later_is_written() -> None:
    """GIVEN an inner result that the backward pass reads WHEN fused THEN the kernel writes it too."""
    trace = norm_like()
    late = Op(name="aten.mm.default", phase=Phase.BACKWARD, reads=(3, 5), writes=(5,), flops=8, moved_bytes=9)
    ops = list(trace.ops)
    ops[3] = Op(name="aten.mul.Tensor", reads=(1, 3), writes=(4,), events=ops[3].events[:1], moved_bytes=1056)
    last = ops.pop()
    ops += [late, Op(name="aten.relu_.default", reads=(5,), writes=(5,), events=(*last.events, Event(-32, 0, 3)))]
    kernel = apply(Trace(ops=tuple(ops), storages=trace.storages, pinned=trace.pinned), FUSED).ops[1]
    assert kernel.writes == (3, 4)
    assert kernel.moved_bytes == 512 + 512 + 32


def test_strangers_and_sums_over_columns_stay_apart() -> None:
    """GIVEN neighbours without a common storage, and a bias gradient WHEN fused THEN all stay as they are."""
    held = {i: storage(i, 8, 16) for i in range(4)} | {4: storage(4, 16)}
    ops = (
        Op(name="aten.relu_.default", reads=(0,), writes=(0,), moved_bytes=1024),
        Op(name="aten.relu_.default", reads=(1,), writes=(1,), moved_bytes=1024),
        Op(name="aten.sum.dim_IntList", reads=(1,), writes=(4,), moved_bytes=576),
    )
    trace = Trace(ops=ops, storages=held, pinned=frozenset(held))
    assert apply(trace, FUSED).ops == ops


def test_passes_and_the_optimizer_end_a_kernel() -> None:
    """GIVEN ops of three phases over one storage WHEN fused THEN none joins another phase, and updates stay apart."""
    phases = (Phase.FORWARD, Phase.FORWARD, Phase.BACKWARD, Phase.STEP, Phase.STEP)
    ops = tuple(Op(name="aten.relu_.default", phase=p, reads=(0,), writes=(0,), moved_bytes=1024) for p in phases)
    trace = Trace(ops=ops, storages={0: storage(0, 8, 16)}, pinned=frozenset({0}))
    found = apply(trace, FUSED)
    assert [(op.phase, op.name == NAME) for op in found.ops] == [
        (Phase.FORWARD, True), (Phase.BACKWARD, False), (Phase.STEP, False), (Phase.STEP, False),
    ]  # fmt: skip


def test_nothing_asked_changes_nothing() -> None:
    """GIVEN the default plan WHEN applied THEN the trace is the same object."""
    trace = norm_like()
    assert apply(trace, Plan()) is trace


def test_graphs_are_noted() -> None:
    """GIVEN a plan with CUDA graphs WHEN applied THEN the trace says so where the time model reads it."""
    assert GRAPHS in apply(norm_like(), Plan(kernels=Kernels(graphs=True))).origin.versions


def test_hand_written_kernels_leave_norms_and_dropouts_beside_a_softmax_alone() -> None:
    """GIVEN scale, mask, softmax, dropout, then an add and a norm WHEN fused by hand THEN as Megatron has them."""
    names = ("mul.Tensor", "masked_fill.Scalar", "_softmax.default", "native_dropout.default", "add.Tensor")
    chain = [*names, "native_layer_norm.default"]
    held = {i: storage(i, 8, 16, kind=Kind.ACTIVATION) for i in range(len(chain) + 1)}
    ops = tuple(
        Op(name=f"aten.{name}", reads=(i,), writes=(i + 1,), events=(Event(512, 0, i + 1),), moved_bytes=1024)
        for i, name in enumerate(chain)
    )
    trace = Trace(ops=ops, storages=held, pinned=frozenset({0}))
    fused = apply(trace, Plan(kernels=Kernels(fusion="hand")))
    assert [op.name for op in fused.ops] == [NAME, NAME, "aten.native_layer_norm.default"]
    assert [op.moved_bytes for op in fused.ops] == [1024, 1024, 1024]
    assert len(apply(trace, FUSED).ops) == 1


def test_blocks_that_are_compiled_leave_the_loss_as_it_is():
    trace = gpt(3)
    found = apply(trace, Plan(kernels=Kernels(fusion="blocks")))
    found.check()
    names = {op.module[0] if op.module else "": [] for op in found.ops}
    for op in found.ops:
        names[op.module[0] if op.module else ""].append(op.name)
    assert NAME in names["blocks"]
    assert NAME not in names["<loss>"]
    assert NAME in [op.name for op in apply(trace, FUSED).ops if op.module == ("<loss>",)]


def test_a_softmax_of_few_matrices_is_not_fused_by_hand() -> None:
    """GIVEN a mask and a softmax over 2 or 4 matrices WHEN fused by hand THEN only 4 are, as in Megatron."""
    names = {}
    for matrices in (2, 4):
        held = {i: storage(i, matrices, 8, 8) for i in range(3)}
        new = [Event(held[i].nbytes, 0, i) for i in (1, 2)]
        mask = Op(name="aten.masked_fill.Scalar", reads=(0,), writes=(1,), events=(new[0],), moved_bytes=512)
        gone = tuple(Event(-held[i].nbytes, 0, i) for i in (1, 2))
        softmax = Op(name="aten._softmax.default", reads=(1,), writes=(2,), events=(new[1], *gone), moved_bytes=512)
        trace = Trace(ops=(mask, softmax), storages=held, pinned=frozenset({0}))
        fused = apply(trace, Plan(kernels=Kernels(fusion="hand")))
        fused.check()
        names[matrices] = [op.name for op in fused.ops]
    assert names == {2: [CAST] * 3 + ["aten.masked_fill.Scalar", "aten._softmax.default"], 4: [NAME]}
