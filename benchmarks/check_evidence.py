"""Whether `dnnmem check` finds what it should, says the same each time, and never leaves half a file.

    python benchmarks/check_evidence.py history          12 commits in a git repository of its own, a check at each
    python benchmarks/check_evidence.py repeat [N]       the same check N times: equal bytes of result and baseline
    python benchmarks/check_evidence.py together [N]     the same, ten in each of N child processes
    python benchmarks/check_evidence.py kill [N]         kill -9 at N random moments of --update-baseline
    python benchmarks/check_evidence.py speed            GPT-2 and ResNet-50 in one check
    python benchmarks/check_evidence.py sarif SCHEMA     what it writes, against the whole schema of SARIF 2.1.0

Everything happens in a temporary folder, with the dnnmem of this Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import DNNMEM, usage

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.accuracy.commits import COMMITS, FIRST, TARGET, after, write

GIT = shutil.which("git") or "git"
BASELINE = Path(".dnnmem/baseline.json")
CHECK = [DNNMEM, "check", TARGET, "--batch", "8", "--gpu", "a10g", "--quiet"]


def call(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` here; its exit code and what it said."""
    return subprocess.run(list(command), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def git(*arguments: str) -> None:
    """Run git as nobody in particular."""
    person = ["-c", "user.name=dnnmem", "-c", "user.email=dnnmem@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run([GIT, *person, *arguments], check=True, capture_output=True)


def history() -> int:
    """One check for each commit, against the baseline that was committed before it."""
    git("init", "-q")
    files = FIRST
    write(Path(), files)
    call([*CHECK, "--update-baseline"])
    git("add", "-A")
    git("commit", "-qm", "A language model")
    wrong = 0
    for number, commit in enumerate(COMMITS, 1):
        files = after(files, commit)
        write(Path(), files)
        done = call([*CHECK, "--require-baseline", "--json", "-"])
        (step,) = json.loads(done.stdout)["steps"]
        lines = step["blame"]
        rank = next((i for i, line in enumerate(lines, 1) if re.match(commit.layer, line["module"])), 0)
        found = step["outcome"] == commit.outcome and done.returncode == (commit.outcome == "regressed")
        named = rank == 1 or not commit.layer
        wrong += not (found and named)
        top = "".join(
            f"{b['module'] or '<model>'} {b['grown_bytes'] / 2**20:+.1f} MiB; {b['since']}" for b in lines[:1]
        )
        print(
            f"{number:2} {commit.message[:40]:40} exit {done.returncode}  {step['outcome']:9} {step['increase']:+6.1%} "
            f"{'right' if found else 'WRONG'}{f', layer is line {rank}: {top}' if commit.layer else ''}",
            flush=True,
        )
        if step["outcome"] != "ok":
            call([*CHECK, "--update-baseline"])
        git("add", "-A")
        git("commit", "-qm", commit.message)
    print(f"wrong: {wrong} of {len(COMMITS)}")
    return wrong


def repeat(count: int) -> int:
    """Bytes of the JSON and of the baseline, `count` times, in processes of their own."""
    write(Path(), FIRST)
    seen: set[str] = set()
    for _ in range(count):
        BASELINE.unlink(missing_ok=True)
        call([*CHECK, "--update-baseline"])
        done = call([*CHECK, "--json", "-"])
        seen.add(hashlib.sha256(BASELINE.read_bytes() + done.stdout.encode()).hexdigest())
    print(f"{count} updates and checks: {len(seen)} different results, {BASELINE.stat().st_size} bytes")
    return len(seen) - 1


def together(children: int) -> int:
    """The same check ten times in each of so many child processes: equal bytes of the JSON and of the baseline."""
    from dataclasses import replace

    from dnnmem.cli.check_request import prepare_check
    from dnnmem.cli.check_run import check_steps
    from dnnmem.cli.export.check.json import render
    from dnnmem.estimator.baseline_file import to_text

    write(Path(), FIRST)
    (step,) = prepare_check([TARGET], {"batch": 2, "gpu": "a10g"}, {}, os.environ, folder=Path.cwd()).steps
    seen: set[str] = set()
    for _ in range(children):
        for found in check_steps([replace(step) for _ in range(10)], {}):
            assert found.verdict is not None  # noqa: S101 - it can be measured
            seen.add(render([found]) + to_text([found.verdict.entry]))
    print(f"{10 * children} checks in {children} child processes: {len(seen)} different results")
    return len(seen) - 1


_WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from dnnmem.cli.baseline_store import load_baseline, update_baseline
path = Path(sys.argv[1])
known = load_baseline(path)
print("ready", flush=True)
while True:
    for peak in (1, 2):
        update_baseline(path, [replace(entry, allocated_bytes=peak) for entry in known.values()])
"""


def kill(count: int) -> int:
    """Kill an updating process at random moments; its file is one of the two that it writes, whole."""
    write(Path(), FIRST)
    call([*CHECK, "--update-baseline"])
    whole, bad = set(), 0
    chance = random.Random(7)  # noqa: S311 - moments, no secrets
    moments = {b"1": 0, b"2": 0}
    for _ in range(count):
        child = subprocess.Popen([sys.executable, "-c", _WRITER, str(BASELINE)], stdout=subprocess.PIPE)
        assert child.stdout is not None  # noqa: S101 - it was asked for
        child.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.3))
        child.kill()
        child.wait()
        text = BASELINE.read_bytes()
        step = next(iter(json.loads(text)["steps"].values()))
        peak = str(step["allocated_bytes"]).encode()
        if peak in moments:
            moments[peak] += 1
        whole.add(text)
        bad += len(whole) > 2
    rest = sorted(path.name for path in BASELINE.parent.iterdir())
    print(f"{count} kills: {dict(moments)} old and new, {bad} torn; files that stayed beside it: {rest}")
    git("init", "-q")
    shown = call([GIT, "status", "--porcelain", "-uall", str(BASELINE.parent)]).stdout.split()
    print(f"git would commit: {shown[1::2]}")
    return bad


def speed() -> int:
    """GPT-2 and ResNet-50 in one check."""
    Path("pyproject.toml").write_text(
        "[tool.dnnmem.check]\ntargets = [{target = 'hf:gpt2', batch = 8, seq = 1024}, "
        "{target = 'torchvision:resnet50', batch = 32}]\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    for options in ([], ["--gpu", "a10g"]):
        used = usage([DNNMEM, "check", "--quiet", "--update-baseline", *options], environment)
        print(f"{options or 'no gpu'}: {used.seconds:.1f} s of wall time, {used.cpu_seconds:.1f} s of CPU (limit 15 s)")
    return 0


def sarif(schema: str) -> int:
    """Two findings and a failure, against the schema."""
    import jsonschema

    write(Path(), {**FIRST, "bad.py": "raise ValueError"})
    call([*CHECK, "--update-baseline"])
    write(Path(), after(FIRST, COMMITS[2]))
    call([*CHECK[:2], TARGET, "bad.py", *CHECK[3:], "--sarif", "out.sarif", "--max-increase", "0"])
    log = json.loads(Path("out.sarif").read_text())
    jsonschema.validate(log, json.loads(Path(schema).read_text()))
    print(f"valid: {[result['ruleId'] for result in log['runs'][0]['results']]}")
    return 0


def main() -> None:
    """Run what is named, in a temporary folder."""
    commands = {
        "history": history,
        "repeat": repeat,
        "together": together,
        "kill": kill,
        "speed": speed,
        "sarif": sarif,
    }
    name, *rest = sys.argv[1:] or [""]
    if name not in commands:
        sys.exit(__doc__)
    values = [int(text) if text.isdecimal() else str(Path(text).absolute()) for text in rest]
    if name in {"repeat", "together", "kill"} and not values:
        values = [50 if name == "kill" else 10]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        code = commands[name](*values)  # type: ignore[operator]
        os.chdir("/")
    sys.exit(bool(code))


if __name__ == "__main__":
    main()
