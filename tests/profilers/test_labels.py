"""Labels of the allocator's events: counted ones say what the allocator itself would."""

from __future__ import annotations

import gc

import pytest
import torch

from dnnmem.profilers.cuda import MAX_HISTORY, _history
from dnnmem.profilers.labels import Counted, Told, new_labels
from tests.profilers.recorded import CLEARED

pytestmark = pytest.mark.gpu


def test_counted_labels_are_where_the_allocators_own_are():
    # GIVEN both kinds of labels over one piece of work, with a free across streams in it
    gc.collect()
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=MAX_HISTORY, **CLEARED)
    told, counted = Told(), Counted()
    side = torch.cuda.Stream()
    kept = []
    for index in range(20):
        for labels in (told, counted):
            labels.set(str(index))
        x = torch.empty(1000 * (index + 1), device="cuda")
        if index % 3:
            kept.append(x)
        x.record_stream(side)
        del x
        for labels in (told, counted):
            labels.set(f"~{index}")
        if index % 5 == 0:
            kept.clear()
    # WHEN the history is read
    history = _history()
    torch.cuda.memory._record_memory_history(None)
    events = [event for event in counted.put_on(history) if event["action"] in {"alloc", "free_requested"}]
    # THEN every event of the program has the label that was set last
    assert len(events) > 20
    if isinstance(new_labels(), Told):
        own = [event["user_metadata"] for event in history if event["action"] in {"alloc", "free_requested"}]
        assert [event["user_metadata"] for event in events] == own
    allocated = [event["user_metadata"] for event in events if event["action"] == "alloc"]
    assert allocated == [str(index) for index in range(20)]
