"""Results of a check made by hand: a step that grew, one that is new, one that could not be measured."""

from __future__ import annotations

from dnnmem.cli.check_run import Checked
from dnnmem.estimator.baseline import Entry, Key, Limits, judge
from dnnmem.estimator.errors import ModelError

MIB = 2**20
HOSTILE = (
    "<script>alert(1)</script>",
    "](javascript:alert(1))",
    "`` `x` ``",
    "a\n::error file=x::b",
    "a|b\\|c",
    "\x1b[2J\x00",
    "<!-- dnnmem check -->",
    "--><img src=x onerror=alert(1)>",
)
"""Names of modules that some format would take for its own words."""


def entry(target="model.py", mib=100, modules=None, **changes):
    key = Key(target=target, batch={"batch_size": 8}, device="fake", gpu=None, torch="2.14")
    known = {"key": key, "allocated_bytes": mib * MIB, "total_bytes": mib * MIB, "modules": modules or {}}
    return Entry(**{**known, **changes})


def checked(before, after, *, limits=None, **changes):
    limits = limits or Limits()
    accepted = {before.key.text: before} if before else {}
    verdict = judge(after, accepted, limits)
    return Checked(name=after.key.target, verdict=verdict, limits=limits, **changes)


def grown(module="blocks.0.fc", kind="activation", since="forward, aten.addmm.default, models/net.py:12", **changes):
    place = (module, kind)
    before = entry(mib=100, modules={place: 10 * MIB})
    after = entry(mib=110, modules={place: 20 * MIB}, sources={place: since})
    return checked(before, after, **changes)


def unchanged():
    return checked(entry(), entry())


def improved():
    return checked(entry(mib=100, modules={("fc", "temp"): 10 * MIB}), entry(mib=90))


def new():
    return checked(None, entry(target="other.py"))


def failed(message="bad.py has no make_model\nbad.py:1"):
    return Checked(name="bad.py", error=ModelError(message), limits=Limits())
