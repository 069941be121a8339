"""Sizes of the model that is predicted and run: blocks, logits and gathered parameters of some hundred MiB each."""

MODEL = {
    "layers": 4, "width": 1024, "heads": 8, "kv_heads": 4, "ffn": 4096, "vocab": 16000, "context": 2048, "norm": "rms",
    "mlp": "swiglu", "positions": "rope", "bias": False, "tied": False,
}  # fmt: skip
BATCH, SEQ = 2, 2048
