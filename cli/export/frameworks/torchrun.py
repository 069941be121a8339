"""The command that starts a plan's processes.

>>> from dnnmem.estimator.plan import Mesh, Plan
>>> print(render(Ask(plan=Plan(mesh=Mesh(dp_replicate=2)))).text.splitlines()[-1])
torchrun --standalone --nproc-per-node 2 train.py
"""

from __future__ import annotations

from dnnmem.cli.export.frameworks.ask import Ask, Fragment


def render(ask: Ask) -> Fragment:
    """One line for the shell; on several machines `HOST` is the first one's name."""
    if ask.nodes == 1:
        where = "--standalone"
    else:
        where = f'--nnodes {ask.nodes} --rdzv-backend c10d --rdzv-id dnnmem --rdzv-endpoint "$HOST:29500"'
    line = f"torchrun {where} --nproc-per-node {ask.ranks_per_node} train.py"
    return ask.fragment(["# train.py does the rest of the plan: dnnmem.apply(model, optimizer, plan)", line], {"mesh"})
