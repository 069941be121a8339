"""All models that the recorder was not tuned on, by name.

>>> len(UNSEEN) >= 20
True
"""

from __future__ import annotations

from tests.accuracy.unseen.libraries import LIBRARIES
from tests.accuracy.unseen.written import WRITTEN
from tests.models.entry import Entry
from tests.profilers.recorded import target_of

UNSEEN: dict[str, Entry] = {**WRITTEN, **LIBRARIES}

AUTOCAST = frozenset({"gru_packed", "denoiser", "mobilenet_v3", "resnext50", "gpt_neox", "qwen3_checkpointed"})
"""Those under autocast, whose cache is a hash map by address: its copies die in an order of no meaning."""

QUICK = (
    "lstm_packed", "dense_experts", "encoder", "encoder_checkpointed", "denoiser", "adversaries", "twins", "extremes",
    "soft_targets", "mobilenet_v3", "qwen3_checkpointed",
)  # fmt: skip
"""One of each kind, for every day."""


def unseen_target(name):
    entry = UNSEEN[name]
    return target_of(entry.make_model, entry.make_batch, entry.train_step, entry.make_optimizer)
