"""Chains of small numbers, and what plans of them cost, by going through them: what planners are held against."""

from __future__ import annotations

from hypothesis import strategies as st

from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.segments import Run

SMALL = st.integers(0, 6)


@st.composite
def chains(draw, *, most=6, breaks=True):
    """Blocks with small numbers, then the loss; some do not follow the one before."""
    count = draw(st.integers(1, most))
    stages = []
    made = 0
    for k in range(count + 1):
        saved, forward = draw(st.integers(1, 8)), draw(st.integers(1, 5))
        shared = draw(st.integers(0, made))
        entering = draw(st.integers(0, made - shared))
        made = draw(st.integers(0, saved))
        own = draw(st.integers(0, saved - made))
        stages.append(
            Stage(
                block=k if k < count else None,
                follows=0 < k < count and (draw(st.integers(0, 4)) > 0 or not breaks),
                forward_seconds=float(forward),
                backward_seconds=float(draw(st.integers(1, 5))),
                input_bytes=shared + entering,
                saved_bytes=saved,
                gradient_bytes=draw(SMALL) if k < count else 0,
                left_bytes=draw(st.integers(0, 3)),
                light_bytes=draw(SMALL),
                forward_bytes=saved + draw(SMALL),
                backward_bytes=saved + draw(SMALL),
                spared_seconds=float(draw(st.integers(0, forward))),
                sent_bytes=own + shared + entering,
                sent_own_bytes=own,
                sent_input_bytes=entering,
                sent_shared_bytes=shared,
            )
        )
    return Chain(stages=tuple(stages), base_bytes=0)


def play(chain, runs):
    """Seconds and peak of a chain whose `runs` are computed again."""
    return play_part(chain.stages, 0, len(chain.stages) - 1, {run.first: run for run in runs}, 0)


def play_part(stages, s, t, runs, live):
    """The same of the stages `s` to `t`, with `live` bytes besides."""
    gradient, peak, seconds, tape, k = stages[t].gradient_bytes, 0, 0.0, [], s
    while k <= t:
        run = runs.get(k)
        last = run.last if run else k
        for j in range(k, last + 1):
            need = stages[j].light_bytes + (stages[j].input_bytes if j > k else 0) if run else stages[j].forward_bytes
            peak = max(peak, live + gradient + need)
            seconds += stages[j].forward_seconds
        kept = stages[last + 1].input_bytes if run else stages[k].saved_bytes
        live += kept
        tape.append((k, run, kept))
        k = last + 1
    for k, run, kept in reversed(tape):
        live -= kept
        if run:
            again, most = play_part(stages, k, run.last, {inner.first: inner for inner in run.inner}, live)
            seconds, peak = seconds + again, max(peak, most)
            live += sum(stage.left_bytes for stage in stages[k : run.last + 1])
        else:
            peak = max(peak, live + stages[k].backward_bytes)
            seconds += stages[k].backward_seconds
            if k == t < len(stages) - 1:  # a run that is computed again ends with what its last stage needs
                seconds -= stages[k].spared_seconds
            live += stages[k].left_bytes
    return seconds, peak


def ways(stages, s, t):
    """All that can be computed again of the stages `s` to `t`."""
    if s == t:
        return [()]
    found = list(ways(stages, s + 1, t))
    for u in ends(stages, s, t):
        found += [
            (Run(first=s, last=u - 1, inner=inner), *rest)
            for inner in ways(stages, s, u - 1)
            for rest in ways(stages, u, t)
        ]
    return found


def ends(stages, s, t):
    """Where runs that begin with `s` may end: the stage behind them, up to `t`."""
    for u in range(s + 1, t + 1):
        if stages[u - 1].block is None or (u - 1 > s and not stages[u - 1].follows):
            return
        yield u
