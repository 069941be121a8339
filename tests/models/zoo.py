"""Small models of many families, each with its way of being trained: what claims about "any model" are tested on.

>>> entry = ZOO["gpt"]
>>> model, batch = entry.make_model(), entry.make_batch(4)
>>> optimizer = entry.make_optimizer(model.parameters())
>>> entry.train_step(model, batch, optimizer).shape
torch.Size([])
"""

from __future__ import annotations

from tests.models.entry import Entry
from tests.models.language import LANGUAGE
from tests.models.others import OTHERS
from tests.models.training import TRAINING
from tests.models.vision import VISION

ZOO: dict[str, Entry] = {**VISION, **LANGUAGE, **OTHERS, **TRAINING}
