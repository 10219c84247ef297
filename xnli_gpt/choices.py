"""The names that options take, as plain values, so that help needs no library.

What does the work of a name stands where that work is done, and is checked against these names.
"""

from __future__ import annotations

SPLITS = ("train", "validation", "test")

# What stands around the two texts; pretraining put the end-of-text token before every document.
TEMPLATES = {
    "documents": ("end_of_text", "premise", "end_of_text", "hypothesis", "end_of_text"),
    "group": ("premise", "end_of_text", "hypothesis"),
}

RESAMPLES = 10_000

HEADS = ("mlp",)
LOSSES = ("cross_entropy",)
SCHEDULES = ("linear", "cosine", "constant")
EMBEDDING_UPDATES = ("exact", "lazy")

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
ROW_ATTENTION = ("groups", "flex", "varlen")
# Tokens of a forward pass without gradients, which needs little memory.
EVALUATION_TOKENS = 16384
