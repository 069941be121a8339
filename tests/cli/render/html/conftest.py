"""Pages of small made-up results, and a reader that tells what a browser would make of them."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.profile import Alive, Layer
from dnnmem.estimator.report import Candidate, Report, Verified
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Event, Kind, Module, Op, Phase, Storage, Trace

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><b>x</b>",
    "a' onclick='b",
    "{{ 7*7 }}",
)
"""What a person with bad intentions calls a module."""


class Page(HTMLParser):
    """A page taken apart."""

    VOID = frozenset({"meta", "link", "input", "br", "rect", "line", "path", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.tags, self.open, self.texts = text, [], [], []
        self.inner: dict[str, list[str]] = {"script": [], "style": []}
        self.data: dict[str, object] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(self.tags[-1])

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            assert tag not in self.VOID

    def handle_data(self, text):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if attributes.get("type") == "application/json":
            self.data[attributes["id"]] = json.loads(text)
        elif tag in self.inner:
            self.inner[tag].append(text)
        elif text.strip():
            self.texts.append(text.strip())

    def all(self, tag, **wanted):
        """Attributes of the elements of that name which have these."""
        return [a for t, a in self.tags if t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items())]

    @property
    def policy(self):
        return self.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


def check_safe(page):
    """The laws of every page: nothing loaded, nothing run but ours, and the policy that says so."""
    (script,), (style,) = page.inner["script"], page.inner["style"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert page.policy.startswith(
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    )
    assert "unsafe" not in page.policy
    for tag, attributes in page.tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form", "video", "audio", "b-x"}
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert "src" not in attributes
        assert all(attributes.get(name, "#").startswith(("#", "data:,")) for name in ("href", "xlink:href", "action"))
    for word in ("http:", "https:", "url(", "@import", "javascript:", "eval(", "innerHTML"):
        assert word not in page.source


@pytest.fixture(name="hostile_profile", scope="session")
def _hostile_profile(make_gpt):
    layers = tuple(
        Layer(module=f"net.{name}", type=name, source=name, param_bytes=8 + i, peak_bytes=9 + i)
        for i, name in enumerate(HOSTILE)
    )
    alive = tuple(
        Alive(nbytes=8, count=1, kind=name, module=name, name=name, shape=(2,), dtype=name, source=name)
        for name in HOSTILE
    )
    return make_gpt(
        target=HOSTILE[0], gpu=HOSTILE[1], device=HOSTILE[2], layers=layers, alive=alive, notes=HOSTILE,
        versions={name: name for name in HOSTILE}, batch={name: name for name in HOSTILE},
    )  # fmt: skip


def _op(name, i, phase, *events):
    return Op(name=name, module=("net", name), phase=phase, source=name, writes=(i,), events=events, flops=10**9)


@pytest.fixture(name="hostile_trace", scope="session")
def _hostile_trace():
    """A step whose modules, ops, parameters and lines are all named to do harm."""
    n = len(HOSTILE)
    storages = {
        i: Storage(id=i, nbytes=4096 * (i + 1), kind=Kind.ACTIVATION, module=("net", name), name=name, dtype=name)
        for i, name in enumerate(HOSTILE)
    }
    forward = [_op(name, i, Phase.FORWARD, Event(storages[i].nbytes, 0, i)) for i, name in enumerate(HOSTILE)]
    backward = [
        _op(HOSTILE[i], i, Phase.BACKWARD, Event(64, 0, -1), Event(-64, 0, -1), Event(-storages[i].nbytes, 0, i))
        for i in reversed(range(n))
    ]
    modules = tuple(Module(path=("net", name), type=name, source=name) for name in HOSTILE)
    return Trace(ops=(*forward, *backward), storages=storages, modules=modules, batch={"batch_size": 2})


@pytest.fixture(name="make_report", scope="session")
def _make_report(hostile_trace):
    """A report of three plans and the step as it is; `changes` are the report's own fields."""
    cluster = find_cluster("h100:8")
    model = load(cluster.device, None)
    plans = ["mesh.dp_replicate=8", "sharding.strategy=ddp"], ["mesh.dp_shard=8", "sharding.strategy=zero3"], []

    def make(**changes):
        priced = [price(local_step(hostile_trace, change(Plan(), plan), cluster), model) for plan in plans]
        ran = Verified(device="virtual", outcome="ran", peak_allocated_bytes=2**20, peak_reserved_bytes=2**21)
        died = Verified(device="virtual", outcome="out_of_memory", message=HOSTILE[0])
        first, second = (
            Candidate(
                rank=rank, estimate=priced[rank - 1], techniques=(HOSTILE[rank - 1], "DDP over 8 GPUs"),
                changes=(*plans[rank - 1], HOSTILE[2]), why=HOSTILE[1], alters_training=HOSTILE[: rank - 1],
                tied_with=(3 - rank,), pareto=rank == 1, verified=verified,
            )
            for rank, verified in ((1, ran), (2, died))
        )  # fmt: skip
        known = {
            "target": HOSTILE[0], "cluster": cluster, "objective": "throughput", "headroom": 0.05, "global_batch": None,
            "considered": 100, "priced": 10, "search_seconds": 0.5, "candidates": (first, second), "notes": HOSTILE,
            "baseline": Candidate(rank=0, estimate=priced[2], techniques=(), changes=(), why=""),
        }  # fmt: skip
        return Report(**{**known, **changes})

    return make


@pytest.fixture(name="many_blocks", scope="session")
def _many_blocks():
    """A model of GPT-2's depth: 12 blocks of 12 modules, 3 storages each, allocated and freed in order."""
    storages, forward, backward = {}, [], []
    sizes = np.random.default_rng(0).integers(1, 2**24, (12, 3)).tolist()
    for block in range(12):
        for part in range(12):
            path = ("h", str(block), f"part_{part}")
            for nbytes, kind in zip(sizes[part], (Kind.ACTIVATION, Kind.TEMP, Kind.INPUT), strict=True):
                i = len(storages)
                storages[i] = Storage(id=i, nbytes=nbytes, kind=kind, module=path, dtype="float32")
                forward.append(Op(name="aten.mm.default", module=path, events=(Event(storages[i].nbytes, 0, i),)))
                free = Event(-storages[i].nbytes, 0, i)
                backward.append(Op(name="aten.mm.default", module=path, phase=Phase.BACKWARD, events=(free,)))
    return Trace(ops=(*forward, *reversed(backward)), storages=storages)
