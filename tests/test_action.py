"""The GitHub Action: its file, and its steps in a shell, with stand-ins for pip, dnnmem and GitHub's command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dnnmem.cli.export.check.md import MARK

PYTHON = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1:3] == ["-m", "pip"]:
    open("pip.json", "w").write(json.dumps(sys.argv[3:]))
else:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
"""
DNNMEM = f"""#!{sys.executable}
import json, os, sys
open("dnnmem.json", "w").write(json.dumps(sys.argv[1:]))
code = int(os.environ.get("CODE", "0"))
if code < 2:
    texts = {{"--json": json.dumps({{"passed": not code}}), "--md": os.environ.get("TEXT", "{MARK}\\nok\\n")}}
    for option, text in texts.items():
        open(sys.argv[sys.argv.index(option) + 1], "w").write(text)
sys.exit(code)
"""
GH = f"""#!{sys.executable}
# `gh api` on a file: the comments of one pull request
import json, os, sys
if os.environ.get("DENIED"):
    sys.exit("HTTP 403")
assert sys.argv[1] == "api" and os.environ["GH_TOKEN"] == "secret"
known = json.load(open("comments.json"))
words = sys.argv[2:]
if "--method" not in words:
    assert "repos/me/it/issues/7/comments" in words and "startswith(env.mark)" in words[-1]
    print(*(c["id"] for c in known if c["body"].startswith(os.environ["mark"])), sep="\\n")
    sys.exit()
place = words[words.index("--method") + 2]
body = open(words[words.index("--field") + 1].removeprefix("body=@")).read()
if words[words.index("--method") + 1] == "POST":
    assert place == "repos/me/it/issues/7/comments"
    known.append({{"id": len(known) + 1, "body": body}})
else:
    known[int(place.removeprefix("repos/me/it/issues/comments/")) - 1]["body"] = body
json.dump(known, open("comments.json", "w"))
"""


@pytest.fixture(name="action", scope="module")
def _action(request):
    return yaml.safe_load((request.config.rootpath / "action.yml").read_text())


class Runner:
    """What GitHub's runner does with a composite action's steps, as far as this one needs it."""

    def __init__(self, action, folder):
        self.steps = action["runs"]["steps"]
        self.inputs = {name: value["default"] for name, value in action["inputs"].items()}
        self.folder = folder
        self.outputs = {}
        (folder / "bin").mkdir()
        for name, text in (("python", PYTHON), ("dnnmem", DNNMEM), ("gh", GH)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / "comments.json").write_text('[{"id": 1, "body": "Looks good"}]')

    def run(self, index, **environment):
        """Run a step; its exit code, and what it wrote as outputs."""
        step = self.steps[index]
        values = {
            "github.token": "secret", "github.repository": "me/it", "github.event.pull_request.number": "7",
            **{f"inputs.{name}": value for name, value in self.inputs.items()},
            **{f"steps.check.outputs.{name}": value for name, value in self.outputs.items()},
        }  # fmt: skip
        values["inputs.token"] = values["github.token"]
        env = {name: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values[m[1]], text) for name, text in step["env"].items()}
        output = self.folder / "output"
        output.write_text("")
        done = subprocess.run(
            ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder, capture_output=True, text=True, check=False,
            env={
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "GITHUB_OUTPUT": str(output),
                "RUNNER_TEMP": str(self.folder), **env, **environment,
            },
        )  # fmt: skip
        self.outputs |= dict(line.split("=", 1) for line in output.read_text().splitlines())
        return done

    def told(self, name):
        """The arguments that a stand-in got."""
        return json.loads((self.folder / name).read_text())

    def comments(self):
        """Texts under the pull request."""
        return [comment["body"] for comment in self.told("comments.json")]


INSTALL, CHECK, COMMENT = range(3)


@pytest.fixture(name="runner")
def _runner(action, tmp_path):
    return Runner(action, tmp_path)


def test_every_input_is_described_and_read_through_the_environment(action):
    # THEN no input stands in a script, where its text would be run
    assert all(value["description"] for value in action["inputs"].values())
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
    assert {"targets", "args", "baseline", "max-increase", "budget", "comment"} <= set(action["inputs"])


def test_it_installs_what_is_named(runner):
    # GIVEN
    runner.inputs["install"] = "dnnmem[hf] torch==2.14.1"
    # THEN
    assert runner.run(INSTALL).returncode == 0
    assert runner.told("pip.json")[-2:] == ["dnnmem[hf]", "torch==2.14.1"]


def test_inputs_become_options(runner):
    # GIVEN
    runner.inputs |= {
        "targets": "a.py hf:gpt2", "args": "--batch 8 --gpu a10g", "baseline": "my file.json", "max-increase": "5%",
        "budget": "22GiB",
    }  # fmt: skip
    # THEN
    assert runner.run(CHECK).returncode == 0
    assert runner.told("dnnmem.json")[:-4] == [
        "check", "a.py", "hf:gpt2", "--batch", "8", "--gpu", "a10g", "--baseline", "my file.json",
        "--max-increase", "5%", "--budget", "22GiB",
    ]  # fmt: skip
    assert runner.outputs["passed"] == "true"


def test_without_inputs_the_settings_file_decides(runner):
    assert runner.run(CHECK).returncode == 0
    assert runner.told("dnnmem.json")[0] == "check"
    assert [word for word in runner.told("dnnmem.json") if word.startswith("--")] == ["--json", "--md"]


def test_what_an_input_holds_is_never_run(runner):
    # GIVEN
    runner.inputs |= {"targets": "$(touch owned) `touch owned`", "args": "; touch owned", "budget": '"; touch owned'}
    # THEN
    runner.run(CHECK)
    assert not (runner.folder / "owned").exists()


@pytest.mark.parametrize(("code", "passed"), [(0, "true"), (1, "false"), (2, None), (3, None)])
def test_the_step_ends_as_the_check_does(code, passed, runner):
    assert runner.run(CHECK, CODE=str(code)).returncode == code
    assert runner.outputs.get("passed") == passed


def test_one_comment_is_made_and_then_kept_up_to_date(runner):
    # WHEN
    for text in ("first", "second"):
        runner.run(CHECK, TEXT=f"{MARK}\n{text}\n", CODE="1")
        assert runner.run(COMMENT).returncode == 0
    # THEN
    assert runner.comments() == ["Looks good", f"{MARK}\nsecond\n"]


@pytest.mark.parametrize("code", ["2", "0"])
def test_a_comment_that_cannot_be_written_fails_nothing(code, runner):
    # GIVEN a call that was wrong, or a token that may not write
    runner.run(CHECK, CODE=code)
    # THEN
    done = runner.run(COMMENT, DENIED="1")
    assert done.returncode == 0
    assert ("::warning" in done.stdout) is (code == "0")
    assert runner.comments() == ["Looks good"]


def test_the_file_lies_at_the_root_for_uses_to_find(root):
    assert Path(root / "action.yml").is_file()
