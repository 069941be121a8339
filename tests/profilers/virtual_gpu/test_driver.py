"""What programs see of a virtual GPU: its name, its memory to the byte, a few true values, and its refusals."""

from __future__ import annotations

import json

import pytest

from dnnmem.estimator.devices import find_device


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_torch_sees_the_gpus_of_the_table(on_gpu):
    # GIVEN two RTX 4090  WHEN torch is asked
    (told,) = lines(
        on_gpu(
            """
            import json, torch
            p = torch.cuda.get_device_properties(1)
            print(json.dumps([torch.cuda.device_count(), p.name, p.major, p.minor, p.total_memory,
                              p.multi_processor_count, p.L2_cache_size, p.shared_memory_per_multiprocessor]))
            """,
            "rtx-4090",
            count=2,
        )
    )
    # THEN
    d = find_device("rtx-4090")
    name = "NVIDIA GeForce RTX 4090"
    assert told == [2, name, 8, 9, d.usable_bytes, d.sm_count, d.l2_bytes, d.smem_per_sm_bytes]


def test_visible_devices_are_counted_when_cuda_is_first_used(on_gpu):
    # GIVEN four GPUs, of which a script shows itself two  WHEN it uses the first of them
    (told,) = lines(
        on_gpu(
            """
            import json, os, pynvml
            os.environ["CUDA_VISIBLE_DEVICES"] = "3,1"
            import torch
            torch.empty(2**30, dtype=torch.uint8, device="cuda:0")
            pynvml.nvmlInit()
            used = [pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(i)).used >> 30 for i in range(4)]
            print(json.dumps([torch.cuda.device_count(), used]))
            """,
            count=4,
        )
    )
    # THEN the machine still has four, and memory is in use on the one that was meant
    assert told == [2, [0, 0, 0, 1]]


MEMORY = """
    import json, torch, pynvml
    from dnnmem.profilers import monitor
    free, total = torch.cuda.mem_get_info()
    context = total - free
    whole = free // GRANULE * GRANULE
    x = torch.empty(whole, dtype=torch.uint8, device="cuda")
    now = monitor.read()
    left = torch.cuda.mem_get_info()[0]
    del x
    torch.cuda.empty_cache()
    try:
        torch.empty(whole + 1, dtype=torch.uint8, device="cuda")
        error = ""
    except torch.OutOfMemoryError as e:
        error = str(e)
    print(json.dumps([total, context, left, now.used_bytes, now.own_bytes, whole, error]))
"""


@pytest.mark.parametrize(("expandable", "granule"), [(False, 2**21), (True, 20 * 2**20)])
def test_memory_ends_at_the_right_byte_and_everybody_agrees(on_gpu, expandable, granule):
    # GIVEN a GPU  WHEN all its memory is taken in one piece, then a byte more
    device = find_device("rtx-3090")
    option = {"PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{expandable}"}
    done = on_gpu(MEMORY.replace("GRANULE", str(granule)), "rtx-3090", **option)
    ((total, context, left, used, own, whole, error),) = lines(done)
    # THEN the first fits, to the allocator's granularity; the second does not, in torch's own words; NVML sees the same
    assert (total, context) == (device.usable_bytes, device.context_bytes)
    assert 0 <= left < granule
    assert used == own == total - left
    assert whole > 0
    assert error.startswith("CUDA out of memory. Tried to allocate ")
    assert "this process has" in error


def test_small_values_are_true_until_something_computes(on_gpu):
    # GIVEN numbers that were copied to the GPU  WHEN they are read back, before and after a kernel
    before, after, filled = lines(
        on_gpu(
            """
            import torch
            x = torch.tensor([1, 2, 3]).cuda()
            print(x.tolist())
            y = x + 1
            print(y.tolist())
            print(torch.zeros(3, device="cuda").tolist())
            """
        )
    )
    # THEN what was written is read; what was computed is unknown, and 0
    assert (before, after, filled) == ([1, 2, 3], [0, 0, 0], [0.0, 0.0, 0.0])


def test_pinned_memory_and_events_and_streams_work(on_gpu):
    # GIVEN a copy from pinned memory on a stream of its own  WHEN it is waited for  THEN the values have arrived
    (told,) = lines(
        on_gpu(
            """
            import json, torch
            x = torch.arange(4).pin_memory()
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                y = x.to("cuda", non_blocking=True)
                done = torch.cuda.Event(); done.record()
            torch.cuda.current_stream().wait_event(done)
            print(json.dumps([x.is_pinned(), y.tolist(), done.query()]))
            """
        )
    )
    assert told == [True, [0, 1, 2, 3], True]


