"""Compression is searched where it is allowed: codes and projections change training, masks are asked for by name."""

from __future__ import annotations

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Compression, Plan, Remat
from dnnmem.estimator.techniques import Scope, choices
from dnnmem.estimator.techniques.compression import techniques


def scope(**options):
    given = {"global_batch": 8, "micro_batches": (8,), "blocks": 4, "gpus": (1,), "fields": frozenset({"compression"})}
    return Scope(cluster=find_cluster("h100-sxm-80gb:1"), **{**given, **options})


def test_nothing_is_compressed_unless_it_is_allowed():
    assert all(choice.plan.compression == Compression() for choice in choices(scope()))


def test_all_of_it_where_it_is_allowed():
    # GIVEN leave to compress  THEN each way is there, and what changes training says so
    found = {c.plan.compression: c for c in choices(scope(allow=frozenset({"compression"}))) if c.count == 1}
    ways = {bits: Compression(bits=bits, masks=True) for bits in (8, 4, 2)}
    assert {*ways.values(), Compression(masks=True), Compression(projection=0.25)} <= found.keys()
    assert all(found[way].alters for way in ways.values())
    assert not found[Compression(masks=True)].alters


def test_nothing_that_it_does_not_go_with():
    # GIVEN ops that are kept  THEN nothing is compressed; inputs of blocks are not projected
    allowed = scope(allow=frozenset({"compression"}))
    assert len(techniques(allowed, Plan(remat=Remat(policy="selective")))) == 1
    names = {technique.name for technique in techniques(allowed, Plan(remat=Remat(policy="full")))}
    assert names == {"", "masks", "compress-8bit", "compress-4bit", "compress-2bit"}
