"""A check as JUnit XML: each step is a test case, which fails with the layers that grew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from dnnmem.cli.check_run import Checked
from dnnmem.cli.render.check import TOP, label_of, signed, why_of
from dnnmem.estimator.baseline import blame

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(found: Sequence[Checked]) -> str:
    """The report, a newline at its end."""
    suite = ET.Element("testsuite", name="dnnmem check", tests=str(len(found)))
    failures = errors = 0
    for step in found:
        name = step.verdict.entry.key.text if step.verdict else step.name
        case = ET.SubElement(suite, "testcase", classname="dnnmem.check", name=_clean(name))
        if step.verdict is None:
            errors += 1
            message = step.error.message if step.error else ""
            ET.SubElement(case, "error", message=_clean(message), type="failed").text = _clean(message)
        elif step.fails:
            failures += 1
            reason = "; ".join(step.verdict.reasons)
            told = ET.SubElement(case, "failure", message=_clean(reason), type=step.verdict.outcome)
            lines = blame(step.verdict)[:TOP]
            told.text = _clean("\n".join(f"{label_of(b)} {signed(b.grown_bytes)}: {why_of(b)}" for b in lines))
        entry = step.verdict.entry if step.verdict else None
        if entry is not None:
            ET.SubElement(case, "system-out").text = f"{entry.allocated_bytes} bytes allocated at the peak"
    suite.set("failures", str(failures))
    suite.set("errors", str(errors))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """`text` without the characters that XML has no way to write."""
    return _NOT_XML.sub("?", text)
