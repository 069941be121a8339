"""How far the host is ahead of a virtual GPU, and what that holds."""

from __future__ import annotations

import json

USED_BY_ANOTHER_STREAM = """
    import json, torch
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
        "asks again and again": use(lambda done: any(done.query() for _ in range(100))),
    }))
"""


def test_what_another_stream_used_is_free_once_the_host_knows(on_gpu):
    # GIVEN a block that is given back while another stream has it in use  WHEN the host does one thing or the other
    process = on_gpu(USED_BY_ANOTHER_STREAM)
    assert process.returncode == 0, process.stderr
    blocks = json.loads(process.stdout)
    # THEN its memory serves again if the host had to wait for its use meanwhile
    assert {done for done, count in blocks.items() if count == 2} == {"nothing", "a little"}
    assert sorted(set(blocks.values())) == [1, 2]


COLLECTIVES = """
    import json, time, torch
    import torch.distributed as dist
    from dnnmem.profilers.virtual_gpu.launch import IN_FLIGHT

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    x, held = torch.ones(8, device="cuda"), []
    for _ in range(12):
        block = torch.empty(2**20, dtype=torch.uint8, device="cuda")
        dist.all_reduce(block, async_op=True)  # nobody waits for it
        del block
        time.sleep(PAUSE)
        for _ in range(IN_FLIGHT // 4):
            x.add_(1)
        held.append(torch.cuda.memory_allocated())
    print(json.dumps(held))
    END
"""


def test_what_asynchronous_collectives_hold_does_not_depend_on_the_clock(on_gpu):
    # GIVEN collectives that nobody waits for  WHEN the program is quick, or slow, and ends in one way or the other
    runs = [
        on_gpu(COLLECTIVES.replace("PAUSE", pause).replace("END", end))
        for pause, end in (("0", ""), ("0.25", "dist.destroy_process_group()"))
    ]
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    # THEN it holds as much after each of them, and NCCL's thread has let some go
    first, second = (json.loads(run.stdout) for run in runs)
    assert first == second
    assert max(first) < 11 * 2**20
