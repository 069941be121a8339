"""How far the host is ahead of a virtual GPU, and what that holds."""

from __future__ import annotations

import json

USED_BY_ANOTHER_STREAM = """
    import json, time, torch
    from dnnmem.profilers.virtual_gpu.launch import IN_FLIGHT

    x, side = torch.ones(8, device="cuda"), torch.cuda.Stream()

    def launch(count):
        for _ in range(count):
            x.add_(1)

    def use(then):
        block = torch.empty(2**26, dtype=torch.uint8, device="cuda")
        with torch.cuda.stream(side):
            block.add_(1)
        done = torch.cuda.Event()
        done.record(side)
        block.record_stream(side)
        del block
        assert not done.query()
        then(done)
        again = torch.empty(2**26, dtype=torch.uint8, device="cuda")
        blocks = torch.cuda.memory_reserved() >> 26
        torch.cuda.synchronize()
        del again
        torch.cuda.empty_cache()
        return blocks

    print(json.dumps({
        "nothing": use(lambda done: None),
        "a little": use(lambda done: launch(IN_FLIGHT - 100)),
        "a queue full": use(lambda done: launch(IN_FLIGHT + 1)),
        "waits for all": use(lambda done: torch.cuda.synchronize()),
        "waits for it": use(lambda done: done.synchronize()),
        "reads a later value": use(lambda done: x.sum().item()),
        "does nothing for a while": use(lambda done: time.sleep(1.1)),
    }))
"""


def test_what_another_stream_used_is_free_once_the_host_knows(on_gpu):
    # GIVEN a block that is given back while another stream has it in use  WHEN the host does one thing or the other
    process = on_gpu(USED_BY_ANOTHER_STREAM)
    assert process.returncode == 0, process.stderr
    blocks = json.loads(process.stdout)
    # THEN its memory serves again if the host had to wait for its use meanwhile, or did nothing for a while
    assert {done for done, count in blocks.items() if count == 2} == {"nothing", "a little"}
    assert sorted(set(blocks.values())) == [1, 2]


def test_a_thread_that_only_looks_gets_its_turn(on_gpu):
    # GIVEN a thread that looks at an event ten times a second, as NCCL's does  WHEN the host works without a rest
    process = on_gpu(
        """
        import json, threading, time, torch
        from dnnmem.profilers.virtual_gpu.launch import IN_FLIGHT

        x, done, looks, ended = torch.ones(8, device="cuda"), torch.cuda.Event(), [], threading.Event()

        def watch():
            while not ended.wait(0.1):
                looks.append(done.query())

        done.record()
        watcher = threading.Thread(target=watch)
        watcher.start()
        while not looks:
            time.sleep(0.01)
        before = len(looks)
        for _ in range(5 * IN_FLIGHT):
            x.add_(1)
        seen = len(looks) - before
        ended.set()
        watcher.join()
        print(json.dumps([looks[0], looks[-1], seen]))
        """
    )
    assert process.returncode == 0, process.stderr
    first, last, seen = json.loads(process.stdout)
    # THEN it looks at least once while a queue is worked off, and sees the event complete
    assert (first, last) == (False, True)
    assert seen >= 4
