"""What host code reads on a virtual GPU: true where all comes from small known values, else stated and never too few.

The answers are those of the CPU, or of a rule. On a machine without a GPU, `virtual_gpu/test_gpu_tests.py` runs this.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.profilers.gpu_values import SmallValues
from dnnmem.profilers.script_compile import FixedChoices
from dnnmem.profilers.virtual import is_virtual

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("values")]


@pytest.fixture
def values():
    if not is_virtual():
        pytest.skip("a real GPU has all values")
    values = SmallValues()
    yield values
    values.close()


@pytest.fixture
def unknown(values):  # noqa: ARG001 - values are kept from here on
    """A product: 64 x 8 of it are few enough to be kept, but nobody knows them."""
    return (torch.randn(64, 512, device="cuda") @ torch.randn(512, 512, device="cuda"))[:, :8]


IDS = [[3, 1, 0, 0], [2, 2, 2, 0]]
KNOWN = {
    "lengths": lambda ids: (ids != 0).sum(1),
    "row": lambda ids: ids[1].sum(),
    "column": lambda ids: ids[:, 1],
    "nonzero": lambda ids: ids.nonzero(),
    "where": lambda ids: torch.where(ids > 1)[1],
    "masked": lambda ids: ids[ids != 0],
    "masked_select": lambda ids: torch.masked_select(ids, ids > 1),
    "two masks": lambda ids: ids[(ids > 0).any(1), (ids > 0).all(0).logical_not()],
    "put": lambda ids: ids.index_put((ids == 2,), ids.new_tensor([7, 8, 9])),
    "fill": lambda ids: ids.masked_fill(ids == 2, 5)[0],
    "unique": lambda ids: torch.unique(ids, return_inverse=True, return_counts=True)[2],
    "unique rows": lambda ids: torch.unique(ids, dim=0),
    "consecutive": lambda ids: torch.unique_consecutive(ids.flatten()),
    "isin": lambda ids: torch.isin(ids, ids[0]),
    "bincount": lambda ids: torch.bincount(ids.flatten()),
    "histc": lambda ids: torch.histc(ids.float(), bins=4),
    "histc of one": lambda ids: torch.histc((ids[1] * 0 + 7).float(), bins=1, min=0, max=0),
    "one_hot": nn.functional.one_hot,
    "repeats": lambda ids: ids.flatten().repeat_interleave(ids.flatten()),
    "degree": lambda ids: torch.zeros(4, device=ids.device).scatter_add(0, ids[1], torch.ones(4, device=ids.device)),
    "argsort": lambda ids: ids[0].argsort(stable=True),
    "segments": lambda ids: torch.segment_reduce(
        torch.ones(7, device=ids.device), "sum", lengths=(ids != 0).sum(1) + 1
    ),
    "equal": lambda ids: torch.tensor([torch.equal(ids, ids.clone()), torch.equal(ids, ids + 1)]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_values_give_what_the_cpu_gives(values, name):
    # GIVEN ids that the host wrote  WHEN an operator reads them
    found = KNOWN[name](torch.tensor(IDS, device="cuda")).tolist()
    # THEN its result, and the shape of it, are those of the CPU, and nothing was assumed
    assert found == KNOWN[name](torch.tensor(IDS)).tolist()
    assert not values.assumed


def test_values_stay_known_where_torch_compile_puts_autocast_off():
    # GIVEN what torch.compile needs  WHEN it asks for autocast, and traces without it
    FixedChoices(pass_through=True)
    # THEN it finds no autocast but a user's own, and values are as known as before
    assert not torch._C._is_any_autocast_enabled()
    with torch.autocast("cuda"):
        assert torch._C._is_any_autocast_enabled()
    with torch._C._DisableAutocast():
        assert torch.tensor(IDS, device="cuda").nonzero().shape == (5, 2)


def test_a_part_that_is_overwritten_is_not_known_any_more(values, unknown):
    # GIVEN counts, one of which is overwritten by what nobody knows
    counts = torch.arange(4, device="cuda")
    counts[2] = unknown[0, 0].long()
    # WHEN they are read
    whole, rest = counts.sum().item(), counts[:2].tolist()
    # THEN only the others are still known
    assert (whole, rest) == (0, [0, 1])
    assert any("read back as 0" in note for note in values.notes())


BOUNDS = {
    "nonzero": (lambda x: (x > 0).nonzero(), (512, 2)),
    "argwhere": (lambda x: torch.argwhere(x > 0), (512, 2)),
    "masked": (lambda x: x[x > 0], (512,)),
    "masked rows": (lambda x: x[x[:, 0] > 0], (64, 8)),
    "masked_select": (lambda x: torch.masked_select(x, x > 0), (512,)),
    "unique": (lambda x: torch.unique(x.long()), (512,)),
    "unique rows": (lambda x: torch.unique(x.long(), dim=0), (64, 8)),
    "repeats": (lambda x: x[0].repeat_interleave(x[0].long()), (8,)),
    "bins": (lambda x: torch.bincount(x[0].long()), (8,)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_unknown_shapes_are_as_large_as_they_can_be_and_said_so(values, unknown, name):
    make, shape = BOUNDS[name]
    assert make(unknown).shape == shape
    assert values.notes()
    without_bound = any("memory may be missing" in note for note in values.notes())
    assert values.facts() == ({} if without_bound else {"shapes_bounded": 1})


def test_the_backward_of_a_mask_that_nobody_knows_has_the_shape_of_its_forward(values, unknown):
    x = torch.randn(64, 8, device="cuda", requires_grad=True)
    x[unknown[:, 0] > 0].sum().backward()
    assert x.grad.shape == (64, 8)
    assert values.notes()


def test_as_many_values_are_put_as_there_are(values, unknown):
    # GIVEN fewer values than a mask, which nobody knows, may have places  WHEN they are put there
    unknown[unknown[:, 0] > 0] = torch.ones(5, 8, device="cuda")
    # THEN the mask has as many places as there are values
    assert not any("all of them" in note for note in values.notes())


ROUTES = {
    "topk": lambda x: x.topk(2)[1],
    "sort": lambda x: x.sort(-1, descending=True)[1][:, :2],
    "argmax": lambda x: x.argmax(-1),
    "max": lambda x: x.max(-1)[1],
    "multinomial": lambda x: torch.multinomial(x.softmax(-1), 2),
}


@pytest.mark.parametrize("name", ROUTES)
def test_routing_by_what_nobody_knows_is_balanced(values, unknown, name):
    # GIVEN scores of 8 experts that nobody knows  WHEN tokens choose  THEN each expert gets as many
    chosen = ROUTES[name](unknown)
    assert torch.bincount(chosen.flatten(), minlength=8).tolist() == [chosen.numel() // 8] * 8
    assert any("equally often" in note for note in values.notes())
    assert not values.facts()


def test_all_rows_are_those_of_a_ranks_only_expert():
    # GIVEN the numbers of a rank's experts, of which it has one, in memory where others lay
    others = [torch.tensor([9 - i] * 100, dtype=torch.int32, device="cuda") for i in range(2)]
    chosen = torch.zeros(4096, dtype=torch.int32, device="cuda")
    del others
    # WHEN they are counted, from 0 to 0  THEN torch looks for the range itself, and all are in one bin
    assert torch.histc(chosen, bins=1, min=0, max=0).tolist() == [4096]


def test_tokens_go_to_experts_in_equal_parts(unknown):
    # GIVEN a hand-written switch of 8 experts
    choice = unknown.argmax(-1)
    # WHEN each takes its tokens
    sizes = [unknown[torch.where(choice == i)[0]].shape[0] for i in range(8)]
    # THEN they are 64 / 8
    assert sizes == [8] * 8


def test_masks_of_experts_too_large_to_be_kept_still_have_their_share():
    # GIVEN a mask of 16 experts over 2**20 routes, 128 MiB
    scores = torch.randn(1 << 19, 16, device="cuda") * 2
    mask = nn.functional.one_hot(scores.topk(2)[1], 16).permute(2, 1, 0)
    # WHEN an expert takes its tokens  THEN they are a sixteenth
    assert torch.where(mask[3])[0].shape == ((1 << 20) // 16,)


def test_what_nobody_reads_is_no_assumption(values, unknown):
    unknown.max(-1)
    assert not values.assumed


def test_nothing_is_infinite_or_missing(values, unknown):
    found = torch.stack([unknown.isfinite().all(), unknown.isnan().any(), unknown.isinf().any()])
    assert found.tolist() == [True, False, False]
    assert any("NaN" in note for note in values.notes())


def test_autograd_and_modes_see_no_twin():
    # GIVEN a mode that notes all operators
    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((str(func), {str(t.device) for t in args if isinstance(t, torch.Tensor)}))
            return func(*args, **(kwargs or {}))

    seen = []
    ids = torch.tensor(IDS, device="cuda")
    # WHEN an operator runs whose values are known
    with Seen():
        total = (ids + 1).sum()
    # THEN it saw it once, on the GPU, and the value is true
    assert seen == [("aten.add.Tensor", {"cuda:0"}), ("aten.sum.default", {"cuda:0"})]
    assert total.item() == 18


def test_random_orders_are_orders():
    state = torch.get_rng_state()
    assert sorted(torch.randperm(9, device="cuda").tolist()) == list(range(9))
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_that_was_freed_holds_no_values():
    # GIVEN ids that have died  WHEN something that nobody writes lies in their place
    torch.tensor([5, 6, 7], device="cuda")
    # THEN it reads as 0
    assert torch.empty(3, dtype=torch.long, device="cuda").tolist() == [0, 0, 0]
