"""Whether a test needs more than its limit, or than was accepted; and who holds it, in a section of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from dnnmem.cli.baseline_store import load_baseline, update_baseline
from dnnmem.cli.pytest_plugin import baseline_path
from dnnmem.cli.render.check import label_of, signed, why_of
from dnnmem.cli.testing.child import ROLE, run_child
from dnnmem.estimator.baseline import Entry, Limits, Verdict, blame, judge
from dnnmem.estimator.errors import DnnmemError, UsageError
from dnnmem.estimator.units import format_bytes, parse_share

TOP = 10
"""Layers that are named."""
PEAK, NOTE, ACCEPTED = "dnnmem_peak_bytes", "dnnmem_note", "dnnmem_accepted"
"""Properties of a test's report; they are in JUnit files too."""


def allowed_increase(config: pytest.Config) -> float | None:
    """The share of `--dnnmem-fail-on-increase`; None without it. Raises `pytest.UsageError`, for the file too."""
    text = config.getoption("--dnnmem-fail-on-increase")
    if text is None:
        return None
    try:
        share = parse_share("--dnnmem-fail-on-increase", text)
        load_baseline(baseline_path(config))
    except UsageError as error:
        raise pytest.UsageError(f"{error.message}\n{error.hint}".rstrip()) from None
    return share


def judge_test(item: pytest.Item, body: Entry | None, blocks: Sequence[Entry], limit: int | None) -> None:
    """Fail the test if what it measured is too much; else accept it if that is asked for. Raises `DnnmemError`."""
    entries = ([body] if body is not None else []) + list(blocks)
    for entry in entries:
        name = PEAK + entry.key.target.removeprefix(item.nodeid)
        item.user_properties.append((name, entry.allocated_bytes))
    if ROLE.record:
        ROLE.entries.extend(entries)
        return
    over = body if limit is not None and body is not None and body.allocated_bytes > limit else None
    update = bool(item.config.getoption("--dnnmem-update"))
    verdicts = [] if update else list(_verdicts(item, entries))
    failing = [verdict for verdict in verdicts if verdict.fails]
    _not_on_the_gpu(body, limit)
    if over is None and not failing and not update:
        return
    known = _with_modules(item, entries) if entries else {}
    reasons = []
    if over is not None and limit is not None:
        reasons.append(_too_much(over, limit))
        _section(item, "at the peak", _holders(known[over.key.target]))
    for verdict in failing:
        again = replace(verdict, changes=_judged(known[verdict.entry.key.target], verdict).changes)
        reasons.append(_grown(again))
        _section(item, "what changed at the peak", _changed(again))
    if reasons:
        pytest.fail("\n".join(reasons), pytrace=False)
    update_baseline(baseline_path(item.config), known.values())
    item.user_properties.append((ACCEPTED, len(known)))


def _verdicts(item: pytest.Item, entries: Sequence[Entry]) -> Iterator[Verdict]:
    share = allowed_increase(item.config)
    if share is None or not entries:
        return
    accepted = load_baseline(baseline_path(item.config)) or {}
    for entry in entries:
        verdict = judge(entry, accepted, Limits(max_increase=share))
        if verdict.before is None:
            others = "; ".join(key.text for key in verdict.others)
            known = f"; other conditions: {others}" if others else ""
            item.user_properties.append((NOTE, f"nothing is accepted for {entry.key.text}{known}"))
        elif verdict.outcome == "improved":
            item.user_properties.append((NOTE, f"improved by {-(verdict.increase or 0):.1%}: {entry.key.text}"))
        yield verdict


def _not_on_the_gpu(body: Entry | None, limit: int | None) -> None:
    if limit is not None and body is not None and body.key.device in {"cuda", "virtual"} and not body.allocated_bytes:
        raise UsageError(
            f"the test allocated nothing on the {body.key.device} GPU, so its limit says nothing",
            hint="move the model and the data to 'cuda', or measure it with device='cpu' or 'fake'",
        )


def _with_modules(item: pytest.Item, entries: Sequence[Entry]) -> dict[str, Entry]:
    """Entries by target, with modules: on a GPU from another run of the test, which is recorded."""
    found = {entry.key.target: entry for entry in entries}
    bare = [entry for entry in entries if entry.key.device in {"cuda", "virtual"} and not entry.modules]
    if not bare:
        return found
    device = bare[0].key.device
    from dnnmem.cli.testing.asked import find_gpu

    try:
        recorded = run_child(item, device=device, gpu=find_gpu(bare[0].key.gpu), record=True).entries
    except DnnmemError as error:
        item.add_report_section("call", "dnnmem", f"layers are not known: {error.message}")
        return found
    for entry in bare:
        if (twin := recorded.get(entry.key.target)) is not None:
            found[entry.key.target] = replace(entry, parts=twin.parts, modules=twin.modules, sources=twin.sources)
    return found


def _judged(entry: Entry, verdict: Verdict) -> Verdict:
    before = {entry.key.text: verdict.before} if verdict.before is not None else {}
    return judge(entry, before, Limits())


def _too_much(entry: Entry, limit: int) -> str:
    excess = entry.allocated_bytes - limit
    share = f" ({excess / limit:.1%})" if limit else ""
    return (
        f"peak memory {format_bytes(entry.allocated_bytes)} is {format_bytes(excess)}{share} more than the limit, "
        f"{format_bytes(limit)} ({_conditions(entry)})"
    )


def _grown(verdict: Verdict) -> str:
    entry, before = verdict.entry, verdict.before
    was = before.allocated_bytes if before is not None else 0
    return (
        f"peak memory {format_bytes(entry.allocated_bytes)} was {format_bytes(was)}: {verdict.reasons[0]} "
        f"({entry.key.text})"
    )


def _conditions(entry: Entry) -> str:
    key = entry.key
    return ", ".join(filter(None, (key.device, key.gpu, f"torch {key.torch}")))


def _holders(entry: Entry) -> list[str]:
    """The modules that hold most at the peak: what would be blamed if there had been nothing."""
    nothing = Entry(key=entry.key, allocated_bytes=0)
    lines = blame(judge(entry, {entry.key.text: nothing}, Limits()))
    return _lines([(label_of(line), format_bytes(line.grown_bytes), why_of(line)) for line in lines])


def _changed(verdict: Verdict) -> list[str]:
    return _lines([(label_of(line), signed(line.grown_bytes), why_of(line)) for line in blame(verdict)])


def _lines(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    shown = rows[:TOP]
    wide, size = (max((len(row[i]) for row in shown), default=0) for i in (0, 1))
    lines = [f"{name:{wide}}  {nbytes:>{size}}  {why}" for name, nbytes, why in shown]
    return lines + ([f"and {len(rows) - TOP} more"] if len(rows) > TOP else [])


def _section(item: pytest.Item, title: str, lines: Sequence[str]) -> None:
    item.add_report_section("call", f"dnnmem: {title}", "\n".join(lines or ["no module is known"]))
