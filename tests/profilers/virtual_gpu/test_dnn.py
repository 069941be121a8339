"""What torch gets from the stub of cuDNN: workspaces of convolutions and attention, and sizes of recurrent networks."""

from __future__ import annotations

import json

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.cudnn_service import VARIABLE, find_cudnn
from dnnmem.profilers.virtual_gpu.installed import find_torch

MIB = 2**20


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def version():
    """Of the cuDNN that is asked; skips where none can be."""
    try:
        return find_cudnn(find_torch()).version
    except UnsupportedError as error:
        pytest.skip(error.message)


CONVOLUTIONS = """
    import ctypes, json, os, torch
    x = torch.randn(32, 64, 224, 224, device="cuda")
    w = torch.randn(64, 64, 3, 3, device="cuda")

    def used():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        nbytes = torch.nn.functional.conv2d(x, w, padding=1).nbytes
        return torch.cuda.max_memory_allocated() - before - nbytes

    def unknown():
        return ctypes.CDLL(None).vg_dnn_unknown()
"""


def test_a_convolution_gets_the_workspace_that_cudnn_says(on_gpu, version):
    # GIVEN a convolution whose workspaces are known  WHEN torch runs it, may not use tf32, and may try engines
    code = f"""{CONVOLUTIONS}
    first, again = used(), used()
    torch.backends.cudnn.allow_tf32 = False
    exact = used()
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    tried, taken = used(), used()
    print(json.dumps([first, again, exact, tried, taken, unknown()]))
    """
    ((first, again, exact, tried, taken, unknown),) = lines(on_gpu(code))
    # THEN it takes the workspace of the best engine that it may use, and of the largest when it tries them
    assert unknown == 0
    assert first == again
    assert tried >= taken
    if version == 92400:
        assert first == pytest.approx(392.1 * MIB, rel=0.001)
        assert exact < MIB


def test_where_nobody_answers_there_is_no_workspace_and_that_is_counted(on_gpu):
    # GIVEN servers that are not there  WHEN torch runs a convolution  THEN it runs, and its workspace is not known
    code = f"""{CONVOLUTIONS}
    for address in ("", "@nobody", "/nonexistent/socket", "x" * 200):
        os.environ["{VARIABLE}"] = address
        x = x[:-1]
        print(json.dumps([used(), unknown()]))
    """
    told = lines(on_gpu(code))
    assert [unknown for _, unknown in told] == [1, 2, 3, 4]
    assert all(used < MIB for used, _ in told)  # what the allocator does not split off


@pytest.mark.usefixtures("version")
def test_attention_has_engines(on_gpu):
    # GIVEN attention by cuDNN, whose engines are compiled at run time  WHEN it runs forward and backward
    code = """
        import ctypes, json, os, torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        q = torch.randn(2, 8, 512, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        print(json.dumps([q.grad is not None, ctypes.CDLL(None).vg_dnn_unknown()]), flush=True)
        os._exit(0)  # autograd's thread may still be at work, which Python does not bear at its end
    """
    # THEN cuDNN knows both
    assert lines(on_gpu(code)) == [[True, 0]]


RECURRENT = """
    import ctypes, json, os, torch
    nets = [(kind, options) for kind in ("LSTM", "GRU", "RNN") for options in ({}, {"bidirectional": True})]
    nets.append(("LSTM", {"proj_size": 64}))
    for kind, options in nets:
        net = getattr(torch.nn, kind)(123, 320, 4, **options).cuda()
        x = torch.randn(1000, 25, 123, device="cuda")
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in net.parameters()}
        before = torch.cuda.memory_allocated()
        out = net(x)
        states = out[1] if isinstance(out[1], tuple) else (out[1],)
        held = torch.cuda.memory_allocated() - before - out[0].nbytes - sum(s.nbytes for s in states)
        out[0].sum().backward()
        trained = all(p.grad is not None for p in net.parameters())
        weights = sum(p.nbytes for p in net.parameters())
        print(json.dumps([kind, options, list(storages.values()), weights, held, trained]))
        del out, states
    print(json.dumps(ctypes.CDLL(None).vg_dnn_modelled()), flush=True)
    os._exit(0)
"""
PUBLISHED = {"LSTM": 736_000_000, "GRU": 864_000_000}
"""Reserve in pytorch/pytorch#2895, for this network and input."""