def test_what_is_copied_to_pinned_memory_costs_the_host_none(on_gpu):
    # GIVEN 64 MiB of pinned ones, and 1 GiB that was never written
    (told,) = lines(
        on_gpu(
            """
            import json, resource, torch
            ones = torch.ones(2**26, dtype=torch.uint8).pin_memory()
            fresh = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
            gpu = torch.empty(2**30, dtype=torch.uint8, device="cuda")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            # WHEN a GPU's memory is copied into both, into the ones from and to the middle of a page
            ones[5:-5].copy_(gpu[: 2**26 - 10])
            fresh.copy_(gpu)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(json.dumps([ones[:6].tolist(), ones[-6:].tolist(), ones.sum().item(), grown < 2**18]))
            """
        )
    )
    # THEN it reads as zeros, what lies beside it is untouched, and nearly no memory was needed
    assert told == [[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], 10, True]


def test_a_stream_that_waits_for_a_capture_joins_it(on_gpu):
    # GIVEN a graph being captured, and a second stream that waits for an event of it
    (told,) = lines(
        on_gpu(
            """
            import json, torch
            side, graph, x = torch.cuda.Stream(), torch.cuda.CUDAGraph(), torch.zeros(8, device="cuda")
            x + 1
            with torch.cuda.graph(graph):
                before = side.is_capturing() if hasattr(side, "is_capturing") else False
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    y = x * 2
                    during = torch.cuda.is_current_stream_capturing()
                torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.stream(side):
                after = torch.cuda.is_current_stream_capturing()
            graph.replay()
            print(json.dumps([before, during, after]))
            """
        )
    )
    # WHEN THEN
    assert told == [False, True, False]


UNREVIEWED = """
    import ctypes
    ctypes.CDLL("libcuda.so.1").cuMemAllocPitch_v2()
    print("went on")
"""


def test_a_call_that_nobody_reviewed_ends_the_process_with_its_name(on_gpu):
    # GIVEN a program that calls what the virtual GPU does not have  WHEN it runs
    done = on_gpu(UNREVIEWED)
    # THEN it ends there, and says why
    assert done.returncode < 0
    assert "went on" not in done.stdout
    assert "the virtual GPU has no cuMemAllocPitch_v2" in done.stderr


def test_device_memory_has_no_memory_behind_it(on_gpu):
    # GIVEN a GPU with more memory than this machine is likely to have free  WHEN half of it is allocated and "written"
    (peak,) = lines(
        on_gpu(
            """
            import resource, torch
            torch.ones(1, device="cuda")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            x = torch.ones(2**37, dtype=torch.uint8, device="cuda")
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            """,
            "b200",
        )
    )
    # THEN the process has not grown, in KiB
    assert peak < 16 * 1024


def test_addresses_are_used_again_when_they_run_out(on_gpu):
    # GIVEN a program that takes and gives back more than all addresses together  WHEN THEN it runs on
    (count,) = lines(
        on_gpu(
            """
            import torch
            for i in range(40):
                x = torch.empty(60 * 2**30, dtype=torch.uint8, device="cuda")
                del x
                torch.cuda.empty_cache()
            print(i + 1)
            """
        )
    )
    assert count == 40


def test_collectives_of_many_ranks_need_no_peers(on_gpu):
    # GIVEN rank 0 of 8, alone  WHEN it calls collectives
    (told,) = lines(
        on_gpu(
            """
            import json, torch, torch.distributed as dist
            dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=8)
            x = torch.ones(1 << 20, device="cuda")
            dist.all_reduce(x)
            gathered = torch.empty(8 << 20, device="cuda")
            dist.all_gather_into_tensor(gathered, x)
            part = torch.empty(1 << 17, device="cuda")
            dist.reduce_scatter_tensor(part, x)
            all_small = torch.empty(8, dtype=torch.int64, device="cuda")
            small = torch.tensor([5], device="cuda")
            dist.all_gather_into_tensor(all_small, small)
            print(json.dumps([all_small.tolist(), torch.cuda.memory_allocated() >> 20]))
            import os; os._exit(0)
            """
        )
    )
    # THEN memory is that of the tensors, and a small payload is as if all ranks had the same
    assert told == [[5] * 8, 4 + 32 + 0]


@pytest.mark.parametrize("split", ["dist.split_group(split_ranks=parts)", "dist.new_group([0, 1, 2, 3])"])
def test_a_group_that_is_split_off_has_its_own_size(on_gpu, split):
    # GIVEN a group of 4 made out of 8 ranks  WHEN a number is gathered in it
    (told,) = lines(
        on_gpu(
            f"""
            import json, torch, torch.distributed as dist
            from dnnmem.profilers.virtual_gpu.groups import tell_split_sizes
            tell_split_sizes()
            dist.init_process_group(
                "nccl", store=dist.HashStore(), rank=0, world_size=8, device_id=torch.device("cuda:0")
            )
            parts = [[0, 1, 2, 3], [4, 5, 6, 7]]
            part = {split}
            out = torch.full((8,), -1, dtype=torch.int64).cuda()
            dist.all_gather_into_tensor(out[:4], torch.tensor([7]).cuda(), group=part)
            print(json.dumps(out.tolist()))
            import os; os._exit(0)
            """
        )
    )
    # THEN there are 4 of them, and nothing behind is written to
    assert told == [7] * 4 + [-1] * 4
