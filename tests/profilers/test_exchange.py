"""Payloads between ranks, whose part is played here by sockets; payload.c plays it for real (test_ranks.py)."""

import socket
import sys
import time

import pytest

from dnnmem.profilers.exchange import ANSWER, EVERYONE, FRAME, GET, HELLO, JOB, JOIN, PUT, Exchange

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets with abstract names are Linux's")


class Rank:
    """A rank, which says and hears what payload.c would."""

    def __init__(self, exchange, rank):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(f"\0{exchange.name}")
        self.socket.settimeout(60)
        self.stream = self.socket.makefile("rb")
        self.say(HELLO, source=rank)

    def say(self, kind, body=b"", *, readers=0, group=JOB, source=0, to=EVERYONE, number=0):
        self.socket.sendall(FRAME.pack(kind, readers, group, source, to, number, len(body)) + body)

    def close(self):
        self.stream.close()
        self.socket.close()

    def hear(self):
        failed, nbytes = ANSWER.unpack(self.stream.read(ANSWER.size))
        said = self.stream.read(nbytes)
        return said.decode() if failed else said


@pytest.fixture(name="exchange")
def _exchange():
    it = Exchange(wait_seconds=60.0)
    yield it
    it.close()


@pytest.fixture(name="ranks")
def _ranks(exchange):
    both = Rank(exchange, 0), Rank(exchange, 1)
    yield both
    for rank in both:
        rank.close()


def test_what_one_rank_puts_the_others_get_in_whatever_order(ranks):
    # GIVEN rank 1 that asks for two payloads before there is any
    first, second = ranks
    second.say(GET, group=7, number=1)
    second.say(GET, group=7, number=0)
    # WHEN rank 0 puts them
    first.say(PUT, b"early", readers=1, group=7, number=0)
    first.say(PUT, bytes(3_000_000), readers=1, group=7, number=1)
    # THEN the answers come in the order of the questions
    assert second.hear() == bytes(3_000_000)
    assert second.hear() == b"early"


def test_a_payload_is_kept_for_as_many_as_need_it(exchange, ranks):
    first, second = ranks
    first.say(PUT, b"x", readers=2)
    for rank in (first, second):
        rank.say(GET)
        assert rank.hear() == b"x"
    exchange.absent(0, "it has ended")
    second.say(GET)
    assert second.hear().endswith("it has ended")


def test_nobody_waits_for_ever():
    exchange = Exchange(wait_seconds=0.2)
    rank = Rank(exchange, 1)
    rank.say(GET)
    assert rank.hear() == "rank 1 waits for what rank 0 sends: it has waited for 0.2 s"
    rank.close()
    exchange.close()


def test_nobody_waits_for_a_rank_that_has_ended(exchange, ranks):
    # GIVEN rank 0, which is rank 3 of group 7
    first, second = ranks
    first.say(JOIN, group=7, source=3)
    first.say(PUT, b"last words", readers=1, group=7, source=3)
    # WHEN it ends
    exchange.absent(0, "it has ended")
    # THEN what it has put is still there, and nothing else comes
    second.say(GET, group=7, source=3)
    assert second.hear() == b"last words"
    second.say(GET, group=7, source=3, number=1)
    assert second.hear() == "rank 1 waits for what rank 0 sends: it has ended"


def test_ranks_that_never_said_anything_are_wanted(exchange, ranks):
    _, second = ranks
    second.say(GET, source=5)
    end = time.monotonic() + 30
    while not (wanted := exchange.wanted()) and time.monotonic() < end:
        time.sleep(0.01)
    assert wanted == {5}


def test_a_closed_exchange_leaves_no_socket():
    exchange = Exchange()
    Rank(exchange, 0).close()
    exchange.close()
    with pytest.raises(ConnectionRefusedError):
        Rank(exchange, 1)
