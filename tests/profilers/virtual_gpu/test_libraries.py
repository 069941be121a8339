"""What torch gets of the smaller libraries: transforms, decompositions, sparse products, and a loss of cuDNN's."""

from __future__ import annotations

import json

import pytest

from dnnmem.profilers.virtual_gpu.libraries import LIBRARIES
from dnnmem.profilers.virtual_gpu.reviewed import REVIEWS


def told(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_library_is_reviewed():
    assert {library.stem for library in LIBRARIES} == set(REVIEWS)


TRANSFORMS = """
    import json, torch
    def peak(run, *shape):
        x = torch.randn(*shape, device="cuda")
        torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = run(x)
        return torch.cuda.max_memory_allocated() - before
    print(json.dumps([
        peak(lambda x: torch.fft.rfft(x), 64, 1024),
        peak(lambda x: torch.fft.fft2(torch.view_as_complex(x)), 4, 256, 256, 2),
        peak(lambda x: torch.fft.rfft(x), 64, 1031),
    ]))
    y = torch.randn(2, 16000, device="cuda")
    spectrum = torch.stft(y, 400, window=torch.hann_window(400, device="cuda"), return_complex=True)
    assert torch.istft(spectrum, 400, window=torch.hann_window(400, device="cuda")).shape == (2, 16000)
"""


def test_a_transform_takes_its_work_area_from_torch(on_gpu):
    # GIVEN a transform of rows, one of planes, and one of a prime length  WHEN each runs once
    rows, planes, prime = told(on_gpu(TRANSFORMS))
    # THEN it holds its result and one complex copy of the data; Bluestein's algorithm pads it to a power of two
    assert rows == 2 * 64 * 513 * 8
    assert planes == 2 * 4 * 256 * 256 * 8
    assert prime == 64 * 516 * 8 + 64 * 4096 * 8


DECOMPOSITIONS = """
    import ctypes, json, os, torch
    if os.environ["KEEP"] == "1":
        ctypes.CDLL(None).vg_keep_values(ctypes.c_size_t(1 << 20))
    L = torch.linalg
    dirty = [torch.full((n,), 7, dtype=torch.int32).cuda() for n in (1, 3, 128)]  # what `info` gets next held a 7
    del dirty
    for shape in ((32, 32), (3, 32, 32), (2, 600, 600)):
        a = torch.randn(*shape, device="cuda", requires_grad=True)
        for out in (L.svd(a, full_matrices=False)[1], L.qr(a)[1], L.inv(a), L.det(a), L.slogdet(a)[1], L.eigvalsh(a),
                    L.eigh(a)[0], L.cholesky(a @ a.mT), L.solve(a, a), L.lu(a)[2], L.pinv(a)):
            out.sum().backward()
        L.lstsq(a.detach(), a.detach())
        torch.cholesky_inverse(L.cholesky(a.detach()))
        torch.lu_solve(a.detach(), *L.lu_factor(a.detach()))
        L.ldl_factor(a.detach())
    from dnnmem.profilers.virtual_gpu.certainty import certainty_notes
    print(json.dumps(certainty_notes()), flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("keep", ["0", "1"])
def test_decompositions_succeed_whatever_memory_held_before(on_gpu, keep):
    # GIVEN memory whose values outlive kernels, or do not  WHEN matrices are decomposed, with gradients
    notes = told(on_gpu(DECOMPOSITIONS, KEEP=keep))
    # THEN none fails, and the report can say that their scratch memory is a model
    assert len(notes) == 1
    assert notes[0].startswith(
        "cuSOLVER's scratch memory is a model (what LAPACK documents for the same routine): asked"
    )


SPARSE = """
    import json, torch
    n, edges = 1000, 5000
    number = torch.arange(edges)
    places = torch.stack([number % n, (number * 7 + number // n) % n])
    graph = torch.sparse_coo_tensor(places, torch.ones(edges), (n, n)).coalesce()
    weight = torch.randn(n, 16, device="cuda", requires_grad=True)
    for matrix in (graph.cuda(), graph.to_sparse_csr().cuda()):
        (matrix @ weight).sum().backward()
    matrix = graph.to_sparse_csr().cuda()
    product = matrix @ matrix
    print(json.dumps([list((matrix + matrix).shape), list(product.shape), product._nnz()]), flush=True)
    import os; os._exit(0)
"""


def test_sparse_matrices_are_multiplied_and_added(on_gpu):
    # GIVEN the matrix of a graph, 1,000 nodes and 5,000 edges  WHEN it is multiplied and added to itself
    added, multiplied, nonzero = told(on_gpu(SPARSE))
    # THEN results have their shapes, and a product as many elements as is stated: 25 of a row meet
    assert (added, multiplied, nonzero) == ([1000, 1000], [1000, 1000], 25000)


CTC = """
    import json, torch
    from torch.nn.functional import ctc_loss
    for kind in (torch.int32, torch.int64):
        x = torch.randn(50, 16, 20, device="cuda", requires_grad=True)
        labels = torch.randint(1, 20, (16, 30), dtype=kind).cuda() if kind is torch.int64 else \\
            torch.randint(1, 20, (16 * 30,), dtype=kind)
        steps, lengths = torch.full((16,), 50, dtype=kind), torch.full((16,), 30, dtype=kind)
        try:
            ctc_loss(x.log_softmax(-1), labels, steps, lengths).backward()
        except RuntimeError as error:
            assert "same device" in str(error), error
            lengths, steps = lengths.cuda(), steps.cuda()
            ctc_loss(x.log_softmax(-1), labels.cuda(), steps, lengths).backward()
    from dnnmem.profilers.virtual_gpu.certainty import certainty_notes
    print(json.dumps(certainty_notes()), flush=True)
    import os; os._exit(0)
"""


def test_the_ctc_loss_runs_in_torch_and_in_cudnn(on_gpu):
    # GIVEN labels of 64 and of 32 bits: torch gives the latter to cuDNN  WHEN THEN both run, and one is a model
    notes = told(on_gpu(CTC))
    assert [note.partition(":")[0] for note in notes] == [
        "cuDNN's workspace for the CTC loss is a model (what the algorithm holds)"
    ]


BENCHMARK = """
    import json, torch
    torch.backends.cudnn.benchmark = True
    convolution = torch.nn.Conv2d(16, 32, 3).cuda()
    x = torch.randn(4, 16, 64, 64, device="cuda")
    peaks = []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        convolution(x).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
        convolution.zero_grad()
    from dnnmem.profilers.virtual_gpu.certainty import certainty_notes
    print(json.dumps([peaks, certainty_notes()]), flush=True)
    import os; os._exit(0)
"""


def test_a_search_for_the_fastest_plan_ends_the_same_every_time(on_gpu):
    # GIVEN cudnn.benchmark  WHEN a convolution runs in two processes
    (first, notes), (second, _) = (told(on_gpu(BENCHMARK)) for _ in range(2))
    # THEN it takes the same memory in both, no less in the step that searches, and a note says so
    assert first == second
    assert first[0] >= first[1]
    assert [note[:21] for note in notes] == ["cudnn.benchmark is on"]
