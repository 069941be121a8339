"""Laws of the price of an op: more work is never cheaper, nothing beats the peaks, and measured times win."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.op_class import OpClass
from dnnmem.estimator.roofline import by_class, host_seconds, op_seconds
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Kind, Lane, Op, Storage, Trace
from dnnmem.estimator.work import work_of

A100 = find_device("a100-sxm-80gb")
MODEL = load(A100)


def product(m: int, n: int, k: int, dtype: str = "bfloat16", size: int = 2) -> tuple[Op, Storage]:
    out = Storage(id=0, nbytes=size * m * n, kind=Kind.TEMP, shape=(m, n), dtype=dtype)
    return Op(name="aten.mm.default", writes=(0,), flops=2 * m * n * k, moved_bytes=size * (m * k + k * n + m * n)), out


def seconds(op: Op, *storages: Storage, device: object = A100) -> float:
    work = work_of(Trace(ops=(op,), storages={s.id: s for s in storages}))
    return float(op_seconds(work, device, load(device))[0])  # type: ignore[arg-type]


def test_a_large_product_reaches_its_share_of_the_peak() -> None:
    """GIVEN a product that fills whole waves WHEN priced THEN it takes flops / (share * rate), and little more."""
    flops = 2 * 8192 * 13824 * 8192
    ideal = flops / (MODEL.gemm * A100.flops_per_s["bfloat16"])
    assert seconds(*product(8192, 13824, 8192)) == pytest.approx(ideal, rel=0.03)


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(["float32", "bfloat16"]))
def test_nothing_beats_the_peaks(m: int, n: int, k: int, dtype: str) -> None:
    """GIVEN any product WHEN priced THEN it takes no less than its flops at the peak rate."""
    op, out = product(m, n, k, dtype, 4 if dtype == "float32" else 2)
    assert seconds(op, out) > op.flops / A100.flops_per_s[dtype]


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_a_longer_product_is_never_cheaper(m: int, n: int, k: int) -> None:
    """GIVEN a product and one with longer sums WHEN both are priced THEN the longer takes as long or longer."""
    shorter, longer = product(64 * m, 64 * n, 64 * k), product(64 * m, 64 * n, 128 * k)
    assert seconds(*longer) >= seconds(*shorter)


def test_the_last_wave_costs_a_whole_one() -> None:
    """GIVEN one tile more than the multiprocessors take at once WHEN priced THEN it takes more than its flops do."""
    full, over = product(128 * 12, 256 * 9, 4096), product(128 * 12 + 16, 256 * 9, 4096)
    assert seconds(*over) / seconds(*full) > 1.1


def test_odd_rows_are_slow() -> None:
    """GIVEN a vocabulary padded by 47 rows WHEN priced THEN the padded product is faster."""
    assert seconds(*product(4096, 50304, 768)) < 0.6 * seconds(*product(4096, 50257, 768))


def test_streams_are_bound_by_memory_and_small_ones_by_their_launch() -> None:
    """GIVEN a copy of 1 GB, and one of 1 kB WHEN priced THEN one takes its bytes' time, the other a launch."""
    large = Op(name="aten.relu_.default", moved_bytes=10**9)
    small = Op(name="aten.relu_.default", moved_bytes=10**3)
    assert seconds(large) == pytest.approx(1e9 / (MODEL.stream * A100.memory_bytes_per_s) + MODEL.launch_seconds)
    assert seconds(small) == pytest.approx(MODEL.launch_seconds, rel=0.01)


def test_measured_seconds_win() -> None:
    """GIVEN an op that was timed WHEN priced THEN its time is the measured one."""
    assert seconds(Op(name="aten.relu_.default", moved_bytes=10**9, seconds=0.25)) == 0.25


def test_messages_are_priced_elsewhere_and_nothing_costs_nothing() -> None:
    """GIVEN a message and an allocation WHEN priced THEN the one is not a number, the other free."""
    assert np.isnan(seconds(Op(name="dnnmem.all_reduce.tp", lane=Lane.COMM, moved_bytes=1)))
    assert seconds(Op(name="aten.empty.memory_format")) == 0


def test_a_long_softmax_reads_its_rows_again() -> None:
    """GIVEN as many bytes in rows that fit shared memory and in longer ones WHEN priced THEN the longer take twice."""

    def softmax(rows: int, length: int) -> float:
        out = Storage(id=0, nbytes=4 * rows * length, kind=Kind.TEMP, shape=(rows, length), dtype="float32")
        return seconds(Op(name="aten._log_softmax.default", writes=(0,), moved_bytes=2 * out.nbytes), out)

    assert softmax(16384, 131072) / softmax(131072, 16384) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("name", "units"), [("_softmax", 7), ("_log_softmax", 4)])
def test_a_softmax_s_gradient_goes_over_long_rows_twice(name: str, units: int) -> None:
    """GIVEN gradients of long rows WHEN priced THEN they move 7 tensors, one for the product in memory; or 4."""
    out = Storage(id=0, nbytes=4 * 2**28, kind=Kind.TEMP, shape=(2**11, 2**17), dtype="float32")
    found = seconds(Op(name=f"aten.{name}_backward_data.default", writes=(0,), moved_bytes=3 * out.nbytes), out)
    assert found == pytest.approx(units * out.nbytes / (MODEL.stream * A100.memory_bytes_per_s), rel=0.01)


