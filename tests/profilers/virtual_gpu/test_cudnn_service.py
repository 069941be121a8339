"""The process that asks cuDNN: its answers, many who ask at once, its end, and which cuDNN it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.build import build
from dnnmem.profilers.virtual_gpu.cudnn_cache import keep, key_of, open_answers
from dnnmem.profilers.virtual_gpu.cudnn_query import Engine
from dnnmem.profilers.virtual_gpu.cudnn_server import LARGEST
from dnnmem.profilers.virtual_gpu.cudnn_service import find_cudnn, running, start, stop, summary, talk
from dnnmem.profilers.virtual_gpu.installed import Torch, find_torch
from tests.profilers.virtual_gpu.convolutions import FORWARD, convolution

QUESTION = convolution(FORWARD, [8, 64, 56, 56], [64, 64, 3, 3], padding=1)
H100 = find_device("h100")


@pytest.fixture(scope="module")
def asked():
    """The installed cuDNN; skips where it cannot be asked."""
    try:
        return find_cudnn(find_torch())
    except UnsupportedError as error:
        pytest.skip(error.message)


@pytest.fixture
def serve(asked, cache):
    """`serve(...)` starts a server, which ends with the test."""
    started = []

    def begin(**options):
        started.append(start(asked, H100, driver=build(cache)[0] / "libcuda.so.1", **options))
        return started[-1]

    yield begin
    for service in started:
        stop(service)


def test_what_is_not_asked_builds_nothing(asked, tmp_path):
    # GIVEN a server that has no driver yet, and an empty cache
    service = start(asked, H100, driver=None, cache=tmp_path)
    try:
        # WHEN it is asked what it was asked  THEN it knows its cuDNN, and has neither built nor loaded anything
        assert summary(service).version == asked.version
        assert not (tmp_path / "virtual-gpu").exists()
        # WHEN it is asked for engines  THEN it answers
        answer = talk(service.address, json.dumps(QUESTION), wait_seconds=120)
        assert len(json.loads(answer)) > 1
        assert list((tmp_path / "virtual-gpu").glob("*/libcuda.so.1"))
    finally:
        stop(service)


def ask(service, question):
    answer = talk(service.address, question if isinstance(question, str) else json.dumps(question))
    return json.loads(answer) if answer else None


def test_it_answers_and_remembers(serve, asked, tmp_path):
    # GIVEN a server with an empty cache  WHEN it is asked the same twice
    service = serve(cache=tmp_path)
    first, second = ask(service, QUESTION), ask(service, QUESTION)
    # THEN both answers are the same, and the cache has it
    assert first == second
    kept = open_answers(tmp_path, asked.version, "9.0").known
    assert kept == {key_of(QUESTION): [Engine(*engine) for engine in first]}
    told = summary(service)
    assert (told.version, told.asked, told.unknown) == (asked.version, 1, {})
    assert told.first_bytes == first[0][1] <= told.top_bytes


def test_what_is_in_the_cache_is_not_asked_again(serve, asked, tmp_path):
    # GIVEN a cache with an answer that cuDNN would not give  WHEN a server is asked for it  THEN that is the answer
    keep(open_answers(tmp_path, asked.version, "9.0"), key_of(QUESTION), [Engine(999, 123456789, 1, 0)])
    assert ask(serve(cache=tmp_path), QUESTION) == [[999, 123456789, 1, 0]]


def test_the_largest_of_the_best_eight_can_come_first(serve):
    # GIVEN servers that offer the best engine first, and the one with the largest workspace
    plain, largest = ask(serve(), QUESTION), ask(serve(choose=LARGEST), QUESTION)
    # THEN they know the same engines, and the second begins with the largest of the first one's best
    assert sorted(plain) == sorted(largest)
    assert largest[0][1] == max(engine[1] for engine in plain[:8])


@pytest.mark.parametrize("line", ["", "nonsense", "{}", "[]", "null", '{"mode": 0, "graph": [[1, 2, 3]]}'])
def test_nonsense_gets_an_error_and_the_server_lives(serve, line):
    service = serve()
    assert "error" in ask(service, line)
    assert len(ask(service, QUESTION)) > 1


def test_many_ask_at_once(serve, tmp_path):
    # GIVEN twelve operations  WHEN eight threads ask for each of them twice
    service = serve(cache=tmp_path)
    questions = [convolution(FORWARD, [n, 16, 28, 28], [16, 16, 3, 3]) for n in range(1, 13)] * 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: ask(service, question), questions))
    # THEN each has its answer, and is counted once
    assert all(answers)
    assert answers[:12] == answers[12:]
    assert summary(service).asked == 12


def test_a_dead_server_refuses_at_once(serve):
    # GIVEN a server that is killed  WHEN it is asked  THEN there is no answer, and no waiting for one
    service = serve()
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait(10)
    began = time.monotonic()
    assert ask(service, QUESTION) is None
    assert summary(service) is None
    assert time.monotonic() - began < 1


def test_one_server_serves_all_and_is_replaced_when_it_dies(asked, cache):
    # GIVEN a server for all who want the same
    def get():
        return running(asked, H100, driver=build(cache)[0] / "libcuda.so.1", cache=cache)

    service = get()
    assert get() is service
    # WHEN it dies  THEN the next one who wants it gets another
    service.process.kill()
    service.process.wait(10)
    other = get()
    assert other is not service
    assert len(ask(other, QUESTION)) > 1


OWNER = """
import pathlib, sys
from dnnmem.estimator.devices import find_device
from dnnmem.profilers.virtual_gpu.cudnn_service import find_cudnn, start
from dnnmem.profilers.virtual_gpu.installed import find_torch
service = start(find_cudnn(find_torch()), find_device("h100"), driver=pathlib.Path(sys.argv[1]))
print(service.process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("asked")
def test_it_ends_when_the_process_that_started_it_is_killed(cache):
    # GIVEN a process with a server
    command = [sys.executable, "-c", OWNER, str(build(cache)[0] / "libcuda.so.1")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        server = int(owner.stdout.readline())
        # WHEN it is killed
        owner.kill()
    # THEN the server is gone soon after
    deadline = time.monotonic() + 10
    while is_alive(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(server)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - it may end while it is read
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def make_torch(tmp_path):
    """`make_torch("9.1")`: an installed torch with that cuDNN."""

    def make(version, place="torch"):
        folder = tmp_path / place / "nvidia" / "cudnn"
        (folder / "include").mkdir(parents=True)
        (folder / "lib").mkdir()
        major, minor = version.split(".")
        text = f"#define CUDNN_MAJOR {major}\n#define CUDNN_MINOR {minor}\n#define CUDNN_PATCHLEVEL 0\n"
        (folder / "include" / "cudnn_version.h").write_text(text)
        (folder / "lib" / "libcudnn.so.9").write_text("")
        return Torch(
            version="2.6.0",
            cuda="12.4",
            folder=tmp_path,
            includes=(folder / "include",),
            libraries=(folder / "lib",),
        )

    return make


def test_the_installed_cudnn_is_asked_if_it_can_be(make_torch, tmp_path):
    # GIVEN an installed cuDNN that is new enough, and a newer one in the cache
    torch = make_torch("9.10")
    make_torch("9.24", place="cache/cudnn")
    # THEN the installed one is the truth
    found = find_cudnn(torch, tmp_path / "cache")
    assert (found.version, found.installed) == (91000, 91000)
    assert found.library.is_relative_to(tmp_path / "torch")


def test_an_old_cudnn_has_a_neighbour_or_none(make_torch, tmp_path):
    # GIVEN an installed cuDNN that is too old  WHEN there is no other  THEN the error says how to get one
    torch = make_torch("9.1")
    with pytest.raises(UnsupportedError, match=r"cuDNN 9\.1.*9\.8 and later") as raised:
        find_cudnn(torch, tmp_path / "cache")
    assert f"--target {tmp_path / 'cache' / 'cudnn'} 'nvidia-cudnn-cu12>=9.8" in raised.value.hint
    # and WHEN it is got  THEN that one is asked, and it is known not to be torch's own
    make_torch("9.8", place="cache/cudnn")
    found = find_cudnn(replace(torch, version="2.6.1"), tmp_path / "cache")
    assert (found.version, found.installed) == (90800, 90100)
