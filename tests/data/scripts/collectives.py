"""Small values go from rank to rank; what large ones would be is nobody's business, and nobody waits for them."""

import os
import time

import torch
from torch import distributed

rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(local)
distributed.init_process_group("nccl", device_id=torch.device("cuda", local))
size = distributed.get_world_size()


def integers(*numbers):
    return torch.tensor(numbers, device="cuda")


def reduced(tensor, op=distributed.ReduceOp.SUM):
    distributed.all_reduce(tensor, op=op)
    return tensor


print("sums", reduced(integers(rank + 1, 10)).tolist(), reduced(torch.tensor([True, rank > 0], device="cuda")).tolist())
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    number = torch.tensor([1.5 * rank], device="cuda", dtype=dtype)
    mean, most = (reduced(number.clone(), op) for op in (distributed.ReduceOp.AVG, distributed.ReduceOp.MAX))
    print(dtype, mean.item(), most.item())
told = integers(5, 7) if rank == 0 else integers(0, 0)
distributed.broadcast(told, 0)
print("told", (told + 1).tolist())
seen = [integers(0, 0) for _ in range(size)]
distributed.all_gather(seen, integers(rank, 9))
print("seen", [tensor.tolist() for tensor in seen])
part = integers(0)
distributed.reduce_scatter(part, [integers(i + rank) for i in range(size)])
print("part", part.item())
swapped = torch.zeros(size, dtype=torch.long, device="cuda")
distributed.all_to_all_single(swapped, torch.arange(size, device="cuda") + 10 * rank)
print("swapped", swapped.tolist())
# a ring: all receive before they send
out, back = integers(rank), integers(-1)
moves = [
    distributed.P2POp(distributed.irecv, back, (rank - 1) % size),
    distributed.P2POp(distributed.isend, out, (rank + 1) % size),
]
for work in distributed.batch_isend_irecv(moves):
    work.wait()
print("from the left", back.item())

everyone = [None] * size
distributed.all_gather_object(everyone, "x" * rank * 2_000_000)
print("objects", [len(text) for text in everyone])
words = [{"a": 1}, None] if rank == 0 else [None, None]
distributed.broadcast_object_list(words, 0)
mine = [None]
distributed.scatter_object_list(mine, list("abcdefgh"[:size]) if rank == 0 else None, src=0)
gathered = [None] * size if rank == 0 else None
distributed.gather_object(mine[0], gathered, dst=0)
print("words", words, mine, gathered)

half = distributed.split_group(split_ranks=[[i for i in range(size) if i % 2 == odd] for odd in range(2)])
mark = integers(rank)
distributed.all_reduce(mark, group=half)
print("half", half.size(), mark.item())

large = torch.zeros(1 << 22, device="cuda")
distributed.barrier()
started = time.time()
time.sleep(4.0 if rank else 0.0)
distributed.all_reduce(large)
torch.cuda.synchronize()
print("large ones wait for nobody", bool(rank) or time.time() - started < 4.0)
distributed.barrier()
print("barriers wait", time.time() - started > 2.0)
