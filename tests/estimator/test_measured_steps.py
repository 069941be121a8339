"""Measured steps as people have them: CSV files and training logs."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.measured_steps import parse_steps
from dnnmem.estimator.step_log import read_log


def test_a_row_says_what_ran_where_and_how_long():
    text = (
        "target,batch,seq,args,set,cluster,seconds,log\nm.py,8,1024,a=1;b=2,mesh.tp=2 remat.policy=full,h100:8,,x.log\n"
    )
    (row,) = parse_steps(text, "s.csv")
    assert (row.target, row.batch, row.seq, row.cluster, row.log, row.seconds) == (
        "m.py",
        8,
        1024,
        "h100:8",
        "x.log",
        None,
    )
    assert row.args == ("a=1", "b=2")
    assert row.settings == ("mesh.tp=2", "remat.policy=full")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch,seconds\n8,1\n", "needs target"),
        ("target,speed,seconds\nm.py,1,1\n", "speed"),
        ("target,seconds\n", "no row"),
        ("target,seconds\nm.py,fast\n", "line 2.*fast"),
        ("target,seconds\nm.py,-1\n", "above 0"),
        ("target,batch,seconds\nm.py,many,1\n", "whole number"),
        ("target,seconds,log\nm.py,1,a.log\n", "either"),
    ],
)
def test_a_faulty_row_is_named(text, said):
    with pytest.raises(UsageError, match=said):
        parse_steps(text, "s.csv")


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("iter 20: loss 4.1, time 135.20ms, mfu 30.1%", 0.1352),
        (" iteration 10/ 100 | elapsed time per iteration (ms): 12345.6 | loss 1", 12.3456),
        (" 40%|####  | 40/100 [00:12<00:18,  4.00it/s]", 0.25),
        ("epoch 1 3.5s/it", 3.5),
        ("step 10 loss 2.1 0.123 s", 0.123),
        ("step_time=0.5", 0.5),
        ("train: 350 ms/step", 0.35),
    ],
)
def test_a_line_tells_its_time(line, seconds):
    assert read_log(f"{line}\n" * 4).seconds == pytest.approx(seconds)


def test_the_median_after_the_warm_up_counts():
    text = "".join(f"step {i} took {9.0 if i < 3 else 0.5 + 0.001 * i} s\n" for i in range(30))
    found = read_log(text)
    assert found.lines == 27
    assert found.seconds == pytest.approx(0.516)


def test_tokens_per_second_need_the_tokens_of_a_step():
    found = read_log("step: 10  loss: 8.1  memory: 40GiB(42%)  tps: 5,605  mfu: 29%\n")
    assert found.seconds_of(11210) == pytest.approx(2.0)
    with pytest.raises(UsageError, match="tokens"):
        found.seconds_of(None)


def test_a_log_without_times_is_refused():
    with pytest.raises(UsageError, match="no line"):
        read_log("hello\nloss 3.2\n")
