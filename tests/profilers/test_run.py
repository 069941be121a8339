"""Whatever ends the child process, the parent says so in one message with its exit code, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dnnmem.estimator import errors
from dnnmem.estimator.errors import DnnmemError, InternalError, ModelError, UsageError
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Python is a shell script")

REQUEST = Request(target="model.py", batch_size=2, device="fake")


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Makes a shell script the child: `$4` is the folder for its answer."""

    def become(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return become


def told(kind, message, hint=""):
    return f"""printf '{{"type": "{kind}", "message": "{message}", "hint": "{hint}"}}' > "$4/error.json"; """


BAD = [
    ("exit 7", ModelError, "ended the process with exit code 7", "it printed nothing"),
    ("exit 0", ModelError, "ended the process with exit code 0", "it printed nothing"),
    ("echo last words >&2; exit 1", ModelError, "exit code 1", "last words"),
    ("kill -9 $$", ModelError, "was killed, most likely for lack of memory", "it printed nothing"),
    ("echo loading >&2; kill -9 $$", ModelError, "was killed", "loading"),
    ("kill -SEGV $$", ModelError, "died with SIGSEGV", "it printed nothing"),
    ("kill -ABRT $$", ModelError, "died with SIGABRT", "it printed nothing"),
    ("kill -TERM $$", ModelError, "died with SIGTERM", "it printed nothing"),
    ("kill -BUS $$", ModelError, "died with SIGBUS", "it printed nothing"),
    (told("UsageError", "no such option") + "exit 2", UsageError, "no such option", ""),
    (told("UnsupportedError", "no operator") + "exit 4", errors.UnsupportedError, "no operator", ""),
    (told("TraceError", "op 3 reads") + "exit 5", errors.TraceError, "op 3 reads", ""),
    (told("SomeNewerError", "what") + "exit 4", errors.UnsupportedError, "what", ""),
    (told("SomeNewerError", "what") + "exit 77", InternalError, "what", ""),
    (told("DataDependentError", "nonzero") + "exit 4", errors.UnsupportedError, "nonzero", ""),
]


@pytest.mark.parametrize(("script", "kind", "said", "shown"), BAD, ids=range(len(BAD)))
def test_the_end_of_a_child_is_one_message(child, script, kind, said, shown):
    child(script)
    with pytest.raises(DnnmemError) as caught:
        run(REQUEST)
    assert type(caught.value) is kind
    assert said in caught.value.message
    assert shown in caught.value.message


def test_the_hint_and_the_exit_code_survive(child):
    child(told("ModelError", "mat1 and mat2", "look at forward") + "exit 3")
    with pytest.raises(ModelError) as caught:
        run(REQUEST)
    assert (caught.value.message, caught.value.hint) == ("mat1 and mat2", "look at forward")
    assert caught.value.exit_code == 3


def test_output_and_progress_come_as_they_happen(child):
    child("echo 1; echo one >&2; echo 2; echo two >&2; exit 3")
    heard, steps = [], []
    with pytest.raises(ModelError):
        run(REQUEST, on_output=heard.append, on_progress=steps.append)
    assert heard == ["one", "two"]
    assert steps == [1, 2]


def test_only_the_last_lines_are_shown(child):
    child("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo line $i. >&2; done; exit 1")
    with pytest.raises(ModelError) as caught:
        run(REQUEST)
    assert "line 20." in caught.value.message
    assert "line 3." not in caught.value.message


def test_bytes_that_are_no_text_are_shown_too(child):
    child("printf '\\377\\376 broken\\n' >&2; exit 1")
    with pytest.raises(ModelError, match="broken"):
        run(REQUEST)


def is_running(pid):
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


def workers(folder, tail):
    """A child that starts a worker, as a loader of data does, and notes both process ids."""
    return f"sleep 300 & echo $$ $! > {folder}/pids.new; mv {folder}/pids.new {folder}/pids; {tail}"


@pytest.mark.parametrize("tail", ["wait", "exit 1"])
def test_a_child_takes_its_workers_along(child, tmp_path, tail):
    # GIVEN a child that hangs, or ends and leaves a worker behind
    child(workers(tmp_path, tail))
    begin = time.monotonic()
    with pytest.raises(ModelError) as caught:
        run(REQUEST, timeout=0.5)
    # THEN it is told in time, and both are gone
    assert ("did not finish within 0.5 s" in caught.value.message) == (tail == "wait")
    assert time.monotonic() - begin < 10
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_child_and_its_workers(child, tmp_path):
    # GIVEN a run that waits, and Ctrl-C as soon as its worker is there
    child(workers(tmp_path, "wait"))

    def press():
        while not (tmp_path / "pids").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(REQUEST, timeout=30)
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


MODEL = """
import ctypes, os, subprocess, sys, torch

print("imported")

def make_model():
    return torch.nn.Linear(4, 4)

def make_batch(batch_size):
    return torch.randn(batch_size, 4)

def make_loss(output, batch):
    os.system("echo from a program")
    print("in the loss", file=sys.stdout)
    {act}
    return output.sum() * float("nan")
"""


def test_a_whole_run_keeps_the_users_output_apart(tmp_path, capfd):
    # GIVEN a model that prints in every way, and whose loss is no number
    (tmp_path / "model.py").write_text(MODEL.replace("{act}", "pass"))
    heard, steps = [], []
    request = Request(target=str(tmp_path / "model.py"), batch_size=3, device="cpu", steps=2, repeats=1)
    # WHEN it is run
    trace, measured = run(request, on_output=heard.append, on_progress=steps.append)
    # THEN nothing is lost, nothing is printed here, and NaN is no error
    assert heard[0] == "imported"
    assert heard.count("in the loss") == heard.count("from a program") >= 3
    assert steps[:2] == [0, 1]
    assert capfd.readouterr() == ("", "")
    assert trace.batch["batch_size"] == 3
    assert trace.origin.versions.keys() >= {"torch", "dnnmem", "python"}
    assert measured.step_seconds > 0


def test_a_model_may_be_named_as_a_package_that_torch_asks_for(tmp_path, monkeypatch):
    # GIVEN a folder with a cuda.py, which is the model, WHEN it is run from there  THEN it runs
    (tmp_path / "cuda.py").write_text(
        "import torch\n\ntorch.nn.Module  # there only once torch is\n" + MODEL.replace("{act}", "pass")
    )
    monkeypatch.chdir(tmp_path)
    trace, _ = run(Request(target="cuda.py", batch_size=3, device="cpu", steps=2, repeats=1))
    assert trace.batch["batch_size"] == 3


@pytest.mark.parametrize(
    ("act", "said"), [("os._exit(7)", "exit code 7"), ("ctypes.string_at(0)", "died with SIGSEGV")]
)
def test_a_model_that_ends_the_process(tmp_path, act, said):
    (tmp_path / "model.py").write_text(MODEL.replace("{act}", act))
    with pytest.raises(ModelError) as caught:
        run(Request(target=str(tmp_path / "model.py"), batch_size=3, device="cpu", steps=2, repeats=1))
    assert said in caught.value.message
    assert "in the loss" in caught.value.message
