"""What encoding costs is what its arithmetic asks for: sizes that are kept, and calls that come out even."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.encoding import (
    DECODE,
    ENCODE,
    Encoding,
    Shape,
    chunks,
    coded,
    decode,
    decoded_bytes,
    encode,
    kept,
    kernels_of,
)
from dnnmem.profilers.apply import codes

KINDS = [
    *(Encoding(kind="codes", bits=bits, group=group) for bits in (8, 4, 2) for group in (64, 256)),
    *(Encoding(kind="rows", share=share) for share in (0.5, 0.3, 0.01)),
    Encoding(kind="sign"), Encoding(kind="bool"), Encoding(kind="window"), Encoding(kind="shape"),
]  # fmt: skip
DTYPES = {"bool": torch.bool, "window": torch.int64}


def packed(encoding, elements, dtype):
    """What the arithmetic keeps of so many elements."""
    x = torch.zeros(elements, dtype=dtype)
    window = codes.Window(kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), width=8)
    x = x.view(1, 1, 4, -1) if encoding.kind == "window" else x
    return codes.encode(encoding, x, torch.Generator(), columns=32, window=window)


@pytest.mark.parametrize("encoding", KINDS, ids=lambda it: f"{it.kind}{it.bits}-{it.group}-{it.share}")
@pytest.mark.parametrize("elements", [4096, 4096 + 32 * 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_has_its_size(encoding, elements, dtype):
    dtype = DTYPES.get(encoding.kind, dtype)
    shape = Shape(elements=elements, item_bytes=dtype.itemsize, columns=32)
    found = packed(encoding, elements, dtype)
    assert {part.name: part.nbytes for part in kept(encoding, shape)} == {
        name: part.numel() * part.element_size() for name, part in found.parts.items()
    }
    made = codes.decode(found)
    assert decoded_bytes(encoding, shape) == made.numel() * made.element_size()


@given(st.sampled_from(KINDS), st.integers(1, 1 << 25), st.sampled_from([2, 4]))
def test_calls_come_out_even(encoding, elements, item):
    # GIVEN any size
    shape = Shape(elements=elements, item_bytes=item, columns=1, edges=(1, elements))
    parts = {part.name: part.nbytes for part in kept(encoding, shape)}
    for cost, left in ((encode(encoding, shape), parts), (decode(encoding, shape), {"out": None})):
        live = {}
        for nbytes, name in cost.calls:
            # THEN nothing is allocated twice, and what is given back was there
            if nbytes > 0:
                assert name not in live
                live[name] = nbytes
            else:
                assert live.pop(name) == -nbytes
        # AND what is left is what is kept, or the tensor
        assert live.keys() == left.keys()
        assert cost.moved_bytes >= 0


@given(st.sampled_from(KINDS[:6]), st.integers(0, 1 << 26))
def test_chunks_are_all_that_is_coded(encoding, elements):
    assert sum(chunks(encoding, elements)) == coded(encoding, elements)
    assert 0 <= elements - coded(encoding, elements) < encoding.group * encoding.parts


@pytest.mark.parametrize("encoding", KINDS, ids=lambda it: f"{it.kind}{it.bits}-{it.group}-{it.share}")
def test_kernels_are_told_from_what_is_kept(encoding):
    elements = 32 << 16
    shape = Shape(elements=elements, item_bytes=4, columns=32)
    sizes = {"bool": 1, "uint8": 1, "float32": 4, "raw": 4}
    parts = {part.name: part.nbytes // sizes[part.dtype] for part in kept(encoding, shape)}
    assert kernels_of(ENCODE + encoding.kind, elements, parts) == encode(encoding, shape).kernels
    assert kernels_of(DECODE + encoding.kind, elements, parts) == decode(encoding, shape).kernels