def test_recurrent_networks_run(on_gpu):
    # GIVEN networks of each kind  WHEN they run forward and backward
    *nets, modelled = lines(on_gpu(RECURRENT))
    assert len(nets) == 7
    # THEN weights lie in one piece without gaps, what is kept is what was published, and that is said to be a model
    for kind, options, storages, weights, held, trained in nets:
        assert (storages, trained) == ([weights], True), (kind, options)
        if kind in PUBLISHED and not options:
            assert 0 <= held - PUBLISHED[kind] < 4 * MIB  # with the initial states, which torch makes and keeps
    assert modelled >= len(nets)


SCRATCH = """
    import json, torch
    from dnnmem.profilers.rules.recurrent_operators import network
    from dnnmem.profilers.rules.recurrent_sizes import elements, reserve_bytes, workspace_bytes
    from torch import nn
    for kind, mode in ((nn.LSTM, 2), (nn.GRU, 3), (nn.RNN, 1)):
        special = {"proj_size": 64} if mode == 2 else {"bias": False}
        for options in ({}, {"bidirectional": True, "dropout": 0.5}, special):
            net, x = kind(96, 128, 3, **options).cuda(), torch.randn(50, 8, 96, device="cuda")
            block = next(net.parameters()).untyped_storage().nbytes()
            net(x)  # makes the states of dropout
            torch.cuda.reset_peak_memory_stats()
            h = torch.zeros(6 if net.bidirectional else 3, 8, options.get("proj_size", 128), device="cuda")
            hidden = (h, torch.zeros(len(h), 8, 128, device="cuda")) if mode == 2 else h
            before = torch.cuda.memory_stats()["requested_bytes.all.current"]
            out, states = net(x, hidden)
            made = [out, *(states if mode == 2 else (states,))]
            peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before - sum(t.nbytes for t in made)
            kept = torch.cuda.memory_stats()["requested_bytes.all.current"] - before - sum(t.nbytes for t in made)
            it = network(x, mode, 128, net.proj_size, 3, bidirectional=net.bidirectional)
            reserve = reserve_bytes(it, steps=50, batch=8, element_bytes=4)
            workspace = workspace_bytes(it, batch=8, element_bytes=4)
            print(json.dumps([[block, kept, peak], [elements(it) * 4, reserve, reserve + workspace]]))
            del out, states, made
"""


def test_a_fake_run_has_the_same_sizes(on_gpu):
    # GIVEN recurrent networks  WHEN they run here  THEN weights, reserve and workspace are those of `recurrent_sizes`
    told = lines(on_gpu(SCRATCH))
    assert len(told) == 9
    for here, fake in told:
        assert here == fake


def test_a_plan_says_what_it_is_made_for(on_gpu, version):  # noqa: ARG001 - skips where no engine has a number
    # GIVEN the first layer of a ResNet in half precision, the gradient of whose weight torch reads a plan's JSON for
    code = """
    import json, torch
    x, w, g = (torch.randn(s, device="cuda", dtype=torch.float16) for s in
               [(64, 3, 224, 224), (64, 3, 7, 7), (64, 64, 112, 112)])
    found = torch.ops.aten.convolution_backward(g, x, w, [0], [2, 2], [3, 3], [1, 1], False, [0, 0], 1,
                                                [False, True, False])
    print(json.dumps(list(found[1].shape)))
    """
    # THEN it finds one that is not wrong there
    assert lines(on_gpu(code)) == [[64, 3, 7, 7]]
