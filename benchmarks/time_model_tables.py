"""Harder tables of the time model than its unseen half: whole sources unseen, an architecture unseen, who is fastest.

    python benchmarks/time_model_tables.py TABLES [--rows N] [--most N]

left out      the fit sees no row of a source; then how its steps fare by the default site, and the others of its steps
              after `dnnmem calibrate` on 1 or 3 of them (on each GPU)
unseen        the fit sees no row of Hopper, whose shares are the benchmarks', less what training leaves of Ampere's;
              then as above, by source
strategies    steps of one model and global batch on as many GPUs: how much slower the one that is predicted fastest is
              than the fastest, by a fit that saw no row of the source
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import numpy as np
from fit_time_model import ARCHES, SOURCES, Floats, Name, Row, carried, fit, model_of, parameters, prepare, report, thin

from dnnmem.estimator.calibration import fit as calibrate
from dnnmem.estimator.estimate import price

DRAWS = 2
"""Choices of calibration steps."""
AFTER = 16
"""Most steps of a GPU that are predicted after a calibration, evenly."""
SEEN, UNSEEN = ARCHES


def main() -> None:
    """Read, record, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=50, help="most training rows of a source")
    parser.add_argument("--most", type=int, default=10**6, help="most rows of a source, both halves")
    options = parser.parse_args()
    tables(prepare(options.folder, SOURCES, options.most), options.rows)


def tables(rows: Sequence[Row], most: int) -> None:
    """Print them all."""
    names = parameters(rows)
    train = thin([row for row in rows if not row.is_test], most)
    slopes: dict[int, Floats] = {}
    seen = fit(train, names, slopes)
    for source in SOURCES:
        print(f"seen half   {source}")
        strategies([row for row in rows if row.case.source == source], seen)
        others = fit([row for row in train if row.case.source != source], names, slopes)
        left = {name: value for name, value in others.items() if name[0] != f"site:{source}"}
        own = [row for row in rows if row.case.source == source]
        report("left out", own, left)
        for steps in (1, 3):
            calibrated(own, left, steps)
        strategies(own, left)
    own, left = unseen(rows, train, names, slopes)
    report("unseen", own, left)
    for source in sorted({row.case.source for row in own}):
        for steps in (1, 3):
            calibrated([row for row in own if row.case.source == source], left, steps)


def unseen(
    rows: Sequence[Row], train: Sequence[Row], names: Sequence[Name], slopes: dict[int, Floats]
) -> tuple[list[Row], dict[Name, float]]:
    """Rows of the architecture that the fit does not see, and the parameters."""
    values = carried(fit([row for row in train if row.arch != UNSEEN], names, slopes), UNSEEN, SEEN)
    known = {name: value for name, value in values.items() if not name[0].startswith("site:")}
    return [row for row in rows if row.arch == UNSEEN], known


def calibrated(rows: Sequence[Row], values: dict[Name, float], steps: int) -> None:
    """Errors over the other rows after a calibration on so many steps of each GPU: all draws together."""
    errors, inside = [], []
    for draw in range(DRAWS):
        for name in sorted({row.step.cluster.device.name for row in rows}):
            own = [row for row in rows if row.step.cluster.device.name == name]
            seen = chosen(own, steps, draw)
            rest = thin([row for row in own if row not in seen], AFTER)
            if not rest:
                continue
            model = calibrate([r.step for r in seen], [r.seconds for r in seen], model_of(own[0], values)).model
            for row in rest:
                found = price(row.step, model, memory=False)
                errors.append(abs(found.step_seconds / row.seconds - 1))
                inside.append(found.interval_seconds[0] <= row.seconds <= found.interval_seconds[1])
    print(
        f"  calibrated with {steps}: mean {100 * np.mean(errors):.1f} %  median {100 * np.median(errors):.1f} %  in its"
        f" interval {100 * np.mean(inside):.0f} %",
        flush=True,
    )


def chosen(rows: Sequence[Row], steps: int, draw: int) -> list[Row]:
    """Steps as users are told to choose them: a small and a large micro-batch, the others anywhere; one alone: any."""
    chance = Random(draw)  # noqa: S311  (no secret)
    if steps == 1 or len(rows) <= steps:
        return chance.sample(list(rows), 1)
    by_size = sorted(rows, key=lambda row: row.step.model_flops / row.case.plan.mesh.tp / row.case.plan.mesh.pp)
    part = max(1, len(rows) // 4)
    ends = [chance.choice(by_size[:part]), chance.choice(by_size[-part:])]
    middle = [row for row in rows if row not in ends]
    return [*ends, *chance.sample(middle, steps - 2)]


def strategies(rows: Iterable[Row], values: dict[Name, float]) -> None:
    """How much slower the step predicted fastest is than the fastest, by workload."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        plan, case = row.case.plan, row.case
        batch = plan.batch.micro_batch * plan.batch.accumulation * plan.mesh.data_ranks
        model = tuple(arg for arg in case.target_args if not arg.startswith("vocab="))
        groups.setdefault((model, case.layers, case.seq, case.cluster, plan.mesh.world_size, batch), []).append(row)
    regrets = []
    for own in groups.values():
        if len({repr(row.case.plan) for row in own}) < 2:
            continue
        best = min(own, key=lambda row: price(row.step, model_of(row, values), memory=False).step_seconds)
        regrets.append(best.seconds / min(row.seconds for row in own) - 1)
    if regrets:
        print(
            f"  strategies: {len(regrets)} workloads, best predicted against best: mean "
            f"{100 * np.mean(regrets):.1f} % median {100 * np.median(regrets):.1f} % worst {100 * max(regrets):.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