def test_few_groups_leave_multiprocessors_idle() -> None:
    """GIVEN one image and many WHEN a group norm is priced THEN the lone one is slower for its size."""

    def norm(images: int) -> float:
        shape = (images, 32, 2**16)
        image = Storage(id=0, nbytes=4 * images * 2**21, kind=Kind.TEMP, shape=shape, dtype="float32")
        sums = Storage(id=1, nbytes=32 * images, kind=Kind.TEMP, shape=(images, 8), dtype="float32")
        op = Op(name="aten.native_group_norm.default", writes=(0, 1), moved_bytes=2 * image.nbytes)
        return seconds(op, image, sums) / images

    assert norm(1) > 2 * norm(64)


@pytest.mark.parametrize(("rows", "length", "least", "most"), [(2**14, 2**10, 40, 50), (2**10, 2**14, 200, 260)])
def test_long_rows_are_sorted_digit_by_digit(rows: int, length: int, least: float, most: float) -> None:
    """GIVEN rows that fit shared memory, and longer ones WHEN sorted THEN the bytes an element tell the passes."""
    count = rows * length
    keys = Storage(id=0, nbytes=4 * count, kind=Kind.TEMP, shape=(rows, length), dtype="float32")
    places = Storage(id=1, nbytes=8 * count, kind=Kind.TEMP, shape=(rows, length), dtype="int64")
    found = seconds(Op(name="aten.sort.default", writes=(0, 1), moved_bytes=16 * count), keys, places)
    assert least < found * A100.memory_bytes_per_s / count < most


def test_one_warp_walks_all_labels() -> None:
    """GIVEN the choice among 32 and 32,768 labels WHEN priced THEN the second takes about a millisecond."""

    def choice(labels: int) -> float:
        loss = Storage(id=0, nbytes=4, kind=Kind.TEMP, shape=(), dtype="float32")
        given = Storage(id=1, nbytes=8 * labels, kind=Kind.INPUT, shape=(labels,), dtype="int64")
        return seconds(Op(name="aten.nll_loss_forward.default", reads=(1,), writes=(0,), moved_bytes=8), loss, given)

    assert choice(32) < 1e-5
    assert 0.8e-3 < choice(2**15) < 1.5e-3


def test_attention_of_cudnn_is_faster_by_its_factor() -> None:
    """GIVEN fused attention WHEN cuDNN runs it THEN the time over its launch is that of flash over the factor."""
    h100 = find_device("h100-sxm-80gb")
    out = Storage(id=0, nbytes=2**26, kind=Kind.TEMP, shape=(1, 32, 8192, 128), dtype="bfloat16")
    flash, cudnn = (
        seconds(
            Op(name=f"aten._scaled_dot_product_{name}_attention.default", writes=(0,), flops=10**13), out, device=h100
        )
        for name in ("flash", "cudnn")
    )
    model = load(h100)
    assert flash - model.launch_seconds == pytest.approx(model.cudnn_attention * (cudnn - model.launch_seconds))


def test_a_lower_power_limit_slows_arithmetic_only() -> None:
    """GIVEN the H100 of 500 W beside the one of 700 W WHEN a product is priced THEN it is slower by their power."""
    full, limited = find_device("h100-sxm-80gb"), find_device("h100-sxm-96gb-hbm2e-500w")
    op, out = product(8192, 8192, 8192)
    share = load(full).gemm / load(limited).gemm
    ratio = seconds(op, out, device=limited) / seconds(op, out, device=full)
    assert ratio == pytest.approx((700 / 500) ** MODEL.power_exponent * share, rel=0.01)


def test_the_classes_add_up() -> None:
    """GIVEN priced ops WHEN summed by class THEN the sums are the total, largest first, and a NaN counts nothing."""
    ops = (Op(name="aten.relu_.default", moved_bytes=10**9), Op(name="aten.sum.default", moved_bytes=10**6))
    work = work_of(Trace(ops=(*ops, Op(name="dnnmem.send.pp", lane=Lane.COMM)), storages={}))
    priced = op_seconds(work, A100, MODEL)
    sums = by_class(work, priced)
    assert list(sums) == ["stream", "reduction"]
    assert sum(sums.values()) == pytest.approx(float(np.nansum(priced)))


def test_the_host_issues_what_is_dispatched() -> None:
    """GIVEN two ops and the step's opening events WHEN the host is asked THEN it works for the two."""
    ops = (
        Op(name="dnnmem.begin"),
        Op(name="aten.relu_.default", reads=(0,)),
        Op(name="aten.relu_.default", reads=(0,)),
    )
    found = host_seconds(work_of(Trace(ops=ops, storages={})), MODEL)
    assert found.tolist() == [0, MODEL.host_seconds, MODEL.host_seconds]


def test_ten_thousand_ops_are_priced_at_once() -> None:
    """GIVEN 10,000 products WHEN priced THEN it takes well under a second on any machine."""
    op, out = product(512, 512, 512)
    work = work_of(Trace(ops=(op,) * 10_000, storages={0: out}))
    start = time.process_time()
    op_seconds(work, A100, MODEL)
    assert time.process_time() - start < 0.25
    assert (work.kind == OpClass.GEMM).all()
