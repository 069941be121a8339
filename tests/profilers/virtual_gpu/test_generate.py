"""Which functions the stub libraries have, and what those do that nobody wrote by hand."""

from __future__ import annotations

import re

import pytest

from dnnmem.profilers.virtual_gpu.build import SOURCES
from dnnmem.profilers.virtual_gpu.generate import declared, entry_points_text, newest_versions, stubs_text
from dnnmem.profilers.virtual_gpu.installed import find_torch
from dnnmem.profilers.virtual_gpu.launch import unavailable
from dnnmem.profilers.virtual_gpu.libraries import LIBRARIES
from dnnmem.profilers.virtual_gpu.reviewed import REVIEWS
from dnnmem.profilers.virtual_gpu.wanted import find_wanted

BY_STEM = {library.stem: library for library in LIBRARIES}


@pytest.fixture(scope="module")
def torch_found():
    if reason := unavailable():
        pytest.skip(reason)
    return find_torch()


def test_what_nobody_reviewed_ends_the_process_with_its_name():
    text = stubs_text(BY_STEM["libcudart"], ["cudaNewInNextVersion"])
    assert 'int cudaNewInNextVersion(void) { return vg_unreviewed("cudaNewInNextVersion"); }' in text


def test_what_nvml_does_not_know_it_does_not_support():
    assert "int nvmlDeviceGetFanSpeed(void) { return 3; }" in stubs_text(
        BY_STEM["libnvidia-ml"], ["nvmlDeviceGetFanSpeed"]
    )


def test_every_library_is_reviewed_by_patterns_of_its_own():
    # GIVEN the reviews  WHEN a plain name is taken from each pattern  THEN it belongs to that library
    assert set(REVIEWS) == set(BY_STEM)
    for stem, review in REVIEWS.items():
        for pattern in (*review.quiet, *review.computes):
            name = re.sub(r"\([^)]*\)\??|\[[^\]]*\]", "S", pattern)
            assert re.match(BY_STEM[stem].prefix, name), (stem, pattern)


def test_no_pattern_allows_a_query_of_sizes():
    # a size that is never written would be whatever the memory held before
    for review in REVIEWS.values():
        for pattern in (*review.quiet, *review.computes):
            told = pattern.replace("(Get|Set)", "").replace("SetAutoAllocation", "")  # that one turns it off
            assert not re.search(r"Get|Size|Alloc|Malloc", told), pattern


def test_plain_names_lead_to_the_newest_version():
    text = entry_points_text(["cuMemAlloc", "cuMemAlloc_v2", "cuInit"], {"cuMemAlloc": "cuMemAlloc_v2"})
    assert '{"cuMemAlloc", (void *)cuMemAlloc_v2},' in text
    assert '{"cuInit", (void *)cuInit},' in text


def test_headers_declare_what_torch_asks_for(torch_found):
    # GIVEN what the installed torch asks of the libraries
    wanted = find_wanted(torch_found)
    # WHEN it is held against the public headers
    for stem in ("libcublas", "libcublasLt", "libcudnn", "libnccl"):
        missing = wanted.names(BY_STEM[stem]) - declared(BY_STEM[stem], torch_found)
        # THEN nearly all is declared there: the reader of headers does not miss any kind of declaration
        assert len(missing) <= 0.1 * len(wanted.names(BY_STEM[stem])), (stem, missing)


def test_torch_names_the_libraries_that_it_wants(torch_found):
    # GIVEN  WHEN
    wanted = find_wanted(torch_found)
    major = torch_found.cuda.split(".")[0]
    # THEN the stub libraries get the names of this CUDA's
    assert wanted.soname(BY_STEM["libcudart"]) == f"libcudart.so.{major}"
    assert "cudaMalloc" in wanted.names(BY_STEM["libcudart"])
    assert not any(name.startswith("cuFile") for name in wanted.names(BY_STEM["libcuda"]))


def test_the_driver_has_newest_versions(torch_found):
    assert newest_versions(torch_found)["cuMemAlloc"] == "cuMemAlloc_v2"


def test_the_sources_are_all_used():
    built = {source for library in LIBRARIES for source in library.sources}
    assert {path.name for path in SOURCES.glob("*.c")} == built
