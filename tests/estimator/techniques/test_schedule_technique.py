"""How many chunks stages are searched with."""

from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Batch, Mesh, Plan
from dnnmem.estimator.techniques import Scope, schedule


@pytest.mark.parametrize(
    ("gpus", "pp", "expected"),
    [
        (8, 2, [2, 3, 4, 6, 8]),
        (16384, 4, [*range(2, 10)]),  # at every number blocks may be dealt evenly
        (16384, 16, [*range(2, 8)]),  # 7 x 16 = 112 of 126 blocks
    ],
)
def test_stages_have_as_many_chunks_as_there_are_blocks_for(gpus, pp, expected):
    scope = Scope(
        cluster=find_cluster(f"h100-sxm-80gb:{gpus}"), gpus=(gpus,), global_batch=gpus, micro_batches=(1,), blocks=126,
        fields=frozenset({"pipeline"}),
    )  # fmt: skip
    rows = schedule.techniques(scope, Plan(mesh=Mesh(pp=pp), batch=Batch(accumulation=16)))
    settings = [row.settings[1] for row in rows if row.name == "interleaved"]
    assert settings == [f"pipeline.chunks={chunks}" for chunks in expected]
