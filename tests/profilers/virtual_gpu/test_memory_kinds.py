"""Memory that is not simply allocated: by stream, shared with the host, and of another process."""

from __future__ import annotations

import json


def told(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BY_STREAM = """
    import json, torch
    x = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")
    y = torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
    del y
    held = [torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()]
    torch.cuda.empty_cache()
    held.append(torch.cuda.memory_reserved())
    torch.cuda.reset_peak_memory_stats()
    held.append(torch.cuda.max_memory_reserved())
    try:
        torch.empty(200 << 30, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        held.append(str(error)[:24])
    from dnnmem.profilers.virtual_gpu.certainty import certainty_notes
    print(json.dumps([held, certainty_notes()]))
"""


def test_memory_by_stream_is_counted_by_its_pool(on_gpu):
    # GIVEN torch on the driver's own pool  WHEN 3 and 5 MiB are taken, and the second given back
    done = on_gpu(BY_STREAM, PYTORCH_CUDA_ALLOC_CONF="backend:cudaMallocAsync", PYTORCH_ALLOC_CONF="")
    (*sizes, error), notes = told(done)
    # THEN the pool keeps what it had, until it is trimmed
    assert [size >> 20 for size in sizes] == [3, 8, 8, 3, 3]
    assert error == "Allocation on device 0 w"
    assert [note[:23] for note in notes] == ["backend:cudaMallocAsync"]


# no torch: the driver alone, so that a fork is cheap
PLAIN = """
    import ctypes, json, os
    cuda = ctypes.CDLL("libcuda.so.1")
    cuda.vg_used_bytes.restype = ctypes.c_size_t
    cuda.vg_modelled_most.restype = ctypes.c_size_t
    size, address, context = ctypes.c_size_t, ctypes.c_uint64(), ctypes.c_void_p()
    class Handle(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_char * 64)]
    cuda.cuInit(0)
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    cuda.cuCtxSetCurrent(context)
"""


def test_managed_memory_is_the_hosts_and_counted_apart(on_gpu):
    # GIVEN managed memory, which the host writes  WHEN it is given back
    done = on_gpu(
        PLAIN
        + """
    before = cuda.vg_used_bytes(0)
    first, second = ctypes.c_uint64(), ctypes.c_uint64()
    assert cuda.cuMemAllocManaged(ctypes.byref(first), size(3 << 20), 1) == 0
    assert cuda.cuMemAllocManaged(ctypes.byref(second), size(5 << 20), 1) == 0
    ctypes.memset(first.value, 1, 3 << 20)
    during = cuda.vg_used_bytes(0)
    codes = [cuda.cuMemFree_v2(first), cuda.cuMemFree_v2(second), cuda.cuMemFree_v2(second)]
    print(json.dumps([during - before, codes, cuda.vg_modelled_most(4) >> 20]))
    """
    )
    # THEN the GPU never held it, and the most at one time is known
    assert told(done) == [0, [0, 0, 1], 8]


def test_another_process_maps_memory_that_it_does_not_pay_for(on_gpu):
    # GIVEN 4 MiB of one process  WHEN a second one opens its handle, and then the first itself
    done = on_gpu(
        PLAIN
        + """
    handle, opened = Handle(), ctypes.c_uint64()
    assert cuda.cuMemAlloc_v2(ctypes.byref(address), size(4 << 20)) == 0
    assert cuda.cuIpcGetMemHandle(ctypes.byref(handle), address) == 0
    reader, writer = os.pipe()
    if not os.fork():
        before = cuda.vg_used_bytes(0)
        code = cuda.cuIpcOpenMemHandle_v2(ctypes.byref(opened), handle, 1)
        found = [code, opened.value != address.value, cuda.vg_device_of(opened), cuda.vg_used_bytes(0) - before]
        os.write(writer, json.dumps([*found, cuda.cuIpcCloseMemHandle(opened)]).encode())
        os._exit(0)
    found = json.loads(os.read(reader, 1000))
    print(json.dumps([found, cuda.cuIpcOpenMemHandle_v2(ctypes.byref(opened), handle, 1)]))
    """
    )
    # THEN there it has an address of the same GPU and costs nothing; in its own process it cannot be opened
    assert told(done) == [[0, True, 0, 0, 0], 1]
