"""NCCL's buffers on a virtual GPU: they appear when a communicator first needs them, and go with it."""

import json

import pytest

from dnnmem.estimator.nccl_memory import way_bytes

H100 = way_bytes("nvlink4", "9.0")


def taken(process):
    """What each step of a child found in use, NCCL's own count first."""
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def test_ways_cost_when_they_are_first_used(on_gpu):
    # GIVEN rank 0 of 8, alone  WHEN it reduces little, then much, gathers, and sends by hand, each twice
    found = taken(
        on_gpu(
            """
            import ctypes, json, torch, torch.distributed as dist
            nccl = ctypes.CDLL(None).dnnmem_nccl_bytes
            dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=8)
            x, big = torch.ones(4, device="cuda"), torch.ones(1 << 20, device="cuda")
            out = torch.empty(8 << 20, device="cuda")
            torch.cuda.synchronize()
            first = torch.cuda.mem_get_info()[0]
            found = []
            for act in (lambda: dist.all_reduce(x), lambda: dist.all_reduce(big),
                        lambda: dist.all_gather_into_tensor(out, big), lambda: dist.send(x, 3)):
                for _ in range(2):
                    act()
                    found.append((nccl(0), first - torch.cuda.mem_get_info()[0]))
            dist.destroy_process_group()
            found.append((nccl(0), first - torch.cuda.mem_get_info()[0]))
            print(json.dumps(found))
            """,
            count=8,
        )
    )
    # THEN each way is paid for once: a tree, a ring with NVLink SHARP, one peer; and given back at the end
    tree, large = H100.tree, H100.tree + H100.ring + 8 * H100.nvls
    assert [nccl for nccl, _ in found[:6]] == [tree, tree, large, large, large, large]
    assert found[6][0] == found[7][0] >= large + H100.send
    assert all(nccl == less for nccl, less in found[:8])
    assert found[8] == [0, 0]


def test_more_than_2_gib_are_read_whole(on_gpu):
    # GIVEN a rank that swaps with 7 others, in many ways  WHEN what it needs is noted
    code = """
        import json, torch, torch.distributed as dist
        from dnnmem.profilers.script_peaks import PeakMeter
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=8)
        x = torch.ones(8 << 20, device="cuda")
        dist.all_to_all_single(torch.empty_like(x), x)
        dist.all_reduce(x)
        gpu, = PeakMeter().memory()
        print(json.dumps([gpu.nccl_bytes, gpu.outside_bytes]))
    """
    nccl, outside = taken(on_gpu(code, count=8))
    # THEN it does not turn negative, and is part of all that lies outside the allocator
    assert 2**31 < nccl < outside


@pytest.mark.parametrize(("size", "expected"), [(1, 0), (2, H100.ring)])
def test_few_ranks_need_little(on_gpu, size, expected):
    found = taken(
        on_gpu(
            f"""
            import ctypes, json, torch, torch.distributed as dist
            dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size={size})
            dist.all_reduce(torch.ones(4, device="cuda"))
            print(json.dumps(ctypes.CDLL(None).dnnmem_nccl_bytes(0)), flush=True)
            import os; os._exit(0)
            """,
            count=size,
        )
    )
    assert found == expected


def test_without_room_for_buffers_nccl_fails(on_gpu):
    # GIVEN a GPU that tensors fill  WHEN a first collective needs buffers
    process = on_gpu(
        """
        import torch, torch.distributed as dist
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=8)
        x = torch.ones(4, device="cuda")
        free = torch.cuda.mem_get_info()[0]
        full = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")
        dist.all_reduce(x)
        """,
        count=8,
    )
    # THEN torch says that NCCL failed
    assert process.returncode
    assert "ncclUnhandledCudaError" in process.stderr
    assert "no room for NCCL's buffers" in process.stderr
