"""Whether the trunk's language model knows the texts that it is fine-tuned on."""

from __future__ import annotations

import numpy as np
from torch import nn

from xnli_gpt.checkpoints.lm_check import lm_self_check
from xnli_gpt.data.encoded import EncodedSplit
from xnli_gpt.data.tokenizer import PairEncoding

SELF_CHECK_TEXTS = 256


def self_check(trunk: nn.Module, train: EncodedSplit, encoding: PairEncoding) -> dict | None:
    """Print how likely the trunk finds the premises, and warn where it looks wrong.

    Returns the losses; None for a trunk without a language model.
    """
    if trunk.lm_head_weight is None:
        print("self-check: left out, a random trunk has no language model")
        return None
    picked = np.linspace(0, len(train) - 1, num=min(SELF_CHECK_TEXTS, len(train)), dtype=int)
    start = np.array([encoding.end_of_text])
    texts = [np.concatenate([start, train.premise(i)]) for i in dict.fromkeys(picked.tolist())]
    print(f"self-check: the trunk's language model on {len(texts)} premises")
    check = lm_self_check(trunk, [text[: trunk.config.max_seq_len] for text in texts])
    print(
        f"self-check: language-model loss {check['lm_loss']:.3f} nats a token on the premises, "
        f"{check['shuffled_loss']:.3f} with their tokens shuffled"
    )
    if check["suspicious"]:
        print(
            "warning: the trunk hardly tells the texts from shuffled ones: the tokenizer is "
            "probably not the one of the pretraining, or the checkpoint is wrong"
        )
    return check
