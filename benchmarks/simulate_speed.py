"""How many ops `simulate` runs in a millisecond, on a made-up step whose gathers are issued ahead.

The aim is 1,000 ops in 2 ms, so that a search can price thousands of plans.
"""

from __future__ import annotations

import time

from dnnmem.estimator.simulate import simulate
from dnnmem.estimator.trace import Lane, Op


def step(layers: int, per_layer: int = 8) -> tuple[Op, ...]:
    """A chain of layers, each of which waits for a gather on the side lane that was issued one layer before."""
    ops: list[Op] = []
    for layer in range(layers):
        ops.append(Op(name="dnnmem.all_gather.dp_shard", lane=Lane.COMM, writes=(10**6 + layer,)))
        for i in range(per_layer - 1):
            at = layer * per_layer + i
            ops.append(Op(name="aten.mm", reads=(at - 1, 10**6 + max(layer - 1, 0)), writes=(at,)))
    return tuple(ops)


def main() -> None:
    """Print ops, milliseconds of the CPU (best of 5) and ops a millisecond."""
    for layers in (125, 1250, 6250):
        ops = step(layers)
        seconds, host = [1e-4] * len(ops), [1e-5] * len(ops)
        best = min(_timed(ops, seconds, host) for _ in range(5))
        print(f"{len(ops):6} ops  {best * 1e3:8.2f} ms  {len(ops) / best / 1e3:8.0f} ops/ms")


def _timed(ops: tuple[Op, ...], seconds: list[float], host: list[float]) -> float:
    began = time.process_time()
    simulate(ops, seconds, host)
    return time.process_time() - began


if __name__ == "__main__":
    main()
