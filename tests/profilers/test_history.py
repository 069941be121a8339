"""A recorder's log joined with an allocator's history: true order, hidden temporaries, workspaces, a valid list."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.trace import Kind, Origin, Phase
from dnnmem.profilers.history import use_history
from dnnmem.profilers.modules import Place
from dnnmem.profilers.record import Block, Entry, Log
from dnnmem.profilers.rewrite import to_trace

PLACE = Place(Phase.FORWARD, ("fc",), "model.py:1", None)


def alloc(address, size, label):
    return {"action": "alloc", "addr": address, "size": size, "user_metadata": label}


def free(address, label, *, whole=True):
    """A free has two entries; the second, its completion, says nothing new."""
    first = {"action": "free_requested", "addr": address, "size": 0, "user_metadata": label}
    return [first, {**first, "action": "free_completed"}] if whole else [first]


def entry(tick, reads=(), writes=()):
    return Entry(f"op{tick}", PLACE, reads, writes, 0, 0, 0, None, tick)


def block(size, *, seen, address, made_by=0):
    return Block(size, (size,), "uint8", made_by, seen=seen, address=address)


def log_of(entries, blocks, *, began=1):
    log = Log(entries=entries, blocks=dict(enumerate(blocks)))
    log.steps, log.ticks = [(0, 0)], [began]
    return log


def windows(log):
    """Events of each op."""
    starts = [e.start for e in log.entries] + [len(log.events)]
    return [log.events[a:b] for a, b in pairwise(starts)]


def test_what_lived_before_the_history_began_is_there_from_the_start():
    # GIVEN a library's state that an operator reads, and of which the history knows nothing
    log = log_of(
        [entry(2, (0,), (1,))], [block(128, seen=2, address=0x90, made_by=-1), block(64, seen=2, address=0x20)]
    )
    use_history(log, [alloc(0x20, 64, "2"), *free(0x20, "~2")])
    assert log.events[0] == (128, 0)
    assert windows(log) == [[(64, 1), (-64, 1)]]


def test_blocks_keep_the_allocators_stream():
    # GIVEN an output on a stream of its own, a temporary on a third one, and one on the default stream
    log = log_of([entry(2, (), (0,))], [block(64, seen=2, address=0x20)])
    history = [
        {**alloc(0x20, 64, "2"), "stream": 0x7F00}, {**alloc(0x30, 16, "2"), "stream": 0x9900}, *free(0x30, "2"),
        {**alloc(0x40, 8, "2"), "stream": 0}, *free(0x40, "2"), *free(0x20, "~2"),
    ]  # fmt: skip
    use_history(log, history)
    # WHEN it becomes a trace
    trace, _ = to_trace(log, modules=(), batch={}, origin=Origin())
    # THEN streams are numbered as they appear, for allocations and frees alike
    assert [(event.nbytes, event.stream) for _, event in trace.events()] == [
        (64, 1), (16, 2), (-16, 2), (8, 0), (-8, 0), (-64, 1),
    ]  # fmt: skip


def test_temporaries_inside_an_operator_are_its_own():
    # GIVEN an operator that makes its output, and a temporary before and after it
    log = log_of([entry(2, (), (0,)), entry(3, (0,))], [block(64, seen=2, address=0x20)])
    history = [
        alloc(0x10, 8, "2"), alloc(0x20, 64, "2"), alloc(0x30, 16, "2"), *free(0x10, "2"), *free(0x30, "2"),
        *free(0x20, "~3"),
    ]  # fmt: skip
    use_history(log, history)
    assert windows(log) == [[(8, -1), (64, 0), (16, -2), (-8, -1), (-16, -2)], [(-64, 0)]]


def test_a_block_that_a_library_keeps_is_a_workspace():
    log = log_of([entry(2, (), (0,)), entry(3)], [block(64, seen=2, address=0x20)])
    use_history(log, [alloc(0x10, 4096, "2"), alloc(0x20, 64, "2")])
    kept = log.blocks[1]
    assert (kept.nbytes, kept.name, kept.kind, kept.module) == (4096, "workspace", Kind.TEMP, ("fc",))
    assert log.events == [(4096, 1), (64, 0)]


def test_what_no_tensor_holds_before_the_first_operator_is_a_workspace_too_unless_it_is_freed():
    log = log_of([entry(1, (), (0,))], [block(512, seen=1, address=0x10)])
    use_history(log, [alloc(0x80, 4096, "~0"), alloc(0x90, 64, "~0"), alloc(0x10, 512, "1"), *free(0x90, "~1")])
    assert [(b.nbytes, b.name, b.kind) for b in log.blocks.values()][1:] == [
        (4096, "workspace", Kind.TEMP),
        (64, "", None),
    ]


def test_a_temporary_that_outlives_its_operator_is_a_block():
    # GIVEN memory that operator 2 made and that dies within operator 3
    log = log_of([entry(2), entry(3)], [])
    use_history(log, [alloc(0x10, 8, "2"), *free(0x10, "3")])
    assert windows(log) == [[(8, 0)], [(-8, 0)]]
    assert log.blocks[0].kind is None
    assert log.blocks[0].died == 3


def test_memory_between_operators_is_no_operators_own():
    # GIVEN memory that nobody dispatched: UntypedStorage(n)
    log = log_of([entry(2), entry(3)], [])
    use_history(log, [alloc(0x10, 8, "~2"), *free(0x10, "~2")])
    assert windows(log) == [[(8, 0), (-8, 0)], []]


def test_what_was_there_before_is_set_up():
    # GIVEN parameters, made before any label
    log = log_of([entry(2, (0,), (1,))], [block(64, seen=0, address=0x10, made_by=-1), block(8, seen=2, address=0x20)])
    use_history(log, [alloc(0x10, 64, None), alloc(0x20, 8, "2"), *free(0x20, "~2")])
    assert log.steps == [(0, 1)]
    trace, growth = to_trace(log, modules=(), batch={}, origin=Origin())
    assert growth == 0
    assert trace.pinned == {0}
    assert [(e.nbytes, e.storage) for e in trace.setup] == [(64, 0)]
    assert [[(e.nbytes, e.storage) for e in op.events] for op in trace.ops] == [[(8, 1), (-8, 1)]]


def test_an_address_is_used_again():
    # GIVEN two blocks, one after the other, at one address
    blocks = [block(8, seen=2, address=0x10), block(16, seen=3, address=0x10, made_by=1)]
    log = log_of([entry(2, (), (0,)), entry(3, (), (1,))], blocks)
    use_history(log, [alloc(0x10, 8, "2"), *free(0x10, "~2"), alloc(0x10, 16, "3")])
    assert windows(log) == [[(8, 0), (-8, 0)], [(16, 1)]]


def test_a_label_of_another_thread_is_old():
    # GIVEN an autograd thread whose label still says operator 2 while 3 has run
    log = log_of([entry(2, (), (0,)), entry(3)], [block(8, seen=2, address=0x10)])
    use_history(log, [alloc(0x10, 8, "2"), alloc(0x20, 4, "~3"), *free(0x20, "2"), *free(0x10, "2")])
    # THEN what it frees is freed now, not then
    assert windows(log) == [[(8, 0)], [(4, 1), (-4, 1), (-8, 0)]]


def test_requested_bytes_are_the_allocators():
    # GIVEN a storage that the recorder saw smaller than what was asked for
    log = log_of([entry(2, (), (0,))], [block(10, seen=2, address=0x10)])
    use_history(log, [alloc(0x10, 512, "2")])
    assert log.blocks[0].nbytes == 512
    assert log.events == [(512, 0)]


def test_frees_of_unknown_memory_are_left_out():
    # GIVEN a history that begins after some memory was made
    log = log_of([entry(2)], [])
    use_history(log, [*free(0x99, "2"), {"action": "segment_alloc", "addr": 0x10, "size": 2**21, "user_metadata": "2"}])
    assert log.events == []


def program(dice, operators):
    """A log and the history that belongs to it: random operators over a heap that uses addresses again."""
    pool, live = list(range(0x10, 0x400, 0x10)), {}
    history, entries, blocks = [], [], []

    def take(label):
        address = pool.pop(dice.randrange(len(pool)))
        live[address] = dice.choice((1, 8, 512))
        history.append(alloc(address, live[address], label))
        return address

    def give(address, label):
        pool.append(address)
        del live[address]
        history.extend(free(address, label))

    for _ in range(dice.randint(0, 3)):
        address = take(dice.choice(("", None)))
        blocks.append(block(live[address], seen=0, address=address, made_by=-1))
    for tick in range(2, 2 + operators):
        inside, made = [], []
        for _ in range(dice.randint(0, 3)):
            (made if dice.random() < 0.5 else inside).append(take(str(tick)))
        for address in inside:
            if dice.random() < 0.9:  # else a library keeps it
                give(address, str(tick))
        first = len(blocks)
        blocks += [block(live[a], seen=tick, address=a, made_by=len(entries)) for a in made]
        entries.append(entry(tick, (), tuple(range(first, len(blocks)))))
        for address in list(live):
            if dice.random() < 0.3:
                give(address, f"~{tick}")
    return log_of(entries, blocks), history


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_the_rebuilt_list_is_one_that_an_allocator_can_write(operators, seed):
    # GIVEN a random program
    log, history = program(Random(seed), operators)  # noqa: S311  # no secret comes from it
    seen = [(e["size"], e["action"]) for e in history if e["action"] != "free_completed"]
    use_history(log, history)
    # THEN each block is made once and freed at most once with its size
    live, made = {}, Counter()
    for nbytes, number in log.events:
        if nbytes > 0:
            assert number not in live
            made[number] += 1
            live[number] = nbytes
        else:
            assert live.pop(number) == -nbytes
    assert set(made.values()) <= {1}
    # AND the order is the allocator's
    assert [nbytes for nbytes, _ in log.events if nbytes > 0] == [size for size, action in seen if action == "alloc"]
    assert [n > 0 for n, _ in log.events] == [action == "alloc" for _, action in seen]
    # AND operators own intervals in order, temporaries die in the operator that made them
    starts = [e.start for e in log.entries]
    assert starts == sorted(starts)
    for window in windows(log):
        assert sum(nbytes for nbytes, number in window if number < 0) == 0
    # AND every block that the recorder saw is in it
    assert set(range(len(log.blocks))) >= {number for _, number in log.events if number >= 0}
    trace, _ = to_trace(log, modules=(), batch={}, origin=Origin())
    trace.check()


def test_a_tensor_made_between_operators_is_not_the_next_one_at_its_address():
    # GIVEN two tensors, each made after an operator and first seen by the next, at the same address
    blocks = [block(8, seen=4, address=0x10, made_by=-1), block(8, seen=6, address=0x10, made_by=-1)]
    blocks[0].died, blocks[1].died = 4, 6
    log = log_of([entry(4, (0,)), entry(6, (1,))], blocks, began=2)
    # WHEN the first one's free and the second one's allocation come after the same operator
    use_history(log, [alloc(0x10, 8, "~2"), *free(0x10, "~4"), alloc(0x10, 8, "~4"), *free(0x10, "~6")])
    # THEN each is its own
    assert log.events == [(8, 0), (-8, 0), (8, 1), (-8, 1)]


def test_a_block_in_use_by_another_stream_serves_again_later():
    # GIVEN a block and a temporary that are freed in one operator and come free in the next, one that never does, and
    # one that does at once
    log = log_of([entry(2, (), (0,)), entry(3)], [block(64, seen=2, address=0x20)])
    over = {"action": "free_completed", "size": 0, "user_metadata": "3"}
    history = [
        alloc(0x20, 64, "2"), alloc(0x30, 16, "2"), alloc(0x40, 8, "2"), *free(0x20, "2", whole=False),
        *free(0x30, "2", whole=False), *free(0x40, "2", whole=False), {**over, "addr": 0x30},
        {**over, "addr": 0x20}, alloc(0x50, 4, "3"), *free(0x50, "3"),
    ]  # fmt: skip
    use_history(log, history)
    # THEN both are blocks with an event of 0 bytes where they serve again, and the third one waits at the end
    assert windows(log) == [
        [(64, 0), (16, 1), (8, 2), (-64, 0), (-16, 1), (-8, 2)],
        [(0, 1), (0, 0), (4, -1), (-4, -1)],
    ]
    assert log.waiting == [2]
